//! `GET /audit` and `/audit/summary`: what happened, derived from what is stored.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{Enum, Object, OpenApi, param::Query, types::Example};
use serde::Serialize;

use super::{
    Tags,
    answer::{Answer, Page, Paging, in_order},
    types::{Time, Word},
};
use crate::{
    http::{App, auth::Reader, problem::Failure},
    store::{AuditFilter, AuditPlace, Fact},
};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Action {
    /// An entry was received.
    Received,
    /// It was queued.
    Queued,
    /// It became a processed record.
    Processed,
    /// It was a duplicate: its id was taken by the same content.
    Dropped,
    /// Its id was taken by other content.
    Conflict,
    /// The record's value was above the threshold.
    Alerted,
    /// It could not be applied.
    DeadLettered,
    /// A dead letter was decided again.
    Replayed,
    /// A dead letter was given up.
    Discarded,
    /// An administrator changed something else.
    Admin,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Received => "RECEIVED",
            Self::Queued => "QUEUED",
            Self::Processed => "PROCESSED",
            Self::Dropped => "DROPPED",
            Self::Conflict => "CONFLICT",
            Self::Alerted => "ALERTED",
            Self::DeadLettered => "DEAD_LETTERED",
            Self::Replayed => "REPLAYED",
            Self::Discarded => "DISCARDED",
            Self::Admin => "ADMIN",
        }
    }
}

/// Something that happened.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none, example)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuditFact {
    /// One of the actions that can be filtered by; readers ignore those they do not know.
    pub action: String,
    /// When.
    pub time: Time,
    /// Of which record, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_id: Option<String>,
    /// Of which destination, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_id: Option<String>,
    /// By which worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Example for AuditFact {
    fn example() -> Self {
        Self {
            action: Action::Processed.as_str().to_owned(),
            time: Time::example(),
            record_id: Some("order-1001".to_owned()),
            destination_id: Some("account-42".to_owned()),
            worker: Some("worker-0".to_owned()),
            actor: None,
            reason: None,
        }
    }
}

impl From<Fact> for AuditFact {
    fn from(fact: Fact) -> Self {
        let Fact { action, time, record_id, destination_id, worker, actor, reason, .. } = fact;
        Self { action, time: Time(time), record_id, destination_id, worker, actor, reason }
    }
}

/// How often each action was taken on a destination.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct DestinationCounts {
    /// The destination.
    pub destination_id: String,
    /// Action → how often.
    pub actions: BTreeMap<String, i64>,
}

/// How often each action was taken by a worker.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkerCounts {
    /// The worker.
    pub worker: String,
    /// Action → how often.
    pub actions: BTreeMap<String, i64>,
}

/// The audit trail, counted.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuditSummary {
    /// Action → how often, over all destinations and workers.
    pub actions: BTreeMap<String, i64>,
    /// Per worker, ordered by its name.
    pub workers: Vec<WorkerCounts>,
    /// Per destination, ordered by destinationId: one page.
    pub destinations: Vec<DestinationCounts>,
    /// Ask again with `cursor` set to this, and the same filters, for more destinations; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// The audit trail.
#[derive(Debug, Clone, Default)]
pub struct AuditApi;

/// Of the last fact seen: applied, shard, kind, n, step.
pub(super) type Place = (Time, i32, i32, i64, i32);

#[OpenApi(tag = "Tags::Audit")]
impl AuditApi {
    /// List what happened
    ///
    /// Ordered by when the record (or duplicate, conflict, dead letter) that a fact belongs to was applied, so that the
    /// facts of one stand together; `startTime` and `endTime` are of the facts themselves. Workers apply side by side:
    /// what was applied within the last second may still be joined by facts that belong before it.
    #[oai(path = "/audit", method = "get", operation_id = "listAuditFacts")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        _reader: Reader,
        /// Only this action; may be repeated for any of several.
        #[oai(default)]
        action: Query<Vec<Action>>,
        /// Only this id.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only what happened at or after this.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only what happened before this.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Most items of the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<AuditFact>>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = filter(action.0, record_id.0, destination_id.0, start_time.0, end_time.0);
        let paging = Paging::<Place>::new("/audit", &filter, cursor.0, limit.0)?;
        let after = paging.after.map_or(BEGINNING, |(applied, shard, kind, n, step)| AuditPlace {
            applied: applied.0,
            shard,
            kind,
            n,
            step,
        });
        let rows = app.store.list_facts(&filter, after, paging.rows()).await?;
        let place = |fact: &Fact| (Time(fact.applied), fact.shard, fact.kind, fact.n, fact.step);
        Ok(Answer(paging.page(rows, place, AuditFact::from)))
    }

    /// Count what happened
    ///
    /// Per action, per worker and per destination; destinations come in pages.
    #[oai(path = "/audit/summary", method = "get", operation_id = "summarizeAudit")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn summary(
        &self,
        app: Data<&App>,
        _reader: Reader,
        /// Only this action; may be repeated for any of several.
        #[oai(default)]
        action: Query<Vec<Action>>,
        /// Only this id.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only what happened at or after this.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only what happened before this.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Most destinations of the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<AuditSummary>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = filter(action.0, record_id.0, destination_id.0, start_time.0, end_time.0);
        let paging = Paging::<Word>::new("/audit/summary", &filter, cursor.0, limit.0)?;
        let totals = app.store.audit_totals(&filter).await?;
        let mut actions = BTreeMap::new();
        let mut workers: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
        for total in totals {
            *actions.entry(total.action.clone()).or_default() += total.count;
            if let Some(worker) = total.worker {
                workers.entry(worker).or_default().insert(total.action, total.count);
            }
        }
        let after = paging.after.as_ref().map_or("", |Word(destination)| destination);
        let rows = app.store.audit_destinations(&filter, after, paging.rows()).await?;
        let mut destinations: Vec<DestinationCounts> = Vec::new();
        for row in rows {
            if destinations.last().is_none_or(|last| last.destination_id != row.destination_id) {
                let destination_id = row.destination_id;
                destinations.push(DestinationCounts { destination_id, actions: BTreeMap::new() });
            }
            if let Some(last) = destinations.last_mut() {
                last.actions.insert(row.action, row.count);
            }
        }
        let page = paging.page(destinations, |row| Word(row.destination_id.clone()), |row| row);
        Ok(Answer(AuditSummary {
            actions,
            workers: workers.into_iter().map(|(worker, actions)| WorkerCounts { worker, actions }).collect(),
            destinations: page.items,
            next_cursor: page.next_cursor,
        }))
    }
}

/// Before anything that can be stored.
const BEGINNING: AuditPlace = AuditPlace { applied: DateTime::<Utc>::UNIX_EPOCH, shard: -1, kind: 0, n: 0, step: 0 };

fn filter(
    action: Vec<Action>,
    record_id: Option<Word>,
    destination_id: Option<Word>,
    start: Option<Time>,
    end: Option<Time>,
) -> AuditFilter {
    let mut actions: Vec<String> = action.into_iter().map(|action| action.as_str().to_owned()).collect();
    actions.sort();
    actions.dedup();
    AuditFilter {
        actions: (!actions.is_empty()).then_some(actions),
        record_id: record_id.map(|id| id.0),
        destination_id: destination_id.map(|id| id.0),
        start: start.map(|time| time.0),
        end: end.map(|time| time.0),
    }
}
