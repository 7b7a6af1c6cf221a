//! A batch, read, and the rows that its decision writes.

use std::{collections::BTreeMap, sync::Arc};

use rust_decimal::Decimal;

use super::{
    DeadLetterId, DeadLetterReason, DestinationId, Entry, Invalid, Key, Position, Record, RecordId, Seq, Total,
};

/// Why an entry becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: DeadLetterReason,
    /// A sentence for people.
    pub detail: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(reason: DeadLetterReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// An entry of a batch, read.
#[derive(Debug)]
pub struct Item {
    /// The entry.
    pub entry: Entry,
    /// Its payload as a record.
    pub record: Result<Arc<Record>, Invalid>,
    /// Set when the entry was found to break its batch.
    pub isolated: Option<Refusal>,
}

/// A record to be stored.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Its number in the shard.
    pub seq: Seq,
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
    pub record_id: RecordId,
}

/// An entry whose id is taken by other content.
#[derive(Debug, Clone)]
pub struct NewConflict {
    /// Its number in the shard.
    pub seq: Seq,
    /// Index of its entry in the batch.
    pub entry: usize,
    /// The content that was refused.
    pub record: Arc<Record>,
}

/// An entry that cannot be applied.
#[derive(Debug, Clone)]
pub struct NewDeadLetter {
    /// Its number in the shard.
    pub seq: Seq,
    /// Index of its entry in the batch.
    pub entry: usize,
    /// The id that it takes while it is open; `None` where the payload could not be read.
    pub record_id: Option<RecordId>,
    /// Where the payload could be read.
    pub destination_id: Option<DestinationId>,
    /// For programs.
    pub reason: DeadLetterReason,
    /// A sentence for people.
    pub detail: String,
    /// The dead letter whose replay was refused.
    pub replay_of: Option<DeadLetterId>,
}

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
    pub closed: Vec<DeadLetterId>,
    /// Number of `records` above their threshold.
    pub alerts: i64,
    /// Number of `records` of a unit without a threshold while other units have one.
    pub without_threshold: i64,
    /// Applied entries that no `serve` process appended: those of other programs, and replays.
    pub external: i64,
    /// Entries that were applied before: counted nowhere.
    pub redelivered: usize,
    /// Whether the last entry is one of them.
    pub ends_in_redelivery: bool,
}

impl Decision {
    /// Panics unless every entry of the batch has exactly one outcome and the numbers of each sequence are contiguous.
    pub(super) fn assert_complete(&self, entries: usize, before: Position) {
        let mut outcomes = vec![0_u8; entries];
        let written = (self.records.iter().map(|new| new.entry))
            .chain(self.duplicates.iter().map(|duplicate| duplicate.entry))
            .chain(self.conflicts.iter().map(|conflict| conflict.entry))
            .chain(self.dead_letters.iter().map(|dead_letter| dead_letter.entry));
        written.for_each(|entry| outcomes[entry] += 1);
        assert!(outcomes.iter().all(|count| *count <= 1), "an entry has two outcomes");
        let without = outcomes.iter().filter(|count| **count == 0).count();
        assert_eq!(without, self.redelivered, "an entry has no outcome");
        assert_contiguous(before.watermarks.records, self.records.iter().map(|new| new.seq));
        assert_contiguous(before.watermarks.dead_letters, self.dead_letters.iter().map(|new| new.seq));
        assert_contiguous(before.watermarks.conflicts, self.conflicts.iter().map(|new| new.seq));
    }
}

fn assert_contiguous(before: Seq, numbers: impl Iterator<Item = Seq>) {
    numbers.fold(before, |last, seq| {
        assert_eq!(seq, last.next(), "numbers are not contiguous");
        seq
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ShardId, Watermarks};

    fn position() -> Position {
        let watermarks = Watermarks { dead_letters: Seq::new(4), ..Watermarks::default() };
        Position { shard: ShardId::new(0), shards: 1, watermarks }
    }

    fn dead_letter(entry: usize, seq: i64) -> NewDeadLetter {
        NewDeadLetter {
            seq: Seq::new(seq),
            entry,
            record_id: None,
            destination_id: None,
            reason: DeadLetterReason::Malformed,
            detail: String::new(),
            replay_of: None,
        }
    }

    #[test]
    fn a_complete_decision_passes() {
        let decision = Decision {
            dead_letters: vec![dead_letter(0, 5), dead_letter(2, 6)],
            redelivered: 1,
            ..Decision::default()
        };
        decision.assert_complete(3, position());
    }

    #[test]
    #[should_panic(expected = "an entry has no outcome")]
    fn an_entry_without_an_outcome_panics() {
        Decision { dead_letters: vec![dead_letter(0, 5)], ..Decision::default() }.assert_complete(2, position());
    }

    #[test]
    #[should_panic(expected = "an entry has two outcomes")]
    fn an_entry_with_two_outcomes_panics() {
        Decision { dead_letters: vec![dead_letter(0, 5), dead_letter(0, 6)], ..Decision::default() }
            .assert_complete(1, position());
    }

    #[test]
    #[should_panic(expected = "numbers are not contiguous")]
    fn a_gap_in_the_numbers_panics() {
        Decision { dead_letters: vec![dead_letter(0, 6)], ..Decision::default() }.assert_complete(1, position());
    }
}
