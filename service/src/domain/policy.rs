//! Rules for alerts and refusals, and the rollups, of one version of the manifest.

use std::collections::BTreeMap;

use millrace_crds::{RecordPipelineSpec, TotalOf};
use rust_decimal::Decimal;

use super::{DeclaredRollup, TotalThreshold, total_nanos};

/// The part of a manifest that decides about records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Its number in Postgres; rises with every change.
    pub version: i64,
    threshold: Option<Decimal>,
    thresholds: BTreeMap<String, Decimal>,
    total_thresholds: Vec<TotalThreshold>,
    minimum_total: Option<Decimal>,
    rollups: Vec<DeclaredRollup>,
}

impl Policy {
    /// The policy of a manifest's spec that was registered as `version`.
    #[must_use]
    pub fn of(spec: &RecordPipelineSpec, version: i64) -> Self {
        let rollups: Vec<DeclaredRollup> = spec.rollups.iter().map(DeclaredRollup::of).collect();
        let total_thresholds = spec.total_thresholds.iter();
        Self {
            version,
            threshold: spec.threshold.as_ref().map(|value| value.get()),
            thresholds: spec.thresholds.iter().map(|(unit, value)| (unit.clone(), value.get())).collect(),
            total_thresholds: total_thresholds.filter_map(|one| TotalThreshold::of(one, &rollups)).collect(),
            minimum_total: spec
                .policy
                .as_ref()
                .and_then(|policy| policy.minimum_total.as_ref())
                .map(|value| value.get()),
            rollups,
        }
    }

    /// The threshold for a unit; `None`: no value of it raises an alert.
    #[must_use]
    pub fn threshold(&self, unit: &str) -> Option<Decimal> {
        self.thresholds.get(unit).copied().or(self.threshold)
    }

    /// Whether other units have thresholds and this one has none: its name may be misspelt.
    #[must_use]
    pub fn lacks_threshold(&self, unit: &str) -> bool {
        self.threshold.is_none() && !self.thresholds.is_empty() && !self.thresholds.contains_key(unit)
    }

    /// The thresholds on totals.
    #[must_use]
    pub fn total_thresholds(&self) -> &[TotalThreshold] {
        &self.total_thresholds
    }

    /// Whether a decision depends on the totals of destinations.
    #[must_use]
    pub fn needs_destinations(&self) -> bool {
        let of_destination = |threshold: &TotalThreshold| threshold.total_of() == Some(TotalOf::Destination);
        self.minimum_total.is_some() || self.total_thresholds.iter().any(of_destination)
    }

    /// The declared rollups.
    #[must_use]
    pub fn rollups(&self) -> &[DeclaredRollup] {
        &self.rollups
    }

    /// The least a destination's total may be after a negative record, in billionths.
    #[must_use]
    pub fn minimum_total_nanos(&self) -> Option<i128> {
        self.minimum_total.map(total_nanos)
    }
}
