//! The steps of a reconcile, in their order, each with its result for the next one.
//!
//! ```text
//! observe   Observed   the resource, its children, the pods' answers, and the time
//! validate  Validated  the resource, checked
//! desire    Desired    the objects to apply and to delete: of a pipeline that runs, or (deletion) that ends
//! apply     Applied    the problems of that
//! status               conditions, numbers and Events
//! ```
//!
//! The first step and the last two do I/O, the middle is pure. A wrong pipeline must never stop another, and an object
//! that is as it should be must never be written. Nothing here reads a clock: [`run`] passes it in.

pub(crate) mod apply;
mod attempt;
pub(crate) mod autoscale;
pub(crate) mod build;
mod condition;
mod deletion;
mod desire;
mod inactive;
pub(crate) mod memory;
pub(crate) mod migration;
pub(crate) mod observe;
mod reconcile;
pub(crate) mod refusal;
mod rollout;
pub(crate) mod status;
mod touch;
pub(crate) mod validate;
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
    cache::{Cache, CacheStreams, Guarded},
    clock::{Clock, Now},
    context::Context,
};

/// Pipelines that are reconciled at once.
const CONCURRENCY: u16 = 16;
/// The back-off after the first failure of a pipeline; doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// The time until the next reconcile while a step is under way.
const SOON: Duration = Duration::from_secs(1);

/// The context and the cache that the reconciles of one cache share.
pub(crate) struct Scope {
    /// The context of all caches.
    pub(crate) context: Arc<Context>,
    /// The cache of these reconciles.
    pub(crate) cache: Cache,
}

/// Reconciles every pipeline of a cache until `stop` is cancelled.
pub(crate) async fn run(scope: Scope, streams: CacheStreams, stop: CancellationToken) {
    let reader = scope.cache.pipelines.clone();
    let changes =
        streams.pipelines.map(|found| found.inspect_err(|error| tracing::warn!(event = "operator.watch.failed", error = %error, "a watch of the API server failed and is retried")));
    // Our own writes to the status must not cause a reconcile.
    let pipelines = changes.predicate_filter(
        predicates::generation
            .combine(predicates::annotations)
            .combine(predicates::labels)
            .combine(predicates::finalizers),
        PredicateConfig::default(),
    );
    Controller::for_stream(pipelines, reader)
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(Duration::from_millis(50)))
        .reconcile_on(streams.children)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            |object, scope| async move {
                Ok::<_, std::convert::Infallible>(reconcile_one(&object, &scope, Now::read).await)
            },
            |_, error, _| match *error {},
            Arc::new(scope),
        )
        .for_each(|_| future::ready(()))
        .await;
}

/// Reconciles one pipeline; logs a failure, and retries after a back-off.
async fn reconcile_one(object: &Guarded, scope: &Scope, clock: Clock) -> Action {
    use kube::{Resource as _, ResourceExt as _};
    tracing::debug!(event = "controller.reconcile.started", object = %object.name_any(), "a reconcile started");
    // Its own cache only: a namespace that may not be read stops no other.
    scope.cache.ready().await;
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let memory = scope.context.memory(&namespace, &name, clock());
    let mut memory = memory.lock().await;
    let started = clock().instant;
    let outcome = reconcile::reconcile(object, scope, &mut memory, clock).await;
    metrics::histogram!(crate::metrics::DURATION).record(clock().since(started).as_secs_f64());
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
            let is_conflict = matches!(&error, Error::Kube(kube::Error::Api(status)) if status.is_conflict());
            if is_conflict {
                tracing::debug!(event = "controller.reconcile.conflict", namespace, name, generation, error = %error, "another writer changed the object; the reconcile is repeated");
            } else {
                tracing::warn!(event = "controller.reconcile.failed", namespace, name, generation, error = %error, "a reconcile failed and is retried");
            }
            Action::requeue(backoff(memory.failures))
        }
    }
}

/// The back-off of a pipeline after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    doubled(FIRST_BACKOFF, failures.saturating_sub(1), LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_back_off_up_to_a_bound() {
        assert_eq!([1, 2, 3].map(backoff), [500, 1_000, 2_000].map(Duration::from_millis));
        assert_eq!(backoff(u32::MAX), LONGEST_BACKOFF);
    }
}
