//! A whole manifest: the resource as a file, as `kubectl apply` takes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{RecordPipelineSpec, Violation};

/// `apiVersion` of the resource.
pub const API_VERSION: &str = "millrace.dev/v1alpha1";
/// `kind` of the resource.
pub const KIND: &str = "RecordPipeline";
/// Annotation under which a lower generation of the same uid is accepted, once for each of its values. It is for a
/// cluster whose etcd was restored from a backup.
pub const ACCEPT_GENERATION: &str = "millrace.dev/accept-generation";
/// Annotation whose value is the id of the pipeline that this manifest takes over.
pub const ADOPT: &str = "millrace.dev/adopt";

/// A pipeline: its name and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordPipeline {
    /// Always `millrace.dev/v1alpha1`.
    pub api_version: String,
    /// Always `RecordPipeline`.
    pub kind: String,
    /// Name and what Kubernetes adds to it.
    pub metadata: Metadata,
    /// What the pipeline is.
    pub spec: RecordPipelineSpec,
    /// What was last seen of it; written by the operator, ignored here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub status: Option<serde_json::Value>,
}

/// The part of Kubernetes' metadata that matters here; the rest is ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The pipeline's name: at most 40 characters, a DNS label.
    #[schemars(regex(pattern = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"))]
    pub name: String,
    /// Absent in a local file, which counts as `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Given by Kubernetes; absent in a local file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Given by Kubernetes; absent in a local file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not YAML, or not of the resource's form.
    #[error("not a RecordPipeline manifest: {0}")]
    Form(String),
    /// Of the right form, but it breaks rules.
    #[error("the manifest breaks {} rule(s): {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Rules(Vec<Violation>),
}

impl RecordPipeline {
    /// Reads a manifest from YAML (JSON is YAML) and checks its rules.
    ///
    /// # Errors
    /// [`ParseError`] names every field that is wrong and the remedy.
    pub fn from_yaml(text: &str) -> Result<Self, ParseError> {
        let manifest: Self = serde_saphyr::from_str(text).map_err(|error| ParseError::Form(error.to_string()))?;
        let violations = manifest.violations();
        if violations.is_empty() { Ok(manifest) } else { Err(ParseError::Rules(violations)) }
    }

    /// The value of an annotation, empty where it is absent.
    #[must_use]
    pub fn annotation(&self, name: &str) -> &str {
        self.metadata.annotations.get(name).map_or("", String::as_str)
    }

    /// The namespace, `default` for a local file.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }
}
