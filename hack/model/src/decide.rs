//! The decision of a batch: by what Postgres holds, and by the ids that the shards of the transaction have taken so far.
//!
//! Must never decide by a `uid`: only the observer may use it.

use crate::{
    config::Refused,
    guards::Guard,
    protocol::Protocol,
    state::{Change, DeadLetterState, Decided, Decision, Holder, InputRecord, LEDGER_IDS, Noted, Own, Shard, State},
};

/// What an id names, with the record as it came. No record: the id is free, or what it names is missing.
type Taken = (Holder, Option<InputRecord>);

/// The ids of a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    taken: [Taken; LEDGER_IDS],
    /// What has changed, in this order.
    pub(crate) changes: Vec<Change>,
}

impl Ids {
    /// The ids as Postgres holds them.
    pub(crate) fn stored(state: &State) -> Self {
        let of = |shard: u8| &state.postgres.shards[usize::from(shard)];
        let stored = |holder: Holder| match holder {
            Holder::Free => None,
            Holder::Record(shard, seq) => of(shard).log.iter().find(|row| row.seq == seq).map(|row| row.input),
            Holder::DeadLetter(shard, number) => of(shard).dead_letter(number).map(|there| there.input),
        };
        Self { taken: state.postgres.ledger.map(|holder| (holder, stored(holder))), changes: Vec::new() }
    }

    fn take(&mut self, id: u8, by: Holder, input: InputRecord) {
        self.taken[usize::from(id)] = (by, Some(input));
        match self.changes.iter_mut().find(|change| change.id == id) {
            Some(change) => change.to = by,
            None => self.changes.push(Change { id, from: Holder::Free, to: by }),
        }
    }

    /// Frees the id of a dead letter that is closed.
    fn close(&mut self, id: u8, dead_letter: Holder) {
        let taken = &mut self.taken[usize::from(id)];
        if taken.0 == dead_letter {
            *taken = (Holder::Free, None);
            self.changes.push(Change { id, from: dead_letter, to: Holder::Free });
        }
    }
}

/// The decision of the batch of one shard, so far.
struct Judge<'a> {
    protocol: &'a Protocol,
    state: &'a State,
    row: &'a Shard,
    shard: u8,
    /// The applied entry: one above it was never applied.
    applied: u8,
    ids: &'a mut Ids,
    /// The records and dead letters of this batch, behind those of the row.
    new: (u8, u8),
    closed: Vec<u8>,
}

impl Protocol {
    /// Decides a batch.
    pub(crate) fn decide(
        &self,
        state: &State,
        shard: usize,
        own: &Own,
        batch: &[InputRecord],
        ids: &mut Ids,
    ) -> Vec<Decided> {
        let row = &state.postgres.shards[shard];
        let applied = if self.has(Guard::AppliedUnderLock) { row.applied } else { own.applied };
        let (shard, closed) = (shard as u8, Vec::new());
        let mut judge = Judge { protocol: self, state, row, shard, applied, ids, new: (0, 0), closed };
        let mut first = None;
        let mut decided = Vec::with_capacity(batch.len());
        for input in batch {
            let comes_again = input.sid <= applied && first == Some((input.sid, Decision::Redelivered));
            let this = if comes_again && !self.has(Guard::RecognizeEachRecord) {
                Decided { decision: Decision::Redelivered, closes: false }
            } else {
                judge.judge(input)
            };
            if input.index == 0 {
                first = Some((input.sid, this.decision));
            }
            decided.push(this);
        }
        decided
    }
}

impl Judge<'_> {
    fn has(&self, guard: Guard) -> bool {
        self.protocol.has(guard)
    }

    fn id(&self, record: u8) -> u8 {
        self.protocol.config.records[usize::from(record)].id
    }

    fn judge(&mut self, input: &InputRecord) -> Decided {
        let nothing = Decided { decision: Decision::Redelivered, closes: false };
        let number = input.replay_of;
        let dead_letter = self.row.dead_letter(number);
        let mut is_open = dead_letter.is_some_and(|there| there.state == DeadLetterState::Open);
        let is_closed = number > 0 && (dead_letter.is_some() && !is_open || self.closed.contains(&number));
        if is_closed && self.has(Guard::ReplayOnlyOpen) {
            return nothing;
        }
        if number > 0 && dead_letter.is_none() && !self.has(Guard::LastCopy) {
            return nothing;
        }
        let content = dead_letter.map(|there| there.input.record);
        let same = |there: &InputRecord| (there.place(), there.record) == (input.place(), input.record);
        is_open &= content == Some(input.record) || !self.has(Guard::ReplayByContent);
        let closes = is_open && !is_closed;
        let may_have = input.sid <= self.applied && !(closes && self.has(Guard::ReplayIsNew));
        if may_have && self.row.dead_letters.iter().any(|there| same(&there.input)) {
            return nothing;
        }
        if closes && let Some(record) = content {
            // Judged as if the dead letter were closed.
            self.ids.close(self.id(record), Holder::DeadLetter(self.shard, number));
            self.closed.push(number);
        }
        Decided { decision: self.judge_id(input, may_have), closes }
    }

    fn judge_id(&mut self, input: &InputRecord, may_have: bool) -> Decision {
        let id = self.id(input.record);
        let (holder, taken) = self.ids.taken[usize::from(id)];
        let free = holder == Holder::Free;
        let same = taken.is_some_and(|taken| taken.record == input.record);
        if may_have {
            let came = matches!(holder, Holder::Record(shard, _) if shard == self.shard);
            let came = came && same && taken.is_some_and(|taken| taken.place() == input.place());
            let here = |noted: &Noted| noted.input.place() == input.place() && self.id(noted.input.record) == id;
            let content = |noted: &Noted| noted.input.record == input.record;
            let by_content = self.has(Guard::DuplicateByContent);
            let again = |noted: &Noted| match noted.conflict {
                true => content(noted),
                false if by_content => content(noted),
                false => same || free,
            };
            if came || self.row.noted.iter().any(|noted| here(noted) && again(noted)) {
                return Decision::Redelivered;
            }
        }
        if !free {
            return if same { Decision::Duplicate } else { Decision::Conflict };
        }
        let refused = match self.protocol.config.records[usize::from(input.record)].refused {
            Refused::Never => false,
            Refused::AtFirst => !self.state.admits,
            Refused::Always => true,
        };
        let (decision, by) = if refused {
            self.new.1 += 1;
            (Decision::DeadLetter, Holder::DeadLetter(self.shard, self.row.last_dead_letter + self.new.1))
        } else {
            self.new.0 += 1;
            (Decision::New, Holder::Record(self.shard, self.row.top + self.new.0))
        };
        self.ids.take(id, by, *input);
        decision
    }
}
