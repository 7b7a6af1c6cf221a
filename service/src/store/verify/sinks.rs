//! Reads about sinks in the snapshot: started sinks, their start positions, and the rows that their entries must match.
//!
//! It must never read more than a page of rows.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::Verification;
use crate::{
    domain::{Amount, Attributes, Kind, Record, Text},
    store::{Error, pool::numeric},
};

/// A sink that was started.
#[derive(Debug, Clone)]
pub struct StartedSink {
    /// Its name.
    pub name: String,
    /// `Processed`, `Alert`, `DeadLettered` or `Conflicted`.
    pub kind: String,
    /// Its Redis stream.
    pub stream: String,
    /// The generation of its cursor.
    pub cursor_generation: String,
}

/// A processed record with all data of its notification.
#[derive(Debug, Clone)]
pub struct LoggedRecord {
    /// Its sequence number in the shard.
    pub seq: i64,
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

impl Verification {
    /// The Redis sinks that were started and not removed.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn started_sinks(&mut self) -> Result<Vec<StartedSink>, Error> {
        let sinks = sqlx::query_as!(
            StartedSink,
            r#"select name, kind, stream as "stream!", cursor_generation
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
    pub async fn sink_starts(&mut self, sink: &str) -> Result<Vec<(u16, i64)>, Error> {
        let rows = sqlx::query!("select shard, after from sink_starts where sink = $1 order by shard", sink)
            .fetch_all(&mut *self.snapshot)
            .await?;
        Ok(rows.into_iter().filter_map(|row| Some((u16::try_from(row.shard).ok()?, row.after))).collect())
    }

    /// The highest sequence number of a shard, of the kind that a sink carries.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn highest(&mut self, kind: &str, shard: u16) -> Result<i64, Error> {
        let highest = sqlx::query_scalar!(
            r#"select case $1::text when 'DeadLettered' then dead_letters when 'Conflicted' then conflicts
                   else records end as "highest!"
               from shards where shard = $2"#,
            kind,
            i32::from(shard)
        )
        .fetch_optional(&mut *self.snapshot)
        .await?;
        Ok(highest.unwrap_or_default())
    }

    /// The gaps of a shard's numbers, each with its first and last number. Postgres has lost these outcomes; they may
    /// have been published before.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn skipped(&mut self, kind: &str, shard: u16) -> Result<Vec<(i64, i64)>, Error> {
        let gaps = sqlx::query!(
            "select from_n, to_n from gaps
             where shard = $2 and kind = case $1::text when 'DeadLettered' then 'dead_letters'
                                                      when 'Conflicted' then 'conflicts' else 'records' end",
            kind,
            i32::from(shard)
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(gaps.into_iter().map(|gap| (gap.from_n, gap.to_n)).collect())
    }

    /// Numbers of a shard that a sink of this kind publishes, above `after` and up to `until`, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn published_numbers(
        &mut self,
        kind: &str,
        shard: u16,
        after: i64,
        until: i64,
        limit: i64,
    ) -> Result<Vec<i64>, Error> {
        let shard = i32::from(shard);
        let snapshot = &mut *self.snapshot;
        let numbers = match kind {
            "Processed" => {
                sqlx::query_scalar!(
                    "select seq from records where shard = $1 and seq > $2 and seq <= $3 order by seq limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            "Alert" => {
                sqlx::query_scalar!(
                    "select seq from records where shard = $1 and seq > $2 and seq <= $3 and threshold is not null
                     order by seq limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            "DeadLettered" => {
                sqlx::query_scalar!(
                    "select n from dead_letters where shard = $1 and n > $2 and n <= $3 order by n limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            _ => {
                sqlx::query_scalar!(
                    "select n from conflicts where shard = $1 and n > $2 and n <= $3 order by n limit $4",
                    shard,
                    after,
                    until,
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
    pub async fn logged_records(&mut self, shard: u16, numbers: &[i64]) -> Result<Vec<LoggedRecord>, Error> {
        let rows = sqlx::query!(
            r#"select seq, received_at, processed_at, time, previous_count, positive, record_id, source_id, destination_id,
                 reference, unit, value::text as "value!", previous_total::text as "previous_total!",
                 threshold::text as threshold, attributes, traceparent
             from records where shard = $1 and seq = any($2) order by seq"#,
            i32::from(shard),
            numbers
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(LoggedRecord {
                    seq: row.seq,
                    record: Record {
                        record_id: Text::stored(row.record_id),
                        time: row.time,
                        source_id: Text::stored(row.source_id),
                        destination_id: Text::stored(row.destination_id),
                        kind: if row.positive { Kind::Positive } else { Kind::Negative },
                        value: Amount::stored(numeric(&row.value)?),
                        unit: Text::stored(row.unit),
                        reference: Text::stored(row.reference),
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
        kind: &str,
        shard: u16,
        numbers: &[i64],
    ) -> Result<Vec<(i64, DateTime<Utc>, Option<String>)>, Error> {
        let rows = sqlx::query!(
            r#"select n as "n!", at as "at!", traceparent
               from (
                   select 'DeadLettered' as kind, shard, n, opened_at as at, traceparent from dead_letters
                   union all select 'Conflicted', shard, n, noted_at, traceparent from conflicts
               ) refused
               where kind = $1 and shard = $2 and n = any($3) order by n"#,
            kind,
            i32::from(shard),
            numbers
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(rows.into_iter().map(|row| (row.n, row.at, row.traceparent)).collect())
    }
}
