//! Lanes: one per shard and sink, from the log to where it goes.
//!
//! Must never delay the processing or another sink, and must never publish what is not committed.
