//! What is in force: the manifest (followed while running) and where the process runs (flags and variables).
//!
//! Must never show a secret.

use std::sync::Arc;

use millrace_crds::RecordPipeline;

use crate::domain::Policy;

/// The manifest that is in force in this process, with the version under which Postgres knows it.
#[derive(Debug, Clone)]
pub struct InForce {
    /// What the pipeline is.
    pub manifest: Arc<RecordPipeline>,
    /// What of it decides about records; `policy.version` is the manifest's version in Postgres.
    pub policy: Arc<Policy>,
    /// The pipeline's id, from Postgres.
    pub pipeline_id: Arc<str>,
}
