//! The operator's own health and metrics, over HTTP.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use poem::{
    EndpointExt as _, IntoResponse as _, Response, Route, Server, get, handler, http::StatusCode,
    listener::TcpAcceptor, web::Data,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Reconciles, by result.
pub(crate) const RECONCILES: &str = "millrace_operator_reconciles_total";
/// How long reconciles take.
pub(crate) const DURATION: &str = "millrace_operator_reconcile_duration_seconds";
/// Writes to the API server, by kind.
pub(crate) const WRITES: &str = "millrace_operator_writes_total";
/// 1 while this process leads.
pub(crate) const LEADER: &str = "millrace_operator_leader";
/// Pipelines, by condition and its status.
const PIPELINES: &str = "millrace_operator_pipelines";
/// Each pipeline's backlog.
const BACKLOG: &str = "millrace_operator_pipeline_backlog_records";

/// The process's readiness and metrics.
#[derive(Clone)]
pub(crate) struct Health {
    handle: PrometheusHandle,
    ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Health {
    /// Installs the recorder of metrics; `ready` returns the cause while the process is not ready.
    ///
    /// # Errors
    /// When a recorder is installed already.
    pub(crate) fn new(ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> anyhow::Result<Self> {
        let buckets = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &buckets)?;
        let handle = builder.install_recorder()?;
        for (name, meaning) in [(RECONCILES, "Reconciles, by result"), (WRITES, "Writes to the API server, by kind")] {
            metrics::describe_counter!(name, meaning);
        }
        metrics::describe_histogram!(DURATION, metrics::Unit::Seconds, "How long reconciles take");
        for (name, meaning) in [
            (LEADER, "1 while this process leads"),
            (PIPELINES, "Pipelines, by condition and its status"),
            (BACKLOG, "Records of a pipeline that are queued or pending"),
        ] {
            metrics::describe_gauge!(name, meaning);
        }
        metrics::gauge!(LEADER).set(0.0);
        for result in ["done", "failed"] {
            metrics::counter!(RECONCILES, "result" => result).absolute(0);
        }
        Ok(Self { handle, ready: Arc::new(ready) })
    }

    /// Answers `/health`, `/ready` and `/metrics` until `stop` is cancelled.
    ///
    /// # Errors
    /// When the process cannot listen on the address.
    pub(crate) async fn serve(self, listen: SocketAddr, stop: CancellationToken) -> anyhow::Result<()> {
        let listener = bind(listen).await?;
        let routes = Route::new()
            .at("/health", get(answer_health))
            .at("/ready", get(answer_ready))
            .at("/metrics", get(answer_metrics))
            .data(self);
        let acceptor = TcpAcceptor::from_tokio(listener)?;
        let ended = stop.cancelled_owned();
        Ok(Server::new_with_acceptor(acceptor)
            .run_with_graceful_shutdown(routes, ended, Some(Duration::from_secs(1)))
            .await?)
    }
}

/// Listens on an address; on `0.0.0.0` instead of `[::]` where the kernel has no IPv6.
async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let mut bound = TcpListener::bind(listen).await;
    if let Err(error) = &bound
        && let Some(other) = without_ipv6(listen, error)
    {
        bound = TcpListener::bind(other).await;
    }
    bound.with_context(|| format!("cannot listen on {listen}"))
}

/// The address of IPv4 to listen on after `[::]` failed; `None` where the port is in use, for it is in use there, too.
fn without_ipv6(listen: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let all = listen.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse;
    all.then(|| (Ipv4Addr::UNSPECIFIED, listen.port()).into())
}

#[handler]
fn answer_health() -> &'static str {
    "alive\n"
}

#[handler]
fn answer_ready(Data(health): Data<&Health>) -> Response {
    match (health.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[handler]
fn answer_metrics(Data(health): Data<&Health>) -> Response {
    health.handle.run_upkeep();
    Response::builder().content_type("text/plain; version=0.0.4").body(health.handle.render())
}

/// Counts pipelines by their conditions every 10 s, without end.
pub(crate) async fn count(context: Arc<Context>) {
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let mut measured: BTreeSet<(String, String)> = BTreeSet::new();
    loop {
        let mut left = std::mem::take(&mut measured);
        let mut counts: BTreeMap<(String, String), u64> = known.iter().map(|labels| (labels.clone(), 0)).collect();
        for object in context.caches.iter().flat_map(|cache| cache.pipelines.state()) {
            let Ok(resource) = &object.0 else { continue };
            let status = resource.status.clone().unwrap_or_default();
            for condition in &status.conditions {
                *counts.entry((condition.type_.clone(), condition.status.clone())).or_default() += 1;
            }
            if let (Some(name), Some(namespace), Some(backlog)) =
                (&resource.metadata.name, &resource.metadata.namespace, status.backlog)
            {
                metrics::gauge!(BACKLOG, "namespace" => namespace.clone(), "pipeline" => name.clone())
                    .set(backlog as f64);
                left.remove(&(namespace.clone(), name.clone()));
                measured.insert((namespace.clone(), name.clone()));
            }
        }
        // A gauge cannot be removed, and must not show the backlog of a deleted pipeline for ever.
        for (namespace, name) in left {
            metrics::gauge!(BACKLOG, "namespace" => namespace, "pipeline" => name).set(0.0);
        }
        for ((condition, status), count) in &counts {
            metrics::gauge!(PIPELINES, "condition" => condition.clone(), "status" => status.clone()).set(*count as f64);
        }
        known = counts.into_keys().collect();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_on_all_addresses_answers_ipv4_and_ipv6() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        // A machine without IPv6 has the fallback only.
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let all = "[::]:8080".parse().unwrap();
        // EAFNOSUPPORT of Linux.
        let missing = io::Error::from_raw_os_error(97);
        assert_eq!(without_ipv6(all, &missing), Some("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(without_ipv6("[::1]:8080".parse().unwrap(), &missing), None, "it was asked for by name");
        assert_eq!(without_ipv6(all, &io::ErrorKind::AddrInUse.into()), None);
    }
}
