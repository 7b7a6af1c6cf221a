//! Conditions: their types, their statuses, and how one is made.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use millrace_crds::{Reason, status_api::Problem};

use super::observe::Finding;

/// The type of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConditionType {
    /// The spec is active.
    Ready,
    /// The schema fits the image.
    Migrated,
    /// The operator brings about what the spec describes.
    Progressing,
    /// As Progressing, for kstatus and its users (Flux, Helm 4): False while only a change by hand helps.
    Reconciling,
    /// Something is wrong.
    Degraded,
    /// Only a change by hand helps.
    Stalled,
    /// Redis keeps what it acknowledged.
    RedisDurable,
}

/// The status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    True,
    False,
    Unknown,
}

impl ConditionType {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Migrated => "Migrated",
            Self::Progressing => "Progressing",
            Self::Reconciling => "Reconciling",
            Self::Degraded => "Degraded",
            Self::Stalled => "Stalled",
            Self::RedisDurable => "RedisDurable",
        }
    }
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Whether a condition has this type and this status.
pub(super) fn is(condition: &Condition, kind: ConditionType, status: Status) -> bool {
    condition.type_ == kind.as_str() && condition.status == status.as_str()
}

/// The condition of a type, if it has this status.
pub(super) fn find(conditions: &[Condition], kind: ConditionType, status: Status) -> Option<&Condition> {
    conditions.iter().find(|condition| is(condition, kind, status))
}

/// Whether no retry removes the cause: a change by hand is needed.
fn needs_a_change(reason: &Reason) -> bool {
    let named = matches!(
        reason,
        Reason::InvalidSpec
            | Reason::NameClash
            | Reason::SchemaTooNew
            | Reason::OtherPipeline
            | Reason::ManifestInvalid
            | Reason::ManifestRefused
            | Reason::SecretInvalid
            | Reason::PoolerInTransactionMode
            | Reason::GatewayApiMissing
            | Reason::Refused
            | Reason::SecretNotFound
            | Reason::ImagePullBackOff
            | Reason::QuotaExceeded
            | Reason::LimitRangeViolated
            | Reason::PodSecurityViolated
            | Reason::PolicyDenied
            | Reason::WebhookDenied
    );
    named || reason.is_of_tls()
}

/// Most characters of a condition's message: an admission may answer with several pages.
const LONGEST_MESSAGE: usize = 1_000;

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
    pub(super) fn make(
        &self,
        kind: ConditionType,
        status: Status,
        reason: &Reason,
        message: impl Into<String>,
    ) -> Condition {
        let unchanged = find(self.before, kind, status);
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
            message.truncate(end);
            message.push('…');
        }
        Condition {
            type_: kind.as_str().to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.as_str().to_owned(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: unchanged.map_or(Time(self.now), |before| before.last_transition_time.clone()),
        }
    }

    /// A condition with the reason and the message of a problem.
    pub(super) fn of(&self, kind: ConditionType, status: Status, problem: &Problem) -> Condition {
        self.make(kind, status, &problem.reason, &problem.message)
    }

    /// Reconciling, which follows from two other conditions.
    pub(super) fn reconciling(&self, progressing: &Condition, stalled: &Condition) -> Condition {
        let is_stalled = is(stalled, ConditionType::Stalled, Status::True);
        if is_stalled {
            let message = "the operator waits for a change by hand";
            return self.make(ConditionType::Reconciling, Status::False, &Reason::Stalled, message);
        }
        let progresses = is(progressing, ConditionType::Progressing, Status::True);
        let status = if progresses { Status::True } else { Status::False };
        self.make(ConditionType::Reconciling, status, &Reason::from(progressing.reason.clone()), &progressing.message)
    }

    /// Degraded, and Stalled for a problem of the newest generation that needs a change.
    pub(super) fn degraded_and_stalled(&self, finding: Option<&Finding>) -> [Condition; 2] {
        let condition = |kind, problem: Option<&Problem>, otherwise| match problem {
            Some(problem) => self.of(kind, Status::True, problem),
            None => self.make(kind, Status::False, &Reason::AsExpected, otherwise),
        };
        let problem = finding.map(|finding| &finding.problem);
        let is_stalling = |finding: &&Finding| finding.is_current && needs_a_change(&finding.problem.reason);
        let stalling = finding.filter(is_stalling).map(|finding| &finding.problem);
        [
            condition(ConditionType::Degraded, problem, "nothing is known to be wrong"),
            condition(ConditionType::Stalled, stalling, "nothing waits for a change by hand"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let maker = Maker { before: &[], generation: 1, now: Timestamp::UNIX_EPOCH };
        let made = |length: usize| {
            let message = "é".repeat(length);
            maker.make(ConditionType::Degraded, Status::True, &Reason::WebhookDenied, message).message
        };
        assert_eq!(made(LONGEST_MESSAGE).chars().count(), LONGEST_MESSAGE);
        let cut = made(LONGEST_MESSAGE + 1);
        assert!(cut.ends_with("é…") && cut.chars().count() == LONGEST_MESSAGE + 1);
    }

    #[test]
    fn a_stalled_pipeline_is_not_reconciling() {
        let maker = Maker { before: &[], generation: 1, now: Timestamp::UNIX_EPOCH };
        for (progressing, stalled, reconciling) in [
            (Status::True, Status::False, "True"),
            (Status::True, Status::True, "False"),
            (Status::False, Status::False, "False"),
            (Status::False, Status::True, "False"),
        ] {
            let progressing = maker.make(ConditionType::Progressing, progressing, &Reason::RollingOut, "m");
            let stalled = maker.make(ConditionType::Stalled, stalled, &Reason::RollingOut, "m");
            let made = maker.reconciling(&progressing, &stalled);
            assert_eq!(made.status, reconciling, "{} {}", progressing.status, stalled.status);
        }
    }
}
