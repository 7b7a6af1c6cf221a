//! A process dies at each point between append and publish: no record is lost or doubled, and the order within each
//! destination stays.

use reqwest::Method;
use serde_json::json;

use crate::{
    harness::{Load, Pipeline, PrivateRedis, eventually, lost, record, shared, sink},
    rewinds::one_shard,
};

/// Kills a worker at pass number `pass` of the fault point `point`, and checks that a successor applies each record
/// once. Half of the load waits when the worker starts, so that it dies in mid-load; the other half is sent while it
/// dies.
async fn a_worker_dies(point: &str, pass: u32) {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("r", 1_800);
    let (before, after) = load.records.split_at(load.records.len() / 2);
    pipeline.send(before).await;
    let fault = format!("{point}:{pass}");
    // It reads four entries at a time.
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", &fault), ("MILLRACE_BATCH", "4")]);
    tokio::join!(pipeline.send(after), crashing.died_at_its_fault());
    let processed = pipeline.number("select count(*) from records").await;
    assert!(processed < load.ids.len() as i64, "it died before all was done");
    let successor = pipeline.work_with(&[("MILLRACE_BATCH", "100")]);
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    assert_eq!(pipeline.number("select sum(processed)::bigint from shards").await, load.ids.len() as i64);
    assert_eq!(pipeline.number("select sum(duplicates)::bigint from shards").await, load.duplicates as i64);
    assert_eq!(pipeline.number("select sum(recreated_streams)::bigint from shards").await, 0);
    pipeline.counted(0).await;
    // The successor reclaims entries that were read and not acknowledged.
    if ["after_read", "before_commit", "after_commit", "before_ack"].contains(&point) {
        successor.logs("worker.pending.reclaimed").await;
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

/// The script appends to the stream and moves the cursor in one step, so the worker dies after both.
#[tokio::test]
async fn a_worker_that_dies_after_publishing_repeats_no_notification() {
    a_worker_dies("after_publish", 3).await;
}

#[tokio::test]
async fn a_worker_that_dies_while_a_sink_moves_back_repeats_no_notification() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut work = pipeline.work();
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    // The sink cannot start on a stream whose cursor belongs to another sink.
    let taken = ["HSET", &pipeline.cursor("taken"), "pipeline", "0123456789abcdef", "sink", "another"];
    let _: i64 = pipeline.redis(&taken).await;
    pipeline.change(|spec| spec["sinks"][0]["redisStream"]["stream"] = pipeline.stream("taken").into());
    work.logs("publish.sink.halted").await;
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
    let mut crashing = pipeline.serve_with(&[("MILLRACE_FAULT", "after_append:5")]).await;
    let load = Load::new("r", 1_800);
    let restart = async {
        crashing.died_at_its_fault().await;
        pipeline.serve().await
    };
    let ((), _successor) = tokio::join!(pipeline.send_through(&load.records), restart);
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    // The client sent the batch without an answer again: the entries that the dead process had appended are duplicates.
    let duplicates = pipeline.number("select sum(duplicates)::bigint from shards").await;
    assert!(duplicates > load.duplicates as i64, "{duplicates}");
    pipeline.counted(0).await;
}

#[tokio::test]
async fn a_serve_process_that_dies_after_an_append_of_several_entries_is_counted() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let mut crashing = pipeline.serve_with(&[("MILLRACE_FAULT", "after_append:1")]).await;
    let work = pipeline.work();
    pipeline.backdate_fence(0).await;
    let load = Load::new("r", 900);
    let unanswered = pipeline.request(Method::POST, "/records/batch").json(&load.records).send().await;
    assert!(unanswered.is_err(), "{unanswered:?}");
    crashing.died_at_its_fault().await;
    assert_eq!(work.logs("worker.producer.dead").await["records"], load.entries());
    let _serve = pipeline.serve().await;
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    pipeline.counted(0).await;
    assert_eq!(pipeline.number("select accounted from shards").await, 2 * load.entries());
    lost(&pipeline, 0, false).await;
}

/// Redis has the count of a producer that is folded in Postgres, until the successor removes it.
#[tokio::test]
async fn a_worker_that_dies_while_it_folds_a_producer_counts_its_records_once() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let mut former = pipeline.serve().await;
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "after_fold:1")]);
    let loads = [0, 1_000].map(|start| Load::from("r", start, 200));
    pipeline.send(&loads[0].records).await;
    pipeline.applied().await;
    former.stop().await;
    crashing.died_at_its_fault().await;
    let producers = async || {
        let fields: Vec<String> = pipeline.redis(&["HKEYS", &pipeline.fence(0)]).await;
        fields.iter().filter(|field| field.starts_with("by:")).count()
    };
    assert_eq!(pipeline.number("select folded from shards").await, loads[0].entries());
    assert_eq!(producers().await, 1, "the count is still in Redis");
    let _serve = pipeline.serve().await;
    let _work = pipeline.work();
    pipeline.send(&loads[1].records).await;
    pipeline.applied().await;
    eventually("Redis has the count of the newer producer alone", async || producers().await == 1).await;
    assert_eq!(pipeline.number("select folded from shards").await, loads[0].entries());
    pipeline.counted(0).await;
    pipeline.check_exactly_once(&loads.map(|load| load.ids).concat()).await;
}

#[tokio::test]
async fn a_worker_that_dies_after_it_closed_a_dead_producer_counts_its_records_once() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let mut former = pipeline.serve().await;
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "after_producer_closed:1")]);
    pipeline.backdate_fence(0).await;
    let loads = [0, 1_000].map(|start| Load::from("r", start, 200));
    pipeline.send(&loads[0].records).await;
    pipeline.applied().await;
    former.kill();
    crashing.died_at_its_fault().await;
    let _serve = pipeline.serve().await;
    let _work = pipeline.work();
    pipeline.send(&loads[1].records).await;
    pipeline.applied().await;
    pipeline.counted(0).await;
    // Much later it is folded.
    pipeline.execute("update producers set noted_at = noted_at - interval '2 hours' where died").await;
    eventually("the dead producer is folded", async || {
        pipeline.number("select folded from shards").await == loads[0].entries()
    })
    .await;
    pipeline.counted(0).await;
    lost(&pipeline, 0, false).await;
}

/// Appends records that no worker reads, destroys them, and kills a worker at a fault point while it finds the loss. Its
/// successor must not count it again.
async fn a_worker_dies_while_it_finds_a_loss(point: &str, destroy: impl AsyncFn(&Pipeline)) {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, _serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    let loads = [0, 1_000, 2_000].map(|start| Load::from("r", start, 200));
    pipeline.send(&loads[0].records).await;
    pipeline.applied().await;
    work.stop().await;
    pipeline.send(&loads[1].records).await;
    eventually("the producer has noted its count", async || {
        pipeline.number("select sum(appended)::bigint from producers").await == loads[0].entries() + loads[1].entries()
    })
    .await;
    destroy(&pipeline).await;
    let fault = format!("{point}:1");
    pipeline.work_with(&[("MILLRACE_FAULT", &fault)]).died_at_its_fault().await;
    let _successor = pipeline.work();
    pipeline.counted(loads[1].entries()).await;
    pipeline.send(&loads[2].records).await;
    pipeline.counted(loads[1].entries()).await;
    lost(&pipeline, loads[1].entries(), false).await;
    assert_eq!(pipeline.number("select sum(processed)::bigint from shards").await, 400);
}

#[tokio::test]
async fn a_worker_that_dies_after_it_noted_a_loss_notes_it_once() {
    a_worker_dies_while_it_finds_a_loss("after_loss_noted", async |pipeline| {
        let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_dies_after_it_raised_the_counts_of_redis_notes_the_loss_once() {
    a_worker_dies_while_it_finds_a_loss("after_raise", async |pipeline| {
        let _: String = pipeline.redis(&["FLUSHALL"]).await;
    })
    .await;
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
    eventually("some records are applied", async || pipeline.number("select count(*) from records").await > 0).await;
    paused.pause();
    let successor = pipeline.work_with(&[("MILLRACE_BATCH", "20")]);
    pipeline.send(parts[1]).await;
    eventually("the successor owns both shards and has applied all", async || {
        successor.logged("worker.shard.acquired").len() >= 2 && pipeline.backlog().await == 0
    })
    .await;
    // The paused worker waits for entries and must receive none.
    for shard in 0..2 {
        let stream = pipeline.records(shard);
        let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
            pipeline.redis(&["XINFO", "CONSUMERS", &stream, "workers"]).await;
        let pending: Vec<_> = consumers.iter().map(|consumer| &consumer["pending"]).collect();
        assert!(pending.iter().all(|pending| **pending == redis::Value::Int(0)), "{consumers:?}");
    }
    paused.resume();
    pipeline.send(parts[2]).await;
    paused.logs("worker.shard.lost").await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    assert_eq!(pipeline.number("select sum(duplicates)::bigint from shards").await, load.duplicates as i64);
}

/// The owner waits for entries while its lease ends, and wakes when the successor reads the same entries.
#[tokio::test]
async fn an_owner_that_lost_its_shards_unnoticed_reads_nothing() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let long_lease = [("MILLRACE_LEASE_MS", "60000"), ("MILLRACE_BATCH", "10")];
    let old = pipeline.work_with(&long_lease);
    let load = Load::new("r", 600);
    let (before, after) = load.records.split_at(100);
    pipeline.send(before).await;
    pipeline.applied().await;
    // Paused, it renews nothing and notices nothing.
    old.pause();
    pipeline.execute("update workers set seen_until = now() - interval '1 hour'").await;
    pipeline.execute("update shards set lease_until = now() - interval '1 hour'").await;
    let _successor = pipeline.work_with(&long_lease);
    for shard in 0..2 {
        eventually("the successor owns the shard", async || {
            pipeline.redis::<String>(&["HGET", &pipeline.fence(shard), "epoch"]).await == "2"
        })
        .await;
    }
    old.resume();
    pipeline.send(after).await;
    pipeline.applied().await;
    eventually("the former owner reports both as lost", async || old.logged("worker.shard.lost").len() == 2).await;
    for shard in 0..2 {
        let (pending, _, _, _): (u64, redis::Value, redis::Value, redis::Value) =
            pipeline.redis(&["XPENDING", &pipeline.records(shard), "workers"]).await;
        assert_eq!(pending, 0, "the former owner has read no entry");
    }
    pipeline.check_exactly_once(&load.ids).await;
}

/// Waits until a session with this application name waits for a lock.
async fn waits_for_lock(pipeline: &Pipeline, session: &str) {
    eventually("the session waits for the lock", async || {
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

/// An owner is paused while its commit waits for the row of its shard: it gets the lock and does not continue.
#[tokio::test]
async fn an_owner_that_is_paused_during_a_commit_blocks_no_other_worker() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let paused = pipeline.work();
    paused.ready().await;
    let load = Load::new("r", 40);
    let (first, rest) = load.records.split_at(1);
    let (before, after) = rest.split_at(20);
    // From then on only its commits wait for the row of the shard.
    pipeline.send(first).await;
    pipeline.applied().await;
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards for update").execute(&mut *lock).await.unwrap();
    pipeline.send(before).await;
    waits_for_lock(&pipeline, "millrace-commit").await;
    paused.pause();
    lock.rollback().await.unwrap();
    pipeline.send(after).await;
    let successor = pipeline.work();
    successor.logs("worker.shard.acquired").await;
    pipeline.applied().await;
    paused.resume();
    paused.logs("worker.shard.lost").await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_locked_shard_keeps_its_owner_and_delays_no_other() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let _serve = pipeline.serve().await;
    let work = pipeline.work_with(&[("MILLRACE_LEASE_MS", "1000")]);
    eventually("the worker owns the shards", async || pipeline.shares().await == [2]).await;
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards where shard = 0 for update").execute(&mut *lock).await.unwrap();
    let load = Load::new("r", 60);
    pipeline.send(&load.records).await;
    let of_other = "select count(*) = (select processed from shards where shard = 1) and count(*) > 0 from records";
    eventually("the other shard is applied", async || {
        sqlx::query_scalar(of_other).fetch_one(&pipeline.sql).await.unwrap()
            && pipeline.redis::<u64>(&["XLEN", &pipeline.records(1)]).await == 0
    })
    .await;
    lock.rollback().await.unwrap();
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    assert!(work.logged("worker.shard.lost").is_empty());
}

/// A standby that is promoted may lack the commit, and the worker then gives its number to another record.
#[tokio::test]
async fn a_committed_record_is_not_published_before_its_ack() {
    let mut full = sink("notifications", "Processed");
    full["redisStream"]["maxLength"] = 1.into();
    let pipeline = Pipeline::new(json!({"shards": 1, "sinks": [full]})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let records = ["one", "two", "three"].map(|id| record(id, "destination"));
    // The publisher is behind and takes the following rows from the recent commits.
    pipeline.send(&records[..2]).await;
    work.logs("publisher.stopped").await;
    eventually("both are acknowledged", async || pipeline.backlog().await == 0).await;
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards for update").execute(&mut *lock).await.unwrap();
    pipeline.send(&records[2..]).await;
    waits_for_lock(&pipeline, "millrace-commit").await;
    // The third record is committed, and the fence refuses its ack.
    let of: String = pipeline.redis(&["HGET", &pipeline.fence(0), "pipeline"]).await;
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", "0123456789abcdef"]).await;
    lock.rollback().await.unwrap();
    work.logs("worker.shard.backing_off").await;
    assert_eq!(pipeline.number("select count(*) from records").await, 3);
    pipeline.change(|spec| spec["sinks"][0]["redisStream"]["maxLength"] = 0.into());
    let cursor = async || pipeline.redis::<String>(&["HGET", &pipeline.cursor("notifications"), "0"]).await;
    eventually("the publisher continues", async || cursor().await != "1").await;
    assert_eq!(cursor().await, "2");
    let _: i64 = pipeline.redis(&["HSET", &pipeline.fence(0), "pipeline", &of]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&["one", "two", "three"].map(str::to_owned)).await;
}

/// Every task has an owner: outcomes must not stay unpublished while the other tasks continue.
#[tokio::test]
async fn a_publisher_that_panics_ends_the_worker_with_failure() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "before_publish:3:panic"), ("MILLRACE_BATCH", "50")]);
    let load = Load::new("r", 600);
    pipeline.send(&load.records).await;
    let status = crashing.ended().await;
    assert_eq!(status.code(), Some(1), "{status}");
    let death = &crashing.logged("lifecycle.task.failed")[0];
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
    assert!(pending > 0, "it died with entries in flight");
    pipeline.send(new).await;
    let successor = pipeline.work_with(&[("MILLRACE_BATCH", "7")]);
    successor.logs("worker.pending.reclaimed").await;
    pipeline.applied().await;
    // The log has the pending entries first, and all entries in the order of their arrival.
    let order: Vec<String> =
        sqlx::query_scalar("select stream_id from records order by seq").fetch_all(&pipeline.sql).await.unwrap();
    let place = |id: &str| {
        let (ms, n) = id.split_once('-').unwrap();
        (ms.parse::<u64>().unwrap(), n.parse::<u64>().unwrap())
    };
    let places: Vec<_> = order.iter().map(|id| place(id)).collect();
    assert!(places.is_sorted(), "the log has the order of arrival");
    assert_eq!(order.first(), Some(&lowest));
    pipeline.check_exactly_once(&load.ids).await;
}
