//! The state of a pipeline's shards for `/status`: their owners, and the policy versions that they run.

use millrace_crds::status_api::ShardStatus;

use super::{Error, Store};
use crate::domain::ShardId;

impl Store {
    /// The state of each shard, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn shard_states(&self) -> Result<Vec<ShardStatus>, Error> {
        let rows = sqlx::query!(
            r#"select shard as "shard: ShardId",
                      coalesce(owner is not null and is_alive(lease_until), false) as "leased!", owner,
                      policy_version, uid as "uid?", generation as "generation?"
               from shards left join policies on policies.version = shards.policy_version
               order by shard"#
        )
        .fetch_all(&self.pool)
        .await?;
        let status = rows.into_iter().map(|row| ShardStatus {
            shard: row.shard.get(),
            leased: row.leased,
            owner: row.owner,
            version: row.policy_version,
            uid: row.uid,
            generation: row.generation,
        });
        Ok(status.collect())
    }
}
