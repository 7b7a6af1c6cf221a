//! Servers that refuse commands: a Postgres that takes no writes, a Redis that denies access.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, PrivateRedis, Process, eventually, record, shared};

fn has(status: &Value, reason: &str, words: &str) -> bool {
    status["problems"].as_array().is_some_and(|problems| {
        problems.iter().any(|problem| {
            problem["reason"] == reason && problem["message"].as_str().is_some_and(|message| message.contains(words))
        })
    })
}

async fn end_sessions(pipeline: &Pipeline) {
    pipeline
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name like 'millrace%'",
        )
        .await;
}

/// Waits until the notes of serve are older than the age at which a process counts as dead.
async fn notes_are_old(pipeline: &Pipeline) {
    eventually("the notes of serve are old", async || {
        pipeline
            .number("select count(*) from producers where noted_at > clock_timestamp() - interval '5.5 seconds'")
            .await
            == 0
    })
    .await;
}

async fn check_recovery(pipeline: &Pipeline, serve: &Process, work: &Process, ids: &[String]) {
    serve.has_problems(&[]).await;
    work.has_problems(&[]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(ids).await;
    assert!(work.logged("worker.producer.dead").is_empty(), "serve is alive");
    assert_eq!(pipeline.number("select count(*) from producers where closed").await, 0);
}

#[tokio::test]
async fn a_read_only_postgres_is_a_problem_until_it_takes_writes() {
    let pipeline = Pipeline::new(json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 200);
    let (before, after) = load.records.split_at(100);
    pipeline.send(before).await;
    pipeline.applied().await;
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&pipeline.sql).await.unwrap();
    let set = async |how: &str| {
        let statement = format!("alter database {database} {how}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&pipeline.sql).await.unwrap();
        end_sessions(&pipeline).await;
    };
    set("set default_transaction_read_only = on").await;
    pipeline.send(after).await;
    for process in [&serve, &work] {
        process
            .reports("Postgres is read-only", |status| {
                has(status, "PostgresReadOnlyOrFull", "default_transaction_read_only is on")
            })
            .await;
    }
    work.logs("worker.shard.backing_off").await;
    notes_are_old(&pipeline).await;
    let ended = work.logged("worker.shard.resumed").len();
    set("reset default_transaction_read_only").await;
    eventually("the resumed shards are logged", async || work.logged("worker.shard.resumed").len() > ended).await;
    check_recovery(&pipeline, &serve, &work, &load.ids).await;
}

#[tokio::test]
async fn a_locked_table_is_a_problem_and_no_process_is_dead() {
    let pipeline = Pipeline::new(json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let mut lock = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("lock table producers in exclusive mode").execute(&mut *lock).await.unwrap();
    for process in [&serve, &work] {
        process.reports("a table is locked", |status| has(status, "PostgresReadOnlyOrFull", "waits for a lock")).await;
    }
    notes_are_old(&pipeline).await;
    lock.rollback().await.unwrap();
    check_recovery(&pipeline, &serve, &work, &load.ids).await;
}

#[tokio::test]
async fn a_full_postgres_is_a_problem_until_it_has_room() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    pipeline
        .execute(
            "create function full_disk() returns trigger language plpgsql as
             $$ begin raise exception using errcode = '53100', message = 'No space left on device'; end $$",
        )
        .await;
    pipeline.execute("create trigger full_disk before insert on records execute function full_disk()").await;
    let load = Load::new("r", 50);
    pipeline.send(&load.records).await;
    work.reports("Postgres is full", |status| has(status, "PostgresReadOnlyOrFull", "No space left on device")).await;
    let line = work.logs("worker.shard.backing_off").await;
    assert!(line["error"].as_str().unwrap().ends_with("No space left on device (SQLSTATE 53100)"), "{line}");
    pipeline.execute("drop trigger full_disk on records").await;
    work.logs("worker.shard.resumed").await;
    work.has_problems(&[]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

/// Creates the user `app` with these rights and the password `right`; returns a URL with the given password.
async fn user(pipeline: &Pipeline, redis: &PrivateRedis, password: &str, rights: &[&str]) -> String {
    let words = [&["ACL", "SETUSER", "app", "on", ">right"], rights].concat();
    let _: String = pipeline.redis(&words).await;
    redis.url().replace("redis://", &format!("redis://app:{password}@"))
}

#[tokio::test]
async fn serve_with_a_wrong_redis_password_is_not_ready_and_reports_it() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let url = user(&pipeline, &redis, "wr0ng", &["~*", "+@all"]).await;
    let serve = pipeline.serve_with(&[("MILLRACE_REDIS_URL", &url)]).await;
    let line = serve.logs("serve.redis.denied").await;
    assert!(line["error"].as_str().unwrap().contains("refuses the user or password"), "{line}");
    assert!(!line.to_string().contains("wr0ng"));
    serve.reports("the denied access", |status| has(status, "RedisAccessDenied", "refuses the user or password")).await;
    assert!(!serve.is_ready().await);
    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", ">wr0ng"]).await;
    serve.ready().await;
    serve.has_problems(&[]).await;
    pipeline.send(&[record("a", "d")]).await;
}

#[tokio::test]
async fn a_pipeline_runs_under_the_documented_redis_rights() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (own, streams) = (format!("~{{{}.*}}*", pipeline.name), format!("~{}.*", pipeline.name));
    let url = user(&pipeline, &redis, "right", &[&own, &streams, "+@all", "-@dangerous"]).await;
    let under = [("MILLRACE_REDIS_URL", url.as_str())];
    let (serve, work) = (pipeline.serve_with(&under).await, pipeline.work_with(&under));
    let load = Load::new("r", 300);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    serve.has_problems(&[]).await;
    work.has_problems(&[]).await;
    pipeline.get("/stats").await;

    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "-xadd"]).await;
    let (status, _) = pipeline.post("/records", &record("refused", "d")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let line = serve.logs("accept.append.failed").await.to_string();
    assert!(
        line.to_lowercase().contains("xadd ") && line.contains("docs/configuration.md") && !line.contains("away"),
        "{line}"
    );

    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "+xadd", "resetkeys", &streams]).await;
    let records = pipeline.records(0);
    for process in [&serve, &work] {
        process.reports("the denied key", |status| has(status, "RedisAccessDenied", &records)).await;
    }
}
