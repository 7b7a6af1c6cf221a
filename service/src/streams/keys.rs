//! Names of keys. All keys of one script share a hash slot.

/// The consumer group of every input stream.
pub const GROUP: &str = "workers";

/// A shard's input stream.
#[must_use]
pub fn records(pipeline: &str, shard: u16) -> String {
    format!("{{{pipeline}.{shard}}}:records")
}

/// What is beside an input stream: `pipeline` (id), `epoch`, `token`, the highest committed numbers `records`,
/// `deadLetters`, `conflicts`, the count `duplicates`, per serve process `by:<process>`, how many entries it ever appended,
/// `credit`, how many more are applied than that, `lostAtMost`, and `server`, by which names it was seen last, in the
/// second `since` first.
#[must_use]
pub fn fence(pipeline: &str, shard: u16) -> String {
    format!("{{{pipeline}.{shard}}}:fence")
}

/// A sink's cursor, in the slot of its stream: `pipeline` (id), `sink`, `generation`, `<shard>` → highest number
/// appended, and `unreadLost`.
#[must_use]
pub fn cursor(stream: &str) -> String {
    format!("{{{stream}}}:cursor")
}
