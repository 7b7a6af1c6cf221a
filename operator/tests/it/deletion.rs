//! The end of a pipeline.

use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
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

async fn told(world: &World, name: &str, reason: &str, words: &str) {
    eventually(&format!("an Event tells {words}"), async || {
        let events = world.events(name).await;
        so(events.iter().any(|(found, note)| found == reason && note.contains(words)), || format!("{events:?}"))
    })
    .await;
}

#[tokio::test]
async fn drain_takes_no_more_works_off_what_is_queued_publishes_it_and_creates_nothing() {
    let world = World::new("drain").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let objects = world.ledger.writes(&world.player).keys().cloned().collect::<Vec<_>>();
    let counts = |backlog, unpublished| {
        world.player.scene(&world.namespace, "payments", |scene| {
            (scene.backlog, scene.unpublished) = (backlog, unpublished);
        });
    };
    counts(5, 2);
    delete(&world, "payments").await;
    let goes = world.waits("payments", "Progressing", "True", "Draining").await;
    assert!(goes.status.unwrap().draining_since.is_some());
    eventually("serve has no pods", async || {
        let left = world.player.actors(&world.namespace, "payments");
        so(left.iter().all(|pod| pod.component == "work"), || format!("{left:#?}"))
    })
    .await;
    eventually("it says how many are queued", async || {
        let progress = condition(&world.get("payments").await, "Progressing").unwrap();
        so(progress.message.contains("5 records are queued"), || progress.message)
    })
    .await;
    assert_eq!(replicas(&world, "payments-work").await, Some(2));
    counts(0, 2);
    world.two_looks(&operator).await;
    world.two_looks(&operator).await;
    assert_eq!(replicas(&world, "payments-work").await, Some(2), "not all is published");
    counts(0, 0);
    world.gone("payments").await;
    assert_eq!((replicas(&world, "payments-serve").await, replicas(&world, "payments-work").await), (Some(0), Some(0)));
    assert!(world.player.actors(&world.namespace, "payments").is_empty());
    let now = world.ledger.writes(&world.player).keys().cloned().collect::<Vec<_>>();
    assert_eq!(now, objects, "something was created");
    let events = world.events("payments").await;
    assert!(!events.iter().any(|(reason, _)| reason == "NotDrained"), "{events:?}");
}

#[tokio::test]
async fn now_lets_go_at_once() {
    let world = World::new("now").await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({ "deletionPolicy": "Now" })).await;
    world.ready("payments", 1).await;
    world.player.scene(&world.namespace, "payments", |scene| scene.backlog = 5);
    delete(&world, "payments").await;
    world.gone("payments").await;
    assert_eq!(replicas(&world, "payments-work").await, Some(2), "what goes with it is Kubernetes' to remove");
}

#[tokio::test]
async fn what_cannot_be_drained_is_let_go_and_named() {
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
        world.player.scene(&world.namespace, name, |scene| scene.backlog = 9);
    }

    delete(&world, "late").await;
    world.gone("late").await;
    told(&world, "late", "NotDrained", "not drained within 1 s: 9 records").await;
    delete(&world, "stopped").await;
    world.gone("stopped").await;
    told(&world, "stopped", "NotDrained", "replicas is 0").await;
    told(&world, "stopped", "NotDrained", "9 records").await;
    for name in ["foreground", "forever"] {
        world.pipelines().delete(name, &DeleteParams::foreground()).await.unwrap();
        eventually("only Kubernetes holds it", async || {
            let found = world.get(name).await;
            so(found.finalizers() == ["foregroundDeletion"], || format!("{:?}", found.finalizers()))
        })
        .await;
        told(&world, name, "NotDrained", "9 records").await;
    }
    told(&world, "forever", "NotPurged", "the data stays in Postgres and Redis").await;
    // As in a namespace that is being removed: all goes at once.
    delete(&world, "workerless").await;
    world.api::<Deployment>().delete("workerless-work", &DeleteParams::background()).await.unwrap();
    world.gone("workerless").await;
    told(&world, "workerless", "NotDrained", "no workers are there: 9 records").await;
}

#[tokio::test]
async fn a_namespace_that_is_being_removed_lets_go_though_no_job_can_be_made_in_it() {
    let world = World::new("terminating").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "deletionPolicy": "Purge" })).await;
    world.ready("payments", 1).await;
    // No controller of namespaces runs: it stays in this state.
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(world.client.clone());
    namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
    delete(&world, "payments").await;
    world.gone("payments").await;
    // No Event can be made there, either.
    assert!(operator.log().contains("the data stays in Postgres and Redis"), "{}", operator.log());
}

/// A Job of somebody else, by the name that the pipeline's has.
async fn someones_job(world: &World, name: &str) {
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
    world.create("payments", json!({ "deletionPolicy": "Purge" })).await;
    world.ready("payments", 1).await;
    someones_job(&world, "payments-purge-1").await;
    world.player.scene(&world.namespace, "payments", |scene| {
        scene.backlog = 3;
        scene.hold_jobs = true;
    });
    delete(&world, "payments").await;
    world.waits("payments", "Progressing", "True", "Draining").await;
    world.two_looks(&operator).await;
    let purges = async || {
        let jobs = world.api::<Job>().list(&ListParams::default()).await.unwrap().items;
        let owned = jobs.into_iter().filter(|job| !job.owner_references().is_empty());
        let names = owned.map(|job| job.name_any());
        names.filter(|name| name.starts_with("payments-purge")).collect::<Vec<_>>()
    };
    assert!(purges().await.is_empty(), "records are queued");
    world.player.scene(&world.namespace, "payments", |scene| scene.backlog = 0);
    let clash = world.waits("payments", "Degraded", "True", "NameClash").await;
    let message = condition(&clash, "Degraded").unwrap().message;
    assert!(message.contains("payments-purge-1") && message.contains("delete or rename"), "{message}");
    world.api::<Job>().delete("payments-purge-1", &DeleteParams::background()).await.unwrap();
    eventually("the Job is there", async || {
        let found = purges().await;
        so(found == ["payments-purge-1"], || format!("{found:?}"))
    })
    .await;
    assert!(world.player.actors(&world.namespace, "payments").is_empty(), "pods are left");
    world.two_looks(&operator).await;
    world.get("payments").await;
    // Whoever comes after it finds no worker to ask, and what it found out is there to read.
    operator.signal("KILL");
    operator.ended().await;
    let operator = world.operator("b", &[]);
    world.two_looks(&operator).await;
    world.player.scene(&world.namespace, "payments", |scene| scene.hold_jobs = false);
    world.gone("payments").await;
    let events = world.events("payments").await;
    assert!(!events.iter().any(|(reason, _)| reason.starts_with("Not")), "{events:?}");
}
