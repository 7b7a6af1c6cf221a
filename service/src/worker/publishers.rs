//! The publishers of a shard: one task per sink, beside the shard's own task.
//!
//! Must never let a publisher's panic pass unseen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::{
    domain::{Lease, ShardId},
    publish::{ActiveSink, Publisher, RecentCommits},
};

/// How long publishers may continue after their shard stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs one publisher per sink of a shard, and follows the sinks, until `stopped`; then until all is published.
///
/// # Panics
/// When a publisher panicked: its outcomes must not stay unpublished in silence.
pub(super) async fn run(
    context: Arc<Context>,
    shard: ShardId,
    lease: Arc<Mutex<Lease>>,
    recent: Arc<RecentCommits>,
    stopped: CancellationToken,
    lost: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let hard = lost.child_token();
    let mut sinks = context.sinks.clone();
    let mut running: BTreeMap<String, (ActiveSink, CancellationToken)> = BTreeMap::new();
    loop {
        let active = Arc::clone(&sinks.borrow_and_update());
        running.retain(|_, (sink, end)| {
            let stays = active.contains(sink);
            if !stays {
                end.cancel();
            }
            stays
        });
        for sink in active.iter() {
            running.entry(sink.name.clone()).or_insert_with(|| {
                let end = hard.child_token();
                let publisher = Publisher {
                    store: context.store.clone(),
                    streams: context.streams.clone(),
                    shard,
                    lease: Arc::clone(&lease),
                    recent: Arc::clone(&recent),
                    sink: sink.clone(),
                    secrets: context.secrets.clone(),
                };
                tasks.spawn(publisher.run(stopped.clone(), end.clone()));
                (sink.clone(), end)
            });
        }
        tokio::select! {
            // Without the sink reconciler nothing changes any more, and the process is about to stop.
            Ok(()) = sinks.changed() => {}
            Some(ended) = tasks.join_next() => resume_panic(ended),
            () = stopped.cancelled() => break,
        }
    }
    let drained = async {
        while let Some(ended) = tasks.join_next().await {
            resume_panic(ended);
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!(
            event = "publisher.drain.timed_out",
            shard = shard.get(),
            "publishers did not finish before the shard was released"
        );
        tasks.shutdown().await;
    }
}

/// Continues the panic of a task that ended by one.
fn resume_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
