//! Own shards, read their entries, decide, commit, ack: the worker.
//!
//! Must never ack before the commit, and must never act on a shard without its fence being compared.

mod batch;
mod loss;
mod owner;
mod shard;
#[cfg(test)]
mod tests;
mod writes;

use std::{sync::Arc, time::Duration};

use tokio::sync::{RwLock, Semaphore, watch};

use crate::{
    board::Board, config::ActiveManifest, lifecycle::Heartbeats, publish::ActiveSink, store::Store, streams::Streams,
};

pub use owner::own;
pub use writes::Writes;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Options {
    /// This worker's name; unique among those that live.
    pub worker: Arc<str>,
    /// How long a lease lasts without being renewed.
    pub lease: Duration,
    /// Most entries of one micro-batch.
    pub batch: usize,
}

/// What all shards of a worker share.
#[derive(Debug)]
pub struct Context {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The manifest, followed.
    pub active_manifest: watch::Receiver<ActiveManifest>,
    /// Sinks that may run, followed.
    pub sinks: watch::Receiver<Arc<Vec<ActiveSink>>>,
    /// How the worker works.
    pub options: Options,
    /// Which loops move.
    pub heartbeats: Heartbeats,
    /// Held while a shard reads and commits: what waits for one grows into a larger batch.
    pub permits: Semaphore,
    /// Held while entries are decided, alone for one that is noted: a worker that ends then ends of that one.
    pub deciding: RwLock<()>,
    /// Where shards write that Postgres takes no writes.
    pub board: Board,
    /// Since when Postgres has taken writes without a break.
    pub writes: Writes,
}
