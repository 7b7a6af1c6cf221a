//! Redis: the only place that speaks to it. Input streams, their fences, and the sinks' streams with their cursors.
//!
//! Must never speak to Postgres, and must never hold a lock in Redis: what it keeps there are fences and cursors, compared
//! by the very script that acts.

mod address;
mod append;
mod connect;
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
pub use input::{Census, Claimed, Fence, Fresh, Input, Prepared, Step};
pub use output::{Notice, Output, Published};
pub use purge::{Holding, Removed};
pub use search::{Queued, Search};
pub use verify::{SinkEntry, SinkState};
