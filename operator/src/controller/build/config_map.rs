//! The ConfigMap that holds the pods' manifest.

use serde_json::json;

use super::{Child, Head, Kind};
use crate::pipeline::Pipeline;

/// The key of the manifest in the ConfigMap.
pub(super) const KEY: &str = "pipeline.yaml";

/// The manifest with the fields that concern the pods.
pub(super) fn manifest(pipeline: &Pipeline) -> Child {
    // A manifest is JSON, and JSON is YAML.
    let text = serde_saphyr::to_string(&pipeline.manifest).expect("a manifest is YAML");
    Head::new(Kind::ConfigMap, name(pipeline), None).child(pipeline, json!({ "data": { KEY: text } }))
}

/// The name of the ConfigMap.
pub(super) fn name(pipeline: &Pipeline) -> String {
    format!("{}-manifest", pipeline.name)
}
