//! `millrace-operator run`: acquires the lease, then reconciles until a signal stops the process.

use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use futures::future;
use kube::{
    Client, Config,
    discovery::{self, Scope as ResourceScope},
    runtime::events::{Recorder, Reporter},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    cache::Cache,
    context::{Context, Settings, Tuning},
    controller::{self, Scope, build::Kind},
    lease, metrics,
};

/// Flags of `millrace-operator run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    tuning: Tuning,
    /// The name of the Lease by which one operator leads
    #[arg(long, env = "MILLRACE_OPERATOR_LEASE", default_value = "millrace-operator")]
    lease: String,
    /// This process's name among the operators; the pod's, on a cluster
    #[arg(long, env = "MILLRACE_OPERATOR_POD")]
    identity: Option<String>,
    /// The address of /health, /ready and /metrics
    #[arg(long, env = "MILLRACE_OPERATOR_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// The form of log lines; human on a terminal and json elsewhere unless given
    #[arg(long, value_enum, env = "MILLRACE_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// The filter of log lines
    #[arg(long = "log", env = "MILLRACE_LOG", default_value = "info,kube=warn,hyper=warn")]
    log_filter: String,
}

/// A form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Runs the command.
///
/// # Errors
/// The cause of its end: no API server is configured, the lease was lost, or a task died.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<()> {
    start_log(&args)?;
    let stop = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(false));
    let health = {
        let ready = Arc::clone(&ready);
        metrics::Health::new(move || {
            if ready.load(Ordering::Acquire) { Ok(()) } else { Err("the API server was not reached yet".to_owned()) }
        })?
    };
    // Every task has an owner: the first that ends, ends all.
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn(health.serve(args.listen, stop.clone()));
    tasks.spawn(wait_for_signal());
    tasks.spawn(operate(args, ready, stop.clone()));
    let ended = tasks.join_next().await.unwrap_or(Ok(Ok(())));
    stop.cancel();
    let rest = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(5), rest).await;
    ended.context("a task died")?
}

async fn wait_for_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    future::select(Box::pin(term.recv()), Box::pin(int.recv())).await;
    tracing::info!(event = "operator.process.stopping", "the operator stops");
    Ok(())
}

async fn operate(args: RunArgs, ready: Arc<AtomicBool>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut config = Config::infer().await.context("no API server is configured")?;
    config.read_timeout = Some(Duration::from_secs(300));
    let client = Client::try_from(config)?;
    let version = wait_for_api_server(&client).await;
    tracing::info!(
        event = "operator.api_server.connected",
        version,
        release = args.settings.claim(),
        "connected to the API server"
    );
    ready.store(true, Ordering::Release);

    let identity = args.identity.clone().unwrap_or_else(|| format!("millrace-operator-{}", std::process::id()));
    let led = lease::lead(client.clone(), &args.settings.namespace, &args.lease, &identity);
    let (leadership, mut guard) = tokio::select! {
        led = led => led?,
        () = stop.cancelled() => return Ok(()),
    };
    ::metrics::gauge!(metrics::LEADER).set(1.0);

    let gateway_api = serves_routes(&client).await;
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| gateway_api || *kind != Kind::HttpRoute).collect();
    let scopes = args.settings.scopes();
    let (caches, streams): (Vec<_>, Vec<_>) =
        scopes.iter().map(|namespace| Cache::new(&client, namespace.as_deref(), &kinds)).unzip();
    let reporter = Reporter { controller: "millrace-operator".to_owned(), instance: Some(identity) };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = Context::new(client, args.settings, args.tuning, leadership, recorder, caches.clone());
    let context = Arc::new(context);
    let controllers = caches
        .into_iter()
        .zip(streams)
        .map(|(cache, streams)| controller::run(Scope { context: Arc::clone(&context), cache }, streams, stop.clone()));
    let outcome = tokio::select! {
        lost = guard.lost() => Err(lost),
        _ = future::join_all(controllers) => if stop.is_cancelled() { Ok(()) } else { Err(anyhow!("a controller ended")) },
        () = metrics::count(Arc::clone(&context)) => Ok(()),
        () = wait_for_routes(&context), if !gateway_api => {
            tracing::info!(event = "operator.gateway_api.installed", "the Gateway API is installed now; the operator restarts to use it");
            Ok(())
        }
    };
    guard.release().await;
    outcome
}

/// Waits until the API server answers, and returns its version.
async fn wait_for_api_server(client: &Client) -> String {
    let mut pause = Duration::from_millis(200);
    loop {
        match client.apiserver_version().await {
            Ok(version) => return version.git_version,
            Err(error) => {
                tracing::warn!(event = "operator.api_server.unavailable", error = %error, "the API server is unavailable; the operator retries")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Waits until the Gateway API is installed: a process that starts after that watches its routes.
async fn wait_for_routes(context: &Context) {
    while !serves_routes(&context.client).await {
        tokio::time::sleep(Duration::from_secs(context.tuning.resync_seconds)).await;
    }
}

/// Whether the Gateway API is installed: a kind that the API server does not serve cannot be watched.
async fn serves_routes(client: &Client) -> bool {
    let kind = Kind::HttpRoute.resource();
    let kind = kube::core::GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind);
    loop {
        match discovery::pinned_kind(client, &kind).await {
            Ok((_, capabilities)) => return capabilities.scope == ResourceScope::Namespaced,
            Err(kube::Error::Discovery(_)) => return false,
            // Not `is_not_found`: for a group that it does not serve the API server answers in plain text.
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            // `false` would be wrong here: the operator would never remove routes that exist.
            Err(error) => {
                tracing::warn!(event = "operator.api_server.unavailable", error = %error, "the API server is unavailable; the operator retries")
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn start_log(args: &RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_filter).context("--log, MILLRACE_LOG")?;
    let human = args.log_format.map_or_else(|| std::io::stdout().is_terminal(), |form| form == LogFormat::Human);
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    if human {
        lines.init()
    } else {
        lines.json().flatten_event(true).init()
    }
    Ok(())
}
