//! State of a process and of its pipeline at `/status`, the same for each role. The operator polls it.
//!
//! Served without a key, so it must never show a record, a key or a password. Must never wait for a server for long: a
//! missing fact is absent, and older facts have their age.

mod board;
mod facts;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use serde::Serialize;
use serde_json::{Value, json};

pub use board::{Board, Problem, Reason};
pub(crate) use facts::{not_migrated, of_postgres, of_redis, silent};

use crate::config::Setup;
use facts::Facts;

/// Younger facts are used again.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer waits for new facts before it uses the last ones.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// Which version of the manifest, and from which object it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActivePolicy {
    /// The version in Postgres.
    pub version: i64,
    /// The uid of the manifest that brought it.
    pub uid: String,
    /// The generation of that manifest.
    pub generation: i64,
}

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
        let (setup, facts) = (OnceLock::new(), Mutex::default());
        Self(Arc::new(Inner { role, process: Arc::clone(process), board: board.clone(), setup, facts }))
    }

    /// From now on answers have the state of the pipeline as well.
    pub fn found(&self, setup: &Setup) {
        // Only the first counts: a process works for one pipeline.
        let _ = self.0.setup.set(setup.clone());
    }

    /// The answer of `/status`.
    pub async fn answer(&self) -> Value {
        let Inner { role, process, board, setup, .. } = &*self.0;
        let told = board.told();
        let mut answer = json!({
            "role": role,
            "software": env!("CARGO_PKG_VERSION"),
            "process": &**process,
            "pipeline": told.pipeline,
            "pipelineId": null,
            "manifest": told.manifest,
            "active": told.active_policy,
            "refusal": null,
            "problems": told.problems,
            "shards": null,
            "owned": [],
            "sinks": null,
            "counts": null,
            "ageMs": null,
        });
        let Some(setup) = setup.get() else { return answer };
        let known = self.known(setup).await;
        let active_manifest = setup.active_manifest.borrow().clone();
        answer["pipelineId"] = (*active_manifest.pipeline_id).into();
        answer["refusal"] = active_manifest.refusal.as_deref().into();
        if let Some((at, facts)) = known {
            let problems = board.told().problems.into_iter().chain(facts.problems.iter().cloned());
            answer["problems"] = json!(board::worst_first(problems));
            let owned = facts.shards.iter().flatten().filter(|shard| shard.leased && shard.is_owned_by(process));
            answer["owned"] = owned.map(|shard| shard.shard).collect();
            answer["shards"] = json!(facts.shards);
            answer["sinks"] = json!(facts.sinks);
            answer["counts"] = json!(facts.counts);
            answer["ageMs"] = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX).into();
        }
        answer
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
