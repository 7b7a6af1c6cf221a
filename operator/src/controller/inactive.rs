//! The conditions of a pipeline that is invalid, paused, or being deleted: the operator builds nothing for it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use millrace_crds::{Reason, status_api::Problem};

use super::{
    condition::{ConditionType, Maker, Status},
    observe::Finding,
};

/// The conditions of an invalid pipeline: its pods stay as they are until it changes.
#[must_use]
pub(super) fn invalid(maker: &Maker<'_>, cause: &str) -> Vec<Condition> {
    let make = |kind, status| maker.make(kind, status, &Reason::InvalidSpec, cause);
    let mut next = migrated(maker.before);
    next.extend([
        make(ConditionType::Ready, Status::False),
        make(ConditionType::Progressing, Status::False),
        make(ConditionType::Reconciling, Status::False),
        make(ConditionType::Degraded, Status::True),
        make(ConditionType::Stalled, Status::True),
    ]);
    next.sort_by(|a, b| a.type_.cmp(&b.type_));
    next
}

/// The conditions of a paused pipeline: the previous ones, and Progressing and Reconciling with the reason `Paused`.
#[must_use]
pub(super) fn paused(maker: &Maker<'_>) -> Vec<Condition> {
    let changed = [ConditionType::Progressing, ConditionType::Reconciling];
    let is_paused = |condition: &Condition| {
        condition.type_ == ConditionType::Progressing.as_str() && condition.reason == Reason::Paused.as_str()
    };
    if maker.before.iter().any(is_paused) {
        return maker.before.to_vec();
    }
    let is_kept = |condition: &&Condition| changed.iter().all(|kind| condition.type_ != kind.as_str());
    let mut next: Vec<_> = maker.before.iter().filter(is_kept).cloned().collect();
    let message = "spec.paused is true: the operator changes nothing";
    next.extend(changed.map(|kind| maker.make(kind, Status::False, &Reason::Paused, message)));
    next
}

/// The conditions of a pipeline that is being deleted: its progress, and the problem that keeps it.
#[must_use]
pub(super) fn deleted(maker: &Maker<'_>, progress: &Problem, problem: Option<&Problem>) -> Vec<Condition> {
    let mut next = vec![
        maker.make(ConditionType::Ready, Status::False, &Reason::Draining, "it is being deleted"),
        maker.of(ConditionType::Progressing, Status::True, progress),
    ];
    let problem = problem.cloned().map(Finding::current);
    next.extend(maker.degraded_and_stalled(problem.as_ref()));
    next.extend(migrated(maker.before));
    next
}

/// The previous condition Migrated: an inactive pipeline migrates nothing.
fn migrated(before: &[Condition]) -> Vec<Condition> {
    before.iter().filter(|condition| condition.type_ == ConditionType::Migrated.as_str()).cloned().collect()
}
