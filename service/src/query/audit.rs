//! `GET /audit`: the audit trail, derived from stored rows.

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
    domain::AccessLimit,
    http::{App, auth::Reader, problem::Failure},
    store::{AuditFilter, AuditPlace, Fact},
};

/// The kind of an audit fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Action {
    /// An entry was received.
    Received,
    /// The entry was appended to the input stream.
    Queued,
    /// The entry became a processed record.
    Processed,
    /// The entry was a duplicate: the same content had its id.
    Dropped,
    /// The entry was a conflict: other content had its id.
    Conflict,
    /// The record's value was above the threshold.
    Alerted,
    /// The entry could not be applied.
    DeadLettered,
    /// A replay closed a dead letter.
    Replayed,
    /// An administrator discarded a dead letter.
    Discarded,
    /// An administrator acted: a replay, a discard, a change of keys, an acknowledged loss, a resumed sink.
    Admin,
}

impl Action {
    pub(super) fn as_str(self) -> &'static str {
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

/// One step of a record's processing, or one action of an administrator.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none, example)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuditFact {
    /// One of the actions that the filter accepts; readers ignore actions that they do not support.
    pub action: String,
    /// When it happened.
    pub time: Time,
    /// The record, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_id: Option<String>,
    /// The destination, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_id: Option<String>,
    /// The worker that did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The name of the API key, or the user of the command, that did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The id of that API key; only of `ADMIN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
    /// The address of the client that did it; only of `ADMIN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The reason.
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
            actor_id: None,
            address: None,
            reason: None,
        }
    }
}

impl From<Fact> for AuditFact {
    fn from(fact: Fact) -> Self {
        let Fact { action, time, record_id, destination_id, worker, actor, actor_id, address, reason, .. } = fact;
        Self { action, time: Time(time), record_id, destination_id, worker, actor, actor_id, address, reason }
    }
}

/// The audit trail.
#[derive(Debug, Clone, Default)]
pub struct AuditApi;

/// The position of a fact in the list: applied, shard, kind, n, step.
pub(super) type Place = (Time, i32, i32, i64, i32);

#[OpenApi(tag = "Tags::Audit")]
impl AuditApi {
    /// List what happened
    ///
    /// Ordered by the time at which the record (or duplicate, conflict, dead letter) of a fact was applied, so that all
    /// facts of one are adjacent. `startTime` and `endTime` filter by the time of the fact itself. Workers apply
    /// concurrently: for about a second, new facts can still appear before facts that are already listed.
    #[oai(path = "/audit", method = "get", operation_id = "listAuditFacts")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        reader: Reader,
        /// Only this action; repeat it for several.
        #[oai(default)]
        action: Query<Vec<Action>>,
        /// Only facts of this record.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only facts of this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only facts at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only facts before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<AuditFact>>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = AuditFilter {
            limit: reader.0.limit().clone(),
            ..filter(action.0, record_id.0, destination_id.0, start_time.0, end_time.0)
        };
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
        let page = paging.page(rows, place, AuditFact::from);
        Ok(Answer(page.kept_since(app.store.kept_since().await?.facts(), start_time.0.map(|time| time.0))))
    }
}

/// A position before every fact.
const BEGINNING: AuditPlace = AuditPlace { applied: DateTime::<Utc>::UNIX_EPOCH, shard: -1, kind: 0, n: 0, step: 0 };

pub(super) fn filter(
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
        record_id: record_id.map(|id| id.0.to_string()),
        destination_id: destination_id.map(|id| id.0.to_string()),
        start: start.map(|time| time.0),
        end: end.map(|time| time.0),
        limit: AccessLimit::default(),
    }
}
