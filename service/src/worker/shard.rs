//! The work of an owner on one shard: reclaim pending entries, then read new ones; hand them to the appliers, acknowledge.
//!
//! One batch at a time is in flight: a rewound Redis gives stream ids again, so only entries of that batch are acknowledged.
//! Must never read new entries before all pending ones are reclaimed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use millrace_crds::{Reason, status_api::Problem};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    loss::{self, Reconciler},
    parse, publishers,
    read::Ahead,
    ready::{Answer, Applied, Reading, Ready},
};
use crate::{
    board::of_postgres,
    domain::{Entry, Lease, ShardId, StreamId},
    lifecycle::Heartbeat,
    publish::RecentCommits,
    store::{self, Server, ShardProgress},
    streams::{self, Acknowledged, Blocking, Input, Step},
    telemetry::metrics as names,
};

/// Memory for committed rows, over all shards of a pipeline.
const RECENT_BYTES: usize = 6 << 20;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Streams(#[from] streams::Error),
    /// The log has other numbers than this owner has written or read: a commit of unknown outcome, or a rewound Postgres.
    #[error("the log has other numbers than expected")]
    LogChanged,
    /// Postgres was rewound: it does not have the active version of the manifest, or has another content for it.
    #[error("version {0} of the manifest is missing in Postgres, or has another content there")]
    PolicyMissing(i64),
    /// An error of a transaction over several shards.
    #[error(transparent)]
    Group(Arc<store::Error>),
    /// Another transaction had locked the shard's row.
    #[error("the row of the shard is locked by another transaction")]
    Locked,
    /// The applier ended without an answer.
    #[error("the applier ended")]
    ApplierEnded,
    /// The shard is to be returned; the batch in flight is not applied.
    #[error("the shard is to be returned")]
    Returned,
}

impl Error {
    /// Whether the batch in flight is kept and retried; else pending entries are reclaimed, by the next owner or this one.
    pub(super) fn is_retried(&self) -> bool {
        !matches!(self, Self::Store(store::Error::Fenced) | Self::LogChanged | Self::ApplierEnded | Self::Returned)
    }
}

/// What to read next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Set the lease; create stream and group where they are missing.
    Prepare,
    /// Reclaim pending entries from this id on.
    Claim(String),
    /// Read new entries.
    Read,
}

/// How the work on a shard ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was returned as asked.
    Returned,
    /// It is another worker's.
    Lost,
    /// It was returned because an entry has a format that this version does not support.
    UnknownFormat,
}

/// A shard, worked by its owner.
pub(super) struct Shard {
    pub(super) context: Arc<Context>,
    pub(super) shard: ShardId,
    pub(super) lease: Arc<Mutex<Lease>>,
    pub(super) recent: Arc<RecentCommits>,
    pub(super) stop: CancellationToken,
    /// The policy version that the shard runs.
    pub(super) policy_version: i64,
    pub(super) heartbeat: Arc<Heartbeat>,
    /// The progress of the log, as this owner has written or read it.
    pub(super) log: ShardProgress,
    /// The server of the newest connections.
    server: Server,
    /// What is acknowledged beside the stream: publishers publish up to it, never an outcome that is only committed.
    pub(super) acknowledged: Acknowledged,
    pub(super) reconciler: Reconciler,
    pub(super) input: Input,
    pub(super) mode: Mode,
    pub(super) waiting: Option<Blocking>,
    /// What is read already.
    pub(super) ahead: Option<Ahead>,
}

/// Works a shard until it is to be returned, or is lost. Returns why it was returned.
///
/// # Panics
/// When one of its publishers panicked.
pub(super) async fn work(
    context: Arc<Context>,
    shard: ShardId,
    lease: Arc<Mutex<Lease>>,
    stop: CancellationToken,
    lost: CancellationToken,
) -> End {
    let name = format!("shard {shard}");
    let heartbeat = context.heartbeats.register(&name, Duration::from_secs(15));
    let (shards, pipeline_id) = {
        let active_manifest = context.active_manifest.borrow();
        (active_manifest.manifest.spec.shards, active_manifest.pipeline_id.to_string())
    };
    let recent = Arc::new(RecentCommits::new((RECENT_BYTES / usize::from(shards)).max(256 << 10)));
    let input = context.streams.input(&pipeline_id, shard, &context.options.worker);
    context.board.set(part(shard), []);
    // The publishers end after the shard, so that they publish its last commit.
    let stopped = CancellationToken::new();
    let publishers = publishers::run(
        Arc::clone(&context),
        shard,
        Arc::clone(&lease),
        Arc::clone(&recent),
        stopped.clone(),
        lost.clone(),
    );
    let mut this = Shard {
        context: Arc::clone(&context),
        shard,
        lease: Arc::clone(&lease),
        recent,
        stop: stop.clone(),
        policy_version: 0,
        log: ShardProgress::default(),
        server: context.store.server(),
        acknowledged: Acknowledged::default(),
        reconciler: Reconciler::default(),
        heartbeat,
        input,
        mode: Mode::Prepare,
        waiting: None,
        ahead: None,
    };
    let processing = async {
        let end = tokio::select! {
            end = this.run() => end,
            () = lost.cancelled() => End::Lost,
        };
        if end == End::Lost {
            // Found by a renewal, or by a comparison of the lease before one.
            tracing::warn!(
                event = "worker.shard.lost",
                shard = shard.get(),
                epoch = current(&lease).epoch,
                "lost a shard to another worker"
            );
            metrics::counter!(names::LEASE_CHANGES, "change" => "lost").increment(1);
            lost.cancel();
        }
        stopped.cancel();
        end
    };
    // In one task: a publisher that panics ends both.
    let (end, ()) = tokio::join!(processing, publishers);
    context.heartbeats.remove(&name);
    if end != End::UnknownFormat {
        context.board.set(part(shard), []);
    }
    if end != End::Lost {
        if let Err(error) = store::within(context.store.release(shard, &current(&lease))).await {
            tracing::warn!(event = "worker.shard.release_failed", shard = shard.get(), error = %error, "a shard cannot be released; its lease expires");
        }
        metrics::counter!(names::LEASE_CHANGES, "change" => "released").increment(1);
        tracing::info!(event = "worker.shard.released", shard = shard.get(), "released a shard");
    }
    end
}

impl Shard {
    async fn run(&mut self) -> End {
        let mut pause = Duration::ZERO;
        // Entries that were read are applied: the next owner would count another delivery.
        while !self.stop.is_cancelled() || self.has_entries() {
            let error = match self.step().await {
                Ok(()) => {
                    self.recovered(&mut pause);
                    self.heartbeat.record();
                    continue;
                }
                Err(error) => error,
            };
            // After any error, pending entries show what is not applied.
            self.mode = Mode::Prepare;
            self.ahead = None;
            match error {
                Error::Returned => break,
                Error::Store(store::Error::Fenced) => return End::Lost,
                Error::Streams(error @ streams::Error::UnknownFormat { .. }) => return self.unknown_format(&error),
                Error::Streams(streams::Error::Fenced(above)) => {
                    let lease = current(&self.lease);
                    let raised =
                        self.context.store.raise_epoch(&self.context.options.worker, self.shard, &lease, above);
                    match store::within(raised).await {
                        Ok(raised) => {
                            tracing::warn!(
                                event = "worker.epoch.raised",
                                shard = self.shard.get(),
                                epoch = raised.epoch,
                                above,
                                "Redis had a higher epoch; this owner's was raised above it"
                            );
                            *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = raised;
                        }
                        Err(store::Error::Fenced) => return End::Lost,
                        Err(error) => self.back_off(&mut pause, &error.into()).await,
                    }
                }
                error => self.back_off(&mut pause, &error).await,
            }
        }
        End::Returned
    }

    /// Reports an entry of another version, which another worker may support. Nothing of it is applied.
    fn unknown_format(&self, error: &streams::Error) -> End {
        tracing::error!(event = "worker.entry.unknown_format", shard = self.shard.get(), %error, "the shard is returned: an entry has an unknown format");
        let message = format!("shard {}: {error}; run workers of the version that appended it", self.shard);
        self.context.board.set(part(self.shard), [Problem::new(Reason::StreamFormatUnknown, message)]);
        End::UnknownFormat
    }

    /// Waits after an error, longer each time. A streak of errors is one line in the log, and counts no attempt.
    pub(super) async fn back_off(&self, pause: &mut Duration, error: &Error) {
        if pause.is_zero() {
            tracing::warn!(event = "worker.shard.backing_off", shard = self.shard.get(), error = %error, "a shard cannot be worked; the worker retries");
        }
        let of_store = match error {
            Error::Store(error) => Some(error),
            Error::Group(error) => Some(&**error),
            _ => None,
        };
        let problem = of_store.filter(|error| error.refuses_write() || error.misses_partition()).map(of_postgres);
        self.context.board.set(part(self.shard), problem);
        *pause = (*pause * 2).clamp(Duration::from_millis(50), Duration::from_secs(2));
        tokio::select! {
            () = tokio::time::sleep(*pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Notes that a streak of errors is over.
    pub(super) fn recovered(&self, pause: &mut Duration) {
        if !std::mem::take(pause).is_zero() {
            tracing::info!(event = "worker.shard.resumed", shard = self.shard.get(), "the work on a shard continues");
            self.context.board.set(part(self.shard), []);
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        let version = self.context.active_manifest.borrow().policy.version;
        if self.policy_version < version {
            self.policy_version =
                store::within(self.context.store.apply_policy(self.shard, &current(&self.lease), version)).await?;
            tracing::info!(
                event = "worker.shard.policy_applied",
                shard = self.shard.get(),
                version = self.policy_version,
                "a shard applies a policy version"
            );
        }
        let server = self.context.store.server();
        if self.server != server {
            // Another server, or a restarted one: it can be rewound, and the next entry may come late.
            self.server = server;
            self.mode = Mode::Prepare;
        }
        match self.mode.clone() {
            Mode::Prepare => {
                self.ahead = None;
                store::within(self.prepare()).await
            }
            Mode::Claim(start) => self.claim(&start).await,
            Mode::Read => self.read().await,
        }
    }

    /// Lets entries be decided and committed, and acknowledges them. `reading`: they were read for the next group.
    pub(super) async fn apply(&mut self, entries: Vec<Entry>, mut reading: Option<Reading>) -> Result<(), Error> {
        let mut batch = {
            let _together = self.context.deciding.read().await;
            parse::batch(entries)
        };
        let mut pause = Duration::ZERO;
        while !batch.is_empty() && self.mode != Mode::Prepare {
            let (answer, answered) = oneshot::channel();
            let (lease, left) = (Arc::clone(&self.lease), self.log);
            self.context.ready.hand_over(Ready { shard: self.shard, lease, left, batch, answer });
            drop(reading.take());
            let Answer { rest, outcome } = answered.await.map_err(|_| Error::ApplierEnded)?;
            batch = rest;
            match outcome {
                Ok(applied) => {
                    self.recovered(&mut pause);
                    self.heartbeat.record();
                    self.applied(applied, batch.is_empty()).await?;
                }
                Err(Error::Locked) => {}
                Err(error) if !error.is_retried() => return Err(error),
                Err(error) => {
                    if self.stop.is_cancelled() {
                        return Err(Error::Returned);
                    }
                    self.back_off(&mut pause, &error).await;
                    // A reconnect empties the recent commits.
                    self.recent.clear();
                }
            }
        }
        Ok(())
    }

    /// Notes entries that are committed, and acknowledges them; after the last ones of a batch, the next are read.
    async fn applied(&mut self, applied: Applied, is_last: bool) -> Result<(), Error> {
        self.log = applied.after.progress;
        self.policy_version = applied.policy_version;
        if applied.after.lost > 0 {
            loss::report(self.shard, applied.after.lost);
        }
        self.recent.push(applied.rows);
        crate::fault::point("before_ack");
        if is_last {
            self.turn(&applied.ids).await?
        } else {
            self.acknowledge(&applied.ids).await?
        }
        crate::fault::point("after_ack");
        Ok(())
    }

    /// Everything that is committed, as it is to be acknowledged.
    pub(super) fn committed(&self) -> Acknowledged {
        Acknowledged { watermarks: self.log.watermarks, offset: self.log.accounted }
    }

    /// Acknowledges entries whose outcomes are committed. After that the publishers may publish all that is committed.
    pub(super) async fn acknowledge(&mut self, ids: &[StreamId]) -> Result<(), Error> {
        let committed = self.committed();
        match self.input.ack(&current(&self.lease), committed, ids).await? {
            Step::Done(()) => self.acknowledged(committed),
            Step::Raised => self.mode = Mode::Prepare,
        }
        Ok(())
    }

    /// Lets the publishers publish what is acknowledged.
    pub(super) fn acknowledged(&mut self, committed: Acknowledged) {
        self.acknowledged = committed;
        self.recent.advance(committed.watermarks);
    }
}

/// The part of the board that has a shard's problems.
fn part(shard: ShardId) -> String {
    format!("shard {shard}")
}

/// The present lease.
pub(super) fn current(lease: &Mutex<Lease>) -> Lease {
    lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
