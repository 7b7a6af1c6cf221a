//! The state of a pipeline's shards for `/status`: their owners, and the policy versions that they run.

use super::{Error, Store};

/// The owner and the policy version of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    /// The shard.
    pub shard: i32,
    /// Whether its lease is alive, by Postgres's clock.
    pub leased: bool,
    /// The worker that owns it, or owned it last.
    pub owner: Option<String>,
    /// The policy version that it runs; 0 before its first owner.
    pub version: i64,
    /// The uid of the manifest of this version.
    pub uid: Option<String>,
    /// The generation of that manifest.
    pub generation: Option<i64>,
}

impl Store {
    /// The state of each shard, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn shard_states(&self) -> Result<Vec<ShardState>, Error> {
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
