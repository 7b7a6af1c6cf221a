//! An owner and its shard: take, prepare, compare, claim, read, acknowledge. Each function is one script or
//! transaction.
//!
//! A step returns whether it did anything; a step that cannot run now runs later. `None`: the shard is another owner's.

use crate::{
    config::Guard,
    protocol::Protocol,
    state::{Entry, Fence, Input, Next, Own, Policy, Stage, State},
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
            numbers: [0; 2],
            watermarks: None,
            caught_up: false,
            stage: Stage::Prepare,
            recent: Vec::new(),
            publishers,
        });
        true
    }

    /// Does the step of the owner's stage. The worker keeps the shard, unless it is another owner's.
    pub(crate) fn work(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
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
            Stage::Commit(batch, next) => self.commit(state, worker, shard, &mut own, batch, next),
            Stage::Write(batch, next, decisions) => {
                self.write(state, worker, shard, &mut own, &batch, next, &decisions)
            }
            Stage::Ack(batch, next) => self.ack(state, shard, &mut own, &batch, next),
            Stage::Count(acknowledged, applied) => self.look(state, shard, &mut own, acknowledged, applied),
            Stage::Report(least, applied) => self.report(state, shard, &mut own, least, applied),
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
            Stage::Commit(..) => before.stage.clone(),
            Stage::Write(batch, next, _) => Stage::Commit(batch.clone(), *next),
            Stage::Ack(..) | Stage::Read => Stage::Prepare,
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
        let watermarks = if self.has(Guard::Watermark) { input.watermarks } else { [0; 2] };
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
        watermarks: [u8; 2],
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
        own.numbers = row.numbers();
        own.boot = state.observer.rewound.1;
        own.watermarks = Some(watermarks);
        own.caught_up = false;
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
        let pending = input.entries.iter().filter(|entry| entry.sid > above && input.pending.contains(&entry.sid));
        let batch: Vec<Entry> = pending.take(self.config.batch).copied().collect();
        if let Some(last) = batch.last() {
            let next = Next::Claim(last.sid);
            own.stage = self.with_batch(batch, next);
            return Some(true);
        }
        if self.has(Guard::RestoreWatermark) {
            self.set_watermarks(state, shard, own);
        }
        own.stage = Stage::Read;
        Some(true)
    }

    fn with_batch(&self, batch: Vec<Entry>, next: Next) -> Stage {
        if self.has(Guard::AckAfterCommit) { Stage::Commit(batch, next) } else { Stage::Ack(batch, next) }
    }

    /// Whether reading the stream changes anything.
    pub(crate) fn has_something_to_read(&self, state: &State, shard: usize, own: &Own) -> bool {
        let input = &state.redis.inputs[shard];
        let pending = !self.has(Guard::PendingFirst) && !input.pending.is_empty();
        input.fence != own.fence || pending || self.rewound(input, own) || input.last > input.delivered
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
        let new = input.entries.iter().filter(|entry| entry.sid > input.delivered);
        let batch: Vec<Entry> = new.take(self.config.batch).copied().collect();
        let Some(last) = batch.last() else {
            let behind = !self.has(Guard::PendingFirst) && !input.pending.is_empty();
            if behind {
                own.stage = Stage::Claim(0);
            }
            return Some(behind);
        };
        input.delivered = last.sid;
        input.pending.extend(batch.iter().map(|entry| entry.sid));
        own.stage = self.with_batch(batch, Next::Read);
        Some(true)
    }

    fn ack(&self, state: &mut State, shard: usize, own: &mut Own, batch: &[Entry], next: Next) -> Option<bool> {
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
        for entry in batch {
            let Some(at) = input.pending.iter().position(|sid| *sid == entry.sid) else {
                all = false;
                continue;
            };
            input.pending.remove(at);
            let acked = input.entries.iter().find(|there| there.sid == entry.sid).map_or(0, |there| there.uid);
            state.observer.acked_uncommitted |= state.observer.decided & (1 << acked) == 0;
        }
        if !all && self.has(Guard::NoticeRedisRewind) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        // By the group: up to the lowest pending id, else just above the last delivered one.
        let keep = input.pending.iter().copied().min().unwrap_or(input.delivered + 1);
        input.entries.retain(|entry| entry.sid >= keep);
        self.set_watermarks(state, shard, own);
        own.stage = match next {
            _ if !self.has(Guard::AckAfterCommit) => Stage::Commit(batch.to_vec(), next),
            Next::Claim(above) => Stage::Claim(above),
            Next::Read => Stage::Read,
        };
        Some(true)
    }

    /// Whether Redis has lost an ack of this owner.
    pub(crate) fn rewound(&self, input: &Input, own: &Own) -> bool {
        let lower = |own: [u8; 2]| input.watermarks.iter().zip(own).any(|(here, own)| *here < own);
        self.has(Guard::NoticeRedisRewind) && own.watermarks.is_some_and(lower)
    }

    fn set_watermarks(&self, state: &mut State, shard: usize, own: &mut Own) {
        let input = &mut state.redis.inputs[shard];
        for (watermark, number) in input.watermarks.iter_mut().zip(own.numbers) {
            *watermark = number.max(*watermark);
        }
        own.watermarks = Some(input.watermarks);
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
