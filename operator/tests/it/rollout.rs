//! The rollout of another default image: one pipeline at a time, and none after a failure.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::world::{IMAGE, World, eventually, so};

const NEXT: &str = "millrace/service:2";

async fn image(world: &World, pipeline: &str) -> String {
    let work = world.api::<Deployment>().get(&format!("{pipeline}-work")).await.unwrap();
    work.spec.unwrap().template.spec.unwrap().containers[0].image.clone().unwrap()
}

async fn takes(world: &World, pipeline: &str) {
    eventually(&format!("{pipeline} takes the next image"), async || {
        let found = image(world, pipeline).await;
        so(found == NEXT, || found)
    })
    .await;
}

#[tokio::test]
async fn a_new_default_image_rolls_pipelines_one_by_one_and_stops_at_a_failure() {
    let world = World::new("rollout").await;
    let before = world.operator("a", &[]);
    let broken = |name: &str, image: Option<&str>| {
        world
            .cluster
            .set_behaviour(&world.namespace, name, |behaviour| behaviour.broken_image = image.map(str::to_owned));
    };
    for name in ["a", "b", "c"] {
        world.create(name, json!({})).await;
    }
    world.create("own", json!({ "image": "millrace/service:own" })).await;
    for name in ["a", "b", "c", "own"] {
        world.ready(name, 1).await;
    }
    drop(before);
    broken("a", Some(NEXT));
    broken("b", Some(NEXT));
    let operator = world.operator("a", &[("MILLRACE_DEFAULT_IMAGE", NEXT)]);
    takes(&world, "a").await;
    for name in ["b", "c"] {
        world.waits(name, "Progressing", "True", "WaitingForRollout").await;
    }
    world.two_reconciles(&operator).await;
    assert_eq!([image(&world, "b").await, image(&world, "c").await], [IMAGE, IMAGE]);
    broken("a", None);
    takes(&world, "b").await;
    world.ready("a", 1).await;
    world.two_reconciles(&operator).await;
    assert_eq!(image(&world, "c").await, IMAGE);
    broken("b", None);
    takes(&world, "c").await;
    for name in ["a", "b", "c", "own"] {
        world.waits(name, "Progressing", "False", "Complete").await;
        world.ready(name, 1).await;
    }
    assert_eq!(image(&world, "own").await, "millrace/service:own");
}
