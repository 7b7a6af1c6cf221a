//! `/deliveries`: list the deliveries of webhooks that did not succeed, and retry them.
//!
//! A retry is only asked for here: the publisher of the shard makes it, with the same id.

use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
};
use serde::Serialize;

use super::{
    Tags,
    answer::{Answer, Page, Paging, in_order},
    types::{Time, Word},
};
use crate::{
    domain::{Attempt, DeliveryId, DeliveryState},
    http::{
        App,
        auth::{Administrator, ReaderOfAll},
        problem::Failure,
    },
    store::{DeliveryFilter, DeliveryPlace, StoredDelivery},
};

/// The state of a delivery that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename = "DeliveryState", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// It is retried.
    Waiting,
    /// Its retries ended.
    Failed,
}

impl From<State> for DeliveryState {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Failed => Self::Failed,
        }
    }
}

/// One request of a delivery.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeliveryAttempt {
    /// When it ended.
    pub at: Time,
    /// From the request to the head of the answer, in milliseconds.
    pub latency_ms: u64,
    /// The status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<Attempt> for DeliveryAttempt {
    fn from(attempt: Attempt) -> Self {
        let Attempt { at, latency_ms, status, error } = attempt;
        Self { at: Time(at), latency_ms, status, error }
    }
}

/// A delivery that did not succeed.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct Delivery {
    /// `<sink>.<id of the notification>`.
    pub id: String,
    /// The sink.
    pub sink: String,
    /// The destination; absent: none is known. With an order, its later deliveries wait for this one while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_id: Option<String>,
    /// Its state.
    pub state: State,
    /// Number of attempts.
    pub attempts: i32,
    /// When the first one failed.
    pub first_attempt_at: Time,
    /// When the next one is due; absent when its retries ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Time>,
    /// When its retries ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Time>,
    /// Whether a retry was asked for that was not made yet.
    pub requested: bool,
    /// The last ten attempts, oldest first.
    pub last_attempts: Vec<DeliveryAttempt>,
}

impl From<StoredDelivery> for Delivery {
    fn from(stored: StoredDelivery) -> Self {
        let id = id_of(&stored).to_string();
        let is_waiting = stored.state == DeliveryState::Waiting;
        Self {
            id,
            sink: stored.place.sink,
            destination_id: Some(stored.destination_id).filter(|destination| !destination.is_empty()),
            state: if is_waiting { State::Waiting } else { State::Failed },
            attempts: stored.attempts,
            first_attempt_at: Time(stored.first_attempt_at),
            next_attempt_at: is_waiting.then_some(Time(stored.next_attempt_at)),
            failed_at: stored.failed_at.map(Time),
            requested: stored.requested,
            last_attempts: stored.log.into_iter().map(DeliveryAttempt::from).collect(),
        }
    }
}

/// The action that was requested for one delivery.
#[derive(Debug, Object, Serialize)]
pub(super) struct DeliveryAction {
    /// The delivery.
    pub id: String,
    /// `requested`: the publisher of its shard makes the retry within seconds.
    pub status: String,
}

/// The deliveries that were requested again, or with `dryRun` would be.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct RetryResult {
    /// Whether this was a dry run.
    pub dry_run: bool,
    /// Deliveries that match the filters.
    pub matching: i64,
    /// Number of retries that this request asked for.
    pub requested: u64,
    /// Ids of the deliveries whose retry was asked for, or with `dryRun` would be.
    pub ids: Vec<String>,
    /// Send it as `cursor`, with the same filters, for the next deliveries; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Deliveries of webhooks.
#[derive(Debug, Clone, Default)]
pub struct DeliveriesApi;

#[OpenApi(tag = "Tags::Deliveries")]
impl DeliveriesApi {
    /// List deliveries of webhooks that did not succeed
    ///
    /// Those that wait for a retry, and those whose retries ended. Ordered by (sink, shard, number). With an order, a
    /// destination has one delivery that waits; its later ones are not listed.
    #[oai(path = "/deliveries", method = "get", operation_id = "listDeliveries")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        _reader: ReaderOfAll,
        /// Only deliveries of this sink.
        sink: Query<Option<Word>>,
        /// Only deliveries of this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only deliveries in this state; absent: all.
        state: Query<Option<State>>,
        /// Only deliveries whose first attempt failed at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only deliveries whose first attempt failed before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<Delivery>>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = filter(sink.0, destination_id.0, state.0, start_time.0, end_time.0);
        let paging = Paging::<DeliveryPlace>::new("/deliveries", &filter, cursor.0, limit.0)?;
        let after = paging.after.clone().unwrap_or_default();
        let rows = app.store.list_deliveries(&filter, &after, paging.rows()).await?;
        Ok(Answer(paging.page(rows, |row| row.place.clone(), Delivery::from)))
    }

    /// Retry a delivery
    ///
    /// The publisher of its shard delivers it again within seconds, with the same id: at once, whenever it would be due.
    /// Once it succeeds it is no longer listed.
    #[oai(path = "/deliveries/:id/retry", method = "post", operation_id = "retryDelivery")]
    async fn retry(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `<sink>.<id of the notification>`.
        id: Path<String>,
    ) -> Result<Answer<DeliveryAction, 202>, Failure> {
        let none = || {
            let detail =
                "there is no delivery of this id that did not succeed; ids are <sink>.<id of the notification>";
            Failure::new(404, "not_found", detail)
        };
        let DeliveryId { sink, shard, seq, kind } = id.0.parse().map_err(|()| none())?;
        let place = DeliveryPlace { sink, shard, seq };
        let is_of_sink =
            app.manifest.borrow().manifest.spec.sinks.iter().any(|declared| {
                declared.name == place.sink && crate::domain::OutcomeKind::from(declared.event) == kind
            });
        if !is_of_sink || app.store.request_deliveries(std::slice::from_ref(&place), &caller.0).await? == 0 {
            return Err(none());
        }
        let (id, actor) = (id.0, &caller.0.name);
        tracing::info!(event = "query.delivery.requested", delivery = id, %actor, "a retry of a delivery was requested");
        Ok(Answer(DeliveryAction { id, status: "requested".to_owned() }))
    }

    /// Retry deliveries by filter
    ///
    /// Asks for a retry of the matching deliveries, at most `limit`, in the order of the list. `nextCursor` continues after
    /// them. With `dryRun=true` it asks for nothing and only returns the deliveries that it would retry.
    #[oai(path = "/deliveries/retry", method = "post", operation_id = "retryDeliveries")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn retry_matching(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `true`: only return the deliveries that would be retried.
        #[oai(name = "dryRun", default)]
        dry_run: Query<bool>,
        /// Only deliveries of this sink.
        sink: Query<Option<Word>>,
        /// Only deliveries of this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only deliveries in this state; absent: all.
        state: Query<Option<State>>,
        /// Only deliveries whose first attempt failed at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only deliveries whose first attempt failed before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of deliveries for this request.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::max_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous request, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<RetryResult, 202>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = filter(sink.0, destination_id.0, state.0, start_time.0, end_time.0);
        let paging = Paging::<DeliveryPlace>::new("/deliveries/retry", &filter, cursor.0, limit.0)?;
        let matching = app.store.count_deliveries(&filter).await?;
        let after = paging.after.clone().unwrap_or_default();
        let mut rows = app.store.list_deliveries(&filter, &after, paging.rows()).await?;
        let more = rows.len() > paging.limit();
        rows.truncate(paging.limit());
        let next_cursor = rows.last().filter(|_| more).and_then(|last| paging.cursor(&last.place));
        let (ids, places): (Vec<String>, Vec<DeliveryPlace>) =
            rows.into_iter().map(|row| (id_of(&row).to_string(), row.place)).unzip();
        let requested = if dry_run.0 { 0 } else { app.store.request_deliveries(&places, &caller.0).await? };
        if requested > 0 {
            let actor = &caller.0.name;
            tracing::info!(event = "query.delivery.requested", requested, %actor, "retries of deliveries were requested");
        }
        Ok(Answer(RetryResult { dry_run: dry_run.0, matching, requested, ids, next_cursor }))
    }
}

fn filter(
    sink: Option<Word>,
    destination_id: Option<Word>,
    state: Option<State>,
    start: Option<Time>,
    end: Option<Time>,
) -> DeliveryFilter {
    DeliveryFilter {
        sink: sink.map(|sink| sink.0.as_str().to_owned()),
        destination_id: destination_id.map(|id| id.0.as_str().to_owned()),
        state: state.map(DeliveryState::from),
        start: start.map(|time| time.0),
        end: end.map(|time| time.0),
    }
}

fn id_of(stored: &StoredDelivery) -> DeliveryId {
    let DeliveryPlace { sink, shard, seq } = stored.place.clone();
    DeliveryId { sink, shard, seq, kind: stored.kind }
}
