//! Names of keys. All keys of one script share a hash slot.

use crate::domain::ShardId;

/// The consumer group of every input stream.
pub const GROUP: &str = "workers";

/// A shard's input stream.
#[must_use]
pub fn records(pipeline: &str, shard: ShardId) -> String {
    format!("{{{pipeline}.{shard}}}:records")
}

/// The hash beside an input stream. Its fields: `pipeline` (id); the lease `epoch` and `token`; the watermarks `records`,
/// `deadLetters` and `conflicts`; `appended`, the offset of the last appended record; `acknowledged`, the offset up to which
/// records are applied or lost; per producer `by:<producer>`, the number of records that it has appended; `server`, the ids
/// of the Redis process, and `since`, the second at which that process was first seen.
#[must_use]
pub fn fence(pipeline: &str, shard: ShardId) -> String {
    format!("{{{pipeline}.{shard}}}:fence")
}

/// The hash with a sink's cursor, in the slot of its stream. Its fields: `pipeline` (id), `sink`, `cursor_generation`,
/// `<shard>` (the highest appended number), `behind` (the newest entry at the start of this generation), `retired`, and
/// `unreadLost` (the number of entries that were trimmed unread).
#[must_use]
pub fn cursor(stream: &str) -> String {
    format!("{{{stream}}}:cursor")
}
