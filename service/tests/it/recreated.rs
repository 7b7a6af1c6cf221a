//! What Redis or Postgres holds is changed behind the pipeline's back: it is recreated, said, and losses are counted.

use serde_json::json;

use crate::harness::{Load, Pipeline, Process, eventually, record};

/// A pipeline of one shard that did some work and is idle.
async fn idle() -> (Pipeline, Process, Process, Load) {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 50);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    (pipeline, serve, work, load)
}

/// Sends more, and checks that all of it counts.
async fn goes_on(pipeline: &Pipeline, before: Load) {
    let after = Load::from("r", 1_000, 100);
    pipeline.send(&after.records).await;
    eventually("what was sent after it is processed", async || {
        pipeline.number("select count(*) from records where record_id ~ '^r-1...$'").await == after.ids.len() as i64
    })
    .await;
    pipeline.applied().await;
    let ids: Vec<String> = before.ids.into_iter().chain(after.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn an_epoch_above_the_lease_in_redis_is_gone_beyond() {
    let (pipeline, _serve, work, load) = idle().await;
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "epoch", "700", "token", "of another"]).await;
    work.says("worker.fence.higher_in_redis").await;
    goes_on(&pipeline, load).await;
    let epoch: i64 = pipeline.redis(&["HGET", &pipeline.fence(0), "epoch"]).await;
    assert!(epoch > 700, "{epoch}");
    assert_eq!(pipeline.number("select epoch from shards").await, epoch, "both servers agree");
}

#[tokio::test]
async fn a_fence_that_is_gone_is_set_again_and_pending_entries_are_taken_again() {
    let (pipeline, _serve, work, load) = idle().await;
    let stream = pipeline.records(0);
    // An entry that is pending for somebody who is not the owner, as after a Redis that was rewound.
    work.pause();
    pipeline.send(&[record("stray", "destination-0")]).await;
    // The fence first: a read that was on its way when the owner was paused would count what somebody else was given as
    // lost.
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let _: redis::Value =
        pipeline.redis(&["XREADGROUP", "GROUP", "workers", "somebody", "COUNT", "1", "STREAMS", &stream, ">"]).await;
    work.go_on();
    let mut load = load;
    load.ids.push("stray".to_owned());
    eventually("the stray entry is processed", async || {
        pipeline.number("select count(*) from records where record_id = 'stray'").await == 1
    })
    .await;
    goes_on(&pipeline, load).await;
    assert_eq!(pipeline.number("select lost + recreated_streams from shards").await, 0);
}

#[tokio::test]
async fn a_stream_of_another_pipeline_is_refused_and_nothing_of_it_is_taken() {
    let (pipeline, _serve, work, load) = idle().await;
    let of: String = pipeline.redis(&["HGET", &pipeline.fence(0), "pipeline"]).await;
    work.pause();
    let more = Load::from("r", 500, 20);
    pipeline.send(&more.records).await;
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", "0123456789abcdef"]).await;
    work.go_on();
    let line = work.says("worker.shard.backing_off").await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("belongs to the pipeline with id 0123456789abcdef"), "{error}");
    assert_eq!(pipeline.backlog().await, more.records.len() as u64, "nothing was taken");
    assert_eq!(pipeline.number("select count(*) from records").await, load.ids.len() as i64);
    // It is its own again.
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", &of]).await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_stream_that_disappeared_is_recreated_and_reported() {
    let (pipeline, _serve, work, load) = idle().await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    work.says("worker.stream.recreated").await;
    goes_on(&pipeline, load).await;
    assert_eq!(pipeline.number("select recreated_streams from shards").await, 1, "noted once");
    assert_eq!(pipeline.number("select lost from shards").await, 0, "nothing that was known was lost");
    assert!((work.metric("millrace_streams_recreated_total").await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_group_that_disappeared_is_recreated_and_loses_nothing() {
    let (pipeline, _serve, work, load) = idle().await;
    work.pause();
    let more = Load::from("r", 500, 30);
    pipeline.send(&more.records).await;
    let destroyed: i64 = pipeline.redis(&["XGROUP", "DESTROY", &pipeline.records(0), "workers"]).await;
    assert_eq!(destroyed, 1);
    work.go_on();
    work.says("worker.stream.recreated").await;
    let mut load = load;
    load.ids.extend(more.ids);
    goes_on(&pipeline, load).await;
    assert_eq!(pipeline.number("select recreated_streams from shards").await, 1, "noted once");
    assert_eq!(pipeline.number("select lost from shards").await, 0);
}

#[tokio::test]
async fn a_shards_row_that_disappeared_is_made_again() {
    let (pipeline, serve, work, load) = idle().await;
    pipeline.execute("delete from shards").await;
    eventually("its row is made again", async || pipeline.number("select count(*) from shards").await == 1).await;
    eventually("it is said", async || {
        serve.said("store.shard.recreated").len() + work.said("store.shard.recreated").len() == 1
    })
    .await;
    work.says("worker.shard.lost").await;
    goes_on(&pipeline, load).await;
}

#[tokio::test]
async fn entries_that_were_trimmed_unread_are_counted_as_lost() {
    let (pipeline, _serve, mut work, load) = idle().await;
    // Not only paused: what it had asked for would still be given to it.
    work.stop().await;
    pipeline.send(&Load::new("lost", 18).records).await;
    let trimmed: u64 = pipeline.redis(&["XTRIM", &pipeline.records(0), "MAXLEN", "0"]).await;
    assert!(trimmed > 0);
    let work = pipeline.work();
    let line = work.says("worker.records.lost").await;
    assert_eq!(line["lost"], trimmed);
    goes_on(&pipeline, load).await;
    assert_eq!(pipeline.number("select lost from shards").await, trimmed as i64, "counted once");
    assert!((work.metric("millrace_lost_records_total").await - trimmed as f64).abs() < 0.1);
    let stats = pipeline.get("/stats").await;
    assert_eq!(
        (&stats["lost"], &stats["backlog"]),
        (&json!(trimmed), &json!(0)),
        "counted once: what is gone waits for nobody"
    );
}

#[tokio::test]
async fn pending_entries_that_were_deleted_are_counted_as_lost() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "after_read:1")]);
    pipeline.send(&Load::new("r", 40).records).await;
    crashing.died_at_its_fault().await;
    let stream = pipeline.records(0);
    let pending: Vec<(String, String, u64, u64)> =
        pipeline.redis(&["XPENDING", &stream, "workers", "-", "+", "1000"]).await;
    assert!(pending.len() >= 3, "it died with entries in hand");
    let deleted: i64 = pipeline.redis(&["XDEL", &stream, &pending[0].0, &pending[2].0]).await;
    assert_eq!(deleted, 2);
    let work = pipeline.work();
    work.says("worker.records.lost").await;
    pipeline.applied().await;
    assert_eq!(pipeline.number("select lost from shards").await, 2, "counted once");
    assert_eq!(pipeline.get("/stats").await["lost"], 2);
    pipeline.verify().await;
}
