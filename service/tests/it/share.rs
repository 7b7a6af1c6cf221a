//! Workers divide shards evenly, return them when they stop, and acquire those of dead workers.

use std::time::Instant;

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::harness::{LEASE_MS, Load, Pipeline, Process, eventually};

async fn shares_become(pipeline: &Pipeline, shares: &[i64]) {
    eventually(&format!("shares of {shares:?}"), async || pipeline.shares().await == shares).await;
}

/// Shard, epoch and end of each lease of a worker that has acquired one.
async fn leases(pipeline: &Pipeline, worker: &Process) -> Vec<(i32, i64, DateTime<Utc>)> {
    let taken = worker.logged("worker.shard.acquired");
    let name = taken[0]["worker"].as_str().unwrap().to_owned();
    sqlx::query_as("select shard, epoch, lease_until from shards where owner = $1")
        .bind(name)
        .fetch_all(&pipeline.sql)
        .await
        .unwrap()
}

#[tokio::test]
async fn workers_share_evenly_return_shards_at_once_and_replace_the_dead() {
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

    // A stopped worker returns its shards: others acquire them long before the lease would end.
    let (begun, mut stopped) = (Instant::now(), workers.remove(0));
    stopped.stop().await;
    assert_eq!(leases(&pipeline, &stopped).await, [], "no lease is left");
    println!("stopped in {:?}; a lease lasts {LEASE_MS} ms", begun.elapsed());
    shares_become(&pipeline, &[2, 2]).await;

    // Others acquire the shards of a killed worker when its leases have ended, not before.
    let mut killed = workers.remove(0);
    killed.kill();
    let leases = leases(&pipeline, &killed).await;
    assert_eq!(leases.len(), 2, "a killed worker returns no shard");
    pipeline.send(second).await;
    shares_become(&pipeline, &[4]).await;
    for (shard, epoch, until) in leases {
        let taken: (i64, DateTime<Utc>) =
            sqlx::query_as("select epoch, taken_at from epochs where shard = $1 and epoch > $2 order by epoch limit 1")
                .bind(shard)
                .bind(epoch)
                .fetch_one(&pipeline.sql)
                .await
                .unwrap();
        assert!(taken.1 >= until, "shard {shard} was taken at {} and leased until {until}", taken.1);
    }
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_stop_in_mid_load_applies_the_batch_in_flight_and_succeeds() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, mut worker) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 1_500);
    let stop = async {
        eventually("some records are applied", async || pipeline.number("select count(*) from records").await > 0)
            .await;
        worker.stop().await;
    };
    tokio::join!(pipeline.send(&load.records), stop);
    for shard in 0..2 {
        let pending: (u64, redis::Value, redis::Value, redis::Value) =
            pipeline.redis(&["XPENDING", &pipeline.records(shard), "workers"]).await;
        assert_eq!(pending.0, 0, "no entry is pending");
    }
    assert_eq!(pipeline.shares().await, Vec::<i64>::new(), "the shards are returned");
    let _successor = pipeline.work();
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}
