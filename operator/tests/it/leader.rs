//! Two operators of one release: one leads, and one that wakes up late does nothing more.

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

/// Lines of the log that tell of a write.
fn writes(operator: &Operator) -> usize {
    let told = ["apply.child.written", "apply.job.created", "controller.condition.changed", "apply.child.deleted"];
    operator.log().lines().filter(|line| told.iter().any(|word| line.contains(word))).count()
}

#[tokio::test]
async fn one_leads_and_another_takes_over_when_it_is_killed_or_told_to_stop() {
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

    // Told to stop, it gives the Lease back: nobody has to wait for its end.
    b.signal("TERM");
    assert!(b.ended().await.success(), "{}", b.log());
    assert_eq!(holder(&world).await.as_deref().unwrap_or(""), "", "{}", b.log());
}

#[tokio::test]
async fn an_operator_that_stalled_past_its_lease_writes_nothing_more_and_ends() {
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
    world.two_looks(&b).await;
    let written = world.ledger.writes(&world.player);
    // It wakes to a world that it believes to be as it left it.
    a.signal("CONT");
    assert!(!a.ended().await.success());
    assert_eq!(writes(&a), before, "it wrote: {}", a.log());
    world.two_looks(&b).await;
    assert_eq!(world.ledger.writes(&world.player), written);
    assert_eq!(holder(&world).await.as_deref(), Some("b"));
}
