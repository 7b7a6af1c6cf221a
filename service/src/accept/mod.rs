//! HTTP in → stream: validate, pick the shard, append, answer when Redis has it on disk.
//!
//! Must never write a record to Postgres, and must never answer 202 for what Redis has not confirmed.
