//! The decision: a batch, what is stored about its ids and keys, and the policy, into what is to be written.
//!
//! Pure and total: every entry ends as exactly one of a new record, a duplicate, a conflict, a dead letter, or nothing
//! (a redelivery, or a replay whose dead letter is closed). Must never look at a stream id alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use rust_decimal::Decimal;

use super::{
    Amount, DeadLetterId, Entry, Invalid, Key, Kind, Known, Policy, Position, Record, StreamId, Text, Total, shard_of,
    total_in_bounds, total_nanos,
};

/// A record to be stored.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Its number in the shard.
    pub seq: i64,
    /// Index of its entry in the batch.
    pub entry: usize,
    /// The content.
    pub record: Arc<Record>,
    /// Count and total of the records before it on the same key and unit.
    pub previous: Total,
    /// The threshold that its value is above.
    pub threshold: Option<Decimal>,
}

/// An entry whose id is taken by the same content.
#[derive(Debug, Clone)]
pub struct Duplicate {
    /// Index of its entry in the batch.
    pub entry: usize,
    /// The id.
    pub record_id: Text,
}

/// An entry whose id is taken by other content.
#[derive(Debug, Clone)]
pub struct NewConflict {
    /// Its number in the shard.
    pub n: i64,
    /// Index of its entry in the batch.
    pub entry: usize,
    /// The content that was refused.
    pub record: Arc<Record>,
}

/// An entry that cannot be applied.
#[derive(Debug, Clone)]
pub struct NewDeadLetter {
    /// Its number in the shard.
    pub n: i64,
    /// Index of its entry in the batch.
    pub entry: usize,
    /// The id that it takes while it is open; `None` where the payload could not be read.
    pub record_id: Option<Text>,
    /// Where the payload could be read.
    pub destination_id: Option<Text>,
    /// A stable code.
    pub reason: &'static str,
    /// A sentence.
    pub detail: String,
    /// The dead letter whose replay was refused.
    pub replay_of: Option<DeadLetterId>,
}

/// DeadLetters that a replay closed.
pub type Closed = Vec<DeadLetterId>;

/// Rows to write, all in one transaction.
#[derive(Debug, Default)]
pub struct Decision {
    /// New records, their numbers gap-free and in the order of the batch.
    pub records: Vec<NewRecord>,
    /// The keys that changed, with their new totals; sorted, so that locks are taken in one order.
    pub totals: BTreeMap<Key, Total>,
    /// Duplicates.
    pub duplicates: Vec<Duplicate>,
    /// Conflicts.
    pub conflicts: Vec<NewConflict>,
    /// Dead letters to be opened.
    pub dead_letters: Vec<NewDeadLetter>,
    /// Dead letters to be closed because their replay was decided here.
    pub closed: Closed,
    /// Number of `records` above their threshold.
    pub alerts: i64,
    /// Number of `records` of a unit without a threshold while other units have one.
    pub without_threshold: i64,
    /// Applied entries that were not taken in by a serve process: those of other programs, and replays.
    pub external: i64,
    /// Entries that were applied before: counted nowhere.
    pub redelivered: usize,
    /// Whether the last entry is one of them.
    pub ends_in_redelivery: bool,
}

/// An entry of a batch, read.
#[derive(Debug)]
pub struct Item {
    /// The entry.
    pub entry: Entry,
    /// Its payload as a record.
    pub record: Result<Arc<Record>, Invalid>,
    /// Set when the entry was found to break its batch: a dead letter's reason and detail.
    pub isolated: Option<(&'static str, String)>,
}

/// Decides a batch, in order.
#[must_use]
pub fn decide(batch: &[Item], known: Known, policy: &Policy, position: Position) -> Decision {
    let mut ledger = Ledger::new(known, policy, position);
    for (index, item) in batch.iter().enumerate() {
        let before = ledger.decision.redelivered;
        ledger.judge(index, item);
        ledger.decision.ends_in_redelivery = ledger.decision.redelivered > before;
    }
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
    records: HashMap<Text, Taken>,
    dead_letters: HashMap<Text, Taken>,
    open: HashMap<DeadLetterId, Option<Text>>,
    noted_dead_letters: HashMap<StreamId, Vec<Vec<u8>>>,
    duplicates: HashSet<(Text, StreamId)>,
    conflicts: HashMap<(Text, StreamId), Vec<Record>>,
    totals: HashMap<Key, Total>,
    destinations: HashMap<(String, String), i128>,
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
                let (reason, detail) = item.isolated.clone().unwrap_or(("malformed", invalid.to_string()));
                return self.dead_letter(index, entry, None, reason, detail);
            }
        };
        if self.is_taken(index, entry, record) {
            return;
        }
        if let Some((reason, detail)) = item.isolated.clone() {
            return self.dead_letter(index, entry, Some(record), reason, detail);
        }
        if shard_of(record.destination_id.as_str(), self.position.shards) != self.position.shard {
            let detail = "the entry is in the stream of another shard than that of its destinationId".to_owned();
            return self.dead_letter(index, entry, Some(record), "wrong_shard", detail);
        }
        match self.add(record) {
            Ok(previous) => self.keep(index, entry, record, previous),
            Err((reason, detail)) => self.dead_letter(index, entry, Some(record), reason, detail),
        }
    }

    /// Applies an entry whose id is taken, or was when it came first: as a redelivery, a duplicate or a conflict.
    fn is_taken(&mut self, index: usize, entry: &Entry, record: &Arc<Record>) -> bool {
        let id = &record.record_id;
        let taken = self.records.get(id).or_else(|| self.dead_letters.get(id));
        let same = taken.is_some_and(|taken| taken.record.as_deref() == Some(&**record));
        let free = taken.is_none();
        let mark = (id.clone(), entry.id);
        // A noted outcome stays: the dead letter that took the id then may be closed by now, and the id free or another's.
        let again = self.conflicts.get(&mark).is_some_and(|noted| noted.contains(&**record))
            || taken.is_some_and(|taken| same && taken.stream_id == entry.id)
            || (same || free) && self.duplicates.contains(&mark);
        if again {
            self.decision.redelivered += 1;
        } else if free {
            return false;
        } else if same {
            self.count_external(entry);
            self.duplicates.insert(mark);
            self.decision.duplicates.push(Duplicate { entry: index, record_id: id.clone() });
        } else {
            self.count_external(entry);
            self.conflicts.entry(mark).or_default().push(Record::clone(record));
            self.position.conflicts += 1;
            let conflict = NewConflict { n: self.position.conflicts, entry: index, record: Arc::clone(record) };
            self.decision.conflicts.push(conflict);
        }
        true
    }

    /// Adds a record to its totals, or says why that may not be.
    fn add(&mut self, record: &Record) -> Result<Total, (&'static str, String)> {
        let key = Key::of(record);
        let previous = self.totals.get(&key).copied().unwrap_or_default();
        let total = previous.total.checked_add(record.signed()).filter(|total| total_in_bounds(*total)).ok_or((
            "total_out_of_bounds",
            "the total of its destinationId, reference and unit would have more than 19 integer digits".to_owned(),
        ))?;
        if let Some(minimum) = self.policy.minimum_total_nanos() {
            let before = self.destinations.entry((key.destination_id.clone(), key.unit.clone())).or_default();
            let after = *before + total_nanos(record.signed());
            if record.kind == Kind::Negative && after < minimum {
                let detail = "its destination's total in this unit would be below policy.minimumTotal".to_owned();
                return Err(("below_minimum_total", detail));
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
        self.position.records += 1;
        self.decision.records.push(NewRecord {
            seq: self.position.records,
            entry: index,
            record: Arc::clone(record),
            previous,
            threshold,
        });
    }

    fn dead_letter(
        &mut self,
        index: usize,
        entry: &Entry,
        record: Option<&Arc<Record>>,
        reason: &'static str,
        detail: String,
    ) {
        self.count_external(entry);
        self.noted_dead_letters.entry(entry.id).or_default().push(entry.payload.clone());
        if let Some(record) = record {
            let taken = Taken { record: Some(Arc::clone(record)), stream_id: entry.id };
            self.dead_letters.insert(record.record_id.clone(), taken);
        }
        self.position.dead_letters += 1;
        self.decision.dead_letters.push(NewDeadLetter {
            n: self.position.dead_letters,
            entry: index,
            record_id: record.map(|record| record.record_id.clone()),
            destination_id: record.map(|record| record.destination_id.clone()),
            reason,
            detail,
            replay_of: entry.replay_of,
        });
    }

    fn count_external(&mut self, entry: &Entry) {
        self.decision.external += i64::from(!entry.marked);
    }
}

#[cfg(test)]
mod tests;
