//! `millrace work`: the worker role: own, decide, commit, publish.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, watch};

use crate::{
    config::{Place, Setup},
    lifecycle::Lifecycle,
    process::{self, Context},
    publish::Keeper,
    store,
};

/// Flags of `millrace work`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    tuning: Tuning,
}

/// How a worker works.
#[derive(Debug, Clone, clap::Args)]
pub struct Tuning {
    /// How long a shard's lease lasts without being renewed; others take the shard over after it, in milliseconds.
    #[arg(long, env = "MILLRACE_LEASE_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(500..))]
    lease_ms: u64,
    /// Most entries of one transaction.
    #[arg(long, env = "MILLRACE_BATCH", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    batch: u16,
}

/// Connections beside those that commit: for leases, lanes and the manifest.
pub const CONNECTIONS: u32 = 3;

/// Runs the command.
///
/// # Errors
/// What stopped it, in words for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let lifecycle = Lifecycle::new();
    let setup = Setup::new(&args.place, "work", CONNECTIONS, &lifecycle).await?;
    start(setup, &args.tuning, &lifecycle);
    lifecycle.run(Duration::from_secs(30)).await
}

/// Starts a worker.
pub fn start(setup: Setup, tuning: &Tuning, lifecycle: &Lifecycle) {
    let (active, sinks) = watch::channel(Arc::default());
    let keeper = Keeper {
        store: setup.store.clone(),
        streams: setup.streams.clone(),
        in_force: setup.in_force.clone(),
        active,
    };
    lifecycle.spawn("sinks", keeper.run(lifecycle.clone()));
    let context = Context {
        store: setup.store,
        streams: setup.streams,
        in_force: setup.in_force,
        sinks,
        options: process::Options {
            worker: setup.process,
            lease: Duration::from_millis(tuning.lease_ms),
            batch: usize::from(tuning.batch),
        },
        vitals: lifecycle.vitals.clone(),
        permits: Semaphore::new(store::COMMITS as usize),
    };
    lifecycle.spawn("own", process::own(Arc::new(context), lifecycle.clone()));
}
