//! Where a pipeline's shards stand, for `/status`: who has them, and by which policy they are worked.

use super::{Error, Store};

/// Where one shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    /// The shard.
    pub shard: i32,
    /// Whether its lease lives, by Postgres's clock.
    pub leased: bool,
    /// The worker that has it, or had it last.
    pub owner: Option<String>,
    /// The policy version that it is at; 0 before its first owner.
    pub version: i64,
    /// The uid of the manifest that brought this version.
    pub uid: Option<String>,
    /// The generation of that manifest.
    pub generation: Option<i64>,
}

impl Store {
    /// Where each shard stands, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn standing(&self) -> Result<Vec<ShardState>, Error> {
        Ok(sqlx::query_as!(
            ShardState,
            r#"select shard, coalesce(owner is not null and lease_until > clock_timestamp(), false) as "leased!", owner,
                      policy_version as version, uid as "uid?", generation as "generation?"
               from shards left join policies on policies.version = shards.policy_version
               order by shard"#
        )
        .fetch_all(&self.pool)
        .await?)
    }
}
