//! The conditions of a pipeline that nothing is done to: because it is wrong, or because it is paused. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Of one that cannot be worked on: its pods stay as they are until it is changed.
#[must_use]
pub(super) fn invalid(before: &[Condition], generation: i64, why: &str, now: Timestamp) -> Vec<Condition> {
    let make = |kind: &str, status: &str| {
        let stood = before.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: "InvalidSpec".to_owned(),
            message: why.to_owned(),
            observed_generation: Some(generation),
            last_transition_time: stood.map_or(Time(now), |stood| stood.last_transition_time.clone()),
        }
    };
    let migrated = before.iter().filter(|condition| condition.type_ == "Migrated").cloned();
    let mut next: Vec<_> = migrated.collect();
    next.extend([
        make("Ready", "False"),
        make("Progressing", "False"),
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
    let stood = before.iter().find(|condition| is_progressing(condition) && condition.status == "False");
    let mut next: Vec<_> = before.iter().filter(|condition| !is_progressing(condition)).cloned().collect();
    next.push(Condition {
        type_: "Progressing".to_owned(),
        status: "False".to_owned(),
        reason: "Paused".to_owned(),
        message: "spec.paused is true: nothing is changed".to_owned(),
        observed_generation: Some(generation),
        last_transition_time: stood.map_or(Time(now), |stood| stood.last_transition_time.clone()),
    });
    next
}
