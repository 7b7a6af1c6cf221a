//! A batch, read, and the rows that its decision writes.

use std::{collections::BTreeMap, sync::Arc};

use rust_decimal::Decimal;

use super::{
    Account, ContentDigest, DeadLetterId, DeadLetterReason, DestinationId, InputRecord, Invalid, Key, Kind, Position,
    Record, RecordId, Reversal, Seq, SourceId, StreamId, Total, TotalAlert,
};

/// Why a record becomes a dead letter.
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

/// A payload, read.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The record.
    pub record: Arc<Record>,
    /// The digest of its content.
    pub digest: ContentDigest,
    /// Whether it reverses what remains of another record, and has no value: the decision gives it one. It is zero before.
    pub takes_rest: bool,
}

impl Parsed {
    /// Reads a payload.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong and the remedy.
    pub fn read(payload: &[u8]) -> Result<Self, Invalid> {
        let (record, takes_rest) = Record::parse_payload(payload)?;
        Ok(Self { digest: ContentDigest::of(&record), record: Arc::new(record), takes_rest })
    }
}

/// A record of a batch, read.
#[derive(Debug)]
pub struct Item {
    /// As it came.
    pub input: InputRecord,
    /// Its payload as a record.
    pub record: Result<Parsed, Invalid>,
    /// Set when the record was found to break its batch.
    pub isolated: Option<Refusal>,
}

/// A record to be stored.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Its number in the shard.
    pub seq: Seq,
    /// Its index in the batch.
    pub item: usize,
    /// The content.
    pub record: Arc<Record>,
    /// Count and total of the records before it on the same key and unit.
    pub previous: Total,
    /// The threshold that its value is above.
    pub threshold: Option<Decimal>,
    /// The thresholds on totals that it takes a total over, in the order of the manifest.
    pub total_alerts: Vec<TotalAlert>,
    /// What it takes back; `None`: it is no reversal.
    pub reversal: Option<Reversal>,
}

/// A record whose id is taken by the same content.
#[derive(Debug, Clone)]
pub struct Duplicate {
    /// Its index in the batch.
    pub item: usize,
    /// The id.
    pub record_id: RecordId,
    /// The digest of its content.
    pub digest: ContentDigest,
}

/// A record whose id is taken by other content.
#[derive(Debug, Clone)]
pub struct NewConflict {
    /// Its number in the shard.
    pub seq: Seq,
    /// Its index in the batch.
    pub item: usize,
    /// The content that was refused.
    pub record: Arc<Record>,
}

/// A record that cannot be applied, or an entry that holds none.
#[derive(Debug, Clone)]
pub struct NewDeadLetter {
    /// Its number in the shard.
    pub seq: Seq,
    /// Its index in the batch.
    pub item: usize,
    /// The id that it takes while it is open; `None` where the payload could not be read.
    pub record_id: Option<RecordId>,
    /// Where the payload could be read.
    pub source_id: Option<SourceId>,
    /// Where the payload could be read.
    pub destination_id: Option<DestinationId>,
    /// For programs.
    pub reason: DeadLetterReason,
    /// A sentence for people.
    pub detail: String,
    /// The dead letter whose replay was refused.
    pub replay_of: Option<DeadLetterId>,
}

/// The records of a key that a decision adds: count and unsigned sum of each sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TotalChange {
    /// Number of positive records.
    pub positive_count: i64,
    /// Number of negative records.
    pub negative_count: i64,
    /// Sum of the positive values.
    pub positive_sum: Decimal,
    /// Sum of the negative values, without sign.
    pub negative_sum: Decimal,
    /// Number of records that raise an alert.
    pub alerts: i64,
    /// The first of the records.
    pub first: Seq,
    /// The last of the records.
    pub last: Seq,
}

impl TotalChange {
    /// Adds the next record, of this number. A batch is too small for its sums to leave the range.
    pub fn add(&mut self, record: &Record, seq: Seq, is_alert: bool) {
        if self.positive_count + self.negative_count == 0 {
            self.first = seq;
        }
        self.last = seq;
        self.alerts += i64::from(is_alert);
        match record.kind {
            Kind::Positive => {
                self.positive_count += 1;
                self.positive_sum += record.value.get();
            }
            Kind::Negative => {
                self.negative_count += 1;
                self.negative_sum += record.value.get();
            }
        }
    }
}

/// Rows to write, all in one transaction.
#[derive(Debug, Default)]
pub struct Decision {
    /// New records, their numbers gap-free and in the order of the batch.
    pub records: Vec<NewRecord>,
    /// The keys that changed; sorted, so that locks are taken in one order.
    pub totals: BTreeMap<Key, TotalChange>,
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
    /// Number of thresholds that `records` take a total over.
    pub total_alerts: i64,
    /// Number of `records` of a unit without a threshold while other units have one.
    pub without_threshold: i64,
    /// Number of records that were applied before: counted nowhere.
    pub redelivered: usize,
    /// The account of the shard after the batch.
    pub account: Account,
    /// The highest id of an entry that was ever applied, with the batch.
    pub applied: Option<StreamId>,
}

impl Decision {
    /// Number of records that have an outcome now.
    #[must_use]
    pub fn outcomes(&self) -> usize {
        self.records.len() + self.duplicates.len() + self.conflicts.len() + self.dead_letters.len() + self.redelivered
    }

    /// Panics unless every record of the batch has exactly one outcome and the numbers of each sequence are contiguous.
    pub(super) fn assert_complete(&self, items: usize, before: Position) {
        let mut outcomes = vec![0_u8; items];
        let written = (self.records.iter().map(|new| new.item))
            .chain(self.duplicates.iter().map(|duplicate| duplicate.item))
            .chain(self.conflicts.iter().map(|conflict| conflict.item))
            .chain(self.dead_letters.iter().map(|dead_letter| dead_letter.item));
        written.for_each(|item| outcomes[item] += 1);
        assert!(outcomes.iter().all(|count| *count <= 1), "a record has two outcomes");
        let without = outcomes.iter().filter(|count| **count == 0).count();
        assert_eq!(without, self.redelivered, "a record has no outcome");
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
        Position { shard: ShardId::new(0), shards: 1, watermarks, account: Account::default(), applied: None }
    }

    fn dead_letter(item: usize, seq: i64) -> NewDeadLetter {
        NewDeadLetter {
            seq: Seq::new(seq),
            item,
            record_id: None,
            source_id: None,
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
    #[should_panic(expected = "a record has no outcome")]
    fn a_record_without_an_outcome_panics() {
        Decision { dead_letters: vec![dead_letter(0, 5)], ..Decision::default() }.assert_complete(2, position());
    }

    #[test]
    #[should_panic(expected = "a record has two outcomes")]
    fn a_record_with_two_outcomes_panics() {
        Decision { dead_letters: vec![dead_letter(0, 5), dead_letter(0, 6)], ..Decision::default() }
            .assert_complete(1, position());
    }

    #[test]
    #[should_panic(expected = "numbers are not contiguous")]
    fn a_gap_in_the_numbers_panics() {
        Decision { dead_letters: vec![dead_letter(0, 6)], ..Decision::default() }.assert_complete(1, position());
    }
}
