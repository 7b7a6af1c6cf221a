//! From entries to a batch: each record is read, and one that cannot be read becomes a dead letter.

use std::panic::catch_unwind;

use super::ready::{Batch, ReadyEntry};
use crate::domain::{DeadLetterReason, Entry, InputRecord, Invalid, Item, Parsed, Refusal, code};

/// Deliveries after which the records of an entry are noted before each is read and decided.
const POISON_CANDIDATE: u64 = 3;

/// Reads the records of entries. Those of a poison candidate are read when they are noted.
pub(super) fn batch(entries: Vec<Entry>) -> Batch {
    let mut batch = Batch::default();
    for Entry { id, deliveries, records } in entries {
        let is_candidate = deliveries >= POISON_CANDIDATE;
        let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
        let size = records.len().max(bytes / 1024);
        batch.entries.push_back(ReadyEntry { id, records: records.len(), size, is_candidate, noted: None });
        let unread = |input| Item { input, record: Err(unread()), isolated: None };
        batch.items.extend(records.into_iter().map(|input| if is_candidate { unread(input) } else { read(input) }));
    }
    batch
}

/// Reads a record that was not read before.
pub(super) fn read_late(item: &mut Item) {
    *item = read(item.input.clone());
}

/// Reads a record. Where that panics, or its entry is corrupted, it becomes a dead letter.
fn read(input: InputRecord) -> Item {
    if input.corrupted {
        let refusal = Refusal::new(
            DeadLetterReason::Corrupted,
            "the entry does not have the bytes that were appended: its checksum is wrong",
        );
        return Item { input, record: Err(unread()), isolated: Some(refusal) };
    }
    match catch_unwind(|| Parsed::read(&input.payload)) {
        Ok(record) => Item { input, record, isolated: None },
        Err(_) => {
            let refusal = Refusal::new(DeadLetterReason::Panicked, "reading it panicked; the log shows where");
            Item { input, record: Err(unread()), isolated: Some(refusal) }
        }
    }
}

/// In place of a record that is not read.
pub(super) fn unread() -> Invalid {
    Invalid::new(code::INVALID_VALUE, "", "was not read")
}
