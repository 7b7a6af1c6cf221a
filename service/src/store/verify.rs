//! Reads of one snapshot for `millrace verify`, and the checks that Postgres makes by itself: those about ids, dead letters,
//! conflicts and duplicates. The pass over the log is in `commands/verify`.
//!
//! Except for `runs`, it must never write.

mod log;
mod reversals;
mod rollups;
mod runs;
mod sinks;
mod tables;
mod totals;

use std::fmt;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Postgres, Transaction};

use super::{Error, Store};
use crate::domain::{Seq, SeqRange, Sequence, ShardId, Watermarks};

pub use log::{LoggedRecord, PolicyStart, RefusedOutcome, StoredPolicy, StoredTotal};
pub use runs::{StoredVerifyRun, VerifyResult, VerifyRun};
pub use sinks::StartedSink;
pub use totals::{DestinationTotal, RollupFacts};

/// Number of differences that are kept; further ones are only counted.
const KEPT: usize = 100;

/// Begins a snapshot.
const BEGIN: &str = "begin isolation level repeatable read, read only";

/// A difference between a stored or published value and the value that the records imply.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The check that found it, a stable word.
    pub check: &'static str,
    /// The place: a shard, a record, a key, or an entry of a sink.
    pub place: String,
    /// The value that the records imply.
    pub expected: String,
    /// The stored or published value.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, place, expected, found } = self;
        write!(f, "{check}: {place}: expected {expected}; found {found}")
    }
}

/// The first differences, and the number of all.
#[derive(Debug, Default)]
pub struct Differences {
    /// At most 100.
    pub first: Vec<Difference>,
    /// The number of all.
    pub count: u64,
}

impl Differences {
    /// Adds a difference.
    pub fn add(
        &mut self,
        check: &'static str,
        place: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.count += 1;
        if self.first.len() < KEPT {
            let (place, expected, found) = (place.into(), expected.into(), found.into());
            self.first.push(Difference { check, place, expected, found });
        }
    }

    /// Adds the differences of another part.
    pub fn extend(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(KEPT);
    }
}

/// The part of a pipeline that is compared.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Only these shards.
    pub shards: Option<Vec<ShardId>>,
    /// Only records that were processed at this time or later.
    pub since: Option<DateTime<Utc>>,
}

impl Scope {
    /// Whether it is the whole pipeline.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.shards.is_none() && self.since.is_none()
    }

    /// Whether a shard is in it.
    #[must_use]
    pub fn has(&self, shard: ShardId) -> bool {
        self.shards.as_ref().is_none_or(|shards| shards.contains(&shard))
    }

    fn numbers(&self) -> Option<Vec<i32>> {
        self.shards.as_ref().map(|shards| shards.iter().map(|shard| i32::from(shard.get())).collect())
    }
}

/// The counters of a shard's row.
#[derive(Debug, Clone, Copy)]
pub struct ShardCounters {
    /// Number of processed records.
    pub processed: i64,
    /// Number of records above their threshold.
    pub alerts: i64,
    /// Number of alerts of totals.
    pub total_alerts: i64,
    /// Highest assigned numbers.
    pub watermarks: Watermarks,
}

/// A shard in the snapshot.
#[derive(Debug, Clone)]
pub struct ShardHead {
    /// The shard.
    pub shard: ShardId,
    /// Its counters; absent where it has no row.
    pub counters: Option<ShardCounters>,
    /// The highest number of a stored record.
    pub last: Seq,
}

impl ShardHead {
    /// Its highest number of a sequence.
    #[must_use]
    pub fn highest(&self, sequence: Sequence) -> Seq {
        self.counters.map_or(Seq::ZERO, |counters| counters.watermarks.of(sequence))
    }
}

/// Numbers of a shard's sequence that the owner skipped.
#[derive(Debug, Clone, Copy)]
pub struct SkippedNumbers {
    /// The shard.
    pub shard: ShardId,
    /// The sequence.
    pub sequence: Sequence,
    /// The numbers.
    pub range: SeqRange,
}

/// Outcomes of a shard's sequence that retention deleted.
#[derive(Debug, Clone, Copy)]
pub struct ExpiredOutcomes {
    /// The shard.
    pub shard: ShardId,
    /// The sequence.
    pub sequence: Sequence,
    /// The highest number. Of records, none up to it is kept.
    pub upto: Seq,
    /// Their number.
    pub count: i64,
    /// Of records, the number of those that raised an alert.
    pub alerts: i64,
    /// Of records, the number of alerts of totals.
    pub total_alerts: i64,
}

/// The first number of a shard's sequence at or after a time.
#[derive(Debug, Clone, Copy)]
pub struct FirstSince {
    /// The shard.
    pub shard: ShardId,
    /// The sequence.
    pub sequence: Sequence,
    /// The number.
    pub seq: Seq,
}

/// One snapshot of a pipeline's schema, on one connection.
pub struct Verification {
    snapshot: Transaction<'static, Postgres>,
}

impl Store {
    /// Opens a snapshot.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn verification(&self) -> Result<Verification, Error> {
        let mut snapshot = self.pool.begin_with(BEGIN).await?;
        // Before the first read, which takes the snapshot: no partition that it has is dropped before it ends.
        sqlx::raw_sql("lock table only records in access share mode").execute(&mut *snapshot).await?;
        Ok(Verification { snapshot })
    }
}

impl Verification {
    /// Opens the same snapshot on `count` further connections.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn share(&mut self, store: &Store, count: usize) -> Result<Vec<Self>, Error> {
        let id = sqlx::query_scalar!(r#"select pg_export_snapshot() as "id!""#).fetch_one(&mut *self.snapshot).await?;
        let mut shared = Vec::with_capacity(count);
        for _ in 0..count {
            let mut snapshot = store.pool.begin_with(BEGIN).await?;
            // Safe in SQL: Postgres made the id, of hexadecimal digits and `-`. The statement takes no parameters.
            let set = format!("set transaction snapshot '{id}'");
            sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *snapshot).await?;
            shared.push(Self { snapshot });
        }
        Ok(shared)
    }

    /// The time of Postgres's clock.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn now(&mut self) -> Result<DateTime<Utc>, Error> {
        let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *self.snapshot).await?;
        Ok(now)
    }

    /// Every shard of the pipeline, in order.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn heads(&mut self) -> Result<Vec<ShardHead>, Error> {
        let rows = sqlx::query!(
            r#"select g.shard as "shard!: ShardId", s.processed as "processed?", s.alerts as "alerts?",
                      s.total_alerts as "total_alerts?",
                      s.records as "records?: Seq", s.dead_letters as "dead_letters?: Seq", s.conflicts as "conflicts?: Seq",
                      greatest((select max(seq) from records r where r.shard = g.shard),
                               (select max(upto) from expired_counts e where e.shard = g.shard and e.kind = 'records'), 0)
                          as "last!: Seq"
               from pipeline p
               cross join lateral generate_series(0, p.shards - 1) g (shard)
               left join shards s using (shard)
               order by g.shard"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        let heads = rows.into_iter().map(|row| {
            let watermarks = row
                .records
                .zip(row.dead_letters)
                .zip(row.conflicts)
                .map(|((records, dead_letters), conflicts)| Watermarks { records, dead_letters, conflicts });
            let counters = row.processed.zip(row.alerts).zip(row.total_alerts).zip(watermarks).map(
                |(((processed, alerts), total_alerts), watermarks)| ShardCounters {
                    processed,
                    alerts,
                    total_alerts,
                    watermarks,
                },
            );
            ShardHead { shard: row.shard, counters, last: row.last }
        });
        Ok(heads.collect())
    }

    /// The gaps of all sequences. Postgres has lost these outcomes; they may have been published before.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn skipped(&mut self) -> Result<Vec<SkippedNumbers>, Error> {
        let rows = sqlx::query!(
            r#"select shard as "shard: ShardId", kind, from_n - 1 as "after!: Seq", to_n as "upto: Seq" from gaps
               order by shard, kind, from_n"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        let skipped = rows.into_iter().map(|row| SkippedNumbers {
            shard: row.shard,
            sequence: sequence(&row.kind),
            range: SeqRange { after: row.after, upto: row.upto },
        });
        Ok(skipped.collect())
    }

    /// The first numbers at or after a time; none where a shard has none since then.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn first_since(&mut self, since: DateTime<Utc>) -> Result<Vec<FirstSince>, Error> {
        let rows = sqlx::query!(
            r#"select shard as "shard!: ShardId", kind as "kind!", n as "n!: Seq"
               from (
                   select shard, 'records' as kind, min(seq) as n from records where processed_at >= $1 group by shard
                   union all
                   select shard, 'dead_letters', min(n) from dead_letters where opened_at >= $1 group by shard
                   union all
                   select shard, 'conflicts', min(n) from conflicts where noted_at >= $1 group by shard
               ) first"#,
            since
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        let first =
            rows.into_iter().map(|row| FirstSince { shard: row.shard, sequence: sequence(&row.kind), seq: row.n });
        Ok(first.collect())
    }

    /// The outcomes that retention deleted, by shard and sequence.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn expired(&mut self) -> Result<Vec<ExpiredOutcomes>, Error> {
        let rows = sqlx::query!(
            r#"select shard as "shard: ShardId", kind, max(upto) as "upto!: Seq", sum(count)::bigint as "count!",
                      sum(alerts)::bigint as "alerts!", sum(total_alerts)::bigint as "total_alerts!"
               from expired_counts where kind <> 'duplicates' group by shard, kind"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        let expired = rows.into_iter().map(|row| ExpiredOutcomes {
            shard: row.shard,
            sequence: sequence(&row.kind),
            upto: row.upto,
            count: row.count,
            alerts: row.alerts,
            total_alerts: row.total_alerts,
        });
        Ok(expired.collect())
    }

    /// Ends the snapshot.
    ///
    /// # Errors
    /// When the connection to Postgres is lost.
    pub async fn end(self) -> Result<(), Error> {
        Ok(self.snapshot.rollback().await?)
    }
}

/// The sequence of a column `kind`.
fn sequence(kind: &str) -> Sequence {
    match kind {
        "dead_letters" => Sequence::DeadLetters,
        "conflicts" => Sequence::Conflicts,
        _ => Sequence::Records,
    }
}
