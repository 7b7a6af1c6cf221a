//! Entries that are ready to be decided, and how appliers take them: together, those of several shards.
//!
//! Must never give a shard's entries to two appliers at once: a shard hands over one batch, and gets it back.

use std::{
    collections::{HashMap, VecDeque},
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use super::{pace::Pace, shard};
use crate::{
    domain::{Item, Lease, ShardId, StreamId},
    store::{AfterCommit, LogRow, ShardProgress},
};

/// How many commits a shard is alone in its transactions after a data error, or after its row was locked.
const ALONE: u8 = 10;

/// An entry whose records are in a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadyEntry {
    pub(super) id: StreamId,
    /// Number of its records.
    pub(super) records: usize,
    /// How much of a group it fills: the number of its records, or of KiB if that is higher.
    pub(super) size: usize,
    /// Whether it was delivered so often that its records are noted before they are read and decided.
    pub(super) is_candidate: bool,
    /// A note that could not be withdrawn.
    pub(super) noted: Option<Noted>,
}

/// A note of a record that is about to be decided alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noted {
    /// The record's index in its entry.
    pub(super) index: usize,
    /// Number of attempts, with this one.
    pub(super) attempts: i32,
}

/// Entries of a shard, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: VecDeque<ReadyEntry>,
    /// The records of all entries.
    pub(super) items: Vec<Item>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn is_candidate(&self) -> bool {
        self.entries.front().is_some_and(|entry| entry.is_candidate)
    }

    /// How much of a group it fills.
    fn size(&self) -> usize {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// Takes whole entries of up to `most` in size from the front, at least one. A candidate is taken alone.
    fn take(&mut self, most: usize) -> Self {
        let mut entries: VecDeque<ReadyEntry> = VecDeque::new();
        let (mut records, mut size) = (0, 0);
        while let Some(next) = self.entries.front().copied() {
            if !entries.is_empty() && (next.is_candidate || size + next.size > most) {
                break;
            }
            records += next.records;
            size += next.size;
            entries.extend(self.entries.pop_front());
            if next.is_candidate {
                break;
            }
        }
        let rest = self.items.split_off(records);
        Self { entries, items: std::mem::replace(&mut self.items, rest) }
    }

    /// Puts entries back in front.
    fn put_back(&mut self, mut front: Self) {
        front.entries.append(&mut self.entries);
        front.items.append(&mut self.items);
        *self = front;
    }
}

/// Entries of a shard, handed to the appliers.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) shard: ShardId,
    pub(super) lease: Arc<Mutex<Lease>>,
    /// Where the owner has left the log.
    pub(super) left: ShardProgress,
    pub(super) batch: Batch,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The result for entries that were handed over.
#[derive(Debug)]
pub(super) struct Answer {
    /// Entries that are not applied.
    pub(super) rest: Batch,
    pub(super) outcome: Result<Applied, shard::Error>,
}

/// Entries that are applied.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) ids: Vec<StreamId>,
    pub(super) after: AfterCommit,
    /// The policy version that decided.
    pub(super) policy_version: i64,
    /// The committed records, for the publishers.
    pub(super) rows: Vec<LogRow>,
}

/// Entries of a shard that an applier has taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) ready: Ready,
    /// Those that are decided now.
    pub(super) batch: Batch,
}

impl Taken {
    fn new(mut ready: Ready, most: usize) -> Self {
        let batch = ready.batch.take(most);
        Self { ready, batch }
    }

    /// Reports that the entries are applied.
    pub(super) fn applied(self, applied: Applied) {
        // A receiver that is gone has lost its shard.
        let _ = self.ready.answer.send(Answer { rest: self.ready.batch, outcome: Ok(applied) });
    }

    /// Gives all entries back.
    pub(super) fn failed(mut self, error: shard::Error) {
        self.ready.batch.put_back(self.batch);
        let _ = self.ready.answer.send(Answer { rest: self.ready.batch, outcome: Err(error) });
    }
}

/// Entries of shards that are decided in one transaction.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) shards: Vec<Taken>,
    /// Whether the shard is alone, so that its row may be waited for.
    pub(super) is_alone: bool,
}

/// All shards with ready entries.
#[derive(Debug, Default)]
pub struct ReadyShards {
    state: Mutex<State>,
    changed: Notify,
}

/// The result of an attempt to take entries.
enum Step {
    Taken(Group),
    /// Until then, more may come.
    Early(Instant),
    /// No entry waits.
    Nothing,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Ready>,
    /// Shards that are alone, with the number of their commits that are still to be so.
    alone: HashMap<ShardId, u8>,
    pace: Pace,
    /// Number of shards that read entries for the next group.
    reading: usize,
}

/// A shard reads for the next group, until this is dropped.
#[derive(Debug)]
pub(super) struct Reading(Arc<ReadyShards>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.lock().reading -= 1;
        self.0.changed.notify_one();
    }
}

impl ReadyShards {
    /// Until when a shard is to wait before it reads, because its entries would wait for the next group; `None`: not at
    /// all.
    pub(super) fn reads_at(&self) -> Option<Instant> {
        self.lock().pace.reads_at(Instant::now())
    }

    /// Notes that a shard reads, so that the next group waits a little for its entries.
    pub(super) fn reading(self: &Arc<Self>) -> Reading {
        self.lock().reading += 1;
        Reading(Arc::clone(self))
    }

    pub(super) fn hand_over(&self, ready: Ready) {
        self.lock().waiting.push_back(ready);
        self.changed.notify_one();
    }

    /// Waits for entries, and takes up to `most` of them, in records or in KiB if that is more: the first that waits, and as
    /// many others as fit. While another shard has ready records, one takes at most half. At least one entry is taken, and
    /// entries are whole.
    ///
    /// Less than half of `most` wait for the [`Pace`], and for shards that read: a commit costs the same for one record as
    /// for a hundred.
    pub(super) async fn take(&self, most: usize) -> Group {
        loop {
            let next = match self.try_take(most) {
                Step::Taken(group) => return group,
                Step::Early(next) => Some(next),
                Step::Nothing => None,
            };
            let early = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = early => {}
            }
        }
    }

    fn try_take(&self, most: usize) -> Step {
        let mut state = self.lock();
        let now = Instant::now();
        let waiting: usize = state.waiting.iter().map(|ready| ready.batch.size()).sum();
        let is_full = waiting >= most.div_ceil(2);
        let waits = waiting > 0 && !is_full;
        if let Some(until) = state.pace.taken_at(state.reading > 0, now).filter(|_| waits) {
            return Step::Early(until);
        }
        let Some(first) = state.waiting.pop_front() else { return Step::Nothing };
        let is_alone = state.is_alone(&first);
        let mut shards = Vec::new();
        if is_alone {
            state.count_alone(first.shard);
            shards.push(Taken::new(first, most));
        } else {
            let half = most.div_ceil(2);
            let others: usize =
                state.waiting.iter().filter(|ready| !state.is_alone(ready)).map(|ready| ready.batch.size()).sum();
            // Others that have less than the other half leave more to the first.
            let first = Taken::new(first, most.saturating_sub(others).max(half));
            let mut room = most.saturating_sub(first.batch.size());
            shards.push(first);
            for _ in 0..state.waiting.len() {
                let Some(ready) = state.waiting.pop_front() else { break };
                let next = ready.batch.entries.front().map_or(0, |entry| entry.size);
                if next > room || state.is_alone(&ready) {
                    // It keeps its place for the next group.
                    state.waiting.push_back(ready);
                    continue;
                }
                let taken = Taken::new(ready, room.min(half));
                room = room.saturating_sub(taken.batch.size());
                shards.push(taken);
            }
        }
        state.pace.taken(shards.iter().map(|taken| taken.batch.items.len()).sum(), is_full, now);
        if !state.waiting.is_empty() {
            self.changed.notify_one();
        }
        Step::Taken(Group { shards, is_alone })
    }

    /// Lets a shard be alone for its next commits.
    pub(super) fn set_alone(&self, shard: ShardId) {
        self.lock().alone.insert(shard, ALONE);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_alone(&self, ready: &Ready) -> bool {
        ready.batch.is_candidate() || self.alone.contains_key(&ready.shard)
    }

    fn count_alone(&mut self, shard: ShardId) {
        if let Some(left) = self.alone.get_mut(&shard) {
            *left -= 1;
            if *left == 0 {
                self.alone.remove(&shard);
            }
        }
    }
}
