//! The audit trail: facts derived from stored rows. Only the actions of administrators have a table of their own.
//!
//! An entry has the facts `RECEIVED` and `QUEUED` once: the result of a replayed dead letter does not repeat them.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    Error, Store,
    filter::{LimitArguments, is_unlimited},
    slow::Watch,
};
use crate::domain::{AccessLimit, Seq, ShardId, ShardSeq};

/// A fact of the audit trail. It is derived from a *source* row.
#[derive(Debug, Clone)]
pub struct Fact {
    /// When the source was applied, the first key of the order of the trail.
    pub applied: DateTime<Utc>,
    /// The shard of the source; -1 if it has none.
    pub shard: i32,
    /// The kind of the source: 1 record, 2 duplicate, 3 conflict, 4 opened dead letter, 5 closed one, 6 administrator's
    /// action.
    pub kind: i32,
    /// The number of the source.
    pub n: i64,
    /// The position among the facts of the source.
    pub step: i32,
    /// Such as `PROCESSED`.
    pub action: String,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// The record's id, if known.
    pub record_id: Option<String>,
    /// The record's destination, if known.
    pub destination_id: Option<String>,
    /// The worker that applied it.
    pub worker: Option<String>,
    /// The administrator that did it.
    pub actor: Option<String>,
    /// The id of the administrator's API key.
    pub actor_id: Option<String>,
    /// The address of the administrator's client.
    pub address: Option<String>,
    /// The reason.
    pub reason: Option<String>,
}

/// Filters of facts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AuditFilter {
    /// Any of these actions; `None`: all.
    pub actions: Option<Vec<String>>,
    /// Facts of this record.
    pub record_id: Option<String>,
    /// Facts of this destination.
    pub destination_id: Option<String>,
    /// Happened at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Happened before this.
    pub end: Option<DateTime<Utc>>,
    /// What the caller may reach: facts of other records, and of none, are left out.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub limit: AccessLimit,
}

/// A position in the trail: (applied, shard, kind, n, step) of a fact, as in [`Fact`].
#[derive(Debug, Clone, Copy)]
pub struct AuditPlace {
    /// When the source was applied.
    pub applied: DateTime<Utc>,
    /// The shard of the source.
    pub shard: i32,
    /// The kind of the source.
    pub kind: i32,
    /// The number of the source.
    pub n: i64,
    /// The position among the facts of the source.
    pub step: i32,
}

/// The count of an action by one worker, or by no worker.
#[derive(Debug, Clone)]
pub struct AuditTotals {
    /// Such as `PROCESSED`.
    pub action: String,
    /// The worker; `None` if no worker did it.
    pub worker: Option<String>,
    /// The count.
    pub count: i64,
}

/// The count of an action for a destination.
#[derive(Debug, Clone)]
pub struct DestinationFacts {
    /// The destination.
    pub destination_id: String,
    /// Such as `PROCESSED`.
    pub action: String,
    /// The count.
    pub count: i64,
}

impl Store {
    /// Facts after a position, by (applied, shard, kind, n, step), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_facts(&self, filter: &AuditFilter, after: AuditPlace, limit: i64) -> Result<Vec<Fact>, Error> {
        let place = self.place_of(filter).await?;
        let access = LimitArguments::from(&filter.limit);
        let _watch = Watch::start("audit.list");
        let facts = sqlx::query_file_as!(
            Fact,
            "src/store/audit/list_facts.sql",
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
            limit,
            place.map(|place| place.shard) as Option<ShardId>,
            place.map(|place| place.seq) as Option<Seq>,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(facts)
    }

    /// The record that the filter names, by the id ledger; `records` has no index of ids.
    pub(super) async fn place_of(&self, filter: &AuditFilter) -> Result<Option<ShardSeq>, Error> {
        let Some(record_id) = &filter.record_id else { return Ok(None) };
        let place = sqlx::query_as!(
            ShardSeq,
            r#"select shard as "shard: ShardId", number as "seq: Seq" from record_ids
               where record_id = $1 and period is not null"#,
            record_id
        );
        Ok(place.fetch_optional(&self.pool).await?)
    }
}
