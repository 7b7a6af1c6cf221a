//! Reconciles the started sinks with those of the manifest: adds, starts, moves and removes them.
//!
//! Every step is written to Postgres first and is idempotent: any worker that finds it undone continues with it.
//! Must never act on a policy that is not the newest.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use millrace_crds::{ADOPT, FromPosition, Overflow, RecordPipeline, RedisStream, Sink, status_api::PublisherState};
use tokio::sync::watch;

use super::{ActiveSink, Target, WebhookTarget, sink::SharedClient};
use crate::{
    config::ActiveManifest,
    domain::{OutcomeFilter, OutcomeKind, ShardId},
    lifecycle::Lifecycle,
    store::{self, NewSink, SinkBegins, SinkRow, SinkState, Store},
    streams::{Error as StreamsError, Output, Streams},
};

/// A commit reads its time right before it locks its shards. So long after a time none that read an earlier one is without
/// its locks.
const COMMIT_AFTER_CLOCK: TimeDelta = TimeDelta::seconds(1);

/// The sinks of one worker.
#[derive(Debug)]
pub struct SinkReconciler {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The manifest, followed.
    pub active_manifest: watch::Receiver<ActiveManifest>,
    /// Receives the sinks that may run.
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

impl SinkReconciler {
    /// Reconciles the sinks until the process stops.
    ///
    /// # Errors
    /// Never: a failed pass is logged and retried.
    pub async fn run(mut self, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let mut pause = Duration::from_millis(500);
        let mut halted = BTreeSet::new();
        let mut promises_checked = false;
        while !lifecycle.soft.is_cancelled() {
            let active_manifest = self.active_manifest.borrow_and_update().clone();
            match store::within(self.pass(&active_manifest, &mut halted)).await {
                Ok(()) => {
                    pause = Duration::from_millis(500);
                    if !promises_checked {
                        promises_checked = self.check_promises().await.is_ok();
                    }
                }
                Err(error) => {
                    tracing::warn!(event = "publish.sinks.failed", error = %error, "the sinks cannot be reconciled");
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
            tokio::select! {
                () = lifecycle.soft.cancelled() => {}
                changed = self.active_manifest.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Reads the durability settings of the servers once, and warns where an acknowledged record could be lost.
    async fn check_promises(&self) -> Result<(), Error> {
        let redis = self.streams.promises().await?;
        let postgres = self.store.postgres_promises().await?;
        if !redis.weaknesses().is_empty() || redis.are_unknown() {
            tracing::warn!(
                event = "publish.redis.weak",
                appendonly = redis.appendonly,
                appendfsync = redis.appendfsync,
                maxmemory_policy = redis.maxmemory_policy,
                "a 202 promises a record on disk only with appendonly yes, appendfsync always, noeviction"
            );
        }
        if postgres.fsync != "on" || postgres.synchronous_commit == "off" {
            let (fsync, synchronous_commit) = (postgres.fsync, postgres.synchronous_commit);
            tracing::warn!(
                event = "publish.postgres.weak",
                fsync,
                synchronous_commit,
                "a commit may be lost in a crash"
            );
        }
        Ok(())
    }

    /// `halted` has the refused sinks that were logged: each is logged once.
    async fn pass(&self, active_manifest: &ActiveManifest, halted: &mut BTreeSet<String>) -> Result<(), Error> {
        let manifest = &active_manifest.manifest;
        let version = active_manifest.policy.version;
        let rows = self.store.sinks().await?;
        for sink in &manifest.spec.sinks {
            self.declare(sink, rows.iter().find(|row| row.name == sink.name), active_manifest).await?;
        }
        for row in &rows {
            if !manifest.spec.sinks.iter().any(|sink| sink.name == row.name) {
                self.store.remove_sink(&row.name, version).await?;
            }
        }
        let mut active = Vec::new();
        let mut outcome = Ok(());
        for row in self.store.sinks().await? {
            match self.apply(&row, active_manifest).await {
                Ok(sink) => {
                    halted.remove(&row.name);
                    active.extend(sink);
                }
                Err(Error::Streams(StreamsError::Refused(detail))) => {
                    if halted.insert(row.name.clone()) {
                        tracing::error!(
                            event = "publish.sink.halted",
                            sink = row.name,
                            detail,
                            "a sink is halted until it is resumed by hand"
                        );
                    }
                    let state = SinkState { state: PublisherState::Halted, detail };
                    self.store.set_sink_state(&row.name, ShardId::new(0), None, Some(&state)).await?;
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

    /// Writes to Postgres what the manifest asks for, for one sink.
    async fn declare(&self, sink: &Sink, row: Option<&SinkRow>, active_manifest: &ActiveManifest) -> Result<(), Error> {
        let version = active_manifest.policy.version;
        let stream = sink.stream(&active_manifest.manifest.metadata.name);
        let kind = OutcomeKind::from(sink.event);
        match row {
            None => {
                self.add(sink, stream.as_deref(), version).await?;
            }
            // Other outcomes have other numbers, and another kind of target has another cursor: a new sink of the old name.
            Some(row) if row.kind != kind || row.removed || row.stream.is_some() != stream.is_some() => {
                self.store.remove_sink(&sink.name, version).await?;
            }
            Some(row) => {
                if until(sink) != row.until {
                    self.store.set_sink_until(&sink.name, until(sink), version).await?;
                }
                if sink.filter.is_some() && !row.filtered {
                    self.store.sink_filtered(&sink.name).await?;
                }
                if let Some(stream) = stream.filter(|stream| row.stream.as_ref() != Some(stream)) {
                    self.store.move_sink(row, &stream, &self.store.cursor_generation().await?, version).await?;
                    tracing::info!(
                        event = "publish.sink.moving",
                        sink = sink.name,
                        stream,
                        "moving a sink to another stream"
                    );
                }
            }
        }
        Ok(())
    }

    /// Adds a sink to Postgres, unless the time at which it begins has not passed.
    async fn add(&self, sink: &Sink, stream: Option<&str>, version: i64) -> Result<(), Error> {
        let kind = OutcomeKind::from(sink.event);
        // The default: all outcomes of a new pipeline, only new ones of a running one.
        let default = if version == 1 { FromPosition::Beginning } else { FromPosition::Now };
        let from = sink.from.as_ref();
        let points;
        let begins = match from.and_then(|from| from.micros()).and_then(DateTime::from_timestamp_micros) {
            Some(time) if !self.has_passed(time).await? => return Ok(()),
            Some(time) => {
                points = self.store.before_time(kind, time).await?;
                SinkBegins::After(&points)
            }
            None if from.and_then(|from| from.position).unwrap_or(default) == FromPosition::Beginning => {
                SinkBegins::Beginning
            }
            None => SinkBegins::Now,
        };
        let cursor_generation = &self.store.cursor_generation().await?;
        let new = NewSink { name: &sink.name, kind, stream, cursor_generation, begins, until: until(sink) };
        self.store.add_sink(&new, version).await?;
        tracing::info!(event = "publish.sink.added", sink = sink.name, stream, from = ?from, "added a sink");
        Ok(())
    }

    /// Whether everything from before a time is committed, or is being committed.
    async fn has_passed(&self, time: DateTime<Utc>) -> Result<bool, Error> {
        Ok(time + COMMIT_AFTER_CLOCK <= DateTime::<Utc>::from(self.store.clock().await?))
    }

    /// Completes a sink that has published everything before its end. Returns whether it is complete.
    async fn complete(&self, row: &SinkRow) -> Result<bool, Error> {
        let Some(until) = row.until.filter(|_| row.started && !row.completed) else { return Ok(row.completed) };
        if !self.has_passed(until).await? {
            return Ok(false);
        }
        let ends = match self.store.sink_ends(&row.name).await? {
            Some(ends) => ends,
            None => {
                let ends = self.store.before_time(row.kind, until).await?;
                self.store.set_sink_ends(&row.name, until, &ends).await?;
                ends
            }
        };
        let is_at_its_end = match &row.stream {
            None => self.store.is_webhook_at(&row.name, &ends).await?,
            Some(stream) => {
                let cursors = self.streams.sink_cursors(std::slice::from_ref(stream)).await?;
                let numbers = cursors.into_iter().next().map(|cursor| cursor.numbers).unwrap_or_default();
                ends.iter().all(|end| numbers.get(&end.shard).is_some_and(|cursor| *cursor >= end.seq))
            }
        };
        let is_complete = is_at_its_end && self.store.complete_sink(row, until).await?;
        if is_complete {
            tracing::info!(event = "publish.sink.completed", sink = row.name, %until, "a sink has reached its end");
        }
        Ok(is_complete)
    }

    /// Brings one sink to the state of its row. Returns the sink for its publishers once it is there.
    async fn apply(&self, row: &SinkRow, active_manifest: &ActiveManifest) -> Result<Option<ActiveSink>, Error> {
        let Some(stream) = row.stream.clone() else { return self.apply_webhook(row, active_manifest).await };
        let output = |stream: String, cursor_generation: &str, target: Option<&RedisStream>| Output {
            pipeline_id: active_manifest.pipeline_id.to_string(),
            sink: row.name.clone(),
            stream,
            cursor_generation: cursor_generation.to_owned(),
            max_length: target.map_or(0, |target| target.max_length),
            trim_unread: target.is_some_and(|target| target.overflow == Overflow::Trim),
        };
        let old = row.old_stream.clone().zip(row.old_cursor_generation.as_deref());
        let old = old.map(|(stream, cursor_generation)| output(stream, cursor_generation, None));
        if row.removed {
            self.streams.remove_cursor(&output(stream, &row.cursor_generation, None)).await?;
            if let Some(old) = old {
                self.streams.remove_cursor(&old).await?;
            }
            return self.delete(row).await;
        }
        let manifest = &active_manifest.manifest;
        let declared = redis_sinks(manifest).find(|(sink, _)| sink.name == row.name);
        let Some((sink, target)) = declared else { return Ok(None) };
        let new = output(stream, &row.cursor_generation, Some(target));
        if !row.started {
            // Where the new cursor exists, the old one was ended before, and may have been in its very place.
            let exists = self.streams.cursor(&new, ShardId::new(0)).await?.is_some();
            if let Some(old) = old.as_ref().filter(|_| !exists) {
                self.end_old(row, old, &new).await?;
            }
            let starts = self.store.sink_starts(&row.name).await?;
            let made = self.streams.start_cursor(&new, &starts, manifest.annotation(ADOPT)).await?;
            crate::fault::point("before_sink_started");
            // The row was read a while ago: it may have another generation by now.
            if !made || !self.store.sink_started(&row.name, &row.cursor_generation).await? {
                return Ok(None);
            }
            tracing::info!(
                event = "publish.sink.started",
                sink = row.name,
                stream = new.stream,
                cursor_generation = row.cursor_generation,
                "started a sink"
            );
        }
        if let Some(old) = &old {
            self.streams.remove_cursor(old).await?;
            self.store.sink_moved(row).await?;
        }
        let is_noted = row.filtered || sink.filter.is_none();
        let is_declared =
            row.kind == OutcomeKind::from(sink.event) && row.stream.as_ref() == Some(&new.stream) && is_noted;
        let may_run = is_declared && !self.complete(row).await?;
        Ok(may_run.then(|| active(sink, Target::Redis(new))))
    }

    /// Ends the old cursor of a sink, so that no publisher appends by it any more, and stores where the `new` one begins.
    async fn end_old(&self, row: &SinkRow, old: &Output, new: &Output) -> Result<(), Error> {
        let ended = self.streams.retire_cursor(old).await?;
        crate::fault::point("after_retire");
        match ended {
            Some(positions) => Ok(self.store.set_starts(row, &positions).await?),
            // Another worker has put the new cursor in its place meanwhile.
            None if self.streams.cursor(new, ShardId::new(0)).await?.is_some() => Ok(()),
            None => Err(Error::Streams(StreamsError::Refused(format!(
                "the cursor beside {} is gone, so the position to continue from is not known; \
                 millrace sinks resume {} --from now|beginning",
                old.stream, row.name
            )))),
        }
    }

    async fn delete(&self, row: &SinkRow) -> Result<Option<ActiveSink>, Error> {
        self.store.delete_sink(row).await?;
        tracing::info!(event = "publish.sink.removed", sink = row.name, "removed a sink");
        Ok(None)
    }

    /// The same for a webhook, whose cursor is in Postgres.
    async fn apply_webhook(
        &self,
        row: &SinkRow,
        active_manifest: &ActiveManifest,
    ) -> Result<Option<ActiveSink>, Error> {
        if row.removed {
            return self.delete(row).await;
        }
        let manifest = &active_manifest.manifest;
        let declared = manifest.spec.sinks.iter().find(|sink| sink.name == row.name);
        let Some((sink, webhook)) = declared.and_then(|sink| Some((sink, sink.webhook.clone()?))) else {
            return Ok(None);
        };
        if !row.started {
            // The row was read a while ago: it may have another generation by now.
            if !self.store.start_webhook(&row.name, &row.cursor_generation).await? {
                return Ok(None);
            }
            let cursor_generation = &row.cursor_generation;
            tracing::info!(event = "publish.sink.started", sink = row.name, cursor_generation, "started a sink");
        }
        let pipeline_id = active_manifest.pipeline_id.to_string();
        let target = WebhookTarget {
            source: format!("{}/{pipeline_id}", manifest.metadata.name),
            pipeline_id,
            cursor_generation: row.cursor_generation.clone(),
            webhook,
            client: SharedClient::default(),
        };
        let may_run = row.kind == OutcomeKind::from(sink.event) && !row.disabled && !self.complete(row).await?;
        Ok(may_run.then(|| active(sink, Target::Webhook(Arc::new(target)))))
    }
}

/// The time of its end.
fn until(sink: &Sink) -> Option<DateTime<Utc>> {
    sink.until.as_ref().and_then(|until| until.micros()).and_then(DateTime::from_timestamp_micros)
}

fn active(sink: &Sink, target: Target) -> ActiveSink {
    let filter = OutcomeFilter::of(sink.filter.as_ref());
    ActiveSink { name: sink.name.clone(), kind: OutcomeKind::from(sink.event), filter, until: until(sink), target }
}

fn redis_sinks(manifest: &RecordPipeline) -> impl Iterator<Item = (&Sink, &RedisStream)> {
    manifest.spec.sinks.iter().filter_map(|sink| Some((sink, sink.redis_stream.as_ref()?)))
}
