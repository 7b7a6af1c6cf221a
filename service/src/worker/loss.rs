//! Lost records: how many were appended and are neither applied nor in the stream.
//!
//! The append numbers the records of a shard, so a loss is a gap in the offsets that are read, or a rest when the stream is
//! at its end. A rewound Redis has lost numbers, too: the counts of the producers in Postgres show how many. Every second
//! the owner makes both servers agree, between batches: nothing may be in flight.

use std::{collections::BTreeSet, time::Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Context, shard::Error};
use crate::{
    domain::{AppendCount, Lease, Offset, ShardId},
    fault,
    store::{Producer, ShardAccount},
    streams::{Input, ProducerCount, Reconciled, Step},
    telemetry::metrics as names,
};

/// How long a producer may wait for the answer of an append that it has not counted yet, with the time of its next note.
const UNCOUNTED: TimeDelta = TimeDelta::seconds(7);
/// Number of producers that one step folds.
const FOLDED_AT_ONCE: usize = 500;

/// How an owner reconciles the counts of its shard.
#[derive(Debug)]
pub(super) struct Reconciler {
    due: Instant,
    /// Since when more records are accounted for than producers have counted, by Postgres's clock.
    surplus_since: Option<DateTime<Utc>>,
    /// Producers that seemed to be dead at the last step.
    suspects: BTreeSet<String>,
}

impl Default for Reconciler {
    fn default() -> Self {
        Self { due: Instant::now(), surplus_since: None, suspects: BTreeSet::new() }
    }
}

impl Reconciler {
    /// Whether a step is due.
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Makes the counts of both servers agree; the next step then is due a second later. Returns false where the lease was
    /// raised in Redis: pending entries have to be reclaimed first.
    pub(super) async fn step(&mut self, context: &Context, input: &Input, lease: &Lease) -> Result<bool, Error> {
        self.due = Instant::now() + std::time::Duration::from_secs(1);
        let shard = input.shard();
        // Postgres first: a count of Redis that is read later is never below it without a rewind.
        let account = context.store.account_of(shard).await?;
        let producers: Vec<_> = account
            .producers
            .iter()
            .map(|by| ProducerCount { producer: by.name.clone(), count: by.appended })
            .collect();
        let Step::Done(counts) = input.reconcile(lease, account.folded, &producers).await? else { return Ok(false) };
        if !counts.unknown_producers.is_empty() {
            adopt(context, input, lease, &counts.unknown_producers).await?;
            return Ok(true);
        }
        if counts.raised > 0 {
            tracing::warn!(
                event = "worker.redis.rewound",
                shard = shard.get(),
                records = counts.raised,
                "Redis was rewound: it counts fewer appended records than their producers"
            );
            fault::point("after_raise");
        }
        // A producer whose note waited for a lock notes again as soon as it has it: one that seems to be dead twice is.
        let dead = account.producers.iter().filter(|by| by.dead_for.is_some()).map(|by| by.name.clone()).collect();
        let suspected = std::mem::replace(&mut self.suspects, dead);
        close_dead(context, shard, &account.producers, &counts, &suspected).await?;
        fold(context, input, lease, &account.producers, &counts.held).await?;
        self.agree(context, shard, &account, &counts).await?;
        Ok(true)
    }

    /// Adds what no producer counts to the sum of the folded ones: of producers that a rewound Postgres lost, or of records
    /// that are applied and whose append a rewound Redis lost before it answered.
    async fn agree(
        &mut self,
        context: &Context,
        shard: ShardId,
        account: &ShardAccount,
        counts: &Reconciled,
    ) -> Result<(), Error> {
        let missing = counts.counted.until(counts.appended);
        if missing > 0 {
            context.store.add_folded(shard, account.folded, missing).await?;
        }
        let surplus = counts.appended.until(account.accounted);
        if surplus == 0 {
            self.surplus_since = None;
            return Ok(());
        }
        let since = *self.surplus_since.get_or_insert(account.now);
        // A producer may count them in a note to come: when an answer that is under way has arrived, or when its row, which
        // a rewound Postgres has lost, is noted again.
        let counted = since + UNCOUNTED;
        if account.now > counted && account.oldest_note.is_none_or(|oldest| oldest > counted) {
            context.store.add_folded(shard, account.folded, surplus).await?;
            self.surplus_since = None;
        }
        Ok(())
    }

    /// Waits again before a surplus is added: the owner prepares its shard again, and Redis can be rewound once more.
    pub(super) fn restart(&mut self) {
        self.surplus_since = None;
    }
}

/// Takes over producers that only Redis has: Postgres was rewound, or Redis to before they were folded.
async fn adopt(
    context: &Context,
    input: &Input,
    lease: &Lease,
    unknown_producers: &[ProducerCount],
) -> Result<(), Error> {
    let mut folded = Vec::new();
    for ProducerCount { producer, count } in unknown_producers {
        let count = AppendCount { shard: input.shard(), appended: *count };
        if !context.store.note_unknown_producer(producer, count).await? {
            folded.push(producer.clone());
        }
    }
    Ok(input.drop_producers(lease, &folded).await?)
}

/// Closes producers that ended without a last note.
async fn close_dead(
    context: &Context,
    shard: ShardId,
    producers: &[Producer],
    counts: &Reconciled,
    suspected: &BTreeSet<String>,
) -> Result<(), Error> {
    if producers.iter().all(|by| by.dead_for.is_none()) {
        return Ok(());
    }
    // A producer without a recent note may live and have been unable to write it.
    if context.store.takes_no_writes().await?.is_some() {
        context.writes.refused();
    }
    if !context.writes.are_steady(context.store.server()) {
        return Ok(());
    }
    for (by, held) in producers.iter().zip(&counts.held) {
        let Some(dead_for) = by.dead_for.filter(|_| suspected.contains(&by.name)) else { continue };
        // Redis has counted what the producer had no time to note, unless it was rewound since.
        let uncertain = *held < by.appended || counts.seen_for as f64 <= dead_for + UNCOUNTED.as_seconds_f64();
        context.store.close_dead_producer(&by.name, AppendCount { shard, appended: *held }, uncertain).await?;
        fault::point("after_producer_closed");
        tracing::warn!(
            event = "worker.producer.dead",
            shard = shard.get(),
            producer = by.name,
            records = held,
            uncertain,
            "a producer ended without its last count"
        );
        if uncertain {
            metrics::counter!(names::UNCERTAIN_LOSSES, "shard" => shard.to_string()).increment(1);
            tracing::error!(
                event = "worker.loss.uncertain",
                shard = shard.get(),
                producer = by.name,
                "Redis was rewound when this producer ended: records can be lost whose number no server holds"
            );
        }
    }
    Ok(())
}

/// Folds closed producers into one sum, so that the cost of a step does not grow with the number of restarts.
async fn fold(
    context: &Context,
    input: &Input,
    lease: &Lease,
    producers: &[Producer],
    held: &[i64],
) -> Result<(), Error> {
    let closed = producers.iter().zip(held).filter(|(by, _)| by.closed);
    let (equal, differing): (Vec<_>, Vec<_>) = closed.partition(|(by, held)| by.appended == **held);
    for (by, held) in differing {
        // Redis counted an append that had no answer; a lower count was raised by this step.
        let count = AppendCount { shard: input.shard(), appended: *held };
        context.store.note_unknown_producer(&by.name, count).await?;
    }
    let over = equal.into_iter().filter(|(by, _)| by.is_over);
    let names: Vec<_> = over.map(|(by, _)| by.name.clone()).take(FOLDED_AT_ONCE).collect();
    if names.is_empty() {
        return Ok(());
    }
    let folded = context.store.fold_producers(input.shard(), &names).await?;
    fault::point("after_fold");
    // Where this fails, the next step finds them to be unknown_producers, and removes them.
    Ok(input.drop_producers(lease, &folded).await?)
}

/// Notes that the records above `accounted` are lost, because the stream is at its end and nothing is in flight.
pub(super) async fn note_rest(
    context: &Context,
    shard: ShardId,
    lease: &Lease,
    accounted: Offset,
    appended: Offset,
) -> Result<(), Error> {
    let lost = context.store.note_lost(shard, lease, accounted, appended).await?;
    report(shard, lost);
    Ok(())
}

/// Reports lost records.
pub(super) fn report(shard: ShardId, lost: i64) {
    tracing::error!(event = "worker.records.lost", shard = shard.get(), lost, "accepted records were lost");
    metrics::counter!(names::LOST, "shard" => shard.to_string()).increment(lost.unsigned_abs());
}
