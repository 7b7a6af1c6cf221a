//! Postgres: the only place where SQL stands. One file a concern, each an `impl Store`.
//!
//! Must never speak to Redis, and must never decide anything about a record: it reads, writes and asserts what it wrote.

mod appends;
mod audit;
mod audit_summary;
mod commit;
mod gaps;
mod keys;
mod known;
mod leases;
mod letters;
mod log;
mod migrations;
mod outcomes;
mod pipeline;
mod policies;
mod pool;
mod purge;
mod query;
mod session;
mod sinks;
mod snapshot;
mod standing;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
mod verify;
mod writes;

pub use appends::{Appender, Books, ShardAppends};
pub use audit::{AuditFilter, AuditPlace, AuditTotals, DestinationFacts, Fact};
pub use commit::{Commit, Numbers};
pub use gaps::Standing;
pub use keys::{ApiKey, LiveKey};
pub use leases::Rank;
pub use letters::{LetterFilter, StoredLetter};
pub use log::{LogRow, RefusedRow};
pub use migrations::Migrated;
pub use outcomes::{Awaited, Outcome, Settled};
pub use pipeline::Pipeline;
pub use policies::{Newest, Offer, Registered};
pub use pool::{COMMITS, Error, Server, Store, within};
pub use purge::Purge;
pub use query::{ConflictFilter, RecordFilter, RecordLife, StoredConflict, StoredRecord, Traces};
pub use sinks::{SinkRow, SinkState};
pub use snapshot::{RollupBy, RollupPart, Snapshot, UnitTotal};
pub use standing::ShardStanding;
pub use stats::{Counts, PostgresPromises, ShardCounts, SinkBeginning};
pub use verify::{Difference, Differences, Extent, LoggedRecord, StartedSink, Verification};
