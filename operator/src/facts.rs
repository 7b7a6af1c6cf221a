//! The `/status` of a pipeline's pods, requested at the pods' own addresses.
//!
//! The operator reads no Redis, Postgres or Secret: it has no other source. It must never take an old answer for a new
//! one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future;
use serde::Deserialize;

use crate::backoff::doubled;

/// Facts older than this count as unknown.
pub(crate) const LONGEST_AGE: Duration = Duration::from_secs(30);
/// The time between two requests to a pod that answers.
const SHORTEST_BETWEEN: Duration = Duration::from_millis(400);
/// The time that one request may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of an answer: 256 shards and 16 sinks fit several times.
const LONGEST_ANSWER: usize = 4 << 20;

/// The body of a process's `/status`; an absent field is unknown.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Answer {
    /// The pipeline's id.
    pub(crate) pipeline_id: Option<String>,
    /// The manifest's file as the process last read it.
    pub(crate) manifest: Option<Origin>,
    /// The current problems, worst first.
    pub(crate) problems: Vec<Problem>,
    /// All shards of the pipeline.
    pub(crate) shards: Option<Vec<Shard>>,
    /// Publishers of the whole pipeline that are halted, waiting or failing.
    pub(crate) sinks: Option<Vec<Publisher>>,
    /// Counts of the whole pipeline.
    pub(crate) counts: Option<Counts>,
    /// The age of shards, sinks and counts in milliseconds; absent until they are gathered first.
    pub(crate) age_ms: Option<u64>,
}

/// The version of the resource that a manifest was made from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Origin {
    /// The resource's uid.
    pub(crate) uid: Option<String>,
    /// The resource's generation.
    pub(crate) generation: Option<i64>,
}

/// A problem: a reason for programs, and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Problem {
    /// A stable word in CamelCase.
    pub(crate) reason: String,
    /// The place to look at.
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// A shard's state in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Shard {
    /// Whether a worker owns it now.
    pub(crate) leased: bool,
    /// The uid of the manifest that it runs.
    pub(crate) uid: Option<String>,
    /// The generation of the manifest that it runs.
    pub(crate) generation: Option<i64>,
}

/// A publisher that is halted, waiting or failing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Publisher {
    /// The sink.
    pub(crate) sink: String,
    /// The shard.
    pub(crate) shard: u16,
    /// `halted`, `waiting` or `failing`.
    pub(crate) state: String,
    /// The cause.
    pub(crate) detail: String,
}

/// Counts of the whole pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    /// Records that are queued or pending.
    pub(crate) backlog: i64,
    /// Outcomes that are not published yet, of the sink that has most of them.
    pub(crate) unpublished: i64,
    /// Records processed.
    pub(crate) processed: i64,
    /// Alerts raised.
    pub(crate) alerts: i64,
    /// Dead letters that are open.
    pub(crate) dead_letters: i64,
}

/// A pod's last response.
#[derive(Debug, Clone)]
pub(crate) struct PodResponse {
    /// When it came.
    pub(crate) at: Instant,
    /// Its body.
    pub(crate) answer: Answer,
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
    responses: BTreeMap<String, PodResponse>,
}

impl Facts {
    /// Requests `/status` from the pods that are due, and drops pods that are not in `pods`, which are names and
    /// addresses. A pod that does not answer is due less and less often: a pass waits for it, and other pipelines wait
    /// for the pass.
    pub(crate) async fn refresh(&mut self, http: &reqwest::Client, port: u16, pods: &[(String, String)]) {
        let exists = |name: &String| pods.iter().any(|(pod, _)| pod == name);
        self.requests.retain(|name, _| exists(name));
        self.responses.retain(|name, _| exists(name));
        let now = Instant::now();
        let due: Vec<_> =
            pods.iter().filter(|(name, _)| self.requests.get(name).is_none_or(|request| now >= request.at)).collect();
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
            let at = Instant::now();
            let unanswered = match &answer {
                Some(_) => 0,
                None => self.requests.get(&name).map_or(0, |request| request.unanswered) + 1,
            };
            self.requests.insert(name.clone(), NextRequest { at: at + pause(unanswered), unanswered });
            if let Some(answer) = answer {
                self.responses.insert(name, PodResponse { at, answer });
            }
        }
    }

    /// A pod's last response, if it is younger than [`LONGEST_AGE`].
    #[must_use]
    pub(crate) fn of(&self, pod: &str) -> Option<&PodResponse> {
        self.responses.get(pod).filter(|response| Instant::now().saturating_duration_since(response.at) < LONGEST_AGE)
    }

    /// The response with the newest shards and counts of the whole pipeline, if they are fresh.
    #[must_use]
    pub(crate) fn newest(&self) -> Option<&PodResponse> {
        let now = Instant::now();
        self.responses
            .values()
            .filter(|response| {
                response.answer.counts.is_some() && response.answer.shards.is_some() && response.is_fresh(now)
            })
            .max_by_key(|response| response.gathered())
    }
}

fn url(address: &str, port: u16) -> String {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("http://{host}:{port}/status")
}

async fn request_status(http: &reqwest::Client, address: &str, port: u16) -> anyhow::Result<Answer> {
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

    #[test]
    fn an_unknown_field_of_an_answer_is_null_or_absent() {
        let waiting = r#"{"ageMs": null, "counts": null, "manifest": {"generation": 1, "uid": "u"}, "pipelineId": null,
            "problems": [{"message": "payments-redis, key url", "reason": "SecretNotFound"}], "refusal": null, "shards": null,
            "sinks": null, "software": "0.1.0", "owned": [], "somethingNew": {}}"#;
        let answer: Answer = serde_json::from_str(waiting).unwrap();
        assert_eq!(answer.problems[0].reason, "SecretNotFound");
        assert_eq!((answer.counts, answer.shards, answer.age_ms), (None, None, None));
        assert_eq!(serde_json::from_str::<Answer>("{}").unwrap(), Answer::default());
    }
}
