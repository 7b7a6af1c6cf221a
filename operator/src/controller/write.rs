//! Writes the resource itself, its claim, finalizer and status, and the Events about it.
//!
//! It writes conditions at once and numbers from time to time, and never a status that did not change.

use std::time::Duration;

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api,
    api::{DynamicObject, ObjectMeta, Patch, PatchParams},
    core::ApiResource,
    runtime::events::{Event, EventType},
};
use millrace_crds::{API_VERSION, KIND, Reason, RecordPipelineResource, RecordPipelineStatus};
use serde_json::json;

use super::{
    apply::{Error, merge},
    condition::{self, ConditionType, Status},
    memory::Memory,
    observe::Observed,
};
use crate::context::Context;

/// The annotation that names the release that manages a pipeline: `<namespace>/<release>`.
pub(crate) const CLAIM: &str = "millrace.dev/claimed-by";
/// The finalizer that keeps a deleted resource until its records are applied.
pub(crate) const FINALIZER: &str = "millrace.dev/drain";
/// The time between two writes of numbers when nothing else changes.
const NUMBERS_EVERY: Duration = Duration::from_secs(30);
/// The same while the pipeline is not ready: where many start at once, each message on the way would be one more write.
const UNREADY_NUMBERS_EVERY: Duration = Duration::from_secs(120);

fn api(context: &Context, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<RecordPipelineResource>(&());
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}

fn names(meta: &ObjectMeta) -> (&str, &str) {
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Claims a resource for this release, and adds the finalizer.
///
/// # Errors
/// When it changed since `meta` was read, or the API server is unreachable.
pub(crate) async fn claim(context: &Context, meta: &ObjectMeta) -> Result<(), Error> {
    context.leadership.check()?;
    let (namespace, name) = names(meta);
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let patch = json!({ "metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "finalizers": finalizers,
        "annotations": { CLAIM: context.settings.claim() },
    }});
    api(context, namespace).patch(name, &merge(), &Patch::Merge(&patch)).await?;
    tracing::info!(event = "controller.pipeline.claimed", namespace, name, "this operator manages the pipeline now");
    Ok(())
}

/// Removes the finalizer from a deleted resource.
///
/// # Errors
/// When it changed since `meta` was read, or the API server is unreachable. A resource that is deleted is no error.
pub(crate) async fn remove_finalizer(context: &Context, meta: &ObjectMeta) -> Result<(), Error> {
    context.leadership.check()?;
    let (namespace, name) = names(meta);
    let left: Vec<_> = meta.finalizers.iter().flatten().filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({ "metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": left,
    }});
    match api(context, namespace).patch(name, &merge(), &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(
                event = "controller.pipeline.finalizer_removed",
                namespace,
                name,
                "removed the finalizer; Kubernetes deletes the pipeline"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes the status when a write is due, and publishes Events about changed conditions.
///
/// # Errors
/// When the API server is unreachable. A resource that is deleted is no error.
pub(crate) async fn status(
    context: &Context,
    memory: &mut Memory,
    observed: &Observed<'_>,
    next: RecordPipelineStatus,
) -> Result<(), Error> {
    let (meta, before, now) = (observed.meta(), &observed.status, observed.now);
    let ready = condition::find(&before.conditions, ConditionType::Ready, Status::True).is_some();
    let every = if ready || next.draining_since.is_some() { NUMBERS_EVERY } else { UNREADY_NUMBERS_EVERY };
    let due = memory.written.as_ref().is_none_or(|(_, at)| now.since(*at) >= every);
    if next == *before || !(due || is_urgent(before, &next)) {
        return Ok(());
    }
    context.leadership.check()?;
    let (namespace, name) = names(meta);
    // With the uid the write fails on a resource that was recreated under the name.
    let patch = json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": { "name": name, "namespace": namespace, "uid": meta.uid },
        "status": next,
    });
    let parameters = PatchParams::apply("millrace-operator-status").force();
    match api(context, namespace).patch_status(name, &parameters, &Patch::Apply(&patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    metrics::counter!(crate::metrics::WRITES, "kind" => "Status").increment(1);
    for (warning, condition) in event_conditions(&before.conditions, &next.conditions) {
        tracing::info!(
            event = "controller.condition.changed",
            namespace,
            name,
            generation = meta.generation,
            condition = condition.type_,
            status = condition.status,
            reason = condition.reason,
            detail = condition.message,
            "a condition changed"
        );
        let note = format!("{}: {}", condition.type_, condition.message);
        let reason = Reason::from(condition.reason.clone());
        event(context, meta, &Notice { warning, reason, note }).await;
    }
    memory.written = Some((next, now.instant));
    Ok(())
}

/// Whether more than numbers and messages changed: such a status is written at once.
fn is_urgent(before: &RecordPipelineStatus, next: &RecordPipelineStatus) -> bool {
    let urgent = |status: &RecordPipelineStatus| {
        let conditions = status.conditions.iter().map(|condition| {
            let Condition { type_, status, reason, observed_generation, .. } = condition.clone();
            (type_, status, reason, observed_generation)
        });
        let conditions: Vec<_> = conditions.collect();
        // The pipeline's id comes with the first answer of a pod, shortly before Ready: it is written with that.
        let RecordPipelineStatus { observed_generation, selector, endpoint, migrated, draining_since, .. } =
            status.clone();
        (conditions, observed_generation, selector, endpoint, migrated, draining_since)
    };
    urgent(before) != urgent(next)
}

/// Changed conditions that become Events; true for a warning.
fn event_conditions<'a>(before: &[Condition], next: &'a [Condition]) -> Vec<(bool, &'a Condition)> {
    let changed = next.iter().filter(|condition| {
        before.iter().all(|old| {
            (&old.type_, &old.status, &old.reason) != (&condition.type_, &condition.status, &condition.reason)
        })
    });
    changed
        .filter_map(|condition| {
            let is = |kind| condition::is(condition, kind, Status::True);
            let ends = [Reason::Draining, Reason::Drained, Reason::Purging];
            let ends = is(ConditionType::Progressing) && ends.iter().any(|of| condition.reason == of.as_str());
            let (warns, news) = (is(ConditionType::Degraded), is(ConditionType::Ready) || is(ConditionType::Migrated));
            (warns || news || ends).then_some((warns, condition))
        })
        .collect()
}

/// An Event about a resource.
#[derive(Debug)]
pub(crate) struct Notice {
    pub(crate) warning: bool,
    pub(crate) reason: Reason,
    pub(crate) note: String,
}

/// Publishes an Event of Kubernetes about a resource. A failure is logged and has no other effect.
pub(crate) async fn event(context: &Context, meta: &ObjectMeta, notice: &Notice) {
    let Notice { warning, reason, note } = notice;
    if context.leadership.check().is_err() {
        return;
    }
    let reference = ObjectReference {
        api_version: Some(API_VERSION.to_owned()),
        kind: Some(KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: if *warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_string(),
        // The API takes 1,024 bytes.
        note: Some(note.chars().take(250).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &reference).await {
        // For example in a namespace that is being deleted.
        let (namespace, name) = names(meta);
        tracing::warn!(event = "controller.event.write_failed", namespace, name, reason = reason.as_str(), note = event.note, error = %error, "an event of Kubernetes cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Condition {
        Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            observed_generation: Some(1),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn a_changed_condition_is_urgent_and_numbers_and_messages_are_not() {
        let status = |conditions: &[Condition], backlog| RecordPipelineStatus {
            conditions: conditions.to_vec(),
            backlog: Some(backlog),
            ..RecordPipelineStatus::default()
        };
        let before = status(&[condition("Ready", "True", "ManifestActive", "a")], 1);
        assert!(!is_urgent(&before, &status(&[condition("Ready", "True", "ManifestActive", "b")], 2)));
        assert!(is_urgent(&before, &status(&[condition("Ready", "True", "Other", "a")], 1)));
        assert!(is_urgent(&before, &status(&[condition("Ready", "False", "ManifestActive", "a")], 1)));
        let mut other = before.clone();
        other.conditions[0].observed_generation = Some(2);
        assert!(is_urgent(&before, &other));
    }

    #[test]
    fn ready_and_new_warnings_become_events() {
        let before = [condition("Ready", "False", "Migrating", ""), condition("Degraded", "True", "SinkHalted", "x")];
        let next = [
            condition("Ready", "True", "ManifestActive", "m"),
            condition("Degraded", "True", "SinkHalted", "y"),
            condition("Stalled", "True", "SinkHalted", "y"),
        ];
        let found = event_conditions(&before, &next);
        let found: Vec<_> = found.into_iter().map(|(warning, condition)| (warning, condition.type_.as_str())).collect();
        assert_eq!(found, [(false, "Ready")], "another message is no change");
        assert_eq!(event_conditions(&[], &next).len(), 2);
    }
}
