//! Postgres: the only module with SQL. One file per concern, each with an `impl Store`.
//!
//! It must never use Redis, and must never decide anything about a record: it reads, writes, and asserts its writes.

mod admin;
mod aggregation;
mod archive;
mod audit;
mod audit_summary;
mod columns;
mod conflicts;
mod connections;
mod dead_letters;
mod deliveries;
mod ends;
mod filter;
mod gaps;
mod group;
mod keys;
mod known;
mod leases;
mod limit;
mod log;
mod migrations;
mod newest;
mod outcome_rows;
mod outcomes;
mod partitions;
mod periods;
mod pipeline;
mod points;
mod policies;
mod pool;
mod pooler;
mod previous;
mod processed;
mod producers;
mod purge;
mod query;
mod retention;
mod reversals;
mod rewind;
mod rollups;
mod rows;
mod session;
mod sessions;
mod shard_state;
mod sinks;
mod slow;
mod snapshot;
mod standby;
mod stats;
mod sums;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod totals_at;
mod verify;
mod webhooks;
mod windows;
mod workers;
mod writes;

pub use admin::Actor;
pub use aggregation::{AggregatedRecord, AggregationRow};
pub use archive::{ArchiveObject, ArchiveRange, ArchivedRecord};
pub use audit::{AuditFilter, AuditPlace, AuditTotals, DestinationFacts, Fact};
pub use audit_summary::{OutcomeCounts, TrailCounts};
pub use conflicts::{ConflictFilter, StoredConflict};
pub use connections::Connections;
pub use dead_letters::{DeadLetterFilter, StoredDeadLetter};
pub use deliveries::{DeliveryFilter, DeliveryPlace, StoredDelivery};
pub use filter::{RecordFilter, ReversedRecords};
pub use gaps::ShardProgress;
pub use group::{AfterCommit, DecidedPart, GroupCommit, LeftOut, Part};
pub use keys::{ApiKey, KeyRefusal, KeySecret, NewKey, NewSecret};
pub use known::GroupKnown;
pub use leases::{LONGEST_LEASE_MS, Rank};
pub use limit::within;
pub use log::{LogPage, LogRow, Page, RefusedRow};
pub use migrations::Migrated;
pub use newest::Server;
pub use outcomes::{Applied, Awaited, Before, Original, Outcome};
pub use pipeline::Pipeline;
pub use points::Kept;
pub use policies::{ListedPolicy, Newest, Offer, Registered};
pub use pool::{Error, Store};
pub use processed::ShardPage;
pub use producers::{Producer, ShardAccount};
pub use purge::Purge;
pub use query::{FoundRecord, RecordHistory, StoredRecord, Traces};
pub use retention::{Dropped, DuePeriod, Expired, IdStep, KeptSince, Noted, RetentionTurn, complete_since};
pub use reversals::{ReversalOf, Reversed};
pub use rollups::{RollupState, RollupStep};
pub use sessions::{LiveSecret, SESSION_HOURS};
pub use sinks::{NewSink, SinkBegins, SinkRow, SinkState};
pub use snapshot::{RollupPart, Rows, Snapshot, UnitTotal};
pub use standby::Replayed;
pub use stats::{Counts, PostgresPromises, ShardCounts, SinkBeginning};
pub use sums::RollupBy;
pub use totals_at::{KeyTotal, TotalFilter};
pub use verify::{
    DestinationTotal, Difference, Differences, ExpiredOutcomes, FirstSince, LoggedRecord, PolicyStart, RefusedOutcome,
    RollupFacts, Scope, ShardCounters, ShardHead, SkippedNumbers, StartedSink, StoredPolicy, StoredTotal,
    StoredVerifyRun, Verification, VerifyResult, VerifyRun,
};
pub use webhooks::{DeliveryRow, RequestedDelivery, WebhookChanges, WebhookClaim, WebhookCursor, WebhookPosition};
pub use workers::{KnownLease, KnownWorker};
pub use writes::NoWrites;
