//! The decision: a batch, what is stored about its ids and keys, and the policy, into what is to be written.
//!
//! Pure and total: every entry ends as exactly one of a new record, a duplicate, a conflict, a dead letter, or nothing
//! (a redelivery, or a replay whose dead letter is closed). Must never look at a stream id alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Amount, DeadLetterId, DeadLetterReason, Decision, DestinationUnit, Duplicate, Entry, EntryOfRecord, Item, Key,
    Kind, Known, NewConflict, NewDeadLetter, NewRecord, Policy, Position, Record, RecordId, Refusal, Seq, ShardId,
    StreamId, Total, total_in_bounds, total_nanos,
};

/// Decides a batch, in order.
///
/// # Panics
/// When an entry has not exactly one outcome, or numbers are not contiguous: a fault of this function.
#[must_use]
pub fn decide(batch: &[Item], known: Known, policy: &Policy, position: Position) -> Decision {
    let mut ledger = Ledger::new(known, policy, position);
    for (index, item) in batch.iter().enumerate() {
        let before = ledger.decision.redelivered;
        ledger.judge(index, item);
        ledger.decision.ends_in_redelivery = ledger.decision.redelivered > before;
    }
    ledger.decision.assert_complete(batch.len(), position);
    ledger.decision
}

/// The holder of an id.
struct Taken {
    /// `None`: a dead letter whose payload cannot be read as a record of that id.
    record: Option<Arc<Record>>,
    stream_id: StreamId,
}

struct Ledger<'a> {
    policy: &'a Policy,
    position: Position,
    /// Ids taken by records and by open dead letters.
    records: HashMap<RecordId, Taken>,
    dead_letters: HashMap<RecordId, Taken>,
    open: HashMap<DeadLetterId, Option<RecordId>>,
    noted_dead_letters: HashMap<StreamId, Vec<Vec<u8>>>,
    duplicates: HashSet<EntryOfRecord>,
    conflicts: HashMap<EntryOfRecord, Vec<Record>>,
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
                .map(|(id, known)| (id, Taken { record: Some(known.record), stream_id: known.stream_id }))
                .collect(),
            dead_letters: HashMap::new(),
            open: HashMap::new(),
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
                    ledger.dead_letters.insert(id.clone(), Taken { record, stream_id: dead_letter.stream_id });
                }
                ledger.open.insert(dead_letter.id, dead_letter.record_id);
            }
            if dead_letter.id.shard == position.shard {
                ledger.noted_dead_letters.entry(dead_letter.stream_id).or_default().push(dead_letter.payload);
            }
        }
        ledger
    }

    fn judge(&mut self, index: usize, item: &Item) {
        let entry = &item.entry;
        if let Some(dead_letter) = entry.replay_of {
            let Some(id) = self.open.remove(&dead_letter) else {
                self.decision.redelivered += 1;
                return;
            };
            // Judged as if the dead letter were closed.
            if let Some(id) = id {
                self.dead_letters.remove(&id);
            }
            self.decision.closed.push(dead_letter);
        } else if self
            .noted_dead_letters
            .get(&entry.id)
            .is_some_and(|dead_letters| dead_letters.contains(&entry.payload))
        {
            self.decision.redelivered += 1;
            return;
        }
        let record = match &item.record {
            Ok(record) => record,
            Err(invalid) => {
                let malformed = || Refusal::new(DeadLetterReason::Malformed, invalid.to_string());
                return self.dead_letter(index, entry, None, item.isolated.clone().unwrap_or_else(malformed));
            }
        };
        if self.is_taken(index, entry, record) {
            return;
        }
        if let Some(refusal) = item.isolated.clone() {
            return self.dead_letter(index, entry, Some(record), refusal);
        }
        if ShardId::of(&record.destination_id, self.position.shards) != self.position.shard {
            let detail = "the entry is in the stream of another shard than that of its destinationId";
            return self.dead_letter(index, entry, Some(record), Refusal::new(DeadLetterReason::WrongShard, detail));
        }
        match self.add(record) {
            Ok(previous) => self.keep(index, entry, record, previous),
            Err(refusal) => self.dead_letter(index, entry, Some(record), refusal),
        }
    }

    /// Applies an entry whose id is taken, or was when it came first: as a redelivery, a duplicate or a conflict.
    fn is_taken(&mut self, index: usize, entry: &Entry, record: &Arc<Record>) -> bool {
        let id = &record.record_id;
        let taken = self.records.get(id).or_else(|| self.dead_letters.get(id));
        let same = taken.is_some_and(|taken| taken.record.as_deref() == Some(&**record));
        let free = taken.is_none();
        let delivery = EntryOfRecord { record_id: id.clone(), stream_id: entry.id };
        // A noted outcome stays: the dead letter that took the id then may be closed by now, and the id free or another's.
        let again = self.conflicts.get(&delivery).is_some_and(|noted| noted.contains(&**record))
            || taken.is_some_and(|taken| same && taken.stream_id == entry.id)
            || (same || free) && self.duplicates.contains(&delivery);
        if again {
            self.decision.redelivered += 1;
        } else if free {
            return false;
        } else if same {
            self.count_external(entry);
            self.duplicates.insert(delivery);
            self.decision.duplicates.push(Duplicate { entry: index, record_id: id.clone() });
        } else {
            self.count_external(entry);
            self.conflicts.entry(delivery).or_default().push(Record::clone(record));
            let seq = next(&mut self.position.watermarks.conflicts);
            let conflict = NewConflict { seq, entry: index, record: Arc::clone(record) };
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

    fn keep(&mut self, index: usize, entry: &Entry, record: &Arc<Record>, previous: Total) {
        self.count_external(entry);
        let taken = Taken { record: Some(Arc::clone(record)), stream_id: entry.id };
        self.records.insert(record.record_id.clone(), taken);
        let threshold =
            self.policy.threshold(record.unit.as_str()).filter(|threshold| record.value > Amount::stored(*threshold));
        self.decision.alerts += i64::from(threshold.is_some());
        self.decision.without_threshold += i64::from(self.policy.lacks_threshold(record.unit.as_str()));
        self.decision.records.push(NewRecord {
            seq: next(&mut self.position.watermarks.records),
            entry: index,
            record: Arc::clone(record),
            previous,
            threshold,
        });
    }

    fn dead_letter(&mut self, index: usize, entry: &Entry, record: Option<&Arc<Record>>, refusal: Refusal) {
        self.count_external(entry);
        self.noted_dead_letters.entry(entry.id).or_default().push(entry.payload.clone());
        if let Some(record) = record {
            let taken = Taken { record: Some(Arc::clone(record)), stream_id: entry.id };
            self.dead_letters.insert(record.record_id.clone(), taken);
        }
        self.decision.dead_letters.push(NewDeadLetter {
            seq: next(&mut self.position.watermarks.dead_letters),
            entry: index,
            record_id: record.map(|record| record.record_id.clone()),
            destination_id: record.map(|record| record.destination_id.clone()),
            reason: refusal.reason,
            detail: refusal.detail,
            replay_of: entry.replay_of,
        });
    }

    fn count_external(&mut self, entry: &Entry) {
        self.decision.external += i64::from(!entry.marked);
    }
}

fn next(watermark: &mut Seq) -> Seq {
    *watermark = watermark.next();
    *watermark
}

#[cfg(test)]
mod tests;
