//! The `/status` of a pipeline's pods, requested at the pods' own addresses.
//!
//! The operator reads no Redis, Postgres or Secret: it has no other source. It must never take an old answer for a new
//! one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future;
use millrace_crds::status_api::ProcessStatus;

use crate::{backoff::doubled, clock::Clock};

/// Facts older than this count as unknown.
const LONGEST_AGE: Duration = Duration::from_secs(30);
/// The time between two requests to a pod that answers.
const SHORTEST_BETWEEN: Duration = Duration::from_millis(400);
/// The time that one request may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of an answer: 256 shards and 16 sinks fit several times.
const LONGEST_ANSWER: usize = 4 << 20;

/// A pod's last response.
#[derive(Debug, Clone)]
pub(crate) struct PodResponse {
    /// When it came.
    pub(crate) at: Instant,
    /// Its body.
    pub(crate) answer: ProcessStatus,
}

impl PodResponse {
    /// When the pod gathered shards, sinks and counts.
    #[must_use]
    pub(crate) fn gathered(&self) -> Instant {
        self.at.checked_sub(Duration::from_millis(self.answer.age_ms.unwrap_or(0))).unwrap_or(self.at)
    }

    /// Whether shards, sinks and counts are younger than [`LONGEST_AGE`].
    #[must_use]
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.gathered()) < LONGEST_AGE
    }
}

/// The next request to a pod.
#[derive(Debug, Clone, Copy)]
struct NextRequest {
    at: Instant,
    /// The number of requests in a row that the pod did not answer.
    unanswered: u32,
}

/// The time until the next request to a pod that left so many requests in a row unanswered.
fn pause(unanswered: u32) -> Duration {
    doubled(SHORTEST_BETWEEN, unanswered, LONGEST_AGE)
}

/// The last responses of a pipeline's pods, by the pod's name.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    requests: BTreeMap<String, NextRequest>,
    responses: BTreeMap<String, Arc<PodResponse>>,
}

impl Facts {
    /// Requests `/status` from the pods that are due, and drops pods that are not in `pods`, which has the address
    /// of each. A pod that does not answer is due less and less often: a pass waits for it, and other pipelines wait
    /// for the pass.
    pub(crate) async fn refresh(
        &mut self,
        http: &reqwest::Client,
        port: u16,
        pods: &BTreeMap<String, String>,
        clock: Clock,
    ) {
        self.requests.retain(|name, _| pods.contains_key(name));
        self.responses.retain(|name, _| pods.contains_key(name));
        let now = clock().instant;
        let due: Vec<_> =
            pods.iter().filter(|(name, _)| self.requests.get(*name).is_none_or(|request| now >= request.at)).collect();
        let answers = future::join_all(due.into_iter().map(async |(name, address)| {
            let answer = match tokio::time::timeout(TIMEOUT, request_status(http, address, port)).await {
                Ok(Ok(answer)) => Some(answer),
                Ok(Err(error)) => {
                    tracing::debug!(event = "status.pod.unreachable", pod = name, error = %error, "a pod did not answer /status");
                    None
                }
                Err(_) => None,
            };
            (name.clone(), answer)
        }))
        .await;
        for (name, answer) in answers {
            let at = clock().instant;
            let unanswered = match &answer {
                Some(_) => 0,
                None => self.requests.get(&name).map_or(0, |request| request.unanswered) + 1,
            };
            self.requests.insert(name.clone(), NextRequest { at: at + pause(unanswered), unanswered });
            if let Some(answer) = answer {
                self.responses.insert(name, Arc::new(PodResponse { at, answer }));
            }
        }
    }

    /// A pod's last response, if it is younger than [`LONGEST_AGE`].
    #[must_use]
    pub(crate) fn of(&self, pod: &str, now: Instant) -> Option<Arc<PodResponse>> {
        let is_recent = |response: &&Arc<PodResponse>| now.saturating_duration_since(response.at) < LONGEST_AGE;
        self.responses.get(pod).filter(is_recent).cloned()
    }
}

fn url(address: &str, port: u16) -> String {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("http://{host}:{port}/status")
}

async fn request_status(http: &reqwest::Client, address: &str, port: u16) -> anyhow::Result<ProcessStatus> {
    let mut response = http.get(url(address, port)).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= LONGEST_ANSWER, "the answer is too long");
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_do_not_answer_are_due_less_and_less_often() {
        assert_eq!([0, 1, 2].map(pause), [400, 800, 1_600].map(Duration::from_millis));
        assert_eq!(pause(u32::MAX), LONGEST_AGE);
    }

    #[test]
    fn the_url_of_a_pod_holds_an_ipv4_or_an_ipv6_address() {
        assert_eq!(url("10.0.0.7", 8081), "http://10.0.0.7:8081/status");
        assert_eq!(url("fd00::7", 8081), "http://[fd00::7]:8081/status");
    }
}
