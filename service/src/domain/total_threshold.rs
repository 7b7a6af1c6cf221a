//! Thresholds on totals: which record takes a total over one.
//!
//! A crossing is a function of the total before a record and with it, so that every one can be derived again. No state of a
//! threshold is kept.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use millrace_crds::TotalOf;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize, Serializer};

use super::{DeclaredRollup, DestinationId, Record, Reference, Unit, render_time, total_nanos};

/// Nanounits of 1.
const ONE: i128 = 1_000_000_000;

/// On which side of its value a total is over a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Above,
    Below,
}

/// A threshold on a total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TotalThreshold {
    name: Arc<str>,
    unit: String,
    per: TotalOf,
    rollup: Option<RollupOf>,
    side: Side,
    value: Decimal,
    every: Option<Decimal>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RollupOf {
    name: Arc<str>,
    /// Its index in the policy.
    index: usize,
}

/// A total of one window of a rollup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WindowKey {
    /// Index of the rollup in the policy.
    pub rollup: usize,
    /// The destination.
    pub destination_id: DestinationId,
    /// The reference; `None`: of all references of the destination.
    pub reference: Option<Reference>,
    /// The unit.
    pub unit: Unit,
    /// Start of the window, in local time of the rollup's zone, as if it were UTC.
    pub window_start: DateTime<Utc>,
}

/// A total before a record and with it, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TotalStep {
    /// Before it.
    pub before: i128,
    /// With it.
    pub after: i128,
}

/// A record took a total over a threshold. Its JSON is stored with the record and published as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TotalAlert {
    /// The name of the threshold.
    pub name: Arc<str>,
    /// The total that it is on.
    pub per: TotalOf,
    /// Its rollup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollup: Option<Arc<str>>,
    /// When the window begins.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "window_start")]
    pub window_start: Option<DateTime<Utc>>,
    /// The threshold, where a total is over it above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<String>,
    /// The threshold, where a total is over it below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
    /// The distance of its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Number of steps that the record passed, at least 1.
    pub steps: i64,
    /// The total before the record.
    pub previous_total: String,
    /// The total with it.
    pub total: String,
}

fn window_start<S: Serializer>(start: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    start.map(render_time).serialize(serializer)
}

impl TotalThreshold {
    /// A threshold of the manifest, whose rollups are given; `None`: it breaks a rule of the manifest.
    #[must_use]
    pub fn of(threshold: &millrace_crds::TotalThreshold, rollups: &[DeclaredRollup]) -> Option<Self> {
        let millrace_crds::TotalThreshold { name, unit, above, below, per, rollup, every } = threshold;
        let (side, value) = match (above, below) {
            (Some(above), None) => (Side::Above, above),
            (None, Some(below)) => (Side::Below, below),
            _ => return None,
        };
        let rollup = match rollup {
            None => None,
            Some(name) => {
                let index = rollups.iter().position(|rollup| rollup.name == *name)?;
                Some(RollupOf { name: Arc::from(name.as_str()), index })
            }
        };
        let every = every.as_ref().map(|every| every.get());
        let (name, unit, value) = (Arc::from(name.as_str()), unit.clone(), value.get());
        Some(Self { name, unit, per: *per, rollup, side, value, every })
    }

    /// Whether it is on the totals of a record's unit.
    #[must_use]
    pub fn is_of(&self, record: &Record) -> bool {
        self.unit == record.unit.as_str()
    }

    /// The total that it is on, where that is of all times.
    #[must_use]
    pub fn total_of(&self) -> Option<TotalOf> {
        self.rollup.is_none().then_some(self.per)
    }

    /// The window that a record is in, where the threshold is on those of a rollup.
    #[must_use]
    pub fn window(&self, record: &Record, rollups: &[DeclaredRollup]) -> Option<WindowKey> {
        let index = self.rollup.as_ref()?.index;
        Some(WindowKey {
            rollup: index,
            destination_id: record.destination_id.clone(),
            reference: (self.per == TotalOf::Key).then(|| record.reference.clone()),
            unit: record.unit.clone(),
            window_start: rollups.get(index)?.window_start(record.time),
        })
    }

    /// The alert of a record that changes the total; `None`: it takes it over no step. `window_begins`: of a total of a window.
    #[must_use]
    pub fn alert(&self, record: &Record, step: TotalStep, window_begins: Option<DateTime<Utc>>) -> Option<TotalAlert> {
        let steps = self.passed(step.after) - self.passed(step.before);
        if steps <= 0 {
            return None;
        }
        // The manifest's rules keep it within 64 bits.
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        let scale = record.value.get().scale();
        let value = Some(self.value.to_string());
        let (above, below) = match self.side {
            Side::Above => (value, None),
            Side::Below => (None, value),
        };
        Some(TotalAlert {
            name: Arc::clone(&self.name),
            per: self.per,
            rollup: self.rollup.as_ref().map(|rollup| Arc::clone(&rollup.name)),
            window_start: window_begins,
            above,
            below,
            every: self.every.map(|every| every.to_string()),
            steps,
            previous_total: render_nanos(step.before, scale),
            total: render_nanos(step.after, scale),
        })
    }

    /// Number of steps that a total is over: the first at the threshold, and with `every` one behind each such distance.
    fn passed(&self, total: i128) -> i128 {
        let value = total_nanos(self.value);
        let beyond = match self.side {
            Side::Above => total - value,
            Side::Below => value - total,
        };
        match self.every.map(total_nanos) {
            _ if beyond <= 0 => 0,
            None => 1,
            Some(every) => (beyond - 1) / every + 1,
        }
    }
}

/// A total in billionths as a decimal with at least `scale` fractional digits, at most nine.
#[must_use]
pub fn render_nanos(total: i128, scale: u32) -> String {
    let sign = if total < 0 { "-" } else { "" };
    let (integer, fraction) = (total.unsigned_abs() / ONE.unsigned_abs(), total.unsigned_abs() % ONE.unsigned_abs());
    let digits = format!("{fraction:09}");
    let used = digits.trim_end_matches('0').len().max(scale.min(9) as usize);
    if used == 0 { format!("{sign}{integer}") } else { format!("{sign}{integer}.{}", &digits[..used]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: i128 = ONE;

    fn threshold(fields: &str) -> TotalThreshold {
        let json = format!(r#"{{"name":"a","unit":"EUR","per":"Key",{fields}}}"#);
        TotalThreshold::of(&serde_json::from_str(&json).unwrap(), &[]).unwrap()
    }

    fn record(value: &str) -> Record {
        let json = format!(
            r#"{{"recordId":"r","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive",
                 "value":"{value}","unit":"EUR","reference":"f"}}"#
        );
        Record::parse(json.as_bytes()).unwrap()
    }

    fn steps(threshold: &TotalThreshold, before: i128, after: i128) -> i64 {
        let step = TotalStep { before: before * UNIT, after: after * UNIT };
        threshold.alert(&record("1"), step, None).map_or(0, |alert| alert.steps)
    }

    #[test]
    fn a_total_at_the_threshold_is_not_over_it() {
        let above = threshold(r#""above":"10""#);
        for (before, after, expected) in
            [(9, 10, 0), (10, 11, 1), (9, 11, 1), (11, 12, 0), (11, 10, 0), (11, 9, 0), (-5, 5, 0), (0, 99, 1)]
        {
            assert_eq!(steps(&above, before, after), expected, "{before} to {after}");
        }
        let below = threshold(r#""below":"0""#);
        for (before, after, expected) in [(1, 0, 0), (0, -1, 1), (5, -5, 1), (-1, -2, 0), (-1, 0, 0), (-1, 3, 0)] {
            assert_eq!(steps(&below, before, after), expected, "{before} to {after}");
        }
    }

    #[test]
    fn a_record_that_passes_several_steps_raises_one_alert_with_their_number() {
        let above = threshold(r#""above":"10","every":"5""#);
        for (before, after, expected) in [
            (0, 10, 0),
            (0, 11, 1),
            (11, 15, 0),
            (15, 16, 1),
            (11, 16, 1),
            (0, 20, 2),
            (0, 21, 3),
            (16, 12, 0),
            (12, 31, 4),
        ] {
            assert_eq!(steps(&above, before, after), expected, "{before} to {after}");
        }
        let below = threshold(r#""below":"0","every":"5""#);
        for (before, after, expected) in [(0, -5, 1), (0, -6, 2), (-6, -10, 0), (-6, -11, 1), (7, -11, 3)] {
            assert_eq!(steps(&below, before, after), expected, "{before} to {after}");
        }
    }

    #[test]
    fn an_alert_has_the_scale_of_its_record_and_is_read_as_it_is_written() {
        let step = TotalStep { before: -UNIT / 2, after: 1_000 * UNIT };
        let alert = threshold(r#""above":"10.0","every":"100""#).alert(&record("1000.50"), step, None).unwrap();
        let json = serde_json::to_string(&alert).unwrap();
        assert_eq!(
            json,
            r#"{"name":"a","per":"Key","above":"10.0","every":"100","steps":10,"previousTotal":"-0.50","total":"1000.00"}"#
        );
        assert_eq!(serde_json::from_str::<TotalAlert>(&json).unwrap(), alert);
    }

    #[test]
    fn totals_are_rendered_exactly() {
        for (nanos, scale, expected) in [
            (0, 0, "0"),
            (0, 2, "0.00"),
            (1, 0, "0.000000001"),
            (-1_500_000_000, 0, "-1.5"),
            (10_000_000_000, 0, "10"),
            (123_456_789_012_345_678_901_234_567_890_i128, 1, "123456789012345678901.23456789"),
        ] {
            assert_eq!(render_nanos(nanos, scale), expected);
        }
    }
}
