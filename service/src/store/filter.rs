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

/// What sums have of records that are wholly reversed, and of their reversals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, poem_openapi::Enum)]
#[oai(rename_all = "lowercase")]
pub enum ReversedRecords {
    /// All of them.
    #[default]
    Include,
    /// None. Records that are reversed in part stay, with their reversals.
    Exclude,
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
/// arguments, which are `$15` and so on. The predicates are `$1` to `$14`; `$11` to `$14` are the caller's limit. With
/// `without_reversed` before it, the query leaves out records that are wholly reversed, and their reversals.
macro_rules! filtered_records {
    (without_reversed $row:ident, $head:literal, $($tail:literal)+, $filter:expr $(, $argument:expr)* $(,)?) => {
        crate::store::filter::filtered_records!(
            $row,
            $head,
            "and not exists (
                 select from reversals c
                 where c.shard = records.shard and c.original_seq = coalesce(records.original_seq, records.seq)
                   and c.rest = 0) "
            $($tail)+,
            $filter
            $(, $argument)*
        )
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::IdPattern, store::testing::TestPipeline};

    #[tokio::test]
    async fn postgres_and_this_process_agree_on_which_ids_are_within_a_limit() {
        let test = TestPipeline::new("threshold: '1'").await;
        let ids = ["a", "ab", "b", "B", "z", "a\u{7f}", "a\u{d7ff}", "a\u{e000}", "a\u{10ffff}b", "\u{10ffff}", "é"];
        let destination = DestinationId::stored("any");
        for patterns in [
            &["exact=a"][..],
            &["prefix=a"],
            &["prefix=a\u{d7ff}", "exact=z", "exact=B"],
            &["prefix=\u{10ffff}", "exact=ab", "prefix=a\u{10ffff}"],
            &["prefix=é", "prefix=a", "exact=ab"],
        ] {
            let patterns: Vec<IdPattern> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
            let limit = AccessLimit::new(&patterns, &[]).unwrap();
            let access = LimitArguments::from(&limit);
            let within: Vec<bool> = sqlx::query_scalar(
                "select is_in_ranges(id, $2, $3) from unnest($1::text[]) with ordinality as i (id, n) order by n",
            )
            .bind(ids.map(str::to_owned).to_vec())
            .bind(access.source_starts)
            .bind(access.source_ends)
            .fetch_all(&test.store.pool)
            .await
            .unwrap();
            let expected = ids.map(|id| limit.allows(&SourceId::stored(id), &destination));
            assert_eq!(within, expected, "{patterns:?}");
            assert!(expected.contains(&true) && expected.contains(&false), "{patterns:?}");
        }
        let unlimited: bool =
            sqlx::query_scalar("select is_in_ranges(null, null, null)").fetch_one(&test.store.pool).await.unwrap();
        assert!(unlimited, "without a limit also what has no source");
        let without: Option<bool> =
            sqlx::query_scalar("select is_in_ranges(null, '{a}', '{b}')").fetch_one(&test.store.pool).await.unwrap();
        assert_ne!(without, Some(true), "with a limit nothing that has no source");
    }
}
