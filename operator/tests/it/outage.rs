//! The API server is killed while the operator works, and started again.

use std::process::Command;

use serde_json::json;

use crate::{
    server::Server,
    world::{World, eventually, so},
};

#[tokio::test]
async fn the_operator_continues_after_the_api_server_was_killed() {
    let server = Server::own(&[]).await;
    let world = World::on(&server, "outage").await;
    let operator = world.operator("a", &[]);
    world.create("first", json!({})).await;
    world.ready("first", 1).await;
    let names: Vec<_> = (0..6).map(|number| format!("next-{number}")).collect();
    for name in &names {
        world.create(name, json!({})).await;
    }
    let pid = std::fs::read_to_string(format!("{}/apiserver.pid", server.folder)).unwrap();
    assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    let before = operator.reconciles().await;
    eventually("the operator finds no API server", async || {
        so(operator.reconciles().await > before, || "it has not tried".to_owned())
    })
    .await;
    let start = tokio::process::Command::new(format!("{}/start-apiserver", server.folder)).status().await.unwrap();
    assert!(start.success());
    eventually("the API server answers", async || {
        world.client.apiserver_version().await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    for name in &names {
        world.ready(name, 1).await;
    }
    // Its watches work again, too.
    let generation = world.change("first", json!({ "spec": { "threshold": "2" } })).await;
    world.ready("first", generation).await;
    assert!(operator.runs(), "{}", operator.log());
}
