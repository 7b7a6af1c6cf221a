//! Acts as the controller of Jobs.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    runtime::{
        WatchStreamExt as _,
        controller::Action,
        watcher::{self, watcher},
    },
};
use serde_json::{Value, json};

use super::{COMPONENT, INSTANCE, Shared, now, refusal};

/// Creates a Job's pod and ends the Job as its behaviour defines.
pub(super) async fn reconcile(job: Arc<Job>, shared: Arc<Shared>) -> Result<Action, kube::Error> {
    let (namespace, name) = (job.namespace().unwrap(), job.name_any());
    let jobs: Api<Job> = Api::namespaced(shared.client.clone(), &namespace);
    let before = job.status.clone().unwrap_or_default();
    let ended = |kind: &str| ["Complete", "Failed"].contains(&kind);
    if before.active.is_some() || before.conditions.iter().flatten().any(|condition| ended(&condition.type_)) {
        return Ok(Action::await_change());
    }
    let mut pod = serde_json::to_value(&job.spec.as_ref().unwrap().template).unwrap();
    let labels = pod["metadata"]["labels"].clone();
    let pipeline = labels[INSTANCE].as_str().unwrap_or("").to_owned();
    let behaviour = shared.behaviour(&namespace, &pipeline);
    if behaviour.hold_jobs {
        return Ok(Action::requeue(Duration::from_millis(200)));
    }
    let success = if labels[COMPONENT] == "purge" { "Purged" } else { "Migrated" };
    let (reason, message, contract) = behaviour.job_ends.front().copied().unwrap_or((success, "", 0));
    let succeeds = ["Migrated", "Purged"].contains(&reason);
    let termination = json!({
        "reason": reason, "message": message, "schema": { "from": 0, "to": 1 },
        "pipelineId": "0123456789abcdef", "contract": contract,
    });
    pod["metadata"]["generateName"] = json!(format!("{name}-"));
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job.uid().unwrap(), "controller": true,
    }]);
    if behaviour.sidecar {
        pod["spec"]["containers"].as_array_mut().unwrap().insert(0, json!({ "name": "a-sidecar", "image": "sidecar" }));
    }
    let (code, cause) = if succeeds { (0, "Completed") } else { (1, "Error") };
    let own = json!({ "terminated": {
        "exitCode": code, "reason": cause, "finishedAt": now(), "message": termination.to_string(),
    } });
    if let Err(error) = shared.create_pod(&namespace, &pod, own, None).await {
        let Some(message) = refusal(&error) else { return Err(error) };
        report_refusal(&shared, &job, &message).await?;
        return Ok(Action::requeue(Duration::from_millis(300)));
    }
    shared.lock().behaviours.entry((namespace, pipeline)).and_modify(|behaviour| {
        behaviour.job_ends.pop_front();
    });
    let status =
        if behaviour.sidecar { json!({ "startTime": now(), "active": 1, "ready": 0 }) } else { status(succeeds) };
    shared.write_status(&jobs, &job, status).await.inspect_err(|error| eprintln!("the Job {name}: {error}"))?;
    Ok(Action::await_change())
}

fn status(succeeds: bool) -> Value {
    let condition = |kind: &str, reason: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now() });
    if succeeds {
        json!({
            "startTime": now(), "completionTime": now(), "succeeded": 1, "ready": 0, "uncountedTerminatedPods": {},
            "conditions": [condition("SuccessCriteriaMet", "CompletionsReached"), condition("Complete", "CompletionsReached")],
        })
    } else {
        json!({
            "startTime": now(), "failed": 1, "ready": 0, "uncountedTerminatedPods": {},
            "conditions": [condition("FailureTarget", "BackoffLimitExceeded"), condition("Failed", "BackoffLimitExceeded")],
        })
    }
}

/// Writes the Event of the real controller about a pod that it cannot create; the Job's status does not hold it.
async fn report_refusal(shared: &Shared, job: &Job, message: &str) -> Result<(), kube::Error> {
    let (namespace, name) = (job.namespace().unwrap(), job.name_any());
    let events: Api<Event> = Api::namespaced(shared.client.clone(), &namespace);
    let event = json!({
        "metadata": { "name": format!("{name}.refused"), "namespace": namespace },
        "involvedObject": {
            "apiVersion": "batch/v1", "kind": "Job", "namespace": namespace, "name": name, "uid": job.uid().unwrap(),
        },
        "type": "Warning", "reason": "FailedCreate", "message": format!("Error creating: {message}"),
        "source": { "component": "job-controller" }, "firstTimestamp": now(), "lastTimestamp": now(), "count": 1,
    });
    let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    // An earlier Job of the same name, or an earlier pass, may have left one.
    let _ = events.delete(&format!("{name}.refused"), &DeleteParams::default()).await;
    events.create(&PostParams::default(), &event).await.map(|_| ())
}

/// Removes the pods of Jobs that are deleted, as the garbage collector does.
pub(super) async fn remove_pods(jobs: Api<Job>, client: Client) {
    let mut changes = watcher(jobs, watcher::Config::default()).default_backoff().boxed();
    loop {
        let Ok(Some(watcher::Event::Delete(job))) = changes.try_next().await else { continue };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &job.namespace().unwrap());
        for pod in pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            if pod.owner_references().iter().any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref()) {
                let _ = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            }
        }
    }
}
