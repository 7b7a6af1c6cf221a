//! Decisions about records: pure functions of entries, stored state and the policy.
//!
//! Must never do I/O, read a clock, draw random numbers, or depend on Redis, Postgres or HTTP.

mod access;
mod amount;
mod dead_letter;
mod decide;
mod decision;
mod delivery;
mod digest;
mod entry;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod id_ledger;
mod ids;
mod json;
mod known;
mod offset;
mod outcome_kind;
mod period;
mod policy;
mod record;
mod reversal;
mod rollup;
mod time;
mod total_threshold;
mod zone;

pub use access::{AccessLimit, IdPattern, IdRanges, Scope};
pub use amount::{Amount, total_in_bounds, total_nanos};
pub use dead_letter::{DeadLetterId, DeadLetterReason, DeadLetterState};
pub use decide::decide;
pub use decision::{Decision, Duplicate, Item, NewConflict, NewDeadLetter, NewRecord, Parsed, Refusal, TotalChange};
pub use delivery::{Attempt, DeliveryId, DeliveryState, notification_id};
pub use digest::ContentDigest;
pub use entry::{Entry, InputRecord, StreamId, StreamPosition};
pub use filter::OutcomeFilter;
pub use id_ledger::{Holder, IdChange, IdLedger, TakenId};
pub use ids::{
    DestinationId, Lease, RecordId, Reference, Seq, SeqRange, Sequence, ShardId, ShardSeq, SinkStream, SourceId, Text,
    Unit, Watermarks,
};
pub use json::{Invalid, Raw, code, elements, is_deep, members};
pub use known::{DestinationUnit, Key, Known, KnownDeadLetter, Position, PositionOfRecord, Total};
pub use offset::{Account, AppendCount, Offset, OffsetRange};
pub use outcome_kind::OutcomeKind;
pub use period::Period;
pub use policy::Policy;
pub use record::{Attributes, Draft, Kind, Record};
pub(crate) use reversal::Reversals;
pub use reversal::{OriginalRecord, Reversal, ReversalDraft, ReversalRequest, reversal_id};
pub use rollup::{DeclaredRollup, RollupChange, RollupKey, rollup_changes};
pub use time::{TimeText, parse_time, render_time};
pub use total_threshold::{TotalAlert, TotalStep, TotalThreshold, WindowKey, render_nanos};
pub use zone::{UnknownZone, Zone, ZoneArguments};
