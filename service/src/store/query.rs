//! Reads of single records, and lists of records and conflicts. Sums are in `snapshot`.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Error, Store};

/// Filters of records. A record must match all that are present.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RecordFilter {
    /// Their ids; `None`: any.
    pub record_ids: Option<Vec<String>>,
    /// Their destination.
    pub destination_id: Option<String>,
    /// The shard of the destination; only a hint that makes the query fast.
    pub shard: Option<i32>,
    /// Their reference.
    pub reference: Option<String>,
    /// Their source.
    pub source_id: Option<String>,
    /// Whether their value is positive.
    pub positive: Option<bool>,
    /// Their unit.
    pub unit: Option<String>,
    /// Their `time` is at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Their `time` is before this.
    pub end: Option<DateTime<Utc>>,
    /// Whether they raised an alert.
    pub alerted: Option<bool>,
}

/// A processed record. Its value is text, which keeps the scale.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    /// Its shard.
    pub shard: i32,
    /// Its sequence number in the shard.
    pub seq: i64,
    /// Its id.
    pub record_id: String,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// Its source.
    pub source_id: String,
    /// Its destination.
    pub destination_id: String,
    /// Whether its value is positive.
    pub positive: bool,
    /// Its value, unsigned.
    pub value: String,
    /// Its unit.
    pub unit: String,
    /// Together with the destination, the key of its total.
    pub reference: String,
    /// JSON, byte for byte as received.
    pub attributes: Option<String>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
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
    /// The id of its stream entry.
    pub stream_id: String,
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
    pub shard: i32,
    /// Its number in the shard, among conflicts.
    pub n: i64,
    /// The id.
    pub record_id: String,
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
    pub record_id: Option<String>,
    /// Their destination.
    pub destination_id: Option<String>,
    /// Stored at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Stored before this.
    pub end: Option<DateTime<Utc>>,
}

impl Store {
    /// Records after a position in the log, by (shard, seq), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_records(
        &self,
        filter: &RecordFilter,
        after: (i32, i64),
        limit: i64,
    ) -> Result<Vec<StoredRecord>, Error> {
        let records = sqlx::query_as!(
            StoredRecord,
            r#"select shard, seq, record_id, time, source_id, destination_id, positive, value::text as "value!", unit,
                      reference, attributes, received_at, processed_at
               from records
               where (shard, seq) > ($1, $2)
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
               order by shard, seq
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
        .fetch_all(&self.pool)
        .await?;
        Ok(records)
    }

    /// One processed record with its stored circumstances.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn find_record(&self, record_id: &str) -> Result<Option<(StoredRecord, RecordHistory)>, Error> {
        let row = sqlx::query!(
            r#"select shard, seq, record_id, time, source_id, destination_id, positive, value::text as "value!", unit,
                      reference, attributes, received_at, processed_at, previous_count,
                      previous_total::text as "previous_total!", threshold::text as threshold, stream_id
               from records where record_id = $1"#,
            record_id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| {
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
                received_at: row.received_at,
                processed_at: row.processed_at,
            };
            let history = RecordHistory {
                previous_count: row.previous_count,
                previous_total: row.previous_total,
                threshold: row.threshold,
                stream_id: row.stream_id,
            };
            (record, history)
        }))
    }

    /// The number of duplicates and conflicts of an id.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn traces(&self, record_id: &str) -> Result<Traces, Error> {
        let traces = sqlx::query_as!(
            Traces,
            r#"select (select count(*) from duplicates where record_id = $1) as "duplicates!",
                      (select count(*) from conflicts where record_id = $1) as "conflicts!""#,
            record_id
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
        after: (i32, i64),
        limit: i64,
    ) -> Result<Vec<StoredConflict>, Error> {
        let rows = sqlx::query!(
            r#"select c.shard, c.n, c.record_id, c.noted_at, c.received_at, c.payload,
                      r.shard as "record_shard?", r.seq as "seq?", r.time as "time?", r.source_id as "source_id?",
                      r.destination_id as "destination_id?", r.positive as "positive?", r.value::text as value,
                      r.unit as "unit?", r.reference as "reference?", r.attributes as "attributes?",
                      r.received_at as "record_received_at?", r.processed_at as "processed_at?",
                      (select d.payload from dead_letters d where d.record_id = c.record_id
                       order by d.opened_at desc limit 1) as dead_letter
               from conflicts c left join records r on r.record_id = c.record_id
               where (c.shard, c.n) > ($1, $2)
                 and ($3::text is null or c.record_id = $3)
                 and ($4::text is null or c.destination_id = $4)
                 and ($5::timestamptz is null or c.noted_at >= $5)
                 and ($6::timestamptz is null or c.noted_at < $6)
               order by c.shard, c.n
               limit $7"#,
            after.0,
            after.1,
            filter.record_id,
            filter.destination_id,
            filter.start,
            filter.end,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let record = (|| {
                    Some(StoredRecord {
                        shard: row.record_shard?,
                        seq: row.seq?,
                        record_id: row.record_id.clone(),
                        time: row.time?,
                        source_id: row.source_id?,
                        destination_id: row.destination_id?,
                        positive: row.positive?,
                        value: row.value?,
                        unit: row.unit?,
                        reference: row.reference?,
                        attributes: row.attributes,
                        received_at: row.record_received_at?,
                        processed_at: row.processed_at?,
                    })
                })();
                StoredConflict {
                    shard: row.shard,
                    n: row.n,
                    record_id: row.record_id,
                    noted_at: row.noted_at,
                    received_at: row.received_at,
                    payload: row.payload,
                    dead_letter: if record.is_none() { row.dead_letter } else { None },
                    record,
                }
            })
            .collect())
    }
}
