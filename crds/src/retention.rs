//! The fields of `spec.retention`. `kubectl explain` shows their docs.

use std::{borrow::Cow, fmt, str::FromStr};

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::validate::Found;

/// How long stored rows are kept. What has no duration is kept for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.ids) || self.ids == 'Forever' || (has(self.records) && self.records != 'Forever' && int(self.records.replace('d', '')) <= int(self.ids.replace('d', '')))").message(
    "ids must be kept at least as long as records: an id that is no longer kept counts as new"
))]
pub struct Retention {
    /// The period of processing whose records share a table partition, Month unless given: old records are dropped by
    /// whole partitions. A change holds from the next period on.
    #[serde(default)]
    pub partition: Partition,
    /// How long records are kept after they were processed, at least: a partition is dropped when all of its records are
    /// older and every sink has published them.
    #[serde(default, skip_serializing_if = "KeepFor::is_forever")]
    pub records: KeepFor,
    /// How long ids are kept after their records were processed, at least; not shorter than `records`. A record with an id
    /// that is no longer kept counts as new.
    #[serde(default, skip_serializing_if = "KeepFor::is_forever")]
    pub ids: KeepFor,
    /// How long dead letters are kept after they were replayed or discarded. Open ones stay.
    #[serde(default, skip_serializing_if = "KeepFor::is_forever")]
    pub closed_dead_letters: KeepFor,
    /// How long duplicates and conflicts are kept.
    #[serde(default, skip_serializing_if = "KeepFor::is_forever")]
    pub duplicates: KeepFor,
    /// How long the windows of declared rollups are kept after their end. A window that is older is closed: a late record
    /// for it counts in `lateAfterRetention`.
    #[serde(default, skip_serializing_if = "KeepFor::is_forever")]
    pub rollups: KeepFor,
}

impl Retention {
    pub(crate) fn check(&self, found: &mut Found) {
        if self.ids < self.records {
            let message = format!(
                "must be at least as long as spec.retention.records, {}: an id that is no longer kept counts as new",
                self.records
            );
            found.add("spec.retention.ids", message);
        }
    }
}

/// A period of processing, in UTC. Day: from midnight. Week: from Monday. Month: from its first day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Partition {
    /// From midnight.
    Day,
    /// From Monday.
    Week,
    /// From the first day.
    #[default]
    Month,
}

/// A number of days, or for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KeepFor {
    /// 1 to 99,999 days.
    Days(u32),
    /// Nothing is deleted.
    #[default]
    Forever,
}

/// The text is neither a number of days nor `Forever`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be Forever, or 1 to 99999 days such as 400d")]
pub struct InvalidKeepFor;

impl KeepFor {
    /// The number of days; `None`: for ever.
    #[must_use]
    pub fn days(self) -> Option<u32> {
        match self {
            Self::Days(days) => Some(days),
            Self::Forever => None,
        }
    }

    /// Whether nothing is deleted.
    #[must_use]
    pub fn is_forever(&self) -> bool {
        *self == Self::Forever
    }
}

impl FromStr for KeepFor {
    type Err = InvalidKeepFor;

    fn from_str(text: &str) -> Result<Self, InvalidKeepFor> {
        if text == "Forever" {
            return Ok(Self::Forever);
        }
        let days = text.strip_suffix('d').filter(|days| days.len() <= 5 && !days.starts_with(['0', '+']));
        days.and_then(|days| days.parse().ok()).map(Self::Days).ok_or(InvalidKeepFor)
    }
}

impl TryFrom<String> for KeepFor {
    type Error = InvalidKeepFor;

    fn try_from(text: String) -> Result<Self, InvalidKeepFor> {
        text.parse()
    }
}

impl From<KeepFor> for String {
    fn from(value: KeepFor) -> Self {
        value.to_string()
    }
}

impl fmt::Display for KeepFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days(days) => write!(f, "{days}d"),
            Self::Forever => f.write_str("Forever"),
        }
    }
}

impl JsonSchema for KeepFor {
    fn schema_name() -> Cow<'static, str> {
        "KeepFor".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 7, "pattern": "^(Forever|[1-9][0-9]{0,4}d)$" })
    }
}
