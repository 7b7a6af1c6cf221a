//! The `RecordPipeline` resource: the definition of a pipeline.
//!
//! One set of types serves the local manifest (`millrace dev --pipeline FILE`) and the cluster's custom resource.
//! This crate must never do I/O, and must not depend on the code that runs a pipeline.

#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod archive;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod cors;
mod decimal;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod deploy;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod filter;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod limits;
mod manifest;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod oidc;
mod quantity;
mod reason;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod retention;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod rollups;
mod schemas;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod sinks;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod spec;
mod staleness;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod status;
pub mod status_api;
mod text;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod tls;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod totals;
mod validate;
#[expect(unreachable_pub, reason = "KubeSchema repeats each struct in a scope of its own")]
mod webhook;

pub use archive::{Archive, ArchiveDirectory, ArchiveS3};
pub use cors::Cors;
pub use decimal::{DecimalString, InvalidDecimal};
pub use deploy::{
    DeletionPolicy, Gateway, HttpRoute, Ingress, JobPod, Jobs, NetworkPolicy, Object, PathType, Pod, PullPolicy,
    Resources, Serve, ServeAutoscaling, Service, ServiceType, Work,
};
pub use filter::{Filter, Prefixes, RecordType};
pub use limits::{Limits, RateLimits};
pub use manifest::{ACCEPT_GENERATION, ADOPT, API_VERSION, KIND, Metadata, ParseError, RecordPipeline};
pub use oidc::{Oidc, TokenClaims, TokenScope};
pub use quantity::{InvalidQuantity, Quantity};
pub use reason::Reason;
pub use retention::{InvalidKeepFor, KeepFor, Partition, Retention};
pub use rollups::{Distinct, GroupField, Rollup, Window};
pub use sinks::{From, FromPosition, Overflow, RedisStream, Sink, SinkEvent, Until};
pub use spec::{
    Auth, Autoscaling, Policy, PostgresRef, RecordPipelineResource, RecordPipelineSpec, RedisRef, SecretKeyRef,
};
pub use staleness::{InvalidMaxStaleness, MaxStaleness};
pub use status::{Migrated, RecordPipelineStatus};
pub use text::{InvalidText, check_text};
pub use tls::{ClientTls, ServeTls, TlsSecretRef};
pub use totals::{TotalOf, TotalThreshold};
pub use validate::Violation;
pub use webhook::{Ordering, Webhook};
