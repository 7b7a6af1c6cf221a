//! An owner and its shard: take, prepare, compare, claim, read, acknowledge. Each function is one script or
//! transaction.
//!
//! A step returns whether it did anything; a step that cannot run now runs later. `None`: the shard is another owner's.

use crate::{
    guards::{Guard, Guards},
    protocol::Protocol,
    state::{Batch, Fence, Input, Own, Policy, Stage, State},
    steps::{self, Answer},
};

impl Protocol {
    fn guards(&self) -> Guards {
        self.config.guards
    }

    pub(crate) fn same(&self, a: Fence, b: Fence) -> bool {
        steps::is_same(self.guards(), a, b)
    }

    /// Whether Postgres has this fence for the shard.
    pub(crate) fn is_owner(&self, state: &State, shard: usize, fence: Fence) -> bool {
        self.same(state.postgres.shards[shard].fence, fence)
    }

    /// A worker takes a free shard.
    pub(crate) fn take(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        if !state.postgres.shards[shard].free || is_locked(state, shard) {
            return false;
        }
        let row = &mut state.postgres.shards[shard];
        // Equal to no token in use: each state numbers its tokens again from 0.
        let fence = steps::take(&mut row.fence, 100);
        row.free = false;
        let sinks = state.workers[worker].active.len();
        state.workers[worker].owns[shard] = Some(Own::new(fence, sinks));
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

    /// What a script did. Without [`Guard::RaiseEpoch`] an owner with a lower fence retries without end.
    fn done(before: &Stage, own: &Own, answer: Answer) -> Option<bool> {
        match answer {
            Answer::Done | Answer::Raised => Some(true),
            Answer::Nothing => Some(false),
            Answer::Higher(_) => Some(*before != own.stage),
        }
    }

    fn prepare(&self, state: &mut State, shard: usize, own: &mut Own) -> Option<bool> {
        let answer = steps::prepare(self.guards(), &mut state.redis.inputs[shard], own);
        if let Stage::Cursors(watermarks) = own.stage
            && self.config.faults.postgres_rewind == 0
        {
            // A log that is never rewound is never behind a cursor.
            own.stage = Stage::Compare(watermarks, 0);
        }
        Self::done(&Stage::Prepare, own, answer)
    }

    fn raise(&self, state: &mut State, shard: usize, own: &mut Own, above: u8) -> Option<bool> {
        if is_locked(state, shard) {
            return Some(false);
        }
        if !self.is_owner(state, shard, own.fence) {
            return None;
        }
        let row = &mut state.postgres.shards[shard];
        let fence = steps::raise(&mut row.fence, above);
        *own = Own { fence, stage: Stage::Prepare, ..own.clone() };
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
        let least = [watermarks[0].max(cursor), 0, watermarks[2]];
        let [top, _, last_dead_letter] = steps::skip_to(self.guards(), row.numbers(), least);
        if top > row.top {
            row.gaps.push((row.top, top));
        }
        (row.top, row.last_dead_letter) = (top, last_dead_letter);
        steps::compared(self.guards(), own, row.head(), watermarks, state.observer.rewound.1);
        if self.has(Guard::ReadPolicyAgain) && state.workers[worker].policy.boot != own.boot {
            state.workers[worker].policy = newest(state);
        }
        Some(true)
    }

    /// Reclaims pending entries, of any consumer. When there are none any more, Redis has an ack for all committed
    /// entries, and the owner sets the watermarks again where Redis lost them.
    fn claim(&self, state: &mut State, shard: usize, own: &mut Own, above: u8) -> Option<bool> {
        let answer = steps::claim(self.guards(), &mut state.redis.inputs[shard], own, above, self.config.batch);
        if answer == Answer::Nothing {
            if own.stage == Stage::Read {
                self.note_compared(state, shard, own);
            }
            return Some(true);
        }
        Self::done(&Stage::Claim(above), own, answer)
    }

    /// Whether reading the stream changes anything.
    pub(crate) fn has_something_to_read(&self, state: &State, shard: usize, own: &Own) -> bool {
        let input = &state.redis.inputs[shard];
        let at_end = self.after_end(input, own).is_some();
        input.fence != own.fence || self.rewound(input, own) || input.last > input.delivered || at_end
    }

    fn read(&self, state: &mut State, shard: usize, own: &mut Own) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        let answer = steps::read(self.guards(), input, own, self.config.batch);
        if answer != Answer::Nothing {
            return Self::done(&Stage::Read, own, answer);
        }
        let next = self.after_end(input, own);
        let done = next.is_some();
        own.stage = next.unwrap_or(Stage::Read);
        Some(done)
    }

    fn ack(&self, state: &mut State, shard: usize, own: &mut Own, batch: Batch) -> Option<bool> {
        let (before, observer) = (own.stage.clone(), &mut state.observer);
        let observe = |input: &Input, sid: u8| {
            let acked = input.entries.iter().filter(|there| there.sid == sid);
            let acked = acked.fold(0, |all, there| all | 1 << there.uid);
            observer.acked_uncommitted |= acked & !observer.decided != 0;
        };
        let answer = steps::ack(self.guards(), &mut state.redis.inputs[shard], own, batch, observe);
        if answer == Answer::Done {
            self.note_compared(state, shard, own);
        }
        Self::done(&before, own, answer)
    }

    /// Whether Redis has lost an ack of this owner.
    pub(crate) fn rewound(&self, input: &Input, own: &Own) -> bool {
        steps::is_rewound(self.guards(), input, own)
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
