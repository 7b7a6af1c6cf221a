//! Plays the controller of Jobs.

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

use super::{COMPONENT, INSTANCE, Stage, now, refusal};

/// Ends a Job as its scene wants it.
pub(super) async fn play(job: Arc<Job>, stage: Arc<Stage>) -> Result<Action, kube::Error> {
    let (namespace, name) = (job.namespace().unwrap(), job.name_any());
    let jobs: Api<Job> = Api::namespaced(stage.client.clone(), &namespace);
    let stands = job.status.clone().unwrap_or_default();
    let ended = |kind: &str| ["Complete", "Failed"].contains(&kind);
    if stands.active.is_some() || stands.conditions.iter().flatten().any(|condition| ended(&condition.type_)) {
        return Ok(Action::await_change());
    }
    let mut pod = serde_json::to_value(&job.spec.as_ref().unwrap().template).unwrap();
    let labels = pod["metadata"]["labels"].clone();
    let pipeline = labels[INSTANCE].as_str().unwrap_or("").to_owned();
    let scene = stage.scene(&namespace, &pipeline);
    if scene.hold_jobs {
        return Ok(Action::requeue(Duration::from_millis(200)));
    }
    let well = if labels[COMPONENT] == "purge" { "Purged" } else { "Migrated" };
    let (reason, message, contract) = scene.outcomes.front().copied().unwrap_or((well, "", 0));
    let well = ["Migrated", "Purged"].contains(&reason);
    let said = json!({
        "reason": reason, "message": message, "schema": { "from": 0, "to": 1 },
        "pipelineId": "0123456789abcdef", "contract": contract,
    });
    pod["metadata"]["generateName"] = json!(format!("{name}-"));
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job.uid().unwrap(), "controller": true,
    }]);
    if scene.sidecar {
        pod["spec"]["containers"].as_array_mut().unwrap().insert(0, json!({ "name": "a-sidecar", "image": "sidecar" }));
    }
    let (code, why) = if well { (0, "Completed") } else { (1, "Error") };
    let own = json!({ "terminated": {
        "exitCode": code, "reason": why, "finishedAt": now(), "message": said.to_string(),
    } });
    if let Err(error) = stage.make_pod(&namespace, &pod, own, None).await {
        let Some(message) = refusal(&error) else { return Err(error) };
        tell(&stage, &job, &message).await?;
        return Ok(Action::requeue(Duration::from_millis(300)));
    }
    stage.cast().scenes.entry((namespace, pipeline)).and_modify(|scene| {
        scene.outcomes.pop_front();
    });
    let status = if scene.sidecar { json!({ "startTime": now(), "active": 1, "ready": 0 }) } else { status(well) };
    stage.status(&jobs, &job, status).await.inspect_err(|error| eprintln!("the Job {name}: {error}"))?;
    Ok(Action::await_change())
}

fn status(well: bool) -> Value {
    let condition = |kind: &str, reason: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now() });
    if well {
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

/// The Event that the real controller writes when it cannot make a pod; the Job's status holds nothing of it.
async fn tell(stage: &Stage, job: &Job, message: &str) -> Result<(), kube::Error> {
    let (namespace, name) = (job.namespace().unwrap(), job.name_any());
    let events: Api<Event> = Api::namespaced(stage.client.clone(), &namespace);
    let event = json!({
        "metadata": { "name": format!("{name}.refused"), "namespace": namespace },
        "involvedObject": {
            "apiVersion": "batch/v1", "kind": "Job", "namespace": namespace, "name": name, "uid": job.uid().unwrap(),
        },
        "type": "Warning", "reason": "FailedCreate", "message": format!("Error creating: {message}"),
        "source": { "component": "job-controller" }, "firstTimestamp": now(), "lastTimestamp": now(), "count": 1,
    });
    let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    // Of a Job of the same name before it, or of this one a moment ago.
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
