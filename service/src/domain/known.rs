//! Stored state that a decision depends on: ids and keys of a batch, and the position of its shard.

use std::collections::HashMap;

use rust_decimal::Decimal;

use super::{
    Account, ContentDigest, DeadLetterId, DestinationId, OriginalRecord, Record, RecordId, Reference, ShardId,
    StreamId, StreamPosition, Unit, Watermarks, WindowKey,
};

/// Under which a running total is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The destination.
    pub destination_id: DestinationId,
    /// The reference.
    pub reference: Reference,
    /// The unit.
    pub unit: Unit,
}

impl Key {
    /// The key of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self {
            destination_id: record.destination_id.clone(),
            reference: record.reference.clone(),
            unit: record.unit.clone(),
        }
    }
}

/// Count and sum of the records of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// Number of records.
    pub count: i64,
    /// Their signed sum.
    pub total: Decimal,
}

/// A unit of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DestinationUnit {
    /// The destination.
    pub destination_id: DestinationId,
    /// The unit.
    pub unit: Unit,
}

/// A place in the stream, with the record that came there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PositionOfRecord {
    /// Id of the record.
    pub record_id: RecordId,
    /// Its place.
    pub position: StreamPosition,
}

/// Stored state of the keys and places of a batch. Its ids are in the ledger.
#[derive(Debug, Default)]
pub struct Known {
    /// Dead letters of any state with a place or a replay of the batch.
    pub dead_letters: Vec<KnownDeadLetter>,
    /// Content of noted duplicates.
    pub duplicates: HashMap<PositionOfRecord, Vec<ContentDigest>>,
    /// Content of refused conflicts.
    pub conflicts: HashMap<PositionOfRecord, Vec<ContentDigest>>,
    /// Totals of the batch's keys; absent: none yet.
    pub totals: HashMap<Key, Total>,
    /// Totals in billionths, where the policy needs them; absent: zero.
    pub destinations: HashMap<DestinationUnit, i128>,
    /// The records that reversals of the batch take back; absent: the shard has none, or it is no longer kept.
    pub originals: HashMap<RecordId, OriginalRecord>,
    /// Totals of windows in billionths, where the policy needs them; absent: no total of the window is known, and it raises no
    /// alert.
    pub windows: HashMap<WindowKey, i128>,
}

/// A dead letter that is stored.
#[derive(Debug, Clone)]
pub struct KnownDeadLetter {
    /// Its number.
    pub id: DeadLetterId,
    /// Whether it still takes its id.
    pub open: bool,
    /// Absent where the payload could not be read.
    pub record_id: Option<RecordId>,
    /// Its place in the stream.
    pub position: StreamPosition,
    /// The payload.
    pub payload: Vec<u8>,
}

/// State of the shard before the batch.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// The shard.
    pub shard: ShardId,
    /// Number of shards of the pipeline.
    pub shards: u16,
    /// The highest numbers that are given.
    pub watermarks: Watermarks,
    /// Records that are applied or lost.
    pub account: Account,
    /// The highest id of an entry that was ever applied. An entry above it never was.
    pub applied: Option<StreamId>,
}

impl Position {
    /// Whether an entry can have been applied before.
    #[must_use]
    pub fn may_have_applied(&self, entry: StreamId) -> bool {
        self.applied.is_some_and(|applied| entry <= applied)
    }
}
