//! What is written on the resource itself: the claim, the finalizer and the status; and the Events about it.
//!
//! Conditions are written at once, numbers now and then, and nothing that stands already.

use std::time::{Duration, Instant};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api,
    api::{DynamicObject, ObjectMeta, Patch, PatchParams},
    core::ApiResource,
    runtime::events::{Event, EventType},
};
use millrace_crds::{API_VERSION, KIND, RecordPipelineResource, RecordPipelineStatus};
use serde_json::json;

use super::{
    apply::{Error, merge},
    memory::Memory,
    status::{READY, stands},
    still::{DRAINED, DRAINING, PURGING},
};
use crate::context::Context;

/// Who claims a pipeline: `<namespace>/<release>`.
pub(crate) const CLAIM: &str = "millrace.dev/claimed-by";
/// Holds a deleted resource until its records are applied.
pub(crate) const FINALIZER: &str = "millrace.dev/drain";
/// How often numbers are written when nothing else changes.
const NUMBERS_EVERY: Duration = Duration::from_secs(30);
/// The same while it is not ready: where many begin at once, each word on the way would be a write more.
const WORDS_EVERY: Duration = Duration::from_secs(120);

fn api(context: &Context, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<RecordPipelineResource>(&());
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}

fn names(meta: &ObjectMeta) -> (&str, &str) {
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Claims a resource for this release, and holds it by the finalizer.
///
/// # Errors
/// When it changed since it was seen, or the API server cannot be reached.
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

/// Lets a deleted resource go, as long as it is the one that was seen.
///
/// # Errors
/// When it changed since, or the API server cannot be reached.
pub(crate) async fn release(context: &Context, meta: &ObjectMeta) -> Result<(), Error> {
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

/// Writes the status when it tells something new, and says what changed as Events. `stood` is what the API server has.
///
/// # Errors
/// When the API server cannot be reached. A resource that is gone is no error.
pub(crate) async fn status(
    context: &Context,
    memory: &mut Memory,
    meta: &ObjectMeta,
    stood: &RecordPipelineStatus,
    next: RecordPipelineStatus,
) -> Result<(), Error> {
    let before = memory.stood(stood).clone();
    let ready = stands(&before.conditions, READY, "True").is_some();
    let every = if ready || next.draining_since.is_some() { NUMBERS_EVERY } else { WORDS_EVERY };
    let due = memory.written.as_ref().is_none_or(|(_, at)| at.elapsed() >= every);
    if next == before || !(due || tells(&before, &next)) {
        return Ok(());
    }
    context.leadership.check()?;
    let (namespace, name) = names(meta);
    // The uid keeps it from a resource that was recreated under the name.
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
    for (warning, condition) in changes(&before.conditions, &next.conditions) {
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
        event(context, meta, warning, &condition.reason, note).await;
    }
    memory.written = Some((next, Instant::now()));
    Ok(())
}

/// Whether a status says something that does not wait: anything but numbers and messages.
fn tells(before: &RecordPipelineStatus, next: &RecordPipelineStatus) -> bool {
    let said = |status: &RecordPipelineStatus| {
        let conditions = status.conditions.iter().map(|condition| {
            let Condition { type_, status, reason, observed_generation, .. } = condition.clone();
            (type_, status, reason, observed_generation)
        });
        let conditions: Vec<_> = conditions.collect();
        // The pipeline's id comes with the first answer of a pod, shortly before it is ready: it goes with that.
        let RecordPipelineStatus { observed_generation, selector, endpoint, migrated, draining_since, .. } =
            status.clone();
        (conditions, observed_generation, selector, endpoint, migrated, draining_since)
    };
    said(before) != said(next)
}

/// Changes that someone should see as Events; true: a warning.
fn changes<'a>(before: &[Condition], next: &'a [Condition]) -> Vec<(bool, &'a Condition)> {
    let changed = next.iter().filter(|condition| {
        before.iter().all(|stood| {
            (&stood.type_, &stood.status, &stood.reason) != (&condition.type_, &condition.status, &condition.reason)
        })
    });
    changed
        .filter_map(|condition| match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready" | "Migrated", "True") => Some((false, condition)),
            ("Degraded", "True") => Some((true, condition)),
            ("Progressing", "True") if [DRAINING, DRAINED, PURGING].contains(&condition.reason.as_str()) => {
                Some((false, condition))
            }
            _ => None,
        })
        .collect()
}

/// Says something about a resource as a Kubernetes Event. One that cannot be written changes nothing else.
pub(crate) async fn event(context: &Context, meta: &ObjectMeta, warning: bool, reason: &str, note: String) {
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
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        // The API takes 1,024 bytes.
        note: Some(note.chars().take(250).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &reference).await {
        // Such as in a namespace that is being removed.
        let (namespace, name) = names(meta);
        tracing::warn!(event = "controller.event.write_failed", namespace, name, reason, note = event.note, error = %error, "an event of Kubernetes cannot be written");
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
    fn numbers_and_messages_wait_and_conditions_do_not() {
        let status = |conditions: &[Condition], backlog| RecordPipelineStatus {
            conditions: conditions.to_vec(),
            backlog: Some(backlog),
            ..RecordPipelineStatus::default()
        };
        let before = status(&[condition("Ready", "True", "ManifestActive", "a")], 1);
        assert!(!tells(&before, &status(&[condition("Ready", "True", "ManifestActive", "b")], 2)));
        assert!(tells(&before, &status(&[condition("Ready", "True", "Other", "a")], 1)));
        assert!(tells(&before, &status(&[condition("Ready", "False", "ManifestActive", "a")], 1)));
        let mut other = before.clone();
        other.conditions[0].observed_generation = Some(2);
        assert!(tells(&before, &other));
    }

    #[test]
    fn events_tell_what_someone_should_see() {
        let before = [condition("Ready", "False", "Migrating", ""), condition("Degraded", "True", "SinkHalted", "x")];
        let next = [
            condition("Ready", "True", "ManifestActive", "m"),
            condition("Degraded", "True", "SinkHalted", "y"),
            condition("Stalled", "True", "SinkHalted", "y"),
        ];
        let said: Vec<_> =
            changes(&before, &next).into_iter().map(|(warning, c)| (warning, c.type_.as_str())).collect();
        assert_eq!(said, [(false, "Ready")], "another message is no change");
        assert_eq!(changes(&[], &next).len(), 2);
    }
}
