//! An administrator replays and discards dead letters.

use crate::{
    commit::{is_held_by_discard, is_row_locked},
    guards::Guard,
    protocol::Protocol,
    state::{Batch, DeadLetterState, Discard, Holder, InputRecord, Own, Stage, State},
};

impl Protocol {
    /// Appends the payload of a dead letter again, with its number, as an entry. The dead letter was open when the
    /// administrator looked; by now it can be closed.
    pub(crate) fn replay(&self, state: &mut State, shard: u8, number: u8) -> bool {
        let shard = usize::from(shard);
        let Some(dead_letter) = state.postgres.shards[shard].dead_letter(number) else { return false };
        let record = dead_letter.input.record;
        let uid = state.observer.appended;
        state.observer.appended += 1;
        let input = &mut state.redis.inputs[shard];
        input.last += 1;
        let sid = input.last;
        input.entries.push(InputRecord { sid, index: 0, offset: 0, uid, record, replay_of: number });
        true
    }

    /// An administrator begins to discard an open dead letter.
    pub(crate) fn discard(&self, state: &mut State, shard: u8, number: u8) -> bool {
        let dead_letter = state.postgres.shards[usize::from(shard)].dead_letter(number);
        if dead_letter.is_none_or(|there| there.state != DeadLetterState::Open) {
            return false;
        }
        state.discards.push(Discard { shard, number, has_locked: false });
        true
    }

    /// The next step of a discard: locks the dead letter, and looks again whether it is open; then deletes the row of the
    /// ledger, closes the dead letter and commits. A step that waits for a lock runs later.
    pub(crate) fn continue_discard(&self, state: &mut State, at: u8) -> bool {
        let Discard { shard, number, has_locked } = state.discards[usize::from(at)];
        let index = usize::from(shard);
        let Some(dead_letter) = state.postgres.shards[index].dead_letter(number).copied() else { return false };
        if !has_locked {
            if is_held_by_discard(state, index, number) || self.is_held_by_commit(state, index, number) {
                return false;
            }
            if dead_letter.state != DeadLetterState::Open && self.has(Guard::OpenUnderLock) {
                state.discards.remove(usize::from(at));
            } else {
                state.discards[usize::from(at)].has_locked = true;
            }
            return true;
        }
        let id = self.config.records[usize::from(dead_letter.input.record)].id;
        if is_row_locked(state, id) {
            return false;
        }
        let holder = &mut state.postgres.ledger[usize::from(id)];
        if *holder == Holder::DeadLetter(shard, number) || !self.has(Guard::OnlyWhileNamed) {
            *holder = Holder::Free;
        }
        for there in state.postgres.shards[index].dead_letters.iter_mut().filter(|there| there.number == number) {
            there.state = DeadLetterState::Discarded;
        }
        state.discards.remove(usize::from(at));
        true
    }

    /// Whether an open transaction has locked a dead letter: that of a replay in one of its batches.
    fn is_held_by_commit(&self, state: &State, shard: usize, number: u8) -> bool {
        let names = |batch: &Batch| batch.records.iter().any(|input| input.replay_of == number);
        let holds = |own: &Own| matches!(&own.stage, Stage::Write(batch, _) if names(batch));
        let mut owns = state.workers.iter().filter_map(|worker| worker.owns[shard].as_ref());
        self.has(Guard::DeadLetterFirst) && owns.any(holds)
    }
}
