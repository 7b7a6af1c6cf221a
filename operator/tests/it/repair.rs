//! Owned fields that someone changed are corrected; fields of others stay; unwanted objects are deleted.

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Service},
    networking::v1::{Ingress, NetworkPolicy},
};
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    server::Server,
    world::{World, condition, eventually, so, uid},
};

#[tokio::test]
async fn owned_fields_are_corrected_and_fields_of_others_stay() {
    let world = World::new("drift").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;

    world.patch::<Deployment>("payments-work", json!({ "spec": { "replicas": 7 } })).await;
    let port = json!({ "spec": { "ports": [{ "name": "http", "port": 9999, "targetPort": "http" }] } });
    world.patch::<Service>("payments-serve", port).await;
    for label in ["app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/part-of"] {
        world.patch::<ConfigMap>("payments-manifest", json!({ "metadata": { "labels": { label: "else" } } })).await;
        eventually(&format!("{label} is corrected"), async || {
            let map = world.api::<ConfigMap>().get("payments-manifest").await.unwrap();
            so(map.labels()[label] != "else", || format!("{:?}", map.labels()))
        })
        .await;
    }
    eventually("replicas and port are corrected", async || {
        let work = world.api::<Deployment>().get("payments-work").await.unwrap().spec.unwrap();
        let serve = world.api::<Service>().get("payments-serve").await.unwrap().spec.unwrap();
        let ports: Vec<_> = serve.ports.unwrap_or_default().iter().map(|port| port.port).collect();
        so(work.replicas == Some(2) && ports == [8080], || format!("{:?} {ports:?}", work.replicas))
    })
    .await;

    Server::shared()
        .await
        .kubectl(&["--namespace", &world.namespace, "rollout", "restart", "deployment/payments-work"])
        .await;
    let sidecar = json!({
        "metadata": { "annotations": { "someone": "else" } },
        "spec": { "template": { "spec": { "containers": [{ "name": "a-sidecar", "image": "other:1" }] } } },
    });
    let deployments = world.api::<Deployment>();
    deployments.patch("payments-work", &PatchParams::default(), &Patch::Strategic(sidecar)).await.unwrap();
    // An owned field changes, too, so that the operator has to write.
    world.patch::<Deployment>("payments-work", json!({ "spec": { "revisionHistoryLimit": 9 } })).await;
    eventually("the limit is corrected", async || {
        let limit = deployments.get("payments-work").await.unwrap().spec.unwrap().revision_history_limit;
        so(limit == Some(3), || format!("{limit:?}"))
    })
    .await;
    world.two_reconciles(&operator).await;
    let work = deployments.get("payments-work").await.unwrap();
    assert_eq!(work.annotations()["someone"], "else");
    let template = work.spec.unwrap().template;
    assert!(template.metadata.unwrap().annotations.unwrap().contains_key("kubectl.kubernetes.io/restartedAt"));
    let names: Vec<_> = template.spec.unwrap().containers.into_iter().map(|container| container.name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    // The operator does not mistake the sidecar's image for the pipeline's.
    world.waits("payments", "Progressing", "False", "Complete").await;
}

#[tokio::test]
async fn unwanted_objects_are_deleted_and_objects_of_others_are_not_taken_over() {
    let world = World::new("orphans").await;
    let external = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "clash-manifest" }, "data": { "mine": "1" } });
    let maps = world.api::<ConfigMap>();
    let external = maps.create(&PostParams::default(), &serde_json::from_value(external).unwrap()).await.unwrap();
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "serve": { "ingress": { "host": "shop.example" } } })).await;
    world.create("clash", json!({})).await;
    world.ready("payments", 1).await;
    let ingresses = world.api::<Ingress>();
    assert_eq!(ingresses.list(&ListParams::default()).await.unwrap().items.len(), 1);

    let clash = world.waits("clash", "Degraded", "True", "NameClash").await;
    assert!(condition(&clash, "Degraded").unwrap().message.contains("ConfigMap clash-manifest"));
    assert_eq!(condition(&clash, "Stalled").unwrap().status, "True");
    assert_ne!(condition(&clash, "Ready").unwrap().status, "True");
    let events = world.events("clash").await;
    assert!(events.iter().any(|(reason, _)| reason == "NameClash"), "{events:?}");

    let none = json!({ "spec": { "serve": { "ingress": null }, "networkPolicy": { "enabled": false } } });
    world.change("payments", none).await;
    eventually("Ingress and NetworkPolicies are deleted", async || {
        let ingresses = ingresses.list(&ListParams::default()).await.unwrap().items;
        let policies = world.api::<NetworkPolicy>().list(&ListParams::default()).await.unwrap().items;
        let left: Vec<_> = policies.iter().map(|policy| policy.name_any()).collect();
        so(ingresses.is_empty() && left.iter().all(|name| name.starts_with("clash-")), || format!("{left:?}"))
    })
    .await;
    world.two_reconciles(&operator).await;
    let found = maps.get("clash-manifest").await.unwrap();
    assert_eq!((uid(&found), found.resource_version()), (uid(&external), external.resource_version()));

    // Once it is deleted, the pipeline continues by itself.
    maps.delete("clash-manifest", &Default::default()).await.unwrap();
    world.ready("clash", 1).await;
}

#[tokio::test]
async fn a_schedule_of_verify_is_a_cron_job_that_follows_the_spec() {
    let world = World::new("verify").await;
    let operator = world.operator("a", &[]);
    let cron_jobs = world.api::<CronJob>();
    world.create("payments", json!({ "verify": { "schedule": "30 3 * * *" } })).await;
    world.ready("payments", 1).await;
    let spec = cron_jobs.get("payments-verify").await.unwrap().spec.unwrap();
    assert_eq!((spec.schedule.as_str(), spec.concurrency_policy.as_deref()), ("30 3 * * *", Some("Forbid")));
    // The pod is that of a migration but for its arguments and its labels.
    let jobs =
        world.api::<Job>().list(&ListParams::default().labels("app.kubernetes.io/component=migrate")).await.unwrap();
    let pod = |template: k8s_openapi::api::core::v1::PodTemplateSpec| {
        let mut pod = json!(template.spec.unwrap());
        let container = pod["containers"][0].as_object_mut().unwrap();
        let (name, args) = (container.remove("name").unwrap(), container.remove("args").unwrap());
        (pod, name, args)
    };
    let job_template = spec.job_template;
    let labels = job_template.metadata.and_then(|metadata| metadata.labels);
    assert_eq!(labels, None, "the operator does not take its Jobs for migrations");
    let (verify, name, args) = pod(job_template.spec.unwrap().template);
    let (migration, ..) = pod(jobs.items[0].spec.clone().unwrap().template);
    assert_eq!((verify, name, args), (migration, json!("verify"), json!(["verify"])));

    // It is not changed without a reason, corrected, changed and removed.
    world.two_reconciles(&operator).await;
    assert_eq!(cron_jobs.get("payments-verify").await.unwrap().metadata.generation, Some(1));
    world.patch::<CronJob>("payments-verify", json!({ "spec": { "suspend": true } })).await;
    eventually("it runs again", async || {
        let spec = cron_jobs.get("payments-verify").await.unwrap().spec.unwrap();
        so(spec.suspend == Some(false), || format!("{spec:?}"))
    })
    .await;
    let generation = world.change("payments", json!({ "spec": { "verify": { "schedule": "@hourly" } } })).await;
    world.ready("payments", generation).await;
    assert_eq!(cron_jobs.get("payments-verify").await.unwrap().spec.unwrap().schedule, "@hourly");
    world.change("payments", json!({ "spec": { "verify": null } })).await;
    eventually("it is deleted", async || {
        let left = cron_jobs.list(&ListParams::default()).await.unwrap().items;
        so(left.is_empty(), || format!("{left:?}"))
    })
    .await;
}

#[tokio::test]
async fn an_equal_quantity_in_another_form_is_written_once() {
    let world = World::new("quantity").await;
    let operator = world.operator("a", &[]);
    let resources = |cpu: &str| json!({ "pod": { "resources": { "requests": { "cpu": cpu, "memory": "1024Mi" } } } });
    world.create("payments", json!({ "work": resources("1000m"), "serve": resources("1.0") })).await;
    world.ready("payments", 1).await;
    let generation = async |name: &str| world.api::<Deployment>().get(name).await.unwrap().metadata.generation;
    let (work, serve) = (generation("payments-work").await, generation("payments-serve").await);
    let writes = world.ledger.writes(&world.cluster);
    world.two_reconciles(&operator).await;
    world.two_reconciles(&operator).await;
    assert_eq!(world.ledger.writes(&world.cluster), writes);

    let changed = world.change("payments", json!({ "spec": { "work": resources("1") } })).await;
    world.ready("payments", changed).await;
    world.two_reconciles(&operator).await;
    assert_eq!((generation("payments-work").await, generation("payments-serve").await), (work, serve), "it rolled");
}
