//! Where the sums of filtered records come from: the stored totals, a declared rollup, or the records themselves.
//!
//! It must never use a rollup that is not complete in the snapshot of the answer, nor count a record twice: a rollup has the
//! windows that are whole within the time range, and records are read for the rest of the range.

use std::{cmp::Reverse, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Error, RecordFilter};

/// The fields by which sums are grouped.
#[derive(Debug, Clone, Copy, Default)]
pub struct RollupBy {
    /// Length of a window; `None`: one row per group.
    pub window: Option<Duration>,
    /// By destination.
    pub destination_id: bool,
    /// By reference.
    pub reference: bool,
    /// By source.
    pub source_id: bool,
    /// By sign.
    pub kind: bool,
    /// By unit.
    pub unit: bool,
    /// Not a group: whether the distinct sources of each row are counted.
    pub distinct_source_ids: bool,
}

/// A declared rollup that queries may use, with the fields that its rows are kept by. They are always kept by unit and sign.
#[derive(Debug, Clone, Copy)]
struct CompleteRollup {
    id: i32,
    window_seconds: i32,
    destination_id: bool,
    reference: bool,
    source_id: bool,
}

/// The part of a time range that a declared rollup has. The default is none of it: all sums come from records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rolled {
    /// The rollup.
    pub(super) rollup_id: Option<i32>,
    /// Start of its first window; `None`: the range has no start.
    pub(super) from: Option<DateTime<Utc>>,
    /// End of its last window; `None`: the range has no end.
    pub(super) until: Option<DateTime<Utc>>,
    /// Records from the start of the range until this are read, too; `None`: none, the range starts with a window.
    pub(super) before: Option<DateTime<Utc>>,
    /// Records from this until the end of the range are read, too; `None`: none, the range ends with a window.
    pub(super) after: Option<DateTime<Utc>>,
}

impl CompleteRollup {
    fn fits(&self, filter: &RecordFilter, by: &RollupBy) -> bool {
        let RecordFilter { record_ids, destination_id, reference, source_id, alerted, limit, .. } = filter;
        let by_destination = by.destination_id || destination_id.is_some() || limit.destinations().is_some();
        let by_reference = by.reference || reference.is_some();
        let by_source = by.source_id || by.distinct_source_ids || source_id.is_some() || limit.sources().is_some();
        let own = u64::from(self.window_seconds.unsigned_abs());
        record_ids.is_none()
            && alerted.is_none()
            && (self.destination_id || !by_destination)
            && (self.reference || !by_reference)
            && (self.source_id || !by_source)
            && by.window.is_none_or(|window| window.as_secs().is_multiple_of(own))
    }

    /// Its whole windows within the time range of a filter; `None`: the range has none.
    fn windows(&self, filter: &RecordFilter) -> Option<Rolled> {
        let length = i64::from(self.window_seconds) * 1_000_000;
        let start_of = |micros: i64| DateTime::from_timestamp_micros(micros.div_euclid(length) * length);
        let (mut from, mut until) = (None, None);
        if let Some(start) = filter.start {
            from = Some(start_of(start.timestamp_micros().checked_add(length - 1)?)?);
        }
        if let Some(end) = filter.end {
            until = Some(start_of(end.timestamp_micros())?);
        }
        if from.zip(until).is_some_and(|(from, until)| from >= until) {
            return None;
        }
        let before = from.filter(|_| from != filter.start);
        let after = until.filter(|_| until != filter.end);
        Some(Rolled { rollup_id: Some(self.id), from, until, before, after })
    }

    /// Orders rollups by their cost: those that need no records, then those with the fewest fields, then those with the
    /// longest window.
    fn cost(&self, rolled: &Rolled) -> impl Ord + use<> {
        let fields = [self.destination_id, self.reference, self.source_id].into_iter().filter(|kept| *kept).count();
        (rolled.before.is_some() || rolled.after.is_some(), fields, Reverse(self.window_seconds), self.id)
    }
}

impl RecordFilter {
    /// Whether the stored totals have the sums of the matching records per destination and unit.
    pub(super) fn has_stored_totals(&self) -> bool {
        let Self { record_ids, destination_id: _, shard: _, reference: _, source_id, positive: _, unit: _, .. } = self;
        let Self { start, end, alerted, limit, .. } = self;
        let by_source = source_id.is_some() || limit.sources().is_some();
        let by_record = record_ids.is_some() || by_source || alerted.is_some();
        !by_record && start.is_none() && end.is_none()
    }
}

/// The cheapest declared rollup for the sums of a filter, among those that are complete in this snapshot.
pub(super) async fn rolled(
    connection: &mut PgConnection,
    filter: &RecordFilter,
    by: &RollupBy,
) -> Result<Rolled, Error> {
    let complete = sqlx::query_as!(
        CompleteRollup,
        r#"select id, window_seconds, 'destinationId' = any(group_by) as "destination_id!",
                  'reference' = any(group_by) as "reference!",
                  distinct_source or 'sourceId' = any(group_by) as "source_id!"
           from rollups r
           where removed is null
             and not exists (
                 select from shards s left join rollup_builds b on b.rollup_id = r.id and b.shard = s.shard
                 where s.policy_version < r.version or b.shard is null or b.next_seq < b.until_seq)"#
    )
    .fetch_all(connection)
    .await?;
    Ok(cheapest(&complete, filter, by))
}

fn cheapest(complete: &[CompleteRollup], filter: &RecordFilter, by: &RollupBy) -> Rolled {
    let fitting = complete.iter().filter(|rollup| rollup.fits(filter, by));
    let rolled = fitting.filter_map(|rollup| Some((rollup, rollup.windows(filter)?)));
    let cheapest = rolled.min_by_key(|(rollup, rolled)| rollup.cost(rolled));
    cheapest.map_or_else(Rolled::default, |(_, rolled)| rolled)
}

/// A query over the sums of filtered records: the statement behind `with matching (time, destination_id, reference,
/// source_id, unit, positive, count, sum)`, the filter, the part that a rollup has, and the further arguments, which are
/// `$20` and so on. A row of `matching` is a record, or a row of the rollup, whose time is the start of its window.
macro_rules! filtered_sums {
    ($row:ident, $($select:literal)+, $filter:expr, $rolled:expr $(, $argument:expr)* $(,)?) => {
        crate::store::filter::filtered_records!(
            $row,
            "with matching as (
                 select window_start as time, destination_id, reference, source_id, unit, positive, count, sum
                 from rollup_totals
                 where rollup_id = $15::int
                   and ($16::timestamptz is null or window_start >= $16)
                   and ($17::timestamptz is null or window_start < $17)
                   and ($2::text is null or destination_id = $2)
                   and ($4::text is null or reference = $4)
                   and ($5::text is null or source_id = $5)
                   and ($6::boolean is null or positive = $6)
                   and ($7::text is null or unit = $7)
                   and is_in_ranges(source_id, $11, $12) and is_in_ranges(destination_id, $13, $14)
                 union all
                 select time, destination_id, reference, source_id, unit, positive, 1::bigint, value
                 from records",
            "and ($15::int is null or time >= $8 and time < $18::timestamptz or time >= $19::timestamptz and time < $9)) "
            $($select)+,
            $filter,
            $rolled.rollup_id,
            $rolled.from,
            $rolled.until,
            $rolled.before,
            $rolled.after
            $(, $argument)*
        )
    };
}

pub(super) use filtered_sums;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DestinationId, parse_time};

    const HOURLY: CompleteRollup =
        CompleteRollup { id: 1, window_seconds: 3_600, destination_id: true, reference: false, source_id: false };
    const DAILY: CompleteRollup = CompleteRollup { id: 2, window_seconds: 86_400, ..HOURLY };
    const HOURLY_BY_REFERENCE: CompleteRollup = CompleteRollup { id: 3, reference: true, ..HOURLY };

    fn time(text: &str) -> Option<DateTime<Utc>> {
        (!text.is_empty()).then(|| parse_time(text).unwrap())
    }

    fn range(start: &str, end: &str) -> RecordFilter {
        RecordFilter { start: time(start), end: time(end), ..RecordFilter::default() }
    }

    #[test]
    fn a_rollup_has_the_whole_windows_and_records_the_edges() {
        for (start, end, expected) in [
            ("", "", Some(["", "", "", ""])),
            ("2026-01-01T01:00:00Z", "2026-01-01T03:00:00Z", Some(["01:00", "03:00", "", ""])),
            ("2026-01-01T01:00:00.000001Z", "", Some(["02:00", "", "02:00", ""])),
            ("2026-01-01T00:59:59.999999Z", "", Some(["01:00", "", "01:00", ""])),
            ("", "2026-01-01T03:00:00.000001Z", Some(["", "03:00", "", "03:00"])),
            ("2026-01-01T00:30:00Z", "2026-01-01T02:30:00Z", Some(["01:00", "02:00", "01:00", "02:00"])),
            ("2026-01-01T00:30:00Z", "2026-01-01T01:30:00Z", None),
            ("2026-01-01T00:30:00Z", "2026-01-01T00:40:00Z", None),
            ("2026-01-01T01:00:00Z", "2026-01-01T01:00:00Z", None),
        ] {
            let [from, until, before, after] = expected.unwrap_or_default().map(|clock| match clock {
                "" => None,
                clock => time(&format!("2026-01-01T{clock}:00Z")),
            });
            let expected = expected.map(|_| Rolled { rollup_id: Some(1), from, until, before, after });
            assert_eq!(HOURLY.windows(&range(start, end)), expected, "{start} to {end}");
        }
        let old = HOURLY.windows(&range("1969-12-31T22:30:00Z", "1969-12-31T23:30:00Z"));
        assert_eq!(old, None, "windows before 1970 begin at whole hours, too");
    }

    #[test]
    fn the_cheapest_rollup_needs_no_records_then_few_fields_then_long_windows() {
        let all = [HOURLY_BY_REFERENCE, HOURLY, DAILY];
        let by = RollupBy { destination_id: true, ..RollupBy::default() };
        for (start, end, chosen) in [
            ("", "", 2),
            ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z", 2),
            ("2026-01-01T01:00:00Z", "2026-01-03T00:00:00Z", 1),
            ("2026-01-01T01:30:00Z", "2026-01-03T00:00:00Z", 2),
            ("2026-01-01T01:30:00Z", "2026-01-01T20:00:00Z", 1),
        ] {
            let rolled = cheapest(&all, &range(start, end), &by);
            assert_eq!(rolled.rollup_id, Some(chosen), "{start} to {end}");
        }
        let filter = RecordFilter { destination_id: Some(DestinationId::stored("d")), ..RecordFilter::default() };
        assert_eq!(cheapest(&all[..1], &filter, &RollupBy::default()).rollup_id, Some(3));
        assert_eq!(cheapest(&[], &filter, &by), Rolled::default());
    }
}
