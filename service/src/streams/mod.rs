//! Redis: the only module that uses it. Input streams, their fences, and the sinks' streams with their cursors.
//!
//! It must never use Postgres, and must never hold a lock in Redis. It keeps fences and cursors there, which the same
//! script compares that acts.

mod address;
mod append;
mod connect;
mod discovery;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod info;
mod input;
pub mod keys;
mod output;
mod purge;
mod search;
mod servers;
mod shared;
#[cfg(test)]
pub(crate) mod testing;
mod verify;

pub use address::check_url;
pub use append::{AppendError, Appended, By, Outgoing};
pub use connect::{Blocking, Error, Streams};
pub use info::{Backlog, Committed, Cursor, RedisPromises};
pub use input::{Claimed, EntryCounts, Fresh, Input, LossBound, Prepared, Step};
pub use output::{Notice, Output, Published};
pub use purge::{Holding, Removed};
pub use search::{Queued, Search};
pub use verify::{SinkEntry, SinkSnapshot};
