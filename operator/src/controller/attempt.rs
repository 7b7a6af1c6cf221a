//! The state of a Job, judged by its own container: pure.
//!
//! Others may add containers to a pod, and one of them may never end: then the Job itself never ends. A Job must never
//! count as successful by anything but exit code 0 of the container that the operator defined.

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod},
    },
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use millrace_crds::status_api::TerminationMessage;

use super::{
    build::labels::{ATTEMPT, KEY, TEMPLATE},
    migration::{Attempt, JobState},
    observe::{component_of, is_owned, trouble},
};

impl Attempt {
    /// The attempt that a Job is; `pods` may contain pods of other Jobs.
    #[must_use]
    pub(crate) fn of<'a>(job: &Job, pods: impl Iterator<Item = &'a Pod>, now: Timestamp) -> Self {
        let label = |name: &str| job.labels().get(name).cloned().unwrap_or_default();
        // Not by the Job's name: the pods of an earlier Job of the same name may still exist.
        let uid = job.uid().unwrap_or_default();
        let pods: Vec<_> = pods.filter(|pod| is_owned(&pod.metadata, &uid)).collect();
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let condition = |kind: &str| {
            let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")?;
            Some(found.last_transition_time.as_ref().map_or(now, |time| time.0))
        };
        let (complete, failed) = (condition("Complete"), condition("Failed"));
        let created = job.creation_timestamp().map_or(now, |time| time.0);
        let finished = |own: &ContainerStateTerminated| own.finished_at.as_ref().map_or(created, |time| time.0);
        let ended: Vec<_> = pods.iter().filter_map(|pod| terminated(pod)).collect();
        let successful = ended.iter().find(|own| own.exit_code == 0);
        let state = match (successful, ended.first()) {
            (Some(own), _) => JobState::Succeeded(complete.unwrap_or_else(|| finished(own))),
            (None, Some(own)) => JobState::Failed(failed.unwrap_or_else(|| finished(own))),
            // The pod may be deleted. Of a Job that completed, every container ended with 0.
            (None, None) => match (complete, failed) {
                (Some(at), _) => JobState::Succeeded(at),
                (None, Some(at)) => JobState::Failed(at),
                (None, None) => JobState::Running,
            },
        };
        let message = successful.or(ended.first()).and_then(|own| own.message.as_deref());
        let age = now.duration_since(created).as_secs();
        Self {
            name: job.name_any(),
            key: label(KEY),
            number: label(ATTEMPT).parse().unwrap_or(0),
            template: label(TEMPLATE),
            state,
            begun: pods.iter().any(|pod| has_begun(pod)),
            open: complete.is_none() && failed.is_none(),
            podless_seconds: (state == JobState::Running && pods.is_empty()).then_some(age),
            message: message.and_then(|text| serde_json::from_str::<TerminationMessage>(text).ok()),
            trouble: pods.iter().find_map(|pod| trouble(pod)),
        }
    }
}

/// The status of the container that the operator defined; injected containers have statuses, too.
fn own(pod: &Pod) -> Option<&ContainerStatus> {
    let all = pod.status.as_ref()?.container_statuses.as_ref()?;
    all.iter().find(|container| container.name == component_of(&pod.metadata))
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    own(pod)?.state.as_ref()?.terminated.as_ref()
}

/// Whether the container runs or ever ran. In a pod that is not `Pending` it counts so, even without a status.
fn has_begun(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let ran = |state: &ContainerState| state.running.is_some() || state.terminated.is_some();
    let states = own(pod).into_iter().flat_map(|own| [&own.state, &own.last_state]);
    phase.is_some_and(|phase| phase != "Pending") || states.flatten().any(ran)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(conditions: Value) -> Job {
        serde_json::from_value(json!({
            "metadata": {
                "name": "p-migrate-k-1", "uid": "job", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { KEY: "k", ATTEMPT: "1", TEMPLATE: "t" },
            },
            "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    fn pod(job_uid: &str, phase: &str, statuses: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "p-migrate-k-1-x",
                "labels": { "app.kubernetes.io/component": "migrate" },
                "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": "p-migrate-k-1", "uid": job_uid }],
            },
            "status": { "phase": phase, "containerStatuses": statuses },
        }))
        .unwrap()
    }

    fn container(name: &str, state: Value) -> Value {
        json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state })
    }

    fn ended(code: i32) -> Value {
        json!({ "terminated": { "exitCode": code, "finishedAt": "2026-01-01T00:01:00Z", "message": "{\"reason\":\"R\"}" } })
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_sidecar_that_runs_does_not_hide_that_the_migration_ended() {
        let runs = container("a-sidecar", json!({ "running": {} }));
        let open = job(json!([]));
        let at = time("2026-01-01T00:01:00Z");
        for (code, state) in [(0, JobState::Succeeded(at)), (1, JobState::Failed(at))] {
            let pod = pod("job", "Running", json!([runs, container("migrate", ended(code))]));
            let attempt = Attempt::of(&open, [&pod].into_iter(), at);
            assert_eq!((attempt.state, attempt.open), (state, true));
            assert_eq!(attempt.message.unwrap().reason.as_str(), "R");
        }
    }

    #[test]
    fn only_exit_code_0_of_the_own_container_is_success() {
        let open = job(json!([]));
        // The sidecar's own success does not count.
        let sidecar = container("a-sidecar", ended(0));
        let pod_of = |own: Value| pod("job", "Running", json!([sidecar, container("migrate", own)]));
        let state = |job: &Job, pod: &Pod| Attempt::of(job, [pod].into_iter(), Timestamp::UNIX_EPOCH).state;
        assert_eq!(state(&open, &pod_of(json!({ "running": {} }))), JobState::Running);
        assert_eq!(state(&open, &pod_of(json!({ "waiting": { "reason": "PodInitializing" } }))), JobState::Running);
        assert!(matches!(state(&open, &pod_of(ended(137))), JobState::Failed(_)));
        let when = |kind: &str| {
            job(
                json!([{ "type": kind, "status": "True", "reason": "r", "message": "", "lastTransitionTime": "2026-01-01T00:09:00Z" }]),
            )
        };
        // The Job's deadline kills its pod, but the container had ended before.
        assert!(matches!(state(&when("Failed"), &pod_of(ended(0))), JobState::Succeeded(_)));
        assert!(matches!(state(&when("Failed"), &pod_of(json!({ "running": {} }))), JobState::Failed(_)));
        assert!(matches!(state(&when("Complete"), &pod_of(ended(0))), JobState::Succeeded(_)));
        let other = pod("another job of this name", "Succeeded", json!([container("migrate", ended(0))]));
        assert_eq!(state(&open, &other), JobState::Running);
    }

    #[test]
    fn a_job_whose_container_never_ran_has_not_begun() {
        let open = job(json!([]));
        let begun = |pods: &[Pod]| Attempt::of(&open, pods.iter(), Timestamp::UNIX_EPOCH).begun;
        assert!(!begun(&[]));
        assert!(!begun(&[pod("job", "Pending", json!(null))]));
        let waits = json!({ "waiting": { "reason": "ImagePullBackOff" } });
        assert!(!begun(&[pod("job", "Pending", json!([container("migrate", waits)]))]));
        assert!(begun(&[pod("job", "Running", json!([container("migrate", json!({ "running": {} }))]))]));
        assert!(begun(&[pod("job", "Failed", json!(null))]));
    }
}
