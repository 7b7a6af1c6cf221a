//! State of a process and of its pipeline at `/status`, the same for each role. The operator polls it.
//!
//! Served without a key, so it must never show a record, a key or a password. Must never wait for a server for long: a
//! missing fact is absent, and older facts have their age.

mod access;
mod clocks;
mod facts;
mod servers;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use millrace_crds::{
    Reason,
    status_api::{ProcessStatus, ShardStatus},
};

use crate::{
    board::{self, Board},
    config::Setup,
    store::Connections,
    telemetry::metrics::{BACKLOG, CONNECTIONS_MOST, CONNECTIONS_USED, PROBLEM},
};
pub(crate) use access::{watch_serve, watch_work};
use facts::Facts;

/// Younger facts are used again.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer waits for new facts before it uses the last ones.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// Answers `/status` for one process. Clones share their state.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    role: &'static str,
    process: Arc<str>,
    board: Board,
    setup: OnceLock<Setup>,
    facts: Mutex<Gathered>,
    /// Every reason that this process had so far: a metric cannot be taken back.
    measured: Mutex<BTreeSet<Reason>>,
}

#[derive(Debug, Default)]
struct Gathered {
    last: Option<(Instant, Arc<Facts>)>,
    under_way: Option<Shared<BoxFuture<'static, ()>>>,
}

impl Reporter {
    /// For a process that has no pipeline yet: its problems are on the board.
    #[must_use]
    pub fn new(role: &'static str, process: &Arc<str>, board: &Board) -> Self {
        let (setup, facts, measured) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { role, process: Arc::clone(process), board: board.clone(), setup, facts, measured }))
    }

    /// From now on answers have the state of the pipeline as well.
    pub fn found(&self, setup: &Setup) {
        // Only the first counts: a process works for one pipeline.
        let _ = self.0.setup.set(setup.clone());
    }

    /// The body of `/status`.
    pub async fn answer(&self) -> ProcessStatus {
        let Inner { role, process, board, setup, .. } = &*self.0;
        let gathered = match setup.get() {
            Some(setup) => self.known(setup).await,
            None => None,
        };
        let content = board.content();
        let mut status = ProcessStatus {
            role: (*role).to_owned(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            process: process.to_string(),
            pipeline: content.pipeline,
            manifest: content.manifest,
            active: content.active_policy,
            problems: content.problems,
            ..ProcessStatus::default()
        };
        if let Some(setup) = setup.get() {
            let active_manifest = setup.active_manifest.borrow();
            status.pipeline_id = Some(active_manifest.pipeline_id.to_string());
            status.refusal = active_manifest.refusal.as_deref().map(str::to_owned);
        }
        if let Some((at, facts)) = gathered {
            status.problems = board::worst_first(status.problems.into_iter().chain(facts.problems.iter().cloned()));
            let is_owned = |shard: &&ShardStatus| shard.leased && shard.owner.as_deref() == Some(process);
            status.owned = facts.shards.iter().flatten().filter(is_owned).map(|shard| shard.shard).collect();
            status.shards.clone_from(&facts.shards);
            status.sinks.clone_from(&facts.sinks);
            status.counts = facts.counts;
            status.redis_durability = facts.redis_durability;
            status.age_ms = Some(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        status
    }

    /// Sets the metrics that are read when somebody asks for them: problems, the backlog, and connections to Postgres.
    pub async fn measure(&self) {
        let problems = self.answer().await.problems;
        let mut measured = self.0.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.extend(problems.iter().map(|problem| problem.reason.clone()));
        for reason in &*measured {
            let is_set = problems.iter().any(|problem| problem.reason == *reason);
            metrics::gauge!(PROBLEM, "reason" => reason.as_str().to_owned()).set(f64::from(u8::from(is_set)));
        }
        drop(measured);
        // Of every process, from Redis: a worker that cannot apply reports nothing else, and there may be none.
        let facts = self.gathered().last.as_ref().map(|(_, facts)| Arc::clone(facts));
        for (shard, records) in facts.iter().filter_map(|facts| facts.backlog.as_ref()).flatten() {
            metrics::gauge!(BACKLOG, "shard" => shard.to_string()).set(*records as f64);
        }
        for Connections { pool, used, most } in self.0.setup.get().iter().flat_map(|setup| setup.store.connections()) {
            metrics::gauge!(CONNECTIONS_USED, "pool" => pool).set(f64::from(used));
            metrics::gauge!(CONNECTIONS_MOST, "pool" => pool).set(f64::from(most));
        }
    }

    /// The facts: new ones if they come soon, else the last ones; gathered at most once a second for all callers.
    async fn known(&self, setup: &Setup) -> Option<(Instant, Arc<Facts>)> {
        let under_way = {
            let mut gathered = self.gathered();
            match (&gathered.under_way, &gathered.last) {
                (Some(under_way), _) => under_way.clone(),
                (None, Some((at, _))) if at.elapsed() < FRESH => return gathered.last.clone(),
                (None, _) => {
                    let under_way = self.gather(setup.clone());
                    gathered.under_way = Some(under_way.clone());
                    under_way
                }
            }
        };
        let _ = tokio::time::timeout(TIMEOUT, under_way).await;
        self.gathered().last.clone()
    }

    /// Gathers in a task that continues when who asked has gone; it ends by itself, for each of its parts is bounded.
    fn gather(&self, setup: Setup) -> Shared<BoxFuture<'static, ()>> {
        let this = self.clone();
        let gathering = tokio::spawn(async move {
            let began = Instant::now();
            let facts = std::panic::AssertUnwindSafe(facts::gather(&setup)).catch_unwind().await;
            let mut gathered = this.gathered();
            gathered.under_way = None;
            if let Ok(facts) = facts {
                gathered.last = Some((began, Arc::new(facts)));
            }
        });
        gathering.map(|_| ()).boxed().shared()
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
