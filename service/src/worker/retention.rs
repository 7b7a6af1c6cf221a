//! Retention: drops the partitions that are due, and deletes other rows that are too old, for as long as the worker runs.
//!
//! One worker at a time does it. Must never drop a partition that a sink has not published or that the archive of the manifest
//! does not hold, and must never delay commits: each delete is small, and is followed by a longer pause.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use millrace_crds::{Reason, Retention, status_api::Problem};

use super::{
    Context,
    archive::{ARCHIVE, Archived, archive},
};
use crate::{
    domain::{Period, Seq, Sequence, ShardId, ShardSeq},
    publish::floors,
    store::{self, Dropped, DuePeriod, Expired, Noted, RetentionTurn},
    telemetry::metrics as names,
};

const PERIOD: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(10);
/// Rows of one delete.
const ROWS: i64 = 5_000;
/// The share of the time that deletes take: one part in this.
const SHARE: u32 = 5;
/// How far the clock of Postgres may be ahead of this host's.
const FAR_AHEAD: Duration = Duration::from_secs(3_600);
/// The part of the board for retention.
const RETENTION: &str = "retention";

/// Why the oldest partition that is due stays.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    /// Another worker has the turn.
    Elsewhere,
    /// A sink has not published it.
    Sink { period: Period, sink: String, shard: ShardId, at: Seq, end: Seq },
    /// It is not archived.
    Archive { period: Period },
    /// Readers use it.
    Readers { period: Period },
}

/// Applies the retention until the worker ends.
pub(super) async fn run(context: Arc<Context>) {
    let mut manifests = context.active_manifest.clone();
    let mut task = Task { context, held: None, emptied: HashMap::new(), failure: String::new() };
    loop {
        let pause = match task.pass().await {
            Ok(()) => {
                task.failure.clear();
                if task.held.is_none() { PERIOD } else { RETRY }
            }
            Err(error) => {
                let error = format!("{error:#}");
                if task.failure != error {
                    tracing::warn!(
                        event = "worker.retention.failed",
                        error,
                        "old rows cannot be deleted; the worker retries"
                    );
                    task.failure = error;
                }
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = manifests.changed() => {}
        }
    }
}

struct Task {
    context: Arc<Context>,
    /// What was reported last.
    held: Option<Held>,
    /// Rollups whose rows of windows before this time are deleted.
    emptied: HashMap<i32, DateTime<Utc>>,
    /// The error of the last pass; empty: it had none.
    failure: String,
}

impl Task {
    async fn pass(&mut self) -> anyhow::Result<()> {
        let retention = self.context.active_manifest.borrow().manifest.spec.retention.unwrap_or_default();
        let due = self.due(&retention).await?;
        report_due(due);
        if due.is_none() {
            self.context.board.set(ARCHIVE, []);
        }
        if due.is_none() && (Retention { partition: retention.partition, ..Retention::default() }) == retention {
            self.context.board.set(RETENTION, []);
            return Ok(());
        }
        self.check_clock().await?;
        let Some(mut turn) = store::within(self.context.store.begin_retention()).await? else {
            self.held = due.map(|_| Held::Elsewhere);
            return Ok(());
        };
        let done = async {
            self.drop_partitions(&mut turn, &retention).await?;
            self.delete_rows(&retention).await
        };
        let done = done.await;
        store::within(turn.end()).await?;
        done
    }

    /// Nothing is deleted by a clock that is far ahead: what it deletes is gone.
    async fn check_clock(&self) -> anyhow::Result<()> {
        let clock = store::within(self.context.store.clock()).await?;
        let ahead = clock.duration_since(SystemTime::now()).unwrap_or_default();
        anyhow::ensure!(
            ahead < FAR_AHEAD,
            "the clock of Postgres is {} s ahead of the clock of this host: nothing is deleted until they agree",
            ahead.as_secs()
        );
        Ok(())
    }

    /// The oldest partition that is to be dropped.
    async fn due(&self, retention: &Retention) -> Result<Option<DuePeriod>, store::Error> {
        let store = &self.context.store;
        match store::within(store.noted_period()).await? {
            Some(noted) => Ok(Some(noted)),
            None => store::within(store.due_period(retention.records, retention.partition)).await,
        }
    }

    /// Notes the periods that are due, and drops the partitions of those that are noted, each the oldest first.
    async fn drop_partitions(&mut self, turn: &mut RetentionTurn, retention: &Retention) -> anyhow::Result<()> {
        let store = self.context.store.clone();
        let mut held = self.note_due(turn, retention).await?;
        while let Some(noted) = store::within(store.noted_period()).await? {
            let period = noted.period;
            match turn.drop_partition(period).await {
                Ok(Dropped::Done) => {
                    metrics::counter!(names::RETENTION_PARTITIONS).increment(1);
                    tracing::info!(event = "worker.retention.dropped", %period, "dropped a partition of records that are no longer kept");
                }
                Ok(Dropped::HasReaders) => held = Some(Held::Readers { period }),
                Err(error) if error.met_lock() => held = Some(Held::Readers { period }),
                Err(error) => {
                    self.report_refusal(&error, period);
                    return Err(error).with_context(|| format!("the partition of {period} cannot be dropped"));
                }
            }
            if matches!(held, Some(Held::Readers { .. })) {
                break;
            }
        }
        self.context.board.set(RETENTION, []);
        self.report_held(held);
        report_due(self.due(retention).await?);
        Ok(())
    }

    /// Notes the periods that are due, that every sink has published, and that are archived where the manifest asks for it.
    /// Returns what holds the next one.
    async fn note_due(&self, turn: &mut RetentionTurn, retention: &Retention) -> anyhow::Result<Option<Held>> {
        let store = &self.context.store;
        while let Some(due) = store::within(store.due_period(retention.records, retention.partition)).await? {
            if let Some(behind) = self.sink_behind(due).await? {
                return Ok(Some(behind));
            }
            let period = due.period;
            let place = match archive(&self.context, period).await? {
                Archived::NotAsked => None,
                Archived::At(place) => Some(place),
                Archived::Not => return Ok(Some(Held::Archive { period })),
            };
            if turn.note(period, place.as_deref()).await? == Noted::Unarchived {
                // Records came meanwhile: the next pass writes them.
                return Ok(Some(Held::Archive { period }));
            }
            crate::fault::point("after_period_noted");
        }
        Ok(None)
    }

    /// A sink that has not published all records of a period.
    async fn sink_behind(&self, due: DuePeriod) -> anyhow::Result<Option<Held>> {
        let (store, streams) = (&self.context.store, &self.context.streams);
        let ends = store::within(store.period_ends(due.period)).await?;
        let floors = floors(store, streams, Sequence::Records, self.shards()).await?;
        Ok(ends.into_iter().find_map(|ShardSeq { shard, seq: end }| {
            let floor = floors.get(&shard).filter(|floor| floor.seq < end)?;
            Some(Held::Sink { period: due.period, sink: floor.sink.clone(), shard, at: floor.seq, end })
        }))
    }

    fn shards(&self) -> u16 {
        self.context.active_manifest.borrow().manifest.spec.shards
    }

    fn report_held(&mut self, held: Option<Held>) {
        if held == self.held {
            return;
        }
        match &held {
            Some(Held::Sink { period, sink, shard, at, end }) => tracing::info!(
                event = "worker.retention.waiting",
                %period,
                sink,
                shard = shard.get(),
                at = at.get(),
                end = end.get(),
                "a partition is due and stays until this sink has published it"
            ),
            Some(Held::Readers { period }) => tracing::info!(
                event = "worker.retention.waiting",
                %period,
                "a partition is due and stays while queries read the records; the worker tries again"
            ),
            Some(Held::Archive { period }) => tracing::info!(
                event = "worker.retention.waiting",
                %period,
                "a partition is due and stays until it is archived"
            ),
            Some(Held::Elsewhere) | None => {}
        }
        self.held = held;
    }

    /// A role that is not the owner of the tables: `millrace migrate` drops what is noted.
    fn report_refusal(&self, error: &store::Error, period: Period) {
        let problem = (error.lacks_right() || matches!(error, store::Error::Refused(_))).then(|| {
            let message = format!(
                "the partition of {period} is due and cannot be dropped: {error}; run `millrace migrate` as the owner of the \
                 tables, or let this role own them"
            );
            Problem::new(Reason::PartitionOverdue, message)
        });
        self.context.board.set(RETENTION, problem);
    }

    /// Deletes rows that are not partitioned, in small steps.
    async fn delete_rows(&mut self, retention: &Retention) -> anyhow::Result<()> {
        let context = Arc::clone(&self.context);
        let store = &context.store;
        if let Some(before) = store::within(store.keeps_since(retention.duplicates)).await? {
            let mut steps = Steps::of("duplicates");
            while steps.follow(store::within(store.delete_duplicates(before, ROWS)).await?).await {}
            self.delete_outcomes("conflicts", Expired::Conflicts, before).await?;
        }
        if let Some(before) = store::within(store.keeps_since(retention.closed_dead_letters)).await? {
            self.delete_outcomes("dead_letters", Expired::DeadLetters, before).await?;
        }
        if let Some(before) = store::within(store.keeps_since(retention.rollups)).await? {
            store::within(store.close_windows(before)).await?;
            for (rollup, before) in store::within(store.closed_windows()).await? {
                if self.emptied.get(&rollup) == Some(&before) {
                    continue;
                }
                let mut steps = Steps::of("rollup_rows");
                while steps.follow(store::within(store.delete_windows(rollup, before, ROWS)).await?).await {}
                self.emptied.insert(rollup, before);
            }
        }
        if let Some(before) = store::within(store.keeps_since(retention.ids)).await? {
            self.delete_ids(before).await?;
        }
        Ok(())
    }

    async fn delete_outcomes(&self, kind: &'static str, expired: Expired, before: DateTime<Utc>) -> anyhow::Result<()> {
        let (store, sequence) = match expired {
            Expired::Conflicts => (&self.context.store, Sequence::Conflicts),
            Expired::DeadLetters => (&self.context.store, Sequence::DeadLetters),
        };
        let floors = floors(store, &self.context.streams, sequence, self.shards()).await?;
        let upto = |shard| floors.get(&shard).map_or(Seq::new(i64::MAX), |floor| floor.seq);
        let upto: Vec<ShardSeq> =
            ShardId::all(self.shards()).map(|shard| ShardSeq { shard, seq: upto(shard) }).collect();
        let mut steps = Steps::of(kind);
        while steps.follow(store::within(store.delete_outcomes(expired, before, &upto, ROWS)).await?).await {}
        Ok(())
    }

    async fn delete_ids(&self, before: DateTime<Utc>) -> anyhow::Result<()> {
        let store = &self.context.store;
        // A record that waits is judged as if it were decided when it came: its age counts on top.
        let backlog = self.context.streams.backlog(self.shards()).await?;
        let oldest = Duration::from_millis(backlog.iter().map(|shard| shard.lag_ms).max().unwrap_or(0));
        let mut step = store::within(store.begin_deleting_ids(before - oldest)).await?;
        while let Some(at) = step {
            let (began, before) = (Instant::now(), at.deleted);
            step = store::within(store.delete_ids(at)).await?;
            if let Some(step) = &step {
                metrics::counter!(names::RETENTION_ROWS, "kind" => "ids").increment(step.deleted - before);
            }
            pause(began).await;
        }
        Ok(())
    }
}

/// Steps of a delete, which follow each other while there is more to delete.
struct Steps {
    kind: &'static str,
    began: Instant,
}

impl Steps {
    fn of(kind: &'static str) -> Self {
        Self { kind, began: Instant::now() }
    }

    /// Counts the rows of a step. Returns whether another follows, after a pause.
    async fn follow(&mut self, deleted: i64) -> bool {
        metrics::counter!(names::RETENTION_ROWS, "kind" => self.kind).increment(deleted.unsigned_abs());
        let more = deleted >= ROWS;
        if more {
            pause(self.began).await;
            self.began = Instant::now();
        }
        more
    }
}

/// The pause after a step, so that steps take a small share of the time.
async fn pause(began: Instant) {
    tokio::time::sleep(began.elapsed() * (SHARE - 1)).await;
}

/// Shows the oldest partition that is due; 0: none is.
fn report_due(due: Option<DuePeriod>) {
    let first = due.map_or(0, |due| due.period.first().and_time(chrono::NaiveTime::MIN).and_utc().timestamp());
    metrics::gauge!(names::RETENTION_DUE).set(first as f64);
    let since = due.map_or(0, |due| due.since.timestamp());
    metrics::gauge!(names::RETENTION_DUE_SINCE).set(since as f64);
}
