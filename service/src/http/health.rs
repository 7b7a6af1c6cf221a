//! The health port of each role: alive, ready, metrics, status. Keyless, so it must never show a record or a secret.

use std::{fmt, net::SocketAddr, time::Duration};

use millrace_crds::status_api::ProcessStatus;
use poem::{Endpoint, EndpointExt as _, IntoResponse as _, Response, Route, get, handler, http::StatusCode, web::Data};
use serde_json::{Value, json};

use super::{
    connections::{self, Bounds},
    head,
};
use crate::{
    lifecycle::{Heartbeats, Lifecycle},
    status::Reporter,
    telemetry::Metrics,
};

/// State behind the paths of the health port.
#[derive(Clone)]
pub struct Health {
    role: &'static str,
    heartbeats: Heartbeats,
    metrics: Metrics,
    reporter: Reporter,
}

impl Health {
    /// The health of a process of a role: `serve`, `work` or `dev`.
    #[must_use]
    pub fn new(role: &'static str, metrics: Metrics, lifecycle: &Lifecycle, reporter: &Reporter) -> Self {
        Self { role, heartbeats: lifecycle.heartbeats.clone(), metrics, reporter: reporter.clone() }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Serves the health port until the process is told to stop. Gives the address, for a port of 0.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(listen: SocketAddr, health: Health, lifecycle: &Lifecycle) -> anyhow::Result<SocketAddr> {
    let listener = crate::listen::bind(listen).await?;
    let address = listener.local_addr()?;
    tracing::info!(event = "http.health.listening", %address, "listening for health and metrics");
    let soft = lifecycle.soft.clone();
    let bounds = Bounds { most: 100, last: Duration::from_secs(2), ..Bounds::default() };
    lifecycle.spawn("health", async move {
        connections::run(listener, None, routes(health).map_to_response(), bounds, soft).await;
        Ok(())
    });
    Ok(address)
}

/// The paths of the health port.
pub fn routes(health: Health) -> impl Endpoint {
    Route::new()
        .at("/health", get(tell_alive))
        .at("/ready", get(tell_ready))
        .at("/metrics", get(tell_metrics))
        .at("/status", get(tell_status))
        .data(health)
        .before(async |request| Ok(head::as_get(request)))
}

/// The answer of `/health`: the process lives.
#[must_use]
pub fn alive_answer() -> Response {
    answer(StatusCode::OK, &json!({"alive": true}))
}

/// The answer of `/ready`: 200, or 503 with the loops that are stalled.
#[must_use]
pub fn ready_answer(heartbeats: &Heartbeats) -> Response {
    let still = heartbeats.stalled();
    let status = if still.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, &json!({"ready": still.is_empty(), "stalledTasks": still}))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    body.to_string().with_content_type("application/json").with_status(status).into_response()
}

#[handler]
fn tell_alive() -> Response {
    alive_answer()
}

#[handler]
fn tell_ready(health: Data<&Health>) -> Response {
    ready_answer(&health.heartbeats)
}

#[handler]
async fn tell_metrics(health: Data<&Health>) -> Response {
    health.reporter.measure().await;
    health.metrics.render().with_content_type("text/plain; version=0.0.4; charset=utf-8").into_response()
}

#[handler]
async fn tell_status(health: Data<&Health>) -> Response {
    let stalled_tasks = health.heartbeats.stalled();
    let status = ProcessStatus { stalled_tasks, ..health.reporter.answer().await };
    answer(StatusCode::OK, &json!(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_health_port_names_stalled_loops_and_stops_with_the_process() {
        let lifecycle = Lifecycle::new();
        let heartbeat = lifecycle.heartbeats.register("shard 3", Duration::from_millis(300));
        let (recorder, metrics) = Metrics::local();
        metrics::with_local_recorder(&recorder, || metrics::counter!("millrace_processed_total").increment(7));
        let reporter = Reporter::new("work", &"work-1".into(), &lifecycle.board);
        let health = Health::new("work", metrics, &lifecycle, &reporter);
        let address = serve(([127, 0, 0, 1], 0).into(), health, &lifecycle).await.unwrap();
        let get = async |path: &str| {
            let answer = reqwest::get(format!("http://{address}{path}")).await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(get("/health").await.0, 200);
        heartbeat.record();
        assert_eq!(get("/ready").await.0, 200);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(get("/ready").await, (503, r#"{"ready":false,"stalledTasks":["shard 3"]}"#.to_owned()));
        assert_eq!(get("/health").await.0, 200, "alive while it is stalled");
        let status: Value = serde_json::from_str(&get("/status").await.1).unwrap();
        assert_eq!((&status["role"], &status["process"]), (&"work".into(), &"work-1".into()));
        assert_eq!((&status["stalledTasks"], &status["shards"]), (&json!(["shard 3"]), &Value::Null));
        assert!(get("/metrics").await.1.contains("millrace_processed_total 7"));
        lifecycle.soft.cancel();
        lifecycle.run(Duration::from_secs(5)).await.unwrap();
        assert!(reqwest::get(format!("http://{address}/health")).await.is_err());
    }
}
