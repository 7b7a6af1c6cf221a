//! The field `spec.postgres.maxStaleness`. `kubectl explain` shows its docs.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How far a standby may be behind: 2 to 3,600 seconds, written as `5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MaxStaleness(u16);

/// The text is no such number of seconds.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("must be 2 to 3600 seconds such as 5s")]
pub struct InvalidMaxStaleness;

impl MaxStaleness {
    /// The duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl Default for MaxStaleness {
    fn default() -> Self {
        Self(5)
    }
}

impl FromStr for MaxStaleness {
    type Err = InvalidMaxStaleness;

    fn from_str(text: &str) -> Result<Self, InvalidMaxStaleness> {
        let seconds = text.strip_suffix('s').filter(|seconds| !seconds.starts_with(['0', '+']));
        let seconds = seconds.and_then(|seconds| seconds.parse().ok()).filter(|seconds| (2..=3_600).contains(seconds));
        seconds.map(Self).ok_or(InvalidMaxStaleness)
    }
}

impl TryFrom<String> for MaxStaleness {
    type Error = InvalidMaxStaleness;

    fn try_from(text: String) -> Result<Self, InvalidMaxStaleness> {
        text.parse()
    }
}

impl From<MaxStaleness> for String {
    fn from(value: MaxStaleness) -> Self {
        value.to_string()
    }
}

impl fmt::Display for MaxStaleness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl JsonSchema for MaxStaleness {
    fn schema_name() -> Cow<'static, str> {
        "MaxStaleness".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // 2 to 3600.
        let pattern = "^([2-9]|[1-9][0-9]{1,2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s$";
        json_schema!({ "type": "string", "maxLength": 5, "pattern": pattern })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staleness_is_a_number_of_seconds_within_its_bounds() {
        for text in ["2s", "5s", "60s", "3600s"] {
            assert_eq!(text.parse::<MaxStaleness>().unwrap().to_string(), text);
        }
        for text in ["", "5", "s", "0s", "1s", "05s", "+5s", "3601s", "5m", "5 s", "5.5s", "99999s"] {
            assert_eq!(text.parse::<MaxStaleness>(), Err(InvalidMaxStaleness), "{text}");
        }
    }
}
