//! The batches of one shard, or of several, in one transaction: lock, compare, decide, change the ledger, write.
//!
//! Any shards of a worker whose batches are in flight can come together in a transaction. One that is locked, or that
//! differs from what its owner left, leaves it; the others continue.

use crate::{
    decide::Ids,
    guards::Guard,
    own::is_locked,
    protocol::Protocol,
    state::{Batch, Change, DeadLetter, DeadLetterState, Discard, Holder, Own, Stage, State, Transaction},
    steps,
};

/// The result of comparing a shard's row: whether it can take part in a transaction.
enum Comparison {
    /// It can.
    Ready,
    /// Not now: its row is locked, or it runs a newer policy version.
    NotNow,
    /// Another worker owns it.
    Lost,
    /// Its log is not where its owner left it.
    Changed,
}

/// The result of one step of a transaction.
enum Step {
    /// It waits for a row that another transaction has locked.
    Waits,
    /// There are more.
    Done,
    /// It was rolled back: another transaction took an id, or closed a dead letter.
    Raced,
    /// It is committed.
    Committed,
}

impl Protocol {
    /// Begins a transaction over the batches in flight of some shards: locks their rows, compares, locks the dead letters
    /// whose replays came, reads, decides. Where a transaction is one step, it commits, too.
    pub(crate) fn commit(&self, state: &mut State, worker: usize, shards: &[usize]) -> bool {
        let mut left = false;
        let mut ready: Vec<usize> = Vec::with_capacity(shards.len());
        for shard in shards.iter().copied() {
            match self.compare_row(state, worker, shard) {
                Comparison::Ready => ready.push(shard),
                Comparison::NotNow => {}
                Comparison::Lost => {
                    left = true;
                    state.workers[worker].owns[shard] = None;
                }
                Comparison::Changed => {
                    left = true;
                    if let Some(own) = &mut state.workers[worker].owns[shard] {
                        own.stage = Stage::Prepare;
                    }
                }
            }
        }
        if ready.is_empty() {
            return left;
        }
        let waits = |shard: usize| {
            let batch = state.workers[worker].owns[shard].as_ref().and_then(in_flight);
            let replays = batch.into_iter().flat_map(|batch| &batch.records).map(|input| input.replay_of);
            replays.into_iter().any(|number| is_held_by_discard(state, shard, number))
        };
        if self.has(Guard::DeadLetterFirst) && ready.iter().any(|shard| waits(*shard)) {
            return false;
        }
        self.open(state, worker, &ready);
        if self.config.split {
            return true;
        }
        loop {
            match self.step(state, worker, 0) {
                Step::Waits => return false,
                Step::Done => {}
                Step::Raced | Step::Committed => return true,
            }
        }
    }

    /// Whether the locked row of a shard is as its owner left it.
    fn compare_row(&self, state: &State, worker: usize, shard: usize) -> Comparison {
        let Some(own) = state.workers[worker].owns[shard].as_ref().filter(|own| in_flight(own).is_some()) else {
            return Comparison::NotNow;
        };
        if is_locked(state, shard) {
            return Comparison::NotNow;
        }
        let is_restarted = own.boot != state.observer.rewound.1 && !self.config.in_place;
        let version = state.workers[worker].policy.version;
        match steps::compare_row(self.config.guards, &state.postgres.shards[shard].head(), own, is_restarted, version) {
            steps::Comparison::Ready => Comparison::Ready,
            steps::Comparison::OldPolicy => Comparison::NotNow,
            steps::Comparison::Lost => Comparison::Lost,
            steps::Comparison::Changed => Comparison::Changed,
        }
    }

    /// Decides the batches in the order of the shards, over one map of the ids.
    fn open(&self, state: &mut State, worker: usize, shards: &[usize]) {
        let mut ids = Ids::stored(state);
        let mut changes: Vec<Change> = Vec::new();
        for shard in shards.iter().copied() {
            let Some(own) = &state.workers[worker].owns[shard] else { continue };
            let Some(batch) = in_flight(own).cloned() else { continue };
            let whole = self.has(Guard::WholeEntries);
            let records = &batch.records[..if whole { batch.records.len() } else { batch.records.len().min(1) }];
            let decided = self.decide(state, shard, own, records, &mut ids);
            if !self.has(Guard::SharedIds) {
                changes.append(&mut ids.changes);
                ids = Ids::stored(state);
            }
            if let Some(own) = &mut state.workers[worker].owns[shard] {
                own.stage = Stage::Write(batch, decided);
            }
        }
        changes.append(&mut ids.changes);
        if self.has(Guard::LedgerOrder) {
            let first = |change: &Change| !self.has(Guard::MovesInOrder) && change.from != Holder::Free;
            changes.sort_unstable_by_key(|change| (!first(change), change.id));
        }
        let shards = shards.iter().map(|shard| *shard as u8).collect();
        state.workers[worker].transactions.insert(0, Transaction { shards, changes, written: 0 });
    }

    /// The next step of the open transaction of a shard. Only its first shard acts.
    pub(crate) fn continue_transaction(&self, state: &mut State, worker: usize, shard: usize) -> bool {
        let open = &state.workers[worker].transactions;
        let Some(at) = open.iter().position(|open| open.shards.first() == Some(&(shard as u8))) else { return false };
        !matches!(self.step(state, worker, at), Step::Waits)
    }

    fn step(&self, state: &mut State, worker: usize, at: usize) -> Step {
        let open = &state.workers[worker].transactions[at];
        let Some(change) = open.changes.get(usize::from(open.written)).copied() else {
            return self.finish(state, worker, at);
        };
        let mine = &open.changes[..usize::from(open.written)];
        if mine.iter().any(|written| written.id == change.id) {
            state.observer.taken_twice = true;
            return roll_back(state, worker, at);
        }
        if is_row_locked(state, change.id) {
            return Step::Waits;
        }
        let there = state.postgres.ledger[usize::from(change.id)];
        let guard = if change.from == Holder::Free { Guard::UniqueId } else { Guard::OnlyWhileNamed };
        if there != change.from && self.has(guard) {
            return roll_back(state, worker, at);
        }
        state.workers[worker].transactions[at].written += 1;
        Step::Done
    }

    /// Writes the rows, and commits.
    fn finish(&self, state: &mut State, worker: usize, at: usize) -> Step {
        let open = state.workers[worker].transactions[at].clone();
        for shard in open.shards.iter().copied().map(usize::from) {
            let closes = self.closes(state, worker, shard);
            if closes.iter().any(|number| is_held_by_discard(state, shard, *number)) {
                return Step::Waits;
            }
            let is_open = |number: &u8| state.postgres.shards[shard].dead_letter(*number).is_some_and(is_open);
            if !closes.iter().all(is_open) {
                return roll_back(state, worker, at);
            }
        }
        for change in &open.changes {
            state.postgres.ledger[usize::from(change.id)] = change.to;
        }
        state.workers[worker].transactions.remove(at);
        for shard in open.shards.into_iter().map(usize::from) {
            let Some(mut own) = state.workers[worker].owns[shard].take() else { continue };
            if let Stage::Write(batch, decided) = own.stage.clone() {
                self.write(state, worker, shard, &mut own, &batch, &decided);
                own.stage = steps::after_commit(self.config.guards, batch);
            }
            state.workers[worker].owns[shard] = Some(own);
        }
        Step::Committed
    }

    /// The dead letters that a shard's batch closes.
    fn closes(&self, state: &State, worker: usize, shard: usize) -> Vec<u8> {
        let Some(Stage::Write(batch, decided)) = state.workers[worker].owns[shard].as_ref().map(|own| &own.stage)
        else {
            return Vec::new();
        };
        let closes = batch.records.iter().zip(decided).filter(|(_, decided)| decided.closes);
        closes.map(|(input, _)| input.replay_of).collect()
    }

    /// As [`Protocol::commit`] of these shards, or as the next step of their transaction, but no owner gets an answer,
    /// whether it was committed (`effect`) or not. They retry with the same batches in flight.
    pub(crate) fn commit_unanswered(&self, state: &mut State, worker: usize, shards: &[usize], effect: bool) -> bool {
        let before = state.workers[worker].owns.clone();
        let open = state.workers[worker].transactions.iter().position(|open| {
            let all = usize::from(open.written) == open.changes.len();
            all && open.shards.iter().map(|shard| usize::from(*shard)).eq(shards.iter().copied())
        });
        let batches = shards.iter().filter_map(|shard| before[*shard].as_ref().and_then(in_flight));
        if open.is_none() && (self.config.split || batches.count() < shards.len()) {
            return false;
        }
        let done = match open {
            Some(at) if effect => matches!(self.step(state, worker, at), Step::Committed),
            Some(at) => {
                roll_back(state, worker, at);
                true
            }
            None => !effect || self.commit(state, worker, shards),
        };
        for shard in shards {
            let (Some(own), Some(before)) = (&mut state.workers[worker].owns[*shard], &before[*shard]) else {
                continue;
            };
            let (Stage::Commit(batch) | Stage::Write(batch, _)) = &before.stage else { continue };
            *own = Own { stage: Stage::Commit(batch.clone()), ..before.clone() };
            if self.has(Guard::EmptyPublishers) {
                own.recent.clear();
            }
        }
        done
    }
}

/// The batch of a shard that waits for a transaction.
fn in_flight(own: &Own) -> Option<&Batch> {
    match &own.stage {
        Stage::Commit(batch) => Some(batch),
        _ => None,
    }
}

fn is_open(dead_letter: &DeadLetter) -> bool {
    dead_letter.state == DeadLetterState::Open
}

/// Whether a discard has locked a dead letter.
pub(crate) fn is_held_by_discard(state: &State, shard: usize, number: u8) -> bool {
    let of = |discard: &Discard| (usize::from(discard.shard), discard.number) == (shard, number);
    state.discards.iter().any(|discard| discard.has_locked && of(discard))
}

/// Whether an open transaction has changed, and so locked, the row of an id.
pub(crate) fn is_row_locked(state: &State, id: u8) -> bool {
    let written = |open: &Transaction| open.changes[..usize::from(open.written)].iter().any(|change| change.id == id);
    state.workers.iter().flat_map(|worker| &worker.transactions).any(written)
}

/// Rolls back: the batches are decided again.
fn roll_back(state: &mut State, worker: usize, at: usize) -> Step {
    let open = state.workers[worker].transactions.remove(at);
    for shard in open.shards.into_iter().map(usize::from) {
        if let Some(own) = &mut state.workers[worker].owns[shard]
            && let Stage::Write(batch, _) = &own.stage
        {
            own.stage = Stage::Commit(batch.clone());
        }
    }
    Step::Raced
}
