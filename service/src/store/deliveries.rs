//! Deliveries of webhooks that did not succeed: listed, and retried by request.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Actor, Error, Store, webhooks::attempts};
use crate::domain::{Attempt, DeliveryState, OutcomeKind, Seq, ShardId};

/// Deliveries that a query reads: those that match all given parts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DeliveryFilter {
    /// Their sink.
    pub sink: Option<String>,
    /// Their destination.
    pub destination_id: Option<String>,
    /// Their state.
    pub state: Option<DeliveryState>,
    /// Their first attempt failed at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Their first attempt failed before this.
    pub end: Option<DateTime<Utc>>,
}

/// The place of a delivery in the order of lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryPlace {
    /// The sink.
    #[serde(deserialize_with = "sink_name")]
    pub sink: String,
    /// The shard.
    pub shard: ShardId,
    /// The number of the outcome.
    pub seq: Seq,
}

/// For cursors, which a client can make up: refuses names that Postgres cannot compare.
fn sink_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_name = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name { Ok(name) } else { Err(serde::de::Error::custom("is no name of a sink")) }
}

/// A delivery that did not succeed.
#[derive(Debug, Clone)]
pub struct StoredDelivery {
    /// Its place.
    pub place: DeliveryPlace,
    /// The kind of the outcome.
    pub kind: OutcomeKind,
    /// Its destination; empty: none is known.
    pub destination_id: String,
    /// Its state.
    pub state: DeliveryState,
    /// Whether a retry was asked for that was not made yet.
    pub requested: bool,
    /// Number of attempts.
    pub attempts: i32,
    /// When the first one failed.
    pub first_attempt_at: DateTime<Utc>,
    /// When the next one is due.
    pub next_attempt_at: DateTime<Utc>,
    /// When its retries ended.
    pub failed_at: Option<DateTime<Utc>>,
    /// The last attempts.
    pub log: Vec<Attempt>,
}

impl Store {
    /// Deliveries behind `after` by (sink, shard, number).
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_deliveries(
        &self,
        filter: &DeliveryFilter,
        after: &DeliveryPlace,
        limit: i64,
    ) -> Result<Vec<StoredDelivery>, Error> {
        let rows = sqlx::query!(
            r#"select d.sink, d.shard as "shard: ShardId", d.n as "seq: Seq", s.kind as "kind: OutcomeKind",
                      d.destination_id, d.state as "state: DeliveryState", d.requested, d.attempts, d.first_attempt_at,
                      d.next_attempt_at, d.failed_at, d.log
               from deliveries d join sinks s on s.name = d.sink
               where (d.sink, d.shard, d.n) > ($1, $2, $3) and not s.removed
                 and ($4::text is null or d.sink = $4) and ($5::text is null or d.destination_id = $5)
                 and ($6::text is null or d.state = $6)
                 and ($7::timestamptz is null or d.first_attempt_at >= $7)
                 and ($8::timestamptz is null or d.first_attempt_at < $8)
               order by d.sink, d.shard, d.n limit $9"#,
            after.sink,
            after.shard as ShardId,
            after.seq as Seq,
            filter.sink,
            filter.destination_id,
            filter.state as Option<DeliveryState>,
            filter.start,
            filter.end,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| StoredDelivery {
            place: DeliveryPlace { sink: row.sink, shard: row.shard, seq: row.seq },
            kind: row.kind,
            destination_id: row.destination_id,
            state: row.state,
            requested: row.requested,
            attempts: row.attempts,
            first_attempt_at: row.first_attempt_at,
            next_attempt_at: row.next_attempt_at,
            failed_at: row.failed_at,
            log: attempts(&row.log),
        });
        Ok(rows.collect())
    }

    /// Number of deliveries that match a filter.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn count_deliveries(&self, filter: &DeliveryFilter) -> Result<i64, Error> {
        Ok(sqlx::query_scalar!(
            r#"select count(*) as "count!" from deliveries d join sinks s on s.name = d.sink
               where not s.removed and ($1::text is null or d.sink = $1) and ($2::text is null or d.destination_id = $2)
                 and ($3::text is null or d.state = $3)
                 and ($4::timestamptz is null or d.first_attempt_at >= $4)
                 and ($5::timestamptz is null or d.first_attempt_at < $5)"#,
            filter.sink,
            filter.destination_id,
            filter.state as Option<DeliveryState>,
            filter.start,
            filter.end,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// The sinks that did not deliver an outcome of a destination although their cursor is above it, with its state: it waits,
    /// by itself or behind an earlier one, or it failed.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn undelivered(
        &self,
        shard: ShardId,
        seq: Seq,
        destination: &str,
    ) -> Result<Vec<(String, DeliveryState)>, Error> {
        let rows = sqlx::query!(
            r#"select sink, state as "state: DeliveryState" from deliveries
               where shard = $1 and destination_id = $3
                 and (n = $2 or ordered and state = 'waiting' and n < $2)
               order by state"#,
            shard as ShardId,
            seq as Seq,
            destination,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.sink, row.state)).collect())
    }

    /// Asks for a retry of deliveries. Adds the action to the audit trail. Returns the number of those that exist.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn request_deliveries(&self, places: &[DeliveryPlace], actor: &Actor) -> Result<u64, Error> {
        let sinks: Vec<&str> = places.iter().map(|place| place.sink.as_str()).collect();
        let shards: Vec<ShardId> = places.iter().map(|place| place.shard).collect();
        let numbers: Vec<Seq> = places.iter().map(|place| place.seq).collect();
        let requested = sqlx::query_scalar!(
            r#"with requested as (
                   update deliveries set requested = true
                   where (sink, shard, n) in (select * from unnest($1::text[], $2::int[], $3::bigint[])) returning sink
               ), noted as (
                   insert into admin_actions (actor, action, reason, actor_id, address)
                   select $4, 'deliveries.retry', count(*) || ' of sink ' || sink, $5, $6 from requested group by sink
               )
               select count(*) as "count!" from requested"#,
            &sinks as &[&str],
            &shards as &[ShardId],
            &numbers as &[Seq],
            &actor.name,
            actor.key_id.as_deref(),
            actor.address_column(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(requested.unsigned_abs())
    }
}
