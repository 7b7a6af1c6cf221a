//! HTTP in → stream: validate, pick the shard, append, answer when Redis has it on disk.
//!
//! Must never write a record to Postgres, and must never answer 202 for what Redis has not confirmed.

mod api;
mod batch;
mod body;
mod counts;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod idempotency;
mod items;
mod schema;
mod single;
mod wait;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::task::TaskTracker;

pub use api::RecordsApi;
pub(crate) use idempotency::derive as derived_id;

use crate::{
    board::of_postgres,
    domain::{ShardId, StreamId},
    fault,
    http::App,
    lifecycle::Lifecycle,
    store::{self, Store},
    streams::{AppendError, Appended, By, Outgoing, Streams},
    telemetry::trace,
};

/// State of accepting beside [`App`]: counts, waiting requests, and the appends in progress.
#[derive(Debug, Clone, Default)]
pub struct Acceptor(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: counts::Counts,
    waiters: wait::Waiters,
    appends: TaskTracker,
    room: body::Room,
    /// Whether the last append failed for Redis's sake: said once, not for every request.
    failing: AtomicBool,
}

impl Inner {
    /// Notes and says what became of an append of `n` entries.
    fn note(&self, shard: ShardId, n: usize, appended: &Result<Appended, AppendError>) {
        let error = match appended {
            Ok(appended) => {
                self.counts.confirmed(shard, n, appended.count);
                metrics::counter!("millrace_accepted_records_total").increment(n as u64);
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(event = "accept.append.recovered", shard = shard.get(), "appends succeed again");
                }
                return;
            }
            Err(error) => error,
        };
        match error {
            AppendError::Unknown(_) => self.counts.unknown(shard, n),
            _ => self.counts.refused(shard, n),
        }
        if matches!(error, AppendError::Backlog) {
            // The shard's workers are behind: its metrics say so, and every client is told.
            return tracing::debug!(
                event = "accept.append.backlog_full",
                shard = shard.get(),
                entries = n,
                "the shard's backlog is at its limit; appends are refused"
            );
        }
        if self.failing.swap(true, Ordering::Relaxed) {
            tracing::debug!(event = "accept.append.failed", shard = shard.get(), entries = n, %error, "an append failed");
        } else {
            tracing::warn!(event = "accept.append.failed", shard = shard.get(), entries = n, %error, "an append failed");
        }
    }
}

impl Acceptor {
    /// Starts the background tasks of accepting: the poller of outcomes, and the task that stores the counts of appends.
    pub fn spawn(&self, store: &Store, streams: &Streams, process: &Arc<str>, shards: u16, lifecycle: &Lifecycle) {
        let (this, store_, soft) = (self.clone(), store.clone(), lifecycle.soft.clone());
        let heartbeat = lifecycle.heartbeats.register("serve.outcomes", Duration::from_secs(30));
        lifecycle.spawn("serve.outcomes", async move {
            this.0.waiters.poll(&store_, &soft, &heartbeat).await;
            Ok(())
        });
        let (this, process, soft) = (self.clone(), Arc::clone(process), lifecycle.soft.clone());
        let (store, streams, board) = (store.clone(), streams.clone(), lifecycle.board.clone());
        lifecycle.spawn("serve.appends", async move {
            let mut failing = false;
            loop {
                // At once: a process that waits for Redis with its counts would seem dead.
                let (flushed, ()) = tokio::join!(
                    store::within(this.0.counts.flush(&store, &process, shards, false)),
                    this.0.counts.resolve(&streams, &process)
                );
                if let (Err(error), false) = (&flushed, failing) {
                    tracing::warn!(event = "accept.counts.unflushed", %error, "the counts of appends cannot be stored in Postgres");
                }
                failing = flushed.is_err();
                let refused = flushed.as_ref().err().filter(|error| error.refuses_write());
                board.set("serve.appends", refused.map(of_postgres));
                if tokio::time::timeout(counts::FLUSH, soft.cancelled()).await.is_ok() {
                    return Ok(());
                }
            }
        });
    }

    /// The first word of this process on its appends, before the server takes any request: it may die of the first. Waits
    /// for Postgres.
    pub async fn open(&self, store: &Store, process: &str, shards: u16) {
        while let Err(error) = store::within(self.0.counts.flush(store, process, shards, false)).await {
            tracing::warn!(event = "accept.counts.unflushed", %error, "the counts of appends cannot be stored in Postgres");
            tokio::time::sleep(counts::FLUSH).await;
        }
    }

    /// The final count of this process on its appends, once the server takes no request any more.
    pub async fn close(&self, store: &Store, streams: &Streams, process: &str, shards: u16) {
        self.0.appends.close();
        self.0.appends.wait().await;
        self.0.counts.resolve(streams, process).await;
        if let Err(error) = store::within(self.0.counts.flush(store, process, shards, true)).await {
            tracing::warn!(event = "accept.counts.unflushed", %error, "the counts of appends cannot be stored in Postgres");
        }
    }

    /// Appends entries of one shard, and counts them. Runs to its end also when the client has disconnected, so that
    /// the counts stay exact.
    async fn append(&self, app: &App, shard: ShardId, entries: Vec<Outgoing>) -> Result<Vec<StreamId>, AppendError> {
        let (this, streams) = (Arc::clone(&self.0), app.streams.clone());
        let (pipeline_id, limit) = {
            let active_manifest = app.manifest.borrow();
            (Arc::clone(&active_manifest.pipeline_id), active_manifest.manifest.spec.backlog_limit)
        };
        let process = Arc::clone(&app.process);
        let appending = self.0.appends.spawn(async move {
            let (n, began) = (entries.len(), Instant::now());
            let by = By { process: &process, appended: this.counts.begin(shard, n) };
            let appended = streams.append(shard, &pipeline_id, limit, Some(by), &entries).await;
            metrics::histogram!("millrace_append_seconds").record(began.elapsed());
            if appended.is_ok() {
                fault::point("after_xadd");
            }
            this.note(shard, n, &appended);
            appended.map(|appended| appended.ids)
        });
        // A panic in it is a fault of ours, after which nothing is known.
        appending.await.unwrap_or_else(|error| {
            tracing::error!(event = "accept.append.panicked", %error, "an append panicked");
            Err(AppendError::Unknown(std::io::Error::other("the append died").into()))
        })
    }
}

/// When a record was received. The one place where this process's clock is asked: the time is for people to read, nothing
/// is decided by it.
#[expect(clippy::disallowed_methods, reason = "the edge at which a record comes in; nothing is decided by this time")]
fn now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}

/// The trace context that continues with a request's records.
fn traceparent(request: &poem::Request) -> Option<String> {
    trace::carry(request.headers().get("traceparent").and_then(|header| header.to_str().ok()))
}

/// Status, code and sentence of what was not appended.
fn refusal(error: &AppendError) -> (u16, &'static str, &'static str) {
    match error {
        AppendError::Backlog => {
            (429, "backlog_full", "the backlog of this destination's shard is at its limit; send again later")
        }
        AppendError::Full => (503, "redis_full", "Redis is out of memory; send again later with the same recordId"),
        AppendError::Away(_) => {
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
