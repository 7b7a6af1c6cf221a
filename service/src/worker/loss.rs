//! What is lost: entries that serve processes appended, and that are neither applied nor in the stream.
//!
//! One count finds every loss, whatever took the entries: a Redis that forgot them, somebody who removed them, or a
//! Postgres that forgot what became of them. Redis counts appends in the step that appends, the processes note their
//! counts in Postgres, and each server is told where the other knows of more. Must only be counted by the owner, between
//! batches: what is in hand is in nobody's books.

use std::collections::BTreeSet;

use super::{Context, shard::Error};
use crate::{
    domain::{Lease, ShardId},
    store::Producer,
    streams::{Input, LossBound, Step},
    telemetry::metrics as names,
};

/// How many processes one count folds.
const FOLDED_AT_ONCE: usize = 500;

/// Counts a shard's entries, and says what is missing. `repeats`: entries in the stream may be applied already.
/// Answers false where the fence had to be raised: pending entries have to be taken over first. `suspects`: the processes
/// that seemed to be dead at the last count.
pub(super) async fn count(
    context: &Context,
    input: &Input,
    fence: &Lease,
    repeats: bool,
    suspects: &mut BTreeSet<String>,
) -> Result<bool, Error> {
    let shard = input.shard();
    // Postgres first. Nothing is applied meanwhile, and what is appended meanwhile is in the stream.
    let books = context.store.books(shard).await?;
    let known: Vec<_> = books.appenders.iter().map(|by| (by.process.clone(), by.acknowledged)).collect();
    let Step::Done(census) = input.count(fence, books.applied, books.folded, &known).await? else { return Ok(false) };
    if census.rewound > 0 {
        tracing::warn!(
            event = "worker.redis.rewound",
            shard = shard.get(),
            entries = census.rewound,
            "Redis was rewound: it counts fewer appends than Postgres"
        );
    }
    let mut counted_twice = false;
    for (process, count) in &census.strangers {
        // Of a process that Postgres forgot, or that is new: Redis may forget it, too.
        counted_twice |= context.store.note_appender(process, shard, *count).await?;
    }
    if counted_twice {
        // Folded before: Redis did not remove it, or was rewound to before that. The next count has it once.
        return Ok(true);
    }
    fold(context, input, fence, &books.appenders, &census.stood).await?;
    let mut accounted = true;
    let may_judge = may_judge(context, &books.appenders).await?;
    // A process whose note waited for a lock notes again as soon as it has it: one that seems to be dead twice is.
    let dead = books.appenders.iter().filter(|by| by.dead_for.is_some()).map(|by| by.process.clone()).collect();
    let suspected = std::mem::replace(suspects, dead);
    for (by, stood) in books.appenders.iter().zip(&census.stood) {
        let may_judge = may_judge && suspected.contains(&by.process);
        // Its last word is spoken for it before anything is said to be known.
        let is_known = by.dead_for.is_none() || (may_judge && bury(context, shard, by, *stood, census.since).await?);
        accounted &= is_known && !by.unaccounted;
    }
    // Of entries that came back with a Redis that went back it is not known which are applied.
    let doubtful = if repeats { census.present } else { 0 };
    // Any whose answer never came may have been appended, forgotten by Redis and applied: it hides one that is gone.
    let unknown: i64 = books.appenders.iter().map(|by| by.unknown).sum();
    // Those of them that are applied are not lost.
    let unknown = (unknown - census.uncounted).max(0);
    let most = accounted.then_some((census.missing + doubtful + unknown).max(books.lost));
    if census.missing > books.lost {
        let more = context.store.note_lost(shard, fence, census.missing).await?;
        tracing::error!(
            event = "worker.records.lost",
            shard = shard.get(),
            lost = more,
            at_least = census.missing,
            at_most = most,
            "accepted records were lost"
        );
        metrics::counter!(names::LOST, "shard" => shard.to_string()).increment(more.unsigned_abs());
    }
    if census.told != most.map_or(LossBound::Unknown, LossBound::AtMost) {
        input.tell_most(fence, most).await?;
    }
    Ok(true)
}

/// Folds processes that closed long ago, so that a count costs as much as there are processes of the last day.
async fn fold(
    context: &Context,
    input: &Input,
    fence: &Lease,
    appenders: &[Producer],
    stood: &[i64],
) -> Result<(), Error> {
    let former = appenders.iter().zip(stood).filter(|(by, stood)| by.former && by.acknowledged == **stood);
    let former: Vec<_> = former.map(|(by, _)| by.process.clone()).take(FOLDED_AT_ONCE).collect();
    if former.is_empty() {
        return Ok(());
    }
    let folded = context.store.fold_appenders(input.shard(), &former).await?;
    // Where this fails, the next count finds them to be strangers, and takes them out of the sum again.
    Ok(input.fold(fence, &folded).await?)
}

/// Whether a process without a recent note is dead: it may live and have been unable to write.
async fn may_judge(context: &Context, appenders: &[Producer]) -> Result<bool, Error> {
    if appenders.iter().all(|by| by.dead_for.is_none()) {
        return Ok(true);
    }
    if context.store.takes_no_writes().await?.is_some() {
        context.writes.refused();
    }
    Ok(context.writes.are_steady())
}

/// Speaks the last word for a process that died without it; false: nobody knows how many entries it appended.
async fn bury(context: &Context, shard: ShardId, by: &Producer, stood: i64, since: i64) -> Result<bool, Error> {
    let Some(dead_for) = by.dead_for else { return Ok(true) };
    // Redis has counted what the process had no time to note, unless it was emptied or another server since.
    let kept = stood >= by.acknowledged && since as f64 > dead_for + 1.0;
    context.store.bury_appender(&by.process, shard, stood, kept).await?;
    if !kept {
        metrics::counter!(names::UNACCOUNTED, "shard" => shard.to_string()).increment(1);
    }
    tracing::warn!(
        event = "process.appender.buried",
        shard = shard.get(),
        process = by.process,
        entries = stood,
        accounted = kept,
        "a serve process ended without its last counts"
    );
    Ok(kept)
}
