//! The ConfigMap that holds the manifest which the pods follow.

use serde_json::json;

use super::{Child, Head, Kind};
use crate::pipeline::Pipeline;

/// The key of the manifest in it.
pub(super) const KEY: &str = "pipeline.yaml";

/// The manifest: only what concerns the pods.
pub(super) fn manifest(pipeline: &Pipeline) -> Child {
    // A manifest is JSON, and JSON is YAML: there is nothing in it that YAML could not hold.
    let text = serde_saphyr::to_string(&pipeline.manifest).expect("a manifest is YAML");
    Head::new(Kind::ConfigMap, name(pipeline), None).child(pipeline, json!({ "data": { KEY: text } }))
}

/// Its name.
pub(super) fn name(pipeline: &Pipeline) -> String {
    format!("{}-manifest", pipeline.name)
}
