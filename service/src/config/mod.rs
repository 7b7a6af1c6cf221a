//! The active configuration: the manifest (followed while running), flags and variables.
//!
//! Must never show a secret.

mod follow;
mod place;
mod postgres_url;
mod redis_url;
pub mod secret;
mod server_url;
mod setup;
mod standby;
#[cfg(test)]
mod tests;
mod tls;
mod trial;

use std::sync::Arc;

use millrace_crds::{RecordPipeline, RecordPipelineSpec};

pub use place::{Place, Secret};
pub use secret::SecretError;
pub use setup::{Setup, process_name};
pub use standby::{StandbyArgs, StandbyPlace};
pub use tls::TlsArgs;
pub(crate) use tls::{given, identity, trusted};

use crate::domain::Policy;

/// The manifest that is active in this process, with its version in Postgres.
#[derive(Debug, Clone)]
pub struct ActiveManifest {
    /// The manifest of the pipeline.
    pub manifest: Arc<RecordPipeline>,
    /// The part that decides about records; `policy.version` is the manifest's version in Postgres.
    pub policy: Arc<Policy>,
    /// The pipeline's id, from Postgres.
    pub pipeline_id: Arc<str>,
    /// Why this process's file is not what is active; `None` when it is.
    pub refusal: Option<Arc<str>>,
}

impl ActiveManifest {
    /// A version of a pipeline's manifest: `frame` gives its name and metadata, `spec` its content.
    #[must_use]
    pub fn new(
        frame: &RecordPipeline,
        spec: RecordPipelineSpec,
        version: i64,
        pipeline_id: impl Into<Arc<str>>,
    ) -> Self {
        let policy = Policy::of(&spec, version);
        let manifest = RecordPipeline { spec, status: None, ..frame.clone() };
        Self { manifest: manifest.into(), policy: policy.into(), pipeline_id: pipeline_id.into(), refusal: None }
    }
}
