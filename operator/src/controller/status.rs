//! The conditions of a pipeline's status: pure.
//!
//! Ready is True of generation N only when every shard has an owner that runs generation N and rollouts are complete;
//! of an older generation while its pods continue. An unknown state must never be True.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::migration::MigrationState;
use crate::facts::{Problem, Publisher, Shard};

/// The observed state of a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct View<'a> {
    /// Generation of the spec.
    pub(crate) generation: i64,
    /// The resource's uid.
    pub(crate) uid: &'a str,
    /// Number of shards.
    pub(crate) shards: u16,
    /// The state of the migration.
    pub(crate) migration: &'a MigrationState,
    /// The wanted image of the migration and the pods.
    pub(crate) image: &'a str,
    /// The pipeline that takes the default image first.
    pub(crate) waits_for: Option<&'a str>,
    /// Why the Deployments are not complete; `None` when they are.
    pub(crate) rollout: Option<&'a str>,
    /// The wanted number of workers.
    pub(crate) workers: i32,
    /// Problems of the pods and the objects, worst first.
    pub(crate) problems: &'a [Problem],
    /// Current shards and publishers; `None` while they are unknown.
    pub(crate) known: Option<(&'a [Shard], &'a [Publisher])>,
    /// The time since all shards were last known to have an owner, or since the operator first observed the pipeline.
    pub(crate) unowned_for: Duration,
    /// The time since the Deployments were last incomplete.
    pub(crate) complete_for: Duration,
}

/// How long Ready stays True while shards change owners: longer than a lease.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Reasons that no retry removes: a change by hand is needed.
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

/// Most characters of a condition's message: an admission may answer with several pages.
const LONGEST_MESSAGE: usize = 1_000;

/// The type of the condition for whether the spec is active.
pub(super) const READY: &str = "Ready";

/// The condition of a type, if it has this status.
pub(super) fn find_condition<'a>(conditions: &'a [Condition], kind: &str, status: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == status)
}

/// Makes the conditions of a generation. A condition whose status did not change keeps its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maker<'a> {
    /// The previous conditions.
    pub(super) before: &'a [Condition],
    /// The generation that the conditions describe.
    pub(super) generation: i64,
    /// The time of conditions that changed.
    pub(super) now: Timestamp,
}

impl Maker<'_> {
    /// A condition.
    pub(super) fn make(&self, kind: &str, status: &str, reason: &str, message: impl Into<String>) -> Condition {
        let unchanged = find_condition(self.before, kind, status);
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
            last_transition_time: unchanged.map_or(Time(self.now), |before| before.last_transition_time.clone()),
        }
    }

    /// Reconciling, which kstatus and its users (Flux, Helm 4) read beside Stalled: True while the operator progresses,
    /// False while only a change by hand helps.
    pub(super) fn reconciling(&self, progressing: &Condition, stalled: &Condition) -> Condition {
        if progressing.status == "True" && stalled.status != "True" {
            self.make("Reconciling", "True", &progressing.reason, &progressing.message)
        } else if stalled.status == "True" {
            self.make("Reconciling", "False", "Stalled", "the operator waits for a change by hand")
        } else {
            self.make("Reconciling", "False", &progressing.reason, &progressing.message)
        }
    }

    /// Degraded and Stalled.
    pub(super) fn degraded_and_stalled(&self, problem: Option<&Problem>) -> [Condition; 2] {
        let degraded = match problem {
            Some(problem) => self.make("Degraded", "True", &problem.reason, &problem.message),
            None => self.make("Degraded", "False", "AsExpected", "nothing is known to be wrong"),
        };
        let stalled = match problem.filter(|problem| STALLED.contains(&problem.reason.as_str())) {
            Some(problem) => self.make("Stalled", "True", &problem.reason, &problem.message),
            None => self.make("Stalled", "False", "AsExpected", "nothing waits for a change by hand"),
        };
        [degraded, stalled]
    }
}

impl View<'_> {
    /// The worst problem, including publishers that do not publish.
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

    /// The number of shards that do not run this generation; `None` while it is unknown.
    fn behind(&self) -> Option<usize> {
        let (shards, _) = self.known?;
        let is_current = |shard: &&Shard| {
            shard.leased && shard.uid.as_deref() == Some(self.uid) && shard.generation == Some(self.generation)
        };
        Some(usize::from(self.shards).saturating_sub(shards.iter().filter(is_current).count()))
    }

    /// The number of shards without an owner; `None` while it is unknown.
    fn without_owner(&self) -> Option<usize> {
        let (shards, _) = self.known?;
        Some(usize::from(self.shards).saturating_sub(shards.iter().filter(|shard| shard.leased).count()))
    }

    /// Reason and message of the step that is under way; `None` when none is.
    fn progress(&self) -> Option<(&'static str, String)> {
        match self.migration {
            MigrationState::Done { .. } => {}
            MigrationState::Failed { problem, .. } => {
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
            None => Some(("RollingOut", "no pod has reported yet which generation its shards run".to_owned())),
            Some(0) => None,
            Some(behind) => Some((
                "RollingOut",
                format!("{behind} of {} shards do not run generation {} yet", self.shards, self.generation),
            )),
        }
    }

    /// All conditions, given the previous ones: a condition whose status did not change keeps its time.
    #[must_use]
    pub(crate) fn conditions(&self, before: &[Condition], now: Timestamp) -> Vec<Condition> {
        let worst = self.worst();
        let progress = self.progress();
        let maker = Maker { before, generation: self.generation, now };
        let migrates = || format!("a Job migrates the schema by {}", self.image);
        let (migrated, failure) = match self.migration {
            MigrationState::Done { .. } => {
                (maker.make("Migrated", "True", "Migrated", format!("by {}", self.image)), None)
            }
            MigrationState::Failed { problem, .. } | MigrationState::Running(Some(problem)) => {
                (maker.make("Migrated", "False", &problem.reason, &problem.message), Some(problem.clone()))
            }
            MigrationState::Running(None) | MigrationState::Create(_) => {
                (maker.make("Migrated", "False", "Migrating", migrates()), None)
            }
        };
        let trouble = worst.or(failure);
        let progressing = match &progress {
            Some((reason, message)) => maker.make("Progressing", "True", reason, message),
            None if self.workers == 0 => maker.make("Progressing", "False", "Stopped", "no workers are wanted"),
            None => {
                let message = format!("generation {} is active", self.generation);
                maker.make("Progressing", "False", "Complete", message)
            }
        };
        let [degraded, stalled] = maker.degraded_and_stalled(trouble.as_ref());
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
        let owned = format!("all {} shards have an owner", self.shards);
        let Some((reason, message)) = progress else { return maker.make(READY, "True", "ManifestActive", owned) };
        // The old generation continues until the new one is active; shards change owners within a lease.
        let was_ready = find_condition(maker.before, READY, "True");
        if let Some(older) = was_ready.and_then(|condition| condition.observed_generation)
            && self.unowned_for < TIMEOUT
        {
            return Maker { generation: older, ..*maker }.make(READY, "True", "ManifestActive", owned);
        }
        match (trouble, self.without_owner()) {
            (Some(problem), _) => no(&problem.reason, problem.message.clone()),
            // New pods need some time to take shards.
            (None, _) if self.complete_for < TIMEOUT || *reason != "RollingOut" => no(reason, message.clone()),
            (None, Some(count)) if count > 0 => {
                no("ShardsWithoutOwner", format!("{count} of {} shards have no owner", self.shards))
            }
            (None, None) => {
                maker.make(READY, "Unknown", "StatusUnknown", "no pod reports which generation its shards run")
            }
            (None, _) => no(reason, message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let maker = Maker { before: &[], generation: 1, now: Timestamp::UNIX_EPOCH };
        let made = |length| maker.make("Degraded", "True", "WebhookDenied", "é".repeat(length)).message;
        assert_eq!(made(LONGEST_MESSAGE).chars().count(), LONGEST_MESSAGE);
        let cut = made(LONGEST_MESSAGE + 1);
        assert!(cut.ends_with("é…") && cut.chars().count() == LONGEST_MESSAGE + 1);
    }

    #[test]
    fn a_stalled_pipeline_is_not_reconciling() {
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
