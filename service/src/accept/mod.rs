//! HTTP in → stream: validate, pick the shard, append, answer when Redis has it on disk.
//!
//! Must never write a record to Postgres, and must never answer 202 for what Redis has not confirmed.

mod api;
mod batch;
mod body;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod idempotency;
mod items;
mod reversal;
mod schema;
mod single;
mod wait;

use std::{borrow::Cow, sync::Arc, time::Duration};

pub use api::RecordsApi;
pub(crate) use idempotency::derive as derived_id;

use crate::{
    board::of_postgres,
    domain::{ShardId, StreamPosition},
    http::{
        App,
        problem::Failure,
        rate_limits::{CODE, Limited, RateLimiter},
    },
    lifecycle::Lifecycle,
    store::{self, Error, Store},
    streams::{AppendError, AppendSettings, Outgoing, Producer, SourceTag},
    telemetry::trace,
};

/// How often the counts of appends are noted in Postgres.
const FLUSH: Duration = Duration::from_secs(1);

/// State of accepting beside [`App`]: waiting requests, and the room for large bodies.
#[derive(Debug, Clone, Default)]
pub struct Acceptor(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiters: wait::Waiters,
    room: body::Room,
}

impl Acceptor {
    /// Starts the background tasks of accepting: the poller of outcomes, and the task that notes the counts of appends.
    pub fn spawn(
        &self,
        store: &Store,
        producer: &Producer,
        limiter: &RateLimiter,
        process: &Arc<str>,
        lifecycle: &Lifecycle,
    ) {
        let (this, store_, soft) = (self.clone(), store.clone(), lifecycle.soft.clone());
        let heartbeat = lifecycle.heartbeats.register("serve.outcomes", Duration::from_secs(30));
        lifecycle.spawn("serve.outcomes", async move {
            this.0.waiters.poll(&store_, &soft, &heartbeat).await;
            Ok(())
        });
        let (process, soft) = (Arc::clone(process), lifecycle.soft.clone());
        let (store, producer, board) = (store.clone(), producer.clone(), lifecycle.board.clone());
        let limiter = limiter.clone();
        lifecycle.spawn("serve.appends", async move {
            let mut failing = false;
            loop {
                let flushed = flush(&store, &producer, &process, false).await;
                if let (Err(error), false) = (&flushed, failing) {
                    unflushed(error);
                }
                failing = flushed.is_err();
                store.note_write(flushed.as_ref().err());
                note_processes(&store, &limiter).await;
                let refused = flushed.as_ref().err().filter(|error| error.refuses_write());
                board.set("serve.appends", refused.map(of_postgres));
                if tokio::time::timeout(FLUSH, soft.cancelled()).await.is_ok() {
                    return Ok(());
                }
            }
        });
    }

    /// Notes this process as a producer before the server accepts any request: it may die of the first. Waits for Postgres.
    pub async fn open(&self, store: &Store, producer: &Producer, limiter: &RateLimiter, process: &str) {
        while let Err(error) = flush(store, producer, process, false).await {
            unflushed(&error);
            tokio::time::sleep(FLUSH).await;
        }
        note_processes(store, limiter).await;
    }

    /// Notes the last counts of this process, when the server accepts no request any more.
    pub async fn close(&self, store: &Store, producer: &Producer, process: &str) {
        producer.close().await;
        if let Err(error) = flush(store, producer, process, true).await {
            unflushed(&error);
        }
    }
}

/// Notes all counts, changed or not: the notes show that this process lives, and a rewound Postgres gets them again.
async fn flush(store: &Store, producer: &Producer, process: &str, closed: bool) -> Result<(), Error> {
    store::within(store.note_appends(process, || producer.counts(), closed)).await
}

/// Notes how many processes serve: each has its part of the limits. While Postgres is unavailable, the last number counts.
async fn note_processes(store: &Store, limiter: &RateLimiter) {
    if let Ok(processes) = store::within(store.live_producers()).await {
        limiter.set_processes(processes);
    }
}

fn unflushed(error: &Error) {
    tracing::warn!(event = "accept.counts.unflushed", %error, "the counts of appends cannot be noted in Postgres");
}

/// Whether a source has its share of a shard's backlog already.
async fn is_over_share(app: &App, shard: ShardId, source: SourceTag) -> bool {
    let limit = app.manifest.borrow().manifest.spec.backlog_limit;
    app.producer.is_over_share(shard, limit, app.limiter.processes(), source).await
}

/// Appends records of one shard.
async fn append(app: &App, shard: ShardId, records: Vec<Outgoing>) -> Result<Vec<StreamPosition>, AppendError> {
    let settings = {
        let active_manifest = app.manifest.borrow();
        AppendSettings {
            pipeline_id: Arc::clone(&active_manifest.pipeline_id),
            backlog_limit: active_manifest.manifest.spec.backlog_limit,
        }
    };
    app.producer.append(shard, settings, records).await
}

/// When a record was received. The one place where this process reads its clock: the time is for people to read, nothing
/// is decided by it.
#[expect(clippy::disallowed_methods, reason = "the edge at which a record comes in; nothing is decided by this time")]
fn now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}

/// The trace context that continues with a request's records.
fn traceparent(request: &poem::Request) -> Option<Arc<str>> {
    trace::carry(request.headers().get("traceparent").and_then(|header| header.to_str().ok())).map(Arc::from)
}

/// Code of the refusal of a source that has its share.
const OVER_SHARE: &str = "source_over_share";

/// Why a record is refused that may be taken later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: u16,
    code: &'static str,
    detail: Cow<'static, str>,
    /// Seconds after which it may be taken.
    retry_after: u64,
}

impl Refusal {
    /// The refusal of a source that has its share of a shard's backlog.
    fn over_share() -> Self {
        let detail = "this source has its share of the backlog of this destination's shard; send again later";
        Self { status: 429, code: OVER_SHARE, detail: detail.into(), retry_after: 1 }
    }

    /// Counts records that are refused for it.
    fn count(&self, records: u64) {
        count_rejected(self.code, records);
        if self.code == OVER_SHARE {
            metrics::counter!(crate::telemetry::metrics::OVER_SHARE).increment(records);
        }
    }
}

impl From<&AppendError> for Refusal {
    fn from(error: &AppendError) -> Self {
        let (status, code, detail) = refusal(error);
        Self { status, code, detail: detail.into(), retry_after: 1 }
    }
}

impl From<Limited> for Refusal {
    fn from(limited: Limited) -> Self {
        limited.count();
        Self { status: 429, code: CODE, detail: limited.detail().into(), retry_after: limited.retry_after() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, code, detail, retry_after } = refusal;
        Self::new(status, code, detail).retry_after(retry_after)
    }
}

/// Status, code and sentence of what was not appended.
fn refusal(error: &AppendError) -> (u16, &'static str, &'static str) {
    match error {
        AppendError::Backlog { .. } => {
            (429, "backlog_full", "the backlog of this destination's shard is at its limit; send again later")
        }
        AppendError::Full => (503, "redis_full", "Redis is out of memory; send again later with the same recordId"),
        AppendError::Unavailable(_) => {
            (503, "redis_unavailable", "Redis cannot be reached now; send again with the same recordId")
        }
        AppendError::Unknown(_) => (
            503,
            "outcome_unknown",
            "it may have been taken or not; send again with the same recordId, then it counts once",
        ),
        AppendError::Refused(_) => (
            503,
            "stream_refused",
            "the input stream belongs to another pipeline; the operator of this service has to resolve it",
        ),
        AppendError::Exhausted(_) => (
            503,
            "stream_exhausted",
            "the input stream of this destination's shard has no ids left; the operator of this service has to resolve it",
        ),
    }
}

/// Notes what was refused, by code.
fn count_rejected(code: &str, n: u64) {
    metrics::counter!("millrace_rejected_records_total", "code" => code.to_owned()).increment(n);
}

#[cfg(test)]
mod tests;
