//! A `serve` process as a producer: requests that come while an append is under way go together in the next one.
//!
//! Must never have two appends of a shard under way: its order would depend on the network, and so would its count.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use redis::{ErrorKind, RedisError};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::{
    AppendError, Streams,
    append::{AppendAs, Appended},
    entry::Outgoing,
    shares::{Shares, runs},
};
use crate::{
    domain::{AppendCount, ShardId, StreamPosition},
    fault,
};

/// Number of bytes after which no further request is added to an append. A larger request goes alone.
const CALL_BYTES: usize = 1 << 20;
/// Longest wait for an answer before requests of other shards are sent.
const ROUND: Duration = Duration::from_millis(3);
/// Longest wait for the counts of Redis.
const RESOLVE: Duration = Duration::from_millis(500);

type Verdict = Result<Vec<StreamPosition>, AppendError>;

/// Appends the records of this process, and counts them.
#[derive(Debug, Clone)]
pub struct Producer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    streams: Streams,
    name: Arc<str>,
    shards: Vec<Mutex<Shard>>,
    /// What sources hold of each shard's backlog.
    shares: Vec<ShardShares>,
    appends: TaskTracker,
    /// Whether a task sends the waiting requests.
    is_led: AtomicBool,
    /// Whether the last append failed: a streak of failures is one warning.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    waiting: VecDeque<Request>,
    is_under_way: bool,
    /// Number of records that were appended, by the answers that this process got.
    appended: i64,
    /// Whether records whose append had no answer may be missing in `appended`.
    is_unresolved: bool,
}

/// What sources hold of a shard's backlog.
#[derive(Debug, Default)]
struct ShardShares {
    /// Number of records that wait in the shard, as of the last answer of Redis.
    backlog: AtomicU64,
    shares: Mutex<Shares>,
}

#[derive(Debug)]
struct Request {
    records: Vec<Outgoing>,
    bytes: usize,
    settings: AppendSettings,
    verdict: oneshot::Sender<Verdict>,
}

/// The settings of a pipeline for its appends.
#[derive(Debug, Clone)]
pub struct AppendSettings {
    /// Id of the pipeline.
    pub pipeline_id: Arc<str>,
    /// Maximum number of records that may wait in a shard.
    pub backlog_limit: u64,
}

impl Producer {
    /// A producer for a number of shards. `name` is unique among all processes, ever.
    #[must_use]
    pub fn new(streams: &Streams, name: &Arc<str>, shards: u16) -> Self {
        Self(Arc::new(Inner {
            streams: streams.clone(),
            name: Arc::clone(name),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shares: (0..shards).map(|_| ShardShares::default()).collect(),
            appends: TaskTracker::new(),
            is_led: AtomicBool::new(false),
            failing: AtomicBool::new(false),
        }))
    }

    /// Appends records to a shard, in order, all or none. Returns their places when Redis has them on disk (with
    /// `appendfsync always`). The append runs to its end also when the caller is gone.
    ///
    /// # Errors
    /// [`AppendError`]: but for `Unknown`, nothing was appended.
    pub async fn append(&self, shard: ShardId, settings: AppendSettings, records: Vec<Outgoing>) -> Verdict {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let (verdict, answer) = oneshot::channel();
        let bytes = records.iter().map(|record| record.record.len()).sum();
        self.0.shard(shard).waiting.push_back(Request { records, bytes, settings, verdict });
        if !self.0.is_led.swap(true, Ordering::SeqCst) {
            let inner = Arc::clone(&self.0);
            self.0.appends.spawn(async move { Lead { inner, done: false }.run().await });
        }
        answer.await.unwrap_or_else(|_| Err(AppendError::Unknown(ended())))
    }

    /// How many records were appended to each shard, by the answers that this process got.
    #[must_use]
    pub fn counts(&self) -> Vec<AppendCount> {
        self.0.all().map(|shard| AppendCount { shard, appended: self.0.shard(shard).appended }).collect()
    }

    /// Waits for the appends that are under way, and counts those that had no answer. No further append may come.
    pub async fn close(&self) {
        self.0.appends.close();
        self.0.appends.wait().await;
        let resolving = async {
            for shard in self.0.all() {
                if !self.0.shard(shard).is_unresolved {
                    continue;
                }
                match self.0.streams.appended_by(shard, &self.0.name).await {
                    Ok(count) => self.0.confirmed(shard, count),
                    Err(error) => {
                        tracing::debug!(event = "accept.counts.unresolved", shard = shard.get(), %error, "the count of Redis cannot be read")
                    }
                }
            }
        };
        let _ = tokio::time::timeout(RESOLVE, resolving).await;
    }
}

impl Inner {
    fn all(&self) -> impl Iterator<Item = ShardId> {
        ShardId::all(self.shards.len() as u16)
    }

    fn shard(&self, shard: ShardId) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(shard.get())].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self, shard: ShardId) -> &ShardShares {
        &self.shares[usize::from(shard.get())]
    }

    fn confirmed(&self, shard: ShardId, count: i64) {
        let mut state = self.shard(shard);
        state.appended = state.appended.max(count);
        state.is_unresolved = false;
    }
}

fn ended() -> RedisError {
    RedisError::from((ErrorKind::Io, "the append ended without an answer"))
}

/// The task that appends, until nothing waits. It sends the appends of all shards that have requests at once, and the
/// next ones when answers have come: requests that arrive meanwhile go together, and so do their packets.
struct Lead {
    inner: Arc<Inner>,
    done: bool,
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.done {
            // It panicked. The outcome of all that waited is unknown: their senders are dropped.
            tracing::error!(event = "accept.append.panicked", "an append panicked");
            self.inner.is_led.store(false, Ordering::SeqCst);
            for shard in self.inner.all() {
                let mut state = self.inner.shard(shard);
                state.is_unresolved |= std::mem::take(&mut state.is_under_way);
                state.waiting.clear();
            }
        }
    }
}

impl Lead {
    async fn run(mut self) {
        let mut under_way = FuturesUnordered::new();
        loop {
            for shard in self.inner.all() {
                if let Some(requests) = self.inner.next(shard) {
                    let inner = Arc::clone(&self.inner);
                    under_way.push(async move {
                        inner.append(shard, requests).await;
                        inner.shard(shard).is_under_way = false;
                    });
                }
            }
            if under_way.is_empty() {
                if self.inner.ends() {
                    break;
                }
                continue;
            }
            // A server that does not answer delays only its own shards, and those of other servers by a moment.
            if tokio::time::timeout(ROUND, under_way.next()).await.is_ok() {
                // The answers of one server come together.
                tokio::task::yield_now().await;
                while under_way.next().now_or_never().flatten().is_some() {}
            }
        }
        self.done = true;
    }
}

impl Inner {
    /// Whether nothing waits, so that no task leads any more.
    fn ends(&self) -> bool {
        self.is_led.store(false, Ordering::SeqCst);
        let waits = |shard| !self.shard(shard).waiting.is_empty();
        // A request that came since has seen that a task leads.
        !self.all().any(waits) || self.is_led.swap(true, Ordering::SeqCst)
    }

    /// The requests of a shard's next append; `None`: nothing waits, or an append is under way.
    fn next(&self, shard: ShardId) -> Option<Vec<Request>> {
        let mut state = self.shard(shard);
        if state.is_under_way {
            return None;
        }
        let mut requests: Vec<Request> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.waiting.front() {
            bytes += next.bytes;
            if bytes > CALL_BYTES && !requests.is_empty() {
                break;
            }
            requests.extend(state.waiting.pop_front());
        }
        state.is_under_way = !requests.is_empty();
        state.is_under_way.then_some(requests)
    }

    async fn append(&self, shard: ShardId, mut requests: Vec<Request>) {
        while let Some(newest) = requests.last() {
            let settings = newest.settings.clone();
            let records: Vec<&Outgoing> = requests.iter().flat_map(|request| &request.records).collect();
            let settings = AppendAs {
                pipeline_id: &settings.pipeline_id,
                backlog_limit: settings.backlog_limit,
                producer: &self.name,
                known: self.shard(shard).appended,
            };
            let began = Instant::now();
            let appended = self.streams.append(shard, settings, &records).await;
            metrics::histogram!("millrace_append_seconds").record(began.elapsed());
            self.note(shard, records.len(), &appended);
            match appended {
                Ok(appended) => {
                    fault::point("after_append");
                    self.confirmed(shard, appended.count);
                    let sources = requests.iter().flat_map(|request| &request.records).map(|record| record.source);
                    self.shares(shard).appended(appended.ends, &runs(sources), settings.backlog_limit);
                    let mut positions = appended.positions.into_iter();
                    for request in requests {
                        let own = positions.by_ref().take(request.records.len()).collect();
                        // A receiver that is gone has disconnected.
                        let _ = request.verdict.send(Ok(own));
                    }
                    return;
                }
                // Those that fit are appended alone. At least one is refused, for together they did not fit.
                Err(AppendError::Backlog { room }) => {
                    self.shares(shard).backlog.store(settings.backlog_limit.saturating_sub(room), Ordering::Relaxed);
                    requests = refuse_above(room, requests);
                }
                Err(error) => {
                    if matches!(error, AppendError::Unknown(_)) {
                        self.shard(shard).is_unresolved = true;
                    }
                    for request in requests {
                        let _ = request.verdict.send(Err(error.clone()));
                    }
                    return;
                }
            }
        }
    }

    fn note(&self, shard: ShardId, records: usize, appended: &Result<Appended, AppendError>) {
        let (shard, failing) = (shard.get(), &self.failing);
        match appended {
            Ok(_) => {
                metrics::counter!("millrace_accepted_records_total").increment(records as u64);
                if failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(event = "accept.append.recovered", shard, "appends succeed again");
                }
            }
            // The metrics of the shard's workers show it, and every client gets the error.
            Err(AppendError::Backlog { room }) => {
                tracing::debug!(
                    event = "accept.append.backlog_full",
                    shard,
                    records,
                    room,
                    "the shard's backlog is at its limit; appends are refused"
                );
            }
            Err(error) if failing.swap(true, Ordering::Relaxed) => {
                tracing::debug!(event = "accept.append.failed", shard, records, %error, "an append failed");
            }
            Err(error) => tracing::warn!(event = "accept.append.failed", shard, records, %error, "an append failed"),
        }
    }
}

/// Refuses the requests that do not fit, and returns the others.
fn refuse_above(room: u64, requests: Vec<Request>) -> Vec<Request> {
    let mut left = room;
    let (fitting, refused): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| {
        let fits = request.records.len() as u64 <= left;
        left -= if fits { request.records.len() as u64 } else { 0 };
        fits
    });
    for request in refused {
        let _ = request.verdict.send(Err(AppendError::Backlog { room }));
    }
    fitting
}

mod fairness;
#[cfg(test)]
mod tests;
