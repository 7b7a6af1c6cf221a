//! The filter of processed records. Its predicates are here, and nowhere else.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::domain::{AccessLimit, DestinationId, IdRanges, RecordId, Reference, ShardId, SourceId, Unit};

/// Records that a query reads: those that match all given parts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RecordFilter {
    /// Their ids; `None`: any.
    pub record_ids: Option<Vec<RecordId>>,
    /// Their destination.
    pub destination_id: Option<DestinationId>,
    /// The shard of the destination; only a hint that makes the query short.
    pub shard: Option<ShardId>,
    /// Their reference.
    pub reference: Option<Reference>,
    /// Their source.
    pub source_id: Option<SourceId>,
    /// Whether they add (`true`) or take (`false`).
    pub positive: Option<bool>,
    /// Their unit.
    pub unit: Option<Unit>,
    /// Their `time` is at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Their `time` is before this.
    pub end: Option<DateTime<Utc>>,
    /// Whether they raised an alert.
    pub alerted: Option<bool>,
    /// What the caller may reach.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub limit: AccessLimit,
}

/// Whether a limit is left out of a filter: a cursor is of the caller's limit, too.
pub(super) fn is_unlimited(limit: &AccessLimit) -> bool {
    !limit.is_limited()
}

/// A limit as four arguments of a statement, for `is_in_ranges`; null: any id.
#[derive(Debug, Clone, Copy)]
pub(super) struct LimitArguments<'a> {
    pub(super) source_starts: Option<&'a [String]>,
    pub(super) source_ends: Option<&'a [String]>,
    pub(super) destination_starts: Option<&'a [String]>,
    pub(super) destination_ends: Option<&'a [String]>,
}

impl<'a> From<&'a AccessLimit> for LimitArguments<'a> {
    fn from(limit: &'a AccessLimit) -> Self {
        Self {
            source_starts: limit.sources().map(IdRanges::starts),
            source_ends: limit.sources().map(IdRanges::ends),
            destination_starts: limit.destinations().map(IdRanges::starts),
            destination_ends: limit.destinations().map(IdRanges::ends),
        }
    }
}

/// A query over filtered records: the statement up to the filter, the statement behind it, the filter, and the further
/// arguments, which are `$15` and so on. The predicates are `$1` to `$14`; `$11` to `$14` are the caller's limit.
macro_rules! filtered_records {
    ($row:ident, $head:literal, $($tail:literal)+, $filter:expr $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $row,
            $head
                + " where ($1::text[] is null or (shard, seq, period) in (
                          select i.shard, i.number, i.period from record_ids i where i.record_id = any($1)))
                      and ($2::text is null or destination_id = $2)
                      and ($3::int is null or shard = $3)
                      and ($4::text is null or reference = $4)
                      and ($5::text is null or source_id = $5)
                      and ($6::boolean is null or positive = $6)
                      and ($7::text is null or unit = $7)
                      and ($8::timestamptz is null or time >= $8)
                      and ($9::timestamptz is null or time < $9)
                      and ($10::boolean is null or $10 and threshold is not null or not $10 and threshold is null)
                      and is_in_ranges(source_id, $11, $12) and is_in_ranges(destination_id, $13, $14) "
                $(+ $tail)+,
            $filter.record_ids.as_deref() as Option<&[RecordId]>,
            $filter.destination_id.as_ref() as Option<&DestinationId>,
            $filter.shard as Option<ShardId>,
            $filter.reference.as_ref() as Option<&Reference>,
            $filter.source_id.as_ref() as Option<&SourceId>,
            $filter.positive,
            $filter.unit.as_ref() as Option<&Unit>,
            $filter.start,
            $filter.end,
            $filter.alerted,
            crate::store::filter::LimitArguments::from(&$filter.limit).source_starts,
            crate::store::filter::LimitArguments::from(&$filter.limit).source_ends,
            crate::store::filter::LimitArguments::from(&$filter.limit).destination_starts,
            crate::store::filter::LimitArguments::from(&$filter.limit).destination_ends
            $(, $argument)*
        )
    };
}

pub(super) use filtered_records;
