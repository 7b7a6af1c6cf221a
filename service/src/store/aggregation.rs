//! Totals with the records themselves, from one snapshot in one pass.

use chrono::{DateTime, Utc};
use futures::StreamExt as _;

use super::{Error, RecordFilter, ReversedRecords, Rows, Snapshot, UnitTotal, filter::filtered_records, slow::Watched};
use crate::domain::{DestinationId, RecordId, Reference, ShardId, SourceId, Unit};

/// A total of a destination, or a record of it.
#[derive(Debug, Clone)]
pub enum AggregationRow {
    /// The total of a unit.
    Total(UnitTotal),
    /// A record.
    Record(AggregatedRecord),
}

/// A record of an aggregation.
#[derive(Debug, Clone)]
pub struct AggregatedRecord {
    /// Its destination.
    pub destination_id: DestinationId,
    /// Its unit.
    pub unit: Unit,
    /// Its value, unsigned.
    pub value: String,
    /// Its id.
    pub record_id: RecordId,
    /// Its source.
    pub source_id: SourceId,
    /// Together with the destination, the key of its total.
    pub reference: Reference,
    /// Whether its value is positive.
    pub positive: bool,
    /// JSON, byte for byte as received.
    pub attributes: Option<String>,
    /// The record that it takes back.
    pub reverses: Option<RecordId>,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
}

/// The columns of both kinds of rows of an aggregation.
struct AggregationColumns {
    destination_id: DestinationId,
    unit: Unit,
    amount: String,
    count: i64,
    record_id: Option<RecordId>,
    source_id: Option<SourceId>,
    reference: Option<Reference>,
    positive: Option<bool>,
    attributes: Option<String>,
    reverses: Option<RecordId>,
    time: Option<DateTime<Utc>>,
    received_at: Option<DateTime<Utc>>,
    processed_at: Option<DateTime<Utc>>,
}

impl AggregationColumns {
    /// `None`: neither kind.
    fn into_row(self) -> Option<AggregationRow> {
        let Self { destination_id, unit, amount, .. } = self;
        if self.count > 0 {
            return Some(AggregationRow::Total(UnitTotal { destination_id, unit, count: self.count, total: amount }));
        }
        Some(AggregationRow::Record(AggregatedRecord {
            destination_id,
            unit,
            value: amount,
            record_id: self.record_id?,
            source_id: self.source_id?,
            reference: self.reference?,
            positive: self.positive?,
            attributes: self.attributes,
            reverses: self.reverses,
            time: self.time?,
            received_at: self.received_at?,
            processed_at: self.processed_at?,
        }))
    }
}

/// The statement of an aggregation.
macro_rules! aggregation_rows {
    ($filter:expr $(, $mode:ident)?) => {
        filtered_records!(
            $($mode)? AggregationColumns,
            r#"with matching as not materialized (
                   select destination_id, unit, seq, positive, value, record_id, source_id, reference, attributes, reverses,
                          time, received_at, processed_at
                   from records"#,
            r#")
               select destination_id as "destination_id!: DestinationId", unit as "unit!: Unit", amount as "amount!",
                      count as "count!", record_id as "record_id?: RecordId", source_id as "source_id?: SourceId",
                      reference as "reference?: Reference", positive as "positive?", attributes as "attributes?",
                      reverses as "reverses?: RecordId", time as "time?", received_at as "received_at?", processed_at as "processed_at?"
               from (select destination_id, unit, sum(case when positive then value else -value end)::text as amount,
                            count(*) as count, null::bigint as seq, null::boolean as positive, null::text as record_id,
                            null::text as source_id, null::text as reference, null::text as attributes, null::text as reverses,
                            null::timestamptz as time, null::timestamptz as received_at, null::timestamptz as processed_at
                     from matching group by destination_id, unit
                     union all
                     select destination_id, unit, value::text, 0, seq, positive, record_id, source_id, reference,
                            attributes, reverses, time, received_at, processed_at
                     from matching) matching
               order by destination_id, seq nulls first, unit"#,
            $filter,
        )
    };
}

impl Snapshot {
    /// The totals and the matching records themselves, by destination: first its totals by unit, then its records by
    /// number.
    ///
    /// # Errors
    /// When the snapshot is over. The stream carries the errors of the server.
    pub fn aggregation<'a>(
        &'a mut self,
        filter: &'a RecordFilter,
        reversed: ReversedRecords,
    ) -> Result<Rows<'a, AggregationRow>, Error> {
        let connection = self.connection()?;
        let rows = match reversed {
            ReversedRecords::Include => aggregation_rows!(filter).fetch(connection),
            ReversedRecords::Exclude => aggregation_rows!(filter, without_reversed).fetch(connection),
        };
        let rows =
            rows.map(|row| row?.into_row().ok_or_else(|| sqlx::Error::Decode("a row of an unknown kind".into())));
        Ok(Watched::new("aggregation.records", rows).boxed())
    }
}
