//! The deletion of a pipeline, by each policy.

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::{CronJob, Job},
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde_json::json;

use crate::world::{World, condition, eventually, so};

async fn replicas(world: &World, deployment: &str) -> Option<i32> {
    world.api::<Deployment>().get(deployment).await.unwrap().spec.unwrap().replicas
}

async fn delete(world: &World, name: &str) {
    world.pipelines().delete(name, &DeleteParams::background()).await.unwrap();
}

async fn wait_for_event(world: &World, name: &str, reason: &str, part: &str) {
    eventually(&format!("an Event contains {part}"), async || {
        let events = world.events(name).await;
        so(events.iter().any(|(found, note)| found == reason && note.contains(part)), || format!("{events:?}"))
    })
    .await;
}

#[tokio::test]
async fn drain_stops_serve_and_waits_until_all_is_applied_and_published() {
    let world = World::new("drain").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let objects = world.ledger.writes(&world.cluster).keys().cloned().collect::<Vec<_>>();
    let counts = |backlog, unpublished| {
        world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| {
            (behaviour.backlog, behaviour.unpublished) = (backlog, unpublished);
        });
    };
    counts(5, 2);
    delete(&world, "payments").await;
    let draining = world.waits("payments", "Progressing", "True", "Draining").await;
    assert!(draining.status.unwrap().draining_since.is_some());
    eventually("serve has no pods", async || {
        let left = world.cluster.pods(&world.namespace, "payments");
        so(left.iter().all(|pod| pod.component == "work"), || format!("{left:#?}"))
    })
    .await;
    eventually("the status names the number of queued records", async || {
        let progress = condition(&world.get("payments").await, "Progressing").unwrap();
        so(progress.message.contains("5 records are queued"), || progress.message)
    })
    .await;
    assert_eq!(replicas(&world, "payments-work").await, Some(2));
    counts(0, 2);
    world.two_reconciles(&operator).await;
    world.two_reconciles(&operator).await;
    assert_eq!(replicas(&world, "payments-work").await, Some(2), "not all is published");
    counts(0, 0);
    world.gone("payments").await;
    assert_eq!((replicas(&world, "payments-serve").await, replicas(&world, "payments-work").await), (Some(0), Some(0)));
    assert!(world.cluster.pods(&world.namespace, "payments").is_empty());
    let now = world.ledger.writes(&world.cluster).keys().cloned().collect::<Vec<_>>();
    assert_eq!(now, objects, "something was created");
    let events = world.events("payments").await;
    assert!(!events.iter().any(|(reason, _)| reason == "NotDrained"), "{events:?}");
}

#[tokio::test]
async fn now_removes_the_finalizer_at_once() {
    let world = World::new("now").await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({ "deletionPolicy": "Now" })).await;
    world.ready("payments", 1).await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.backlog = 5);
    delete(&world, "payments").await;
    world.gone("payments").await;
    assert_eq!(replicas(&world, "payments-work").await, Some(2), "Kubernetes removes the children");
}

#[tokio::test]
async fn a_pipeline_that_cannot_drain_is_deleted_with_an_event() {
    let world = World::new("given-up").await;
    let _operator = world.operator("a", &[]);
    world.create("late", json!({ "drainSeconds": 1 })).await;
    world.create("stopped", json!({ "replicas": 0 })).await;
    world.create("foreground", json!({})).await;
    world.create("workerless", json!({})).await;
    world.create("forever", json!({ "deletionPolicy": "Purge" })).await;
    world.ready("late", 1).await;
    world.waits("stopped", "Ready", "False", "Stopped").await;
    for name in ["foreground", "workerless", "forever"] {
        world.ready(name, 1).await;
    }
    for name in ["late", "stopped", "foreground", "workerless", "forever"] {
        world.cluster.set_behaviour(&world.namespace, name, |behaviour| behaviour.backlog = 9);
    }

    delete(&world, "late").await;
    world.gone("late").await;
    wait_for_event(&world, "late", "NotDrained", "not drained within 1 s: 9 records").await;
    delete(&world, "stopped").await;
    world.gone("stopped").await;
    wait_for_event(&world, "stopped", "NotDrained", "replicas is 0").await;
    wait_for_event(&world, "stopped", "NotDrained", "9 records").await;
    for name in ["foreground", "forever"] {
        world.pipelines().delete(name, &DeleteParams::foreground()).await.unwrap();
        eventually("only the finalizer of Kubernetes is left", async || {
            let found = world.get(name).await;
            so(found.finalizers() == ["foregroundDeletion"], || format!("{:?}", found.finalizers()))
        })
        .await;
        wait_for_event(&world, name, "NotDrained", "9 records").await;
    }
    wait_for_event(&world, "forever", "NotPurged", "the data stays in Postgres and Redis").await;
    // As in a namespace that is being deleted: all children are deleted at once.
    delete(&world, "workerless").await;
    world.api::<Deployment>().delete("workerless-work", &DeleteParams::background()).await.unwrap();
    world.gone("workerless").await;
    wait_for_event(&world, "workerless", "NotDrained", "no workers exist: 9 records").await;
}

#[tokio::test]
async fn in_a_terminating_namespace_the_finalizer_is_removed_without_a_purge() {
    let world = World::new("terminating").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "deletionPolicy": "Purge" })).await;
    world.ready("payments", 1).await;
    // No controller of namespaces runs: it stays in this state.
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(world.client.clone());
    namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
    delete(&world, "payments").await;
    world.gone("payments").await;
    // No Event can be created there, either.
    assert!(operator.log().contains("the data stays in Postgres and Redis"), "{}", operator.log());
}

/// Creates a Job of another owner, under the name of the pipeline's own.
async fn create_clashing_job(world: &World, name: &str) {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
        "spec": { "suspend": true, "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "main", "image": "somebody/else:1" }],
        } } },
    });
    let job = serde_json::from_value(job).unwrap();
    world.api::<Job>().create(&kube::api::PostParams::default(), &job).await.unwrap();
}

#[tokio::test]
async fn purge_drains_and_then_removes_the_data_by_a_job() {
    let world = World::new("purge").await;
    let mut operator = world.operator("a", &[]);
    world.create("payments", json!({ "deletionPolicy": "Purge", "verify": { "schedule": "@hourly" } })).await;
    world.ready("payments", 1).await;
    let cron_jobs = world.api::<CronJob>();
    cron_jobs.get("payments-verify").await.unwrap();
    create_clashing_job(&world, "payments-purge-1").await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| {
        behaviour.backlog = 3;
        behaviour.hold_jobs = true;
    });
    delete(&world, "payments").await;
    world.waits("payments", "Progressing", "True", "Draining").await;
    world.two_reconciles(&operator).await;
    let purges = async || {
        let jobs = world.api::<Job>().list(&ListParams::default()).await.unwrap().items;
        let owned = jobs.into_iter().filter(|job| !job.owner_references().is_empty());
        let names = owned.map(|job| job.name_any());
        names.filter(|name| name.starts_with("payments-purge")).collect::<Vec<_>>()
    };
    assert!(purges().await.is_empty(), "records are queued");
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.backlog = 0);
    let clash = world.waits("payments", "Degraded", "True", "NameClash").await;
    let message = condition(&clash, "Degraded").unwrap().message;
    assert!(message.contains("payments-purge-1") && message.contains("delete or rename"), "{message}");
    world.api::<Job>().delete("payments-purge-1", &DeleteParams::background()).await.unwrap();
    eventually("the Job exists", async || {
        let found = purges().await;
        so(found == ["payments-purge-1"], || format!("{found:?}"))
    })
    .await;
    assert!(world.cluster.pods(&world.namespace, "payments").is_empty(), "pods are left");
    eventually("no run of verify begins during the purge", async || {
        let left = cron_jobs.list(&ListParams::default()).await.unwrap().items;
        so(left.is_empty(), || format!("{left:?}"))
    })
    .await;
    world.two_reconciles(&operator).await;
    world.get("payments").await;
    // The next operator finds no worker that could report; the status holds that all is drained.
    operator.signal("KILL");
    operator.ended().await;
    let operator = world.operator("b", &[]);
    world.two_reconciles(&operator).await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.hold_jobs = false);
    world.gone("payments").await;
    let events = world.events("payments").await;
    assert!(!events.iter().any(|(reason, _)| reason.starts_with("Not")), "{events:?}");
}
