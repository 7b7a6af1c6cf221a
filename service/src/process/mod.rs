//! Own shards, read their entries, decide, commit, ack: the worker.
//!
//! Must never ack before the commit, and must never act on a shard without its fence being compared.
