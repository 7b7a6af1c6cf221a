//! Servers that are unavailable, locked, full, or that was rewound: nothing is blamed on the data, and all continues by itself.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Load, Pipeline, PrivatePostgres, PrivateRedis, Way, eventually, record, shared};

/// No entry was blamed for what it could do nothing for.
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
    eventually("it is amid work", async || pipeline.number("select count(*) from records").await > 0).await;
    postgres.stop();
    pipeline.send(during).await;
    work.says("worker.shard.backing_off").await;
    // Long enough for several tries: their count is what must not matter.
    tokio::time::sleep(Duration::from_secs(3)).await;
    postgres.start_again().await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
    assert!(work.said("worker.shard.backing_off").len() <= 12, "it waits with back-off and says so once a streak");
}

#[tokio::test]
async fn a_postgres_whose_host_disappeared_without_a_word_is_asked_again() {
    let pipeline = Pipeline::new(json!({"shards": 4})).await;
    let way = Way::to(pipeline.postgres_url()).await;
    let url = way.through(pipeline.postgres_url());
    let by_it = [("MILLRACE_POSTGRES_URL", url.as_str()), ("MILLRACE_BATCH", "20")];
    let (_serve, _work) = (pipeline.serve().await, pipeline.work_with(&by_it));
    let load = Load::new("r", 3_000);
    let (before, during) = load.records.split_at(2_000);
    pipeline.send(before).await;
    eventually("it is amid work", async || pipeline.number("select count(*) from records").await > 0).await;
    way.falls_silent();
    pipeline.send(during).await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn while_redis_is_away_serve_answers_503_and_all_continues_after_it() {
    let mut redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 900);
    let (before, after) = load.records.split_at(500);
    pipeline.send(before).await;
    eventually("it is amid work", async || pipeline.number("select count(*) from records").await > 0).await;
    redis.kill();
    let (status, problem) = pipeline.post("/records", &record("refused", "destination-1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert_eq!(problem["retryable"], true);
    work.says("worker.shard.backing_off").await;
    assert!(serve.is_ready().await, "serve stays ready and answers 503 itself");
    redis.start_again().await;
    pipeline.send_through(after).await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// As where a proxy or a server ends while it greets. What came is no failure of the network then, but of the protocol.
#[tokio::test]
async fn a_redis_whose_greeting_was_torn_is_used_once_it_greets() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let way = Way::to(&redis.url()).await;
    let url = way.through(&redis.url());
    let by_it = [("MILLRACE_REDIS_URL", url.as_str())];
    let (_serve, work) = (pipeline.serve_with(&by_it).await, pipeline.work_with(&by_it));
    let load = Load::new("r", 300);
    let (before, after) = load.records.split_at(200);
    pipeline.send(before).await;
    pipeline.applied().await;
    way.is_torn();
    work.says("worker.shard.backing_off").await;
    eventually("nothing is taken", async || {
        pipeline.post("/records", &after[0]).await.0 == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    // Twice, for the first may have gone out by a connection that was there.
    let (_, problem) = pipeline.post("/records", &after[0]).await;
    assert_eq!(problem["code"], "redis_unavailable", "nothing was sent");
    way.is_mended();
    pipeline.send_through(after).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// What could not be sent has no unknown outcome.
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
    eventually("there is no room", async || {
        let (status, problem) = pipeline.post("/records", &after[0]).await;
        status == StatusCode::SERVICE_UNAVAILABLE && problem["code"] == "redis_unavailable"
    })
    .await;
    work.says("worker.shard.backing_off").await;
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
    assert!(serve.said("accept.append.failed").is_empty());
}

#[tokio::test]
async fn a_locked_shard_waits_and_blames_nothing() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("select from shards for update").execute(&mut *lock).await.unwrap();
    pipeline.send(&load.records).await;
    // Longer than a lease: neither the lease nor the commit could continue meanwhile.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(pipeline.number("select count(*) from records").await, 0);
    lock.rollback().await.unwrap();
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// The test's transaction and the commit each hold what the other wants: Postgres ends one of them.
#[tokio::test]
async fn a_deadlock_blames_nothing() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 60);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    // Holds a key's total; the commit, which holds the shard's row, waits for it.
    let mut other = pipeline.sql.begin_with("begin").await.unwrap();
    // The commit notices the deadlock, not this one.
    sqlx::query("set local deadlock_timeout = '50s'").execute(&mut *other).await.unwrap();
    sqlx::query("select from totals for update").execute(&mut *other).await.unwrap();
    // The same keys again.
    let more = Load::from("r", 140, 60);
    pipeline.send(&more.records).await;
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
    let line = work.says("worker.shard.backing_off").await;
    assert!(line["error"].as_str().unwrap().contains("deadlock"), "{line}");
    other.rollback().await.unwrap();
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_full_redis_refuses_new_records_and_still_drains() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    eventually("it has both shards", async || pipeline.shares().await == [2]).await;
    work.pause();
    let load = Load::new("r", 1_000);
    pipeline.send(&load.records).await;
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    let (status, problem) = pipeline.post("/records", &record("refused", "destination-1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    work.go_on();
    eventually("the full Redis drains", async || pipeline.backlog().await == 0).await;
    assert_eq!(pipeline.number("select count(*) from records").await, load.ids.len() as i64);
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
    pipeline.applied().await;
    no_data_errors(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// Stream and cursor are rewound together, so the publishers publish again what is missing; input entries that come back are
/// known by their stream id and content.
#[tokio::test]
async fn a_redis_that_lost_its_last_second_ends_in_the_same_streams() {
    let mut redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work_with(&[("MILLRACE_BATCH", "50")]));
    let load = Load::new("r", 600);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let published = pipeline.sink_entries("notifications").await.len();
    // Still, so that what is left can be seen.
    work.pause();
    redis.kill();
    redis.cut(40_000);
    redis.start_again().await;
    let left = pipeline.sink_entries("notifications").await.len();
    work.go_on();
    assert!(left < published, "entries were lost: {left} of {published} are left");
    // Nothing new comes: the publishers find out by themselves.
    eventually("what was lost is published again", async || {
        pipeline.sink_entries("notifications").await.len() == published
    })
    .await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    let duplicates = pipeline.number("select sum(duplicates)::bigint from shards").await;
    assert_eq!(duplicates, load.duplicates as i64, "an entry that came back is no duplicate");
    let more = Load::from("r", 600, 200);
    pipeline.send_through(&more.records).await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.iter().chain(&more.ids).cloned().collect();
    pipeline.check_exactly_once(&ids).await;
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0);
}
