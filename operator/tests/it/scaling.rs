//! The number of pods: from the resource, or from the backlog.

use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use serde_json::json;

use crate::{
    server::Server,
    world::{World, condition, eventually, so},
};

async fn replicas(world: &World, deployment: &str) -> Option<i32> {
    world.api::<Deployment>().get(deployment).await.unwrap().spec.unwrap().replicas
}

async fn become_replicas(world: &World, deployment: &str, wanted: i32) {
    eventually(&format!("{deployment} has {wanted} replicas"), async || {
        let found = replicas(world, deployment).await;
        so(found == Some(wanted), || format!("{found:?}"))
    })
    .await;
}

#[tokio::test]
async fn workers_follow_the_backlog_and_stay_while_it_is_unknown() {
    let world = World::new("autoscaling").await;
    let operator = world.operator("a", &[("MILLRACE_SCALE_DOWN_SECONDS", "1")]);
    let scaling = json!({ "minReplicas": 1, "maxReplicas": 4, "targetBacklog": 100 });
    world.create("payments", json!({ "replicas": null, "autoscaling": scaling })).await;
    world.ready("payments", 1).await;
    assert_eq!(replicas(&world, "payments-work").await, Some(1));
    let backlog = |backlog, silent| {
        world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| {
            (behaviour.backlog, behaviour.silent) = (backlog, silent)
        });
    };
    backlog(250, false);
    become_replicas(&world, "payments-work", 3).await;
    backlog(100_000, false);
    become_replicas(&world, "payments-work", 4).await;
    world.ready("payments", 1).await;
    backlog(0, true);
    world.two_reconciles(&operator).await;
    world.two_reconciles(&operator).await;
    assert_eq!(replicas(&world, "payments-work").await, Some(4), "it scaled by an unknown backlog");
    backlog(0, false);
    become_replicas(&world, "payments-work", 1).await;
    world.ready("payments", 1).await;
}

#[tokio::test]
async fn kubectl_scale_sets_the_workers_and_zero_stops_the_pipeline() {
    let world = World::new("scale").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "replicas": null })).await;
    world.ready("payments", 1).await;
    // As an autoscaler reads it.
    let path = format!("/apis/millrace.dev/v1alpha1/namespaces/{}/recordpipelines/payments/scale", world.namespace);
    let read = async || {
        let text = Server::shared().await.kubectl(&["get", "--raw", &path]).await;
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    eventually("the scale has the worker", async || {
        let scale = read().await;
        let has_worker = scale["spec"]["replicas"] == 1 && scale["status"]["replicas"] == 1;
        let selected = scale["status"]["selector"].as_str().unwrap_or_default();
        so(has_worker && selected.contains("app.kubernetes.io/component=work"), || scale.to_string())
    })
    .await;
    let scale = async |replicas: &str| {
        let to = format!("--replicas={replicas}");
        Server::shared().await.kubectl(&["--namespace", &world.namespace, "scale", "rpl/payments", &to]).await;
    };
    scale("3").await;
    become_replicas(&world, "payments-work", 3).await;
    let ready = world.ready("payments", 2).await;
    assert_eq!(ready.status.unwrap().selector.unwrap().matches('=').count(), 3);
    scale("0").await;
    let stopped = world.waits("payments", "Ready", "False", "Stopped").await;
    become_replicas(&world, "payments-work", 0).await;
    assert_eq!(condition(&stopped, "Ready").unwrap().observed_generation, Some(3));
    assert_eq!(replicas(&world, "payments-serve").await, Some(1), "records are accepted and wait");
    world.two_reconciles(&operator).await;
    assert_eq!(condition(&world.get("payments").await, "Progressing").unwrap().reason, "Stopped");
    scale("1").await;
    world.ready("payments", 4).await;
}

#[tokio::test]
async fn serve_keeps_its_pods_when_an_autoscaler_takes_over() {
    let world = World::new("takeover").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "serve": { "replicas": 3 } })).await;
    world.ready("payments", 1).await;
    let scaling =
        json!({ "spec": { "serve": { "replicas": null, "autoscaling": { "minReplicas": 1, "maxReplicas": 5 } } } });
    let generation = world.change("payments", scaling.clone()).await;
    world.ready("payments", generation).await;
    assert!(world.api::<HorizontalPodAutoscaler>().get_opt("payments-serve").await.unwrap().is_some());
    let pods = |deployment: &Deployment| deployment.spec.as_ref().unwrap().replicas;
    let serve = world.api::<Deployment>().get("payments-serve").await.unwrap();
    assert_eq!((pods(&serve), serve.metadata.generation), (Some(3), Some(1)), "the number fell at least for a moment");
    // The number that the autoscaler sets stays.
    world.patch::<Deployment>("payments-serve", json!({ "spec": { "replicas": 4 } })).await;
    world.two_reconciles(&operator).await;
    assert_eq!(replicas(&world, "payments-serve").await, Some(4));
    let fixed = async |replicas: i32| {
        world.change("payments", json!({ "spec": { "serve": { "replicas": replicas, "autoscaling": null } } })).await;
        become_replicas(&world, "payments-serve", replicas).await;
    };
    fixed(2).await;
    eventually("the autoscaler is deleted", async || {
        let left = world.api::<HorizontalPodAutoscaler>().get_opt("payments-serve").await.unwrap();
        so(left.is_none(), || "it exists".to_owned())
    })
    .await;
    // An autoscaler ignores a Deployment with 0 replicas.
    fixed(0).await;
    world.change("payments", scaling).await;
    become_replicas(&world, "payments-serve", 1).await;
}
