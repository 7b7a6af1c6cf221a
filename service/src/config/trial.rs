//! Trials of changed certificates: a process turns to them once they have worked.
//!
//! It must never end what works: certificates that fail, or that cannot be tried now, leave the previous ones in use.

use std::time::Duration;

use millrace_crds::status_api::Problem;
use tokio::time::{Instant, timeout};

use crate::tls::Endpoint;

/// Longest wait for a trial.
const LONGEST: Duration = Duration::from_secs(3);
/// Time between two trials of the same certificates.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The trials of both servers.
#[derive(Default)]
pub(super) struct Trials {
    pub(super) redis: Trial,
    pub(super) postgres: Trial,
}

/// The last failed trial of one server.
#[derive(Default)]
pub(super) struct Trial(Option<Failed>);

struct Failed {
    endpoint: Endpoint,
    /// `None`: the cause was not TLS.
    problem: Option<Problem>,
    at: Instant,
}

impl Trial {
    /// Whether a process may turn to an endpoint: at once to another URL, and to changed files after a trial.
    ///
    /// # Errors
    /// The trial failed, now or a moment ago; with its problem if the cause was TLS.
    pub(super) async fn admits<T>(
        &mut self,
        endpoint: &Endpoint,
        changes_files: bool,
        attempt: impl FnOnce() -> T,
    ) -> Result<(), Option<Problem>>
    where
        T: Future<Output = Result<(), Option<Problem>>>,
    {
        if !changes_files {
            self.0 = None;
            return Ok(());
        }
        if let Some(failed) = &self.0
            && failed.endpoint == *endpoint
            && failed.at.elapsed() < AGAIN_AFTER
        {
            return Err(failed.problem.clone());
        }
        let outcome = timeout(LONGEST, attempt()).await.unwrap_or(Err(None));
        self.0 =
            outcome.clone().err().map(|problem| Failed { endpoint: endpoint.clone(), problem, at: Instant::now() });
        outcome
    }
}
