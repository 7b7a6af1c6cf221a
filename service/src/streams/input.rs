//! Reading a shard's entries under its fence.
