//! The ConfigMap that holds the pods' manifest.

use k8s_openapi::api::core::v1::ConfigMap;

use super::{Child, Object, Validated, metadata};

/// The key of the manifest in the ConfigMap.
pub(super) const KEY: &str = "pipeline.yaml";

/// The manifest with the fields that concern the pods.
pub(super) fn manifest(pipeline: &Validated) -> Child {
    // A manifest is JSON, and JSON is YAML.
    let text = serde_saphyr::to_string(&pipeline.manifest).expect("a manifest is YAML");
    Child::new(Object::ConfigMap(ConfigMap {
        metadata: metadata(pipeline, name(pipeline), None),
        data: Some([(KEY.to_owned(), text)].into()),
        ..ConfigMap::default()
    }))
}

/// The name of the ConfigMap.
pub(super) fn name(pipeline: &Validated) -> String {
    format!("{}-manifest", pipeline.name)
}
