//! `millrace serve`: the HTTP role: accept and ask.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    accept::Acceptor,
    config::{Place, Secret, Setup, StandbyArgs, StandbyPlace, process_name, secret},
    http::{
        App,
        auth::KeyRing,
        certificate::CertificateArgs,
        connections::{self, Bounds, Tls},
        health::{self, Health},
        keyring::{self, Bootstrap},
        oidc::{AccessTokens, OidcArgs},
        rate_limits::RateLimiter,
        standby::Standby,
    },
    lifecycle::Lifecycle,
    listen,
    status::{self, Reporter},
    store::{self, Store, VerifyResult},
    streams::Producer,
    telemetry::{
        self, Telemetry, TelemetryArgs,
        metrics::{VERIFY_DIFFERENCES, VERIFY_FAILED, VERIFY_LAST_SUCCESS},
    },
};
use anyhow::Context as _;

/// Connections to Postgres: queries, the poller of outcomes, keys.
const POSTGRES_CONNECTIONS: u32 = 12;
/// Longest time from the first signal to the end.
const LONGEST_STOP: Duration = Duration::from_secs(28);

/// Pause between two looks at the results of `millrace verify`.
const VERIFY_EVERY: Duration = Duration::from_secs(15);

/// Flags of `millrace serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    standby: StandbyArgs,
    #[command(flatten)]
    telemetry: TelemetryArgs,
    /// Where records are taken and queries answered
    #[arg(long, value_name = "ADDRESS", env = "MILLRACE_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Where /health, /ready, /metrics and /status are answered, without a key
    #[arg(long, value_name = "ADDRESS", env = "MILLRACE_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    health_listen: SocketAddr,
    #[command(flatten)]
    certificate: CertificateArgs,
    /// The first API key, an administrator's: mk_ and at least 29 letters, digits, - or _
    #[arg(long, value_name = "KEY", env = "MILLRACE_BOOTSTRAP_KEY", hide_env_values = true)]
    bootstrap_key: Option<Secret>,
    /// A file that holds the first API key; it is followed
    #[arg(long, value_name = "FILE", env = "MILLRACE_BOOTSTRAP_KEY_FILE", conflicts_with = "bootstrap_key")]
    bootstrap_key_file: Option<PathBuf>,
    #[command(flatten)]
    oidc: OidcArgs,
}

/// Settings of a server.
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
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let telemetry = telemetry::init("serve", &args.telemetry)?;
    let outcome = try_run(args, &telemetry).await;
    // Spans of the last requests, too, are sent.
    telemetry.shutdown().await;
    outcome
}

async fn try_run(args: Args, telemetry: &Telemetry) -> anyhow::Result<()> {
    let Args {
        place,
        standby,
        listen,
        health_listen,
        certificate,
        bootstrap_key,
        bootstrap_key_file,
        oidc,
        telemetry: _,
    } = args;
    let given =
        bootstrap_key.map(|Secret(key)| keyring::hash(key.trim()).context("MILLRACE_BOOTSTRAP_KEY")).transpose()?;
    let lifecycle = Lifecycle::new();
    let process = process_name("serve");
    let reporter = Reporter::new("serve", &process, &lifecycle.board);
    // Before anything else is there, so that a pod that waits can be asked what for.
    health::serve(health_listen, Health::new("serve", telemetry.metrics(), &lifecycle, &reporter), &lifecycle).await?;
    let starting = async {
        let setup = Setup::new(&place, &process, POSTGRES_CONNECTIONS, &lifecycle).await?;
        reporter.found(&setup);
        let bootstrap = match (given, bootstrap_key_file) {
            (Some(hash), _) => Bootstrap::Key(hash),
            (None, Some(file)) => {
                let manifest = Arc::clone(&setup.active_manifest.borrow().manifest);
                let named = manifest.spec.auth.as_ref().and_then(|auth| auth.bootstrap_key_secret_ref.as_ref());
                Bootstrap::File { name: secret::name(named, &file), file }
            }
            (None, None) => Bootstrap::None,
        };
        let keys = KeyRing::follow(&setup.store, bootstrap, &lifecycle).await?;
        let keys = keys.with_tokens(AccessTokens::follow(oidc, &setup.active_manifest, &lifecycle));
        let tls = certificate.follow(&setup.active_manifest, &lifecycle).await?;
        let standby = StandbyPlace { args: standby, tls: place.tls.clone() };
        serve(setup, listen, tls, keys, standby, &lifecycle).await.map(|_| ())
    };
    lifecycle.clone().run_from(starting, LONGEST_STOP).await
}

/// Starts to serve, by tasks of `lifecycle`; gives the address of the main port.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(setup: Setup, options: Options, lifecycle: &Lifecycle) -> anyhow::Result<SocketAddr> {
    let keys =
        if options.open { KeyRing::open() } else { KeyRing::follow(&setup.store, Bootstrap::None, lifecycle).await? };
    serve(setup, options.listen, None, keys, StandbyPlace::default(), lifecycle).await
}

async fn serve(
    setup: Setup,
    listen: SocketAddr,
    tls: Option<Tls>,
    keys: KeyRing,
    standby: StandbyPlace,
    lifecycle: &Lifecycle,
) -> anyhow::Result<SocketAddr> {
    let Setup { store, streams, active_manifest, process, name } = setup;
    let listener = listen::bind(listen).await?;
    let address = listener.local_addr()?;
    let acceptor = Acceptor::default();
    let producer = Producer::new(&streams, &process, active_manifest.borrow().manifest.spec.shards);
    status::watch_serve(&streams, &active_manifest, lifecycle);
    measure_verify(&store, lifecycle);
    let limiter = RateLimiter::default();
    acceptor.spawn(&store, &producer, &limiter, &process, lifecycle);
    let standby = Standby::follow(standby, &store, &active_manifest, &process, lifecycle);
    let app = App {
        store: store.clone(),
        standby,
        streams: streams.clone(),
        manifest: active_manifest,
        producer: producer.clone(),
        keys,
        limiter: limiter.clone(),
        process: Arc::clone(&process),
    };
    let (soft, https) = (lifecycle.soft.clone(), tls.is_some());
    let endpoint = crate::routes::routes(app, acceptor.clone(), lifecycle.heartbeats.clone(), soft.clone());
    lifecycle.spawn("serve.http", async move {
        tokio::select! {
            () = acceptor.open(&store, &producer, &limiter, &process) => {}
            () = soft.cancelled() => return Ok(()),
        }
        connections::run(listener, tls, endpoint, Bounds::default(), soft).await;
        acceptor.close(&store, &producer, &process).await;
        Ok(())
    });
    tracing::info!(event = "serve.http.listening", %address, https, pipeline = &*name, "listening for the API");
    Ok(address)
}

/// Exports what the last runs of `millrace verify` found: those processes end before anything could read their metrics.
fn measure_verify(store: &Store, lifecycle: &Lifecycle) {
    let (store, soft) = (store.clone(), lifecycle.soft.clone());
    lifecycle.spawn("serve.verify", async move {
        loop {
            // While Postgres is unavailable, the last known result stays.
            if let Ok(VerifyResult { last_success, differences, failed }) = store::within(store.verify_result()).await {
                if let Some(seconds) = last_success {
                    metrics::gauge!(VERIFY_LAST_SUCCESS).set(seconds as f64);
                }
                if let Some(differences) = differences {
                    metrics::gauge!(VERIFY_DIFFERENCES).set(differences as f64);
                }
                if let Some(failed) = failed {
                    metrics::gauge!(VERIFY_FAILED).set(f64::from(u8::from(failed)));
                }
            }
            if tokio::time::timeout(VERIFY_EVERY, soft.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
}
