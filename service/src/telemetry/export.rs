//! The export of traces by OTLP over HTTP.
//!
//! Must never hold up the process: spans wait in a bounded queue, and what does not fit or cannot be sent is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// The way of spans out of this process.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the export to `<endpoint>/v1/traces`. Inside the runtime.
    pub(super) fn start(endpoint: &str, role: &'static str) -> anyhow::Result<Self> {
        let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let shown = crate::url::hide_password(&endpoint);
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?)
            .with_endpoint(endpoint)
            .build()
            .with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT {shown}"))?;
        let exporter =
            OnRuntime { exporter: exporter.into(), runtime: Handle::current(), failing: AtomicBool::new(false) };
        let resource = Resource::builder()
            .with_service_name("millrace")
            .with_attribute(KeyValue::new("millrace.role", role))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// Turns this crate's spans into spans that are exported.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("millrace"))
            .with_filter(Targets::new().with_target("millrace", LevelFilter::INFO))
    }

    /// Sends what waits, for at most five seconds.
    pub(super) async fn shutdown(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(Duration::from_secs(5))).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(event = "telemetry.traces.not_flushed", %error, "the last traces cannot be exported");
        }
    }
}

/// Sends on the process's runtime: the queue's own thread has none, which the HTTP client needs.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
    failing: AtomicBool,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = Arc::clone(&self.exporter);
        let sent = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        let sent = sent.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        // Said at every change, not at every batch.
        match (&sent, self.failing.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(event = "telemetry.traces.not_exported", %error, "traces cannot be exported")
            }
            (Ok(()), true) => tracing::info!(event = "telemetry.traces.exported_again", "traces are exported again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Called once, before the first export shares it.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use poem::{EndpointExt as _, Route, Server, handler, listener::TcpAcceptor, post, web::Data};
    use tokio::sync::mpsc;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[handler]
    async fn collect(body: Vec<u8>, seen: Data<&mpsc::UnboundedSender<Vec<u8>>>) {
        seen.send(body).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_reach_a_collector_as_children_of_the_traceparent_that_came() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let (sender, mut seen) = mpsc::unbounded_channel();
        let app = Route::new().at("/v1/traces", post(collect)).data(sender);
        let server = tokio::spawn(Server::new_with_acceptor(TcpAcceptor::from_std(listener).unwrap()).run(app));
        let traces = Traces::start(&endpoint, "work").unwrap();
        let subscriber = tracing_subscriber::Registry::default().with(traces.layer());
        let incoming = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let carried = tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("accept.record.append");
            super::super::trace::continue_from(&span, Some(incoming));
            let _entered = span.enter();
            super::super::trace::carry(Some(incoming)).unwrap()
        });
        assert_eq!(carried[..35], incoming[..35], "the same trace");
        assert_ne!(carried[36..52], incoming[36..52], "a span of its own");
        traces.shutdown().await;
        let body: Vec<u8> = seen.recv().await.unwrap();
        for part in [
            b"accept.record.append".as_slice(),
            b"millrace.role",
            &hex::decode(&incoming[3..35]).unwrap(),
            &hex::decode(&incoming[36..52]).unwrap(),
            &hex::decode(&carried[36..52]).unwrap(),
        ] {
            assert!(body.windows(part.len()).any(|window| window == part), "{part:?}");
        }
        server.abort();
    }
}
