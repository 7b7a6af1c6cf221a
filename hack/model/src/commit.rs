//! One batch in one transaction: decide by the stored rows, write.
//!
//! Must never decide by an entry's `uid`: only the observer may use it.

use crate::{
    config::Guard,
    own::is_locked,
    protocol::Protocol,
    state::{Decision, Entry, Next, Noted, Own, Policy, Row, Stage, State},
};

impl Protocol {
    /// Locks the shard's row, compares, reads the stored rows, decides; and writes, unless that is a step of its own.
    /// `None`: the worker has lost the shard.
    pub(crate) fn commit(
        &self,
        state: &mut State,
        worker: usize,
        shard: usize,
        own: &mut Own,
        batch: Vec<Entry>,
        next: Next,
    ) -> Option<bool> {
        if is_locked(state, shard) {
            return Some(false);
        }
        if self.has(Guard::FenceOnWrite) && !self.is_owner(state, shard, own.fence) {
            return None;
        }
        if self.has(Guard::CompareAgain) && own.boot != state.observer.rewound.1 {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let version = state.workers[worker].policy.version;
        if self.has(Guard::PolicyVersion) && state.postgres.shards[shard].version > version {
            return Some(false);
        }
        let mut decisions = Vec::with_capacity(batch.len());
        for (index, entry) in batch.iter().enumerate() {
            let decision = self.decide(state, *entry, &batch[..index], &decisions);
            decisions.push(decision);
        }
        if self.config.split {
            own.stage = Stage::Write(batch, next, decisions);
            return Some(true);
        }
        self.write(state, worker, shard, own, &batch, next, &decisions)
    }

    /// Decides an entry by the stored rows and by the earlier decisions of this batch.
    fn decide(&self, state: &State, entry: Entry, before: &[Entry], decisions: &[Decision]) -> Decision {
        let id = |record: u8| self.config.records[usize::from(record)].id;
        let here = before.iter().zip(decisions).filter(|(_, decision)| **decision == Decision::New);
        let taken = self
            .taken(state, entry.record)
            .or(here.map(|(entry, _)| *entry).find(|e| id(e.record) == id(entry.record)));
        let Some(taken) = taken else { return Decision::New };
        let conflict = taken.record != entry.record;
        let again = |noted: &Noted| {
            (noted.entry.record, noted.entry.sid, noted.conflict) == (entry.record, entry.sid, conflict)
        };
        let noted = state.postgres.shards.iter().flat_map(|shard| &shard.noted).any(again);
        match conflict {
            _ if noted => Decision::Redelivered,
            false if taken.sid == entry.sid => Decision::Redelivered,
            false => Decision::Duplicate,
            true => Decision::Conflict,
        }
    }

    /// The entry that holds a record's id.
    fn taken(&self, state: &State, record: u8) -> Option<Entry> {
        let id = |record: u8| self.config.records[usize::from(record)].id;
        let mut rows = state.postgres.shards.iter().flat_map(|shard| &shard.log);
        rows.find(|row| id(row.entry.record) == id(record)).map(|row| row.entry)
    }

    #[expect(clippy::too_many_arguments, reason = "a step's whole context, named")]
    pub(crate) fn write(
        &self,
        state: &mut State,
        worker: usize,
        shard: usize,
        own: &mut Own,
        batch: &[Entry],
        next: Next,
        decisions: &[Decision],
    ) -> Option<bool> {
        let new = |(entry, decision): &(&Entry, &Decision)| {
            **decision == Decision::New && self.taken(state, entry.record).is_some()
        };
        if self.has(Guard::UniqueId) && batch.iter().zip(decisions).any(|pair| new(&pair)) {
            // Another shard took an id in between: the worker rolls back and decides again.
            own.stage = Stage::Commit(batch.to_vec(), next);
            return Some(true);
        }
        let Policy { version, threshold, .. } = state.workers[worker].policy;
        let row = &mut state.postgres.shards[shard];
        for (entry, decision) in batch.iter().zip(decisions) {
            own.caught_up = *decision != Decision::Redelivered;
            state.observer.decided |= 1 << entry.uid;
            match decision {
                Decision::New => {
                    let value = self.config.records[usize::from(entry.record)].value;
                    row.top += 1;
                    let (seq, before) = (row.top, row.total);
                    row.log.push(Row { seq, entry: *entry, version, alert: value > threshold, before });
                    row.total += value;
                }
                Decision::Redelivered => {}
                Decision::Duplicate | Decision::Conflict => {
                    row.noted.push(Noted { entry: *entry, conflict: *decision == Decision::Conflict });
                }
            }
        }
        row.version = version;
        if self.config.faults.postgres_rewind > 0 {
            // Without rewinds of Postgres the log holds the same rows.
            let from = own.recent.last().map_or(own.numbers[0], |last| last.seq);
            own.recent.extend(row.log.iter().filter(|row| row.seq > from));
        }
        own.numbers = row.numbers();
        own.stage = match next {
            _ if self.has(Guard::AckAfterCommit) => Stage::Ack(batch.to_vec(), next),
            Next::Claim(above) => Stage::Claim(above),
            Next::Read => Stage::Read,
        };
        Some(true)
    }
}
