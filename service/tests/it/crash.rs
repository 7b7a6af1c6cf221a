//! A process dies at a point of a record's way: nothing is lost, nothing doubled, the order of each destination is kept.

use serde_json::json;

use crate::harness::{Load, Pipeline, eventually, record, sink};

/// Half of the load is there when the worker starts, so it dies during work; the other half comes while it dies.
async fn a_worker_dies(point: &str, pass: u32) {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("r", 1_800);
    let (before, after) = load.records.split_at(load.records.len() / 2);
    pipeline.send(before).await;
    let fault = format!("{point}:{pass}");
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", &fault), ("MILLRACE_BATCH", "100")]);
    tokio::join!(pipeline.send(after), crashing.died_at_its_fault());
    let processed = pipeline.number("select count(*) from records").await;
    assert!(processed < load.ids.len() as i64, "it died before all was done");
    let successor = pipeline.work_with(&[("MILLRACE_BATCH", "100")]);
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    assert_eq!(pipeline.number("select sum(processed)::bigint from shards").await, load.ids.len() as i64);
    assert_eq!(pipeline.number("select sum(duplicates)::bigint from shards").await, load.duplicates as i64);
    assert_eq!(pipeline.number("select sum(lost + recreated_streams)::bigint from shards").await, 0);
    // What was read and not acknowledged was taken over, not waited for.
    if ["after_read", "before_commit", "after_commit", "before_ack"].contains(&point) {
        successor.says("worker.pending.reclaimed").await;
    }
}

#[tokio::test]
async fn a_worker_that_dies_after_reading_loses_nothing() {
    a_worker_dies("after_read", 4).await;
}

#[tokio::test]
async fn a_worker_that_dies_before_its_commit_loses_nothing() {
    a_worker_dies("before_commit", 3).await;
}

#[tokio::test]
async fn a_worker_that_dies_after_its_commit_doubles_nothing() {
    a_worker_dies("after_commit", 3).await;
}

#[tokio::test]
async fn a_worker_that_dies_before_its_ack_doubles_nothing() {
    a_worker_dies("before_ack", 3).await;
}

#[tokio::test]
async fn a_worker_that_dies_after_its_ack_loses_nothing() {
    a_worker_dies("after_ack", 3).await;
}

#[tokio::test]
async fn a_worker_that_dies_before_publishing_loses_no_notification() {
    a_worker_dies("before_publish", 3).await;
}

/// The script that publishes moves the cursor in the same step: behind it is behind both.
#[tokio::test]
async fn a_worker_that_dies_after_publishing_repeats_no_notification() {
    a_worker_dies("after_publish", 3).await;
}

#[tokio::test]
async fn a_worker_that_dies_while_a_sink_comes_back_to_its_stream_repeats_no_notification() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut work = pipeline.work();
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    // It is to move to where it cannot begin.
    let taken = ["HSET", &pipeline.cursor("taken"), "pipeline", "0123456789abcdef", "sink", "another"];
    let _: i64 = pipeline.redis(&taken).await;
    pipeline.change(|spec| spec["sinks"][0]["redisStream"]["stream"] = pipeline.stream("taken").into());
    work.says("publish.sink.halted").await;
    work.stop().await;
    pipeline.change(|spec| spec["sinks"][0] = sink("notifications", "Processed"));
    pipeline.work_with(&[("MILLRACE_FAULT", "before_sink_started:1")]).died_at_its_fault().await;
    let _successor = pipeline.work();
    let more = Load::from("r", load.ids.len(), 100);
    pipeline.send(&more.records).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&[load.ids, more.ids].concat()).await;
}

#[tokio::test]
async fn a_serve_process_that_dies_after_an_append_leaves_it_to_be_sent_again() {
    let pipeline = Pipeline::new(json!({})).await;
    let _work = pipeline.work();
    let mut crashing = pipeline.serve_with(&[("MILLRACE_FAULT", "after_xadd:5")]).await;
    let load = Load::new("r", 1_800);
    let takes_over = async {
        crashing.died_at_its_fault().await;
        pipeline.serve().await
    };
    let ((), _successor) = tokio::join!(pipeline.send_through(&load.records), takes_over);
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    // The client's batch whose answer was lost came twice: what the dead process had appended became duplicates.
    let duplicates = pipeline.number("select sum(duplicates)::bigint from shards").await;
    assert!(duplicates > load.duplicates as i64, "{duplicates}");
}

#[tokio::test]
async fn a_paused_owner_whose_lease_ran_out_takes_and_doubles_nothing() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("r", 2_400);
    let parts: Vec<_> = load.records.chunks(load.records.len().div_ceil(3)).collect();
    let paused = pipeline.work_with(&[("MILLRACE_BATCH", "20")]);
    paused.ready().await;
    pipeline.send(parts[0]).await;
    eventually("it is amid work", async || pipeline.number("select count(*) from records").await > 0).await;
    paused.pause();
    let successor = pipeline.work_with(&[("MILLRACE_BATCH", "20")]);
    pipeline.send(parts[1]).await;
    eventually("the successor has both shards, and did all", async || {
        successor.said("worker.shard.acquired").len() >= 2 && pipeline.backlog().await == 0
    })
    .await;
    // The paused one waits for entries: none of them may end up with it.
    for shard in 0..2 {
        let stream = pipeline.records(shard);
        let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
            pipeline.redis(&["XINFO", "CONSUMERS", &stream, "workers"]).await;
        let pending: Vec<_> = consumers.iter().map(|consumer| &consumer["pending"]).collect();
        assert!(pending.iter().all(|pending| **pending == redis::Value::Int(0)), "{consumers:?}");
    }
    paused.go_on();
    pipeline.send(parts[2]).await;
    paused.says("worker.shard.lost").await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    assert_eq!(pipeline.number("select sum(duplicates)::bigint from shards").await, load.duplicates as i64);
}

/// It waits for entries when its lease is gone, and wakes with the successor at the same entries.
#[tokio::test]
async fn an_owner_that_does_not_know_that_it_lost_its_shards_takes_nothing() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let patient = [("MILLRACE_LEASE_MS", "60000"), ("MILLRACE_BATCH", "10")];
    let old = pipeline.work_with(&patient);
    let load = Load::new("r", 600);
    let (before, after) = load.records.split_at(100);
    pipeline.send(before).await;
    pipeline.applied().await;
    // It looks at its leases again in fifteen seconds.
    pipeline.execute("update workers set seen_until = now() - interval '1 hour'").await;
    pipeline.execute("update shards set lease_until = now() - interval '1 hour'").await;
    let _successor = pipeline.work_with(&patient);
    for shard in 0..2 {
        eventually("the successor has the shard", async || {
            pipeline.redis::<String>(&["HGET", &pipeline.fence(shard), "epoch"]).await == "2"
        })
        .await;
    }
    pipeline.send(after).await;
    pipeline.applied().await;
    eventually("it learned of both", async || old.said("worker.shard.lost").len() == 2).await;
    for shard in 0..2 {
        let (pending, _, _, _): (u64, redis::Value, redis::Value, redis::Value) =
            pipeline.redis(&["XPENDING", &pipeline.records(shard), "workers"]).await;
        assert_eq!(pending, 0, "nothing was taken that nobody works off");
    }
    pipeline.check_exactly_once(&load.ids).await;
}

/// Waits until a transaction waits for a row; `session` is the name under which it connects.
async fn somebody_waits(pipeline: &Pipeline, session: &str) {
    eventually("it waits for the row", async || {
        sqlx::query_scalar(
            "select exists (select from pg_stat_activity where datname = current_database()
             and application_name = $1 and wait_event_type = 'Lock')",
        )
        .bind(session)
        .fetch_one(&pipeline.sql)
        .await
        .unwrap()
    })
    .await;
}

/// A worker is paused while a transaction of its waits for its shard's row: it gets the row and does not continue. The others
/// must get the shard all the same. `session` is the name under which that transaction connects; records that were sent
/// before it waits make it a commit, else it is a renewal.
async fn an_owner_is_paused_that_waits_for_its_row(session: &str, sent_before: usize) {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let paused = pipeline.work();
    paused.ready().await;
    eventually("it has the shard", async || pipeline.shares().await == [1]).await;
    let load = Load::new("r", 40);
    let (before, after) = load.records.split_at(sent_before);
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards for update").execute(&mut *lock).await.unwrap();
    pipeline.send(before).await;
    somebody_waits(&pipeline, session).await;
    paused.pause();
    lock.rollback().await.unwrap();
    pipeline.send(after).await;
    let successor = pipeline.work();
    successor.says("worker.shard.acquired").await;
    pipeline.applied().await;
    paused.go_on();
    paused.says("worker.shard.lost").await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn an_owner_that_is_paused_during_a_commit_blocks_nobody() {
    an_owner_is_paused_that_waits_for_its_row("millrace-commit", 20).await;
}

#[tokio::test]
async fn an_owner_that_is_paused_during_a_renewal_blocks_nobody() {
    an_owner_is_paused_that_waits_for_its_row("millrace", 0).await;
}

/// A standby of Postgres that takes its place may not have it, and its number is given again.
#[tokio::test]
async fn what_is_committed_and_not_acknowledged_is_not_published() {
    let mut full = sink("notifications", "Processed");
    full["redisStream"]["maxLength"] = 1.into();
    let pipeline = Pipeline::new(json!({"shards": 1, "sinks": [full]})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let records = ["one", "two", "three"].map(|id| record(id, "destination"));
    // The publisher is behind, and finds all that follows in memory.
    pipeline.send(&records[..2]).await;
    work.says("publisher.stopped").await;
    eventually("both are acknowledged", async || pipeline.backlog().await == 0).await;
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards for update").execute(&mut *lock).await.unwrap();
    pipeline.send(&records[2..]).await;
    somebody_waits(&pipeline, "millrace-commit").await;
    // The third is committed, and the fence takes no ack.
    let of: String = pipeline.redis(&["HGET", &pipeline.fence(0), "pipeline"]).await;
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", "0123456789abcdef"]).await;
    lock.rollback().await.unwrap();
    work.says("worker.shard.backing_off").await;
    assert_eq!(pipeline.number("select count(*) from records").await, 3);
    pipeline.change(|spec| spec["sinks"][0]["redisStream"]["maxLength"] = 0.into());
    let cursor = async || pipeline.redis::<String>(&["HGET", &pipeline.cursor("notifications"), "0"]).await;
    eventually("the publisher continues", async || cursor().await != "1").await;
    assert_eq!(cursor().await, "2");
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", &of]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&["one", "two", "three"].map(str::to_owned)).await;
}

/// No task without an owner: what a publisher would have published must not stay unpublished while the rest continues.
#[tokio::test]
async fn a_publisher_that_panics_ends_the_worker_with_failure() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "before_publish:3:panic"), ("MILLRACE_BATCH", "50")]);
    let load = Load::new("r", 600);
    pipeline.send(&load.records).await;
    let status = crashing.ended().await;
    assert_eq!(status.code(), Some(1), "{status}");
    let death = &crashing.said("lifecycle.task.failed")[0];
    assert_eq!(death["task"], "own", "{death}");
    assert!(death["failure"].as_str().unwrap().contains("the fault of a test"), "{death}");
    let _successor = pipeline.work();
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn pending_entries_of_a_predecessor_come_before_new_ones_in_order() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "before_commit:1"), ("MILLRACE_BATCH", "30")]);
    crashing.ready().await;
    let load = Load::new("r", 300);
    let (old, new) = load.records.split_at(100);
    pipeline.send(old).await;
    crashing.died_at_its_fault().await;
    let stream = pipeline.records(0);
    let (pending, lowest, _, _): (u64, String, String, redis::Value) =
        pipeline.redis(&["XPENDING", &stream, "workers"]).await;
    assert!(pending > 0, "it died with entries in hand");
    pipeline.send(new).await;
    let successor = pipeline.work_with(&[("MILLRACE_BATCH", "7")]);
    successor.says("worker.pending.reclaimed").await;
    pipeline.applied().await;
    // In the order of the log, entries that were pending come first, and all in the order of their arrival.
    let order: Vec<String> =
        sqlx::query_scalar("select stream_id from records order by seq").fetch_all(&pipeline.sql).await.unwrap();
    let place = |id: &str| {
        let (ms, n) = id.split_once('-').unwrap();
        (ms.parse::<u64>().unwrap(), n.parse::<u64>().unwrap())
    };
    let places: Vec<_> = order.iter().map(|id| place(id)).collect();
    assert!(places.is_sorted(), "records stand in the order of arrival");
    assert_eq!(order.first(), Some(&lowest));
    pipeline.check_exactly_once(&load.ids).await;
}
