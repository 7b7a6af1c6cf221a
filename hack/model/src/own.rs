//! An owner and its shard: take, prepare, compare, claim, read, acknowledge. Each function is one script or
//! transaction.
//!
//! A step answers whether it did anything; what it cannot do now it does later.

use crate::{
    config::Guard,
    protocol::Protocol,
    state::{Entry, Fence, Input, Next, Own, Policy, Stage, State},
};

/// What the script that compares the fence finds.
enum Shown {
    /// It is the caller's.
    Mine,
    /// It stood lower, and was set.
    Raised,
    /// It stands higher, at this epoch.
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

    fn show(&self, input: &mut Input, mine: Fence) -> Shown {
        if input.fence.epoch < mine.epoch {
            input.fence = mine;
            return Shown::Raised;
        }
        if self.same(input.fence, mine) { Shown::Mine } else { Shown::Higher(input.fence.epoch) }
    }

    pub(crate) fn take(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        if !state.postgres.shards[shard].free || is_locked(state, shard) {
            return false;
        }
        let row = &mut state.postgres.shards[shard];
        // Equal to none there is; what numbers are in use is brought down to few in each state.
        row.fence = Fence { epoch: row.fence.epoch + 1, token: 100 };
        row.free = false;
        let fence = row.fence;
        let publishers = vec![None; state.workers[worker].active.len()];
        state.workers[worker].owns[shard] = Some(Own {
            fence,
            boot: 0,
            numbers: [0; 2],
            marks: None,
            caught_up: false,
            stage: Stage::Prepare,
            recent: Vec::new(),
            publishers,
        });
        true
    }

    /// Does what the stage says. The shard is put back at its end, unless it turned out to be another's.
    pub(crate) fn work(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        let Some(mut own) = state.workers[worker].owns[shard].take() else { return false };
        let done = match own.stage.clone() {
            Stage::Prepare => self.prepare(state, shard, &mut own),
            Stage::Raise(above) => self.raise(state, shard, &mut own, above),
            Stage::Cursors(marks) => {
                let at = |sink: &Option<(u8, u8)>| {
                    Some(state.redis.outs[usize::from((*sink)?.0)].cursor.as_ref()?.at[shard])
                };
                let highest = state.workers[worker].active.iter().filter_map(at).max().unwrap_or(0);
                own.stage = Stage::Compare(marks, if self.has(Guard::CompareCursors) { highest } else { 0 });
                Some(true)
            }
            Stage::Compare(marks, cursor) => self.compare(state, worker, shard, &mut own, marks, cursor),
            Stage::Claim(above) => self.claim(state, shard, &mut own, above),
            Stage::Read => self.read(state, shard, &mut own),
            Stage::Commit(hand, next) => self.commit(state, worker, shard, &mut own, hand, next),
            Stage::Write(hand, next, decisions) => self.write(state, worker, shard, &mut own, &hand, next, &decisions),
            Stage::Ack(hand, next) => self.ack(state, shard, &mut own, &hand, next),
            Stage::Count(acknowledged, applied) => self.look(state, shard, &mut own, acknowledged, applied),
            Stage::Report(least, applied) => self.report(state, shard, &mut own, least, applied),
        };
        // None: the shard is another's; it is dropped, with its publishers.
        if done.is_some() {
            state.workers[worker].owns[shard] = Some(own);
        }
        done.unwrap_or(true)
    }

    /// As [`Self::work`], but there is no answer, whether it took effect or not: a commit is tried again with the same
    /// batch in flight; after anything else, pending entries tell what is not applied.
    pub(crate) fn work_unanswered(&self, state: &mut State, worker: u8, shard: u8, effect: bool) -> bool {
        let at = (usize::from(worker), usize::from(shard));
        let Some(before) = state.workers[at.0].owns[at.1].clone() else { return false };
        let again = match &before.stage {
            Stage::Commit(..) => before.stage.clone(),
            Stage::Write(hand, next, _) => Stage::Commit(hand.clone(), *next),
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

    pub(crate) fn drop_lost(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        let own = state.workers[worker].owns[shard].as_ref();
        if own.is_none_or(|own| self.is_owner(state, shard, own.fence)) {
            return false;
        }
        state.workers[worker].owns[shard] = None;
        true
    }

    fn higher(&self, own: &mut Own, above: u8) -> Option<bool> {
        if !self.has(Guard::RaiseEpoch) {
            // It tries again, for ever.
            return Some(std::mem::replace(&mut own.stage, Stage::Prepare) != Stage::Prepare);
        }
        own.stage = Stage::Raise(above);
        Some(true)
    }

    /// The fence first: once it stands, no older owner's ack moves the mark that is read here.
    fn prepare(&self, state: &mut State, shard: usize, own: &mut Own) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        if let Shown::Higher(above) = self.show(input, own.fence) {
            return self.higher(own, above);
        }
        let marks = if self.has(Guard::Mark) { input.marks } else { [0; 2] };
        // A log that never is rewound is never behind a cursor.
        let backwards = self.config.faults.postgres_back > 0;
        own.stage = if backwards { Stage::Cursors(marks) } else { Stage::Compare(marks, 0) };
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

    /// One transaction, under the fence: where the log is behind what Redis holds, the difference becomes a gap.
    fn compare(
        &self,
        state: &mut State,
        worker: usize,
        shard: usize,
        own: &mut Own,
        marks: [u8; 2],
        cursor: u8,
    ) -> Option<bool> {
        if is_locked(state, shard) {
            return Some(false);
        }
        if self.has(Guard::FenceOnWrite) && !self.is_owner(state, shard, own.fence) {
            return None;
        }
        let row = &mut state.postgres.shards[shard];
        let top = row.top.max(marks[0]).max(cursor);
        if top > row.top && self.has(Guard::CompareLog) {
            row.gaps.push((row.top, top));
            row.top = top;
        }
        own.numbers = row.numbers();
        own.boot = state.observer.rewound.1;
        own.marks = Some(marks);
        own.caught_up = false;
        own.stage = if self.has(Guard::PendingFirst) { Stage::Claim(0) } else { Stage::Read };
        if self.has(Guard::ReadPolicyAgain) && state.workers[worker].policy.boot != own.boot {
            state.workers[worker].policy = newest(state);
        }
        Some(true)
    }

    /// Pending entries, whoever they were delivered to. When there are none any more, all that is committed is applied
    /// in Redis, too, and the mark is set again where Redis lost it.
    fn claim(&self, state: &mut State, shard: usize, own: &mut Own, above: u8) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        match self.show(input, own.fence) {
            Shown::Higher(above) => return self.higher(own, above),
            Shown::Raised if above > 0 && self.has(Guard::ReclaimAgain) => {
                own.stage = Stage::Prepare;
                return Some(true);
            }
            Shown::Raised | Shown::Mine => {}
        }
        if self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let pending = input.entries.iter().filter(|entry| entry.sid > above && input.pending.contains(&entry.sid));
        let hand: Vec<Entry> = pending.take(self.config.batch).copied().collect();
        if let Some(last) = hand.last() {
            let next = Next::Claim(last.sid);
            own.stage = self.with_hand(hand, next);
            return Some(true);
        }
        if self.has(Guard::RestoreMark) {
            self.set_marks(state, shard, own);
        }
        own.stage = Stage::Read;
        Some(true)
    }

    fn with_hand(&self, hand: Vec<Entry>, next: Next) -> Stage {
        if self.has(Guard::AckAfterCommit) { Stage::Commit(hand, next) } else { Stage::Ack(hand, next) }
    }

    /// Whether a look at the stream would change anything.
    pub(crate) fn has_something_to_read(&self, state: &State, shard: usize, own: &Own) -> bool {
        let input = &state.redis.inputs[shard];
        let pending = !self.has(Guard::PendingFirst) && !input.pending.is_empty();
        input.fence != own.fence || pending || self.rewound(input, own) || input.last > input.delivered
    }

    fn read(&self, state: &mut State, shard: usize, own: &mut Own) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        if self.has(Guard::FenceOnRead) {
            match self.show(input, own.fence) {
                Shown::Mine => {}
                Shown::Raised if !self.has(Guard::ReclaimAgain) => return Some(true),
                Shown::Raised => {
                    own.stage = Stage::Prepare;
                    return Some(true);
                }
                Shown::Higher(above) => return self.higher(own, above),
            }
        }
        if self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let new = input.entries.iter().filter(|entry| entry.sid > input.delivered);
        let hand: Vec<Entry> = new.take(self.config.batch).copied().collect();
        let Some(last) = hand.last() else {
            let behind = !self.has(Guard::PendingFirst) && !input.pending.is_empty();
            if behind {
                own.stage = Stage::Claim(0);
            }
            return Some(behind);
        };
        input.delivered = last.sid;
        input.pending.extend(hand.iter().map(|entry| entry.sid));
        own.stage = self.with_hand(hand, Next::Read);
        Some(true)
    }

    fn ack(&self, state: &mut State, shard: usize, own: &mut Own, hand: &[Entry], next: Next) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        if self.has(Guard::FenceOnAck) {
            match self.show(input, own.fence) {
                Shown::Mine => {}
                Shown::Raised => {
                    own.stage = Stage::Prepare;
                    return Some(true);
                }
                Shown::Higher(above) => return self.higher(own, above),
            }
        }
        if self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let mut all = true;
        for entry in hand {
            let Some(at) = input.pending.iter().position(|sid| *sid == entry.sid) else {
                all = false;
                continue;
            };
            input.pending.remove(at);
            let acked = input.entries.iter().find(|there| there.sid == entry.sid).map_or(0, |there| there.uid);
            state.observer.acked_uncommitted |= state.observer.decided & (1 << acked) == 0;
        }
        if !all && self.has(Guard::NoticeRedisBack) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        // By what the group says: up to the lowest pending id, else just above the last delivered one.
        let keep = input.pending.iter().copied().min().unwrap_or(input.delivered + 1);
        input.entries.retain(|entry| entry.sid >= keep);
        self.set_marks(state, shard, own);
        own.stage = match next {
            _ if !self.has(Guard::AckAfterCommit) => Stage::Commit(hand.to_vec(), next),
            Next::Claim(above) => Stage::Claim(above),
            Next::Read => Stage::Read,
        };
        Some(true)
    }

    /// Whether Redis has lost an ack of this owner.
    pub(crate) fn rewound(&self, input: &Input, own: &Own) -> bool {
        let lower = |known: [u8; 2]| input.marks.iter().zip(known).any(|(mark, known)| *mark < known);
        self.has(Guard::NoticeRedisBack) && own.marks.is_some_and(lower)
    }

    fn set_marks(&self, state: &mut State, shard: usize, own: &mut Own) {
        let input = &mut state.redis.inputs[shard];
        for (mark, number) in input.marks.iter_mut().zip(own.numbers) {
            *mark = number.max(*mark);
        }
        own.marks = Some(input.marks);
        let whole = input.marks[0] >= state.postgres.shards[shard].top && own.boot == state.observer.rewound.1;
        if whole && self.is_owner(state, shard, own.fence) {
            state.observer.wounded[shard] = false;
        }
    }
}

/// A transaction is open that holds the shard's row.
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
