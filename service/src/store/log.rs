//! Reads of the log for publishers that are far behind: committed records, dead letters and conflicts, by number.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::{Error, Store, columns::total_alerts, known::stored_record, periods::Periods, pool::numeric, slow::Watch};
use crate::domain::{OutcomeKind, Record, RecordId, Seq, SeqRange, ShardId, Total, TotalAlert};

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
    /// The thresholds on totals that it took a total over.
    pub total_alerts: Vec<TotalAlert>,
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
    /// Empty when the payload could not be read.
    pub destination_id: String,
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
    /// Bytes of the payloads of its page, up to this one.
    pub(super) bytes: i64,
}

/// How much is read of a log at once. One row may be larger.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Maximum number of rows.
    pub rows: usize,
    /// Bytes of their content after which no further row is read.
    pub bytes: usize,
}

/// Rows of a log, in order.
#[derive(Debug)]
pub struct LogPage<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// The log is read up to this number.
    pub upto: Seq,
}

impl<T> LogPage<T> {
    /// `bytes`: of all rows. A page that neither bound has cut holds all rows up to `end`.
    fn new(rows: Vec<T>, bytes: i64, seq: impl Fn(&T) -> Seq, page: Page, end: Seq) -> Self {
        let is_whole = rows.len() < page.rows && bytes < page.bytes as i64;
        let upto = rows.last().filter(|_| !is_whole).map_or(end, seq);
        Self { rows, upto }
    }
}

impl Store {
    /// Records of a shard with `after` < seq ≤ `upto`, in order. Of the kinds of alerts only those that raised one.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn log_rows(
        &self,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        kind: OutcomeKind,
        page: Page,
    ) -> Result<LogPage<LogRow>, Error> {
        let _watch = Watch::start("log.records");
        let periods = Periods::of(&self.pool, shard, SeqRange { after, upto }).await?;
        let rows = sqlx::query!(
            r#"select seq as "seq!: Seq", received_at as "received_at!", processed_at as "processed_at!", time as "time!",
                    previous_count as "previous_count!", positive as "positive!", record_id as "record_id!: RecordId",
                    source_id as "source_id!", destination_id as "destination_id!", reference as "reference!",
                    unit as "unit!", value::text as "value!", previous_total::text as "previous_total!",
                    threshold::text as threshold, total_alerts, attributes, traceparent, reverses as "reverses: RecordId", bytes as "bytes!"
             from (select *, sum(coalesce(octet_length(attributes), 0)) over (order by seq rows unbounded preceding) as bytes
                   from records
                   where shard = $1 and seq > $2 and seq <= $3 and (not $4 or threshold is not null)
                       and (not $7 or total_alerts is not null)
                       and period >= coalesce($8::date, '-infinity') and period <= coalesce($9::date, 'infinity')
                   order by seq limit $5) as page
             where bytes - coalesce(octet_length(attributes), 0) < $6
             order by seq"#,
            shard as ShardId,
            after as Seq,
            upto as Seq,
            kind == OutcomeKind::Alert,
            page.rows as i64,
            page.bytes as i64,
            kind == OutcomeKind::TotalAlert,
            periods.first,
            periods.last,
        )
        .fetch_all(&self.pool)
        .await?;
        let bytes = rows.last().map_or(0, |row| row.bytes);
        let rows = rows.into_iter().map(|row| {
            Ok(LogRow {
                seq: row.seq,
                record: Arc::new(stored_record!(row)?),
                received_at: row.received_at,
                processed_at: row.processed_at,
                previous: Total { count: row.previous_count, total: numeric(&row.previous_total)? },
                threshold: row.threshold.as_deref().map(numeric).transpose()?,
                total_alerts: total_alerts(row.total_alerts.as_deref())?,
                traceparent: row.traceparent.map(Arc::from),
                json: None,
            })
        });
        Ok(LogPage::new(rows.collect::<Result<_, Error>>()?, bytes, |row| row.seq, page, upto))
    }

    /// Dead letters of a shard with `after` < n ≤ `upto`, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn dead_letter_rows(
        &self,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        page: Page,
    ) -> Result<LogPage<RefusedRow>, Error> {
        let _watch = Watch::start("log.dead_letters");
        let rows = sqlx::query_as!(
            RefusedRow,
            r#"select n as "seq!: Seq", record_id as "record_id: RecordId",
                      coalesce(destination_id, '') as "destination_id!", reason as "reason!", detail as "detail!", payload as "payload!",
                      opened_at as "noted_at!", traceparent, bytes as "bytes!"
               from (select *, sum(octet_length(payload)) over (order by n rows unbounded preceding) as bytes
                     from dead_letters where shard = $1 and n > $2 and n <= $3 order by n limit $4) as page
               where bytes - octet_length(payload) < $5
               order by n"#,
            shard as ShardId,
            after as Seq,
            upto as Seq,
            page.rows as i64,
            page.bytes as i64,
        )
        .fetch_all(&self.pool)
        .await?;
        let bytes = rows.last().map_or(0, |row| row.bytes);
        Ok(LogPage::new(rows, bytes, |row| row.seq, page, upto))
    }

    /// Conflicts of a shard with `after` < n ≤ `upto`, in order.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn conflict_rows(
        &self,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        page: Page,
    ) -> Result<LogPage<RefusedRow>, Error> {
        let _watch = Watch::start("log.conflicts");
        let rows = sqlx::query_as!(
            RefusedRow,
            r#"select n as "seq!: Seq", record_id as "record_id: RecordId", destination_id as "destination_id!",
                      'record_conflict' as "reason!",
                      'the recordId is taken by other content' as "detail!", payload as "payload!",
                      noted_at as "noted_at!", traceparent, bytes as "bytes!"
               from (select *, sum(octet_length(payload)) over (order by n rows unbounded preceding) as bytes
                     from conflicts where shard = $1 and n > $2 and n <= $3 order by n limit $4) as page
               where bytes - octet_length(payload) < $5
               order by n"#,
            shard as ShardId,
            after as Seq,
            upto as Seq,
            page.rows as i64,
            page.bytes as i64,
        )
        .fetch_all(&self.pool)
        .await?;
        let bytes = rows.last().map_or(0, |row| row.bytes);
        Ok(LogPage::new(rows, bytes, |row| row.seq, page, upto))
    }
}
