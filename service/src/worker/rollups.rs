//! The background work on declared rollups: builds older records into new ones, and deletes removed ones.
//!
//! Any worker may take any step: Postgres's row locks decide which records come next. Must never delay the commits: a step is
//! small, and each is followed by a pause as long as itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Context;
use crate::{
    store::{self, RollupStep, Store},
    telemetry::metrics as names,
};

/// Batches whose records a step of a build has.
const BATCHES: usize = 5;
/// Rows of a step of a deletion.
const ROWS: i64 = 5_000;
/// Shortest pause after a step.
const SHORTEST: Duration = Duration::from_millis(5);
/// Pause while there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// Builds and deletes until the worker ends.
pub(super) async fn run(context: Arc<Context>) {
    let records = i64::try_from(context.options.batch * BATCHES).unwrap_or(i64::MAX);
    let mut is_failing = false;
    loop {
        let began = Instant::now();
        let pause = match store::within(step(&context.store, records)).await {
            Ok(done) => {
                is_failing = false;
                report(&context.store, &done).await;
                if done == RollupStep::Nothing { IDLE } else { began.elapsed().max(SHORTEST) }
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(event = "worker.rollup.failed", %error, "a rollup cannot be built or deleted; the worker retries");
                }
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn step(store: &Store, records: i64) -> Result<RollupStep, store::Error> {
    match store.build_rollup(records).await? {
        RollupStep::Nothing => store.delete_rollup(ROWS).await,
        done => Ok(done),
    }
}

async fn report(store: &Store, done: &RollupStep) {
    match done {
        RollupStep::Built { id, name, records, ended } => {
            metrics::counter!(names::ROLLUP_RECORDS, "rollup" => name.clone()).increment((*records).unsigned_abs());
            // The step is committed: of the workers that end the last two parts at once, one at least sees both.
            let states =
                if *ended { store::within(store.rollup_states()).await.unwrap_or_default() } else { Vec::new() };
            if states.iter().any(|state| state.id == *id && state.complete) {
                tracing::info!(event = "worker.rollup.complete", rollup = name, id, "a declared rollup is complete");
            }
        }
        RollupStep::Deleted { id, name } => {
            tracing::info!(event = "worker.rollup.deleted", rollup = name, id, "a removed rollup is deleted");
        }
        RollupStep::Deleting | RollupStep::Nothing => {}
    }
}
