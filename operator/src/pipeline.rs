//! A pipeline that may be worked on: what the API server gave, checked and without the parts that nothing needs.

use millrace_crds::{Metadata, RecordPipeline, RecordPipelineResource, RecordPipelineSpec};

/// A valid pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// The generation of the spec.
    pub generation: i64,
    /// The manifest that its pods read: only what concerns them.
    pub manifest: RecordPipeline,
    /// The whole spec.
    pub spec: RecordPipelineSpec,
}
