//! Where the sums of filtered records come from: the stored totals, a declared rollup, or the records themselves.
//!
//! It must never use a rollup that is not complete in the snapshot of the answer, nor count a record twice: a rollup has the
//! windows that are whole within the time range, and records are read for the rest of the range.

use std::{cmp::Reverse, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::{Error, RecordFilter, complete_since};
use crate::domain::Zone;

/// The fields by which sums are grouped.
#[derive(Debug, Clone, Default)]
pub struct RollupBy {
    /// Length of a window; `None`: one row per group.
    pub window: Option<Duration>,
    /// The time zone of windows; other than UTC for days only.
    pub zone: Zone,
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
#[derive(Debug, Clone)]
struct CompleteRollup {
    id: i32,
    window_seconds: i32,
    destination_id: bool,
    reference: bool,
    source_id: bool,
    zone: Zone,
    /// Its rows of windows that start before it are deleted; as its rows have it.
    closed_before: Option<DateTime<Utc>>,
    /// Records with an earlier time can be missing.
    missing_before: Option<DateTime<Utc>>,
}

/// The part of a time range that a declared rollup has. The default is none of it: all sums come from records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rolled {
    /// The rollup.
    pub(super) rollup_id: Option<i32>,
    /// Start of its first window, as its rows have it; `None`: the range has no start.
    pub(super) from: Option<DateTime<Utc>>,
    /// End of its last window, as its rows have it; `None`: the range has no end.
    pub(super) until: Option<DateTime<Utc>>,
    /// Records from the start of the range until this are read, too; `None`: none, the range starts with a window.
    pub(super) before: Option<DateTime<Utc>>,
    /// Records from this until the end of the range are read, too; `None`: none, the range ends with a window.
    pub(super) after: Option<DateTime<Utc>>,
    /// Whether its rows have the local time of the query's zone. Otherwise they have UTC, as records have.
    pub(super) is_local: bool,
    /// Records with an earlier time can be missing in it.
    pub(super) missing_before: Option<DateTime<Utc>>,
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
            && by.window.is_none_or(|window| {
                let aligned = || by.zone.is_aligned_to(i64::from(self.window_seconds), filter.start, filter.end);
                window.as_secs().is_multiple_of(own) && (self.zone == by.zone || self.zone.is_utc() && aligned())
            })
    }

    /// Its whole windows within the time range of a filter; `None`: the range has none.
    fn windows(&self, filter: &RecordFilter) -> Option<Rolled> {
        let length = i64::from(self.window_seconds) * 1_000_000;
        let window_of = |time: DateTime<Utc>| {
            DateTime::from_timestamp_micros(self.zone.local(time).timestamp_micros().div_euclid(length) * length)
        };
        let begins = |window| self.zone.window_begins(window);
        let (mut from, mut until) = (None, None);
        if let Some(start) = filter.start {
            let window = window_of(start)?;
            let is_whole = begins(window) == start;
            from = Some(if is_whole { window } else { window.checked_add_signed(TimeDelta::microseconds(length))? });
        }
        if let Some(end) = filter.end {
            until = Some(window_of(end)?);
        }
        from = from.max(self.closed_before);
        if from.zip(until).is_some_and(|(from, until)| from >= until) {
            return None;
        }
        let before = from.map(begins).filter(|begins| Some(*begins) != filter.start);
        let after = until.map(begins).filter(|begins| Some(*begins) != filter.end);
        let missing_before = self.missing_before.filter(|missing| from.map(begins).is_none_or(|from| from < *missing));
        let is_local = !self.zone.is_utc();
        Some(Rolled { rollup_id: Some(self.id), from, until, before, after, is_local, missing_before })
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

impl Rolled {
    /// The time from which sums are complete, where records with an earlier time than `kept` were dropped; `None`: all are.
    pub(super) fn complete_since(&self, kept: Option<DateTime<Utc>>, filter: &RecordFilter) -> Option<DateTime<Utc>> {
        if self.rollup_id.is_none() {
            return complete_since(kept, filter.start);
        }
        let before = self.before.and_then(|end| complete_since(kept, filter.start).map(|kept| kept.min(end)));
        let after = self.after.and_then(|start| complete_since(kept, Some(start)));
        [self.missing_before, before, after].into_iter().flatten().max()
    }
}

/// The cheapest declared rollup for the sums of a filter, among those that are complete in this snapshot.
pub(super) async fn rolled(
    connection: &mut PgConnection,
    filter: &RecordFilter,
    by: &RollupBy,
) -> Result<Rolled, Error> {
    let declared = sqlx::query!(
        r#"select id, window_seconds, time_zone, closed_before, missing_before, 'destinationId' = any(group_by) as "destination_id!",
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
    let complete: Vec<CompleteRollup> = declared
        .into_iter()
        .filter_map(|row| {
            Some(CompleteRollup {
                id: row.id,
                window_seconds: row.window_seconds,
                destination_id: row.destination_id,
                reference: row.reference,
                source_id: row.source_id,
                // Without the rules of its zone it cannot be used.
                zone: Zone::named(&row.time_zone).ok()?,
                closed_before: row.closed_before,
                missing_before: row.missing_before,
            })
        })
        .collect();
    Ok(cheapest(&complete, filter, by))
}

fn cheapest(complete: &[CompleteRollup], filter: &RecordFilter, by: &RollupBy) -> Rolled {
    let fitting = complete.iter().filter(|rollup| rollup.fits(filter, by));
    let rolled = fitting.filter_map(|rollup| Some((rollup, rollup.windows(filter)?)));
    let cheapest = rolled.min_by_key(|(rollup, rolled)| rollup.cost(rolled));
    cheapest.map_or_else(Rolled::default, |(_, rolled)| rolled)
}

/// A query over the sums of filtered records: the statement behind `with matching (time, is_local, destination_id, reference,
/// source_id, unit, positive, count, sum)`, the filter, the part that a rollup has, and the further arguments, which are
/// `$21` and so on. A row of `matching` is a record, or a row of the rollup, whose time is the start of its window: local time
/// as if it were UTC, or UTC.
macro_rules! filtered_sums {
    ($row:ident, $($select:literal)+, $filter:expr, $rolled:expr $(, $argument:expr)* $(,)?) => {
        crate::store::filter::filtered_records!(
            $row,
            "with matching as (
                 select window_start as time, $20::boolean as is_local, destination_id, reference, source_id, unit, positive, count, sum
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
                 select time, false, destination_id, reference, source_id, unit, positive, 1::bigint, value
                 from records",
            "and ($15::int is null or ($8::timestamptz is null or time >= $8) and time < $18::timestamptz
                          or time >= $19::timestamptz and ($9::timestamptz is null or time < $9))) "
            $($select)+,
            $filter,
            $rolled.rollup_id,
            $rolled.from,
            $rolled.until,
            $rolled.before,
            $rolled.after,
            $rolled.is_local
            $(, $argument)*
        )
    };
}

pub(super) use filtered_sums;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DestinationId, parse_time};

    fn hourly() -> CompleteRollup {
        let zone = Zone::default();
        let (closed_before, missing_before) = (None, None);
        CompleteRollup {
            id: 1,
            window_seconds: 3_600,
            destination_id: true,
            reference: false,
            source_id: false,
            zone,
            closed_before,
            missing_before,
        }
    }

    fn daily(zone: &str) -> CompleteRollup {
        CompleteRollup { id: 2, window_seconds: 86_400, zone: Zone::named(zone).unwrap(), ..hourly() }
    }

    fn hourly_by_reference() -> CompleteRollup {
        CompleteRollup { id: 3, reference: true, ..hourly() }
    }

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
            let missing_before = None;
            let expected = expected.map(|_| Rolled {
                rollup_id: Some(1),
                from,
                until,
                before,
                after,
                is_local: false,
                missing_before,
            });
            assert_eq!(hourly().windows(&range(start, end)), expected, "{start} to {end}");
        }
        let old = hourly().windows(&range("1969-12-31T22:30:00Z", "1969-12-31T23:30:00Z"));
        assert_eq!(old, None, "windows before 1970 begin at whole hours, too");
    }

    #[test]
    fn a_rollup_of_days_in_a_zone_has_the_days_that_are_whole_there() {
        let daily = daily("Europe/Berlin");
        for (start, end, expected) in [
            // The day that has 23 hours.
            ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", Some(["2026-03-29", "2026-03-30", "", ""])),
            (
                "2026-03-28T23:30:00Z",
                "2026-03-30T23:30:00Z",
                Some(["2026-03-30", "2026-03-31", "03-29T22", "03-30T22"]),
            ),
            ("2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z", None),
            // And the one that has 25.
            ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", Some(["2026-10-25", "2026-10-26", "", ""])),
            ("2026-10-24T22:00:00Z", "2026-10-25T22:00:00Z", None),
        ] {
            let expected = expected.map(|[from, until, before, after]| {
                let [from, until] = [from, until].map(|day| time(&format!("{day}T00:00:00Z")));
                let [before, after] = [before, after].map(|hour| match hour {
                    "" => None,
                    hour => time(&format!("2026-{hour}:00:00Z")),
                });
                Rolled { rollup_id: Some(2), from, until, before, after, is_local: true, missing_before: None }
            });
            assert_eq!(daily.windows(&range(start, end)), expected, "{start} to {end}");
        }
        let by = |zone: &str| RollupBy {
            window: Some(Duration::from_secs(86_400)),
            zone: Zone::named(zone).unwrap(),
            ..RollupBy::default()
        };
        let since = range("2026-01-01T00:00:00Z", "");
        assert!(daily.fits(&since, &by("Europe/Berlin")) && !daily.fits(&since, &by("Europe/Paris")));
        assert!(!daily.fits(&since, &by("UTC")) && daily.fits(&since, &RollupBy::default()));
        assert!(hourly().fits(&since, &by("Europe/Paris")) && !hourly().fits(&since, &by("Asia/Kathmandu")));
    }

    #[test]
    fn the_cheapest_rollup_needs_no_records_then_few_fields_then_long_windows() {
        let all = [hourly_by_reference(), hourly(), daily("UTC")];
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
