//! The fields of `spec.limits`. `kubectl explain` shows their docs.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::validate::Found;

/// Most of each number of a limit.
const MOST: u64 = 1_000_000_000_000;

/// How much clients may send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// What each API key may send. A key can have lower limits of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_key: Option<RateLimits>,
    /// What all clients together may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<RateLimits>,
}

/// Limits of what is sent to the paths that take records. The processes that serve divide each among themselves. Absent
/// fields: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimits {
    /// Most requests a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub requests_per_second: Option<u64>,
    /// Most records a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub records_per_second: Option<u64>,
    /// Most bytes of request bodies at once: a request is refused while others hold so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub bytes_in_flight: Option<u64>,
}

impl RateLimits {
    /// The lower of two limits, field by field.
    #[must_use]
    pub fn lower(self, other: Self) -> Self {
        let lower = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        Self {
            requests_per_second: lower(self.requests_per_second, other.requests_per_second),
            records_per_second: lower(self.records_per_second, other.records_per_second),
            bytes_in_flight: lower(self.bytes_in_flight, other.bytes_in_flight),
        }
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each field's name and value.
    #[must_use]
    pub fn fields(&self) -> [(&'static str, Option<u64>); 3] {
        [
            ("requestsPerSecond", self.requests_per_second),
            ("recordsPerSecond", self.records_per_second),
            ("bytesInFlight", self.bytes_in_flight),
        ]
    }

    /// The fields that are out of bounds, with the rule.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let is_broken = |value: Option<u64>| value.is_some_and(|value| !(1..=MOST).contains(&value));
        let broken = self.fields().into_iter().filter(move |(_, value)| is_broken(*value));
        broken.map(|(field, _)| (field, "must be between 1 and 1,000,000,000,000; leave it out for no limit"))
    }
}

impl Limits {
    pub(crate) fn check(&self, found: &mut Found) {
        for (at, limits) in [("perKey", self.per_key), ("pipeline", self.pipeline)] {
            for (field, rule) in limits.iter().flat_map(RateLimits::broken) {
                found.add(format!("spec.limits.{at}.{field}"), rule);
            }
        }
    }
}
