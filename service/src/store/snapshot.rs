//! Reads from one snapshot: totals, records, rollups. Each is one statement whose rows are read on demand, so memory stays
//! constant and the work is that of one pass. Exact sums as text.

use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream::BoxStream};
use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use super::{
    Error, RecordFilter, ReversedRecords, Store, complete_since,
    filter::{LimitArguments, filtered_records},
    retention::kept_since,
    slow::Watched,
    sums::{RollupBy, filtered_sums, rolled},
};
use crate::domain::{DestinationId, RecordId, Reference, ShardId, SourceId, Unit};

/// Rows of a statement, in its order. The server waits for a slow reader.
pub type Rows<'a, T> = BoxStream<'a, Result<T, sqlx::Error>>;

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
    /// Start of the window, in local time of the query's zone as if it were UTC; `None` without windows.
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
    /// Exact number of distinct sources, where they are counted.
    pub distinct_source_ids: Option<i64>,
}

/// The statement of a rollup with an expression for the number of distinct sources.
macro_rules! rollup_parts {
    ($distinct_source_ids:literal, $filter:expr, $rolled:expr, $by:expr, $zone:expr) => {
        filtered_sums!(
            RollupPart,
            r#"select window_start as "window_start?", group_destination_id as "destination_id?: DestinationId",
                      group_reference as "reference?: Reference", group_source_id as "source_id?: SourceId",
                      group_positive as "positive?", group_unit as "group_unit?: Unit",
                      grouping(unit) = 0 as "unit_total!", unit as "unit?: Unit", sum(count)::bigint as "count!",
                      sum(signed)::text as "total!", "#
            $distinct_source_ids
            r#" as "distinct_source_ids?"
               from (select case when $21::float8 is not null
                                 then date_bin(
                                     make_interval(secs => $21),
                                     case when is_local or $27::timestamptz[] is null then time
                                          else local_time(time, $27, $28) end,
                                     timestamptz '1970-01-01 00:00:00+00') end as window_start,
                            case when $22::boolean then destination_id end as group_destination_id,
                            case when $23::boolean then reference end as group_reference,
                            case when $24::boolean then source_id end as group_source_id,
                            case when $25::boolean then positive end as group_positive,
                            case when $26::boolean then unit end as group_unit,
                            unit, source_id, count, case when positive then sum else -sum end as signed
                     from matching) matching
               group by grouping sets (
                   (window_start, group_destination_id, group_reference, group_source_id, group_positive, group_unit, unit),
                   (window_start, group_destination_id, group_reference, group_source_id, group_positive, group_unit))
               order by window_start, group_destination_id, group_reference, group_source_id, group_positive, group_unit,
                        grouping(unit) desc, unit"#,
            $filter,
            $rolled,
            $by.window.map(|window| window.as_secs() as f64),
            $by.destination_id,
            $by.reference,
            $by.source_id,
            $by.kind,
            $by.unit,
            $zone.as_ref().map(|zone| &*zone.transitions) as Option<&[DateTime<Utc>]>,
            $zone.as_ref().map(|zone| &*zone.offsets) as Option<&[i32]>
        )
    };
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
        // The lock comes before the snapshot: no partition that the snapshot has is dropped before it ends.
        sqlx::raw_sql(
            "begin isolation level repeatable read read only; \
             lock table only records in access share mode; \
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
    /// The time from which the records of an answer, or its sums, are complete; `None`: all of it is. `by`: how the sums are
    /// grouped; `None`: the records are listed.
    ///
    /// # Errors
    /// When the snapshot is over, or Postgres does not answer.
    pub async fn complete_since(
        &mut self,
        filter: &RecordFilter,
        by: Option<&RollupBy>,
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let connection = self.connection()?;
        let kept = kept_since(connection).await?.records;
        match by {
            None => Ok(complete_since(kept, filter.start)),
            // Also without a dropped record, a rollup is never used for its closed windows.
            Some(_) if kept.is_none() => Ok(None),
            Some(by) => Ok(rolled(connection, filter, by).await?.complete_since(kept, filter)),
        }
    }

    /// As [`Self::complete_since`], of totals by destination and unit.
    ///
    /// # Errors
    /// As of that.
    pub async fn totals_complete_since(
        &mut self,
        filter: &RecordFilter,
        reversed: ReversedRecords,
    ) -> Result<Option<DateTime<Utc>>, Error> {
        if reversed == ReversedRecords::Exclude {
            return self.complete_since(filter, None).await;
        }
        if filter.has_stored_totals() {
            return Ok(None);
        }
        self.complete_since(filter, Some(&by_destination())).await
    }

    pub(super) fn connection(&mut self) -> Result<&mut PgConnection, Error> {
        self.connection.as_deref_mut().ok_or(Error::Sql(sqlx::Error::PoolClosed))
    }

    /// The totals of the matching records, by (destination, unit). From the stored totals where the filter allows it, or
    /// from a declared rollup: both also count records that are no longer kept. Without reversed records only from records.
    ///
    /// # Errors
    /// When the snapshot is over, or Postgres does not answer. The stream carries the errors of the server.
    pub async fn totals<'a>(
        &'a mut self,
        filter: &'a RecordFilter,
        reversed: ReversedRecords,
    ) -> Result<Rows<'a, UnitTotal>, Error> {
        let connection = self.connection()?;
        if reversed == ReversedRecords::Exclude {
            let rows = filtered_records!(
                without_reversed UnitTotal,
                r#"select destination_id as "destination_id: DestinationId", unit as "unit: Unit", count(*) as "count!",
                          sum(case when positive then value else -value end)::text as "total!"
                   from records"#,
                "group by destination_id, unit order by destination_id, unit",
                filter,
            )
            .fetch(connection);
            return Ok(Watched::new("aggregation.not_reversed", rows).boxed());
        }
        if filter.has_stored_totals() {
            let limit = LimitArguments::from(&filter.limit);
            let rows = sqlx::query_as!(
                UnitTotal,
                r#"select destination_id as "destination_id: DestinationId", unit as "unit: Unit",
                          sum(count)::bigint as "count!", sum(total)::text as "total!"
                   from (select destination_id, unit,
                                case when $5::boolean is null then count when $5 then positive_count else negative_count end
                                    as count,
                                case when $5::boolean is null then total when $5 then positive_sum else -negative_sum end
                                    as total
                         from totals
                         where ($1::text is null or destination_id = $1)
                           and ($2::int is null or shard = $2)
                           and ($3::text is null or reference = $3)
                           and ($4::text is null or unit = $4)
                           and is_in_ranges(destination_id, $6, $7)) keys
                   where count > 0
                   group by destination_id, unit order by destination_id, unit"#,
                filter.destination_id.as_ref() as Option<&DestinationId>,
                filter.shard as Option<ShardId>,
                filter.reference.as_ref() as Option<&Reference>,
                filter.unit.as_ref() as Option<&Unit>,
                filter.positive,
                limit.destination_starts,
                limit.destination_ends,
            )
            .fetch(connection);
            return Ok(Watched::new("aggregation.totals", rows).boxed());
        }
        let rolled = rolled(connection, filter, &by_destination()).await?;
        let rows = filtered_sums!(
            UnitTotal,
            r#"select destination_id as "destination_id!: DestinationId", unit as "unit!: Unit",
                      sum(count)::bigint as "count!", sum(case when positive then sum else -sum end)::text as "total!"
               from matching group by destination_id, unit order by destination_id, unit"#,
            filter,
            rolled,
        )
        .fetch(connection);
        Ok(Watched::new("aggregation.sums", rows).boxed())
    }

    /// A rollup in the order window, destination, reference, source, sign, unit. The totals of its units follow each
    /// row. From a declared rollup where one fits.
    ///
    /// # Errors
    /// When the snapshot is over, or Postgres does not answer. The stream carries the errors of the server.
    pub async fn rollup<'a>(
        &'a mut self,
        filter: &'a RecordFilter,
        by: RollupBy,
    ) -> Result<Rows<'a, RollupPart>, Error> {
        let connection = self.connection()?;
        let rolled = rolled(connection, filter, &by).await?;
        let zone = (!by.zone.is_utc()).then(|| by.zone.arguments());
        // Distinct sources need a sort by group, also where they are not returned: two statements.
        let rows = if by.distinct_source_ids {
            rollup_parts!("count(distinct source_id)", filter, rolled, by, zone).fetch(connection)
        } else {
            rollup_parts!("null::bigint", filter, rolled, by, zone).fetch(connection)
        };
        Ok(Watched::new("rollup", rows).boxed())
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

fn by_destination() -> RollupBy {
    RollupBy { destination_id: true, unit: true, ..RollupBy::default() }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Not back into the pool: a statement may still run.
            drop(connection.detach());
        }
    }
}
