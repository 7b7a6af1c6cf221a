//! The audit trail: facts derived from what is stored anyway; only what administrators did is written on the side.
//!
//! An entry is received and queued once: what a replayed dead letter became does not repeat those facts.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Error, Store};

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Fact {
    /// When what it belongs to was applied: what the trail is ordered by.
    pub applied: DateTime<Utc>,
    /// Its shard; -1 for what belongs to none.
    pub shard: i32,
    /// Of what it was derived: 1 record, 2 duplicate, 3 conflict, 4 dead letter opened, 5 closed, 6 administrator's act.
    pub kind: i32,
    /// The number of that.
    pub n: i64,
    /// Its place among the facts of that.
    pub step: i32,
    /// Such as `PROCESSED`.
    pub action: String,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// The record's id, where known.
    pub record_id: Option<String>,
    /// The record's destination, where known.
    pub destination_id: Option<String>,
    /// The worker that applied it.
    pub worker: Option<String>,
    /// The administrator that did it.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// Which facts are asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AuditFilter {
    /// Any of these actions; `None`: all.
    pub actions: Option<Vec<String>>,
    /// Of this id.
    pub record_id: Option<String>,
    /// Of this destination.
    pub destination_id: Option<String>,
    /// Happened at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Happened before this.
    pub end: Option<DateTime<Utc>>,
}

/// A place in the trail: (applied, shard, kind, n, step) of the last fact seen.
#[derive(Debug, Clone, Copy)]
pub struct AuditPlace {
    /// When it was applied.
    pub applied: DateTime<Utc>,
    /// Its shard.
    pub shard: i32,
    /// Of what it was derived.
    pub kind: i32,
    /// The number of that.
    pub n: i64,
    /// Its place among the facts of that.
    pub step: i32,
}

/// How often an action was taken, by one worker or by none.
#[derive(Debug, Clone)]
pub struct AuditTotals {
    /// Such as `PROCESSED`.
    pub action: String,
    /// The worker; `None`: done by no worker.
    pub worker: Option<String>,
    /// How often.
    pub count: i64,
}

/// How often an action was taken on a destination.
#[derive(Debug, Clone)]
pub struct DestinationFacts {
    /// The destination.
    pub destination_id: String,
    /// Such as `PROCESSED`.
    pub action: String,
    /// How often.
    pub count: i64,
}

impl Store {
    /// Facts behind a place, by (applied, shard, kind, n, step), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_facts(&self, filter: &AuditFilter, after: AuditPlace, limit: i64) -> Result<Vec<Fact>, Error> {
        // Every branch stops by itself at the limit, on the index of its own time; only then are they merged.
        let facts = sqlx::query_as!(
            Fact,
            r#"with facts as (
                (select * from audit_records
                 where applied >= $1 and (applied, shard, 1, n, step) > ($1, $2, $3, $4, $5)
                   and ($6::text[] is null or action = any($6))
                   and ($7::text is null or record_id = $7)
                   and ($8::text is null or destination_id = $8)
                   and ($9::timestamptz is null or time >= $9)
                   and ($10::timestamptz is null or time < $10)
                 order by applied, shard, n, step limit $11)
                union all
                (select * from audit_duplicates
                 where applied >= $1 and (applied, shard, 2, n, step) > ($1, $2, $3, $4, $5)
                   and ($6::text[] is null or action = any($6))
                   and ($7::text is null or record_id = $7)
                   and ($8::text is null or destination_id = $8)
                   and ($9::timestamptz is null or time >= $9)
                   and ($10::timestamptz is null or time < $10)
                 order by applied, shard, n, step limit $11)
                union all
                (select * from audit_conflicts
                 where applied >= $1 and (applied, shard, 3, n, step) > ($1, $2, $3, $4, $5)
                   and ($6::text[] is null or action = any($6))
                   and ($7::text is null or record_id = $7)
                   and ($8::text is null or destination_id = $8)
                   and ($9::timestamptz is null or time >= $9)
                   and ($10::timestamptz is null or time < $10)
                 order by applied, shard, n, step limit $11)
                union all
                (select * from audit_dead_letters
                 where applied >= $1 and (applied, shard, 4, n, step) > ($1, $2, $3, $4, $5)
                   and ($6::text[] is null or action = any($6))
                   and ($7::text is null or record_id = $7)
                   and ($8::text is null or destination_id = $8)
                   and ($9::timestamptz is null or time >= $9)
                   and ($10::timestamptz is null or time < $10)
                 order by applied, shard, n, step limit $11)
                union all
                (select * from audit_closed
                 where applied >= $1 and (applied, shard, 5, n, step) > ($1, $2, $3, $4, $5)
                   and ($6::text[] is null or action = any($6))
                   and ($7::text is null or record_id = $7)
                   and ($8::text is null or destination_id = $8)
                   and ($9::timestamptz is null or time >= $9)
                   and ($10::timestamptz is null or time < $10)
                 order by applied, shard, n, step limit $11)
                union all
                (select * from audit_admin
                 where applied >= $1 and (applied, shard, 6, n, step) > ($1, $2, $3, $4, $5)
                   and ($6::text[] is null or action = any($6))
                   and ($7::text is null or record_id = $7)
                   and ($8::text is null or destination_id = $8)
                   and ($9::timestamptz is null or time >= $9)
                   and ($10::timestamptz is null or time < $10)
                 order by applied, shard, n, step limit $11)
               )
               select f.applied as "applied!", f.shard as "shard!", f.kind as "kind!", f.n as "n!", f.step as "step!",
                      f.action as "action!", f.time as "time!", f.record_id, f.destination_id, e.worker as "worker?",
                      f.actor, f.reason
               from facts f left join epochs e on e.shard = f.shard and e.epoch = f.epoch
               order by f.applied, f.shard, f.kind, f.n, f.step
               limit $11"#,
            after.applied,
            after.shard,
            after.kind,
            after.n,
            after.step,
            filter.actions.as_deref(),
            filter.record_id,
            filter.destination_id,
            filter.start,
            filter.end,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(facts)
    }
}
