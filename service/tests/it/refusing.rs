//! A Postgres that refuses connections, statements or writes: each has a reason of its own, and costs no record.

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, PrivatePostgres, Process, eventually, shared};

pub(crate) fn has(status: &Value, reason: &str, words: &str) -> bool {
    status["problems"].as_array().is_some_and(|problems| {
        problems.iter().any(|problem| {
            problem["reason"] == reason && problem["message"].as_str().is_some_and(|message| message.contains(words))
        })
    })
}

async fn no_dead_letter(pipeline: &Pipeline) {
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0, "nothing became a dead letter");
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
    no_dead_letter(pipeline).await;
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
        // The session may be one that began while the database was read-only.
        let statement = format!("begin read write; alter database {database} {how}; commit");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pipeline.sql).await.unwrap();
    };
    set("set default_transaction_read_only = on").await;
    end_sessions(&pipeline).await;
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
        process.reports("a table is locked", |status| has(status, "PostgresLocked", "waits for a lock")).await;
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
    no_dead_letter(&pipeline).await;
    pipeline.execute("drop trigger full_disk on records").await;
    work.logs("worker.shard.resumed").await;
    work.has_problems(&[]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_standby_is_a_problem_until_it_is_promoted() {
    let mut postgres = PrivatePostgres::start().await;
    let pipeline = Pipeline::on(&shared().await.redis, &postgres.url(), json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 200);
    let (before, after) = load.records.split_at(100);
    pipeline.send(before).await;
    pipeline.applied().await;
    postgres.stop();
    postgres.demote();
    postgres.restart().await;
    let late = pipeline.start_waiting("work", &[]);
    pipeline.send(after).await;
    for process in [&serve, &work, &late] {
        process.reports("a standby", |status| has(status, "PostgresStandby", "give the URL of the primary")).await;
    }
    no_dead_letter(&pipeline).await;
    sqlx::query("select pg_promote()").execute(&pipeline.sql).await.unwrap();
    pipeline.applied().await;
    for process in [&serve, &work, &late] {
        process.has_problems(&[]).await;
    }
    no_dead_letter(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_database_each_have_a_reason() {
    let postgres = PrivatePostgres::start().await;
    let pipeline = Pipeline::on(&shared().await.redis, &postgres.url(), json!({})).await;
    let role = format!("app_{}", pipeline.name);
    let url = pipeline.grant(&role).await;
    pipeline.execute_as_owner(format!("alter role {role} password 'right'")).await;
    postgres.ask_for_password(&role).await;
    let url = url.replace('@', ":wr0ng@");
    let (serve, work) = (
        pipeline.start_waiting("serve", &[("MILLRACE_POSTGRES_URL", &url)]),
        pipeline.start_waiting("work", &[("MILLRACE_POSTGRES_URL", &url)]),
    );
    for process in [&serve, &work] {
        let status = process.has_problems(&["PostgresAccessDenied"]).await.to_string();
        assert!(status.contains("password authentication failed") && !status.contains("wr0ng"), "{status}");
        assert_eq!(status.matches("SQLSTATE").count(), 1, "{status}");
        assert!(!process.is_ready().await);
        assert!(!process.logs("config.pipeline.waiting").await.to_string().contains("wr0ng"));
    }
    pipeline.execute_as_owner(format!("alter role {role} password 'wr0ng'")).await;
    for process in [&serve, &work] {
        process.ready().await;
        process.has_problems(&[]).await;
    }
    // The password changes while they run.
    let load = Load::new("r", 100);
    pipeline.execute_as_owner(format!("alter role {role} password 'other'")).await;
    end_sessions(&pipeline).await;
    for process in [&serve, &work] {
        process.reports("the password", |status| has(status, "PostgresAccessDenied", "password")).await;
    }
    pipeline.execute_as_owner(format!("alter role {role} password 'wr0ng'")).await;
    pipeline.send_through(&load.records).await;
    pipeline.applied().await;
    check_recovery(&pipeline, &serve, &work, &load.ids).await;

    let elsewhere = format!("{}_none", pipeline.postgres_url());
    let lost = pipeline.start_waiting("work", &[("MILLRACE_POSTGRES_URL", &elsewhere)]);
    let status = lost.has_problems(&["PostgresDatabaseNotFound"]).await.to_string();
    assert!(status.contains("does not exist"), "{status}");
}

#[tokio::test]
async fn a_missing_permission_is_a_problem_until_it_is_granted() {
    let pipeline = Pipeline::new(json!({})).await;
    let (role, schema) = (format!("few_{}", pipeline.name), format!("millrace_{}", pipeline.name));
    let url = pipeline.grant(&role).await;
    pipeline.execute_as_owner(format!("revoke usage on schema {schema} from {role}")).await;
    let under = [("MILLRACE_POSTGRES_URL", url.as_str())];
    let (serve, work) = (pipeline.start_waiting("serve", &under), pipeline.start_waiting("work", &under));
    for process in [&serve, &work] {
        let status = process.has_problems(&["PostgresPermissionDenied"]).await.to_string();
        assert!(status.contains(&format!("grant usage on schema {schema} to {role}")), "{status}");
    }
    pipeline.execute_as_owner(format!("grant usage on schema {schema} to {role}")).await;
    for process in [&serve, &work] {
        process.ready().await;
        process.has_problems(&[]).await;
    }
    pipeline.execute_as_owner(format!("revoke insert on records from {role}")).await;
    let load = Load::new("r", 100);
    pipeline.send_through(&load.records).await;
    work.reports("the right", |status| has(status, "PostgresPermissionDenied", "permission denied for table")).await;
    no_dead_letter(&pipeline).await;
    pipeline.execute_as_owner(format!("grant insert on records to {role}")).await;
    pipeline.applied().await;
    check_recovery(&pipeline, &serve, &work, &load.ids).await;
    drop((serve, work));
    pipeline.execute_as_owner(format!("drop owned by {role}; drop role {role}")).await;
}
