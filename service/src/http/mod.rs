//! Shared parts of all HTTP paths: the application's state, problems, access, and the assembled server.
//!
//! Must never know what a record is: that is `accept` (in) and `ask` (out).

pub mod auth;
pub mod connections;
mod errors;
mod front;
pub(crate) mod guard;
pub mod health;
pub mod keyring;
mod merged;
mod operations;
mod pace;
mod probes;
pub mod problem;
pub mod server;

use crate::{config::ActiveManifest, store::Store, streams::Streams};

/// Dependencies of request handlers.
#[derive(Debug, Clone)]
pub struct App {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The manifest that is active, followed.
    pub manifest: tokio::sync::watch::Receiver<ActiveManifest>,
    /// Keys of callers.
    pub keys: auth::KeyRing,
    /// This process's name, in logs and notes.
    pub process: std::sync::Arc<str>,
}
