//! Appending records: one script a shard, all or none.
