//! The fields of `spec.totalThresholds`. `kubectl explain` shows their docs.

use std::collections::BTreeSet;

use kube::KubeSchema;
use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DecimalString, GroupField, RecordPipelineSpec, Rollup, SinkEvent, check_text,
    validate::{Found, is_label},
};

/// Most thresholds on totals of a pipeline, and so most alerts of a record.
pub(crate) const MOST_TOTAL_THRESHOLDS: usize = 16;

/// A threshold on a total. The record that takes the total over it raises an alert, and so does each later one that does so
/// again, after the total had returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "(has(self.above) && dyn(self.above) != null) != (has(self.below) && dyn(self.below) != null)"
).message("needs exactly one of above and below"))]
pub struct TotalThreshold {
    /// Its name, unique in the pipeline, up to 40 lower-case letters, digits or '-'. It is part of the ids of its alerts.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')").message(
        "must be 1 to 40 lower-case letters, digits or '-'"
    ))]
    #[schemars(length(max = 40), regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"))]
    pub name: String,
    /// Needed: the unit of the totals. Units compare byte by byte.
    #[schemars(length(min = 1, max = 200))]
    pub unit: String,
    /// A record raises an alert when the total before it is at most this, and the total with it is above: a decimal string
    /// such as "1000.00".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<DecimalString>,
    /// A record raises an alert when the total before it is at least this, and the total with it is below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<DecimalString>,
    /// Needed: the total. Destination: of a destination. Key: of a destination and reference.
    pub per: TotalOf,
    /// The name of one of `rollups`: the total is that of a window of it, which the record's `time` is in. The rollup has to
    /// group by destinationId, and for `per: Key` also by reference. Absent: the total over all times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub rollup: Option<String>,
    /// Further steps, each as far from the one before: with above "1000" and every "500" a total raises alerts at 1000, 1500,
    /// 2000 and so on; with below they go down. A record that passes several raises one alert with their number. At least
    /// "0.001".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]*[1-9]|^[0-9]+[.][0-9]{0,2}[1-9]')").message(
        "must be at least 0.001"
    ))]
    pub every: Option<DecimalString>,
}

/// Which records a total sums up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TotalOf {
    /// Those of a destination.
    Destination,
    /// Those of a destination and reference.
    Key,
}

impl TotalOf {
    /// The fields that a rollup has to group by, so that its rows give this total.
    #[must_use]
    pub fn fields(self) -> &'static [GroupField] {
        match self {
            Self::Destination => &[GroupField::DestinationId],
            Self::Key => &[GroupField::DestinationId, GroupField::Reference],
        }
    }
}

impl RecordPipelineSpec {
    pub(crate) fn check_total_thresholds(&self, found: &mut Found) {
        if self.total_thresholds.len() > MOST_TOTAL_THRESHOLDS {
            found.add("spec.totalThresholds", "must be at most 16");
        }
        let mut names = BTreeSet::new();
        for (index, threshold) in self.total_thresholds.iter().enumerate() {
            let at = |field: &str| format!("spec.totalThresholds[{index}]{field}");
            if !names.insert(&threshold.name) {
                found
                    .add(at(".name"), format!("{} is used twice; names of totalThresholds are unique", threshold.name));
            }
            threshold.check(&self.rollups, &at(""), found);
        }
        for (index, sink) in self.sinks.iter().enumerate().filter(|(_, sink)| sink.event == SinkEvent::TotalAlert) {
            let most = sink.redis_stream.as_ref().map_or(0, |stream| stream.max_length);
            if (1..MOST_TOTAL_THRESHOLDS as u64).contains(&most) {
                let rule =
                    "must be 0, or at least 16 beside the event TotalAlert: the alerts of a record come together";
                found.add(format!("spec.sinks[{index}].redisStream.maxLength"), rule);
            }
        }
    }
}

impl TotalThreshold {
    fn check(&self, rollups: &[Rollup], at: &str, found: &mut Found) {
        let Self { name, unit, above, below, per, rollup, every } = self;
        if !is_label(name, 40) {
            found.add(format!("{at}.name"), "must be 1 to 40 lower-case letters, digits or '-'");
        }
        if let Err(rule) = check_text(unit) {
            found.add(format!("{at}.unit"), rule.to_string());
        }
        if above.is_some() == below.is_some() {
            found.add(at, "needs exactly one of above and below");
        }
        // The number of steps that one record passes then fits 64 bits.
        if every.as_ref().is_some_and(|every| every.get() < Decimal::new(1, 3)) {
            found.add(format!("{at}.every"), "must be at least 0.001");
        }
        let Some(name) = rollup else { return };
        let Some(rollup) = rollups.iter().find(|rollup| rollup.name == *name) else {
            return found.add(format!("{at}.rollup"), format!("{name:?} is none of spec.rollups; declare it there"));
        };
        for field in per.fields().iter().filter(|field| !rollup.group_by.contains(field)) {
            let message = format!("{name} does not group by {}; add it to its groupBy", field.as_str());
            found.add(format!("{at}.rollup"), message);
        }
    }
}
