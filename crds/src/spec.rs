//! The fields of `spec`, except `sinks`. `kubectl explain` shows their docs.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DecimalString,
    archive::Archive,
    deploy::{DeletionPolicy, Jobs, NetworkPolicy, PullPolicy, Serve, Verify, Work},
    limits::Limits,
    oidc::Oidc,
    retention::Retention,
    rollups::Rollup,
    sinks::Sink,
    staleness::MaxStaleness,
    status::RecordPipelineStatus,
    tls::ClientTls,
    totals::TotalThreshold,
};

/// The definition of a pipeline: its shards, its alerts, the sinks of its outcomes, and how it runs on a cluster.
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
    ),
    validation = Rule::new("!has(self.spec.sinks) || self.spec.sinks.all(a, !has(a.redisStream) || a.redisStream == null || (has(a.redisStream.stream) && dyn(a.redisStream.stream) != null) || !self.spec.sinks.exists(b, has(b.redisStream) && b.redisStream != null && has(b.redisStream.stream) && b.redisStream.stream.endsWith('.' + a.name) && b.redisStream.stream.substring(0, b.redisStream.stream.size() - a.name.size() - 1) == self.metadata.name))")
        .message("spec.sinks: a redisStream.stream is another sink's already, which has the default <pipeline>.<sink name>")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.autoscaling) || self.autoscaling == null || self.autoscaling.maxReplicas <= self.shards")
        .message("spec.autoscaling.maxReplicas must be at most spec.shards: more workers than shards would idle"),
    validation = Rule::new("!has(self.archive) || self.archive == null || (has(self.retention) && self.retention != null && has(self.retention.records) && self.retention.records != 'Forever')")
        .message("spec.archive needs spec.retention.records: a partition is archived before it is dropped, and none is dropped"),
    validation = Rule::new("!has(self.autoscaling) || self.autoscaling == null || !has(self.replicas) || self.replicas <= 1")
        .message("spec.replicas must be left out, or 0 to stop, beside spec.autoscaling: set autoscaling.minReplicas and maxReplicas instead"),
    validation = Rule::new("!has(self.totalThresholds) || self.totalThresholds.all(t, !has(t.rollup) || dyn(t.rollup) == null || (has(self.rollups) && self.rollups.exists(r, r.name == t.rollup && has(r.groupBy) && 'destinationId' in r.groupBy && (t.per != 'Key' || 'reference' in r.groupBy))))")
        .message("spec.totalThresholds: rollup must name one of spec.rollups that groups by destinationId, and for per: Key also by reference"),
)]
pub struct RecordPipelineSpec {
    /// A record whose value is above this raises an alert: a decimal string such as "1000.00". A change is active
    /// within seconds and restarts no pod. Absent: only `thresholds` raise alerts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<DecimalString>,
    /// Thresholds per unit, such as `JPY: "100000"`, at most 64; each overrides `threshold` for its unit. Units compare
    /// byte by byte: `eur` is another unit than `EUR`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(
        validation = Rule::new("self.all(unit, unit.size() >= 1 && unit.size() <= 200)")
            .message("units have 1 to 200 characters"),
        validation = Rule::new(r"self.all(unit, !unit.matches(r'^[\x20\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]|[\x20\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]$|[\x00-\x1f\x7f-\x{9f}\x{61c}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2066}-\x{2069}\x{feff}]'))")
            .message("a unit has white space at an end, or a character that cannot be seen: remove it, for units compare byte by byte"),
    )]
    pub thresholds: BTreeMap<String, DecimalString>,
    /// Thresholds on totals, at most 16: the record that takes a total over one raises an alert, which sinks of the event
    /// TotalAlert publish. A change is active within seconds, restarts no pod, and concerns later records only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub total_thresholds: Vec<TotalThreshold>,
    /// Number of workers, 1 unless given, at most 256; more than `shards` idle, 0 stops the pipeline. Leave it out
    /// beside `autoscaling`: there 0 stops the pipeline and 1, the default, has no effect. `kubectl scale rpl NAME
    /// --replicas=3` sets it, and a HorizontalPodAutoscaler may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // Not nullable, and with a default: the scale subresource reads it, and fails on null and on an absent field.
    #[schemars(with = "u32", range(max = 256), extend("default" = 1))]
    pub replicas: Option<u32>,
    /// Instead of `replicas`: as many workers as the backlog needs, which is all queued and pending records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Number of shards, 1 to 256, 16 unless given: the most workers that can work at once. Immutable, for it decides
    /// which shard a record goes to.
    #[serde(default = "default_shards")]
    #[schemars(range(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "is immutable: it decides which shard a record goes to; make a pipeline of another name instead"
    ))]
    pub shards: u16,
    /// Most entries of a shard, 100,000 unless given. When a shard has so many, new records are answered with 429, and
    /// the client sends them again later.
    #[serde(default = "default_backlog_limit")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub backlog_limit: u64,
    /// How much clients may send to the paths that take records; what is more is answered with 429. Absent: no limit but
    /// `backlogLimit`. A change is active within seconds and restarts no pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// The image of the pods. A change rolls them. Absent: the operator's default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    #[x_kube(validation = Rule::new(r"!self.matches(r'\s')").message("must be 1 to 500 characters without spaces"))]
    pub image: Option<String>,
    /// When the image is pulled; absent: as Kubernetes decides by the image's tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Names of Secrets to pull the image with, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub image_pull_secrets: Vec<String>,
    /// Where outcomes are published: up to 16 sinks, each with a name and a position of its own. A slow or dead sink
    /// delays no other. They are added, changed and removed while the pipeline runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, !has(a.redisStream) || a.redisStream == null || !has(a.redisStream.stream) || dyn(a.redisStream.stream) == null || self.exists_one(b, has(b.redisStream) && b.redisStream != null && has(b.redisStream.stream) && b.redisStream.stream == a.redisStream.stream))")
            .message("two sinks name the same redisStream.stream: a stream belongs to one sink"),
    )]
    pub sinks: Vec<Sink>,
    /// Sums that are kept ready for queries, at most 8. They are declared, changed and removed while the pipeline runs: a
    /// new or changed one is built in the background from the stored records, and used once it is complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rollups: Vec<Rollup>,
    /// Rules that a record has to meet beside its form; one that breaks a rule becomes a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// How long records, ids, dead letters, duplicates and rollups are kept. Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Where each partition of records is written before it is dropped. Absent: partitions are dropped without a copy. Needs
    /// `retention.records`. A change is active within seconds; one of a Secret or claim that it names rolls the pods of work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// Where Redis is. Needed on a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisRef>,
    /// Where Postgres is. Needed on a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresRef>,
    /// Who may call the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// The issuer whose access tokens may call the HTTP API, too. Absent: API keys only. A change is active within seconds;
    /// one of `caSecretRef` rolls the pods of `serve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// The pods that accept records and answer queries: their number, how they are reached, how they run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// The pods that apply records and publish outcomes: how they run. Their number is `replicas` or `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Runs `millrace verify` on a schedule. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// The pods of the Jobs that migrate the schema, verify and purge the data: how they differ from those of `work`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<Jobs>,
    /// Who may connect to the pods, and where the pods may connect to. Absent: HTTP from anywhere, the health port from
    /// the operator's namespace, egress unrestricted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// What happens to queued records when the resource is deleted; `Drain` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Longest time of the drain, in seconds, 600 unless given; records that are still queued then stay in Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub drain_seconds: Option<u32>,
    /// True: the operator changes nothing of this pipeline until it is false or absent again. Its pods continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

impl RecordPipelineSpec {
    /// The spec with only the fields that concern the pods: rules for records, sinks, and the URLs of the servers.
    /// Fields that only the operator uses are absent, so that an image that is older than the resource can read it.
    #[must_use]
    pub fn for_pods(&self) -> Self {
        // Without `..`: the compiler then asks for a decision about each new field.
        let Self {
            threshold,
            thresholds,
            total_thresholds,
            shards,
            backlog_limit,
            limits,
            sinks,
            rollups,
            policy,
            redis,
            postgres,
            auth,
            oidc,
            retention,
            archive,
            serve,
            replicas: _,
            autoscaling: _,
            image: _,
            image_pull_policy: _,
            image_pull_secrets: _,
            work: _,
            verify: _,
            jobs: _,
            network_policy: _,
            deletion_policy: _,
            drain_seconds: _,
            paused: _,
        } = self;
        Self {
            threshold: threshold.clone(),
            thresholds: thresholds.clone(),
            total_thresholds: total_thresholds.clone(),
            shards: *shards,
            backlog_limit: *backlog_limit,
            limits: *limits,
            sinks: sinks.clone(),
            rollups: rollups.clone(),
            policy: policy.clone(),
            redis: redis.clone(),
            postgres: postgres.clone(),
            auth: auth.clone(),
            oidc: oidc.clone(),
            retention: *retention,
            archive: archive.clone(),
            serve: serve.as_ref().and_then(Serve::for_pods),
            replicas: None,
            autoscaling: None,
            image: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            work: None,
            verify: None,
            jobs: None,
            network_policy: None,
            deletion_policy: None,
            drain_seconds: None,
            paused: None,
        }
    }

    /// The canonical form of this content, as JSON: with defaults, fields in the order of this type, maps sorted.
    ///
    /// # Panics
    /// Never: the type has only string keys, and numbers that JSON has.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("a spec is JSON")
    }

    /// Parses the text of [`Self::canonical`].
    ///
    /// # Errors
    /// When a newer version of this software wrote it, with fields that this one does not have.
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
    /// Most workers, at most `shards`: more than these would idle.
    #[schemars(range(min = 1, max = 256))]
    pub max_replicas: u32,
    /// The wanted backlog of one worker, in records, at least 1. A backlog of twice as many for each worker doubles the
    /// number of workers.
    #[schemars(range(min = 1))]
    pub target_backlog: u64,
}

/// One key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The Secret's name; it is in the pipeline's namespace.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9.-]+$')").message(
        "must be a Secret's name: lower-case letters, digits, '-' or '.'"
    ))]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
    /// The key in it.
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message(
        "must be 1 to 253 letters, digits, '.', '_' or '-'"
    ))]
    #[schemars(length(max = 253), regex(pattern = r"^[A-Za-z0-9._-]{1,253}$"))]
    pub key: String,
}

/// Rules for records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// The least total, such as "0": a negative record after which its destination's total in its unit would be below
    /// this becomes a dead letter. Absent: totals may be negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_total: Option<DecimalString>,
}

/// Where Redis is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisRef {
    /// The Secret key that holds the URL, with user and password where the server asks for them. The pods follow a
    /// change of the Secret without a restart.
    pub url_secret_ref: SecretKeyRef,
    /// The files of TLS connections. A URL of the form `rediss://` is needed beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// Where Postgres is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostgresRef {
    /// The Secret key that holds the URL, with user and password where the server asks for them. The pods follow a
    /// change of the Secret without a restart.
    pub url_secret_ref: SecretKeyRef,
    /// The Secret key that holds the URL of a standby. Queries that ask for it are answered from there. The pods follow a
    /// change of the Secret without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_url_secret_ref: Option<SecretKeyRef>,
    /// How far an answer of the standby may be behind: it has all that was committed this long before the request. Queries
    /// read from the primary while the standby is further behind.
    #[serde(default)]
    pub max_staleness: MaxStaleness,
    /// The files of TLS connections. A URL with `sslmode=verify-full` or `verify-ca` is needed beside it. They are those of
    /// the standby, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// Who may call the HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// The Secret key that holds the first API key, an administrator's. Absent: only `millrace keys` creates keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_key_secret_ref: Option<SecretKeyRef>,
}
