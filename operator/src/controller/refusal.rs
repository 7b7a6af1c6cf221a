//! Refusals of objects by an admission of the API server, and their reasons.

use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{ListParams, ObjectMeta},
};
use millrace_crds::{Reason, status_api::Problem};

use super::{memory::Memory, migration::Attempt, observe::Observed};
use crate::context::Context;

/// After so many seconds without a pod the Events of a Job are read: an admission may have refused the pod.
const PODLESS_SECONDS: i64 = 2;
/// After so many seconds without a pod a Job is a problem, even without an Event.
const PODLESS_WITHOUT_EVENT_SECONDS: i64 = 15;
/// The time between two reads of one Job's Events.
const BETWEEN: Duration = Duration::from_secs(5);

/// Parts of the messages of admissions, and the reason for the status.
const KNOWN: [(&str, Reason); 10] = [
    ("exceeded quota", Reason::QuotaExceeded),
    // A quota on a resource that the pod does not name.
    ("failed quota", Reason::QuotaExceeded),
    (" per Container is ", Reason::LimitRangeViolated),
    (" per Pod is ", Reason::LimitRangeViolated),
    ("violates PodSecurity", Reason::PodSecurityViolated),
    // OpenShift's.
    ("unable to validate against any security context constraint", Reason::PodSecurityViolated),
    ("ValidatingAdmissionPolicy", Reason::PolicyDenied),
    ("denied the request", Reason::WebhookDenied),
    ("failed calling webhook", Reason::WebhookFailed),
    ("failed to call webhook", Reason::WebhookFailed),
];

/// The reason for a message of the API server; `None` where no known admission wrote it.
#[must_use]
pub(crate) fn reason(message: &str) -> Option<Reason> {
    KNOWN.iter().find(|(part, _)| message.contains(part)).map(|(_, reason)| reason.clone())
}

/// The refusal of a Job's pod in the Events, as last read.
#[derive(Debug, Clone)]
pub(crate) struct LastRefusal {
    at: Instant,
    problem: Option<Problem>,
}

/// Adds to attempts without a pod the problem that keeps the Job from having one. Only the Events about a Job hold it,
/// its own status does not.
pub(super) async fn add_refusals(context: &Context, memory: &mut Memory, observed: &mut Observed<'_>) {
    let namespace = observed.meta().namespace.as_deref().unwrap_or_default();
    let Observed { migrations, purges, jobs, now, .. } = observed;
    memory.refusals.retain(|uid, _| jobs.values().any(|meta| meta.uid.as_ref() == Some(uid)));
    for attempt in migrations.iter_mut().chain(purges) {
        let Some(uid) = jobs.get(&attempt.name).and_then(|meta: &ObjectMeta| meta.uid.clone()) else { continue };
        let Some(age) = attempt.podless_seconds else {
            memory.refusals.remove(&uid);
            continue;
        };
        let last = memory.refusals.get(&uid);
        if age >= PODLESS_SECONDS && last.is_none_or(|last| now.since(last.at) >= BETWEEN) {
            let problem = read_refusal(context, namespace, &uid, attempt).await;
            memory.refusals.insert(uid.clone(), LastRefusal { at: now.instant, problem });
        }
        let last = memory.refusals.get(&uid).and_then(|last| last.problem.clone());
        attempt.trouble = last.or_else(|| podless(&attempt.name, age)).or(attempt.trouble.take());
    }
}

/// Reads the newest refusal of a Job's pod from the Events.
async fn read_refusal(context: &Context, namespace: &str, uid: &str, attempt: &Attempt) -> Option<Problem> {
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let failures = ListParams::default().fields(&format!("regarding.uid={uid},reason=FailedCreate"));
    let found = match events.list(&failures).await {
        Ok(found) => found.items,
        Err(error) => {
            tracing::warn!(event = "controller.events.read_failed", namespace, job = attempt.name, error = %error, "the events of a Job cannot be read");
            return None;
        }
    };
    let newest = found.into_iter().max_by_key(|event| {
        let last = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
        last.max(event.series.as_ref().map(|series| series.last_observed_time.0))
            .max(event.event_time.as_ref().map(|time| time.0))
    })?;
    let message = newest.note.unwrap_or_default();
    Some(Problem::new(reason(&message).unwrap_or(Reason::PodsNotCreated), format!("Job {}: {message}", attempt.name)))
}

fn podless(job: &str, age: i64) -> Option<Problem> {
    (age >= PODLESS_WITHOUT_EVENT_SECONDS).then(|| {
        Problem::new(Reason::PodsNotCreated, format!("Job {job} has no pod after {age} s: kubectl describe job {job}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_refusal_names_the_admission() {
        for (message, expected) in [
            (
                "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
                Reason::QuotaExceeded,
            ),
            (
                "Error creating: pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: migrate",
                Reason::QuotaExceeded,
            ),
            (
                "pods \"a\" is forbidden: maximum memory usage per Container is 64Mi, but limit is 256Mi",
                Reason::LimitRangeViolated,
            ),
            (
                "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true",
                Reason::PodSecurityViolated,
            ),
            (
                "pods \"a\" is forbidden: unable to validate against any security context constraint: [1000]",
                Reason::PodSecurityViolated,
            ),
            (
                "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'cases-uid' with binding 'cases-uid' denied request: no",
                Reason::PolicyDenied,
            ),
            ("admission webhook \"a.b\" denied the request: no", Reason::WebhookDenied),
            ("Internal error occurred: failed calling webhook \"a.b\": refused", Reason::WebhookFailed),
        ] {
            assert_eq!(reason(message), Some(expected), "{message}");
        }
        assert_eq!(reason("deployments.apps is forbidden: User \"u\" cannot patch resource"), None);
    }

    #[test]
    fn a_job_without_a_pod_is_a_problem_after_a_time() {
        assert_eq!(podless("p-migrate-k-1", PODLESS_WITHOUT_EVENT_SECONDS - 1), None);
        let problem = podless("p-migrate-k-1", PODLESS_WITHOUT_EVENT_SECONDS).expect("a problem");
        assert_eq!(problem.reason, Reason::PodsNotCreated);
        assert!(problem.message.contains("kubectl describe job p-migrate-k-1"), "{}", problem.message);
    }
}
