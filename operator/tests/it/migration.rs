//! A Job migrates the schema before any pod of an image starts; its failure is reported and retried.

use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

use crate::world::{World, condition, conditions, eventually, so};

/// Names and images of the Jobs, by name.
async fn jobs(world: &World) -> Vec<(String, String)> {
    let mut found: Vec<_> = world
        .api::<Job>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|job| {
            let pod = job.spec.clone().unwrap().template.spec.unwrap();
            (job.name_any(), pod.containers[0].image.clone().unwrap())
        })
        .collect();
    found.sort();
    found
}

async fn images(world: &World) -> Vec<String> {
    let deployments = world.api::<Deployment>().list(&ListParams::default()).await.unwrap().items;
    let image =
        |deployment: Deployment| deployment.spec.unwrap().template.spec.unwrap().containers[0].image.clone().unwrap();
    deployments.into_iter().map(image).collect()
}

#[tokio::test]
async fn no_pod_starts_before_the_migration_and_a_failure_is_named_and_retried() {
    let world = World::new("migration").await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| {
        behaviour.hold_jobs = true;
        behaviour.job_ends.push_back(("PostgresUnreachable", "postgres:5432 refuses", 0));
    });
    let operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.waits("payments", "Migrated", "False", "Migrating").await;
    world.two_reconciles(&operator).await;
    assert!(images(&world).await.is_empty(), "Deployments exist");
    assert_eq!(jobs(&world).await.len(), 1);
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.hold_jobs = false);

    let failed = world.waits("payments", "Migrated", "False", "PostgresUnreachable").await;
    assert_eq!(condition(&failed, "Migrated").unwrap().message, "postgres:5432 refuses");
    assert_eq!(condition(&failed, "Ready").unwrap().status, "False");
    assert!(images(&world).await.is_empty(), "Deployments exist");
    let first = jobs(&world).await[0].0.clone();
    assert!(first.ends_with("-1"), "{first}");
    let begun = std::time::Instant::now();
    world.ready("payments", 1).await;
    // 5 s after the first failure, whose time is in whole seconds.
    assert!(begun.elapsed().as_secs_f64() > 3.0, "it was retried at once");
    let now = jobs(&world).await;
    assert_eq!(now.len(), 1, "{now:?}: the failed one is deleted");
    assert_eq!(now[0].0, format!("{}2", first.strip_suffix('1').unwrap()));
}

#[tokio::test]
async fn a_new_image_waits_for_its_migration_and_a_newer_schema_keeps_it_out() {
    let world = World::new("image").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "image": "millrace/service:2" })).await;
    world.ready("payments", 1).await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.hold_jobs = true);
    let generation = world.change("payments", json!({ "spec": { "image": "millrace/service:3" } })).await;
    eventually("a Job of the new image exists", async || {
        let jobs = jobs(&world).await;
        so(jobs.iter().any(|(_, image)| image == "millrace/service:3"), || format!("{jobs:?}"))
    })
    .await;
    world.two_reconciles(&operator).await;
    assert_eq!(images(&world).await, ["millrace/service:2", "millrace/service:2"]);
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.hold_jobs = false);
    world.ready("payments", generation).await;
    assert_eq!(images(&world).await, ["millrace/service:3", "millrace/service:3"]);

    let pods = world.cluster.pods(&world.namespace, "payments");
    let names = |pods: &[crate::cluster::FakePod]| pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| {
        behaviour.job_ends.push_back(("SchemaTooNew", "the schema is of 1.4", 0));
    });
    let older = world.change("payments", json!({ "spec": { "image": "millrace/service:1.9" } })).await;
    let found = world.waits("payments", "Migrated", "False", "SchemaTooNew").await;
    assert_eq!(condition(&found, "Stalled").unwrap().reason, "SchemaTooNew");
    let ready = condition(&found, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.observed_generation), ("True", Some(generation)), "the old one continues");
    assert_eq!(images(&world).await, ["millrace/service:3", "millrace/service:3"]);
    assert_eq!(names(&world.cluster.pods(&world.namespace, "payments")), names(&pods));
    // The next attempt succeeds.
    world.ready("payments", older).await;
}

#[tokio::test]
async fn until_another_server_is_migrated_only_the_number_of_pods_changes() {
    let world = World::new("renamed").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let work = async || {
        let spec = world.api::<Deployment>().get("payments-work").await.unwrap().spec.unwrap();
        (spec.replicas, serde_json::to_string(&spec.template).unwrap())
    };
    let (_, before) = work().await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.hold_jobs = true);
    let other = json!({ "replicas": 3, "postgres": { "urlSecretRef": { "name": "others" } } });
    let generation = world.change("payments", json!({ "spec": other })).await;
    eventually("the Deployment has the number", async || {
        let (replicas, _) = work().await;
        so(replicas == Some(3), || format!("{replicas:?}"))
    })
    .await;
    world.two_reconciles(&operator).await;
    assert_eq!(work().await.1, before, "the pods were changed before the schema was migrated");
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.hold_jobs = false);
    world.ready("payments", generation).await;
    let (replicas, after) = work().await;
    assert_eq!(replicas, Some(3));
    assert!(after.contains("\"others\""), "{after}");
}

#[tokio::test]
async fn a_missing_schema_is_migrated_again_and_contracting_steps_run_last() {
    let world = World::new("missing-schema").await;
    world
        .cluster
        .set_behaviour(&world.namespace, "payments", |behaviour| behaviour.job_ends.push_back(("Migrated", "", 2)));
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let contracted = eventually("contracting steps are run", async || {
        let found = world.get("payments").await;
        let migrated = found.status.clone().unwrap_or_default().migrated.unwrap_or_default();
        let jobs = jobs(&world).await;
        so(migrated.contract == 0 && jobs.len() == 2, || format!("{migrated:?} {jobs:?}")).map(|()| jobs)
    })
    .await;

    let missing = ("NotMigrated", "the schema is empty");
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.problems = vec![missing]);
    let degraded = world.waits("payments", "Degraded", "True", "NotMigrated").await;
    assert_eq!(condition(&degraded, "Degraded").unwrap().message, "the schema is empty", "{:?}", conditions(&degraded));
    eventually("another Job exists", async || {
        let now = jobs(&world).await;
        so(now.iter().any(|(name, _)| name.ends_with("-2") && !contracted.iter().any(|(old, _)| old == name)), || {
            format!("{now:?}")
        })
    })
    .await;
    world.cluster.set_behaviour(&world.namespace, "payments", |behaviour| behaviour.problems.clear());
    world.waits("payments", "Degraded", "False", "AsExpected").await;
    world.ready("payments", 1).await;
}
