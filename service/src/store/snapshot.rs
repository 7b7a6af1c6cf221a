//! Reads from one snapshot, page by page: totals, records, rollups. Constant memory, exact sums as text.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use super::{Error, RecordFilter, Store, StoredRecord};

/// A read-only transaction that sees one state of the database. If it is dropped before [`Snapshot::finish`], its
/// connection closes, and the server ends a running statement within a second.
#[derive(Debug)]
pub struct Snapshot {
    connection: Option<PoolConnection<Postgres>>,
    /// When it was taken.
    pub as_of: DateTime<Utc>,
}

/// Count and exact sum of the records of a destination in a unit.
#[derive(Debug, Clone)]
pub struct UnitTotal {
    /// The destination.
    pub destination_id: String,
    /// The unit.
    pub unit: String,
    /// Number of records.
    pub count: i64,
    /// Their signed sum, exact.
    pub total: String,
}

/// A part of a rollup: a row over all units (`unit_total` false), or the total of one of its units, which follows the
/// row.
#[derive(Debug, Clone)]
pub struct RollupPart {
    /// Start of the window; `None` without windows.
    pub window_start: Option<DateTime<Utc>>,
    /// Present when rows are grouped by it.
    pub destination_id: Option<String>,
    /// Present when rows are grouped by it.
    pub reference: Option<String>,
    /// Present when rows are grouped by it.
    pub source_id: Option<String>,
    /// Present when rows are grouped by it.
    pub positive: Option<bool>,
    /// Present when rows are grouped by it.
    pub group_unit: Option<String>,
    /// Whether this is the total of one unit of the preceding row.
    pub unit_total: bool,
    /// That unit.
    pub unit: Option<String>,
    /// Number of records.
    pub count: i64,
    /// Their signed sum; meaningless for a row over all units.
    pub total: String,
    /// Exact number of distinct sources.
    pub distinct_source_ids: i64,
}

/// The fields by which a rollup is grouped.
#[derive(Debug, Clone, Copy, Default)]
pub struct RollupBy {
    /// Length of a window; `None`: one row per group.
    pub window: Option<Duration>,
    /// By destination.
    pub destination_id: bool,
    /// By reference.
    pub reference: bool,
    /// By source.
    pub source_id: bool,
    /// By sign.
    pub kind: bool,
    /// By unit.
    pub unit: bool,
}

impl Store {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut connection = self.pool.acquire().await?;
        // Timeouts of this transaction: a stalled reader must not hold back vacuum for ever, and a query must end when
        // its client has disconnected.
        sqlx::raw_sql(
            "begin isolation level repeatable read read only; \
             set local client_connection_check_interval = '1s'; \
             set local idle_in_transaction_session_timeout = '90s'",
        )
        .execute(&mut *connection)
        .await?;
        let mut snapshot = Snapshot { connection: Some(connection), as_of: DateTime::UNIX_EPOCH };
        snapshot.as_of = sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(snapshot.connection()?).await?;
        Ok(snapshot)
    }
}

impl Snapshot {
    fn connection(&mut self) -> Result<&mut PgConnection, Error> {
        self.connection.as_deref_mut().ok_or(Error::Sql(sqlx::Error::PoolClosed))
    }

    /// Totals after a (destination, unit), in that order, at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn totals(
        &mut self,
        filter: &RecordFilter,
        after: (&str, &str),
        limit: i64,
    ) -> Result<Vec<UnitTotal>, Error> {
        let totals = sqlx::query_as!(
            UnitTotal,
            r#"select destination_id, unit, count(*) as "count!",
                      sum(case when positive then value else -value end)::text as "total!"
               from records
               where (destination_id, unit) > ($1, $2)
                 and ($3::text[] is null or record_id = any($3))
                 and ($4::text is null or destination_id = $4)
                 and ($5::int is null or shard = $5)
                 and ($6::text is null or reference = $6)
                 and ($7::text is null or source_id = $7)
                 and ($8::boolean is null or positive = $8)
                 and ($9::text is null or unit = $9)
                 and ($10::timestamptz is null or time >= $10)
                 and ($11::timestamptz is null or time < $11)
                 and ($12::boolean is null or $12 and threshold is not null or not $12 and threshold is null)
               group by destination_id, unit
               order by destination_id, unit
               limit $13"#,
            after.0,
            after.1,
            filter.record_ids.as_deref(),
            filter.destination_id,
            filter.shard,
            filter.reference,
            filter.source_id,
            filter.positive,
            filter.unit,
            filter.start,
            filter.end,
            filter.alerted,
            limit
        )
        .fetch_all(self.connection()?)
        .await?;
        Ok(totals)
    }

    /// Records after a (destination, seq), in that order, at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn records(
        &mut self,
        filter: &RecordFilter,
        after: (&str, i64),
        limit: i64,
    ) -> Result<Vec<StoredRecord>, Error> {
        let records = sqlx::query_as!(
            StoredRecord,
            r#"select shard, seq, record_id, time, source_id, destination_id, positive, value::text as "value!", unit,
                      reference, attributes, received_at, processed_at
               from records
               where (destination_id, seq) > ($1, $2)
                 and ($3::text[] is null or record_id = any($3))
                 and ($4::text is null or destination_id = $4)
                 and ($5::int is null or shard = $5)
                 and ($6::text is null or reference = $6)
                 and ($7::text is null or source_id = $7)
                 and ($8::boolean is null or positive = $8)
                 and ($9::text is null or unit = $9)
                 and ($10::timestamptz is null or time >= $10)
                 and ($11::timestamptz is null or time < $11)
                 and ($12::boolean is null or $12 and threshold is not null or not $12 and threshold is null)
               order by destination_id, seq
               limit $13"#,
            after.0,
            after.1,
            filter.record_ids.as_deref(),
            filter.destination_id,
            filter.shard,
            filter.reference,
            filter.source_id,
            filter.positive,
            filter.unit,
            filter.start,
            filter.end,
            filter.alerted,
            limit
        )
        .fetch_all(self.connection()?)
        .await?;
        Ok(records)
    }

    /// A rollup in the order window, destination, reference, source, sign, unit. The totals of its units follow each
    /// row. The stream reads rows on demand: the server waits for a slow reader.
    ///
    /// # Errors
    /// When the snapshot is over. The stream carries the errors of the server.
    pub fn rollup<'a>(
        &'a mut self,
        filter: &'a RecordFilter,
        by: RollupBy,
    ) -> Result<BoxStream<'a, Result<RollupPart, sqlx::Error>>, Error> {
        let seconds = by.window.map(|window| window.as_secs() as f64);
        Ok(sqlx::query_as!(
            RollupPart,
            r#"with matching as (
                   select case when $1::float8 is null then null
                               else date_bin(make_interval(secs => $1), time, timestamptz '1970-01-01 00:00:00+00') end
                              as window_start,
                          case when $2::boolean then destination_id end as destination_id,
                          case when $3::boolean then reference end as reference,
                          case when $4::boolean then source_id end as group_source_id,
                          case when $5::boolean then positive end as positive,
                          case when $6::boolean then unit end as group_unit,
                          unit, source_id, case when records.positive then value else -value end as signed
                   from records
                   where ($7::text[] is null or record_id = any($7))
                     and ($8::text is null or records.destination_id = $8)
                     and ($9::int is null or shard = $9)
                     and ($10::text is null or records.reference = $10)
                     and ($11::text is null or records.source_id = $11)
                     and ($12::boolean is null or records.positive = $12)
                     and ($13::text is null or records.unit = $13)
                     and ($14::timestamptz is null or time >= $14)
                     and ($15::timestamptz is null or time < $15)
                     and ($16::boolean is null or $16 and threshold is not null or not $16 and threshold is null)
               )
               select window_start as "window_start?", destination_id as "destination_id?", reference as "reference?",
                      group_source_id as "source_id?", positive as "positive?", group_unit as "group_unit?",
                      grouping(unit) = 0 as "unit_total!", unit as "unit?", count(*) as "count!",
                      sum(signed)::text as "total!", count(distinct source_id) as "distinct_source_ids!"
               from matching
               group by grouping sets (
                   (window_start, destination_id, reference, group_source_id, positive, group_unit, unit),
                   (window_start, destination_id, reference, group_source_id, positive, group_unit))
               order by window_start, destination_id, reference, group_source_id, positive, group_unit,
                        grouping(unit) desc, unit"#,
            seconds,
            by.destination_id,
            by.reference,
            by.source_id,
            by.kind,
            by.unit,
            filter.record_ids.as_deref(),
            filter.destination_id,
            filter.shard,
            filter.reference,
            filter.source_id,
            filter.positive,
            filter.unit,
            filter.start,
            filter.end,
            filter.alerted
        )
        .fetch(self.connection()?))
    }

    /// Ends the transaction and returns the connection to the pool.
    ///
    /// # Errors
    /// When Postgres does not answer; the rows that were read before are complete all the same.
    pub async fn finish(mut self) -> Result<(), Error> {
        if let Some(mut connection) = self.connection.take() {
            sqlx::raw_sql("commit").execute(&mut *connection).await?;
        }
        Ok(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Not back into the pool: a statement may still run.
            drop(connection.detach());
        }
    }
}
