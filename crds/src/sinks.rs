//! The fields of `spec.sinks`. `kubectl explain` shows their docs.

use k8s_openapi::jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{filter::Filter, webhook::Webhook};

/// A sink publishes the outcomes of one kind to one place: exactly one of `redisStream` and `webhook`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "(has(self.redisStream) && self.redisStream != null) != (has(self.webhook) && self.webhook != null)"
).message("needs exactly one of redisStream and webhook"))]
#[x_kube(validation = Rule::new(
    "!has(self.until) || dyn(self.until) == null || !has(self.from) || self.from == null || !has(self.from.time) || \
     dyn(self.from.time) == null || timestamp(self.from.time) < timestamp(self.until.time)"
).message("needs from.time before until.time"))]
#[x_kube(validation = Rule::new(
    "self.event != 'TotalAlert' || !has(self.redisStream) || self.redisStream == null || self.redisStream.maxLength == 0 || \
     self.redisStream.maxLength >= 16"
).message("redisStream.maxLength must be 0, or at least 16 beside the event TotalAlert: the alerts of a record come together"))]
pub struct Sink {
    /// Its name, unique in the pipeline, up to 40 lower-case letters, digits or '-'. The sink's position belongs to the
    /// name: the same name with a new target continues at the position of the old one.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')").message(
        "must be 1 to 40 lower-case letters, digits or '-'"
    ))]
    #[schemars(length(max = 40), regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"))]
    pub name: String,
    /// Needed: the outcomes that it publishes. Processed: every record that was processed. Alert: processed records
    /// whose value is above the threshold. TotalAlert: processed records that took a total over one of `totalThresholds`,
    /// an entry for each. DeadLettered: records that became dead letters. Conflicted: records refused because their id is
    /// taken by other content.
    pub event: SinkEvent,
    /// Where a new sink starts. Absent: `Beginning` in a new pipeline, `Now` in a running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<From>,
    /// Where the sink ends: before the first outcome that is committed at or after a time. Then it is complete, and publishes
    /// nothing more. Absent: it has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
    /// Which of these outcomes it publishes. Absent: all. A change concerns the outcomes that are not published yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Append to a Redis stream, each outcome once and in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_stream: Option<RedisStream>,
    /// Post to an HTTP endpoint, at least once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// A kind of outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum SinkEvent {
    /// Every record that was processed.
    Processed,
    /// Processed records whose value is above the threshold.
    Alert,
    /// Processed records that took a total over one of `totalThresholds`, an entry for each.
    TotalAlert,
    /// Records that became dead letters.
    DeadLettered,
    /// Records refused because their id is taken by other content.
    Conflicted,
}

/// Where a new sink starts: at a position or at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "(has(self.position) && dyn(self.position) != null) != (has(self.time) && dyn(self.time) != null)"
).message("needs exactly one of position and time"))]
pub struct From {
    /// Now: with the next outcome. Beginning: with the first stored outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<FromPosition>,
    /// With the first outcome that is committed at or after this time, RFC 3339, such as 2026-01-31T12:00:00Z. A sink whose
    /// time has not come waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"))]
    pub time: Option<String>,
}

/// Where a sink ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Until {
    /// Before the first outcome that is committed at or after this time, RFC 3339, such as 2026-01-31T12:00:00Z.
    #[schemars(length(max = 40), regex(pattern = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"))]
    pub time: String,
}

/// A position of a new sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FromPosition {
    /// With the next outcome.
    Now,
    /// With the first stored outcome.
    Beginning,
}

impl From {
    /// Its time in microseconds since 1970.
    #[must_use]
    pub fn micros(&self) -> Option<i64> {
        self.time.as_deref().and_then(micros)
    }
}

impl Until {
    /// Its time in microseconds since 1970; `None`: it is no time, which the rules refuse.
    #[must_use]
    pub fn micros(&self) -> Option<i64> {
        micros(&self.time)
    }
}

/// A time of RFC 3339 with an offset and at most microseconds.
fn micros(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    let is_plain = text.get(10..11) == Some("T") && !text.ends_with(']') && time.subsec_nanosecond() % 1_000 == 0;
    is_plain.then(|| time.as_microsecond())
}

/// A Redis stream as a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisStream {
    /// The stream's key, up to 200 letters, digits, '.', '_', ':' or '-'. A stream belongs to one sink. Absent:
    /// `<pipeline>.<sink name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._:-]+$')").message(
        "must be 1 to 200 letters, digits, '.', '_', ':' or '-'"
    ))]
    #[schemars(length(max = 200), regex(pattern = r"^[A-Za-z0-9._:-]{1,200}$"))]
    pub stream: Option<String>,
    /// Most entries that the stream keeps, 1,000,000 unless given, at most 1,000,000,000; 0: no bound.
    #[serde(default = "default_max_length")]
    #[schemars(range(max = 1_000_000_000))]
    pub max_length: u64,
    /// What happens when the stream is at `maxLength`, Wait unless given. Wait: entries that a consumer group has not
    /// acknowledged stay, and the sink waits for the slowest group. Trim: the oldest entries are trimmed, and unread
    /// ones are counted as trimmed unread.
    #[serde(default)]
    pub overflow: Overflow,
}

fn default_max_length() -> u64 {
    1_000_000
}

/// What happens when a stream is at its `maxLength`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Overflow {
    /// Entries that a consumer group has not acknowledged stay, and the sink waits.
    #[default]
    Wait,
    /// The oldest entries are trimmed; unread ones among them are counted.
    Trim,
}
