//! Workers share the shards out, give them back, and take over those of the dead.

use std::time::Instant;

use serde_json::json;

use crate::harness::{LEASE_MS, Load, Pipeline, Process, eventually};

async fn shares_become(pipeline: &Pipeline, shares: &[i64]) {
    eventually(&format!("shares of {shares:?}"), async || pipeline.shares().await == shares).await;
}

#[tokio::test]
async fn workers_share_evenly_give_back_at_once_and_take_over_the_dead() {
    let pipeline = Pipeline::new(json!({"shards": 4})).await;
    let _serve = pipeline.serve().await;
    let mut workers: Vec<Process> = Vec::new();
    for shares in [[4].as_slice(), &[2, 2], &[1, 1, 2]] {
        workers.push(pipeline.work());
        shares_become(&pipeline, shares).await;
    }
    let load = Load::new("r", 400);
    let (first, second) = load.records.split_at(200);
    pipeline.send(first).await;

    // Given back in order: others have them long before the lease would run out.
    let begun = Instant::now();
    workers.remove(0).stop().await;
    let stopped = begun.elapsed();
    let given_back = pipeline.number("select count(*) from shards where owner is null or lease_until > now()").await;
    assert_eq!(given_back, 4, "no lease is left to run out");
    shares_become(&pipeline, &[2, 2]).await;
    println!("stopped in {stopped:?}, shared out after {:?}; a lease lasts {LEASE_MS} ms", begun.elapsed());

    // Killed: others have them once the lease ran out, not before.
    let epochs = "select sum(epoch)::bigint from shards";
    let (begun, before) = (Instant::now(), pipeline.number(epochs).await);
    workers.remove(0).kill();
    pipeline.send(second).await;
    shares_become(&pipeline, &[4]).await;
    println!("taken over {:?} after the death", begun.elapsed());
    assert!(pipeline.number(epochs).await >= before + 2, "a take-over raises the epoch");
    pipeline.settled().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_stop_in_mid_load_settles_what_is_in_hand_and_ends_in_order() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, mut worker) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 1_500);
    let stops = async {
        eventually("it is amid work", async || pipeline.number("select count(*) from records").await > 0).await;
        worker.stop().await;
    };
    tokio::join!(pipeline.send(&load.records), stops);
    for shard in 0..2 {
        let pending: (u64, redis::Value, redis::Value, redis::Value) =
            pipeline.redis(&["XPENDING", &pipeline.records(shard), "workers"]).await;
        assert_eq!(pending.0, 0, "nothing is left in hand");
    }
    assert_eq!(pipeline.shares().await, Vec::<i64>::new(), "the shards were given back");
    let _heir = pipeline.work();
    pipeline.settled().await;
    pipeline.check_exactly_once(&load.ids).await;
}
