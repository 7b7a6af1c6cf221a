//! The alerts of totals, derived from the records in order, and not by the code that decided them: pure.
//!
//! Its memory grows with the destinations, and with the windows of rollups, that thresholds are on.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::keys::billionths;
use crate::{
    domain::{Kind, ShardId, Zone, render_time},
    store::{DestinationTotal, Differences, LoggedRecord, RollupFacts},
};

/// Joins the parts of a key: none of them has this character.
const SEPARATOR: char = '\0';

/// An alert of a total, as it is stored and published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Alert {
    pub(super) name: String,
    per: String,
    rollup: Option<String>,
    window_start: Option<String>,
    above: Option<String>,
    below: Option<String>,
    every: Option<String>,
    steps: i128,
    previous_total: String,
    total: String,
}

/// The stored alerts of a record; the error is what is stored.
pub(super) fn stored(row: &LoggedRecord) -> Result<Vec<Alert>, String> {
    let Some(text) = row.total_alerts.as_deref() else { return Ok(Vec::new()) };
    serde_json::from_str(text).ok().filter(|alerts: &Vec<Alert>| !alerts.is_empty()).ok_or_else(|| text.to_owned())
}

/// A threshold of a policy version.
#[derive(Debug)]
pub(super) struct Threshold {
    name: String,
    unit: String,
    per: String,
    rollup: Option<String>,
    above: Option<String>,
    below: Option<String>,
    every: Option<String>,
    /// The bound and the distance of its steps, in billionths.
    bound: i128,
    step: Option<i128>,
}

impl Threshold {
    /// Those of a spec, read from its JSON and not by the types of the manifest.
    pub(super) fn of_spec(spec: &Value) -> Vec<Self> {
        let list = spec.get("totalThresholds").and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|threshold| {
            let text = |field: &str| threshold.get(field).and_then(Value::as_str).map(str::to_owned);
            let (above, below, every) = (text("above"), text("below"), text("every"));
            Some(Self {
                name: text("name")?,
                unit: text("unit")?,
                per: text("per")?,
                rollup: text("rollup"),
                bound: nanos(above.as_deref().or(below.as_deref())?)?,
                step: every.as_deref().and_then(nanos),
                above,
                below,
                every,
            })
        })
        .collect()
    }

    fn is_of_key(&self) -> bool {
        self.per == "Key"
    }

    /// How many steps the change of a total passes outwards.
    fn passed(&self, before: i128, after: i128) -> i128 {
        let beyond = |total: i128| if self.above.is_some() { total - self.bound } else { self.bound - total };
        let (inner, outer) = (beyond(before), beyond(after));
        match self.step {
            // A step is at each multiple of the distance from 0 on; those at or above `inner` and below `outer` are passed.
            Some(step) => {
                let first =
                    if inner <= 0 { 0 } else { inner.div_euclid(step) + i128::from(inner.rem_euclid(step) > 0) };
                let end = if outer <= 0 { 0 } else { outer.div_euclid(step) + i128::from(outer.rem_euclid(step) > 0) };
                (end - first).max(0)
            }
            None => i128::from(inner <= 0 && outer > 0),
        }
    }
}

/// A rollup in a shard, with its zone; `None`: this binary does not have it.
#[derive(Debug)]
struct Rollup {
    facts: RollupFacts,
    zone: Option<Zone>,
}

impl Rollup {
    fn window_start(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = self.zone.as_ref()?.local(time).timestamp();
        DateTime::from_timestamp(local - local.rem_euclid(i64::from(self.facts.window_seconds)), 0)
    }
}

/// What is known of rollups: their declarations, and from which record on a shard decides thresholds on them.
#[derive(Debug, Default)]
pub(super) struct Rollups {
    facts: Vec<Rollup>,
    /// The highest time of a record that retention deleted: windows up to it are not complete.
    last_dropped: Option<DateTime<Utc>>,
    /// Whether windows can be derived at all: not since a time.
    is_derived: bool,
}

impl Rollups {
    pub(super) fn new(facts: Vec<RollupFacts>, last_dropped: Option<DateTime<Utc>>, is_derived: bool) -> Self {
        let with_zone = |facts: RollupFacts| Rollup { zone: Zone::named(&facts.time_zone).ok(), facts };
        Self { facts: facts.into_iter().map(with_zone).collect(), last_dropped, is_derived }
    }

    /// The place of the rollup that a version calls so.
    fn valid(&self, name: &str, version: i64, shard: ShardId) -> Option<usize> {
        let is_valid = |Rollup { facts: of, .. }: &Rollup| {
            of.name == name && of.shard == shard && of.version <= version && of.removed.is_none_or(|at| at > version)
        };
        self.facts.iter().position(is_valid)
    }
}

/// A total before a record and with it, as far as it can be derived.
enum Change {
    Of {
        before: i128,
        after: i128,
        window: Option<DateTime<Utc>>,
    },
    /// No alert is decided.
    Undecided,
    /// It cannot be derived: whatever is stored counts as right.
    Unknown,
}

/// Windows that a threshold is on.
#[derive(Debug, PartialEq, Eq)]
struct Watched {
    /// The place of the rollup among the facts.
    rollup: usize,
    is_of_key: bool,
    unit: String,
}

/// The running totals of a shard that thresholds are on.
#[derive(Debug)]
pub(super) struct TotalChecks {
    shard: ShardId,
    rollups: Arc<Rollups>,
    /// By destination and unit.
    destinations: HashMap<String, i128>,
    /// By rollup, destination, reference or nothing, unit, and start.
    windows: HashMap<String, i128>,
    /// Whose windows are added up.
    watched: Vec<Watched>,
    /// Number of stored alerts.
    pub(super) alerts: i64,
}

impl TotalChecks {
    /// `begin` holds the totals of destinations before the first record.
    pub(super) fn new(shard: ShardId, rollups: Arc<Rollups>, begin: Vec<DestinationTotal>) -> Self {
        let begin = begin.into_iter().map(|total| {
            (format!("{}{SEPARATOR}{}", total.destination_id, total.unit), total.nanos.parse().unwrap_or_default())
        });
        Self { shard, rollups, destinations: begin.collect(), windows: HashMap::new(), watched: Vec::new(), alerts: 0 }
    }

    /// Prepares for a threshold of a version that the shard ran. A later version can have one on a window that has begun.
    pub(super) fn watch(&mut self, version: i64, threshold: &Threshold) {
        let Some(name) = threshold.rollup.as_deref() else { return };
        let Some(rollup) = self.rollups.valid(name, version, self.shard) else { return };
        let watched = Watched { rollup, is_of_key: threshold.is_of_key(), unit: threshold.unit.clone() };
        if !self.watched.contains(&watched) {
            self.watched.push(watched);
        }
    }

    /// Checks a record whose key had this total before it. `active` are the thresholds of the version that decided it.
    pub(super) fn record(
        &mut self,
        row: &LoggedRecord,
        key_before: i128,
        active: Option<(i64, &[Threshold])>,
        found: &mut Differences,
    ) {
        let record = &row.record;
        let value = billionths(record.value.get()).unwrap_or_default();
        let signed = if record.kind == Kind::Positive { value } else { -value };
        let destination = format!("{}{SEPARATOR}{}", record.destination_id.as_str(), record.unit.as_str());
        let unit = |threshold: &Threshold| threshold.unit == record.unit.as_str();
        let (stored, is_list) = match stored(row) {
            Ok(stored) => (stored, true),
            Err(text) => {
                found.add("total_alert", self.place(row), "a list of alerts, or none", text);
                (Vec::new(), false)
            }
        };
        self.alerts += stored.len() as i64;
        let (mut expected, mut unknown) = (Vec::new(), Vec::new());
        if let Some((version, thresholds)) = active {
            for threshold in thresholds.iter().filter(|threshold| unit(threshold)) {
                match self.change(row, threshold, version, key_before, &destination, signed) {
                    Change::Of { before, after, window } => {
                        expected.extend(expect(threshold, before, after, window));
                    }
                    Change::Undecided => {}
                    Change::Unknown => unknown.push(&threshold.name),
                }
            }
        }
        let compared: Vec<&Alert> = stored.iter().filter(|alert| !unknown.contains(&&alert.name)).collect();
        let is_equal = compared.len() == expected.len()
            && compared.iter().zip(&expected).all(|(stored, expected)| is_same(stored, expected));
        if is_list && active.is_some() && !is_equal {
            let stored = row.total_alerts.as_deref().unwrap_or("no alert of a total");
            found.add("total_alert", self.place(row), shown(&expected), stored);
        }
        for watched in self.watched.iter().filter(|watched| watched.unit == record.unit.as_str()) {
            let window =
                self.rollups.facts.get(watched.rollup).and_then(|rollup| window(row, rollup, watched.is_of_key));
            if let Some(window) = window {
                *self.windows.entry(window.key).or_default() += signed;
            }
        }
        *self.destinations.entry(destination).or_default() += signed;
    }

    fn place(&self, row: &LoggedRecord) -> String {
        format!("record {}-{}", self.shard, row.seq)
    }

    fn change(
        &self,
        row: &LoggedRecord,
        threshold: &Threshold,
        version: i64,
        key_before: i128,
        destination: &str,
        signed: i128,
    ) -> Change {
        let Some(name) = &threshold.rollup else {
            let of_destination = || self.destinations.get(destination).copied().unwrap_or_default();
            let before = if threshold.is_of_key() { key_before } else { of_destination() };
            return Change::Of { before, after: before + signed, window: None };
        };
        if !self.rollups.is_derived {
            return Change::Unknown;
        }
        let rollup = self.rollups.valid(name, version, self.shard).and_then(|at| self.rollups.facts.get(at));
        let Some(rollup) = rollup else { return Change::Unknown };
        let Some(Window { key, start }) = window(row, rollup, threshold.is_of_key()) else { return Change::Unknown };
        let dropped = self.rollups.last_dropped.and_then(|last| rollup.window_start(last));
        if rollup.facts.closed_before.is_some_and(|closed| start < closed) || dropped.is_some_and(|last| start <= last)
        {
            return Change::Unknown;
        }
        if rollup.facts.decided_from.is_none_or(|from| row.seq < from) {
            return Change::Undecided;
        }
        let before = self.windows.get(&key).copied().unwrap_or_default();
        let begins = rollup.zone.as_ref().map_or(start, |zone| zone.window_begins(start));
        Change::Of { before, after: before + signed, window: Some(begins) }
    }
}

/// The window of a record.
struct Window {
    key: String,
    start: DateTime<Utc>,
}

fn window(row: &LoggedRecord, rollup: &Rollup, is_of_key: bool) -> Option<Window> {
    let start = rollup.window_start(row.record.time)?;
    let mut key = format!("{}{SEPARATOR}{}", rollup.facts.id, row.record.destination_id.as_str());
    if is_of_key {
        let _ = write!(key, "{SEPARATOR}{}", row.record.reference.as_str());
    }
    let _ = write!(key, "{SEPARATOR}{SEPARATOR}{}{SEPARATOR}{}", row.record.unit.as_str(), start.timestamp());
    Some(Window { key, start })
}

/// The alert of a change, with totals in billionths.
struct Expected<'a> {
    threshold: &'a Threshold,
    steps: i128,
    before: i128,
    after: i128,
    window: Option<DateTime<Utc>>,
}

fn expect(threshold: &Threshold, before: i128, after: i128, window: Option<DateTime<Utc>>) -> Option<Expected<'_>> {
    let steps = threshold.passed(before, after);
    (steps > 0).then_some(Expected { threshold, steps, before, after, window })
}

fn is_same(stored: &Alert, expected: &Expected<'_>) -> bool {
    let Alert { name, per, rollup, window_start, above, below, every, steps, previous_total, total } = stored;
    let Expected { threshold, steps: passed, before, after, window } = expected;
    *name == threshold.name
        && *per == threshold.per
        && *rollup == threshold.rollup
        && *window_start == window.map(render_time)
        && (above, below, every) == (&threshold.above, &threshold.below, &threshold.every)
        && steps == passed
        && (nanos(previous_total), nanos(total)) == (Some(*before), Some(*after))
}

fn shown(expected: &[Expected<'_>]) -> String {
    if expected.is_empty() {
        return "no alert of a total".to_owned();
    }
    let one = |Expected { threshold, steps, before, after, .. }: &Expected<'_>| {
        format!("{}: {steps} steps from {before} to {after} billionths", threshold.name)
    };
    expected.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// A decimal text in billionths. Totals of destinations can have more digits than a decimal of this machine.
fn nanos(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 9 || integer.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    Some(sign * (integer.parse::<i128>().ok()?.checked_mul(1_000_000_000)? + fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-0.50", Some(-500_000_000)),
            ("123456789012345678901.23456789", Some(123_456_789_012_345_678_901_234_567_890)),
            ("1.0000000001", None),
            (".5", None),
            ("1e3", None),
        ] {
            assert_eq!(nanos(text), expected, "{text}");
        }
    }
}
