//! Ownership: takes a fair share of the shards, renews their leases, returns them.
//!
//! Must never decide by this machine's clock whether a lease has expired: Postgres's clock decides. Must never keep a shard
//! that Redis does not let this worker work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use rand::Rng as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Context, applier, partitions, retention, rollups,
    shard::{self, End},
};
use crate::{
    board::of_postgres,
    domain::{Lease, ShardId},
    lifecycle::Lifecycle,
    store::{self, Error, Rank},
    telemetry::metrics as names,
};

/// The part of the board for leases.
const LEASES: &str = "leases";

/// A shard that this worker owns.
struct Held {
    lease: Arc<Mutex<Lease>>,
    /// Cancelled to return it.
    stop: CancellationToken,
    /// Cancelled when it is another worker's.
    lost: CancellationToken,
}

/// The end of the work on a shard.
struct Ended {
    shard: ShardId,
    end: End,
}

/// Owns shards until the process stops, then returns them.
///
/// # Errors
/// When the task of an applier, of the partitions, of the retention, of the rollups or of a shard, or one of its publishers, panicked.
pub async fn own(context: Arc<Context>, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let worker = Arc::clone(&context.options.worker);
    let heartbeat_every = context.options.lease / 4;
    let heartbeat = context.heartbeats.register("own", context.options.lease * 2);
    let mut held: BTreeMap<ShardId, Held> = BTreeMap::new();
    let mut unsupported: BTreeMap<ShardId, Instant> = BTreeMap::new();
    let mut failing = false;
    let mut may_own = context.may_own.clone();
    let mut tasks: JoinSet<Ended> = JoinSet::new();
    let mut helpers: JoinSet<()> = JoinSet::new();
    helpers.spawn(partitions::run(Arc::clone(&context)));
    helpers.spawn(retention::run(Arc::clone(&context)));
    helpers.spawn(rollups::run(Arc::clone(&context)));
    for _ in 0..context.options.appliers {
        helpers.spawn(applier::run(Arc::clone(&context)));
    }
    loop {
        let stopping = lifecycle.soft.is_cancelled();
        if stopping {
            held.values().for_each(|shard| shard.stop.cancel());
            if held.is_empty() {
                break;
            }
        }
        let began = Instant::now();
        may_own.mark_unchanged();
        // Another worker may support the formats of these; when none takes them, this one looks again.
        unsupported.retain(|_, since| since.elapsed() < context.options.lease * 3);
        let passed = store::within(pass(&context, &mut held, &unsupported, &mut tasks, stopping)).await;
        context.store.note_write(passed.as_ref().err());
        match passed {
            Ok(()) => {
                heartbeat.record();
                failing = false;
                context.writes.taken(began, context.store.server());
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
                let mut next = Some(ended);
                while let Some(ended) = next {
                    let Ended { shard, end } = ended?;
                    held.remove(&shard);
                    if end == End::UnknownFormat {
                        unsupported.insert(shard, Instant::now());
                    }
                    next = tasks.try_join_next();
                }
            }
            // They never end by themselves.
            Some(ended) = helpers.join_next() => ended?,
            () = tokio::time::sleep(heartbeat_every) => {}
            // The process stops when nobody says so any more.
            Ok(()) = may_own.changed() => {}
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
    unsupported: &BTreeMap<ShardId, Instant>,
    tasks: &mut JoinSet<Ended>,
    stopping: bool,
) -> Result<(), Error> {
    let lease_ms = context.options.lease.as_millis() as i64;
    renew(context, held, lease_ms).await?;
    if stopping {
        return Ok(());
    }
    metrics::gauge!(names::SHARDS_OWNED).set(held.len() as f64);
    if !*context.may_own.borrow() {
        // Another worker may be let: without this one's row, all shards are the others'.
        held.values().for_each(|shard| shard.stop.cancel());
        return context.store.delete_worker(&context.options.worker).await;
    }
    let rank = context.store.heartbeat(&context.options.worker, lease_ms).await?;
    let shards = context.active_manifest.borrow().manifest.spec.shards;
    let share = share(rank, shards);
    let owned: Vec<ShardId> =
        held.iter().filter(|(_, shard)| !shard.stop.is_cancelled()).map(|(shard, _)| *shard).collect();
    for shard in owned.iter().skip(share) {
        tracing::info!(
            event = "worker.shard.returned",
            shard = shard.get(),
            share,
            workers = rank.workers,
            "returned a shard to the other workers"
        );
        held[shard].stop.cancel();
    }
    if owned.len() < share {
        let free = context.store.free_shards().await?;
        let mut failed = None;
        for shard in free {
            if !held.contains_key(&shard) && !unsupported.contains_key(&shard) && held.len() < share {
                // A shard whose row is locked does not keep this worker from the others.
                failed = take(context, held, tasks, shard, lease_ms).await.err().or(failed);
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(())
}

/// The number of shards of the worker of a rank. All shares add up to the shards, and differ by one at most.
fn share(rank: Rank, shards: u16) -> usize {
    let (shards, workers) = (i64::from(shards), rank.workers.max(1));
    (shards / workers + i64::from(rank.rank < shards % workers)) as usize
}

async fn renew(context: &Context, held: &BTreeMap<ShardId, Held>, lease_ms: i64) -> Result<(), Error> {
    let shown: BTreeMap<ShardId, Lease> =
        held.iter().map(|(shard, held)| (*shard, shard::current(&held.lease))).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let renewed = context.store.renew(&shown, lease_ms).await?;
    for (shard, lease) in shown {
        // A lease whose epoch was raised meanwhile is renewed next time. A shard that is being returned can be released
        // already; its commits compare the lease in any case.
        if !renewed.contains(&shard)
            && shard::current(&held[&shard].lease) == lease
            && !held[&shard].stop.is_cancelled()
        {
            held[&shard].lost.cancel();
        }
    }
    Ok(())
}

async fn take(
    context: &Arc<Context>,
    held: &mut BTreeMap<ShardId, Held>,
    tasks: &mut JoinSet<Ended>,
    shard: ShardId,
    lease_ms: i64,
) -> Result<(), Error> {
    let token = format!("{:016x}{:016x}", rand::rng().next_u64(), rand::rng().next_u64());
    let Some(lease) = context.store.take(&context.options.worker, shard, &token, lease_ms).await? else {
        return Ok(());
    };
    tracing::info!(event = "worker.shard.acquired", shard = shard.get(), epoch = lease.epoch, worker = %context.options.worker, "acquired a shard");
    metrics::counter!(names::LEASE_CHANGES, "change" => "taken").increment(1);
    let lease = Arc::new(Mutex::new(lease));
    let (stop, lost) = (CancellationToken::new(), CancellationToken::new());
    let work = shard::work(Arc::clone(context), shard, Arc::clone(&lease), stop.clone(), lost.clone());
    tasks.spawn(async move { Ended { shard, end: work.await } });
    held.insert(shard, Held { lease, stop, lost });
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
