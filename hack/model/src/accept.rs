//! Clients and serve: append, answer, send again, note the counts.

use crate::{
    config::Guard,
    protocol::Protocol,
    state::{Entry, State},
};

impl Protocol {
    /// The record that a client sends next, and its shard.
    fn next_of(&self, state: &State, client: u8) -> Option<(u8, usize)> {
        let of = &state.clients[usize::from(client)];
        let record = *self.config.clients[usize::from(client)].get(usize::from(of.done))?;
        Some((record, self.shard_of(record))).filter(|_| of.waits.is_none())
    }

    pub(crate) fn shard_of(&self, record: u8) -> usize {
        usize::from(self.config.records[usize::from(record)].shard)
    }

    fn append(&self, state: &mut State, record: u8, shard: usize) -> u8 {
        let input = &mut state.redis.inputs[shard];
        let uid = state.observer.appended;
        state.observer.appended += 1;
        input.last += 1;
        input.entries.push(Entry { sid: input.last, uid, record });
        uid
    }

    /// Appends, and answers in the same step, unless losses are counted: then the time in between matters.
    pub(crate) fn send(&self, state: &mut State, client: u8) -> bool {
        let Some((record, shard)) = self.next_of(state, client) else { return false };
        let uid = self.append(state, record, shard);
        if self.config.count {
            if self.has(Guard::CountBeforeSending) {
                state.serve[shard].unknown += 1;
            }
            state.clients[usize::from(client)].waits = Some(uid);
        } else {
            state.clients[usize::from(client)].done += 1;
            state.observer.acknowledged |= 1 << uid;
        }
        true
    }

    pub(crate) fn answered(&self, state: &mut State, client: u8) -> bool {
        let of = &mut state.clients[usize::from(client)];
        let Some(uid) = of.waits.take() else { return false };
        let record = self.config.clients[usize::from(client)][usize::from(of.done)];
        of.done += 1;
        state.observer.acknowledged |= 1 << uid;
        let counts = &mut state.serve[self.shard_of(record)];
        counts.acknowledged += 1;
        if self.has(Guard::CountBeforeSending) {
            counts.unknown -= 1;
        }
        true
    }

    /// The client gets no answer, and sends again. `effect`: whether the append took effect.
    pub(crate) fn send_unknown(&self, state: &mut State, client: u8, effect: bool) -> bool {
        let Some((record, shard)) = self.next_of(state, client) else { return false };
        if effect {
            self.append(state, record, shard);
        }
        if self.config.count {
            state.serve[shard].unknown += 1;
        }
        true
    }

    /// The client sends its last answered record again, and gets an answer.
    pub(crate) fn repeat(&self, state: &mut State, client: u8) -> bool {
        let of = &mut state.clients[usize::from(client)];
        if of.waits.is_some() || of.done == 0 {
            return false;
        }
        let record = self.config.clients[usize::from(client)][usize::from(of.done) - 1];
        let shard = self.shard_of(record);
        let uid = self.append(state, record, shard);
        state.observer.acknowledged |= 1 << uid;
        if self.config.count {
            state.serve[shard].acknowledged += 1;
        }
        true
    }

    /// The counts in Postgres after serve notes its own: acknowledged and unknown.
    pub(crate) fn noted_next(&self, state: &State, shard: usize) -> (u8, u8) {
        let counts = &state.serve[shard];
        let now = (counts.acknowledged, counts.unknown);
        let again = self.has(Guard::FlushAgain) || counts.noted != now;
        if again { now } else { state.postgres.shards[shard].appends }
    }

    /// Notes the counts in Postgres, where they differ. Returns whether one did.
    pub(crate) fn flush(&self, state: &mut State) -> bool {
        let mut flushed = false;
        for shard in 0..state.serve.len() {
            let next = self.noted_next(state, shard);
            if !self.has(Guard::FlushAgain) {
                state.serve[shard].noted = (state.serve[shard].acknowledged, state.serve[shard].unknown);
            }
            flushed |= std::mem::replace(&mut state.postgres.shards[shard].appends, next) != next;
        }
        flushed
    }
}
