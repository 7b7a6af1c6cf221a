//! The fields of `spec`. Field docs are what `kubectl explain` shows.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DecimalString;

/// What a pipeline is: how it is sharded, what raises an alert, and where its outcomes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordPipelineSpec {
    /// A record whose value is above this raises an alert. Absent: only `thresholds` do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<DecimalString>,
    /// Thresholds per unit, at most 64; each overrides `threshold` for its unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub thresholds: BTreeMap<String, DecimalString>,
    /// Number of workers, at most 256; 0 stops the pipeline. Instead of it: `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 256))]
    pub replicas: Option<u32>,
    /// Scale the workers on the true backlog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Number of shards, 1 to 256. Immutable: it decides where a record goes.
    #[serde(default = "default_shards")]
    #[schemars(range(min = 1, max = 256))]
    pub shards: u16,
    /// Entries a shard may hold before new records are answered 429, for the client to send again later.
    #[serde(default = "default_backlog_limit")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub backlog_limit: u64,
    /// The image of the pods; absent: the operator's default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    pub image: Option<String>,
    /// Where outcomes are published, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub sinks: Vec<Sink>,
    /// Rules that a record has to meet beside its form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Where Redis is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisRef>,
    /// Where Postgres is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresRef>,
    /// The HTTP role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// Who may call the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

impl RecordPipelineSpec {
    /// The one spelling of this content, as JSON: defaults written out, fields in the order of this type, maps sorted.
    ///
    /// # Panics
    /// Never: the type has only string keys and numbers that JSON knows.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("a spec is JSON")
    }

    /// Reads what [`Self::canonical`] wrote.
    ///
    /// # Errors
    /// When a newer version of this software wrote it, with fields that this one does not know.
    pub fn from_canonical(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn default_shards() -> u16 {
    16
}

fn default_backlog_limit() -> u64 {
    100_000
}

/// Bounds for the number of workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Fewest workers, at least 1.
    #[schemars(range(min = 1))]
    pub min_replicas: u32,
    /// Most workers, at most `shards`: more would idle.
    #[schemars(range(min = 1, max = 256))]
    pub max_replicas: u32,
    /// Backlog, in entries, that one worker is meant to have, at least 1.
    #[schemars(range(min = 1))]
    pub target_backlog: u64,
}

/// One place where outcomes of one kind go. Exactly one of `redisStream` and `webhook`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sink {
    /// Its name, unique in the pipeline: its position is kept under this name.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"))]
    pub name: String,
    /// Which outcomes it carries.
    pub on: On,
    /// Where a sink that is new starts. Absent: `Beginning` in a new pipeline, `Now` in a running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<From>,
    /// Append to a Redis stream, each outcome once and in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_stream: Option<RedisStream>,
    /// Post to an HTTP endpoint, at least once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// A kind of outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum On {
    /// Every record that was processed.
    Processed,
    /// Processed records whose value is above the threshold.
    Alert,
    /// Records that became dead letters.
    DeadLettered,
    /// Records refused because their id is taken by other content.
    Conflicted,
}

/// Where a new sink starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum From {
    /// With what happens from now on.
    Now,
    /// With all that is stored.
    Beginning,
}

/// A Redis stream as a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisStream {
    /// The stream's key; absent: `<pipeline>.<sink name>`. A stream belongs to one sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,200}$"))]
    pub stream: Option<String>,
    /// Most entries the stream keeps, at most 1,000,000,000; 0: no bound.
    #[serde(default = "default_max_length")]
    #[schemars(range(max = 1_000_000_000))]
    pub max_length: u64,
    /// What happens at `maxLength`.
    #[serde(default)]
    pub overflow: Overflow,
}

fn default_max_length() -> u64 {
    1_000_000
}

/// What happens when a stream is at its `maxLength`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Overflow {
    /// Nothing is trimmed that a consumer group has not acknowledged: the sink waits.
    #[default]
    Wait,
    /// The oldest entries are trimmed; unread ones that are lost are counted.
    Trim,
}

/// An HTTP endpoint as a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// Where to post, an https URL of at most 2,000 characters, without a user or password.
    #[schemars(length(max = 2000))]
    pub url: String,
    /// The signing key, Standard Webhooks.
    pub secret_ref: SecretKeyRef,
}

/// One key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in it.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,253}$"))]
    pub key: String,
}

/// Rules for records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// A negative record after which its destination's total in its unit would be below this becomes a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_total: Option<DecimalString>,
}

/// Where Redis is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisRef {
    /// The Secret key that holds the URL.
    pub url_secret_ref: SecretKeyRef,
}

/// Where Postgres is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostgresRef {
    /// The Secret key that holds the URL.
    pub url_secret_ref: SecretKeyRef,
}

/// The HTTP role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Serve {
    /// Number of HTTP pods, at most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 256))]
    pub replicas: Option<u32>,
}

/// Who may call the HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// The Secret key that holds the first API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_key_secret_ref: Option<SecretKeyRef>,
}
