//! Keys of Redis or rows of Postgres change without the pipeline: it recreates them, reports that, and counts losses.

use serde_json::json;

use crate::harness::{Load, Pipeline, Process, eventually, record};

/// A pipeline of one shard that has applied a load and is idle.
async fn idle() -> (Pipeline, Process, Process, Load) {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 50);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    (pipeline, serve, work, load)
}

/// Sends more records, and checks that each counts once.
async fn continues(pipeline: &Pipeline, before: Load) {
    let after = Load::from("r", 1_000, 100);
    pipeline.send(&after.records).await;
    eventually("the new records are processed", async || {
        pipeline.number("select count(*) from records where record_id ~ '^r-1...$'").await == after.ids.len() as i64
    })
    .await;
    pipeline.applied().await;
    let ids: Vec<String> = before.ids.into_iter().chain(after.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn an_epoch_in_redis_above_the_lease_is_exceeded() {
    let (pipeline, _serve, work, load) = idle().await;
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "epoch", "700", "token", "of another"]).await;
    work.logs("worker.epoch.raised").await;
    continues(&pipeline, load).await;
    let epoch: i64 = pipeline.redis(&["HGET", &pipeline.fence(0), "epoch"]).await;
    assert!(epoch > 700, "{epoch}");
    assert_eq!(pipeline.number("select epoch from shards").await, epoch, "both servers agree");
}

#[tokio::test]
async fn a_missing_fence_is_set_again_and_pending_entries_are_reclaimed() {
    let (pipeline, _serve, work, load) = idle().await;
    let stream = pipeline.records(0);
    // An entry is pending for a consumer that is not the owner, as after a rewind of Redis.
    work.pause();
    pipeline.send(&[record("stray", "destination-0")]).await;
    // The fence is deleted first: otherwise a read that the owner had sent before the pause would count the entry that
    // the other consumer reads as lost.
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let _: redis::Value =
        pipeline.redis(&["XREADGROUP", "GROUP", "workers", "another", "COUNT", "1", "STREAMS", &stream, ">"]).await;
    work.resume();
    let mut load = load;
    load.ids.push("stray".to_owned());
    eventually("the stray entry is processed", async || {
        pipeline.number("select count(*) from records where record_id = 'stray'").await == 1
    })
    .await;
    continues(&pipeline, load).await;
    assert_eq!(pipeline.number("select lost + recreated_streams from shards").await, 0);
}

#[tokio::test]
async fn a_stream_of_another_pipeline_is_refused_and_not_read() {
    let (pipeline, _serve, work, load) = idle().await;
    let of: String = pipeline.redis(&["HGET", &pipeline.fence(0), "pipeline"]).await;
    work.pause();
    let more = Load::from("r", 500, 20);
    pipeline.send(&more.records).await;
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", "0123456789abcdef"]).await;
    work.resume();
    let line = work.logs("worker.shard.backing_off").await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("belongs to the pipeline with id 0123456789abcdef"), "{error}");
    assert_eq!(pipeline.backlog().await, more.records.len() as u64, "no entry was read");
    assert_eq!(pipeline.number("select count(*) from records").await, load.ids.len() as i64);
    // The stream belongs to this pipeline again.
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", &of]).await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_stream_that_disappeared_is_recreated_and_reported() {
    let (pipeline, _serve, work, load) = idle().await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    work.logs("worker.stream.recreated").await;
    continues(&pipeline, load).await;
    assert_eq!(pipeline.number("select recreated_streams from shards").await, 1, "noted once");
    assert_eq!(pipeline.number("select lost from shards").await, 0, "no counted record was lost");
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
    work.resume();
    work.logs("worker.stream.recreated").await;
    let mut load = load;
    load.ids.extend(more.ids);
    continues(&pipeline, load).await;
    assert_eq!(pipeline.number("select recreated_streams from shards").await, 1, "noted once");
    assert_eq!(pipeline.number("select lost from shards").await, 0);
}

#[tokio::test]
async fn a_deleted_shard_row_is_recreated() {
    let (pipeline, serve, work, load) = idle().await;
    pipeline.execute("delete from shards").await;
    eventually("the row is recreated", async || pipeline.number("select count(*) from shards").await == 1).await;
    eventually("one process logs it", async || {
        serve.logged("store.shard.recreated").len() + work.logged("store.shard.recreated").len() == 1
    })
    .await;
    work.logs("worker.shard.lost").await;
    continues(&pipeline, load).await;
}

#[tokio::test]
async fn entries_that_were_trimmed_unread_are_counted_as_lost() {
    let (pipeline, _serve, mut work, load) = idle().await;
    // Stopped, not paused: Redis would still deliver the entries to the read of a paused worker.
    work.stop().await;
    let gone = Load::new("lost", 18);
    pipeline.send(&gone.records).await;
    let entries: u64 = pipeline.redis(&["XTRIM", &pipeline.records(0), "MAXLEN", "0"]).await;
    assert!(entries > 0);
    let trimmed = gone.entries();
    let work = pipeline.work();
    let line = work.logs("worker.records.lost").await;
    assert_eq!(line["lost"], trimmed);
    continues(&pipeline, load).await;
    assert_eq!(pipeline.number("select lost from shards").await, trimmed, "counted once");
    assert!((work.metric("millrace_lost_records_total").await - trimmed as f64).abs() < 0.1);
    let stats = pipeline.get("/stats").await;
    assert_eq!(
        (&stats["lost"], &stats["backlog"]),
        (&json!(trimmed), &json!(0)),
        "counted once: a lost record is not in the backlog"
    );
}

#[tokio::test]
async fn pending_entries_that_were_deleted_are_counted_as_lost() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    // Requests one after the other: an entry for each.
    for record in Load::new("r", 8).records {
        pipeline.send(&[record]).await;
    }
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "after_read:1")]);
    crashing.died_at_its_fault().await;
    let stream = pipeline.records(0);
    let pending: Vec<(String, String, u64, u64)> =
        pipeline.redis(&["XPENDING", &stream, "workers", "-", "+", "1000"]).await;
    assert!(pending.len() >= 3, "it died with entries in flight");
    let deleted: i64 = pipeline.redis(&["XDEL", &stream, &pending[0].0, &pending[2].0]).await;
    assert_eq!(deleted, 2);
    let work = pipeline.work();
    work.logs("worker.records.lost").await;
    pipeline.applied().await;
    assert_eq!(pipeline.number("select lost from shards").await, 2, "counted once");
    assert_eq!(pipeline.get("/stats").await["lost"], 2);
    pipeline.verify().await;
}
