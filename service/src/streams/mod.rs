//! Redis: the only module that uses it. Input streams, their fences, and the sinks' streams with their cursors.
//!
//! It must never use Postgres, and must never hold a lock in Redis. It keeps fences and cursors there, which the same
//! script compares that acts.

mod address;
mod append;
mod call;
mod connect;
mod discovery;
mod entry;
mod facts;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod info;
mod input;
pub mod keys;
mod output;
mod producer;
mod promises;
mod purge;
mod reconcile;
mod rights;
mod search;
mod servers;
mod shared;
mod shares;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod verify;

pub use address::check_url;
pub use append::AppendError;
pub use connect::{Blocking, Error, Streams};
pub use entry::Outgoing;
pub use info::{Backlog, Cursor};
pub use input::{Acknowledged, Claimed, End, Input, Prepared, Read, Step};
pub use output::{Notice, Output, Published};
pub use producer::{AppendSettings, Producer};
pub use promises::{RedisPromises, Weakness};
pub use purge::{Holding, Removed};
pub use reconcile::{ProducerCount, Reconciled};
pub use rights::MissingRights;
pub use search::{Queued, Search};
pub use shares::SourceTag;
pub use verify::{SinkEntry, SinkPage, SinkSnapshot};
