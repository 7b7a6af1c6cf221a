//! Counts that hold across restarts and replicas, start positions of sinks, and durability settings of the server.

use std::{collections::BTreeMap, time::SystemTime};

use chrono::{DateTime, Utc};

use super::{Error, Store, columns::unzipped, slow::Watch};
use crate::domain::{Offset, Seq, ShardId, ShardSeq, Watermarks};

/// Counts of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardCounts {
    /// The shard.
    pub shard: ShardId,
    /// The worker that owns it.
    pub owner: Option<String>,
    /// The policy version that it runs.
    pub policy_version: i64,
    /// Highest sequence number of a record.
    pub records: Seq,
    /// Highest sequence number of a dead letter.
    pub dead_letters: Seq,
    /// Highest sequence number of a conflict.
    pub conflicts: Seq,
    /// Number of processed records.
    pub processed: i64,
    /// Number of duplicates.
    pub duplicates: i64,
    /// Number of alerts.
    pub alerts: i64,
    /// Number of thresholds on totals that records took a total over.
    pub total_alerts: i64,
    /// Number of records whose unit had no threshold while other units had one.
    pub without_threshold: i64,
    /// Number of records that came after their window of a declared rollup was closed, once per rollup.
    pub late_after_retention: i64,
    /// All records up to this offset are applied or lost.
    pub accounted: Offset,
    /// Number of lost records.
    pub lost: i64,
    /// Since when further records can be lost, whose number no server holds.
    pub loss_uncertain_since: Option<DateTime<Utc>>,
    /// How often its stream or group was recreated.
    pub recreated_streams: i64,
}

impl ShardCounts {
    /// Its highest numbers.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        Watermarks { records: self.records, dead_letters: self.dead_letters, conflicts: self.conflicts }
    }
}

/// Counts over all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Per shard, in order.
    pub shards: Vec<ShardCounts>,
    /// Number of conflicts, without skipped numbers.
    pub conflicts: i64,
    /// Number of open dead letters.
    pub dead_letters_open: i64,
    /// Number of discarded dead letters.
    pub dead_letters_discarded: i64,
    /// Number of replayed dead letters.
    pub dead_letters_replayed: i64,
    /// When the pipeline was created.
    pub created_at: Option<DateTime<Utc>>,
    /// The time of Postgres's clock.
    pub now: DateTime<Utc>,
}

/// A sink with the numbers after which it starts.
#[derive(Debug, Clone)]
pub struct SinkBeginning {
    /// Its name.
    pub name: String,
    /// Whether its cursor was created.
    pub started: bool,
    /// Whether it was removed from the manifest.
    pub removed: bool,
    /// Whether everything before its end was published.
    pub completed: bool,
    /// The shards of its start positions.
    pub start_shards: Vec<ShardId>,
    /// For each shard in `start_shards`, the number after which it publishes.
    pub start_after: Vec<Seq>,
}

impl SinkBeginning {
    /// The number of a shard after which the sink publishes; `None` if it has no start position there.
    #[must_use]
    pub fn begins_after(&self, shard: ShardId) -> Option<Seq> {
        self.start_shards.iter().position(|at| *at == shard).and_then(|index| self.start_after.get(index).copied())
    }
}

/// Settings of Postgres that decide which commits survive a crash.
#[derive(Debug, Clone)]
pub struct PostgresPromises {
    /// `synchronous_commit`.
    pub synchronous_commit: String,
    /// `fsync`.
    pub fsync: String,
    /// `full_page_writes`.
    pub full_page_writes: String,
    /// `server_version`.
    pub version: String,
}

impl Store {
    /// All counts, from one snapshot.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn stats(&self) -> Result<Counts, Error> {
        let _watch = Watch::start("stats.counts");
        let mut snapshot = self.pool.begin_with("begin isolation level repeatable read read only").await?;
        let shards = sqlx::query_as!(
            ShardCounts,
            r#"select shard as "shard: ShardId", owner, policy_version, records as "records: Seq",
                      dead_letters as "dead_letters: Seq", conflicts as "conflicts: Seq", processed, duplicates, alerts,
                      total_alerts, without_threshold, late_after_retention, coalesce(accounted, 0) as "accounted!: Offset", lost, loss_uncertain_since,
                      recreated_streams
               from shards order by shard"#
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let counts = sqlx::query!(
            r#"select count(*) filter (where state = 'open') as "open!",
                      count(*) filter (where state = 'discarded')
                          + (select coalesce(sum(count - replayed), 0) from expired_counts where kind = 'dead_letters')::bigint
                          as "discarded!",
                      count(*) filter (where state = 'replayed')
                          + (select coalesce(sum(replayed), 0) from expired_counts where kind = 'dead_letters')::bigint
                          as "replayed!",
                      (select coalesce(sum(to_n - from_n + 1), 0)::bigint from gaps where kind = 'conflicts')
                          as "skipped_conflicts!",
                      (select created_at from pipeline) as created_at,
                      clock_timestamp() as "now!"
               from dead_letters"#
        )
        .fetch_one(&mut *snapshot)
        .await?;
        snapshot.commit().await?;
        Ok(Counts {
            conflicts: shards.iter().map(|shard| shard.conflicts.get()).sum::<i64>() - counts.skipped_conflicts,
            shards,
            dead_letters_open: counts.open,
            dead_letters_discarded: counts.discarded,
            dead_letters_replayed: counts.replayed,
            created_at: counts.created_at,
            now: counts.now,
        })
    }

    /// The number of destinations with records. It probes the index once per destination.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn count_destinations(&self) -> Result<i64, Error> {
        let _watch = Watch::start("stats.destinations");
        let count = sqlx::query_scalar!(
            r#"with recursive destinations as (
                   (select destination_id from totals order by destination_id limit 1)
                   union all
                   select (select t.destination_id from totals t where t.destination_id > d.destination_id
                           order by t.destination_id limit 1)
                   from destinations d where d.destination_id is not null
               )
               select count(destination_id) as "count!" from destinations"#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(count)
    }

    /// All sinks with their start positions, by name.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_beginnings(&self) -> Result<Vec<SinkBeginning>, Error> {
        let sinks = sqlx::query_as!(
            SinkBeginning,
            r#"select name, started, removed, completed_at is not null as "completed!",
                      coalesce(array_agg(shard order by shard) filter (where shard is not null), '{}')
                          as "start_shards!: Vec<ShardId>",
                      coalesce(array_agg(after order by shard) filter (where shard is not null), '{}')
                          as "start_after!: Vec<Seq>"
               from sinks left join sink_starts on sink = name
               group by name order by name"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(sinks)
    }

    /// For each shard, the number of records above a sequence number that raised an alert; with `of_totals`, one of a total.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn alerts_above(&self, places: &[ShardSeq], of_totals: bool) -> Result<BTreeMap<ShardId, i64>, Error> {
        let _watch = Watch::start("stats.alerts_above");
        let (shards, numbers) = unzipped(places);
        let rows = sqlx::query!(
            r#"select place.shard as "shard!: ShardId", count(r.seq) as "count!"
               from unnest($1::int[], $2::bigint[]) as place (shard, after)
               left join records r on r.shard = place.shard and r.seq > place.after
                   and ($3 or r.threshold is not null) and (not $3 or r.total_alerts is not null)
               group by place.shard order by place.shard"#,
            &shards as &[ShardId],
            &numbers as &[Seq],
            of_totals,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.shard, row.count)).collect())
    }

    /// The clock of this server.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn clock(&self) -> Result<SystemTime, Error> {
        let clock = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&self.pool).await?;
        Ok(clock.into())
    }

    /// The durability settings of this server.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn postgres_promises(&self) -> Result<PostgresPromises, Error> {
        let promises = sqlx::query_as!(
            PostgresPromises,
            r#"select current_setting('synchronous_commit') as "synchronous_commit!",
                      current_setting('fsync') as "fsync!",
                      current_setting('full_page_writes') as "full_page_writes!",
                      current_setting('server_version') as "version!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(promises)
    }
}
