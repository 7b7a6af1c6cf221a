//! One shard in the hands of its owner: predecessors' pending entries first, then what is new; decide, commit, ack.
//!
//! One batch at a time: stream ids may come again after a Redis that went back, so none but the batch in hand is ever
//! acknowledged. Must never read on before all pending entries were taken over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use millrace_crds::ADOPT;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Context, loss};
use crate::{
    board::of_postgres,
    domain::{Entry, Lease, ShardId, StreamId, Watermarks},
    lifecycle::Heartbeat,
    publish::{ActiveSink, Publisher, RecentCommits},
    store::{self, Server, ShardProgress},
    streams::{self, Blocking, Input, Step},
    telemetry::metrics as names,
};

/// Longest wait for an entry; also how often an idle shard looks whether its stream is still there.
const LONGEST_WAIT: Duration = Duration::from_millis(1000);
/// Memory for committed rows, over all shards of a pipeline.
const FEED_BYTES: usize = 6 << 20;
/// How often losses are counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How long lanes may go on publishing what is committed after their shard stopped.
const DRAIN: Duration = Duration::from_secs(5);
/// About how many bytes of entries one batch may hold.
const BATCH_BYTES: usize = 2 << 20;

/// Why a step did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Streams(#[from] streams::Error),
    /// The log does not stand where this owner left it: a commit whose outcome was unknown, or a Postgres that went back.
    #[error("the log stands elsewhere than it was left")]
    Elsewhere,
    /// Postgres went back: the policy in force is not known to it, or is another by now.
    #[error("version {0} of the manifest is not known to Postgres any more, or says something else")]
    PolicyForgotten(i64),
    /// The shard is to be given back; what is in hand is not applied.
    #[error("the shard is to be given back")]
    GivenBack,
}

impl Error {
    /// Whether what is in hand is kept until it is over; else what is pending is taken over again, by whoever may.
    pub(super) fn is_waited_for(&self) -> bool {
        !matches!(self, Self::Store(store::Error::Fenced) | Self::Elsewhere | Self::GivenBack)
    }
}

/// What to read next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    /// Set the fence; make stream and group where they are missing.
    Prepare,
    /// Take over pending entries from here on.
    Claim(String),
    /// Read on.
    Read,
}

/// A shard and what its owner needs.
pub(super) struct Shard {
    pub(super) context: Arc<Context>,
    pub(super) shard: ShardId,
    pub(super) fence: Arc<Mutex<Lease>>,
    pub(super) recent: Arc<RecentCommits>,
    pub(super) give_back: CancellationToken,
    /// The policy version that the shard is known to stand at.
    pub(super) policy_version: i64,
    pub(super) beat: Arc<Heartbeat>,
    /// Where the log stands, as this owner knows it.
    pub(super) log: ShardProgress,
    /// The server that newest connections came to.
    server: Server,
    /// Highest numbers that stand beside the stream: the lanes publish up to them, never what is only committed.
    watermarks: Watermarks,
    /// When losses are to be counted again.
    count_due: Instant,
    /// Serve processes that seemed to be dead when losses were counted last.
    suspects: BTreeSet<String>,
    /// Whether the newest entry that was applied had been applied before: what is behind it may have been, too.
    pub(super) repeats: bool,
    input: Input,
    mode: Mode,
    waiting: Option<Blocking>,
    entry_bytes: usize,
}

/// Works a shard until it is to be given back, or lost.
///
/// # Panics
/// When one of its lanes panicked: whoever owns this task learns of it.
pub(super) async fn work(
    context: Arc<Context>,
    shard: ShardId,
    fence: Arc<Mutex<Lease>>,
    give_back: CancellationToken,
    lost: CancellationToken,
) {
    let name = format!("shard {shard}");
    let beat = context.heartbeats.register(&name, Duration::from_secs(15));
    let (shards, pipeline_id) = {
        let active_manifest = context.active_manifest.borrow();
        (active_manifest.manifest.spec.shards, active_manifest.pipeline_id.to_string())
    };
    let recent = Arc::new(RecentCommits::new((FEED_BYTES / usize::from(shards)).max(256 << 10)));
    let input = context.streams.input(&pipeline_id, shard, &context.options.worker);
    // The lanes end behind the shard, however it ended, so that they carry its last commit, too.
    let stopped = CancellationToken::new();
    let token = current(&fence).token;
    let publishers = publishers(Arc::clone(&context), shard, token, Arc::clone(&recent), stopped.clone(), lost.clone());
    let mut this = Shard {
        context: Arc::clone(&context),
        shard,
        fence: Arc::clone(&fence),
        recent,
        give_back: give_back.clone(),
        policy_version: 0,
        log: ShardProgress::default(),
        server: context.store.server(),
        watermarks: Watermarks::default(),
        count_due: Instant::now(),
        suspects: BTreeSet::new(),
        repeats: false,
        beat,
        input,
        mode: Mode::Prepare,
        waiting: None,
        entry_bytes: 512,
    };
    let processing = async {
        let kept = tokio::select! {
            kept = this.run() => kept,
            () = lost.cancelled() => false,
        };
        if !kept {
            // Found by a renewal, or by the fence before one.
            tracing::warn!(
                event = "worker.shard.lost",
                shard = shard.get(),
                epoch = current(&fence).epoch,
                "lost a shard to another worker"
            );
            metrics::counter!(names::LEASE_CHANGES, "change" => "lost").increment(1);
            lost.cancel();
        }
        stopped.cancel();
        kept
    };
    // In one task: a lane that panics ends both.
    let (kept, ()) = tokio::join!(processing, publishers);
    context.heartbeats.remove(&name);
    context.board.set(part(shard), []);
    if kept {
        if let Err(error) = store::within(context.store.release(shard, &current(&fence))).await {
            tracing::warn!(event = "worker.shard.release_failed", shard = shard.get(), error = %error, "a shard cannot be released; its lease expires");
        }
        metrics::counter!(names::LEASE_CHANGES, "change" => "released").increment(1);
        tracing::info!(event = "worker.shard.released", shard = shard.get(), "released a shard");
    }
}

impl Shard {
    /// True: it is still this worker's, to be given back. False: it is another's.
    async fn run(&mut self) -> bool {
        let mut pause = Duration::ZERO;
        while !self.give_back.is_cancelled() {
            let error = match self.step().await {
                Ok(()) => {
                    self.waited(&mut pause);
                    self.beat.record();
                    continue;
                }
                Err(error) => error,
            };
            // Whatever went wrong, pending entries tell what is not applied yet.
            self.mode = Mode::Prepare;
            match error {
                Error::GivenBack => break,
                Error::Store(store::Error::Fenced) => return false,
                Error::Streams(streams::Error::Fenced(above)) => {
                    let fence = current(&self.fence);
                    tracing::warn!(
                        event = "worker.fence.higher_in_redis",
                        shard = self.shard.get(),
                        epoch = fence.epoch,
                        above,
                        "the fence in Redis is higher; the epoch is raised above it"
                    );
                    let raised =
                        self.context.store.raise_epoch(&self.context.options.worker, self.shard, &fence, above);
                    match store::within(raised).await {
                        Ok(raised) => *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = raised,
                        Err(store::Error::Fenced) => return false,
                        Err(error) => self.say_and_wait(&mut pause, &error.into()).await,
                    }
                }
                error => self.say_and_wait(&mut pause, &error).await,
            }
        }
        true
    }

    /// Backs off: said once a streak, waited longer each time, nothing counted against any entry.
    pub(super) async fn say_and_wait(&self, pause: &mut Duration, error: &Error) {
        if pause.is_zero() {
            tracing::warn!(event = "worker.shard.backing_off", shard = self.shard.get(), error = %error, "a shard cannot be worked and is retried");
        }
        let problem = match error {
            Error::Store(error) if error.refuses_write() => Some(of_postgres(error)),
            _ => None,
        };
        self.context.board.set(part(self.shard), problem);
        *pause = (*pause * 2).clamp(Duration::from_millis(50), Duration::from_secs(2));
        tokio::select! {
            () = tokio::time::sleep(*pause) => {}
            () = self.give_back.cancelled() => {}
        }
    }

    /// Notes that what was waited for is over.
    pub(super) fn waited(&self, pause: &mut Duration) {
        if !std::mem::take(pause).is_zero() {
            tracing::info!(event = "worker.shard.resumed", shard = self.shard.get(), "a shard is worked again");
            self.context.board.set(part(self.shard), []);
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        let version = self.context.active_manifest.borrow().policy.version;
        if self.policy_version < version {
            self.policy_version =
                store::within(self.context.store.apply_policy(self.shard, &current(&self.fence), version)).await?;
            tracing::info!(
                event = "worker.shard.policy_applied",
                shard = self.shard.get(),
                version = self.policy_version,
                "a shard applies a policy version"
            );
        }
        let server = self.context.store.server();
        if self.server != server {
            // Another server, or the same one restarted: it may have gone back, and nothing new may come for long.
            self.server = server;
            self.mode = Mode::Prepare;
        }
        match self.mode.clone() {
            Mode::Prepare => store::within(self.prepare()).await,
            Mode::Claim(start) => self.claim(&start).await,
            Mode::Read => self.read().await,
        }
    }

    /// Sets the fence, and finds out where everything stands, before anything is read or committed.
    async fn prepare(&mut self) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let fence = current(&self.fence);
        let active_manifest = context.active_manifest.borrow().clone();
        // Raises the fence first: no older owner moves the marks any more.
        let prepared = self.input.prepare(&fence, active_manifest.manifest.annotation(ADOPT)).await?;
        let mut log = context.store.progress_of(self.shard).await?;
        if !context.store.knows_policy(active_manifest.policy.version, &active_manifest.manifest.spec).await? {
            // Whoever follows the manifest registers it anew, or goes back to what is known.
            return Err(Error::PolicyForgotten(active_manifest.policy.version));
        }
        self.policy_version = 0;
        if prepared.made && context.store.note_prepared(self.shard).await? {
            tracing::error!(
                event = "worker.stream.recreated",
                shard = self.shard.get(),
                "the input stream or its group was missing and was recreated; records may be lost"
            );
            metrics::counter!(names::RECREATED, "shard" => self.shard.to_string()).increment(1);
            context.store.note_recreated(self.shard).await?;
        }
        let highest = self.highest_known(prepared.watermarks).await?;
        if log.watermarks.is_below(highest) {
            // Numbers above the log's were acknowledged or published: none of them is ever given again.
            let skipped = context.store.skip_to(self.shard, &fence, highest).await?;
            tracing::error!(event = "worker.postgres.rewound", shard = self.shard.get(), from = %log.watermarks, to = %skipped, "Postgres was rewound: its log is behind the watermarks");
            metrics::counter!(names::REWINDS, "shard" => self.shard.to_string()).increment(1);
            log.watermarks = skipped;
        }
        self.watermarks = prepared.watermarks.min(log.watermarks);
        self.log = log;
        // Rows in memory may be of a Postgres that went back since: the lanes go by the log until there are new ones.
        self.recent.reset(self.watermarks);
        if crate::fault::planted("pending_last") {
            self.read().await?;
        }
        self.mode = Mode::Claim("-".to_owned());
        Ok(())
    }

    /// The highest numbers that anything but the log tells of: the marks beside the stream, and the sinks' cursors.
    async fn highest_known(&self, watermarks: Watermarks) -> Result<Watermarks, Error> {
        let sinks = self.context.store.sinks().await?;
        let streams: Vec<String> = sinks.iter().filter_map(|sink| sink.stream.clone()).collect();
        let cursors = self.context.streams.sink_cursors(&streams).await?;
        let pipeline_id = Arc::clone(&self.context.active_manifest.borrow().pipeline_id);
        let mut highest = watermarks;
        for (sink, cursor) in sinks.iter().filter(|sink| sink.stream.is_some()).zip(cursors) {
            if cursor.pipeline_id.as_deref() == Some(&*pipeline_id) {
                let number = cursor.numbers.get(&self.shard).copied().unwrap_or_default();
                highest.raise(sink.kind.sequence(), number);
            }
        }
        Ok(highest)
    }

    async fn claim(&mut self, start: &str) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let _permit = context.permits.acquire().await;
        let Step::Done(claimed) = self.input.claim(&current(&self.fence), start, self.batch_size()).await? else {
            self.mode = Mode::Prepare;
            return Ok(());
        };
        if !claimed.gone.is_empty() {
            tracing::warn!(
                event = "worker.pending.deleted",
                shard = self.shard.get(),
                entries = claimed.gone.len(),
                "pending entries were deleted from the input stream"
            );
        }
        if !claimed.entries.is_empty() {
            tracing::info!(
                event = "worker.pending.reclaimed",
                shard = self.shard.get(),
                entries = claimed.entries.len(),
                "reclaimed pending entries"
            );
        }
        self.apply(claimed.entries).await?;
        if self.mode != Mode::Prepare {
            self.mode = claimed.next.map_or(Mode::Read, Mode::Claim);
        }
        if self.mode == Mode::Read && self.watermarks != self.log.watermarks {
            // Nothing is pending, so all that is committed is acknowledged: Redis went back, or an ack was lost.
            self.acknowledge(self.log.watermarks, &[]).await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let permit = context.permits.acquire().await;
        let fresh = match self.input.read(&current(&self.fence), self.batch_size()).await? {
            Step::Done(fresh) => fresh,
            Step::Raised => {
                tracing::warn!(
                    event = "worker.fence.raised_in_redis",
                    shard = self.shard.get(),
                    "the fence in Redis was lower and was raised"
                );
                self.mode = Mode::Prepare;
                return Ok(());
            }
        };
        crate::fault::point("after_read");
        if fresh.entries.is_empty() {
            drop(permit);
            self.count_losses().await?;
            return self.wait(&fresh.last).await;
        }
        self.apply(fresh.entries).await?;
        self.count_losses().await
    }

    /// Counts what is lost, now and then: between batches, for what is in hand is in neither server's books.
    async fn count_losses(&mut self) -> Result<(), Error> {
        if self.mode != Mode::Read || Instant::now() < self.count_due {
            return Ok(());
        }
        self.count_due = Instant::now() + COUNT_EVERY;
        let fence = current(&self.fence);
        let counted = loss::count(&self.context, &self.input, &fence, self.repeats, &mut self.suspects);
        if !store::within(counted).await? {
            self.mode = Mode::Prepare;
        }
        Ok(())
    }

    /// Waits for an entry; takes nothing.
    async fn wait(&mut self, last: &str) -> Result<(), Error> {
        let mut connection = match self.waiting.take() {
            Some(connection) => connection,
            None => self.input.blocking(LONGEST_WAIT).await?,
        };
        let mut active_manifest = self.context.active_manifest.clone();
        active_manifest.mark_unchanged();
        tokio::select! {
            waited = self.input.wait(&mut connection, last, LONGEST_WAIT) => {
                waited?;
                self.waiting = Some(connection);
            }
            _ = active_manifest.changed() => {}
            () = self.give_back.cancelled() => {}
        }
        Ok(())
    }

    /// Decides and commits entries, then acknowledges them.
    async fn apply(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let bytes: usize = entries.iter().map(|entry| entry.payload.len() + 128).sum();
        self.entry_bytes = (self.entry_bytes + bytes / entries.len()) / 2;
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        if crate::fault::planted("ack_before_commit") {
            self.input.ack(&current(&self.fence), Watermarks::default(), 0, &ids).await?;
        }
        let watermarks = self.decide_and_commit(entries).await?;
        crate::fault::point("before_ack");
        self.acknowledge(watermarks, &ids).await?;
        crate::fault::point("after_ack");
        Ok(())
    }

    /// Acknowledges entries whose outcome is committed; then the lanes may publish up to `numbers`.
    async fn acknowledge(&mut self, watermarks: Watermarks, ids: &[StreamId]) -> Result<(), Error> {
        match self.input.ack(&current(&self.fence), watermarks, self.log.duplicates, ids).await? {
            Step::Done(left) => {
                metrics::gauge!(names::BACKLOG, "shard" => self.shard.to_string()).set(left as f64);
                self.watermarks = watermarks;
                self.recent.advance(watermarks);
            }
            Step::Raised => self.mode = Mode::Prepare,
        }
        Ok(())
    }

    fn batch_size(&self) -> usize {
        (BATCH_BYTES / self.entry_bytes.max(1)).clamp(1, self.context.options.batch)
    }
}

/// Where a shard writes its problems.
fn part(shard: ShardId) -> String {
    format!("shard {shard}")
}

/// The fence as it stands.
pub(super) fn current(fence: &Mutex<Lease>) -> Lease {
    fence.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Runs one lane per sink, and follows the sinks, until `stopped`; then as long as there is something to publish.
///
/// # Panics
/// When a lane panicked: what it would have published must not stay unpublished in silence.
async fn publishers(
    context: Arc<Context>,
    shard: ShardId,
    token: String,
    recent: Arc<RecentCommits>,
    stopped: CancellationToken,
    lost: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let hard = lost.child_token();
    let mut sinks = context.sinks.clone();
    let mut running: BTreeMap<String, (ActiveSink, CancellationToken)> = BTreeMap::new();
    loop {
        let active = Arc::clone(&sinks.borrow_and_update());
        running.retain(|_, (sink, end)| {
            let stays = active.contains(sink);
            if !stays {
                end.cancel();
            }
            stays
        });
        for sink in active.iter() {
            running.entry(sink.output.sink.clone()).or_insert_with(|| {
                let end = hard.child_token();
                let publisher = Publisher {
                    store: context.store.clone(),
                    streams: context.streams.clone(),
                    shard,
                    token: token.clone(),
                    recent: Arc::clone(&recent),
                    sink: sink.clone(),
                };
                tasks.spawn(publisher.run(stopped.clone(), end.clone()));
                (sink.clone(), end)
            });
        }
        tokio::select! {
            // Without the keeper nothing changes any more, and the process is about to stop.
            Ok(()) = sinks.changed() => {}
            Some(ended) = tasks.join_next() => pass_on_panic(ended),
            () = stopped.cancelled() => break,
        }
    }
    let drained = async {
        while let Some(ended) = tasks.join_next().await {
            pass_on_panic(ended);
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!(
            event = "publisher.drain.timed_out",
            shard = shard.get(),
            "publishers did not finish before the shard was released"
        );
        tasks.shutdown().await;
    }
}

/// Goes on with the panic of a task that ended by one.
fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
