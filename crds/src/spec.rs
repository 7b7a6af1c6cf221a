//! The fields of `spec`. Field docs are what `kubectl explain` shows.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DecimalString,
    deploy::{DeletionPolicy, NetworkPolicy, PullPolicy, Serve, Work},
    status::RecordPipelineStatus,
};

/// What a pipeline is: how it is sharded, what raises an alert, where its outcomes go, and how it runs on a cluster.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "millrace.dev",
    version = "v1alpha1",
    kind = "RecordPipeline",
    root = "RecordPipelineResource",
    plural = "recordpipelines",
    shortname = "rpl",
    category = "all",
    namespaced,
    status = "RecordPipelineStatus",
    derive = "PartialEq",
    doc = "A pipeline that applies each record exactly once, keeps exact totals, and publishes notifications and alerts.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Backlog", type_ = "integer", json_path = ".status.backlog"),
    printcolumn(name = "Alerts", type_ = "integer", json_path = ".status.alerts"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.deadLetters"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message(
        "metadata.name must be 1 to 40 lower-case letters, digits or '-', start with a letter and end with a letter or digit"
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.autoscaling) || self.autoscaling == null || self.autoscaling.maxReplicas <= self.shards")
        .message("spec.autoscaling.maxReplicas must be at most spec.shards: more workers than shards would idle"),
    validation = Rule::new("!has(self.autoscaling) || self.autoscaling == null || !has(self.replicas) || dyn(self.replicas) == null || self.replicas == 0")
        .message("spec.replicas must be left out, or 0 to stop, beside spec.autoscaling: set autoscaling.minReplicas and maxReplicas instead"),
)]
pub struct RecordPipelineSpec {
    /// A record whose value is above this raises an alert. Absent: only `thresholds` do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<DecimalString>,
    /// Thresholds per unit, at most 64; each overrides `threshold` for its unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub thresholds: BTreeMap<String, DecimalString>,
    /// Number of workers, 1 unless given, at most 256; 0 stops the pipeline. Instead of it: `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 256))]
    pub replicas: Option<u32>,
    /// Scale the workers on the true backlog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Number of shards, 1 to 256. Immutable: it decides where a record goes.
    #[serde(default = "default_shards")]
    #[schemars(range(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "is immutable: it decides which shard a record goes to; make a pipeline of another name instead"
    ))]
    pub shards: u16,
    /// Entries a shard may hold before new records are answered 429, for the client to send again later.
    #[serde(default = "default_backlog_limit")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub backlog_limit: u64,
    /// The image of the pods; absent: the operator's default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    pub image: Option<String>,
    /// When the image is pulled; absent: as Kubernetes does by the image's tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Names of Secrets to pull the image with, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub image_pull_secrets: Vec<String>,
    /// Where outcomes are published, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, !has(a.redisStream) || a.redisStream == null || !has(a.redisStream.stream) || dyn(a.redisStream.stream) == null || self.exists_one(b, has(b.redisStream) && b.redisStream != null && has(b.redisStream.stream) && b.redisStream.stream == a.redisStream.stream))")
            .message("two sinks name the same redisStream.stream: a stream belongs to one sink"),
    )]
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
    /// Who may call the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// The pods that take records and answer queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// The pods that apply records and publish outcomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Who may connect to the pods, and whereto they may; absent: HTTP from anywhere, the health port from the operator's
    /// namespace, egress unrestricted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// What happens to queued records when the resource is deleted; `Drain` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Longest time that `Drain` takes, in seconds, 600 unless given; what is queued then stays in Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub drain_seconds: Option<u32>,
    /// True: the operator changes nothing of this pipeline until it is false or absent again. Its pods go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

impl RecordPipelineSpec {
    /// What of it concerns the pods: what decides about records and where the servers are. What only the operator uses is
    /// left out, so that an image that is older than the resource reads it.
    #[must_use]
    pub fn for_pods(&self) -> Self {
        // Without `..`: whoever adds a field has to say here whom it concerns.
        let Self {
            threshold,
            thresholds,
            shards,
            backlog_limit,
            sinks,
            policy,
            redis,
            postgres,
            auth,
            replicas: _,
            autoscaling: _,
            image: _,
            image_pull_policy: _,
            image_pull_secrets: _,
            serve: _,
            work: _,
            network_policy: _,
            deletion_policy: _,
            drain_seconds: _,
            paused: _,
        } = self;
        Self {
            threshold: threshold.clone(),
            thresholds: thresholds.clone(),
            shards: *shards,
            backlog_limit: *backlog_limit,
            sinks: sinks.clone(),
            policy: policy.clone(),
            redis: redis.clone(),
            postgres: postgres.clone(),
            auth: auth.clone(),
            replicas: None,
            autoscaling: None,
            image: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            serve: None,
            work: None,
            network_policy: None,
            deletion_policy: None,
            drain_seconds: None,
            paused: None,
        }
    }

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

/// Bounds for the number of workers, which follows the true backlog (queued and pending).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must be at most maxReplicas"))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "(has(self.redisStream) && self.redisStream != null) != (has(self.webhook) && self.webhook != null)"
).message("needs exactly one of redisStream and webhook"))]
pub struct Sink {
    /// Its name, unique in the pipeline: its position is kept under this name.
    #[schemars(length(max = 40), regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"))]
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
    #[schemars(length(max = 200), regex(pattern = r"^[A-Za-z0-9._:-]{1,200}$"))]
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
    #[schemars(length(max = 253), regex(pattern = r"^[A-Za-z0-9._-]{1,253}$"))]
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

/// Who may call the HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// The Secret key that holds the first API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_key_secret_ref: Option<SecretKeyRef>,
}
