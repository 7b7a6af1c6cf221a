//! What the check of alerts of totals needs beside the records.

use chrono::{DateTime, Utc};

use super::Verification;
use crate::{
    domain::{Seq, ShardId},
    store::Error,
};

/// A declared rollup in a shard.
#[derive(Debug, Clone)]
pub struct RollupFacts {
    /// The shard.
    pub shard: ShardId,
    /// The rollup's id.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// The policy version that declared it.
    pub version: i64,
    /// The policy version that no longer has it.
    pub removed: Option<i64>,
    /// Length of a window in seconds.
    pub window_seconds: i32,
    /// The IANA time zone of its windows.
    pub time_zone: String,
    /// Windows that start before it are closed.
    pub closed_before: Option<DateTime<Utc>>,
    /// Thresholds on its totals are decided from this record on; `None`: not yet.
    pub decided_from: Option<Seq>,
}

/// The total of a destination and unit.
#[derive(Debug, Clone)]
pub struct DestinationTotal {
    /// The destination.
    pub destination_id: String,
    /// The unit.
    pub unit: String,
    /// In billionths.
    pub nanos: String,
}

impl Verification {
    /// The declared rollups, in each shard.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn rollup_facts(&mut self) -> Result<Vec<RollupFacts>, Error> {
        let facts = sqlx::query_as!(
            RollupFacts,
            r#"select s.shard as "shard: ShardId", r.id, name, version, removed, window_seconds, time_zone, closed_before,
                      decided_from as "decided_from: Seq"
               from rollups r cross join shards s
               left join rollup_builds b on b.rollup_id = r.id and b.shard = s.shard"#
        );
        Ok(facts.fetch_all(&mut *self.snapshot).await?)
    }

    /// The highest time of a record that retention deleted.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn last_dropped(&mut self) -> Result<Option<DateTime<Utc>>, Error> {
        let last = sqlx::query_scalar!("select max(last_time) from dropped_periods");
        Ok(last.fetch_one(&mut *self.snapshot).await?)
    }

    /// The totals of destinations up to a record: the stored ones without the records above it.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn destination_totals(&mut self, shard: ShardId, upto: Seq) -> Result<Vec<DestinationTotal>, Error> {
        let totals = sqlx::query_as!(
            DestinationTotal,
            r#"select destination_id as "destination_id!", unit as "unit!",
                      (sum(n) * 1000000000)::numeric(60, 0)::text as "nanos!"
               from (select destination_id, unit, total as n from totals where shard = $1
                     union all
                     select destination_id, unit, case when positive then -value else value end from records
                     where shard = $1 and seq > $2) part
               group by destination_id, unit"#,
            shard as ShardId,
            upto as Seq,
        );
        Ok(totals.fetch_all(&mut *self.snapshot).await?)
    }
}
