//! Reads of single records, and lists of records. Sums are in `snapshot`.

use chrono::{DateTime, NaiveDate, Utc};

use super::{
    Error, RecordFilter, Store,
    columns::{stream_position, total_alerts},
    filter::{LimitArguments, filtered_records},
    known::stored_record,
    slow::Watch,
};
use crate::domain::{
    AccessLimit, DestinationId, Period, Record, RecordId, Reference, Seq, ShardId, ShardSeq, SourceId, StreamId,
    StreamPosition, TotalAlert, Unit,
};

/// A processed record. Its value is text, which keeps the scale.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    /// Its shard.
    pub shard: ShardId,
    /// Its sequence number in the shard.
    pub seq: Seq,
    /// Its id.
    pub record_id: RecordId,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// Its source.
    pub source_id: SourceId,
    /// Its destination.
    pub destination_id: DestinationId,
    /// Whether its value is positive.
    pub positive: bool,
    /// Its value, unsigned.
    pub value: String,
    /// Its unit.
    pub unit: Unit,
    /// Together with the destination, the key of its total.
    pub reference: Reference,
    /// JSON, byte for byte as received.
    pub attributes: Option<String>,
    /// The record that it takes back.
    pub reverses: Option<RecordId>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
}

impl StoredRecord {
    /// Its content.
    ///
    /// # Errors
    /// When the value is none that this process can hold.
    pub fn content(&self) -> Result<Record, Error> {
        let row = self.clone();
        stored_record!(row)
    }
}

/// The place of a record: a row of its period's partition, as long as that is kept.
struct RecordPlace {
    shard: ShardId,
    seq: Seq,
    period: NaiveDate,
}

/// The stored circumstances of a record: the records before it with the same key, and its alert.
#[derive(Debug, Clone)]
pub struct RecordHistory {
    /// Number of records before it with the same key and unit.
    pub previous_count: i64,
    /// Their total.
    pub previous_total: String,
    /// The threshold that its value exceeds.
    pub threshold: Option<String>,
    /// The thresholds on totals that it took a total over.
    pub total_alerts: Vec<TotalAlert>,
    /// Its place in the input stream.
    pub position: StreamPosition,
}

/// A processed record with its history.
#[derive(Debug, Clone)]
pub struct FoundRecord {
    /// The record.
    pub record: StoredRecord,
    /// Its history.
    pub history: RecordHistory,
}

/// Counts of further entries with the same id.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    /// Entries with the same content.
    pub duplicates: i64,
    /// Entries with other content.
    pub conflicts: i64,
}

impl Store {
    /// Records after a position in the log, by (shard, seq), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_records(
        &self,
        filter: &RecordFilter,
        after: ShardSeq,
        limit: i64,
    ) -> Result<Vec<StoredRecord>, Error> {
        let _watch = Watch::start("records.list");
        // The lowest number for the index of a destination, which has no shard.
        let above = filter.shard.filter(|shard| *shard == after.shard).map(|_| after.seq);
        let records = filtered_records!(
            StoredRecord,
            r#"select shard as "shard: ShardId", seq as "seq: Seq", record_id as "record_id: RecordId", time,
                   source_id as "source_id: SourceId", destination_id as "destination_id: DestinationId", positive,
                   value::text as "value!", unit as "unit: Unit", reference as "reference: Reference", attributes,
                   reverses as "reverses: RecordId", received_at, processed_at
               from records"#,
            "and (shard, seq) > ($15, $16) and ($18::bigint is null or seq > $18) order by shard, seq limit $17",
            filter,
            after.shard as ShardId,
            after.seq as Seq,
            limit,
            above as Option<Seq>,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(records)
    }

    /// Whether an id is taken, by a record or an open dead letter.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn is_taken(&self, record_id: &RecordId) -> Result<bool, Error> {
        let taken = sqlx::query_scalar!(
            r#"select exists (select from record_ids where record_id = $1) as "taken!""#,
            record_id as &RecordId
        );
        Ok(taken.fetch_one(&self.pool).await?)
    }

    /// The period of a record that is no longer kept; its id is. `None`: it is kept, its id is free, or the caller is limited:
    /// the id ledger holds neither source nor destination.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn expired_period(&self, record_id: &RecordId, limit: &AccessLimit) -> Result<Option<Period>, Error> {
        if limit.is_limited() {
            return Ok(None);
        }
        let Some(place) = self.record_place(record_id).await? else { return Ok(None) };
        let kept = sqlx::query_scalar!(
            r#"select exists (select from records where shard = $1 and seq = $2 and period = $3) as "kept!""#,
            place.shard as ShardId,
            place.seq as Seq,
            place.period,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((!kept).then(|| Period::stored(place.period)))
    }

    /// Where a processed record is, or was.
    async fn record_place(&self, record_id: &RecordId) -> Result<Option<RecordPlace>, Error> {
        let place = sqlx::query_as!(
            RecordPlace,
            r#"select shard as "shard: ShardId", number as "seq: Seq", period as "period!: NaiveDate" from record_ids
               where record_id = $1 and period is not null"#,
            record_id as &RecordId
        );
        Ok(place.fetch_optional(&self.pool).await?)
    }

    /// One processed record with its stored circumstances; `None` also where it is no longer kept.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn find_record(&self, record_id: &RecordId) -> Result<Option<FoundRecord>, Error> {
        let _watch = Watch::start("records.find");
        // Two statements: a plan that knows the period opens one partition.
        let Some(place) = self.record_place(record_id).await? else { return Ok(None) };
        let row = sqlx::query!(
            r#"select r.shard as "shard: ShardId", seq as "seq: Seq", r.record_id as "record_id: RecordId", time,
                   source_id as "source_id: SourceId", destination_id as "destination_id: DestinationId", positive,
                   value::text as "value!", unit as "unit: Unit", reference as "reference: Reference", attributes,
                   reverses as "reverses: RecordId", received_at, processed_at, previous_count,
                      previous_total::text as "previous_total!", threshold::text as threshold, total_alerts,
                      stream_id as "stream_id: StreamId",
                      stream_index
               from records r where r.shard = $1 and r.seq = $2 and r.period = $3"#,
            place.shard as ShardId,
            place.seq as Seq,
            place.period,
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            let record = StoredRecord {
                shard: row.shard,
                seq: row.seq,
                record_id: row.record_id,
                time: row.time,
                source_id: row.source_id,
                destination_id: row.destination_id,
                positive: row.positive,
                value: row.value,
                unit: row.unit,
                reference: row.reference,
                attributes: row.attributes,
                reverses: row.reverses,
                received_at: row.received_at,
                processed_at: row.processed_at,
            };
            let history = RecordHistory {
                previous_count: row.previous_count,
                previous_total: row.previous_total,
                threshold: row.threshold,
                total_alerts: total_alerts(row.total_alerts.as_deref())?,
                position: stream_position(row.stream_id, row.stream_index),
            };
            Ok(FoundRecord { record, history })
        })
        .transpose()
    }

    /// The number of duplicates of an id, and of its conflicts that a caller may reach. A duplicate has the content of its
    /// record, so a caller that may reach one may reach the other.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn traces(&self, record_id: &RecordId, limit: &AccessLimit) -> Result<Traces, Error> {
        let access = LimitArguments::from(limit);
        let _watch = Watch::start("records.traces");
        let traces = sqlx::query_as!(
            Traces,
            r#"select (select count(*) from duplicates where record_id = $1) as "duplicates!",
                      (select count(*) from conflicts
                       where record_id = $1 and is_in_ranges(source_id, $2, $3)
                         and is_in_ranges(destination_id, $4, $5)) as "conflicts!""#,
            record_id as &RecordId,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(traces)
    }
}
