//! Reads of the log for publishers that are far behind: committed records, dead letters and conflicts, by number.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::{Error, Store, known::RecordColumns, pool::numeric, slow::Watch};
use crate::domain::{Record, RecordId, Seq, SeqRange, ShardId, Total};

/// A processed record in the log.
#[derive(Debug, Clone)]
pub struct LogRow {
    /// Its sequence number in the shard.
    pub seq: Seq,
    /// The content.
    pub record: Arc<Record>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
    /// Count and total of the records before it with the same key and unit.
    pub previous: Total,
    /// The threshold that its value exceeds.
    pub threshold: Option<Decimal>,
    /// W3C trace context of the request.
    pub traceparent: Option<Arc<str>>,
    /// The bytes of [`Record::to_json`], where they are known.
    pub json: Option<Bytes>,
}

/// A dead letter or a conflict in its log.
#[derive(Debug, Clone)]
pub struct RefusedRow {
    /// Its sequence number in the shard.
    pub seq: Seq,
    /// Absent when the payload could not be read.
    pub record_id: Option<RecordId>,
    /// A stable code.
    pub reason: String,
    /// The reason as a sentence.
    pub detail: String,
    /// The payload as received.
    pub payload: Vec<u8>,
    /// When it was committed.
    pub noted_at: DateTime<Utc>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
}

impl Store {
    /// Records of a shard with `after` < seq ≤ `upto`, in order. With `alerts`, only those that raised an alert.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn log_rows(
        &self,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        alerts: bool,
        limit: i64,
    ) -> Result<Vec<LogRow>, Error> {
        let _watch = Watch::start("log.records");
        let rows = sqlx::query!(
            r#"select seq as "seq: Seq", received_at, processed_at, time, previous_count, positive, record_id as "record_id: RecordId", source_id,
                    destination_id, reference, unit, value::text as "value!", previous_total::text as "previous_total!",
                    threshold::text as threshold, attributes, traceparent
             from records
             where shard = $1 and seq > $2 and seq <= $3 and (not $4 or threshold is not null)
             order by seq limit $5"#,
            shard as ShardId,
            after as Seq,
            upto as Seq,
            alerts,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                let stored = RecordColumns {
                    record_id: row.record_id,
                    time: Some(row.time),
                    source_id: Some(row.source_id),
                    destination_id: Some(row.destination_id),
                    reference: Some(row.reference),
                    unit: Some(row.unit),
                    positive: Some(row.positive),
                    value: Some(row.value),
                    attributes: row.attributes,
                };
                Ok(LogRow {
                    seq: row.seq,
                    record: Arc::new(stored.into_record().ok_or(Error::Sql(sqlx::Error::RowNotFound))?),
                    received_at: row.received_at,
                    processed_at: row.processed_at,
                    previous: Total { count: row.previous_count, total: numeric(&row.previous_total)? },
                    threshold: row.threshold.as_deref().map(numeric).transpose()?,
                    traceparent: row.traceparent.map(Arc::from),
                    json: None,
                })
            })
            .collect()
    }

    /// Dead letters of a shard with `after` < n ≤ `upto`, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn dead_letter_rows(
        &self,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        limit: i64,
    ) -> Result<Vec<RefusedRow>, Error> {
        let _watch = Watch::start("log.dead_letters");
        Ok(sqlx::query_as!(
            RefusedRow,
            r#"select n as "seq: Seq", record_id as "record_id: RecordId", reason, detail, payload, opened_at as noted_at,
                      traceparent
               from dead_letters where shard = $1 and n > $2 and n <= $3 order by n limit $4"#,
            shard as ShardId,
            after as Seq,
            upto as Seq,
            limit,
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Conflicts of a shard with `after` < n ≤ `upto`, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn conflict_rows(
        &self,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        limit: i64,
    ) -> Result<Vec<RefusedRow>, Error> {
        let _watch = Watch::start("log.conflicts");
        Ok(sqlx::query_as!(
            RefusedRow,
            r#"select n as "seq: Seq", record_id as "record_id: RecordId", 'record_conflict' as "reason!",
                      'the recordId is taken by other content' as "detail!", payload, noted_at, traceparent
               from conflicts where shard = $1 and n > $2 and n <= $3 order by n limit $4"#,
            shard as ShardId,
            after as Seq,
            upto as Seq,
            limit,
        )
        .fetch_all(&self.pool)
        .await?)
    }
}
