//! The ids of a group of batches, with the record or open dead letter that each one names.
//!
//! One ledger serves all shards of a group, so that an id which two of them bring is taken once.

use std::collections::HashMap;

use super::{ContentDigest, DeadLetterId, RecordId, ShardSeq, StreamPosition};

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A record.
    Record(ShardSeq),
    /// An open dead letter.
    DeadLetter(DeadLetterId),
}

/// The holder of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenId {
    /// The record or dead letter.
    pub holder: Holder,
    /// The digest of its content.
    pub digest: ContentDigest,
    /// The place of the record in the stream of its shard, where it is needed and known.
    pub position: Option<StreamPosition>,
}

/// A change of a stored id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdChange {
    /// The id was free.
    Take {
        /// The id.
        record_id: RecordId,
        /// Its holder.
        by: TakenId,
    },
    /// A dead letter that is closed had it.
    Move {
        /// The id.
        record_id: RecordId,
        /// The dead letter that is closed.
        from: DeadLetterId,
        /// Its holder; `None`: it is free.
        by: Option<TakenId>,
    },
}

/// Ids that are taken. An id that is not here is free.
#[derive(Debug, Default)]
pub struct IdLedger {
    ids: HashMap<RecordId, TakenId>,
    /// Ids whose dead letter is closed here.
    moved: HashMap<RecordId, DeadLetterId>,
    /// Ids that were free, in the order in which they were taken.
    new: Vec<RecordId>,
}

impl IdLedger {
    /// The ledger of stored ids.
    #[must_use]
    pub fn new(stored: HashMap<RecordId, TakenId>) -> Self {
        Self { ids: stored, ..Self::default() }
    }

    /// The holder of an id; `None`: it is free.
    #[must_use]
    pub fn get(&self, record_id: &RecordId) -> Option<&TakenId> {
        self.ids.get(record_id)
    }

    /// Notes who takes a free id.
    pub fn take(&mut self, record_id: &RecordId, by: TakenId) {
        self.ids.insert(record_id.clone(), by);
        if !self.moved.contains_key(record_id) {
            self.new.push(record_id.clone());
        }
    }

    /// Frees the id of a dead letter that is closed, unless another has it.
    pub fn close(&mut self, record_id: &RecordId, dead_letter: DeadLetterId) {
        if self.ids.get(record_id).is_some_and(|taken| taken.holder == Holder::DeadLetter(dead_letter)) {
            self.ids.remove(record_id);
            self.moved.insert(record_id.clone(), dead_letter);
        }
    }

    /// The changes to be stored, sorted by id, so that all commits lock ids in one order.
    #[must_use]
    pub fn changes(&self) -> Vec<IdChange> {
        let taken = self.new.iter().filter_map(|record_id| {
            Some(IdChange::Take { record_id: record_id.clone(), by: *self.ids.get(record_id)? })
        });
        let moved = self.moved.iter().map(|(record_id, from)| IdChange::Move {
            record_id: record_id.clone(),
            from: *from,
            by: self.ids.get(record_id).copied(),
        });
        let mut changes: Vec<IdChange> = taken.chain(moved).collect();
        changes.sort_unstable_by(|one, other| one.record_id().cmp(other.record_id()));
        changes
    }
}

impl IdChange {
    /// The id.
    #[must_use]
    pub fn record_id(&self) -> &RecordId {
        match self {
            Self::Take { record_id, .. } | Self::Move { record_id, .. } => record_id,
        }
    }
}
