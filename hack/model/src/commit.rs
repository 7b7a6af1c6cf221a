//! One batch in one transaction, or in several: decide by the stored rows, write.
//!
//! Must never decide by a `uid`: only the observer may use it.

use crate::{
    guards::Guard,
    own::is_locked,
    protocol::Protocol,
    state::{Batch, Decision, InputRecord, Next, Noted, Own, Policy, Row, Shard, Stage, State},
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
        batch: Batch,
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
        let records = self.part(&batch);
        let mut decisions = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            let decision = self.decide(state, *record, &records[..index], &decisions);
            decisions.push(decision);
        }
        if !self.has(Guard::RecognizeEachRecord)
            && batch.applied == 0
            && decisions.first() == Some(&Decision::Redelivered)
        {
            // The first record tells for the others.
            decisions = vec![Decision::Redelivered; batch.records.len()];
        }
        if self.config.split {
            own.stage = Stage::Write(batch, decisions);
            return Some(true);
        }
        self.write(state, worker, shard, own, batch, &decisions)
    }

    /// The records of the next transaction.
    fn part<'a>(&self, batch: &'a Batch) -> &'a [InputRecord] {
        let rest = &batch.records[usize::from(batch.applied)..];
        &rest[..rest.len().min(self.config.transaction)]
    }

    /// Decides a record by the stored rows and by the earlier decisions of this transaction.
    fn decide(&self, state: &State, input: InputRecord, before: &[InputRecord], decisions: &[Decision]) -> Decision {
        let id = |record: u8| self.config.records[usize::from(record)].id;
        let here = before.iter().zip(decisions).filter(|(_, decision)| **decision == Decision::New);
        let taken = self
            .taken(state, input.record)
            .or(here.map(|(input, _)| *input).find(|taken| id(taken.record) == id(input.record)));
        let Some(taken) = taken else { return Decision::New };
        let position = |input: &InputRecord| (input.sid, input.index);
        let conflict = taken.record != input.record;
        let again = |noted: &Noted| {
            (noted.input.record, position(&noted.input), noted.conflict) == (input.record, position(&input), conflict)
        };
        let noted = state.postgres.shards.iter().flat_map(|shard| &shard.noted).any(again);
        match conflict {
            _ if noted => Decision::Redelivered,
            false if position(&taken) == position(&input) => Decision::Redelivered,
            false => Decision::Duplicate,
            true => Decision::Conflict,
        }
    }

    /// The record that holds the id of another.
    fn taken(&self, state: &State, record: u8) -> Option<InputRecord> {
        let id = |record: u8| self.config.records[usize::from(record)].id;
        let mut rows = state.postgres.shards.iter().flat_map(|shard| &shard.log);
        rows.find(|row| id(row.input.record) == id(record)).map(|row| row.input)
    }

    /// Writes the outcomes of the next part of the batch, and accounts for its records.
    pub(crate) fn write(
        &self,
        state: &mut State,
        worker: usize,
        shard: usize,
        own: &mut Own,
        mut batch: Batch,
        decisions: &[Decision],
    ) -> Option<bool> {
        let records = batch.records[usize::from(batch.applied)..].to_vec();
        let taken = |(input, decision): (&InputRecord, &Decision)| {
            *decision == Decision::New && self.taken(state, input.record).is_some()
        };
        if self.has(Guard::UniqueId) && records.iter().zip(decisions).any(taken) {
            // Another shard took an id in between: the worker rolls back and decides again.
            own.stage = Stage::Commit(batch);
            return Some(true);
        }
        let Policy { version, threshold, .. } = state.workers[worker].policy;
        let row = &mut state.postgres.shards[shard];
        for (input, decision) in records.iter().zip(decisions) {
            self.account(row, *input, *decision);
            let held = row.log.iter().map(|row| row.input).chain(row.noted.iter().map(|noted| noted.input));
            let redelivered = self.config.count && *decision == Decision::Redelivered;
            if redelivered && !held.map(|held| held.uid).any(|uid| uid == input.uid) {
                state.observer.mistaken |= 1 << input.uid;
            }
            state.observer.decided |= 1 << input.uid;
            match decision {
                Decision::New => {
                    let value = self.config.records[usize::from(input.record)].value;
                    row.top += 1;
                    let (seq, before) = (row.top, row.total);
                    row.log.push(Row { seq, input: *input, version, alert: value > threshold, before });
                    row.total += value;
                }
                Decision::Redelivered => {}
                Decision::Duplicate | Decision::Conflict => {
                    row.noted.push(Noted { input: *input, conflict: *decision == Decision::Conflict });
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
        own.accounted = row.accounted;
        batch.applied += decisions.len() as u8;
        let whole = usize::from(batch.applied) == batch.records.len();
        let next = batch.next;
        own.stage = match next {
            _ if !whole && self.has(Guard::AckWholeEntry) => Stage::Commit(batch),
            _ if self.has(Guard::AckAfterCommit) => Stage::Ack(batch),
            Next::Claim(above) => Stage::Claim(above),
            Next::Read => Stage::Read,
        };
        Some(true)
    }

    /// Accounts for a record. Offsets that are missing before it are lost records: the stream has all records in order. A
    /// rewound Redis gives offsets again: new records with such an offset count as the next ones.
    fn account(&self, row: &mut Shard, input: InputRecord, decision: Decision) {
        if !self.config.count {
            return;
        }
        if input.offset > row.accounted {
            row.lost += input.offset - row.accounted - 1;
            row.accounted = input.offset;
        } else if decision != Decision::Redelivered && self.has(Guard::CountOldOffsets) {
            row.accounted += 1;
        }
    }
}
