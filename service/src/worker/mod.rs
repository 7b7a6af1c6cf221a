//! The worker: own shards, read their entries, decide, commit, acknowledge. Each shard has a task; appliers commit the ready
//! entries of several shards together.
//!
//! Must never acknowledge before the commit, and must never act on a shard without a comparison of its lease.

mod applier;
mod archive;
mod loss;
mod outcomes;
mod owner;
mod pace;
mod parse;
mod partitions;
mod prepare;
mod publishers;
mod read;
mod ready;
mod retention;
mod rollups;
mod shard;
#[cfg(test)]
mod tests;
mod writes;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{RwLock, Semaphore, watch};

use crate::{
    board::Board,
    config::ActiveManifest,
    lifecycle::Heartbeats,
    publish::{ActiveSink, WebhookSecrets},
    store::Store,
    streams::Streams,
};

pub use owner::own;
pub use ready::ReadyShards;
pub use writes::Writes;

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct Options {
    /// This worker's name; unique among the live workers.
    pub worker: Arc<str>,
    /// Duration of a lease that is not renewed.
    pub lease: Duration,
    /// Number of records after which a batch, or a transaction, is full.
    pub batch: usize,
    /// Number of appliers: transactions that run at once.
    pub appliers: usize,
}

/// The shared parts of all shards of a worker.
#[derive(Debug)]
pub struct Context {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// Whether Redis lets this worker work shards.
    pub may_own: watch::Receiver<bool>,
    /// The manifest, followed.
    pub active_manifest: watch::Receiver<ActiveManifest>,
    /// Active sinks, followed.
    pub sinks: watch::Receiver<Arc<Vec<ActiveSink>>>,
    /// The Secrets of webhooks.
    pub secrets: WebhookSecrets,
    /// The folder with the Secrets of the archive: `<Secret>/<key>`.
    pub archive_secrets: Option<PathBuf>,
    /// Settings.
    pub options: Options,
    /// Liveness of the loops.
    pub heartbeats: Heartbeats,
    /// Memory for entries that were read and are not acknowledged, in KiB. A shard that waits for it gets a larger batch.
    pub memory: Arc<Semaphore>,
    /// Entries that are ready to be decided.
    pub ready: Arc<ReadyShards>,
    /// Held while records are decided; exclusively for one that is noted, so that a crash is due to that one.
    pub deciding: RwLock<()>,
    /// Problems of this process.
    pub board: Board,
    /// Since when Postgres has accepted writes without a break.
    pub writes: Writes,
}
