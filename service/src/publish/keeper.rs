//! Keeps the sinks of the manifest and those that were started the same: adds, starts, moves and removes them.
//!
//! Every step is written to Postgres first and can be done again, by any worker: whoever finds it undone goes on with it.
//! Must never act by a policy that is not the newest.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use millrace_crds::{ADOPT, From, On, Overflow, RecordPipeline, RedisStream, Sink};
use tokio::sync::watch;

use crate::{
    config::InForce,
    lifecycle::Lifecycle,
    store::{self, SinkRow, SinkState, Store},
    streams::{Error as StreamsError, Output, Streams},
};

/// A sink that has a cursor: its lanes may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveSink {
    /// What it carries.
    pub on: On,
    /// Where to.
    pub output: Output,
}

/// The sinks of one worker.
#[derive(Debug)]
pub struct Keeper {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The manifest, followed.
    pub in_force: watch::Receiver<InForce>,
    /// Where the sinks that may run are told.
    pub active: watch::Sender<Arc<Vec<ActiveSink>>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Streams(#[from] StreamsError),
    #[error("sink {0}: {1}")]
    Sink(String, #[source] Box<Self>),
}

impl Keeper {
    /// Keeps the sinks until the process stops.
    ///
    /// # Errors
    /// Never: what fails is said and done again.
    pub async fn run(mut self, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let mut pause = Duration::from_millis(500);
        let mut halted = BTreeSet::new();
        let mut promises_known = false;
        while !lifecycle.soft.is_cancelled() {
            let in_force = self.in_force.borrow_and_update().clone();
            match store::within(self.pass(&in_force, &mut halted)).await {
                Ok(()) => {
                    pause = Duration::from_millis(500);
                    if !promises_known {
                        promises_known = self.say_promises().await.is_ok();
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "publish.sinks.failed");
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
            tokio::select! {
                () = lifecycle.soft.cancelled() => {}
                changed = self.in_force.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Reads once what the servers' settings promise, and warns where an acknowledged record could be lost.
    async fn say_promises(&self) -> Result<(), Error> {
        let redis = self.streams.promises().await?;
        let postgres = self.store.postgres_promises().await?;
        if redis.appendonly != "yes" || redis.appendfsync != "always" || redis.maxmemory_policy != "noeviction" {
            tracing::warn!(
                appendonly = redis.appendonly,
                appendfsync = redis.appendfsync,
                maxmemory_policy = redis.maxmemory_policy,
                "publish.redis.weak: a 202 promises a record on disk only with appendonly yes, appendfsync always, noeviction"
            );
        }
        if postgres.fsync != "on" || postgres.synchronous_commit == "off" {
            let (fsync, synchronous_commit) = (postgres.fsync, postgres.synchronous_commit);
            tracing::warn!(fsync, synchronous_commit, "publish.postgres.weak: a commit may be lost in a crash");
        }
        Ok(())
    }

    /// `halted` has the sinks that were said to be refused: each is said once.
    async fn pass(&self, in_force: &InForce, halted: &mut BTreeSet<String>) -> Result<(), Error> {
        let manifest = &in_force.manifest;
        let version = in_force.policy.version;
        let rows = self.store.sinks().await?;
        for (sink, _) in redis_sinks(manifest) {
            let stream = sink.stream(&manifest.metadata.name).unwrap_or_default();
            let kind = format!("{:?}", sink.on);
            match rows.iter().find(|row| row.name == sink.name) {
                None => {
                    // Without a word in the manifest: all of a new pipeline, only what is new of a running one.
                    let from = sink.from.unwrap_or(if version == 1 { From::Beginning } else { From::Now });
                    let beginning = from == From::Beginning;
                    let incarnation = self.store.incarnation().await?;
                    self.store.add_sink(&sink.name, &kind, &stream, &incarnation, beginning, version).await?;
                    tracing::info!(sink = sink.name, stream, from = ?from, "publish.sink.added");
                }
                // Carries something else by now: other numbers, so a new sink by the old name.
                Some(row) if row.kind != kind || row.removed => self.store.remove_sink(&sink.name, version).await?,
                Some(row) if row.stream.as_ref() != Some(&stream) => {
                    self.store.move_sink(row, &stream, &self.store.incarnation().await?, version).await?;
                    tracing::info!(sink = sink.name, stream, "publish.sink.moving");
                }
                Some(_) => {}
            }
        }
        for row in &rows {
            if !redis_sinks(manifest).any(|(sink, _)| sink.name == row.name) {
                self.store.remove_sink(&row.name, version).await?;
            }
        }
        let mut active = Vec::new();
        let mut outcome = Ok(());
        for row in self.store.sinks().await? {
            match self.settle(&row, in_force).await {
                Ok(sink) => {
                    halted.remove(&row.name);
                    active.extend(sink);
                }
                Err(Error::Streams(StreamsError::Refused(detail))) => {
                    if halted.insert(row.name.clone()) {
                        tracing::error!(sink = row.name, detail, "publish.sink.halted");
                    }
                    let state = SinkState { state: "halted", detail };
                    self.store.set_sink_state(&row.name, 0, None, Some(&state)).await?;
                }
                // Keeps no other sink from running.
                Err(error) => outcome = Err(Error::Sink(row.name, Box::new(error))),
            }
        }
        self.active.send_if_modified(|current| {
            let changed = **current != active;
            if changed {
                *current = Arc::new(active);
            }
            changed
        });
        outcome
    }

    /// Brings one sink to where its row says it should be; answers what its lanes need, once it is there.
    async fn settle(&self, row: &SinkRow, in_force: &InForce) -> Result<Option<ActiveSink>, Error> {
        let Some(stream) = row.stream.clone() else { return Ok(None) };
        let output = |stream: String, incarnation: &str, target: Option<&RedisStream>| Output {
            pipeline_id: in_force.pipeline_id.to_string(),
            sink: row.name.clone(),
            stream,
            incarnation: incarnation.to_owned(),
            max_length: target.map_or(0, |target| target.max_length),
            trim_unread: target.is_some_and(|target| target.overflow == Overflow::Trim),
        };
        let old = row.old_stream.clone().zip(row.old_incarnation.as_deref());
        let old = old.map(|(stream, incarnation)| output(stream, incarnation, None));
        if row.removed {
            self.streams.remove_cursor(&output(stream, &row.incarnation, None)).await?;
            if let Some(old) = old {
                self.streams.remove_cursor(&old).await?;
            }
            self.store.forget_sink(row).await?;
            tracing::info!(sink = row.name, "publish.sink.removed");
            return Ok(None);
        }
        let manifest = &in_force.manifest;
        let declared = redis_sinks(manifest).find(|(sink, _)| sink.name == row.name);
        let Some((sink, target)) = declared else { return Ok(None) };
        let new = output(stream, &row.incarnation, Some(target));
        if !row.started {
            // Where the new cursor stands, the old one was ended before, and may have been in its very place.
            let stands = self.streams.cursor(&new, 0).await?.is_some();
            if let Some(old) = old.as_ref().filter(|_| !stands) {
                // Ends the old cursor first, so that no lane appends to the old stream any more.
                let Some(positions) = self.streams.retire_cursor(old).await? else {
                    return Err(Error::Streams(StreamsError::Refused(format!(
                        "the cursor beside {} is gone, so where to go on is not known; \
                         millrace sinks resume {} --from now|beginning",
                        old.stream, row.name
                    ))));
                };
                self.store.set_starts(row, &positions).await?;
            }
            let starts = self.store.sink_starts(&row.name).await?;
            let made = self.streams.start_cursor(&new, &starts, manifest.annotation(ADOPT)).await?;
            crate::fault::point("before_sink_started");
            // Another start is wanted by now: this one was read a while ago.
            if !made || !self.store.sink_started(&row.name, &row.incarnation).await? {
                return Ok(None);
            }
            tracing::info!(sink = row.name, stream = new.stream, incarnation = row.incarnation, "publish.sink.started");
        }
        if let Some(old) = &old {
            self.streams.remove_cursor(old).await?;
            self.store.sink_moved(row).await?;
        }
        let kind = format!("{:?}", sink.on);
        Ok((row.kind == kind && row.stream.as_ref() == Some(&new.stream))
            .then_some(ActiveSink { on: sink.on, output: new }))
    }
}

fn redis_sinks(manifest: &RecordPipeline) -> impl Iterator<Item = (&Sink, &RedisStream)> {
    manifest.spec.sinks.iter().filter_map(|sink| Some((sink, sink.redis_stream.as_ref()?)))
}
