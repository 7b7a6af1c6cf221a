//! Pages of a shard's log, of its refused outcomes, and of the stored totals.

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use rust_decimal::Decimal;

use super::{Scope, Verification};
use crate::{
    domain::{
        Amount, Attributes, DestinationId, Kind, OutcomeKind, Record, RecordId, Reference, Seq, SeqRange, ShardId,
        SourceId, Unit,
    },
    store::{Error, periods::Periods, pool::numeric},
};

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
    /// The alerts of totals that it raised, as they are stored.
    pub total_alerts: Option<String>,
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

/// A policy version.
#[derive(Debug, Clone)]
pub struct StoredPolicy {
    /// The version.
    pub version: i64,
    /// Its spec, as JSON.
    pub spec: String,
}

/// The first record of a policy version in a shard.
#[derive(Debug, Clone, Copy)]
pub struct PolicyStart {
    /// The shard.
    pub shard: ShardId,
    /// The number of that record.
    pub from: Seq,
    /// The version.
    pub version: i64,
}

/// A stored total of a key and unit. Sums are in billionths; absent where the column holds no multiple of one.
#[derive(Debug, Clone)]
pub struct StoredTotal {
    /// The shard.
    pub shard: i32,
    /// The key and unit.
    pub destination_id: String,
    /// The key and unit.
    pub reference: String,
    /// The key and unit.
    pub unit: String,
    /// Number of positive records.
    pub positive_count: i64,
    /// Number of negative records.
    pub negative_count: i64,
    /// Number of records that raised an alert.
    pub alerts: i64,
    /// The numbers of its first and of its last record.
    pub first: Seq,
    /// The numbers of its first and of its last record.
    pub last: Seq,
    /// Sum of the positive records.
    pub positive_sum: Option<i128>,
    /// Sum of the negative records, without sign.
    pub negative_sum: Option<i128>,
}

impl Verification {
    /// The records of a range of a shard's log, in order.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn log_page(&mut self, shard: ShardId, range: SeqRange) -> Result<Vec<LoggedRecord>, Error> {
        let periods = Periods::of(&mut *self.snapshot, shard, range).await?;
        let rows = sqlx::query!(
            r#"select seq as "seq: Seq", received_at, processed_at, time, previous_count, positive, record_id, source_id, destination_id,
                 reference, unit, value::text as "value!", previous_total::text as "previous_total!",
                 threshold::text as threshold, total_alerts, attributes, traceparent, reverses as "reverses: RecordId"
             from records where shard = $1 and seq > $2 and seq <= $3
                 and period >= coalesce($4::date, '-infinity') and period <= coalesce($5::date, 'infinity')
             order by seq"#,
            shard as ShardId,
            range.after as Seq,
            range.upto as Seq,
            periods.first,
            periods.last,
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
                        reverses: row.reverses,
                    },
                    received_at: row.received_at,
                    processed_at: row.processed_at,
                    previous_count: row.previous_count,
                    previous_total: numeric(&row.previous_total)?,
                    threshold: row.threshold.as_deref().map(numeric).transpose()?,
                    total_alerts: row.total_alerts,
                    traceparent: row.traceparent,
                })
            })
            .collect()
    }

    /// The dead letters or conflicts of a range, in order, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn refused_page(
        &mut self,
        kind: OutcomeKind,
        shard: ShardId,
        SeqRange { after, upto }: SeqRange,
        limit: i64,
    ) -> Result<Vec<RefusedOutcome>, Error> {
        let snapshot = &mut *self.snapshot;
        let refused = if kind == OutcomeKind::DeadLettered {
            sqlx::query_as!(
                RefusedOutcome,
                r#"select n as "seq: Seq", opened_at as noted_at, traceparent from dead_letters
                   where shard = $1 and n > $2 and n <= $3 order by n limit $4"#,
                shard as ShardId,
                after as Seq,
                upto as Seq,
                limit
            )
            .fetch_all(snapshot)
            .await?
        } else {
            sqlx::query_as!(
                RefusedOutcome,
                r#"select n as "seq: Seq", noted_at, traceparent from conflicts
                   where shard = $1 and n > $2 and n <= $3 order by n limit $4"#,
                shard as ShardId,
                after as Seq,
                upto as Seq,
                limit
            )
            .fetch_all(snapshot)
            .await?
        };
        Ok(refused)
    }

    /// Every policy version.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn stored_policies(&mut self) -> Result<Vec<StoredPolicy>, Error> {
        let policies =
            sqlx::query_as!(StoredPolicy, "select version, spec from policies").fetch_all(&mut *self.snapshot).await?;
        Ok(policies)
    }

    /// The first record of each policy version in each shard, in order.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn policy_starts(&mut self) -> Result<Vec<PolicyStart>, Error> {
        let starts = sqlx::query_as!(
            PolicyStart,
            r#"select shard as "shard: ShardId", from_seq as "from: Seq", version from shard_policies
               order by shard, from_seq, version"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(starts)
    }

    /// Passes each stored total on.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn each_total(&mut self, scope: &Scope, mut take: impl FnMut(StoredTotal)) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select shard, destination_id, reference, unit, positive_count, negative_count, alerts,
                      first_seq as "first: Seq", last_seq as "last: Seq",
                      trim_scale(positive_sum * 1000000000)::text as "positive_sum!",
                      trim_scale(negative_sum * 1000000000)::text as "negative_sum!"
               from totals where $1::int[] is null or shard = any($1)"#,
            scope.numbers() as Option<Vec<i32>>
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            take(StoredTotal {
                shard: row.shard,
                destination_id: row.destination_id,
                reference: row.reference,
                unit: row.unit,
                positive_count: row.positive_count,
                negative_count: row.negative_count,
                alerts: row.alerts,
                first: row.first,
                last: row.last,
                positive_sum: row.positive_sum.parse().ok(),
                negative_sum: row.negative_sum.parse().ok(),
            });
        }
        Ok(())
    }
}
