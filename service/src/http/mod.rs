//! Shared parts of all HTTP paths: the application's state, problems, access, connections and middleware.
//!
//! Must never depend on records: these are of `accept` (in) and `query` (out). `routes` puts all paths together.

pub mod auth;
pub(crate) mod certificate;
mod client_address;
pub mod connections;
mod cross_origin;
mod durations;
pub(crate) mod errors;
pub(crate) mod front;
pub(crate) mod guard;
mod head;
pub mod health;
pub mod keyring;
mod last_use;
pub(crate) mod merged;
pub mod new_key;
pub mod oidc;
pub(crate) mod operations;
mod pace;
pub(crate) mod probes;
pub mod problem;
pub mod rate_limits;
pub(crate) mod session;
pub(crate) mod standby;

use crate::{
    config::ActiveManifest,
    store::Store,
    streams::{Producer, Streams},
};

/// Dependencies of request handlers.
#[derive(Debug, Clone)]
pub struct App {
    /// Postgres.
    pub store: Store,
    /// The standby of Postgres for queries that ask for it.
    pub standby: standby::Standby,
    /// Redis.
    pub streams: Streams,
    /// The manifest that is active, followed.
    pub manifest: tokio::sync::watch::Receiver<ActiveManifest>,
    /// The appends of this process.
    pub producer: Producer,
    /// Keys of callers.
    pub keys: auth::KeyRing,
    /// What API keys and all clients may send.
    pub limiter: rate_limits::RateLimiter,
    /// This process's name, in logs and notes.
    pub process: std::sync::Arc<str>,
}
