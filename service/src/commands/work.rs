//! `millrace work`: the worker role: own, decide, commit, publish.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{RwLock, Semaphore, watch};

use crate::{
    config::{Place, Setup, given, process_name},
    http::health::{self, Health},
    lifecycle::Lifecycle,
    publish::{SinkReconciler, WebhookSecrets},
    status::{self, Reporter},
    store::LONGEST_LEASE_MS,
    telemetry::{self, Telemetry, TelemetryArgs},
    worker::{self, Context},
};

/// Flags of `millrace work`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    telemetry: TelemetryArgs,
    /// Where /health, /ready, /metrics and /status are served; nowhere unless it is given.
    #[arg(long, value_name = "ADDRESS", env = "MILLRACE_HEALTH_LISTEN")]
    health_listen: Option<SocketAddr>,
}

/// Settings of a worker.
#[derive(Debug, Clone, clap::Args)]
pub struct Tuning {
    /// How long a shard's lease lasts without being renewed; others take the shard over after it, in milliseconds.
    #[arg(long, env = "MILLRACE_LEASE_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(500..=LONGEST_LEASE_MS))]
    lease_ms: u64,
    /// Most records of one transaction.
    #[arg(long, env = "MILLRACE_BATCH", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    batch: u16,
    /// Number of transactions that run at once.
    #[arg(long, env = "MILLRACE_APPLIERS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    appliers: u16,
    /// The folder of the Secrets that webhooks name, each key a file: DIR/SECRET/KEY. They are followed.
    #[arg(long, value_name = "DIR", env = "MILLRACE_WEBHOOK_SECRETS_DIR")]
    webhook_secrets_dir: Option<PathBuf>,
    /// The folder of the Secrets that spec.archive names, each key a file: DIR/SECRET/KEY. They are followed.
    #[arg(long, value_name = "DIR", env = "MILLRACE_ARCHIVE_SECRETS_DIR")]
    archive_secrets_dir: Option<PathBuf>,
}

/// Memory for entries that were read and are not acknowledged, in KiB.
const MEMORY_KIB: usize = 4 << 10;

/// Connections beside those that commit: for leases, publishers, the manifest and `/status`.
pub const CONNECTIONS: u32 = 4;

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let telemetry = telemetry::init("work", &args.telemetry)?;
    let outcome = try_run(args, &telemetry).await;
    telemetry.shutdown().await;
    outcome
}

async fn try_run(args: Args, telemetry: &Telemetry) -> anyhow::Result<()> {
    let lifecycle = Lifecycle::new();
    let process = process_name("work");
    let reporter = Reporter::new("work", &process, &lifecycle.board);
    // Before anything else is there, so that a pod that waits can be asked what for.
    if let Some(listen) = args.health_listen {
        health::serve(listen, Health::new("work", telemetry.metrics(), &lifecycle, &reporter), &lifecycle).await?;
    }
    let starting = async {
        let setup = Setup::new(&args.place, &process, CONNECTIONS, &lifecycle).await?;
        reporter.found(&setup);
        start(setup, &args.tuning, &lifecycle);
        Ok(())
    };
    lifecycle.clone().run_from(starting, Duration::from_secs(30)).await
}

/// Starts a worker.
pub fn start(setup: Setup, tuning: &Tuning, lifecycle: &Lifecycle) {
    let may_own = status::watch_work(&setup.streams, &setup.active_manifest, lifecycle);
    let (active, sinks) = watch::channel(Arc::default());
    let sink_reconciler = SinkReconciler {
        store: setup.store.clone(),
        streams: setup.streams.clone(),
        active_manifest: setup.active_manifest.clone(),
        active,
    };
    lifecycle.spawn("sinks", sink_reconciler.run(lifecycle.clone()));
    let context = Context {
        board: lifecycle.board.clone(),
        writes: worker::Writes::default(),
        store: setup.store,
        streams: setup.streams,
        may_own,
        active_manifest: setup.active_manifest,
        sinks,
        secrets: WebhookSecrets::new(tuning.webhook_secrets_dir.clone()),
        archive_secrets: given(&tuning.archive_secrets_dir).map(Path::to_owned),
        options: worker::Options {
            worker: setup.process,
            lease: Duration::from_millis(tuning.lease_ms),
            batch: usize::from(tuning.batch),
            appliers: usize::from(tuning.appliers),
        },
        heartbeats: lifecycle.heartbeats.clone(),
        memory: Arc::new(Semaphore::new(MEMORY_KIB)),
        ready: Arc::default(),
        deciding: RwLock::default(),
    };
    lifecycle.spawn("own", worker::own(Arc::new(context), lifecycle.clone()));
}
