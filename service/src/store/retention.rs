//! Retention: drops old partitions of the records, and deletes old ids, outcomes and windows in bounded steps.
//!
//! A period is noted before its partition is detached: from then on `expired_counts` has its records, and a count of
//! records adds them. It must never note a period before all older ones, nor drop a partition with a record that is not
//! noted.

mod rows;

use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use millrace_crds::{KeepFor, Partition};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{Error, Store, limit::limited, partitions::table_of, session::BEGIN, slow::Watch};
use crate::domain::{Period, Seq, ShardId, ShardSeq};

pub use rows::{Expired, IdStep};

/// Longest wait of a detached partition for its readers.
const READERS: Duration = Duration::from_secs(60);

/// Longest time to count the records of a partition.
const LONGEST_READ: Duration = Duration::from_secs(1_800);

/// The oldest partition that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuePeriod {
    /// Its period.
    pub period: Period,
    /// Since when it is due, or noted.
    pub since: DateTime<Utc>,
}

/// From which times on retention deleted nothing; `None`: from the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptSince {
    /// Of records, by their `time`.
    pub records: Option<DateTime<Utc>>,
    /// Of records, by the time of processing.
    pub processed: Option<DateTime<Utc>>,
    /// Of duplicates.
    pub duplicates: Option<DateTime<Utc>>,
    /// Of conflicts.
    pub conflicts: Option<DateTime<Utc>>,
    /// Of dead letters.
    pub dead_letters: Option<DateTime<Utc>>,
}

impl KeptSince {
    /// Of the facts of the audit trail.
    #[must_use]
    pub fn facts(&self) -> Option<DateTime<Utc>> {
        [self.processed, self.duplicates, self.conflicts, self.dead_letters].into_iter().flatten().max()
    }
}

/// The time from which an answer is complete; `None` if it is complete from the start of its range on.
#[must_use]
pub fn complete_since(kept: Option<DateTime<Utc>>, start: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    kept.filter(|kept| start.is_none_or(|start| start < *kept))
}

/// The end of an attempt to drop a partition.
#[derive(Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It is dropped.
    Done,
    /// Readers used it for too long: it is tried again later.
    HasReaders,
}

/// The right of one process to drop partitions, for as long as its connection lives.
#[derive(Debug)]
pub struct RetentionTurn {
    connection: PgConnection,
}

impl Store {
    /// The time by which commits and retention are dated.
    pub(super) async fn now(&self) -> Result<DateTime<Utc>, Error> {
        Ok(DateTime::<Utc>::from(self.clock().await?) + crate::fault::clock_shift())
    }

    /// The time before which rows are too old to be kept; `None`: all are kept.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn keeps_since(&self, keep: KeepFor) -> Result<Option<DateTime<Utc>>, Error> {
        match keep.days() {
            Some(days) => Ok(Some(self.now().await? - TimeDelta::days(days.into()))),
            None => Ok(None),
        }
    }

    /// The oldest period that is noted and whose partition is not dropped yet.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn noted_period(&self) -> Result<Option<DuePeriod>, Error> {
        let noted = sqlx::query!(
            "select period, noted_at from dropped_periods where dropped_at is null order by period limit 1"
        );
        let noted = noted.fetch_optional(&self.pool).await?;
        Ok(noted.map(|row| DuePeriod { period: Period::stored(row.period), since: row.noted_at }))
    }

    /// The oldest partition that is not noted, if it is due: all of its records were processed before the time since which
    /// records are kept, and its period is over.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn due_period(&self, keep: KeepFor, partition: Partition) -> Result<Option<DuePeriod>, Error> {
        let Some(days) = keep.days() else { return Ok(None) };
        let now = self.now().await?;
        let oldest = sqlx::query_scalar!(
            r#"select period as "period!" from partitions p
               where not exists (select from dropped_periods d where d.period = p.period and dropped_at is null)
               order by period limit 1"#
        );
        let Some(oldest) = oldest.fetch_optional(&self.pool).await? else { return Ok(None) };
        let period = Period::stored(oldest);
        if period >= Period::of(now, partition) {
            return Ok(None);
        }
        let last = sqlx::query_scalar!("select max(processed_at) from records where period = $1", oldest)
            .fetch_one(&self.pool)
            .await?;
        // An empty one may have had records until the next day, at least.
        let last =
            last.unwrap_or_else(|| period.next(Partition::Day).first().and_time(chrono::NaiveTime::MIN).and_utc());
        let since = last + TimeDelta::days(days.into());
        Ok((since < now).then_some(DuePeriod { period, since }))
    }

    /// The highest number of each shard in a period.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn period_ends(&self, period: Period) -> Result<Vec<ShardSeq>, Error> {
        let ends = sqlx::query_as!(
            ShardSeq,
            r#"select s.shard as "shard!: ShardId", last.seq as "seq!: Seq"
               from shards s
               cross join lateral (select max(seq) as seq from records r where r.period = $1 and r.shard = s.shard) last
               where last.seq is not null order by s.shard"#,
            period.first()
        );
        Ok(ends.fetch_all(&self.pool).await?)
    }

    /// From which times on nothing was deleted. Read it after the rows: a period is noted before it is dropped.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn kept_since(&self) -> Result<KeptSince, Error> {
        kept_since(&mut *self.pool.acquire().await?).await
    }

    /// Drops the partitions of periods that are noted already, unless another process does so or readers use them. Returns
    /// their periods.
    ///
    /// # Errors
    /// When Postgres does not answer, or the role is not the owner of the tables.
    pub async fn drop_noted(&self) -> Result<Vec<Period>, Error> {
        let mut dropped = Vec::new();
        while let Some(due) = self.noted_period().await? {
            let Some(mut turn) = self.begin_retention().await? else { break };
            let done = turn.drop_partition(due.period).await?;
            turn.end().await?;
            if done == Dropped::HasReaders {
                break;
            }
            dropped.push(due.period);
        }
        Ok(dropped)
    }

    /// Takes the turn to drop partitions; `None` while another process has it.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn begin_retention(&self) -> Result<Option<RetentionTurn>, Error> {
        // Not back into the pool: the lock and the timeouts belong to its session.
        let mut connection = self.pool.acquire().await?.detach();
        let lock = sqlx::query_scalar!(
            r#"select pg_try_advisory_lock(hashtextextended(current_schema() || ' retention', 0)) as "locked!""#
        );
        Ok(lock.fetch_one(&mut connection).await?.then_some(RetentionTurn { connection }))
    }
}

/// The end of an attempt to note a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It is noted.
    Done,
    /// It has records that the archive does not hold.
    Unarchived,
}

impl RetentionTurn {
    /// Notes that the records of the oldest period are no longer kept, with their counts. `archive`: the place of the archive
    /// that has to hold them; `None`: none has to.
    ///
    /// # Errors
    /// When Postgres does not answer: it is noted, or not.
    pub async fn note(&mut self, period: Period, archive: Option<&str>) -> Result<Noted, Error> {
        let _watch = Watch::start("retention.note");
        let noted = sqlx::query_scalar!(
            r#"with parts as materialized (
                 select shard, count(*) as count, max(seq) as upto, count(threshold) as alerts,
                        coalesce(sum(json_array_length(total_alerts::json)), 0) as total_alerts, max(time) as last_time,
                        max(processed_at) as last_processed_at
                 from records
                 where period = $1 and not exists (select from dropped_periods where period = $1 and dropped_at is null)
                 group by shard
             ), archived as (
                 -- Those of an earlier drop of the period are not of these records.
                 select o.shard, sum(o.records) as count, max(o.last_seq) as upto
                 from archive_objects o
                 left join expired_counts e on e.shard = o.shard and e.kind = 'records' and e.destination_id = ''
                 where o.period = $1 and o.place = $2 and o.last_seq > coalesce(e.upto, 0)
                 group by o.shard
             ), unarchived as (
                 select from parts p left join archived a on a.shard = p.shard
                 where $2::text is not null and (a.count is distinct from p.count or a.upto is distinct from p.upto)
             ), noted as (
                 insert into dropped_periods as d (period, last_time, last_processed_at, archive)
                 select $1, max(last_time), max(last_processed_at), $2 from parts having not exists (select from unarchived)
                 on conflict (period) do update
                 set dropped_at = null, archive = excluded.archive, ids_expired_at = null, ids_deleted_at = null, last_time = greatest(d.last_time, excluded.last_time),
                     last_processed_at = greatest(d.last_processed_at, excluded.last_processed_at)
             ), incomplete as (
                 -- Its build can miss these records.
                 update rollups r
                 set missing_before = greatest(r.missing_before, (select max(last_time) + interval '1 microsecond' from parts))
                 where removed is null and not exists (select from unarchived) and exists (
                     select from shards s left join rollup_builds b on b.rollup_id = r.id and b.shard = s.shard
                     where s.policy_version < r.version or b.shard is null or b.next_seq < b.until_seq)
             ), counted as (
                 insert into expired_counts as e (shard, kind, count, upto, alerts, total_alerts)
                 select shard, 'records', count, upto, alerts, total_alerts from parts where not exists (select from unarchived)
                 on conflict (shard, kind, destination_id) do update
                 set count = e.count + excluded.count, upto = excluded.upto, alerts = e.alerts + excluded.alerts,
                     total_alerts = e.total_alerts + excluded.total_alerts
             )
             select exists (select from unarchived) as "is_unarchived!""#,
            period.first(),
            archive
        );
        // It reads the whole partition.
        let is_unarchived: Result<bool, Error> =
            limited(LONGEST_READ, async { Ok(noted.fetch_one(&mut self.connection).await?) }).await;
        Ok(if is_unarchived? { Noted::Unarchived } else { Noted::Done })
    }

    /// Detaches and drops the partition of a noted period. Each step continues where an earlier process was ended.
    ///
    /// # Errors
    /// When Postgres does not answer, or the role is not the owner of the tables.
    pub async fn drop_partition(&mut self, period: Period) -> Result<Dropped, Error> {
        let detached = limited(READERS + READERS, self.detach(period)).await;
        match detached {
            Err(error) if error.met_lock() || error.is_one_of(&["57014"]) => return Ok(Dropped::HasReaders),
            detached => detached?,
        }
        crate::fault::point("after_detach");
        limited(READERS, self.drop_detached(period)).await?;
        Ok(Dropped::Done)
    }

    async fn drop_detached(&mut self, period: Period) -> Result<(), Error> {
        let table = table_of(period);
        let mut transaction = self.connection.begin_with(BEGIN).await?;
        let exists = sqlx::query_scalar!(r#"select to_regclass($1) is not null as "exists!""#, table);
        if exists.fetch_one(&mut *transaction).await? {
            // Safe in SQL: a name of digits.
            let more = format!(
                "select exists (
                     select from shards s
                     cross join lateral (select seq from {table} t where t.shard = s.shard order by seq desc limit 1) last
                     left join expired_counts e on e.shard = s.shard and e.kind = 'records' and e.destination_id = ''
                     where last.seq > coalesce(e.upto, 0))"
            );
            if sqlx::query_scalar::<_, bool>(AssertSqlSafe(more)).fetch_one(&mut *transaction).await? {
                return Err(Error::Refused(format!(
                    "{table} has records that were committed after it was found to be due: it is detached and stays"
                )));
            }
            sqlx::raw_sql(AssertSqlSafe(format!("drop table {table}"))).execute(&mut *transaction).await?;
        }
        // What they reversed was dropped before, or with them.
        sqlx::query!("delete from reversals where period = $1", period.first()).execute(&mut *transaction).await?;
        sqlx::query!("update dropped_periods set dropped_at = clock_timestamp() where period = $1", period.first())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn detach(&mut self, period: Period) -> Result<(), Error> {
        let is_detaching = sqlx::query_scalar!(
            r#"select is_detaching as "is_detaching!" from partitions where period = $1"#,
            period.first()
        );
        let how = match is_detaching.fetch_optional(&mut self.connection).await? {
            Some(false) => "concurrently",
            // A process was ended while it waited for readers.
            Some(true) => "finalize",
            None => return Ok(()),
        };
        let longest = crate::fault::wait_for_readers(READERS).as_millis();
        let set = format!("set lock_timeout = {longest}; set statement_timeout = {longest}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut self.connection).await?;
        // Not in a transaction. Safe in SQL: a name of digits.
        let detach = format!("alter table records detach partition {} {how}", table_of(period));
        let done = sqlx::raw_sql(AssertSqlSafe(detach)).execute(&mut self.connection).await;
        sqlx::raw_sql("set lock_timeout = 2000; set statement_timeout = 0").execute(&mut self.connection).await?;
        done?;
        Ok(())
    }

    /// Ends the turn.
    ///
    /// # Errors
    /// When the connection to Postgres is lost.
    pub async fn end(self) -> Result<(), Error> {
        Ok(self.connection.close().await?)
    }
}

/// From which times on nothing was deleted.
pub(super) async fn kept_since(connection: &mut PgConnection) -> Result<KeptSince, Error> {
    let kept = sqlx::query_as!(
        KeptSince,
        "select max(last_time) + interval '1 microsecond' as records,
                max(last_processed_at) + interval '1 microsecond' as processed,
                (select until + interval '1 microsecond' from expired_until where kind = 'duplicates') as duplicates,
                (select until + interval '1 microsecond' from expired_until where kind = 'conflicts') as conflicts,
                (select until + interval '1 microsecond' from expired_until where kind = 'dead_letters') as dead_letters
         from dropped_periods"
    );
    Ok(kept.fetch_one(connection).await?)
}

/// The dropped periods whose last commit was before this time, and whose ids are not deleted yet. From now on ids can be
/// missing.
async fn expire_ids(store: &Store, before: DateTime<Utc>) -> Result<Vec<NaiveDate>, Error> {
    Ok(sqlx::query_scalar!(
        "update dropped_periods set ids_expired_at = coalesce(ids_expired_at, clock_timestamp())
         where dropped_at is not null and ids_deleted_at is null and coalesce(last_processed_at, noted_at) < $1
         returning period",
        before
    )
    .fetch_all(&store.pool)
    .await?)
}
