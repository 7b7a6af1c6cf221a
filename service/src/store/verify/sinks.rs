//! Reads about sinks in the snapshot: started sinks, their start positions, and the rows that their entries must match.
//!
//! It must never read more than a page of rows.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::Verification;
use crate::{
    domain::{
        Amount, Attributes, DestinationId, Kind, OutcomeKind, Record, RecordId, Reference, Seq, SeqRange, ShardId,
        ShardSeq, SourceId, Unit,
    },
    store::{Error, pool::numeric},
};

/// A sink that was started.
#[derive(Debug, Clone)]
pub struct StartedSink {
    /// Its name.
    pub name: String,
    /// The outcomes that it publishes.
    pub kind: OutcomeKind,
    /// Its Redis stream.
    pub stream: String,
    /// The generation of its cursor.
    pub cursor_generation: String,
}

/// A processed record with all data of its notification.
#[derive(Debug, Clone)]
pub struct LoggedRecord {
    /// Its sequence number in the shard.
    pub seq: Seq,
    /// The content.
    pub record: Record,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
    /// Number of records before it with the same key and unit.
    pub previous_count: i64,
    /// Their total.
    pub previous_total: Decimal,
    /// The threshold that its value exceeds.
    pub threshold: Option<Decimal>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// A dead letter or a conflict with the data of its notification.
#[derive(Debug, Clone)]
pub struct RefusedOutcome {
    /// Its sequence number in the shard.
    pub seq: Seq,
    /// When it was committed.
    pub noted_at: DateTime<Utc>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

impl Verification {
    /// The Redis sinks that were started and not removed.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn started_sinks(&mut self) -> Result<Vec<StartedSink>, Error> {
        let sinks = sqlx::query_as!(
            StartedSink,
            r#"select name, kind as "kind: OutcomeKind", stream as "stream!", cursor_generation
               from sinks where stream is not null and started and not removed order by name"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(sinks)
    }

    /// The pipeline's name and id: the source of every notification.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn source(&mut self) -> Result<String, Error> {
        let row = sqlx::query!("select name, pipeline_id from pipeline").fetch_one(&mut *self.snapshot).await?;
        Ok(format!("{}/{}", row.name, row.pipeline_id))
    }

    /// For each shard, the number after which a sink publishes outcomes.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn sink_starts(&mut self, sink: &str) -> Result<Vec<ShardSeq>, Error> {
        let starts = sqlx::query_as!(
            ShardSeq,
            r#"select shard as "shard: ShardId", after as "seq: Seq" from sink_starts where sink = $1 order by shard"#,
            sink
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(starts)
    }

    /// The highest sequence number of a shard, of the kind that a sink carries.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn highest(&mut self, kind: OutcomeKind, shard: ShardId) -> Result<Seq, Error> {
        let highest = sqlx::query_scalar!(
            r#"select case $1::text when 'DeadLettered' then dead_letters when 'Conflicted' then conflicts
                   else records end as "highest!: Seq"
               from shards where shard = $2"#,
            kind as OutcomeKind,
            shard as ShardId
        )
        .fetch_optional(&mut *self.snapshot)
        .await?;
        Ok(highest.unwrap_or_default())
    }

    /// The gaps of a shard's numbers. Postgres has lost these outcomes; they may
    /// have been published before.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn skipped(&mut self, kind: OutcomeKind, shard: ShardId) -> Result<Vec<SeqRange>, Error> {
        let gaps = sqlx::query_as!(
            SeqRange,
            r#"select from_n - 1 as "after!: Seq", to_n as "upto: Seq" from gaps
             where shard = $2 and kind = case $1::text when 'DeadLettered' then 'dead_letters'
                                                      when 'Conflicted' then 'conflicts' else 'records' end"#,
            kind as OutcomeKind,
            shard as ShardId
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(gaps)
    }

    /// Numbers of a shard that a sink of this kind publishes, in a range, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn published_numbers(
        &mut self,
        kind: OutcomeKind,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        limit: i64,
    ) -> Result<Vec<Seq>, Error> {
        let snapshot = &mut *self.snapshot;
        let numbers = match kind {
            OutcomeKind::Processed => {
                sqlx::query_scalar!(
                    r#"select seq as "seq: Seq" from records where shard = $1 and seq > $2 and seq <= $3 order by seq limit $4"#,
                    shard as ShardId,
                    after as Seq,
                    upto as Seq,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            OutcomeKind::Alert => {
                sqlx::query_scalar!(
                    r#"select seq as "seq: Seq" from records
                       where shard = $1 and seq > $2 and seq <= $3 and threshold is not null order by seq limit $4"#,
                    shard as ShardId,
                    after as Seq,
                    upto as Seq,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            OutcomeKind::DeadLettered => {
                sqlx::query_scalar!(
                    r#"select n as "seq: Seq" from dead_letters where shard = $1 and n > $2 and n <= $3 order by n limit $4"#,
                    shard as ShardId,
                    after as Seq,
                    upto as Seq,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            OutcomeKind::Conflicted => {
                sqlx::query_scalar!(
                    r#"select n as "seq: Seq" from conflicts where shard = $1 and n > $2 and n <= $3 order by n limit $4"#,
                    shard as ShardId,
                    after as Seq,
                    upto as Seq,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
        };
        Ok(numbers)
    }

    /// Records of a shard by their numbers, in order.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn logged_records(&mut self, shard: ShardId, numbers: &[Seq]) -> Result<Vec<LoggedRecord>, Error> {
        let rows = sqlx::query!(
            r#"select seq as "seq: Seq", received_at, processed_at, time, previous_count, positive, record_id, source_id, destination_id,
                 reference, unit, value::text as "value!", previous_total::text as "previous_total!",
                 threshold::text as threshold, attributes, traceparent
             from records where shard = $1 and seq = any($2) order by seq"#,
            shard as ShardId,
            numbers as &[Seq]
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(LoggedRecord {
                    seq: row.seq,
                    record: Record {
                        record_id: RecordId::stored(row.record_id),
                        time: row.time,
                        source_id: SourceId::stored(row.source_id),
                        destination_id: DestinationId::stored(row.destination_id),
                        kind: if row.positive { Kind::Positive } else { Kind::Negative },
                        value: Amount::stored(numeric(&row.value)?),
                        unit: Unit::stored(row.unit),
                        reference: Reference::stored(row.reference),
                        attributes: row.attributes.and_then(Attributes::stored),
                    },
                    received_at: row.received_at,
                    processed_at: row.processed_at,
                    previous_count: row.previous_count,
                    previous_total: numeric(&row.previous_total)?,
                    threshold: row.threshold.as_deref().map(numeric).transpose()?,
                    traceparent: row.traceparent,
                })
            })
            .collect()
    }

    /// The times and trace contexts of dead letters or conflicts, by number, in order.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn refused(
        &mut self,
        kind: OutcomeKind,
        shard: ShardId,
        numbers: &[Seq],
    ) -> Result<Vec<RefusedOutcome>, Error> {
        let refused = sqlx::query_as!(
            RefusedOutcome,
            r#"select n as "seq!: Seq", at as "noted_at!", traceparent
               from (
                   select 'DeadLettered' as kind, shard, n, opened_at as at, traceparent from dead_letters
                   union all select 'Conflicted', shard, n, noted_at, traceparent from conflicts
               ) refused
               where kind = $1 and shard = $2 and n = any($3) order by n"#,
            kind as OutcomeKind,
            shard as ShardId,
            numbers as &[Seq]
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(refused)
    }
}
