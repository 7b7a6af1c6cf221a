//! `/health` and `/ready` on the main port, for load balancers that know no other.

use poem::web::Data;
use poem_openapi::{ApiResponse, Object, OpenApi, Tags, payload::Json};

use super::problem::Failure;
use crate::lifecycle::Vitals;

#[derive(Tags)]
enum Tag {
    /// Whether this process is well.
    Health,
}

/// The probes' paths.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbesApi;

/// That this process is well.
#[derive(Debug, Object)]
struct Well {
    /// `alive` or `ready`.
    status: String,
}

/// The answer to a probe.
#[derive(Debug, ApiResponse)]
enum Probe {
    /// It is well.
    #[oai(status = 200)]
    Well(Json<Well>),
}

fn well(status: &str) -> Probe {
    Probe::Well(Json(Well { status: status.to_owned() }))
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
    /// It stays ready while Redis or Postgres is away, and answers 503 itself then.
    #[oai(path = "/ready", method = "get", operation_id = "ready")]
    async fn ready(&self, vitals: Data<&Vitals>) -> Result<Probe, Failure> {
        let still = vitals.still();
        if still.is_empty() {
            return Ok(well("ready"));
        }
        Err(Failure::new(503, "not_ready", format!("these loops stand still: {}", still.join(", "))))
    }
}
