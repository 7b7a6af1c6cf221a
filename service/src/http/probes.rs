//! `/health` and `/ready` on the main port, for load balancers that know no other.

use poem::web::Data;
use poem_openapi::{ApiResponse, Object, OpenApi, Tags, payload::Json};

use super::problem::Failure;
use crate::lifecycle::Heartbeats;

#[derive(Tags)]
enum Tag {
    /// Whether this process is well.
    Health,
}

/// The probes' paths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbesApi;

/// That this process is well.
#[derive(Debug, Object)]
struct HealthStatus {
    /// `alive` or `ready`.
    status: String,
}

/// The answer to a probe.
#[derive(Debug, ApiResponse)]
enum Probe {
    /// It is well.
    #[oai(status = 200)]
    HealthStatus(Json<HealthStatus>),
}

fn well(status: &str) -> Probe {
    Probe::HealthStatus(Json(HealthStatus { status: status.to_owned() }))
}

#[OpenApi(tag = "Tag::Health")]
impl ProbesApi {
    /// Whether the process is alive
    #[oai(path = "/health", method = "get", operation_id = "health")]
    async fn health(&self) -> Result<Probe, Failure> {
        Ok(well("alive"))
    }

    /// Whether the process's loops move
    ///
    /// It stays ready while Redis or Postgres is unavailable, and answers 503 itself then.
    #[oai(path = "/ready", method = "get", operation_id = "ready")]
    async fn ready(&self, heartbeats: Data<&Heartbeats>) -> Result<Probe, Failure> {
        let stalled = heartbeats.stalled();
        if stalled.is_empty() {
            return Ok(well("ready"));
        }
        Err(Failure::new(503, "not_ready", format!("these loops are stalled: {}", stalled.join(", "))))
    }
}
