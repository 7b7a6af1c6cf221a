//! The rows that a commit writes for a shard: records, duplicates, conflicts, dead letters, offsets, the applied entry.

use crate::{
    guards::Guard,
    protocol::Protocol,
    state::{
        Batch, DeadLetter, DeadLetterState, Decided, Decision, InputRecord, Noted, Own, Policy, Row, Shard, State,
    },
    steps,
};

impl Protocol {
    /// Writes the outcomes of a batch, and accounts for its records.
    pub(crate) fn write(
        &self,
        state: &mut State,
        worker: usize,
        shard: usize,
        own: &mut Own,
        batch: &Batch,
        decided: &[Decided],
    ) {
        let Policy { version, threshold, .. } = state.workers[worker].policy;
        let clock = state.clock;
        let first = state.postgres.shards[shard].top + 1;
        for (input, decided) in batch.records.iter().zip(decided) {
            self.observe_decision(state, shard, *input, *decided);
            let row = &mut state.postgres.shards[shard];
            self.account(row, *input, decided.decision);
            if decided.closes
                && let Some(there) = row.dead_letters.iter_mut().find(|there| there.number == input.replay_of)
            {
                there.state = DeadLetterState::Replayed;
            }
            match decided.decision {
                Decision::New => {
                    let value = self.config.records[usize::from(input.record)].value;
                    row.top += 1;
                    let (seq, before) = (row.top, row.total);
                    let period = if self.has(Guard::PeriodNeverFalls) { row.period.max(clock) } else { clock };
                    let total_alert = before <= threshold && before + value > threshold;
                    let alert = value > threshold;
                    row.log.push(Row { seq, input: *input, version, alert, total_alert, before, period });
                    row.total += value;
                }
                Decision::DeadLetter => {
                    row.last_dead_letter += 1;
                    let number = row.last_dead_letter;
                    row.dead_letters.push(DeadLetter { number, input: *input, state: DeadLetterState::Open });
                }
                Decision::Redelivered => {}
                Decision::Duplicate | Decision::Conflict => {
                    let conflict = decided.decision == Decision::Conflict;
                    row.noted.push(Noted { input: *input, conflict });
                }
            }
        }
        let row = &mut state.postgres.shards[shard];
        self.count_in_rollup(row, version, first);
        row.version = version;
        if let Some(last) = batch.records.last() {
            row.applied = steps::applied(self.config.guards, row.applied, last.sid);
        }
        self.note_period(row, first);
        if self.config.faults.postgres_rewind > 0 {
            // Without rewinds of Postgres the log holds the same rows.
            let follows = own.recent.last().is_none_or(|last| last.seq + 1 == first);
            if !follows && self.has(Guard::FollowRecent) {
                // A commit whose outcome was unknown is missing here; it is in the log.
                own.recent.clear();
            }
            own.recent.extend(row.log.iter().filter(|row| row.seq >= first));
        }
        (own.numbers, own.accounted, own.applied) = (row.numbers(), row.accounted, row.applied);
    }

    /// The table of periods has the first record of each. A period that is there is never added again.
    fn note_period(&self, row: &mut Shard, first: u8) {
        let Some(period) = row.log.iter().find(|row| row.seq == first).map(|row| row.period) else { return };
        if self.config.faults.clock > 0 && row.periods.iter().all(|(there, _)| *there != period) {
            row.periods.push((period, first));
        }
        row.period = period;
    }

    /// Notes, for the observer, records that count nowhere by mistake.
    fn observe_decision(&self, state: &mut State, shard: usize, input: InputRecord, decided: Decided) {
        state.observer.decided |= 1 << input.uid;
        if decided.decision != Decision::Redelivered {
            return;
        }
        let row = &state.postgres.shards[shard];
        let is_closed = |there: &&DeadLetter| there.number == input.replay_of && there.state != DeadLetterState::Open;
        let held = row.log.iter().map(|row| row.input).chain(row.noted.iter().map(|noted| noted.input));
        if self.config.count && !held.clone().any(|held| held.uid == input.uid) {
            state.observer.mistaken |= 1 << input.uid;
        }
        let others = row.dead_letters.iter().filter(|there| !decided.closes || there.number != input.replay_of);
        let mut held = held.chain(others.map(|there| there.input));
        if !row.dead_letters.iter().any(|there| is_closed(&there)) && !held.any(|held| held.record == input.record) {
            state.observer.dropped = true;
        }
    }

    /// Accounts for a record.
    fn account(&self, row: &mut Shard, input: InputRecord, decision: Decision) {
        if self.config.count {
            let is_redelivered = decision == Decision::Redelivered;
            let (accounted, lost) = steps::account(self.config.guards, row.accounted, input.offset, is_redelivered);
            row.accounted = accounted;
            row.lost += lost;
        }
    }
}
