//! Queries over what is stored: Postgres only, in constant memory; only one record's life also looks into the streams.
//!
//! Must never pass a sum through a type that rounds, and must never let a part of an answer look whole.
