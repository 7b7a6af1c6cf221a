//! What a pipeline's status says of what was seen: pure.
//!
//! Ready is True of generation N only when every shard is worked by the spec of generation N and rollouts are complete; of
//! an older one as long as its pods continue well. Must never say True of what is not known.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::migration::Stand;
use crate::facts::{Problem, Publisher, Shard};

/// What was seen.
#[derive(Debug, Clone)]
pub(crate) struct View<'a> {
    /// Generation of the spec.
    pub(crate) generation: i64,
    /// The resource's uid.
    pub(crate) uid: &'a str,
    /// Number of shards.
    pub(crate) shards: u16,
    /// Where the migration stands.
    pub(crate) migration: &'a Stand,
    /// The image that the migration and the pods are to have.
    pub(crate) image: &'a str,
    /// Whose rollout of the default image is waited for.
    pub(crate) waits_for: Option<&'a str>,
    /// What is not as it should be about Deployments: complete when `None`.
    pub(crate) rollout: Option<&'a str>,
    /// Workers that are wanted.
    pub(crate) workers: i32,
    /// What the pods and the objects suffer from.
    pub(crate) problems: &'a [Problem],
    /// Shards and publishers as of now; `None` while they are not known.
    pub(crate) known: Option<(&'a [Shard], &'a [Publisher])>,
    /// How long it has not been known that all shards are worked, or since when the pipeline is looked at; zero when
    /// they are.
    pub(crate) lapse: Duration,
    /// How long the Deployments have been complete.
    pub(crate) rolled: Duration,
}

/// How long Ready stands while shards change hands: longer than a lease.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Reasons that no retry fixes: someone has to change something.
const STALLED: [&str; 16] = [
    "InvalidSpec",
    "NameClash",
    "SchemaTooNew",
    "OtherPipeline",
    "ManifestInvalid",
    "ManifestRefused",
    "SecretInvalid",
    "GatewayApiMissing",
    "Refused",
    "SecretNotFound",
    "ImagePullBackOff",
    "QuotaExceeded",
    "LimitRangeViolated",
    "PodSecurityViolated",
    "PolicyDenied",
    "WebhookDenied",
];

/// Most characters of a condition's message: an admission may answer with whole pages.
const LONGEST_MESSAGE: usize = 1_000;

/// The type of the condition that says whether the spec is active.
pub(super) const READY: &str = "Ready";

/// The condition of a type, when it has this status.
pub(super) fn stands<'a>(conditions: &'a [Condition], kind: &str, status: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == status)
}

/// Makes the conditions of a generation, given those that stood before: what did not change keeps its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maker<'a> {
    /// Those that stood.
    pub(super) before: &'a [Condition],
    /// The generation that they tell of.
    pub(super) generation: i64,
    /// The time of what changed.
    pub(super) now: Timestamp,
}

impl Maker<'_> {
    /// A condition.
    pub(super) fn make(&self, kind: &str, status: &str, reason: &str, message: impl Into<String>) -> Condition {
        let stood = stands(self.before, kind, status);
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
            message.truncate(end);
            message.push('…');
        }
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: stood.map_or(Time(self.now), |stood| stood.last_transition_time.clone()),
        }
    }

    /// What kstatus and what is built on it (Flux, Helm 4) read beside Stalled: Reconciling is True while the operator is on
    /// its way, and not while only somebody else can bring it on.
    pub(super) fn reconciling(&self, progressing: &Condition, stalled: &Condition) -> Condition {
        if progressing.status == "True" && stalled.status != "True" {
            self.make("Reconciling", "True", &progressing.reason, &progressing.message)
        } else if stalled.status == "True" {
            self.make("Reconciling", "False", "Stalled", "a change by hand is waited for")
        } else {
            self.make("Reconciling", "False", &progressing.reason, &progressing.message)
        }
    }

    /// Degraded and Stalled.
    pub(super) fn suffers(&self, trouble: Option<&Problem>) -> [Condition; 2] {
        let degraded = match trouble {
            Some(problem) => self.make("Degraded", "True", &problem.reason, &problem.message),
            None => self.make("Degraded", "False", "AsExpected", "nothing is known to be wrong"),
        };
        let stalled = match trouble.filter(|problem| STALLED.contains(&problem.reason.as_str())) {
            Some(problem) => self.make("Stalled", "True", &problem.reason, &problem.message),
            None => self.make("Stalled", "False", "AsExpected", "nothing waits for a change by hand"),
        };
        [degraded, stalled]
    }
}

impl View<'_> {
    /// The worst problem, sinks that halted among them.
    fn worst(&self) -> Option<Problem> {
        let halted =
            self.known.and_then(|(_, publishers)| publishers.iter().find(|publisher| publisher.state == "halted"));
        let waiting =
            self.known.and_then(|(_, publishers)| publishers.iter().find(|publisher| publisher.state != "halted"));
        let publisher = |reason: &str, publisher: &Publisher| {
            Problem::new(reason, format!("{}, shard {}: {}", publisher.sink, publisher.shard, publisher.detail))
        };
        self.problems.first().cloned().or_else(|| halted.map(|found| publisher("SinkHalted", found))).or_else(|| {
            waiting.map(|found| publisher(if found.state == "waiting" { "SinkWaiting" } else { "SinkFailing" }, found))
        })
    }

    /// Shards that are not worked by this generation; `None` while that is not known.
    fn behind(&self) -> Option<usize> {
        let (shards, _) = self.known?;
        let there = |shard: &&Shard| {
            shard.leased && shard.uid.as_deref() == Some(self.uid) && shard.generation == Some(self.generation)
        };
        Some(usize::from(self.shards).saturating_sub(shards.iter().filter(there).count()))
    }

    /// Shards that nobody works; `None` while that is not known.
    fn unworked(&self) -> Option<usize> {
        let (shards, _) = self.known?;
        Some(usize::from(self.shards).saturating_sub(shards.iter().filter(|shard| shard.leased).count()))
    }

    /// What is continuing; `None` when nothing is.
    fn progress(&self) -> Option<(&'static str, String)> {
        match self.migration {
            Stand::Done { .. } => {}
            Stand::Failed { problem, .. } => {
                return Some(("Migrating", format!("the last attempt failed, {}: another follows", problem.reason)));
            }
            _ => return Some(("Migrating", format!("a Job migrates the schema by {}", self.image))),
        }
        if let Some(other) = self.waits_for {
            return Some(("WaitingForRollout", format!("{other} takes the operator's new default image first")));
        }
        if let Some(rollout) = self.rollout {
            return Some(("RollingOut", rollout.to_owned()));
        }
        if self.workers == 0 {
            return None;
        }
        match self.behind() {
            None => Some(("RollingOut", "no pod has told yet what its shards stand at".to_owned())),
            Some(0) => None,
            Some(behind) => Some((
                "RollingOut",
                format!("{behind} of {} shards are not worked by generation {} yet", self.shards, self.generation),
            )),
        }
    }

    /// The conditions, given those that stood before: what did not change keeps its time.
    #[must_use]
    pub(crate) fn conditions(&self, before: &[Condition], now: Timestamp) -> Vec<Condition> {
        let worst = self.worst();
        let progress = self.progress();
        let maker = Maker { before, generation: self.generation, now };
        let migrates = || format!("a Job migrates the schema by {}", self.image);
        let (migrated, failure) = match self.migration {
            Stand::Done { .. } => (maker.make("Migrated", "True", "Migrated", format!("by {}", self.image)), None),
            Stand::Failed { problem, .. } | Stand::Running(Some(problem)) => {
                (maker.make("Migrated", "False", &problem.reason, &problem.message), Some(problem.clone()))
            }
            Stand::Running(None) | Stand::Create(_) => (maker.make("Migrated", "False", "Migrating", migrates()), None),
        };
        let trouble = worst.or(failure);
        let progressing = match &progress {
            Some((reason, message)) => maker.make("Progressing", "True", reason, message),
            None if self.workers == 0 => maker.make("Progressing", "False", "Stopped", "no workers are wanted"),
            None => {
                let message = format!("generation {} is in force", self.generation);
                maker.make("Progressing", "False", "Complete", message)
            }
        };
        let [degraded, stalled] = maker.suffers(trouble.as_ref());
        let ready = self.ready(&maker, progress.as_ref(), trouble.as_ref());
        let reconciling = maker.reconciling(&progressing, &stalled);
        vec![ready, migrated, progressing, reconciling, degraded, stalled]
    }

    fn ready(
        &self,
        maker: &Maker<'_>,
        progress: Option<&(&'static str, String)>,
        trouble: Option<&Problem>,
    ) -> Condition {
        let no = |reason: &str, message: String| maker.make(READY, "False", reason, message);
        if self.workers == 0 && self.rollout.is_none() {
            return no("Stopped", "no workers are wanted: records are taken and wait".to_owned());
        }
        let worked = format!("all {} shards are worked", self.shards);
        let Some((reason, message)) = progress else { return maker.make(READY, "True", "ManifestActive", worked) };
        // While the new generation comes the old one continues; shards change hands within a lease.
        let stood = stands(maker.before, READY, "True");
        if let Some(older) = stood.and_then(|condition| condition.observed_generation)
            && self.lapse < TIMEOUT
        {
            return Maker { generation: older, ..*maker }.make(READY, "True", "ManifestActive", worked);
        }
        match (trouble, self.unworked()) {
            (Some(problem), _) => no(&problem.reason, problem.message.clone()),
            // Pods that have only just begun need a while.
            (None, _) if self.rolled < TIMEOUT || *reason != "RollingOut" => no(reason, message.clone()),
            (None, Some(unworked)) if unworked > 0 => {
                no("ShardsWithoutOwner", format!("{unworked} of {} shards are not worked", self.shards))
            }
            (None, None) => maker.make(READY, "Unknown", "StatusUnknown", "no pod tells what its shards stand at"),
            (None, _) => no(reason, message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_pages_is_cut_between_characters() {
        let maker = Maker { before: &[], generation: 1, now: Timestamp::UNIX_EPOCH };
        let made = |length| maker.make("Degraded", "True", "WebhookDenied", "é".repeat(length)).message;
        assert_eq!(made(LONGEST_MESSAGE).chars().count(), LONGEST_MESSAGE);
        let cut = made(LONGEST_MESSAGE + 1);
        assert!(cut.ends_with("é…") && cut.chars().count() == LONGEST_MESSAGE + 1);
    }

    #[test]
    fn what_is_stalled_is_not_reconciling() {
        let maker = Maker { before: &[], generation: 1, now: Timestamp::UNIX_EPOCH };
        for (progressing, stalled, reconciling) in [
            ("True", "False", "True"),
            ("True", "True", "False"),
            ("False", "False", "False"),
            ("False", "True", "False"),
        ] {
            let [progressing, stalled] = [("Progressing", progressing), ("Stalled", stalled)]
                .map(|(kind, status)| maker.make(kind, status, "Reason", "message"));
            let made = maker.reconciling(&progressing, &stalled);
            assert_eq!(made.status, reconciling, "{} {}", progressing.status, stalled.status);
        }
    }
}
