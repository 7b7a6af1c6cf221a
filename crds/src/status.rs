//! The fields of `status`, the last observed state of a pipeline. Only the operator writes them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The last observed state of a pipeline. Numbers are as of the last response of a pod, and absent before the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
// kstatus takes an object without a status for one that is ready. A generation that none has makes it wait for the
// operator's first look: `helm upgrade --wait` of Helm 4, and Flux, would otherwise end before it.
#[schemars(extend("default" = { "observedGeneration": -1 }))]
pub struct RecordPipelineStatus {
    /// The generation that Ready describes, or the newest one while Stalled is True; -1 before an operator has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Migrated, Progressing, Reconciling, Degraded, Stalled. Each names its own generation, reason and message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Workers that are available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Selects the workers' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Records that are accepted and not processed yet: queued and pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<i64>,
    /// Records processed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processed: Option<i64>,
    /// Records that raised an alert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<i64>,
    /// Dead letters that are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<i64>,
    /// The URL of the HTTP API within the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The pipeline's id, which is stored in Postgres and Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_id: Option<String>,
    /// The last migration of the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrated: Option<Migrated>,
    /// When draining began, while the resource is being deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining_since: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
}

/// A migration of the schema.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Migrated {
    /// The image.
    pub image: String,
    /// The hash of everything that the migration depended on: image, Secret references and identity.
    pub key: String,
    /// Contracting steps that wait until no older pod is left.
    #[serde(default)]
    pub contract: u32,
}
