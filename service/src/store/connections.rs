//! How many connections to Postgres are in use, of each pool.

use super::Store;

/// The connections of one pool.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// `queries` or `commits`.
    pub pool: &'static str,
    /// In use now, those that are being opened included.
    pub used: u32,
    /// At the most.
    pub most: u32,
}

impl Store {
    /// The connections of each pool.
    #[must_use]
    pub fn connections(&self) -> [Connections; 2] {
        [("queries", &self.pool), ("commits", &self.commits)].map(|(name, pool)| {
            let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
            Connections {
                pool: name,
                used: pool.size().saturating_sub(idle),
                most: pool.options().get_max_connections(),
            }
        })
    }
}
