//! Alerts of totals against a plain model: it adds up all records before each one, and looks at each step of each threshold.

use chrono::{DateTime, Timelike as _, Utc};
use proptest::prelude::*;

use super::*;
use crate::domain::{InputRecord, StreamId, TotalAlert};

const MANIFEST: &str = r#"{
    "rollups": [
        {"name": "hourly", "window": "1h", "groupBy": ["destinationId", "reference"], "distinct": "sourceId"},
        {"name": "daily", "window": "1d", "groupBy": ["destinationId"]}
    ],
    "totalThresholds": [
        {"name": "key", "unit": "EUR", "above": "3", "every": "2", "per": "Key"},
        {"name": "low", "unit": "EUR", "below": "0", "every": "1.5", "per": "Destination"},
        {"name": "other", "unit": "USD", "above": "0", "per": "Key"},
        {"name": "hour", "unit": "EUR", "above": "2", "per": "Key", "rollup": "hourly"},
        {"name": "hour-2", "unit": "EUR", "above": "2.5", "every": "0.001", "per": "Destination", "rollup": "hourly"},
        {"name": "day", "unit": "EUR", "above": "4", "every": "0.5", "per": "Destination", "rollup": "daily"}
    ]
}"#;

/// A threshold as the model has it: name, unit, bound, distance of its steps, whether above, per key, and the length of its windows
/// in hours.
struct Threshold {
    name: &'static str,
    unit: &'static str,
    bound: &'static str,
    every: Option<&'static str>,
    is_above: bool,
    per_key: bool,
    hours: Option<i64>,
}

const fn above(name: &'static str, bound: &'static str, every: Option<&'static str>) -> Threshold {
    Threshold { name, unit: "EUR", bound, every, is_above: true, per_key: false, hours: None }
}

const THRESHOLDS: [Threshold; 6] = [
    Threshold { per_key: true, ..above("key", "3", Some("2")) },
    Threshold { is_above: false, ..above("low", "0", Some("1.5")) },
    Threshold { unit: "USD", per_key: true, ..above("other", "0", None) },
    Threshold { per_key: true, hours: Some(1), ..above("hour", "2", None) },
    Threshold { hours: Some(1), ..above("hour-2", "2.5", Some("0.001")) },
    Threshold { hours: Some(24), ..above("day", "4", Some("0.5")) },
];

fn decimal(text: &str) -> Decimal {
    text.parse().unwrap()
}

/// Whether two records are in the sums of the same total.
fn is_of_same_total(threshold: &Threshold, one: &Record, other: &Record) -> bool {
    let window = |record: &Record| threshold.hours.map(|hours| record.time.timestamp().div_euclid(3_600 * hours));
    one.destination_id == other.destination_id
        && one.unit == other.unit
        && (!threshold.per_key || one.reference == other.reference)
        && window(one) == window(other)
}

/// The name of each threshold that the record after `before` takes a total over, with the number of steps and both totals.
fn expected(before: &[Record], record: &Record) -> Vec<(String, i64, Decimal, Decimal)> {
    let mut alerts = Vec::new();
    for threshold in THRESHOLDS.iter().filter(|threshold| threshold.unit == record.unit.as_str()) {
        let of = before.iter().filter(|other| is_of_same_total(threshold, record, other));
        let old: Decimal = of.map(Record::signed).sum();
        let new = old + record.signed();
        let (mut steps, mut at) = (0, decimal(threshold.bound));
        // Whether the total goes over a step, and whether further ones can follow.
        let passes = |at: Decimal| if threshold.is_above { old <= at && new > at } else { old >= at && new < at };
        let reaches = |at: Decimal| if threshold.is_above { new > at } else { new < at };
        while reaches(at) {
            steps += i64::from(passes(at));
            let Some(every) = threshold.every else { break };
            at += if threshold.is_above { decimal(every) } else { -decimal(every) };
        }
        if steps > 0 {
            alerts.push((threshold.name.to_owned(), steps, old, new));
        }
    }
    alerts
}

fn found(alert: &TotalAlert) -> (String, i64, Decimal, Decimal) {
    (alert.name.to_string(), alert.steps, decimal(&alert.previous_total), decimal(&alert.total))
}

fn item(n: usize, record: &str) -> Item {
    let input: InputRecord = model::input(n as u64, record, None);
    assert_eq!(input.position.entry, StreamId { ms: n as u64, n: 0 });
    Item { record: Parsed::read(&input.payload), input, isolated: None }
}

/// What Postgres would return for a batch behind `before`.
fn known(before: &[Record], batch: &[Item], policy: &Policy) -> Known {
    let mut known = Known::default();
    for record in before {
        let total = known.totals.entry(Key::of(record)).or_default();
        total.count += 1;
        total.total += record.signed();
        let of_unit = DestinationUnit { destination_id: record.destination_id.clone(), unit: record.unit.clone() };
        *known.destinations.entry(of_unit).or_default() += total_nanos(record.signed());
    }
    let windows = |record: &Record| {
        let thresholds = policy.total_thresholds().iter().filter(|threshold| threshold.is_of(record));
        thresholds.filter_map(|threshold| threshold.window(record, policy.rollups())).collect::<Vec<_>>()
    };
    for record in batch.iter().filter_map(|item| item.record.as_ref().ok()) {
        for window in windows(&record.record) {
            let is_in = |other: &&Record| windows(other).contains(&window);
            let sum = before.iter().filter(is_in).map(|record| total_nanos(record.signed())).sum();
            known.windows.insert(window, sum);
        }
    }
    known
}

fn records() -> impl Strategy<Value = Vec<(String, bool)>> {
    let value = prop_oneof![4 => Just("1"), 2 => Just("0.5"), 1 => Just("2.5"), 1 => Just("7"), 1 => Just("0"),
        1 => Just("0.000000001"), 1 => Just("1.00")];
    let unit = prop_oneof![5 => Just("EUR"), 1 => Just("USD")];
    let record = (value, any::<bool>(), unit, 0..2_u8, 0..2_u8, 0..30_u32, any::<u32>());
    let json = record.prop_map(|(value, positive, unit, destination, reference, hour, id)| {
        let kind = if positive { "positive" } else { "negative" };
        let time = DateTime::<Utc>::UNIX_EPOCH + chrono::TimeDelta::hours(i64::from(hour / 10 * 12));
        format!(
            r#"{{"recordId":"{id}-{}","time":"{}","sourceId":"s","destinationId":"{destination}","type":"{kind}","value":"{value}","unit":"{unit}","reference":"{reference}"}}"#,
            time.hour(),
            crate::domain::render_time(time),
        )
    });
    prop::collection::vec((json, prop::bool::weighted(0.3)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn each_crossing_of_a_total_raises_one_alert_however_the_stream_is_cut(records in records()) {
        let policy = Policy::of(&serde_json::from_str(MANIFEST).unwrap(), 1);
        prop_assert_eq!(policy.total_thresholds().len(), THRESHOLDS.len());
        let (mut before, mut batch): (Vec<Record>, Vec<Item>) = (Vec::new(), Vec::new());
        let last = records.len() - 1;
        for (n, (json, ends)) in records.iter().enumerate() {
            batch.push(item(n, json));
            if !ends && n != last {
                continue;
            }
            let position = Position {
                shard: SHARD,
                shards: 1,
                watermarks: Watermarks { records: Seq::ZERO.plus(before.len()), ..Watermarks::default() },
                account: Account::default(),
                applied: None,
            };
            let mut ids = IdLedger::default();
            let decision = decide(&batch, known(&before, &batch, &policy), &mut ids, &policy, position);
            let mut count = 0;
            for new in &decision.records {
                let expected = expected(&before, &new.record);
                prop_assert_eq!(new.total_alerts.iter().map(found).collect::<Vec<_>>(), &expected[..], "{:?}", new.record);
                count += expected.len() as i64;
                before.push(Record::clone(&new.record));
            }
            prop_assert_eq!(decision.total_alerts, count);
            batch.clear();
        }
    }
}

#[test]
fn a_window_whose_total_is_not_known_raises_no_alert() {
    let policy = Policy::of(&serde_json::from_str(MANIFEST).unwrap(), 1);
    let batch: Vec<Item> = (0..3)
        .map(|n| {
            item(
                n,
                &format!(
                    r#"{{"recordId":"{n}","time":"2026-01-01T00:00:00Z","sourceId":"s","destinationId":"0","type":"positive","value":"9","unit":"EUR","reference":"r"}}"#
                ),
            )
        })
        .collect();
    let position = Position {
        shard: SHARD,
        shards: 1,
        watermarks: Watermarks::default(),
        account: Account::default(),
        applied: None,
    };
    let decision = decide(&batch, Known::default(), &mut IdLedger::default(), &policy, position);
    let names: Vec<Vec<&str>> =
        decision.records.iter().map(|new| new.total_alerts.iter().map(|alert| &*alert.name).collect()).collect();
    assert_eq!(names, [["key"], ["key"], ["key"]]);
}
