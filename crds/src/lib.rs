//! The `RecordPipeline` resource: what a pipeline is.
//!
//! One set of types serves the local manifest (`millrace dev --pipeline FILE`) and the cluster's custom resource.
//! This crate must never do I/O and must never know how a pipeline is run.

mod decimal;
mod manifest;
mod spec;
mod validate;

pub use decimal::{DecimalString, InvalidDecimal};
pub use manifest::{ACCEPT_GENERATION, ADOPT, API_VERSION, KIND, Metadata, ParseError, RecordPipeline};
pub use spec::{
    Auth, Autoscaling, From, On, Overflow, Policy, PostgresRef, RecordPipelineSpec, RedisRef, RedisStream,
    SecretKeyRef, Serve, Sink, Webhook,
};
pub use validate::Violation;
