//! Servers that are unavailable, locked, full or rewound: no error counts as a data error, and processing resumes by
//! itself.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{
    Load, Pipeline, PrivatePostgres, PrivateRedis, Process, Proxy, eventually, obtain, record, shared,
};

/// Checks that no attempt is counted, no record became a dead letter, and none is lost.
async fn no_data_errors(pipeline: &Pipeline) {
    assert_eq!(pipeline.number("select count(*) from attempts").await, 0, "no attempt is counted");
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0, "nothing became a dead letter");
    assert_eq!(pipeline.number("select sum(lost + recreated_streams)::bigint from shards").await, 0);
}

#[tokio::test]
async fn while_postgres_is_unavailable_records_are_accepted_and_none_is_refused() {
    let mut postgres = PrivatePostgres::start().await;
    let pipeline = Pipeline::on(&shared().await.redis, &postgres.url(), json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 900);
    let (before, during) = load.records.split_at(500);
    pipeline.send(before).await;
    eventually("some records are applied", async || pipeline.number("select count(*) from records").await > 0).await;
    postgres.stop();
    pipeline.send(during).await;
    work.logs("worker.shard.backing_off").await;
    // Long enough for several attempts, whose number must not matter.
    tokio::time::sleep(Duration::from_secs(3)).await;
    postgres.restart().await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
    assert!(work.logged("worker.shard.backing_off").len() <= 12, "it backs off, and logs once a streak");
}

#[tokio::test]
async fn connections_to_postgres_that_fall_silent_are_replaced() {
    let pipeline = Pipeline::new(json!({"shards": 4})).await;
    let proxy = Proxy::to(pipeline.postgres_url()).await;
    let url = proxy.through(pipeline.postgres_url());
    let through_proxy = [("MILLRACE_POSTGRES_URL", url.as_str()), ("MILLRACE_BATCH", "20")];
    let (_serve, _work) = (pipeline.serve().await, pipeline.work_with(&through_proxy));
    let load = Load::new("r", 3_000);
    let (before, during) = load.records.split_at(2_000);
    pipeline.send(before).await;
    eventually("some records are applied", async || pipeline.number("select count(*) from records").await > 0).await;
    proxy.fall_silent();
    pipeline.send(during).await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn while_redis_is_unavailable_serve_answers_503_and_later_resumes() {
    let mut redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 900);
    let (before, after) = load.records.split_at(500);
    pipeline.send(before).await;
    eventually("some records are applied", async || pipeline.number("select count(*) from records").await > 0).await;
    redis.kill();
    let (status, problem) = pipeline.post("/records", &record("refused", "destination-1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert_eq!(problem["retryable"], true);
    work.logs("worker.shard.backing_off").await;
    assert!(serve.is_ready().await, "serve stays ready and answers 503 itself");
    redis.restart().await;
    pipeline.send_through(after).await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// A proxy or a server ends during the handshake: the client gets an error of the protocol, not of the network.
#[tokio::test]
async fn a_redis_whose_handshake_was_cut_is_used_once_it_succeeds() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let proxy = Proxy::to(&redis.url()).await;
    let url = proxy.through(&redis.url());
    let through_proxy = [("MILLRACE_REDIS_URL", url.as_str())];
    let (_serve, work) = (pipeline.serve_with(&through_proxy).await, pipeline.work_with(&through_proxy));
    let load = Load::new("r", 300);
    let (before, after) = load.records.split_at(200);
    pipeline.send(before).await;
    pipeline.applied().await;
    proxy.cut_answers();
    work.logs("worker.shard.backing_off").await;
    eventually("no record is accepted", async || {
        pipeline.post("/records", &after[0]).await.0 == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    // Sent twice, since the first may have used an open connection.
    let (_, problem) = pipeline.post("/records", &after[0]).await;
    assert_eq!(problem["code"], "redis_unavailable", "nothing was sent");
    proxy.restore();
    pipeline.send_through(after).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// A request that was never sent has no unknown outcome.
#[tokio::test]
async fn a_redis_that_had_no_room_for_clients_is_used_once_it_has() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    let (before, after) = load.records.split_at(200);
    pipeline.send(before).await;
    pipeline.applied().await;
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxclients", "1"]).await;
    let _: i64 = pipeline.redis(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    eventually("Redis has no room", async || {
        let (status, problem) = pipeline.post("/records", &after[0]).await;
        status == StatusCode::SERVICE_UNAVAILABLE && problem["code"] == "redis_unavailable"
    })
    .await;
    work.logs("worker.shard.backing_off").await;
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxclients", "10000"]).await;
    pipeline.send_through(after).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_connection_that_redis_closed_while_idle_costs_no_request() {
    let redis = PrivateRedis::start(&["timeout 1"]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let serve = pipeline.serve().await;
    pipeline.send(&[record("before", "d")]).await;
    eventually("Redis has closed the idle connections", async || {
        let clients: String = pipeline.redis(&["CLIENT", "LIST"]).await;
        clients.lines().count() == 1
    })
    .await;
    let (status, answer) = pipeline.post("/records", &record("after", "d")).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert!(serve.logged("accept.append.failed").is_empty());
}

#[tokio::test]
async fn a_locked_shard_waits_and_is_no_data_error() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards for update").execute(&mut *lock).await.unwrap();
    pipeline.send(&load.records).await;
    // Longer than a lease: meanwhile neither a renewal nor a commit succeeds.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(pipeline.number("select count(*) from records").await, 0);
    lock.rollback().await.unwrap();
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// The test's transaction and the commit each wait for a lock of the other: Postgres ends one of them.
#[tokio::test]
async fn a_deadlock_is_no_data_error() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 60);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let mut ids = load.ids;
    // Postgres looks for a deadlock once, a second after the commit began to wait: on a slow machine too early.
    for attempt in 0.. {
        assert!(attempt < 10, "no commit ended in a deadlock");
        // Records with the same keys, which repeat after 140 of them.
        let more = Load::from("r", 140 * (attempt + 1), 60);
        let error = commit_against_locked_totals(&pipeline, &work, &more.records).await;
        pipeline.applied().await;
        ids.extend(more.ids);
        if error.contains("deadlock") {
            break;
        }
    }
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&ids).await;
}

/// The error of the commit of these records, after a transaction that has locked the totals began to wait for the
/// shard's row, which the commit has locked.
async fn commit_against_locked_totals(pipeline: &Pipeline, work: &Process, records: &[Value]) -> String {
    let before = work.logged("worker.shard.backing_off").len();
    let mut other = pipeline.sql.begin_with("begin").await.unwrap();
    // The commit must detect the deadlock, not this transaction.
    sqlx::query("set local deadlock_timeout = '50s'").execute(&mut *other).await.unwrap();
    sqlx::query("select from totals for update").execute(&mut *other).await.unwrap();
    pipeline.send(records).await;
    eventually("the commit waits for the total", async || {
        pipeline
            .number(
                "select count(*) from pg_stat_activity where datname = current_database()
                 and application_name = 'millrace-commit' and wait_event_type = 'Lock'",
            )
            .await
            > 0
    })
    .await;
    sqlx::query("select from shards for update").execute(&mut *other).await.unwrap();
    let line =
        obtain("the commit fails", async || work.logged("worker.shard.backing_off").into_iter().nth(before)).await;
    other.rollback().await.unwrap();
    line["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_full_redis_refuses_new_records_and_still_drains() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    eventually("the worker owns both shards", async || pipeline.shares().await == [2]).await;
    work.pause();
    let load = Load::new("r", 1_000);
    pipeline.send(&load.records).await;
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    let (status, problem) = pipeline.post("/records", &record("refused", "destination-1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    work.resume();
    eventually("the full Redis drains", async || pipeline.backlog().await == 0).await;
    assert_eq!(pipeline.number("select count(*) from records").await, load.ids.len() as i64);
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// Stream and cursor are rewound together, so publishers append the missing entries again. Input entries that reappear
/// are redeliveries by their stream id and content.
#[tokio::test]
async fn a_redis_that_lost_its_last_second_ends_in_the_same_streams() {
    let mut redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 600);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let published = pipeline.sink_entries("notifications").await.len();
    // The worker is paused, so that the remaining entries can be counted.
    work.pause();
    redis.kill();
    redis.truncate_log(40_000);
    redis.restart().await;
    let left = pipeline.sink_entries("notifications").await.len();
    work.resume();
    assert!(left < published, "entries were lost: {left} of {published} are left");
    // Without new records the publishers notice it by themselves.
    eventually("the entries are published again", async || {
        pipeline.sink_entries("notifications").await.len() == published
    })
    .await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    let duplicates = pipeline.number("select sum(duplicates)::bigint from shards").await;
    assert_eq!(duplicates, load.duplicates as i64, "an entry that reappeared is no duplicate");
    let more = Load::from("r", 600, 200);
    pipeline.send_through(&more.records).await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.iter().chain(&more.ids).cloned().collect();
    pipeline.check_exactly_once(&ids).await;
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0);
}
