//! Logs, metrics and traces of this process.
//!
//! Must never show a body, a key or a password.

mod export;
pub mod limits;
mod logs;
pub mod metrics;
pub mod trace;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub use logs::LogFormat;
pub use metrics::Metrics;

/// The default filter of log lines.
const DEFAULT_FILTER: &str = "info,sqlx=warn,sqlx_core::pool=off,hyper=warn,reqwest=warn,poem=warn";

/// Settings of logs, traces and metrics. Each is a flag or a variable.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TelemetryArgs {
    /// Form of log lines; human on a terminal and json elsewhere unless given
    #[arg(long, value_enum, value_name = "FORM", env = "MILLRACE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Which log lines are shown, such as info,millrace::worker=debug
    #[arg(long = "log", value_name = "FILTER", env = "MILLRACE_LOG")]
    pub log_filter: Option<String>,
    /// Where traces are sent by OTLP over HTTP, such as http://collector:4318; none are sent unless it is given
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

impl TelemetryArgs {
    /// Each setting's name, value, and where it came from.
    pub(crate) fn settings(&self) -> [(&'static str, String, String); 3] {
        let setting = |name, given: Option<String>, variable: &str, default: &str| {
            let from = match (&given, std::env::var_os(variable)) {
                (None, _) => "default",
                (Some(_), Some(_)) => variable,
                (Some(_), None) => "flag",
            };
            let from = from.to_owned();
            (name, given.unwrap_or_else(|| default.to_owned()), from)
        };
        let format = self.log_format.map(|format| format.to_string());
        let endpoint = self.otlp_endpoint.as_deref().map(crate::url::hide_password);
        [
            setting("log-format", format, "MILLRACE_LOG_FORMAT", "human on a terminal, else json"),
            setting("log", self.log_filter.clone(), "MILLRACE_LOG", DEFAULT_FILTER),
            setting("otlp-endpoint", endpoint, "OTEL_EXPORTER_OTLP_ENDPOINT", "none"),
        ]
    }
}

/// Exporters that live as long as the process; to be ended before it ends.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    upkeep: tokio::task::JoinHandle<()>,
    limits: tokio::task::JoinHandle<()>,
    traces: Option<export::Traces>,
}

/// Starts logs, metrics and, where an endpoint is given, the export of traces. Once in a process, inside the runtime.
///
/// # Errors
/// A filter or an endpoint that is none, or a second call.
pub fn init(role: &'static str, args: &TelemetryArgs) -> anyhow::Result<Telemetry> {
    let filter = args.log_filter.as_deref().unwrap_or(DEFAULT_FILTER);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).with_context(|| format!("MILLRACE_LOG {filter:?}"))?;
    let endpoint = args.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
    let traces = endpoint.map(|endpoint| export::Traces::start(endpoint, role)).transpose()?;
    // Spans are for traces: without an exporter they cost nothing.
    let events = filter_fn(|metadata| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
    Registry::default()
        .with(logs::layer(args.log_format).with_filter(filter.and(events)))
        .with(traces.as_ref().map(export::Traces::layer))
        .try_init()
        .context("logs were started already")?;
    let metrics = Metrics::install()?;
    let upkeep = tokio::spawn(metrics.clone().upkeep());
    let limits = tokio::spawn(report_limits());
    Ok(Telemetry { metrics, upkeep, limits, traces })
}

/// Reports every second which lines were left out: events may have stopped.
async fn report_limits() {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        limits::report(Some(Instant::now()));
    }
}

impl Telemetry {
    /// A handle from which the metrics can be read.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends the traces that were not sent yet, for at most five seconds, and ends.
    pub async fn shutdown(self) {
        self.upkeep.abort();
        self.limits.abort();
        limits::report(None);
        if let Some(traces) = self.traces {
            traces.shutdown().await;
        }
    }
}
