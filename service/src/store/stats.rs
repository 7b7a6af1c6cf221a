//! Counts that are true across restarts and replicas, sinks as they were started, and what the server promises.

use chrono::{DateTime, Utc};

use super::{Error, Store};

/// Counts of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardCounts {
    /// The shard.
    pub shard: i32,
    /// The worker that has it.
    pub owner: Option<String>,
    /// Version of the policy it is worked by.
    pub policy_version: i64,
    /// Highest number of a record.
    pub records: i64,
    /// Highest number of a dead letter.
    pub dead_letters: i64,
    /// Highest number of a conflict.
    pub conflicts: i64,
    /// Records processed.
    pub processed: i64,
    /// Duplicates noted.
    pub duplicates: i64,
    /// Alerts raised.
    pub alerts: i64,
    /// Records of a unit without a threshold while other units had one.
    pub without_threshold: i64,
    /// Applied entries that no serve process had appended.
    pub external_applied: i64,
    /// Entries seen to be gone before they were applied.
    pub lost: i64,
    /// How often its stream or group was gone.
    pub recreated_streams: i64,
}

/// What is applied, over all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Per shard, in order.
    pub shards: Vec<ShardCounts>,
    /// Conflicts noted (numbers that were skipped are not counted).
    pub conflicts: i64,
    /// Dead letters that are open.
    pub dead_letters_open: i64,
    /// Dead letters that were discarded.
    pub dead_letters_discarded: i64,
    /// Dead letters that were replayed.
    pub dead_letters_replayed: i64,
    /// When the pipeline was made.
    pub created_at: Option<DateTime<Utc>>,
    /// Postgres's clock.
    pub now: DateTime<Utc>,
}

/// A sink as it was started.
#[derive(Debug, Clone)]
pub struct SinkBeginning {
    /// Its name.
    pub name: String,
    /// Whether its cursor was made.
    pub started: bool,
    /// Whether it is no longer in the manifest.
    pub removed: bool,
    /// Where it began: shards, and beside them the numbers above which it carries.
    pub start_shards: Vec<i32>,
    /// The numbers beside `start_shards`.
    pub start_after: Vec<i64>,
}

impl SinkBeginning {
    /// Above which number of a shard the sink carries outcomes.
    #[must_use]
    pub fn begins_after(&self, shard: i32) -> Option<i64> {
        self.start_shards.iter().position(|at| *at == shard).and_then(|index| self.start_after.get(index).copied())
    }
}

/// Settings of Postgres that decide what a crash may cost.
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
    /// What is applied, in one snapshot.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn stats(&self) -> Result<Counts, Error> {
        let mut snapshot = self.pool.begin_with("begin isolation level repeatable read read only").await?;
        let shards = sqlx::query_as!(
            ShardCounts,
            "select shard, owner, policy_version, records, dead_letters, conflicts, processed, duplicates, alerts,
                    without_threshold, external_applied, lost, recreated_streams
             from shards order by shard"
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let counts = sqlx::query!(
            r#"select count(*) filter (where state = 'open') as "open!",
                      count(*) filter (where state = 'discarded') as "discarded!",
                      count(*) filter (where state = 'replayed') as "replayed!",
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
            conflicts: shards.iter().map(|shard| shard.conflicts).sum::<i64>() - counts.skipped_conflicts,
            shards,
            dead_letters_open: counts.open,
            dead_letters_discarded: counts.discarded,
            dead_letters_replayed: counts.replayed,
            created_at: counts.created_at,
            now: counts.now,
        })
    }

    /// The number of destinations that have records: one probe of the index a destination.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn count_destinations(&self) -> Result<i64, Error> {
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

    /// The sinks that were started, by name.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_beginnings(&self) -> Result<Vec<SinkBeginning>, Error> {
        let sinks = sqlx::query_as!(
            SinkBeginning,
            r#"select name, started, removed,
                      coalesce(array_agg(shard order by shard) filter (where shard is not null), '{}')
                          as "start_shards!",
                      coalesce(array_agg(after order by shard) filter (where shard is not null), '{}')
                          as "start_after!"
               from sinks left join sink_starts on sink = name
               group by name order by name"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(sinks)
    }

    /// How many alerts of each shard stand above a number.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn alerts_above(&self, shards: &[i32], numbers: &[i64]) -> Result<Vec<(i32, i64)>, Error> {
        let rows = sqlx::query!(
            r#"select place.shard as "shard!", count(r.seq) as "count!"
               from unnest($1::int[], $2::bigint[]) as place (shard, after)
               left join records r on r.shard = place.shard and r.seq > place.after and r.threshold is not null
               group by place.shard order by place.shard"#,
            shards,
            numbers
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.shard, row.count)).collect())
    }

    /// What this server promises.
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
