//! Stalled is about the newest generation: reports of pods that it replaces, or that have not read it, do not count.

use serde_json::json;

use crate::{
    cluster::Behaviour,
    world::{IMAGE, World, condition},
};

/// The first report of a repair would end `helm upgrade --wait` as failed, if it were still that of the old pods.
#[tokio::test]
async fn a_repair_is_not_stalled_by_what_the_pods_before_it_report() {
    let world = World::new("stalled").await;
    let operator = world.operator("a", &[]);
    let set = |change: fn(&mut Behaviour)| world.cluster.set_behaviour(&world.namespace, "payments", change);
    set(|behaviour| behaviour.problems = vec![("SecretInvalid", "Secret servers")]);
    world.create("payments", json!({})).await;
    world.waits("payments", "Stalled", "True", "SecretInvalid").await;

    // New pods are not created yet: the old ones run, read the new manifest, and report the same as before.
    set(|behaviour| behaviour.broken_image = Some(IMAGE.to_owned()));
    let redis = |name: &str| json!({ "spec": { "redis": { "urlSecretRef": { "name": name, "key": "redis" } } } });
    let repair = world.change("payments", redis("others")).await;
    let repairing = world.waits_of("payments", "Stalled", repair).await;
    world.two_reconciles(&operator).await;
    for found in [repairing, world.get("payments").await] {
        for (kind, status) in [("Stalled", "False"), ("Reconciling", "True"), ("Degraded", "True")] {
            let condition = condition(&found, kind).unwrap();
            assert_eq!((condition.status.as_str(), condition.observed_generation), (status, Some(repair)), "{kind}");
        }
        assert_eq!(condition(&found, "Degraded").unwrap().reason, "SecretInvalid");
    }
    // The new pods report the same: now it is the repair that needs a change.
    set(|behaviour| behaviour.broken_image = None);
    let stalled = world.waits("payments", "Stalled", "True", "SecretInvalid").await;
    assert_eq!(stalled.status.unwrap().observed_generation, Some(repair));

    // A second repair: its pods report nothing.
    set(|behaviour| behaviour.broken_image = Some(IMAGE.to_owned()));
    let second = world.change("payments", redis("right")).await;
    let repairing = world.waits_of("payments", "Stalled", second).await;
    assert_eq!(condition(&repairing, "Stalled").unwrap().status, "False");
    set(|behaviour| {
        behaviour.problems.clear();
        behaviour.broken_image = None;
    });
    let ready = world.ready("payments", second).await;
    assert_eq!(condition(&ready, "Degraded").unwrap().status, "False");
}

#[tokio::test]
async fn a_repaired_manifest_is_not_stalled_before_the_pods_have_read_it() {
    let world = World::new("unread").await;
    let operator = world.operator("a", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let set = |change: fn(&mut Behaviour)| world.cluster.set_behaviour(&world.namespace, "payments", change);
    set(|behaviour| behaviour.problems = vec![("ManifestRefused", "no")]);
    world.waits("payments", "Stalled", "True", "ManifestRefused").await;

    // No kubelet writes the new manifest.
    set(|behaviour| behaviour.touches = usize::MAX);
    let repair = world.change("payments", json!({ "spec": { "threshold": "5" } })).await;
    let repairing = world.waits_of("payments", "Stalled", repair).await;
    world.two_reconciles(&operator).await;
    for found in [repairing, world.get("payments").await] {
        assert_eq!(condition(&found, "Stalled").unwrap().status, "False");
        assert_eq!(condition(&found, "Degraded").unwrap().reason, "ManifestRefused");
        assert_eq!(condition(&found, "Reconciling").unwrap().status, "True");
    }
    // The pods read it, and refuse it, too.
    set(|behaviour| behaviour.touches = 1);
    let stalled = world.waits("payments", "Stalled", "True", "ManifestRefused").await;
    assert_eq!(stalled.status.unwrap().observed_generation, Some(repair));
    set(|behaviour| behaviour.problems.clear());
    world.ready("payments", repair).await;
    world.waits("payments", "Stalled", "False", "AsExpected").await;
}
