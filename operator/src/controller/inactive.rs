//! The conditions of a pipeline that is invalid, paused, or being deleted: the operator builds nothing for it. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use super::status::{Maker, READY};
use crate::facts::Problem;

/// The reason while a pipeline that is being deleted drains.
pub(super) const DRAINING: &str = "Draining";
/// The reason once its records are applied and its outcomes published.
pub(super) const DRAINED: &str = "Drained";
/// The reason while its data is removed.
pub(super) const PURGING: &str = "Purging";

/// The conditions of an invalid pipeline: its pods stay as they are until it changes.
#[must_use]
pub(super) fn invalid(before: &[Condition], generation: i64, cause: &str, now: Timestamp) -> Vec<Condition> {
    let maker = Maker { before, generation, now };
    let make = |kind: &str, status: &str| maker.make(kind, status, "InvalidSpec", cause);
    let mut next = migrated(before);
    next.extend([
        make(READY, "False"),
        make("Progressing", "False"),
        make("Reconciling", "False"),
        make("Degraded", "True"),
        make("Stalled", "True"),
    ]);
    next.sort_by(|a, b| a.type_.cmp(&b.type_));
    next
}

/// The conditions of a paused pipeline: the previous ones, and Progressing and Reconciling with the reason `Paused`.
#[must_use]
pub(super) fn paused(before: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let is_progressing = |condition: &Condition| condition.type_ == "Progressing";
    if before.iter().any(|condition| is_progressing(condition) && condition.reason == "Paused") {
        return before.to_vec();
    }
    let is_kept = |condition: &&Condition| !["Progressing", "Reconciling"].contains(&condition.type_.as_str());
    let mut next: Vec<_> = before.iter().filter(is_kept).cloned().collect();
    let message = "spec.paused is true: the operator changes nothing";
    let maker = Maker { before, generation, now };
    next.extend(["Progressing", "Reconciling"].map(|kind| maker.make(kind, "False", "Paused", message)));
    next
}

/// The conditions of a pipeline that is being deleted: its progress, and the problem that keeps it.
#[must_use]
pub(super) fn draining(
    before: &[Condition],
    generation: i64,
    progress: &Problem,
    problem: Option<&Problem>,
    now: Timestamp,
) -> Vec<Condition> {
    let maker = Maker { before, generation, now };
    let mut next = vec![
        maker.make(READY, "False", DRAINING, "it is being deleted"),
        maker.make("Progressing", "True", &progress.reason, &progress.message),
    ];
    next.extend(maker.degraded_and_stalled(problem));
    next.extend(migrated(before));
    next
}

/// The previous condition Migrated: an inactive pipeline migrates nothing.
fn migrated(before: &[Condition]) -> Vec<Condition> {
    before.iter().filter(|condition| condition.type_ == "Migrated").cloned().collect()
}
