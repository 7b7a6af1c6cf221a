//! The conditions of a pipeline that nothing is built for: because it is wrong, paused, or being deleted. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use super::status::{Maker, READY};
use crate::facts::Problem;

/// Why one that is being deleted is not ready, and continues.
pub(super) const DRAINING: &str = "Draining";
/// All of it is applied and published: what is left is to let go.
pub(super) const DRAINED: &str = "Drained";
/// Its data is being removed.
pub(super) const PURGING: &str = "Purging";

/// Of one that cannot be worked on: its pods stay as they are until it is changed.
#[must_use]
pub(super) fn invalid(before: &[Condition], generation: i64, why: &str, now: Timestamp) -> Vec<Condition> {
    let maker = Maker { before, generation, now };
    let make = |kind: &str, status: &str| maker.make(kind, status, "InvalidSpec", why);
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

/// Of one that is paused: as they stood, and Progressing says why nothing happens.
#[must_use]
pub(super) fn paused(before: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let is_progressing = |condition: &Condition| condition.type_ == "Progressing";
    if before.iter().any(|condition| is_progressing(condition) && condition.reason == "Paused") {
        return before.to_vec();
    }
    let goes_on = |condition: &&Condition| !["Progressing", "Reconciling"].contains(&condition.type_.as_str());
    let mut next: Vec<_> = before.iter().filter(goes_on).cloned().collect();
    let message = "spec.paused is true: nothing is changed";
    let maker = Maker { before, generation, now };
    next.extend(["Progressing", "Reconciling"].map(|kind| maker.make(kind, "False", "Paused", message)));
    next
}

/// Of one that is being deleted: how that goes, and what is in its way.
#[must_use]
pub(super) fn draining(
    before: &[Condition],
    generation: i64,
    progress: &Problem,
    trouble: Option<&Problem>,
    now: Timestamp,
) -> Vec<Condition> {
    let maker = Maker { before, generation, now };
    let mut next = vec![
        maker.make(READY, "False", DRAINING, "it is being deleted"),
        maker.make("Progressing", "True", &progress.reason, &progress.message),
    ];
    next.extend(maker.suffers(trouble));
    next.extend(migrated(before));
    next
}

/// What the schema is does not change with it.
fn migrated(before: &[Condition]) -> Vec<Condition> {
    before.iter().filter(|condition| condition.type_ == "Migrated").cloned().collect()
}
