//! Alerts of totals, as the API returns them.

use poem_openapi::{Enum, Object};
use serde::Serialize;

use super::types::Time;
use crate::domain::TotalAlert;

/// Which records a total sums up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename = "TotalOf")]
pub(super) enum TotalOf {
    /// Those of the record's destination.
    Destination,
    /// Those of its destination and reference.
    Key,
}

/// A record took a total over a threshold.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "TotalAlert", rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct TotalAlertView {
    /// The name of the threshold.
    pub name: String,
    /// The total that it is on, in the record's unit.
    pub per: TotalOf,
    /// The rollup whose window it is on; absent: the total of all times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollup: Option<String>,
    /// When the window begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_start: Option<Time>,
    /// The threshold, where the total is over it above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub above: Option<String>,
    /// The threshold, where the total is over it below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
    /// The distance of its steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Number of steps that the record passed, at least 1.
    pub steps: i64,
    /// The total before the record, exact.
    pub previous_total: String,
    /// The total with it.
    pub total: String,
}

impl From<TotalAlert> for TotalAlertView {
    fn from(alert: TotalAlert) -> Self {
        let TotalAlert { name, per, rollup, window_start, above, below, every, steps, previous_total, total } = alert;
        Self {
            name: name.to_string(),
            per: match per {
                millrace_crds::TotalOf::Destination => TotalOf::Destination,
                millrace_crds::TotalOf::Key => TotalOf::Key,
            },
            rollup: rollup.map(|rollup| rollup.to_string()),
            window_start: window_start.map(Time),
            above,
            below,
            every,
            steps,
            previous_total,
            total,
        }
    }
}
