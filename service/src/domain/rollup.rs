//! Declared rollups: the definition of each, and the rows that the records of a commit add to.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use millrace_crds::{GroupField, Rollup};
use rust_decimal::Decimal;

use super::{Kind, Record, ShardId, UnknownZone, Zone};

/// The definition of a declared rollup. Equal definitions are one rollup for as long as the manifest has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredRollup {
    /// Its name.
    pub name: String,
    /// Length of a window in seconds, at least 1.
    pub window_seconds: i32,
    /// The fields of the group, each once, in the order of [`GroupField`].
    pub group_by: Vec<GroupField>,
    /// Whether distinct sources are counted.
    pub distinct_source: bool,
    /// The time zone of its days. A version that a newer binary registered may name one that this binary does not know.
    pub zone: Result<Zone, UnknownZone>,
}

/// The key of a row, in the order of the table's key. A field that the rollup does not keep is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RollupKey<'a> {
    /// Index of the rollup in the policy.
    pub rollup: usize,
    /// The destination.
    pub destination_id: &'a str,
    /// Start of the window, in local time of the rollup's zone, as if it were UTC.
    pub window_start: DateTime<Utc>,
    /// The reference.
    pub reference: &'a str,
    /// The source.
    pub source_id: &'a str,
    /// The unit.
    pub unit: &'a str,
    /// Whether its records are positive.
    pub positive: bool,
    /// The shard.
    pub shard: ShardId,
}

/// The records that a commit adds to a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollupChange {
    /// Their number.
    pub count: i64,
    /// Their sum, without sign. A batch is too small for it to leave the range.
    pub sum: Decimal,
}

impl DeclaredRollup {
    /// The definition of a rollup of the manifest.
    #[must_use]
    pub fn of(rollup: &Rollup) -> Self {
        let mut group_by = rollup.group_by.clone();
        group_by.sort_unstable();
        group_by.dedup();
        Self {
            name: rollup.name.clone(),
            window_seconds: rollup.window.seconds(),
            group_by,
            distinct_source: rollup.distinct.is_some(),
            zone: rollup.time_zone.as_deref().map_or_else(|| Ok(Zone::default()), Zone::named),
        }
    }

    /// Whether its rows are kept per value of a field.
    #[must_use]
    pub fn keeps(&self, field: GroupField) -> bool {
        self.group_by.contains(&field) || (field == GroupField::SourceId && self.distinct_source)
    }

    /// Start of the window that a time is in, in local time as if it were UTC; windows begin at multiples of their length
    /// since 1970.
    #[must_use]
    pub fn window_start(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        let length = i64::from(self.window_seconds);
        let time = self.zone.as_ref().map_or(time, |zone| zone.local(time));
        let seconds = time.timestamp().div_euclid(length) * length;
        DateTime::from_timestamp(seconds, 0).unwrap_or(time)
    }

    /// The instant at which a window begins.
    #[must_use]
    pub fn window_begins(&self, window_start: DateTime<Utc>) -> DateTime<Utc> {
        self.zone.as_ref().map_or(window_start, |zone| zone.window_begins(window_start))
    }

    fn key<'a>(&self, rollup: usize, shard: ShardId, record: &'a Record) -> RollupKey<'a> {
        let kept = |field, value: &'a str| if self.keeps(field) { value } else { "" };
        RollupKey {
            rollup,
            destination_id: kept(GroupField::DestinationId, record.destination_id.as_str()),
            window_start: self.window_start(record.time),
            reference: kept(GroupField::Reference, record.reference.as_str()),
            source_id: kept(GroupField::SourceId, record.source_id.as_str()),
            unit: record.unit.as_str(),
            positive: record.kind == Kind::Positive,
            shard,
        }
    }
}

/// The changes of rows by records, each of a shard.
#[must_use]
pub fn rollup_changes<'a>(
    rollups: &[DeclaredRollup],
    records: impl Iterator<Item = (ShardId, &'a Record)>,
) -> BTreeMap<RollupKey<'a>, RollupChange> {
    let mut changes: BTreeMap<RollupKey<'a>, RollupChange> = BTreeMap::new();
    for (shard, record) in records {
        for (index, rollup) in rollups.iter().enumerate() {
            let change = changes.entry(rollup.key(index, shard, record)).or_default();
            change.count += 1;
            change.sum += record.value.get();
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollup(window_seconds: i32, group_by: &[GroupField], distinct_source: bool) -> DeclaredRollup {
        DeclaredRollup {
            name: "a".to_owned(),
            window_seconds,
            group_by: group_by.to_vec(),
            distinct_source,
            zone: Ok(Zone::default()),
        }
    }

    fn record(time: &str, source: &str, kind: &str, value: &str) -> Record {
        let json = format!(
            r#"{{"recordId":"r","time":"{time}","sourceId":"{source}","destinationId":"d","type":"{kind}",
                 "value":"{value}","unit":"EUR","reference":"f"}}"#
        );
        Record::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn windows_begin_at_multiples_of_their_length_also_before_1970() {
        let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        for (seconds, at, start) in [
            (60, "2026-01-31T12:34:56.789Z", "2026-01-31T12:34:00Z"),
            (3_600, "2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
            (86_400, "2026-01-31T23:59:59.999999Z", "2026-01-31T00:00:00Z"),
            (3_600, "1969-12-31T23:59:59.999999Z", "1969-12-31T23:00:00Z"),
            (86_400, "0001-01-01T00:00:00.000001Z", "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(rollup(seconds, &[], false).window_start(time(at)), time(start), "{at}");
        }
        let daily = DeclaredRollup { zone: Zone::named("Europe/Berlin"), ..rollup(86_400, &[], false) };
        assert_eq!(daily.window_start(time("2026-03-28T23:00:00Z")), time("2026-03-29T00:00:00Z"));
        assert_eq!(daily.window_start(time("2026-03-29T21:59:59Z")), time("2026-03-29T00:00:00Z"));
    }

    #[test]
    fn records_add_up_per_rollup_window_group_and_sign() {
        let records = [
            record("2026-01-31T12:00:00Z", "s", "positive", "1.50"),
            record("2026-01-31T12:59:59Z", "t", "positive", "2"),
            record("2026-01-31T12:30:00Z", "s", "negative", "4"),
            record("2026-01-31T13:00:00Z", "s", "positive", "8"),
        ];
        let rollups = [rollup(3_600, &[GroupField::DestinationId], false), rollup(86_400, &[], true)];
        let changes = rollup_changes(&rollups, records.iter().map(|record| (ShardId::new(3), record)));
        let found: Vec<String> = changes
            .iter()
            .map(|(key, change)| {
                let RollupKey { rollup, destination_id, window_start, source_id, positive, .. } = key;
                let RollupChange { count, sum } = change;
                let hour = window_start.format("%H");
                format!("{rollup} {destination_id:?} {hour} {source_id:?} {positive}: {count} {sum}")
            })
            .collect();
        assert_eq!(
            found,
            [
                r#"0 "d" 12 "" false: 1 4"#,
                r#"0 "d" 12 "" true: 2 3.50"#,
                r#"0 "d" 13 "" true: 1 8"#,
                r#"1 "" 00 "s" false: 1 4"#,
                r#"1 "" 00 "s" true: 2 9.50"#,
                r#"1 "" 00 "t" true: 1 2"#,
            ]
        );
    }
}
