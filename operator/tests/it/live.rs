//! The effects of changes to a resource, and the pipelines that the operator leaves alone.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::{
    server::Server,
    world::{World, condition, eventually, so},
};

#[tokio::test]
async fn a_live_change_touches_pods_until_all_shards_run_it() {
    let world = World::new("live").await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let generations = async || {
        let all = world.api::<Deployment>().list(&ListParams::default()).await.unwrap().items;
        all.iter().map(|deployment| deployment.metadata.generation).collect::<Vec<_>>()
    };
    let before = generations().await;

    // No kubelet writes the new manifest.
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.touches = usize::MAX);
    let generation = world.change("payments", json!({ "spec": { "threshold": "5" } })).await;
    let touched = async |times: usize| {
        eventually(&format!("each pod was touched {times} times"), async || {
            let pods = world.cluster.pods(&world.namespace, "payments");
            so(pods.iter().all(|pod| pod.touched.len() >= times), || format!("{pods:#?}")).map(|()| pods)
        })
        .await
    };
    for pod in touched(4).await {
        let pauses: Vec<_> = pod.touched.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (pause, least) in pauses.iter().zip([500_u64, 1000, 2000]) {
            // The watch may report the first touch a little late.
            assert!(*pause > Duration::from_millis(least * 7 / 10), "{}: {pauses:?}", pod.name);
        }
    }
    let found = world.get("payments").await;
    let ready = condition(&found, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.observed_generation), ("True", Some(1)), "the old one continues");
    assert_eq!(found.status.clone().unwrap().observed_generation, Some(1));
    assert_eq!(condition(&found, "Progressing").unwrap().status, "True");

    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.touches = 5);
    world.ready("payments", generation).await;
    assert_eq!(generations().await, before, "a pod template changed");
}

#[tokio::test]
async fn a_pipeline_of_another_release_is_left_alone() {
    let world = World::new("claims").await;
    let operator = world.operator("a", &[]);
    let claim = json!({ "millrace.dev/claimed-by": "elsewhere/other" });
    world.create_annotated("theirs", claim, json!({})).await;
    world.create("ours", json!({})).await;
    world.ready("ours", 1).await;
    world.two_reconciles(&operator).await;
    let of_theirs: Vec<_> =
        world.ledger.writes(&world.cluster).into_iter().filter(|((_, name), _)| name.contains("/theirs")).collect();
    let theirs = ("RecordPipeline".to_owned(), format!("{}/theirs", world.namespace));
    assert_eq!(of_theirs, [(theirs, 1)], "only the test wrote it");
    assert!(world.get("theirs").await.finalizers().is_empty());
}

#[tokio::test]
async fn the_operator_changes_nothing_of_a_paused_pipeline() {
    let world = World::new("paused").await;
    let operator = world.operator("a", &[]);
    world.create("never", json!({ "paused": true })).await;
    world.waits("never", "Progressing", "False", "Paused").await;
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    world.change("payments", json!({ "spec": { "paused": true } })).await;
    world.waits("payments", "Progressing", "False", "Paused").await;
    let manifest = async || world.api::<ConfigMap>().get("payments-manifest").await.unwrap().data;
    let before = manifest().await;
    world.patch::<Deployment>("payments-work", json!({ "spec": { "replicas": 5 } })).await;
    world.change("payments", json!({ "spec": { "threshold": "7" } })).await;
    world.two_reconciles(&operator).await;
    world.two_reconciles(&operator).await;
    assert_eq!(manifest().await, before);
    let replicas = async || world.api::<Deployment>().get("payments-work").await.unwrap().spec.unwrap().replicas;
    assert_eq!(replicas().await, Some(5));
    assert!(world.api::<Deployment>().get_opt("never-work").await.unwrap().is_none());

    let generation = world.change("payments", json!({ "spec": { "paused": null } })).await;
    world.ready("payments", generation).await;
    assert_eq!(replicas().await, Some(2));
    assert_ne!(manifest().await, before);
}

#[tokio::test]
async fn an_invalid_pipeline_stalls_no_other() {
    // A definition that accepts everything, as an older or a newer one might.
    let server = Server::own(&[]).await;
    let world = World::on(&server, "invalid").await;
    let loose = r#"[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}},{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/x-kubernetes-validations"}]"#;
    server.kubectl(&["patch", "crd", "recordpipelines.millrace.dev", "--type=json", "-p", loose]).await;
    let kind = kube::core::ApiResource::erase::<millrace_crds::RecordPipelineResource>(&());
    let any = kube::Api::<kube::api::DynamicObject>::namespaced_with(world.client.clone(), &world.namespace, &kind);
    let odd = |name: &str, spec: serde_json::Value| {
        let object = json!({ "apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline", "metadata": { "name": name }, "spec": spec });
        serde_json::from_value::<kube::api::DynamicObject>(object).unwrap()
    };
    eventually("the loose definition is active", async || {
        let created = any.create(&PostParams::default(), &odd("unreadable", json!({ "shards": "many" }))).await;
        created.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    any.create(&PostParams::default(), &odd("nowhere", json!({ "shards": 4 }))).await.unwrap();
    let operator = world.operator("a", &[]);
    for number in 0..20 {
        world.create(&format!("valid-{number}"), json!({})).await;
    }
    for number in 0..20 {
        world.ready(&format!("valid-{number}"), 1).await;
    }
    for (name, word) in [("unreadable", "many"), ("nowhere", "spec.redis.urlSecretRef")] {
        let stalled = eventually(&format!("{name} is reported as invalid"), async || {
            let found = any.get(name).await.unwrap();
            let conditions = found.data["status"]["conditions"].clone();
            let stalled = conditions.as_array().into_iter().flatten().find(|one| one["type"] == "Stalled").cloned();
            stalled.filter(|one| one["reason"] == "InvalidSpec").ok_or_else(|| conditions.to_string())
        })
        .await;
        assert!(stalled["message"].as_str().unwrap().contains(word), "{stalled}");
    }
    world.change("valid-7", json!({ "spec": { "threshold": "7" } })).await;
    world.ready("valid-7", 2).await;
    // One is deleted, the other is fixed and continues.
    any.delete("unreadable", &Default::default()).await.unwrap();
    world.gone("unreadable").await;
    let servers = json!({ "spec": {
        "redis": { "urlSecretRef": { "name": "servers", "key": "redis" } },
        "postgres": { "urlSecretRef": { "name": "servers", "key": "postgres" } },
    } });
    world.change("nowhere", servers).await;
    world.ready("nowhere", 2).await;
    drop(operator);
}

#[tokio::test]
async fn a_refused_field_of_kubernetes_is_reported_and_the_pods_stay() {
    let world = World::new("refused").await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let generation = async || world.api::<Deployment>().get("payments-serve").await.unwrap().metadata.generation;
    let before = generation().await;
    // One breaks the field's schema, the other its rules.
    for terms in [json!("here"), json!([])] {
        let wrong = json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } });
        let change = json!({ "spec": { "serve": { "pod": { "affinity": { "nodeAffinity": wrong } } } } });
        world.change("payments", change).await;
        let degraded = world.waits("payments", "Degraded", "True", "Refused").await;
        let message = condition(&degraded, "Degraded").unwrap().message;
        assert!(message.starts_with("Deployment payments-serve:") && message.contains("ffinity"), "{message}");
        assert_eq!(generation().await, before);
        let right = world.change("payments", json!({ "spec": { "serve": { "pod": null } } })).await;
        world.waits("payments", "Degraded", "False", "AsExpected").await;
        world.ready("payments", right).await;
    }
}
