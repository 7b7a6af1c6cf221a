//! Two operators of one release: one leads, and one that resumes after its lease does nothing more.

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;

use crate::world::{Operator, World, eventually, so};

async fn holder(world: &World) -> Option<String> {
    world.api::<Lease>().get_opt("millrace").await.unwrap().and_then(|lease| lease.spec?.holder_identity)
}

async fn leads(world: &World, identity: &str) {
    eventually(&format!("{identity} leads"), async || {
        let holder = holder(world).await;
        so(holder.as_deref() == Some(identity), || format!("{holder:?}"))
    })
    .await;
}

/// The number of log lines about a write.
fn writes(operator: &Operator) -> usize {
    let events = ["apply.child.written", "apply.job.created", "controller.condition.changed", "apply.child.deleted"];
    operator.log().lines().filter(|line| events.iter().any(|event| line.contains(event))).count()
}

#[tokio::test]
async fn another_operator_takes_over_when_the_leader_is_killed_or_stopped() {
    let world = World::new("leader").await;
    let mut a = world.operator("a", &[]);
    leads(&world, "a").await;
    let mut b = world.operator("b", &[]);
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    assert_eq!(writes(&b), 0);
    a.signal("KILL");
    a.ended().await;
    let generation = world.change("payments", json!({ "spec": { "threshold": "2" } })).await;
    world.ready("payments", generation).await;
    leads(&world, "b").await;

    // A signal to stop makes it release the Lease, so that the next leader need not wait for its end.
    b.signal("TERM");
    assert!(b.ended().await.success(), "{}", b.log());
    assert_eq!(holder(&world).await.as_deref().unwrap_or(""), "", "{}", b.log());
}

#[tokio::test]
async fn an_operator_that_stalled_past_its_lease_ends_without_a_write() {
    let world = World::new("asleep").await;
    let mut a = world.operator("a", &[]);
    leads(&world, "a").await;
    world.create("payments", json!({})).await;
    world.ready("payments", 1).await;
    let b = world.operator("b", &[]);
    a.signal("STOP");
    let before = writes(&a);
    let generation = world.change("payments", json!({ "spec": { "threshold": "2", "replicas": 3 } })).await;
    leads(&world, "b").await;
    world.ready("payments", generation).await;
    world.two_reconciles(&b).await;
    let written = world.ledger.writes(&world.cluster);
    // Its caches are as old as the stall.
    a.signal("CONT");
    assert!(!a.ended().await.success());
    assert_eq!(writes(&a), before, "it wrote: {}", a.log());
    world.two_reconciles(&b).await;
    assert_eq!(world.ledger.writes(&world.cluster), written);
    assert_eq!(holder(&world).await.as_deref(), Some("b"));
}
