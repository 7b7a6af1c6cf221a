//! `millrace work`: the worker role: own, decide, commit, publish.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::json;
use tokio::sync::{Semaphore, watch};

use crate::{
    config::{Place, Setup},
    http::health::{self, Health, Status},
    lifecycle::Lifecycle,
    process::{self, Context},
    publish::Keeper,
    store,
    telemetry::{self, Telemetry, TelemetryArgs},
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

/// How long `/status` waits for Postgres before it tells the rest without.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// Connections beside those that commit: for leases, lanes and the manifest.
pub const CONNECTIONS: u32 = 3;

/// Runs the command.
///
/// # Errors
/// What stopped it, in words for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let telemetry = telemetry::init("work", &args.telemetry)?;
    let outcome = try_run(args, &telemetry).await;
    telemetry.shutdown().await;
    outcome
}

async fn try_run(args: Args, telemetry: &Telemetry) -> anyhow::Result<()> {
    let lifecycle = Lifecycle::new();
    // Before the pipeline is there, so that a pod that waits for its servers can be asked why.
    let known: Arc<OnceLock<Setup>> = Arc::default();
    if let Some(listen) = args.health_listen {
        let (vitals, metrics) = (lifecycle.vitals.clone(), telemetry.metrics());
        let health = Health { role: "work", vitals, metrics, status: status(Arc::clone(&known)) };
        health::serve(listen, health, &lifecycle).await?;
    }
    let setup = Setup::new(&args.place, "work", CONNECTIONS, &lifecycle).await?;
    let _ = known.set(setup.clone());
    start(setup, &args.tuning, &lifecycle);
    lifecycle.run(Duration::from_secs(30)).await
}

/// What `/status` tells of a worker: the version in force, and what its shards and lanes are at.
fn status(known: Arc<OnceLock<Setup>>) -> Status {
    Arc::new(move || {
        let setup = known.get().cloned();
        Box::pin(async move {
            let Some(setup) = setup else { return json!({"pipeline": null, "waiting": "the pipeline's schema"}) };
            let in_force = setup.in_force.borrow().clone();
            let asked = async {
                let shards = setup.store.shards_of(&setup.process).await?;
                Ok((shards, setup.store.sink_states().await?))
            };
            let away = |_| Err(store::Error::Sql(sqlx::Error::PoolTimedOut));
            let known = tokio::time::timeout(LONGEST_LOOK, asked).await.unwrap_or_else(away);
            json!({
                "pipeline": &*setup.name,
                "pipelineId": &*in_force.pipeline_id,
                "worker": &*setup.process,
                "version": in_force.policy.version,
                "refusal": in_force.refusal.as_deref(),
                "shards": known.as_ref().ok().map(|(shards, _)| {
                    let rows = shards.iter().map(|(shard, epoch, version)| json!({"shard": shard, "epoch": epoch, "version": version}));
                    rows.collect::<Vec<_>>()
                }),
                "sinks": known.as_ref().ok().map(|(_, states)| {
                    let rows = states.iter().map(|(sink, shard, state, detail)| {
                        json!({"sink": sink, "shard": shard, "state": state, "detail": detail})
                    });
                    rows.collect::<Vec<_>>()
                }),
                "postgres": known.err().map(|error| error.to_string()),
            })
        })
    })
}

/// Starts a worker.
pub fn start(setup: Setup, tuning: &Tuning, lifecycle: &Lifecycle) {
    let (active, sinks) = watch::channel(Arc::default());
    let keeper =
        Keeper { store: setup.store.clone(), streams: setup.streams.clone(), in_force: setup.in_force.clone(), active };
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
