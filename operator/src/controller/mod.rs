//! The way of a reconcile: dereference → validate → build → apply → status.
//!
//! I/O in the first and the last steps, pure in the middle. Must never stop one pipeline because another is wrong, and
//! never write what stands already.

pub(crate) mod apply;
mod attempt;
pub(crate) mod autoscale;
pub(crate) mod build;
mod deletion;
pub(crate) mod dereference;
pub(crate) mod memory;
mod migrate;
pub(crate) mod migration;
mod reconcile;
pub(crate) mod refusal;
mod rollout;
pub(crate) mod status;
mod still;
mod touch;
mod write;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future};
use kube::runtime::{
    Controller, Predicate as _, PredicateConfig, WatchStreamExt as _,
    controller::{Action, Config},
    predicates,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::write::CLAIM;

use self::apply::Error;
use crate::{
    backoff::doubled,
    cache::{Cache, Feeds, Guarded},
    context::Context,
};

/// Pipelines that are worked on at once.
const CONCURRENCY: u16 = 16;
/// After the first failure of a pipeline; doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// While something is continuing.
const SOON: Duration = Duration::from_secs(1);

/// What the reconciles of one cache share.
pub(crate) struct Scope {
    /// What all share.
    pub(crate) context: Arc<Context>,
    /// This one's cache.
    pub(crate) cache: Cache,
}

/// Works on every pipeline of a cache until `stop` is cancelled.
pub(crate) async fn run(scope: Scope, feeds: Feeds, stop: CancellationToken) {
    let reader = scope.cache.pipelines.clone();
    let changes =
        feeds.pipelines.map(|found| found.inspect_err(|error| tracing::warn!(event = "operator.watch.failed", error = %error, "a watch of the API server failed and is retried")));
    // Our own status writes are no reason to look again.
    let pipelines = changes.predicate_filter(
        predicates::generation
            .combine(predicates::annotations)
            .combine(predicates::labels)
            .combine(predicates::finalizers),
        PredicateConfig::default(),
    );
    Controller::for_stream(pipelines, reader)
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(Duration::from_millis(50)))
        .reconcile_on(feeds.children)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            |object, scope| async move { Ok::<_, std::convert::Infallible>(one(&object, &scope).await) },
            |_, error, _| match *error {},
            Arc::new(scope),
        )
        .for_each(|_| future::ready(()))
        .await;
}

/// Works on one pipeline; what fails is said, and comes again after a while.
async fn one(object: &Guarded, scope: &Scope) -> Action {
    use kube::{Resource as _, ResourceExt as _};
    tracing::debug!(event = "controller.reconcile.started", object = %object.name_any(), "a reconcile started");
    // Its own only: a namespace that may not be read stops no other.
    scope.cache.ready().await;
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let memory = scope.context.memory(&namespace, &name);
    let mut memory = memory.lock().await;
    let started = std::time::Instant::now();
    let outcome = reconcile::reconcile(object, scope, &mut memory).await;
    metrics::histogram!(crate::metrics::DURATION).record(started.elapsed().as_secs_f64());
    match outcome {
        Ok(action) => {
            memory.failures = 0;
            metrics::counter!(crate::metrics::RECONCILES, "result" => "done").increment(1);
            tracing::debug!(event = "controller.reconcile.finished", namespace, name, ?action, "a reconcile finished");
            action
        }
        Err(error) => {
            memory.failures += 1;
            metrics::counter!(crate::metrics::RECONCILES, "result" => "failed").increment(1);
            let generation = object.meta().generation;
            let passing = matches!(&error, Error::Kube(kube::Error::Api(status)) if status.is_conflict());
            if passing {
                tracing::debug!(event = "controller.reconcile.conflict", namespace, name, generation, error = %error, "another writer changed the object; the reconcile is repeated");
            } else {
                tracing::warn!(event = "controller.reconcile.failed", namespace, name, generation, error = %error, "a reconcile failed and is retried");
            }
            Action::requeue(backoff(memory.failures))
        }
    }
}

/// How long a pipeline waits after its n-th failure in a row.
fn backoff(failures: u32) -> Duration {
    doubled(FIRST_BACKOFF, failures.saturating_sub(1), LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_and_longer() {
        assert_eq!([1, 2, 3].map(backoff), [500, 1_000, 2_000].map(Duration::from_millis));
        assert_eq!(backoff(u32::MAX), LONGEST_BACKOFF);
    }
}
