//! The decision: a batch, what is stored about its ids and keys, and the policy, into what is to be written.
//!
//! Pure and total: every record ends as exactly one of a new record, a duplicate, a conflict, a dead letter, or nothing
//! (a redelivery, or a replay whose dead letter is closed). Must never look at a place in the stream alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Amount, DeadLetterId, DeadLetterReason, Decision, DestinationUnit, Duplicate, InputRecord, Item, Key, Kind, Known,
    NewConflict, NewDeadLetter, NewRecord, Policy, Position, PositionOfRecord, Record, RecordId, Refusal, Seq, ShardId,
    StreamPosition, Total, total_in_bounds, total_nanos,
};

/// Decides a batch, in order.
///
/// # Panics
/// When a record has not exactly one outcome, or numbers are not contiguous: a fault of this function.
#[must_use]
pub fn decide(batch: &[Item], known: Known, policy: &Policy, position: Position) -> Decision {
    let mut ledger = Ledger::new(known, policy, position);
    for (index, item) in batch.iter().enumerate() {
        let before = ledger.decision.redelivered;
        ledger.judge(index, item);
        if let Some(offsets) = item.input.offsets {
            ledger.position.account.count(offsets, ledger.decision.redelivered == before);
        }
    }
    ledger.decision.account = ledger.position.account;
    ledger.decision.assert_complete(batch.len(), position);
    ledger.decision
}

/// The holder of an id.
struct Taken {
    /// `None`: a dead letter whose payload cannot be read as a record of that id.
    record: Option<Arc<Record>>,
    position: StreamPosition,
}

struct Ledger<'a> {
    policy: &'a Policy,
    position: Position,
    /// Ids taken by records and by open dead letters.
    records: HashMap<RecordId, Taken>,
    dead_letters: HashMap<RecordId, Taken>,
    open: HashMap<DeadLetterId, Option<RecordId>>,
    closed: HashSet<DeadLetterId>,
    noted_dead_letters: HashMap<StreamPosition, Vec<Vec<u8>>>,
    duplicates: HashSet<PositionOfRecord>,
    conflicts: HashMap<PositionOfRecord, Vec<Record>>,
    totals: HashMap<Key, Total>,
    destinations: HashMap<DestinationUnit, i128>,
    decision: Decision,
}

impl<'a> Ledger<'a> {
    fn new(known: Known, policy: &'a Policy, position: Position) -> Self {
        let mut ledger = Self {
            policy,
            position,
            records: known
                .records
                .into_iter()
                .map(|(id, known)| (id, Taken { record: Some(known.record), position: known.position }))
                .collect(),
            dead_letters: HashMap::new(),
            open: HashMap::new(),
            closed: HashSet::new(),
            noted_dead_letters: HashMap::new(),
            duplicates: known.duplicates,
            conflicts: known.conflicts,
            totals: known.totals,
            destinations: known.destinations,
            decision: Decision::default(),
        };
        for dead_letter in known.dead_letters {
            if dead_letter.open {
                if let Some(id) = &dead_letter.record_id {
                    let record = Record::parse(&dead_letter.payload).ok().map(Arc::new);
                    ledger.dead_letters.insert(id.clone(), Taken { record, position: dead_letter.position });
                }
                ledger.open.insert(dead_letter.id, dead_letter.record_id);
            } else {
                ledger.closed.insert(dead_letter.id);
            }
            if dead_letter.id.shard == position.shard {
                ledger.noted_dead_letters.entry(dead_letter.position).or_default().push(dead_letter.payload);
            }
        }
        ledger
    }

    fn judge(&mut self, index: usize, item: &Item) {
        let input = &item.input;
        if input.replay_of.is_some_and(|dead_letter| self.closed.contains(&dead_letter)) {
            self.decision.redelivered += 1;
            return;
        }
        let noted = self.noted_dead_letters.get(&input.position);
        if noted.is_some_and(|dead_letters| dead_letters.iter().any(|payload| *payload == input.payload)) {
            self.decision.redelivered += 1;
            return;
        }
        // A replay of a dead letter that is stored no more is judged as a record: it may be the last copy.
        if let Some(dead_letter) = input.replay_of
            && let Some(id) = self.open.remove(&dead_letter)
        {
            // Judged as if the dead letter were closed.
            if let Some(id) = id {
                self.dead_letters.remove(&id);
            }
            self.closed.insert(dead_letter);
            self.decision.closed.push(dead_letter);
        }
        let record = match &item.record {
            Ok(record) => record,
            Err(invalid) => {
                let malformed = || Refusal::new(DeadLetterReason::Malformed, invalid.to_string());
                return self.dead_letter(index, input, None, item.isolated.clone().unwrap_or_else(malformed));
            }
        };
        if self.is_taken(index, input, record) {
            return;
        }
        if let Some(refusal) = item.isolated.clone() {
            return self.dead_letter(index, input, Some(record), refusal);
        }
        if ShardId::of(&record.destination_id, self.position.shards) != self.position.shard {
            let detail = "the record is in the stream of another shard than that of its destinationId";
            return self.dead_letter(index, input, Some(record), Refusal::new(DeadLetterReason::WrongShard, detail));
        }
        match self.add(record) {
            Ok(previous) => self.keep(index, input, record, previous),
            Err(refusal) => self.dead_letter(index, input, Some(record), refusal),
        }
    }

    /// Applies a record whose id is taken, or was when it came first: as a redelivery, a duplicate or a conflict.
    fn is_taken(&mut self, index: usize, input: &InputRecord, record: &Arc<Record>) -> bool {
        let id = &record.record_id;
        let taken = self.records.get(id).or_else(|| self.dead_letters.get(id));
        let same = taken.is_some_and(|taken| taken.record.as_deref() == Some(&**record));
        let free = taken.is_none();
        let delivery = PositionOfRecord { record_id: id.clone(), position: input.position };
        // A noted outcome stays: the dead letter that took the id then may be closed by now, and the id free or another's.
        let again = self.conflicts.get(&delivery).is_some_and(|noted| noted.contains(&**record))
            || taken.is_some_and(|taken| same && taken.position == input.position)
            || (same || free) && self.duplicates.contains(&delivery);
        if again {
            self.decision.redelivered += 1;
        } else if free {
            return false;
        } else if same {
            self.duplicates.insert(delivery);
            self.decision.duplicates.push(Duplicate { item: index, record_id: id.clone() });
        } else {
            self.conflicts.entry(delivery).or_default().push(Record::clone(record));
            let seq = next(&mut self.position.watermarks.conflicts);
            let conflict = NewConflict { seq, item: index, record: Arc::clone(record) };
            self.decision.conflicts.push(conflict);
        }
        true
    }

    /// Adds a record to its totals, or refuses it. Returns the total before it.
    fn add(&mut self, record: &Record) -> Result<Total, Refusal> {
        let key = Key::of(record);
        let previous = self.totals.get(&key).copied().unwrap_or_default();
        let total =
            previous.total.checked_add(record.signed()).filter(|total| total_in_bounds(*total)).ok_or_else(|| {
                let detail =
                    "the total of its destinationId, reference and unit would have more than 19 integer digits";
                Refusal::new(DeadLetterReason::TotalOutOfBounds, detail)
            })?;
        if let Some(minimum) = self.policy.minimum_total_nanos() {
            let of_unit = DestinationUnit { destination_id: key.destination_id.clone(), unit: key.unit.clone() };
            let before = self.destinations.entry(of_unit).or_default();
            let after = *before + total_nanos(record.signed());
            if record.kind == Kind::Negative && after < minimum {
                let detail = "its destination's total in this unit would be below policy.minimumTotal";
                return Err(Refusal::new(DeadLetterReason::BelowMinimumTotal, detail));
            }
            *before = after;
        }
        let next = Total { count: previous.count + 1, total };
        self.totals.insert(key.clone(), next);
        self.decision.totals.insert(key, next);
        Ok(previous)
    }

    fn keep(&mut self, index: usize, input: &InputRecord, record: &Arc<Record>, previous: Total) {
        let taken = Taken { record: Some(Arc::clone(record)), position: input.position };
        self.records.insert(record.record_id.clone(), taken);
        let threshold =
            self.policy.threshold(record.unit.as_str()).filter(|threshold| record.value > Amount::stored(*threshold));
        self.decision.alerts += i64::from(threshold.is_some());
        self.decision.without_threshold += i64::from(self.policy.lacks_threshold(record.unit.as_str()));
        self.decision.records.push(NewRecord {
            seq: next(&mut self.position.watermarks.records),
            item: index,
            record: Arc::clone(record),
            previous,
            threshold,
        });
    }

    fn dead_letter(&mut self, index: usize, input: &InputRecord, record: Option<&Arc<Record>>, refusal: Refusal) {
        self.noted_dead_letters.entry(input.position).or_default().push(input.payload.to_vec());
        if let Some(record) = record {
            let taken = Taken { record: Some(Arc::clone(record)), position: input.position };
            self.dead_letters.insert(record.record_id.clone(), taken);
        }
        self.decision.dead_letters.push(NewDeadLetter {
            seq: next(&mut self.position.watermarks.dead_letters),
            item: index,
            record_id: record.map(|record| record.record_id.clone()),
            destination_id: record.map(|record| record.destination_id.clone()),
            reason: refusal.reason,
            detail: refusal.detail,
            replay_of: input.replay_of,
        });
    }
}

fn next(watermark: &mut Seq) -> Seq {
    *watermark = watermark.next();
    *watermark
}

#[cfg(test)]
mod tests;
