//! Counts over all shards.
