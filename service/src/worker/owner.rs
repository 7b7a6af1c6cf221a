//! Ownership: takes a fair share of the shards, renews their leases, gives them back.
//!
//! Must never decide by this machine's clock: leases run by Postgres's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use rand::Rng as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Context, shard};
use crate::{
    board::of_postgres,
    domain::{Lease, ShardId},
    lifecycle::Lifecycle,
    store::{self, Error, Rank},
    telemetry::metrics as names,
};

/// Where it is written that leases cannot be.
const LEASES: &str = "leases";

/// A shard that this worker owns.
struct Held {
    fence: Arc<Mutex<Lease>>,
    /// Cancelled to give it back.
    give_back: CancellationToken,
    /// Cancelled when it is another's by now.
    lost: CancellationToken,
}

/// Owns shards until the process stops, then gives them back.
///
/// # Errors
/// When a shard's task, or one of its lanes, panicked.
pub async fn own(context: Arc<Context>, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let worker = Arc::clone(&context.options.worker);
    let heartbeat_every = context.options.lease / 4;
    let beat = context.heartbeats.register("own", context.options.lease * 2);
    let mut held: BTreeMap<ShardId, Held> = BTreeMap::new();
    let mut failing = false;
    let mut tasks: JoinSet<ShardId> = JoinSet::new();
    loop {
        let stopping = lifecycle.soft.is_cancelled();
        if stopping {
            held.values().for_each(|shard| shard.give_back.cancel());
            if held.is_empty() {
                break;
            }
        }
        let began = Instant::now();
        match store::within(pass(&context, &mut held, &mut tasks, stopping)).await {
            Ok(()) => {
                beat.record();
                failing = false;
                context.writes.taken(began);
                context.board.set(LEASES, []);
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(event = "worker.leases.failed", worker = %worker, error = %error, "the leases cannot be renewed or acquired");
                }
                failing = true;
                context.writes.refused();
                context.board.set(LEASES, error.refuses_write().then(|| of_postgres(&error)));
            }
        }
        tokio::select! {
            Some(ended) = tasks.join_next() => {
                held.remove(&ended?);
                while let Some(ended) = tasks.try_join_next() {
                    held.remove(&ended?);
                }
            }
            () = tokio::time::sleep(heartbeat_every) => {}
            () = lifecycle.soft.cancelled(), if !stopping => {}
            () = lifecycle.hard.cancelled() => break,
        }
    }
    if let Err(error) = store::within(context.store.delete_worker(&worker)).await {
        tracing::debug!(event = "worker.worker.not_removed", worker = %worker, error = %error, "the row of this worker cannot be removed");
    }
    Ok(())
}

async fn pass(
    context: &Arc<Context>,
    held: &mut BTreeMap<ShardId, Held>,
    tasks: &mut JoinSet<ShardId>,
    stopping: bool,
) -> Result<(), Error> {
    let lease_ms = context.options.lease.as_millis() as i64;
    renew(context, held, lease_ms).await?;
    if stopping {
        return Ok(());
    }
    let rank = context.store.heartbeat(&context.options.worker, lease_ms).await?;
    let shards = context.active_manifest.borrow().manifest.spec.shards;
    let share = share(rank, shards);
    metrics::gauge!(names::SHARDS_OWNED).set(held.len() as f64);
    let owned: Vec<ShardId> =
        held.iter().filter(|(_, shard)| !shard.give_back.is_cancelled()).map(|(shard, _)| *shard).collect();
    for shard in owned.iter().skip(share) {
        tracing::info!(
            event = "worker.shard.returned",
            shard = shard.get(),
            share,
            workers = rank.workers,
            "returned a shard to the other workers"
        );
        held[shard].give_back.cancel();
    }
    if owned.len() < share {
        let free = context.store.free_shards().await?;
        let mut trouble = None;
        for shard in free {
            if !held.contains_key(&shard) && held.len() < share {
                // One whose row is locked keeps nobody from taking the others.
                trouble = take(context, held, tasks, shard, lease_ms).await.err().or(trouble);
            }
        }
        if let Some(error) = trouble {
            return Err(error);
        }
    }
    Ok(())
}

/// How many shards the worker of a rank has: all shares add up to the shards, and differ by one at most.
fn share(rank: Rank, shards: u16) -> usize {
    let (shards, workers) = (i64::from(shards), rank.workers.max(1));
    (shards / workers + i64::from(rank.rank < shards % workers)) as usize
}

async fn renew(context: &Context, held: &BTreeMap<ShardId, Held>, lease_ms: i64) -> Result<(), Error> {
    let shown: BTreeMap<ShardId, Lease> =
        held.iter().map(|(shard, held)| (*shard, shard::current(&held.fence))).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let renewed = context.store.renew(&shown, lease_ms).await?;
    for (shard, fence) in shown {
        // A fence that was raised meanwhile is renewed next time.
        // One that is being given back may have been released a moment ago; its commits are fenced in any case.
        if !renewed.contains(&shard)
            && shard::current(&held[&shard].fence) == fence
            && !held[&shard].give_back.is_cancelled()
        {
            held[&shard].lost.cancel();
        }
    }
    Ok(())
}

async fn take(
    context: &Arc<Context>,
    held: &mut BTreeMap<ShardId, Held>,
    tasks: &mut JoinSet<ShardId>,
    shard: ShardId,
    lease_ms: i64,
) -> Result<(), Error> {
    let token = format!("{:016x}{:016x}", rand::rng().next_u64(), rand::rng().next_u64());
    let Some(fence) = context.store.take(&context.options.worker, shard, &token, lease_ms).await? else {
        return Ok(());
    };
    tracing::info!(event = "worker.shard.acquired", shard = shard.get(), epoch = fence.epoch, worker = %context.options.worker, "acquired a shard");
    metrics::counter!(names::LEASE_CHANGES, "change" => "taken").increment(1);
    let fence = Arc::new(Mutex::new(fence));
    let (give_back, lost) = (CancellationToken::new(), CancellationToken::new());
    let work = shard::work(Arc::clone(context), shard, Arc::clone(&fence), give_back.clone(), lost.clone());
    tasks.spawn(async move {
        work.await;
        shard
    });
    held.insert(shard, Held { fence, give_back, lost });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_differ_by_one_at_most() {
        for shards in 1..=64_u16 {
            for workers in 1..=70_i64 {
                let shares: Vec<usize> = (0..workers).map(|rank| share(Rank { rank, workers }, shards)).collect();
                assert_eq!(shares.iter().sum::<usize>(), usize::from(shards));
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                assert!(most - least <= 1, "{shards} shards, {workers} workers: {shares:?}");
            }
        }
    }
}
