//! `millrace serve`: the HTTP role: accept and ask.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::FutureExt as _;
use tokio::net::TcpListener;

use crate::{
    accept::Acceptor,
    config::{Place, Secret, Setup},
    http::{
        App,
        auth::KeyRing,
        health::{self, Health},
        keyring::{self, Bootstrap},
        server,
    },
    lifecycle::Lifecycle,
    telemetry::{self, Telemetry, TelemetryArgs},
};

/// Connections to Postgres: queries, the poller of outcomes, keys.
const POSTGRES_CONNECTIONS: u32 = 12;
/// Longest time from the first signal to the end.
const LONGEST_STOP: Duration = Duration::from_secs(28);

/// Flags of `millrace serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    telemetry: TelemetryArgs,
    /// Where records are taken and queries answered
    #[arg(long, value_name = "ADDRESS", env = "MILLRACE_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Where /health, /ready, /metrics and /status are answered, without a key
    #[arg(long, value_name = "ADDRESS", env = "MILLRACE_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    health_listen: SocketAddr,
    /// The first API key, an administrator's: mk_ and at least 29 letters, digits, - or _
    #[arg(long, value_name = "KEY", env = "MILLRACE_BOOTSTRAP_KEY", hide_env_values = true)]
    bootstrap_key: Option<Secret>,
    /// A file that holds the first API key; it is followed
    #[arg(long, value_name = "FILE", env = "MILLRACE_BOOTSTRAP_KEY_FILE", conflicts_with = "bootstrap_key")]
    bootstrap_key_file: Option<PathBuf>,
}

/// How to serve.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The main port's address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether anyone may call without a key: the development mode, on loopback only.
    pub open: bool,
}

/// Runs the command.
///
/// # Errors
/// What stopped it, in words for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let telemetry = telemetry::init("serve", &args.telemetry)?;
    let outcome = try_run(args, &telemetry).await;
    // Spans of the last requests, too, are sent.
    telemetry.shutdown().await;
    outcome
}

async fn try_run(args: Args, telemetry: &Telemetry) -> anyhow::Result<()> {
    let bootstrap = match (&args.bootstrap_key, args.bootstrap_key_file) {
        (Some(Secret(key)), _) => Bootstrap::Key(keyring::hash(key.trim()).context("MILLRACE_BOOTSTRAP_KEY")?),
        (None, Some(file)) => Bootstrap::File(file),
        (None, None) => Bootstrap::None,
    };
    let lifecycle = Lifecycle::new();
    let starting = async {
        let setup = Setup::new(&args.place, "serve", POSTGRES_CONNECTIONS, &lifecycle).await?;
        let health = Health {
            role: "serve",
            vitals: lifecycle.vitals.clone(),
            metrics: telemetry.metrics(),
            status: status(&setup),
        };
        health::serve(args.health_listen, health, &lifecycle).await?;
        let keys = KeyRing::follow(&setup.store, bootstrap, &lifecycle).await?;
        serve(setup, args.listen, keys, &lifecycle).await
    };
    let running = lifecycle.clone().run(LONGEST_STOP);
    tokio::pin!(running);
    tokio::select! {
        started = starting => { started?; }
        // A signal while a server is still waited for.
        ended = &mut running => return ended,
    }
    running.await
}

/// Starts to serve, by tasks of `lifecycle`; gives the address of the main port.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(setup: Setup, options: Options, lifecycle: &Lifecycle) -> anyhow::Result<SocketAddr> {
    let keys =
        if options.open { KeyRing::open() } else { KeyRing::follow(&setup.store, Bootstrap::None, lifecycle).await? };
    serve(setup, options.listen, keys, lifecycle).await
}

async fn serve(setup: Setup, listen: SocketAddr, keys: KeyRing, lifecycle: &Lifecycle) -> anyhow::Result<SocketAddr> {
    let Setup { store, streams, in_force, process, name } = setup;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let acceptor = Acceptor::default();
    acceptor.spawn(&store, &process, lifecycle);
    let app = App { store: store.clone(), streams, manifest: in_force, keys, process: Arc::clone(&process) };
    let endpoint = server::routes(app, acceptor.clone(), lifecycle.vitals.clone());
    let soft = lifecycle.soft.clone();
    lifecycle.spawn("serve.http", async move {
        let served = server::run(listener, endpoint, soft).await;
        acceptor.close(&store, &process).await;
        Ok(served?)
    });
    tracing::info!(%address, pipeline = &*name, "serve.http.listening");
    Ok(address)
}

/// What `/status` shows of this role.
fn status(setup: &Setup) -> health::Status {
    let (in_force, process) = (setup.in_force.clone(), Arc::clone(&setup.process));
    Arc::new(move || {
        let (version, pipeline_id, refusal) = {
            let in_force = in_force.borrow();
            (in_force.policy.version, Arc::clone(&in_force.pipeline_id), in_force.refusal.clone())
        };
        let status = serde_json::json!({
            "process": &*process,
            "pipelineId": &*pipeline_id,
            "version": version,
            "refusal": refusal.as_deref(),
        });
        async move { status }.boxed()
    })
}
