//! Reads from one snapshot, page by page: totals, records, rollups. Constant memory, exact sums as text.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use super::{Error, RecordFilter, Store, StoredRecord, filter::filtered_records};
use crate::domain::{DestinationId, DestinationUnit, RecordId, Reference, Seq, ShardId, SourceId, Unit};

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
    pub destination_id: DestinationId,
    /// The unit.
    pub unit: Unit,
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
    pub destination_id: Option<DestinationId>,
    /// Present when rows are grouped by it.
    pub reference: Option<Reference>,
    /// Present when rows are grouped by it.
    pub source_id: Option<SourceId>,
    /// Present when rows are grouped by it.
    pub positive: Option<bool>,
    /// Present when rows are grouped by it.
    pub group_unit: Option<Unit>,
    /// Whether this is the total of one unit of the preceding row.
    pub unit_total: bool,
    /// That unit.
    pub unit: Option<Unit>,
    /// Number of records.
    pub count: i64,
    /// Their signed sum; meaningless for a row over all units.
    pub total: String,
    /// Exact number of distinct sources.
    pub distinct_source_ids: i64,
}

/// A record of a destination.
#[derive(Debug, Clone)]
pub struct DestinationSeq {
    /// The destination.
    pub destination_id: DestinationId,
    /// Its number in the shard.
    pub seq: Seq,
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
        after: &DestinationUnit,
        limit: i64,
    ) -> Result<Vec<UnitTotal>, Error> {
        let totals = filtered_records!(
            UnitTotal,
            r#"select destination_id as "destination_id: DestinationId", unit as "unit: Unit", count(*) as "count!",
                      sum(case when positive then value else -value end)::text as "total!"
               from records"#,
            "and (destination_id, unit) > ($11, $12) group by destination_id, unit order by destination_id, unit limit $13",
            filter,
            after.destination_id.as_str(),
            after.unit.as_str(),
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
        after: &DestinationSeq,
        limit: i64,
    ) -> Result<Vec<StoredRecord>, Error> {
        let records = filtered_records!(
            StoredRecord,
            r#"select shard as "shard: ShardId", seq as "seq: Seq", record_id as "record_id: RecordId", time,
                   source_id as "source_id: SourceId", destination_id as "destination_id: DestinationId", positive,
                   value::text as "value!", unit as "unit: Unit", reference as "reference: Reference", attributes,
                   received_at, processed_at
               from records"#,
            "and (destination_id, seq) > ($11, $12) order by destination_id, seq limit $13",
            filter,
            after.destination_id.as_str(),
            after.seq as Seq,
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
        Ok(filtered_records!(
            RollupPart,
            r#"with matching as (
                   select case when $11::float8 is null then null
                               else date_bin(make_interval(secs => $11), time, timestamptz '1970-01-01 00:00:00+00') end
                              as window_start,
                          case when $12::boolean then destination_id end as group_destination_id,
                          case when $13::boolean then reference end as group_reference,
                          case when $14::boolean then source_id end as group_source_id,
                          case when $15::boolean then positive end as group_positive,
                          case when $16::boolean then unit end as group_unit,
                          unit, source_id, case when positive then value else -value end as signed
                   from records"#,
            r#")
               select window_start as "window_start?", group_destination_id as "destination_id?: DestinationId",
                      group_reference as "reference?: Reference", group_source_id as "source_id?: SourceId",
                      group_positive as "positive?", group_unit as "group_unit?: Unit",
                      grouping(unit) = 0 as "unit_total!", unit as "unit?: Unit", count(*) as "count!",
                      sum(signed)::text as "total!", count(distinct source_id) as "distinct_source_ids!"
               from matching
               group by grouping sets (
                   (window_start, group_destination_id, group_reference, group_source_id, group_positive, group_unit, unit),
                   (window_start, group_destination_id, group_reference, group_source_id, group_positive, group_unit))
               order by window_start, group_destination_id, group_reference, group_source_id, group_positive, group_unit,
                        grouping(unit) desc, unit"#,
            filter,
            seconds,
            by.destination_id,
            by.reference,
            by.source_id,
            by.kind,
            by.unit
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
