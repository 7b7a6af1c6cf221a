//! What the pods say of a pipeline: their `/status`, asked at their own addresses.
//!
//! The operator reads no Redis, Postgres or Secret: this is all it knows. Must never take an old answer for a new one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future;
use serde::Deserialize;

use crate::backoff::doubled;

/// Facts older than this are unknown.
pub(crate) const LONGEST_AGE: Duration = Duration::from_secs(30);
/// A pod that answered is left alone for this time.
const SHORTEST_BETWEEN: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer that is read: 256 shards and 16 sinks fit several times.
const LONGEST_ANSWER: usize = 4 << 20;

/// A process's answer; what is absent is not known.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Answer {
    /// The pipeline's id.
    pub(crate) pipeline_id: Option<String>,
    /// The manifest's file as the process last read it.
    pub(crate) manifest: Option<Origin>,
    /// What is wrong now, worst first.
    pub(crate) problems: Vec<Problem>,
    /// All shards of the pipeline.
    pub(crate) shards: Option<Vec<Shard>>,
    /// Publishers of the whole pipeline that do not run well.
    pub(crate) sinks: Option<Vec<Publisher>>,
    /// Counts of the whole pipeline.
    pub(crate) counts: Option<Counts>,
    /// How old shards, sinks and counts are; absent before they were gathered first.
    pub(crate) age_ms: Option<u64>,
}

/// Where a manifest comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Origin {
    /// The resource's uid.
    pub(crate) uid: Option<String>,
    /// The resource's generation.
    pub(crate) generation: Option<i64>,
}

/// Something that is wrong, with a reason that is a word and a message for a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Problem {
    /// A stable word.
    pub(crate) reason: String,
    /// What to look at.
    pub(crate) message: String,
}

impl Problem {
    /// A problem.
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// A shard's state in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Shard {
    /// Whether a worker holds it now.
    pub(crate) leased: bool,
    /// The uid of the manifest that it is at.
    pub(crate) uid: Option<String>,
    /// The generation of the manifest that it is at.
    pub(crate) generation: Option<i64>,
}

/// A sink's publisher that does not run well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Publisher {
    /// The sink.
    pub(crate) sink: String,
    /// The shard.
    pub(crate) shard: u16,
    /// halted, waiting or failing.
    pub(crate) state: String,
    /// Why.
    pub(crate) detail: String,
}

/// Counts of the whole pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    /// Queued and pending.
    pub(crate) backlog: i64,
    /// Highest over the sinks of what is not published yet.
    pub(crate) unpublished: i64,
    /// Records processed.
    pub(crate) processed: i64,
    /// Alerts raised.
    pub(crate) alerts: i64,
    /// Dead letters that are open.
    pub(crate) dead_letters: i64,
}

/// A pod's last answer.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// When it answered.
    pub(crate) at: Instant,
    /// What.
    pub(crate) answer: Answer,
}

impl Heard {
    /// When shards, sinks and counts were gathered.
    #[must_use]
    pub(crate) fn gathered(&self) -> Instant {
        self.at.checked_sub(Duration::from_millis(self.answer.age_ms.unwrap_or(0))).unwrap_or(self.at)
    }

    /// Whether it tells of now.
    #[must_use]
    pub(crate) fn fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.gathered()) < LONGEST_AGE
    }
}

/// When a pod may be asked again.
#[derive(Debug, Clone, Copy)]
struct Asked {
    next: Instant,
    /// How often in a row it did not answer.
    silent: u32,
}

/// How long a pod is left alone that did not answer so often in a row.
fn pause(silent: u32) -> Duration {
    doubled(SHORTEST_BETWEEN, silent, LONGEST_AGE)
}

/// The last answers of a pipeline's pods, by the pod's name.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    asked: BTreeMap<String, Asked>,
    response: BTreeMap<String, Heard>,
}

impl Facts {
    /// Asks the pods that are due; loses pods that are gone. `pods` are names and addresses. One that does not answer is
    /// asked less and less often: a pass waits for it, and other pipelines wait for the pass.
    pub(crate) async fn ask(&mut self, http: &reqwest::Client, port: u16, pods: &[(String, String)]) {
        let stays = |name: &String| pods.iter().any(|(pod, _)| pod == name);
        self.asked.retain(|name, _| stays(name));
        self.response.retain(|name, _| stays(name));
        let now = Instant::now();
        let due: Vec<_> =
            pods.iter().filter(|(name, _)| self.asked.get(name).is_none_or(|asked| now >= asked.next)).collect();
        let answers = future::join_all(due.into_iter().map(async |(name, address)| {
            let answer = match tokio::time::timeout(TIMEOUT, ask(http, address, port)).await {
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
            let silent = match &answer {
                Some(_) => 0,
                None => self.asked.get(&name).map_or(0, |asked| asked.silent) + 1,
            };
            self.asked.insert(name.clone(), Asked { next: at + pause(silent), silent });
            if let Some(answer) = answer {
                self.response.insert(name, Heard { at, answer });
            }
        }
    }

    /// What a pod last said, unless that is too long ago.
    #[must_use]
    pub(crate) fn of(&self, pod: &str) -> Option<&Heard> {
        self.response.get(pod).filter(|response| Instant::now().saturating_duration_since(response.at) < LONGEST_AGE)
    }

    /// The newest answer that tells of the whole pipeline, unless that is too long ago.
    #[must_use]
    pub(crate) fn newest(&self) -> Option<&Heard> {
        let now = Instant::now();
        self.response
            .values()
            .filter(|response| {
                response.answer.counts.is_some() && response.answer.shards.is_some() && response.fresh(now)
            })
            .max_by_key(|response| response.gathered())
    }
}

fn url(address: &str, port: u16) -> String {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("http://{host}:{port}/status")
}

async fn ask(http: &reqwest::Client, address: &str, port: u16) -> anyhow::Result<Answer> {
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
    fn silent_pods_are_asked_less_and_less_often() {
        assert_eq!([0, 1, 2].map(pause), [400, 800, 1_600].map(Duration::from_millis));
        assert_eq!(pause(u32::MAX), LONGEST_AGE);
    }

    #[test]
    fn pods_are_asked_by_ipv6_as_by_ipv4() {
        assert_eq!(url("10.0.0.7", 8081), "http://10.0.0.7:8081/status");
        assert_eq!(url("fd00::7", 8081), "http://[fd00::7]:8081/status");
    }

    #[test]
    fn what_is_not_known_is_null_or_absent() {
        let waiting = r#"{"ageMs": null, "counts": null, "manifest": {"generation": 1, "uid": "u"}, "pipelineId": null,
            "problems": [{"message": "payments-redis, key url", "reason": "SecretNotFound"}], "refusal": null, "shards": null,
            "sinks": null, "software": "0.1.0", "owned": [], "somethingNew": {}}"#;
        let answer: Answer = serde_json::from_str(waiting).unwrap();
        assert_eq!(answer.problems[0].reason, "SecretNotFound");
        assert_eq!((answer.counts, answer.shards, answer.age_ms), (None, None, None));
        assert_eq!(serde_json::from_str::<Answer>("{}").unwrap(), Answer::default());
    }
}
