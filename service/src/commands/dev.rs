//! `millrace dev`: a whole pipeline on this machine, with a Redis and a Postgres of its own.
//!
//! Access is open here, so it must never listen beyond this machine.

mod guide;
mod home;
mod postgres;
mod process;
mod redis;
mod servers;
mod tools;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::{migrate, serve, work};
use crate::{
    config::{Place, Setup, process_name},
    http::health::{self, Health},
    lifecycle::Lifecycle,
    status::Reporter,
    telemetry::{self, Metrics, TelemetryArgs},
};
use home::{Home, write_private};
use servers::Servers;

/// Longest drain of `serve` and `work`.
const LONGEST_STOP: Duration = Duration::from_secs(28);
/// Connections to Postgres for serving.
const SERVE_CONNECTIONS: u32 = 8;
const MANIFEST: &str = include_str!("dev/pipeline.yaml");

/// Flags of `millrace dev`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline's manifest; absent: a small one, put into the data directory.
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// Where it listens: an address of this machine only, for anyone may use it.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where all of its state is, kept across restarts.
    #[arg(long, value_name = "DIR", default_value = ".millrace")]
    data_dir: PathBuf,
    /// Where /health, /ready, /metrics and /status are answered as well.
    #[arg(long, value_name = "ADDRESS")]
    health_listen: Option<SocketAddr>,
    #[command(flatten)]
    tuning: work::Tuning,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if !args.listen.ip().is_loopback() {
        bail!("--listen {}: dev asks for no API key, so it listens on loopback addresses only", args.listen);
    }
    let telemetry = telemetry::init("dev", &args.telemetry)?;
    let outcome = supervise(&args, telemetry.metrics()).await;
    telemetry.shutdown().await;
    outcome
}

/// Servers first, then the pipeline; the pipeline ends first, then the servers.
async fn supervise(args: &Args, metrics: Metrics) -> anyhow::Result<()> {
    let mut home = Home::take(&args.data_dir)?;
    let manifest = manifest(args, &home.dir)?;
    let env = home.dir.join("dev.env");
    // The file of an earlier run is outdated until this run is ready.
    let _ = fs::remove_file(&env);
    let servers = tokio::select! {
        servers = Servers::start(&mut home) => servers?,
        () = told_to_stop() => bail!("stopped before it was ready"),
    };
    let lifecycle = Lifecycle::new();
    servers.watch(&lifecycle);
    let ready = tokio::select! {
        ready = start(args, &manifest, &env, &servers, metrics, &lifecycle) => ready,
        () = lifecycle.soft.cancelled() => Ok(()),
        () = told_to_stop() => Err(anyhow::anyhow!("stopped before it was ready")),
    };
    if ready.is_err() {
        lifecycle.soft.cancel();
    }
    let ran = lifecycle.run(LONGEST_STOP).await;
    let _ = fs::remove_file(&env);
    servers.stop().await;
    ready.and(ran)
}

/// The manifest's file, absolute.
fn manifest(args: &Args, dir: &Path) -> anyhow::Result<PathBuf> {
    let file = match &args.pipeline {
        Some(file) => file.clone(),
        None => {
            let file = dir.join("pipeline.yaml");
            if !file.exists() {
                write_private(&file, MANIFEST.as_bytes())?;
            }
            file
        }
    };
    std::path::absolute(&file).with_context(|| format!("cannot reach {}", file.display()))
}

async fn start(
    args: &Args,
    manifest: &Path,
    env: &Path,
    servers: &Servers,
    metrics: Metrics,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let place = Place::new(manifest, servers.redis_url.as_str(), servers.postgres_url.as_str());
    let pipeline = place.manifest()?;
    let process = process_name("dev");
    let reporter = Reporter::new("dev", &process, &lifecycle.board);
    if let Some(listen) = args.health_listen {
        health::serve(listen, Health::new("dev", metrics, lifecycle, &reporter), lifecycle).await?;
    }
    migrate::migrate(&place).await?;
    let address = {
        let setup = Setup::new(&place, &process_name("serve"), SERVE_CONNECTIONS, lifecycle).await?;
        serve::start(setup, serve::Options { listen: args.listen, open: true }, lifecycle).await?
    };
    // Its worker goes by the name that `/status` tells.
    let setup = Setup::new(&place, &process, work::CONNECTIONS, lifecycle).await?;
    reporter.found(&setup);
    work::start(setup, &args.tuning, lifecycle);
    guide::write_env(env, address, servers, manifest)?;
    say!("{}", guide::commands(address, env, &pipeline));
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
async fn told_to_stop() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut int), Ok(mut term)) => {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        }
        // Without handlers the signals have their own effect.
        _ => std::future::pending().await,
    }
}
