//! Bounded deletes of rows that are not partitioned: ids, duplicates, conflicts, closed dead letters, windows of rollups.
//!
//! Each step is one short transaction. It must never delete an id whose record is kept, nor an outcome that a sink has not
//! published.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

use super::{Error, Store, expire_ids};
use crate::{
    domain::{Seq, ShardId, ShardSeq},
    store::{columns::unzipped, slow::Watch},
};

/// Blocks of the id ledger that one step reads.
const BLOCKS: i64 = 256;

/// The part of the ledger that a pass over it has read, and the periods whose ids it deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdStep {
    periods: Vec<NaiveDate>,
    next_block: i64,
    blocks: i64,
    /// Number of ids deleted.
    pub deleted: u64,
}

/// Which outcomes are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Conflicts.
    Conflicts,
    /// Dead letters that were replayed or discarded.
    DeadLetters,
}

impl Store {
    /// Begins a pass over the id ledger; `None` if no id is too old.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn begin_deleting_ids(&self, before: DateTime<Utc>) -> Result<Option<IdStep>, Error> {
        let periods = expire_ids(self, before).await?;
        if periods.is_empty() {
            return Ok(None);
        }
        // Rows of these periods are neither inserted nor moved any more: one pass finds them all.
        let blocks = sqlx::query_scalar!(
            r#"select pg_relation_size('record_ids') / current_setting('block_size')::bigint as "blocks!""#
        );
        Ok(Some(IdStep { periods, next_block: 0, blocks: blocks.fetch_one(&self.pool).await?, deleted: 0 }))
    }

    /// The next step of a pass; `None` after the last one. The ledger has no index by period, which every commit would have
    /// to keep: a step reads the next blocks.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_ids(&self, mut step: IdStep) -> Result<Option<IdStep>, Error> {
        if step.next_block >= step.blocks {
            sqlx::query!(
                "update dropped_periods set ids_deleted_at = clock_timestamp() where period = any($1)",
                &step.periods
            )
            .execute(&self.pool)
            .await?;
            return Ok(None);
        }
        let _watch = Watch::start("retention.ids");
        let end = step.next_block + BLOCKS;
        step.deleted += sqlx::query!(
            "delete from record_ids i using expired_counts e
             where i.ctid >= $1::text::tid and i.ctid < $2::text::tid and i.period = any($3)
               and e.kind = 'records' and e.destination_id = '' and e.shard = i.shard and i.number <= e.upto",
            format!("({},0)", step.next_block),
            format!("({end},0)"),
            &step.periods
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        step.next_block = end;
        Ok(Some(step))
    }

    /// Deletes up to `most` duplicates from before a time. Returns their number.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_duplicates(&self, before: DateTime<Utc>, most: i64) -> Result<i64, Error> {
        let _watch = Watch::start("retention.duplicates");
        Ok(sqlx::query_scalar!(
            r#"with gone as (
                   delete from duplicates where ctid = any(array(
                       select ctid from duplicates where noted_at < $1 order by noted_at limit $2))
                   returning shard, noted_at
               ), dated as (
                   insert into expired_until as e (kind, until) select 'duplicates', max(noted_at) from gone having count(*) > 0
                   on conflict (kind) do update set until = greatest(e.until, excluded.until)
               ), counted as (
                   insert into expired_counts as e (shard, kind, count)
                   select shard, 'duplicates', count(*) from gone group by shard
                   on conflict (shard, kind, destination_id) do update set count = e.count + excluded.count
               )
               select count(*) as "count!" from gone"#,
            before,
            most
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Deletes up to `most` conflicts or closed dead letters from before a time, up to a number of each shard. Returns their
    /// number.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_outcomes(
        &self,
        expired: Expired,
        before: DateTime<Utc>,
        upto: &[ShardSeq],
        most: i64,
    ) -> Result<i64, Error> {
        let (shards, upto) = unzipped(upto);
        let _watch = Watch::start("retention.outcomes");
        macro_rules! delete {
            ($old:literal, $returning:literal, $kind:literal) => {
                sqlx::query_scalar!(
                    "with gone as (delete from " + $old
                        + " returning " + $returning + "), dated as (
                           insert into expired_until as e (kind, until) select '" + $kind + "', max(until) from gone having count(*) > 0
                           on conflict (kind) do update set until = greatest(e.until, excluded.until)
                       ), counted as (
                           insert into expired_counts as e (shard, kind, destination_id, count, replayed, upto)
                           select shard, '" + $kind + r#"', destination_id, count(*), count(*) filter (where is_replayed), max(n)
                           from gone group by shard, destination_id
                           on conflict (shard, kind, destination_id) do update
                           set count = e.count + excluded.count, replayed = e.replayed + excluded.replayed,
                               upto = greatest(e.upto, excluded.upto)
                       )
                       select count(*) as "count!" from gone"#,
                    before,
                    &shards as &[ShardId],
                    &upto as &[Seq],
                    most
                )
                .fetch_one(&self.pool)
                .await?
            };
        }
        Ok(match expired {
            Expired::Conflicts => delete!(
                "conflicts where ctid = any(array(
                     select o.ctid from conflicts o join unnest($2::int[], $3::bigint[]) p (shard, upto)
                         on p.shard = o.shard and o.n <= p.upto
                     where o.noted_at < $1 order by o.noted_at limit $4))",
                "shard, n, destination_id, noted_at as until, false as is_replayed",
                "conflicts"
            ),
            Expired::DeadLetters => delete!(
                "dead_letters where ctid = any(array(
                     select o.ctid from dead_letters o join unnest($2::int[], $3::bigint[]) p (shard, upto)
                         on p.shard = o.shard and o.n <= p.upto
                     where o.closed_at < $1 and o.state <> 'open' order by o.closed_at limit $4))",
                "shard, n, coalesce(destination_id, '') as destination_id, closed_at as until,
                 state = 'replayed' as is_replayed",
                "dead_letters"
            ),
        })
    }

    /// Closes the windows of declared rollups that ended before a time.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn close_windows(&self, before: DateTime<Utc>) -> Result<(), Error> {
        // A day earlier, for windows of another time zone. By hours at least: each move costs a look through the rows.
        let before = before - TimeDelta::days(1);
        sqlx::query!(
            "update rollups r set closed_before = b.closed_before
             from (select id, date_bin(make_interval(secs => greatest(window_seconds, 3600)), $1,
                                       timestamptz '1970-01-01 00:00:00+00') as closed_before
                   from rollups) b
             where b.id = r.id and removed is null and (r.closed_before is null or r.closed_before < b.closed_before)",
            before
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The declared rollups with closed windows, and the start of the first open window of each.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn closed_windows(&self) -> Result<Vec<(i32, DateTime<Utc>)>, Error> {
        let rows = sqlx::query!(
            r#"select id, closed_before as "closed_before!" from rollups
               where removed is null and closed_before is not null order by id"#
        );
        Ok(rows.fetch_all(&self.pool).await?.into_iter().map(|row| (row.id, row.closed_before)).collect())
    }

    /// Deletes up to `most` rows of closed windows of a rollup. Returns their number.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_windows(&self, rollup: i32, before: DateTime<Utc>, most: i64) -> Result<i64, Error> {
        let _watch = Watch::start("retention.windows");
        let deleted = sqlx::query!(
            "delete from rollup_totals where ctid = any(array(
                 select ctid from rollup_totals where rollup_id = $1 and window_start < $2 limit $3))",
            rollup,
            before,
            most
        );
        Ok(i64::try_from(deleted.execute(&self.pool).await?.rows_affected()).unwrap_or(most))
    }
}
