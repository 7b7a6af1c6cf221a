//! An owner and its shard: take, prepare, compare, claim, read, acknowledge. Each function is one script or
//! transaction.
//!
//! A step returns whether it did anything; a step that cannot run now runs later. `None`: the shard is another owner's.

use crate::{
    guards::Guard,
    protocol::Protocol,
    state::{Batch, Fence, Input, InputRecord, Next, Own, Policy, Stage, State},
};

/// The result of the script that compares the fence.
enum FenceResult {
    /// The stream has the caller's fence.
    Same,
    /// The stream had a lower one; the script set the caller's.
    Raised,
    /// The stream has a higher one, of this epoch.
    Higher(u8),
}

impl Protocol {
    pub(crate) fn same(&self, a: Fence, b: Fence) -> bool {
        a.epoch == b.epoch && (a.token == b.token || !self.has(Guard::Token))
    }

    /// Whether Postgres has this fence for the shard.
    pub(crate) fn is_owner(&self, state: &State, shard: usize, fence: Fence) -> bool {
        self.same(state.postgres.shards[shard].fence, fence)
    }

    fn compare_fence(&self, input: &mut Input, mine: Fence) -> FenceResult {
        if input.fence.epoch < mine.epoch {
            input.fence = mine;
            return FenceResult::Raised;
        }
        if self.same(input.fence, mine) { FenceResult::Same } else { FenceResult::Higher(input.fence.epoch) }
    }

    /// A worker takes a free shard.
    pub(crate) fn take(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        if !state.postgres.shards[shard].free || is_locked(state, shard) {
            return false;
        }
        let row = &mut state.postgres.shards[shard];
        // Equal to no token in use: each state numbers its tokens again from 0.
        row.fence = Fence { epoch: row.fence.epoch + 1, token: 100 };
        row.free = false;
        let fence = row.fence;
        let publishers = vec![None; state.workers[worker].active.len()];
        state.workers[worker].owns[shard] = Some(Own {
            fence,
            boot: 0,
            numbers: [0; 3],
            applied: 0,
            watermarks: None,
            accounted: 0,
            acknowledged: 0,
            surplus: None,
            stage: Stage::Prepare,
            recent: Vec::new(),
            publishers,
        });
        true
    }

    /// Does the step of the owner's stage. The worker keeps the shard, unless it is another owner's.
    pub(crate) fn work(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        match state.workers[worker].owns[shard].as_ref().map(|own| &own.stage) {
            Some(Stage::Commit(_)) => return self.commit(state, worker, &[shard]),
            Some(Stage::Write(..)) => return self.continue_transaction(state, worker, shard),
            _ => {}
        }
        let Some(mut own) = state.workers[worker].owns[shard].take() else { return false };
        let done = match own.stage.clone() {
            Stage::Prepare => self.prepare(state, shard, &mut own),
            Stage::Raise(above) => self.raise(state, shard, &mut own, above),
            Stage::Cursors(watermarks) => {
                let at = |sink: &Option<(u8, u8)>| {
                    Some(state.redis.outs[usize::from((*sink)?.0)].cursor.as_ref()?.at[shard])
                };
                let highest = state.workers[worker].active.iter().filter_map(at).max().unwrap_or(0);
                own.stage = Stage::Compare(watermarks, if self.has(Guard::CompareCursors) { highest } else { 0 });
                Some(true)
            }
            Stage::Compare(watermarks, cursor) => self.compare(state, worker, shard, &mut own, watermarks, cursor),
            Stage::Claim(above) => self.claim(state, shard, &mut own, above),
            Stage::Read => self.read(state, shard, &mut own),
            Stage::Commit(_) | Stage::Write(..) => Some(false),
            Stage::Ack(batch) => self.ack(state, shard, &mut own, batch),
            Stage::Lose(appended) => self.lose(state, shard, &mut own, appended),
            Stage::Reconcile(account) => self.reconcile(state, shard, &mut own, account),
            Stage::Fold(folded, more) => self.fold(state, shard, &mut own, folded, more),
        };
        // None: the shard is another owner's; the worker drops it, with its publishers.
        if done.is_some() {
            state.workers[worker].owns[shard] = Some(own);
        }
        done.unwrap_or(true)
    }

    /// As [`Self::work`], but the owner gets no answer, whether the step took effect (`effect`) or not: it retries a
    /// commit with the same batch in flight; after any other step, pending entries are those that are not applied.
    pub(crate) fn work_unanswered(&self, state: &mut State, worker: u8, shard: u8, effect: bool) -> bool {
        let at = (usize::from(worker), usize::from(shard));
        let Some(before) = state.workers[at.0].owns[at.1].clone() else { return false };
        let again = match &before.stage {
            Stage::Commit(_) | Stage::Write(..) => return self.commit_unanswered(state, at.0, &[at.1], effect),
            Stage::Ack(_) | Stage::Read | Stage::Lose(_) | Stage::Reconcile(_) | Stage::Fold(..) => Stage::Prepare,
            _ => return false,
        };
        if effect && !self.work(state, worker, shard) {
            return false;
        }
        if let Some(own) = &mut state.workers[at.0].owns[at.1] {
            *own = Own { stage: again, ..before };
        }
        true
    }

    /// The owner finds at a renewal that it has lost the shard.
    pub(crate) fn drop_lost(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        let own = state.workers[worker].owns[shard].as_ref();
        if own.is_none_or(|own| self.is_owner(state, shard, own.fence)) {
            return false;
        }
        state.workers[worker].owns[shard] = None;
        true
    }

    /// The owner finds by its connections that Postgres was restarted, and prepares again.
    pub(crate) fn reconnect(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let boot = state.observer.rewound.1;
        let own = state.workers[usize::from(worker)].owns[usize::from(shard)].as_mut();
        let Some(own) = own.filter(|own| own.boot != boot && own.stage == Stage::Read) else { return false };
        own.stage = Stage::Prepare;
        true
    }

    fn found_higher(&self, own: &mut Own, above: u8) -> Option<bool> {
        if !self.has(Guard::RaiseEpoch) {
            // The owner tries again, for ever.
            return Some(std::mem::replace(&mut own.stage, Stage::Prepare) != Stage::Prepare);
        }
        own.stage = Stage::Raise(above);
        Some(true)
    }

    /// The fence first: after it no older owner's ack moves the watermarks that this script returns.
    fn prepare(&self, state: &mut State, shard: usize, own: &mut Own) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        if let FenceResult::Higher(above) = self.compare_fence(input, own.fence) {
            return self.found_higher(own, above);
        }
        own.acknowledged = input.acknowledged;
        if self.has(Guard::WaitAgain) {
            own.surplus = None;
        }
        let watermarks = if self.has(Guard::Watermark) { input.watermarks } else { [0; 3] };
        // A log that is never rewound is never behind a cursor.
        let rewinds = self.config.faults.postgres_rewind > 0;
        own.stage = if rewinds { Stage::Cursors(watermarks) } else { Stage::Compare(watermarks, 0) };
        if self.has(Guard::EmptyPublishers) {
            own.recent.clear();
            own.publishers.fill(None);
        }
        Some(true)
    }

    fn raise(&self, state: &mut State, shard: usize, own: &mut Own, above: u8) -> Option<bool> {
        if is_locked(state, shard) {
            return Some(false);
        }
        if !self.is_owner(state, shard, own.fence) {
            return None;
        }
        let row = &mut state.postgres.shards[shard];
        row.fence.epoch = row.fence.epoch.max(above) + 1;
        *own = Own { fence: row.fence, stage: Stage::Prepare, ..own.clone() };
        Some(true)
    }

    /// One transaction, under the fence: where the log is behind Redis, the difference becomes a gap.
    fn compare(
        &self,
        state: &mut State,
        worker: usize,
        shard: usize,
        own: &mut Own,
        watermarks: [u8; 3],
        cursor: u8,
    ) -> Option<bool> {
        if is_locked(state, shard) {
            return Some(false);
        }
        if self.has(Guard::FenceOnWrite) && !self.is_owner(state, shard, own.fence) {
            return None;
        }
        let row = &mut state.postgres.shards[shard];
        let top = row.top.max(watermarks[0]).max(cursor);
        if top > row.top && self.has(Guard::CompareLog) {
            row.gaps.push((row.top, top));
            row.top = top;
        }
        if self.has(Guard::CompareLog) {
            row.last_dead_letter = row.last_dead_letter.max(watermarks[2]);
        }
        own.numbers = row.numbers();
        own.boot = state.observer.rewound.1;
        own.watermarks = Some(watermarks);
        (own.accounted, own.applied) = (row.accounted, row.applied);
        own.stage = if self.has(Guard::PendingFirst) { Stage::Claim(0) } else { Stage::Read };
        if self.has(Guard::ReadPolicyAgain) && state.workers[worker].policy.boot != own.boot {
            state.workers[worker].policy = newest(state);
        }
        Some(true)
    }

    /// Reclaims pending entries, of any consumer. When there are none any more, Redis has an ack for all committed
    /// entries, and the owner sets the watermarks again where Redis lost them.
    fn claim(&self, state: &mut State, shard: usize, own: &mut Own, above: u8) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        match self.compare_fence(input, own.fence) {
            FenceResult::Higher(above) => return self.found_higher(own, above),
            FenceResult::Raised if above > 0 && self.has(Guard::ReclaimAgain) => {
                own.stage = Stage::Prepare;
                return Some(true);
            }
            FenceResult::Raised | FenceResult::Same => {}
        }
        if self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let pending = |entry: &InputRecord| entry.sid > above && input.pending.contains(&entry.sid);
        let records = self.first_entries(input.entries.iter().filter(|entry| pending(entry)));
        if let Some(last) = records.last() {
            let next = Next::Claim(last.sid);
            own.stage = self.with_batch(records, next);
            return Some(true);
        }
        let whole = |known: [u8; 3]| known.iter().zip(own.numbers).all(|(known, number)| *known >= number);
        let stored = own.watermarks.is_some_and(whole) && own.acknowledged == own.accounted;
        own.stage = if stored || !self.has(Guard::RestoreWatermark) {
            self.note_compared(state, shard, own);
            Stage::Read
        } else {
            Stage::Ack(Batch { records: Vec::new(), next: Next::Read })
        };
        Some(true)
    }

    /// The records of the first entries.
    fn first_entries<'a>(&self, records: impl Iterator<Item = &'a InputRecord>) -> Vec<InputRecord> {
        let mut batch: Vec<InputRecord> = Vec::new();
        let mut entries = 0;
        for record in records {
            entries += usize::from(batch.last().is_none_or(|last| last.sid != record.sid));
            if entries > self.config.batch {
                break;
            }
            batch.push(*record);
        }
        batch
    }

    fn with_batch(&self, records: Vec<InputRecord>, next: Next) -> Stage {
        let batch = Batch { records, next };
        if self.has(Guard::AckAfterCommit) { Stage::Commit(batch) } else { Stage::Ack(batch) }
    }

    /// Whether reading the stream changes anything.
    pub(crate) fn has_something_to_read(&self, state: &State, shard: usize, own: &Own) -> bool {
        let input = &state.redis.inputs[shard];
        let at_end = self.after_end(input, own).is_some();
        input.fence != own.fence || self.rewound(input, own) || input.last > input.delivered || at_end
    }

    fn read(&self, state: &mut State, shard: usize, own: &mut Own) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        if self.has(Guard::FenceOnRead) {
            match self.compare_fence(input, own.fence) {
                FenceResult::Same => {}
                FenceResult::Raised if !self.has(Guard::ReclaimAgain) => return Some(true),
                FenceResult::Raised => {
                    own.stage = Stage::Prepare;
                    return Some(true);
                }
                FenceResult::Higher(above) => return self.found_higher(own, above),
            }
        }
        if self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let records = self.first_entries(input.entries.iter().filter(|entry| entry.sid > input.delivered));
        let Some(last) = records.last() else {
            let next = self.after_end(input, own);
            let done = next.is_some();
            own.stage = next.unwrap_or(Stage::Read);
            return Some(done);
        };
        input.delivered = last.sid;
        let mut sids: Vec<u8> = records.iter().map(|entry| entry.sid).collect();
        sids.dedup();
        input.pending.extend(sids);
        own.stage = self.with_batch(records, Next::Read);
        Some(true)
    }

    fn ack(&self, state: &mut State, shard: usize, own: &mut Own, batch: Batch) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        if self.has(Guard::FenceOnAck) {
            match self.compare_fence(input, own.fence) {
                FenceResult::Same => {}
                FenceResult::Raised => {
                    own.stage = Stage::Prepare;
                    return Some(true);
                }
                FenceResult::Higher(above) => return self.found_higher(own, above),
            }
        }
        if self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let mut all = true;
        for entry in batch.records.iter().filter(|record| record.index == 0) {
            let Some(at) = input.pending.iter().position(|sid| *sid == entry.sid) else {
                all = false;
                continue;
            };
            input.pending.remove(at);
            let acked = input.entries.iter().filter(|there| there.sid == entry.sid);
            let acked = acked.fold(0, |all, there| all | 1 << there.uid);
            state.observer.acked_uncommitted |= acked & !state.observer.decided != 0;
        }
        if !all && self.has(Guard::NoticeRedisRewind) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        // By the group: up to the lowest pending id, else just above the last delivered one.
        let keep = input.pending.iter().copied().min().unwrap_or(input.delivered + 1);
        input.entries.retain(|entry| entry.sid >= keep);
        self.set_watermarks(state, shard, own);
        let next = batch.next;
        own.stage = match next {
            _ if !self.has(Guard::AckAfterCommit) && !batch.records.is_empty() => Stage::Commit(batch),
            Next::Claim(above) => Stage::Claim(above),
            Next::Read => Stage::Read,
        };
        Some(true)
    }

    /// Whether Redis has lost an ack of this owner.
    pub(crate) fn rewound(&self, input: &Input, own: &Own) -> bool {
        let lower = |own: [u8; 3]| input.watermarks.iter().zip(own).any(|(here, own)| *here < own);
        let other = self.has(Guard::CompareAcknowledged) && input.acknowledged != own.acknowledged;
        self.has(Guard::NoticeRedisRewind) && own.watermarks.is_some_and(|known| other || lower(known))
    }

    fn set_watermarks(&self, state: &mut State, shard: usize, own: &mut Own) {
        let input = &mut state.redis.inputs[shard];
        for (watermark, number) in input.watermarks.iter_mut().zip(own.numbers) {
            *watermark = number.max(*watermark);
        }
        input.acknowledged = own.accounted;
        own.watermarks = Some(input.watermarks);
        own.acknowledged = own.accounted;
        self.note_compared(state, shard, own);
    }

    /// Notes, for the observer, that the watermarks have all that is committed.
    fn note_compared(&self, state: &mut State, shard: usize, own: &Own) {
        let input = &state.redis.inputs[shard];
        let whole = input.watermarks[0] >= state.postgres.shards[shard].top && own.boot == state.observer.rewound.1;
        if whole && self.is_owner(state, shard, own.fence) {
            state.observer.unreconciled[shard] = false;
        }
    }
}

/// Whether an open transaction holds the shard's row.
pub(crate) fn is_locked(state: &State, shard: usize) -> bool {
    let writes = |own: &Own| matches!(own.stage, Stage::Write(..));
    state.workers.iter().any(|worker| worker.owns[shard].as_ref().is_some_and(writes))
}

/// The newest policy in Postgres.
pub(crate) fn newest(state: &State) -> Policy {
    let policies = &state.postgres.policies;
    let boot = state.observer.rewound.1;
    Policy { version: policies.len() as u8, threshold: policies.last().copied().unwrap_or_default(), boot }
}
