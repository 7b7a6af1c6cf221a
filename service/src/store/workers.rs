//! Workers and their leases, as a person looks at them.

use chrono::{DateTime, Utc};

use super::{Error, Store};
use crate::domain::ShardId;

/// A worker that was alive within the last day, or holds a shard.
#[derive(Debug, Clone)]
pub struct KnownWorker {
    /// Its name.
    pub worker: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Until when its heartbeat holds.
    pub seen_until: DateTime<Utc>,
    /// Whether its heartbeat has not expired.
    pub is_alive: bool,
}

/// The lease of a shard. Its token is a secret among workers.
#[derive(Debug, Clone)]
pub struct KnownLease {
    /// The shard.
    pub shard: ShardId,
    /// The worker that owns it; `None`: none does.
    pub owner: Option<String>,
    /// The end of the lease.
    pub lease_until: Option<DateTime<Utc>>,
    /// Whether the lease has not expired.
    pub is_alive: bool,
    /// The number that fences off earlier owners.
    pub epoch: i64,
    /// When the owner of this epoch took the shard.
    pub taken_at: Option<DateTime<Utc>>,
    /// The policy version that the shard runs.
    pub policy_version: i64,
}

impl Store {
    /// The workers, by name.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn known_workers(&self) -> Result<Vec<KnownWorker>, Error> {
        let workers = sqlx::query_as!(
            KnownWorker,
            r#"select worker, started_at, seen_until, is_alive(seen_until) as "is_alive!" from workers order by worker"#
        );
        Ok(workers.fetch_all(&self.pool).await?)
    }

    /// The leases, by shard.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn known_leases(&self) -> Result<Vec<KnownLease>, Error> {
        let leases = sqlx::query_as!(
            KnownLease,
            r#"select s.shard as "shard: ShardId", s.owner, s.lease_until,
                      coalesce(is_alive(s.lease_until), false) as "is_alive!", s.epoch, e.taken_at as "taken_at?",
                      s.policy_version
               from shards s left join epochs e on e.shard = s.shard and e.epoch = s.epoch order by s.shard"#
        );
        Ok(leases.fetch_all(&self.pool).await?)
    }
}
