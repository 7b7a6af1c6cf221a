//! A pipeline becomes Ready with one write for each child, and nothing is written after that.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::ResourceExt as _;
use millrace_crds::status_api::RedisDurability;
use serde_json::json;

use crate::{
    cluster::Behaviour,
    world::{IMAGE, World, condition, eventually, so, uid},
};

#[tokio::test]
async fn a_pipeline_becomes_ready_with_one_write_for_each_child_and_none_after() {
    let world = World::new("ready").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({ "serve": { "replicas": 2, "ingress": { "host": "shop.example" } } })).await;
    let ready = world.ready("payments", 1).await;

    for (kind, status, reason) in [
        ("Ready", "True", "ManifestActive"),
        ("Migrated", "True", "Migrated"),
        ("Progressing", "False", "Complete"),
        ("Reconciling", "False", "Complete"),
        ("Degraded", "False", "AsExpected"),
        ("Stalled", "False", "AsExpected"),
        ("RedisDurable", "True", "AsExpected"),
    ] {
        let condition = condition(&ready, kind).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), (status, reason), "{kind}");
        assert_eq!(condition.observed_generation, Some(1), "{kind}");
    }
    let status = ready.status.clone().unwrap();
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.endpoint, Some(format!("http://payments-serve.{}.svc:8080", world.namespace)));
    let claim = format!("{}/millrace", world.namespace);
    assert_eq!(ready.annotations()["millrace.dev/claimed-by"], claim);
    assert_eq!(ready.finalizers(), ["millrace.dev/drain"]);
    let work = world.api::<Deployment>().get("payments-work").await.unwrap();
    let spec = work.spec.clone().unwrap();
    assert_eq!(spec.replicas, Some(2));
    assert_eq!(spec.template.spec.unwrap().containers[0].image.as_deref(), Some(IMAGE));
    assert_eq!(work.owner_references()[0].uid, uid(&ready));
    let manifest = world.api::<ConfigMap>().get("payments-manifest").await.unwrap().data.unwrap();
    assert!(manifest["pipeline.yaml"].contains("threshold"), "{manifest:?}");

    // The ledger counts by watches, which may be behind.
    let writes = eventually("every child is in the ledger", async || {
        let writes = world.ledger.writes(&world.cluster);
        // 12 objects, 2 Deployments, a Job, their 5 pods, and the resource.
        so(writes.len() == 12 + 2 + 1 + 5 + 1, || format!("{writes:#?}")).map(|()| writes)
    })
    .await;
    for ((kind, name), count) in &writes {
        match kind.as_str() {
            // The test creates it. The four pods become ready at once, or one by one, with a write each.
            "RecordPipeline" => assert!(*count <= 4 + 1 + 3, "{count} writes on the resource"),
            // The cluster creates it and writes its status.
            "Pod" => assert!(*count <= 2, "{count} writes on pod {name}"),
            _ => assert_eq!(*count, 1, "{kind} {name}"),
        }
    }

    world.two_reconciles(&operator).await;
    world.two_reconciles(&operator).await;
    assert_eq!(world.ledger.writes(&world.cluster), writes, "a second reconcile wrote");

    // Neither an operator without memory nor an annotation of someone else causes a write.
    drop(operator);
    let again = world.operator("a", &[]);
    eventually("the operator works again", async || so(again.reconciles().await > 2, || again.log())).await;
    world.two_reconciles(&again).await;
    assert_eq!(world.ledger.writes(&world.cluster), writes, "a restarted operator wrote");
    world.change("payments", json!({ "metadata": { "annotations": { "someone": "else" } } })).await;
    world.two_reconciles(&again).await;
    let mut expected = writes;
    *expected.get_mut(&("RecordPipeline".into(), format!("{}/payments", world.namespace))).unwrap() += 1;
    eventually("the ledger has the annotation", async || {
        let writes = world.ledger.writes(&world.cluster);
        so(writes == expected, || format!("{writes:#?}"))
    })
    .await;
}

#[tokio::test]
async fn the_durability_of_redis_is_a_condition() {
    let world = World::new("durable").await;
    let _operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    world.waits("payments", "RedisDurable", "True", "AsExpected").await;
    let set = |change: fn(&mut Behaviour)| world.cluster.set_behaviour(&world.namespace, "payments", change);
    set(|behaviour| {
        behaviour.durability = Some(RedisDurability::NotDurable);
        behaviour.problems = vec![("RedisNotDurable", "appendfsync everysec")];
    });
    let weak = world.waits("payments", "RedisDurable", "False", "RedisNotDurable").await;
    assert_eq!(condition(&weak, "RedisDurable").unwrap().message, "appendfsync everysec");
    assert_eq!(condition(&weak, "Degraded").unwrap().reason, "RedisNotDurable");
    set(|behaviour| {
        behaviour.durability = Some(RedisDurability::Unknown);
        behaviour.problems.clear();
    });
    let hidden = world.waits("payments", "RedisDurable", "Unknown", "DurabilityUnknown").await;
    assert_eq!(condition(&hidden, "Degraded").unwrap().status, "False");
    set(|behaviour| behaviour.durability = Some(RedisDurability::Durable));
    world.waits("payments", "RedisDurable", "True", "AsExpected").await;
}

/// kstatus (Flux, `helm --wait` of Helm 4) takes an object without a status for one that is ready.
#[tokio::test]
async fn a_pipeline_that_no_operator_has_seen_observes_no_generation() {
    let world = World::new("unseen").await;
    let created = world.create("payments", json!({})).await;
    assert_eq!(created.metadata.generation, Some(1));
    assert_eq!(created.status.and_then(|status| status.observed_generation), Some(-1));
    let _operator = world.operator("a", &[]);
    let ready = world.ready("payments", 1).await;
    assert_eq!(ready.status.and_then(|status| status.observed_generation), Some(1));
}
