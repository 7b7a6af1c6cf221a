//! Retention: drops the partitions that are due, and deletes other rows that are too old, for as long as the worker runs.
//!
//! One worker at a time does it. Must never drop a partition that a sink has not published, and must never delay commits: each
//! delete is small, and is followed by a longer pause.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use millrace_crds::{Reason, Retention, status_api::Problem};

use super::Context;
use crate::{
    domain::{Seq, Sequence, ShardId, ShardSeq},
    publish::floors,
    store::{self, Dropped, DuePeriod, Expired, RetentionTurn},
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
    Sink { sink: String, shard: ShardId, at: Seq, end: Seq },
    /// Readers use it.
    Readers,
}

/// Applies the retention until the worker ends.
pub(super) async fn run(context: Arc<Context>) {
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
        tokio::time::sleep(pause).await;
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
            self.drop_partitions(&mut turn, &retention, due).await?;
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

    async fn due(&self, retention: &Retention) -> Result<Option<DuePeriod>, store::Error> {
        store::within(self.context.store.due_period(retention.records, retention.partition)).await
    }

    /// Drops the partitions that are due, the oldest first.
    async fn drop_partitions(
        &mut self,
        turn: &mut RetentionTurn,
        retention: &Retention,
        mut due: Option<DuePeriod>,
    ) -> anyhow::Result<()> {
        while let Some(oldest) = due {
            let held = match self.drop_oldest(turn, oldest).await {
                Ok(held) => held,
                Err(error) => {
                    self.report_refusal(&error, oldest);
                    return Err(error);
                }
            };
            self.report_held(oldest, held.as_ref());
            if held.is_some() {
                return Ok(());
            }
            due = self.due(retention).await?;
            report_due(due);
        }
        self.held = None;
        self.context.board.set(RETENTION, []);
        Ok(())
    }

    async fn drop_oldest(&self, turn: &mut RetentionTurn, due: DuePeriod) -> anyhow::Result<Option<Held>> {
        if !due.is_noted {
            if let Some(behind) = self.sink_behind(due).await? {
                return Ok(Some(behind));
            }
            turn.note(due.period).await?;
            crate::fault::point("after_period_noted");
        }
        match turn.drop_partition(due.period).await {
            Ok(Dropped::Done) => Ok(None),
            Ok(Dropped::HasReaders) => Ok(Some(Held::Readers)),
            Err(error) if error.met_lock() => Ok(Some(Held::Readers)),
            Err(error) => Err(error).with_context(|| format!("the partition of {} cannot be dropped", due.period)),
        }
    }

    /// A sink that has not published all records of a period.
    async fn sink_behind(&self, due: DuePeriod) -> anyhow::Result<Option<Held>> {
        let (store, streams) = (&self.context.store, &self.context.streams);
        let ends = store::within(store.period_ends(due.period)).await?;
        let floors = floors(store, streams, Sequence::Records, self.shards()).await?;
        Ok(ends.into_iter().find_map(|ShardSeq { shard, seq: end }| {
            let floor = floors.get(&shard).filter(|floor| floor.seq < end)?;
            Some(Held::Sink { sink: floor.sink.clone(), shard, at: floor.seq, end })
        }))
    }

    fn shards(&self) -> u16 {
        self.context.active_manifest.borrow().manifest.spec.shards
    }

    fn report_held(&mut self, due: DuePeriod, held: Option<&Held>) {
        let period = due.period;
        if held == self.held.as_ref() && held.is_some() {
            return;
        }
        match held {
            None => {
                metrics::counter!(names::RETENTION_PARTITIONS).increment(1);
                self.context.board.set(RETENTION, []);
                tracing::info!(event = "worker.retention.dropped", %period, "dropped a partition of records that are no longer kept");
            }
            Some(Held::Sink { sink, shard, at, end }) => tracing::info!(
                event = "worker.retention.waiting",
                %period,
                sink,
                shard = shard.get(),
                at = at.get(),
                end = end.get(),
                "a partition is due and stays until this sink has published it"
            ),
            Some(Held::Readers) => tracing::info!(
                event = "worker.retention.waiting",
                %period,
                "a partition is due and stays while queries read the records; the worker tries again"
            ),
            Some(Held::Elsewhere) => {}
        }
        self.held = held.cloned();
    }

    /// A role that is not the owner of the tables: `millrace migrate` drops what is noted.
    fn report_refusal(&self, error: &anyhow::Error, due: DuePeriod) {
        let Some(error) = error.downcast_ref::<store::Error>() else { return };
        let problem = (error.lacks_right() || matches!(error, store::Error::Refused(_))).then(|| {
            let message = format!(
                "the partition of {} is due and cannot be dropped: {error}; run `millrace migrate` as the owner of the \
                 tables, or let this role own them",
                due.period
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
        let mut step = store::within(store.begin_deleting_ids(before)).await?;
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
