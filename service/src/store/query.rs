//! Reads of single records, and lists of records and conflicts. Sums are in `snapshot`.

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;

use super::{
    Error, RecordFilter, Store,
    columns::{stream_position, total_alerts},
    filter::{LimitArguments, filtered_records, is_unlimited},
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

/// An entry that was refused because other content has its id.
#[derive(Debug, Clone)]
pub struct StoredConflict {
    /// Its shard.
    pub shard: ShardId,
    /// Its number in the shard, among conflicts.
    pub seq: Seq,
    /// The id.
    pub record_id: RecordId,
    /// When it was refused.
    pub noted_at: DateTime<Utc>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// The refused payload.
    pub payload: Vec<u8>,
    /// The content that has the id: a processed record …
    pub record: Option<StoredRecord>,
    /// … or the payload of the newest dead letter of that id.
    pub dead_letter: Option<Vec<u8>>,
}

/// Filters of conflicts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConflictFilter {
    /// Their id.
    pub record_id: Option<RecordId>,
    /// Their destination.
    pub destination_id: Option<DestinationId>,
    /// Stored at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Stored before this.
    pub end: Option<DateTime<Utc>>,
    /// What the caller may reach, of the refused content and of the content that has the id.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub limit: AccessLimit,
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

    /// Conflicts above a number, by (shard, n), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_conflicts(
        &self,
        filter: &ConflictFilter,
        after: ShardSeq,
        limit: i64,
    ) -> Result<Vec<StoredConflict>, Error> {
        let access = LimitArguments::from(&filter.limit);
        let _watch = Watch::start("conflicts.list");
        let rows = sqlx::query_as!(
            ConflictColumns,
            r#"select c.shard as "shard: ShardId", c.n as "seq: Seq", c.record_id as "record_id: RecordId", c.noted_at, c.received_at, c.payload,
                      r.shard as "record_shard?: ShardId", r.seq as "record_seq?: Seq", r.time as "time?",
                      r.source_id as "source_id?: SourceId",
                      r.destination_id as "destination_id?: DestinationId", r.positive as "positive?", r.value::text as value,
                      r.unit as "unit?: Unit", r.reference as "reference?: Reference", r.attributes as "attributes?",
                      r.reverses as "reverses?: RecordId",
                      r.received_at as "record_received_at?", r.processed_at as "record_processed_at?",
                      (select d.payload from dead_letters d
                       where d.record_id = c.record_id and is_in_ranges(d.source_id, $8, $9)
                         and is_in_ranges(d.destination_id, $10, $11)
                       order by d.opened_at desc limit 1) as dead_letter
               from conflicts c
               left join (record_ids i join records r on r.shard = i.shard and r.seq = i.number and r.period = i.period)
                   on i.record_id = c.record_id and is_in_ranges(r.source_id, $8, $9)
                      and is_in_ranges(r.destination_id, $10, $11)
               where (c.shard, c.n) > ($1, $2)
                 and ($3::text is null or c.record_id = $3)
                 and ($4::text is null or c.destination_id = $4)
                 and ($5::timestamptz is null or c.noted_at >= $5)
                 and ($6::timestamptz is null or c.noted_at < $6)
                 and is_in_ranges(c.source_id, $8, $9) and is_in_ranges(c.destination_id, $10, $11)
               order by c.shard, c.n
               limit $7"#,
            after.shard as ShardId,
            after.seq as Seq,
            filter.record_id.as_ref() as Option<&RecordId>,
            filter.destination_id.as_ref() as Option<&DestinationId>,
            filter.start,
            filter.end,
            limit,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(ConflictColumns::into_conflict).collect())
    }
}

/// The columns of a conflict, and of the record that has its id.
struct ConflictColumns {
    shard: ShardId,
    seq: Seq,
    record_id: RecordId,
    noted_at: DateTime<Utc>,
    received_at: DateTime<Utc>,
    payload: Vec<u8>,
    record_shard: Option<ShardId>,
    record_seq: Option<Seq>,
    time: Option<DateTime<Utc>>,
    source_id: Option<SourceId>,
    destination_id: Option<DestinationId>,
    positive: Option<bool>,
    value: Option<String>,
    unit: Option<Unit>,
    reference: Option<Reference>,
    attributes: Option<String>,
    reverses: Option<RecordId>,
    record_received_at: Option<DateTime<Utc>>,
    record_processed_at: Option<DateTime<Utc>>,
    dead_letter: Option<Vec<u8>>,
}

impl ConflictColumns {
    fn into_conflict(self) -> StoredConflict {
        let record_id = self.record_id.clone();
        let record = (|| {
            Some(StoredRecord {
                shard: self.record_shard?,
                seq: self.record_seq?,
                record_id: self.record_id,
                time: self.time?,
                source_id: self.source_id?,
                destination_id: self.destination_id?,
                positive: self.positive?,
                value: self.value?,
                unit: self.unit?,
                reference: self.reference?,
                attributes: self.attributes,
                reverses: self.reverses,
                received_at: self.record_received_at?,
                processed_at: self.record_processed_at?,
            })
        })();
        StoredConflict {
            shard: self.shard,
            seq: self.seq,
            record_id,
            noted_at: self.noted_at,
            received_at: self.received_at,
            payload: self.payload,
            dead_letter: if record.is_none() { self.dead_letter } else { None },
            record,
        }
    }
}
