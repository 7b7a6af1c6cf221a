//! Decisions about records: pure functions of entries, stored state and the policy.
//!
//! Must never do I/O, read a clock, draw random numbers, or depend on Redis, Postgres or HTTP.

mod amount;
mod decide;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod json;
mod known;
mod policy;
mod record;

pub use amount::{Amount, total_in_bounds, total_nanos};
pub use decide::{Closed, Decision, Duplicate, Item, NewConflict, NewDeadLetter, NewRecord, decide};
pub use entry::{DeadLetterId, Entry, StreamId};
pub use json::{Invalid, Raw, code, elements, is_deep, members};
pub use known::{Key, Known, KnownDeadLetter, KnownRecord, Position, Total};
pub use policy::Policy;
pub use record::{Attributes, Draft, Kind, Record, Text, parse_time, render_time, shard_of};
