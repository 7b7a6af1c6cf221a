//! Roles of Postgres with few rights or with unusual defaults, and locks that a migration waits for.

use std::time::{Duration, Instant};

use reqwest::Url;
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::harness::{Load, Pipeline, eventually};

impl Pipeline {
    /// Runs statements with a generated name, as the owner of the tables.
    pub(crate) async fn execute_as_owner(&self, statements: String) {
        // Safe: the tests write them, with names that they generate.
        let done = sqlx::raw_sql(AssertSqlSafe(statements.clone())).execute(&self.sql).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// Creates a role that reads and writes rows of this pipeline; returns the URL of the database for it.
    pub(crate) async fn grant(&self, role: &str) -> String {
        let schema = format!("millrace_{}", self.name);
        let grants = format!(
            "create role {role} login;
             grant usage on schema {schema} to {role};
             grant select, insert, update, delete on all tables in schema {schema} to {role};"
        );
        self.execute_as_owner(grants).await;
        let mut url = Url::parse(self.postgres_url()).unwrap();
        url.set_username(role).unwrap();
        url.into()
    }
}

#[tokio::test]
async fn a_role_that_may_not_create_tables_applies_records_and_reports_it() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let role = format!("rows_{}", pipeline.name);
    let url = pipeline.grant(&role).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("r", 200);
    let (first, rest) = load.records.split_at(100);

    // All partitions exist.
    let mut work = pipeline.work_with(&[("MILLRACE_POSTGRES_URL", &url)]);
    work.ready().await;
    pipeline.send(first).await;
    pipeline.applied().await;
    work.has_problems(&[]).await;
    work.stop().await;

    // The partition of the second period to come is missing: that is reported at the start, and delays no record.
    let ahead: String = sqlx::query_scalar(
        "select max(inhrelid::regclass::text) from pg_inherits where inhparent = 'records'::regclass",
    )
    .fetch_one(&pipeline.sql)
    .await
    .unwrap();
    pipeline.execute_as_owner(format!("drop table {ahead}")).await;
    let mut work = pipeline.work_with(&[("MILLRACE_POSTGRES_URL", &url)]);
    let status = work.has_problems(&["PartitionMissing"]).await;
    let message = status["problems"][0]["message"].as_str().unwrap();
    for part in ["cannot be created", "permission denied", "millrace migrate"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let logged = work.logs("worker.partition.failed").await;
    assert!(logged["error"].as_str().unwrap().contains("permission denied"), "{logged}");
    pipeline.send(rest).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;

    // The owner creates it, and the worker continues by itself.
    let migrated = pipeline.command("migrate", &[]).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    work.has_problems(&[]).await;
    pipeline.verify().await;
    work.stop().await;
    pipeline.execute_as_owner(format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_role_without_ddl_rights_migrates_what_is_migrated() {
    let pipeline = Pipeline::new(json!({})).await;
    let role = format!("rows_{}", pipeline.name);
    let url = pipeline.grant(&role).await;
    let migrated = pipeline.command("migrate", &["--postgres-url", &url]).await;
    let text = [migrated.stdout, migrated.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("");
    assert!(migrated.status.success() && text.contains("already"), "{text}");

    // With something to do, it names the right that it lacks, and changes nothing.
    pipeline.execute_as_owner("delete from _sqlx_migrations".to_owned()).await;
    let refused = pipeline.command("migrate", &["--postgres-url", &url, "--wait-ms", "0"]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("permission denied"), "{text}");
    assert_eq!(text.matches("SQLSTATE").count(), 1, "{text}");
    pipeline.execute_as_owner(format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn defaults_of_a_role_and_a_database_change_nothing() {
    let pipeline = Pipeline::new(json!({})).await;
    let role = format!("slow_{}", pipeline.name);
    let url = pipeline.grant(&role).await;
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&pipeline.sql).await.unwrap();
    for (scope, name, value) in [
        ("", "default_transaction_isolation", "serializable"),
        ("", "lock_timeout", "1ms"),
        ("", "idle_in_transaction_session_timeout", "1ms"),
        ("", "search_path", "public"),
        ("", "timezone", "Asia/Tokyo"),
        ("in database", "statement_timeout", "1ms"),
        ("in database", "plan_cache_mode", "force_generic_plan"),
    ] {
        let scope = if scope.is_empty() { String::new() } else { format!("{scope} {database}") };
        pipeline.execute_as_owner(format!("alter role {role} {scope} set {name} = '{value}'")).await;
    }
    let under = [("MILLRACE_POSTGRES_URL", url.as_str())];
    let (serve, work) = (pipeline.serve_with(&under).await, pipeline.work_with(&under));
    let load = Load::new("r", 500);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    for process in [&serve, &work] {
        process.has_problems(&[]).await;
        // Until a session has its own settings it has those of the role: on a busy machine that takes longer than 1 ms, and
        // the process connects again. A commit under that timeout would never end.
        let mut backings_off = process.logged("worker.shard.backing_off");
        backings_off.retain(|line| !line.to_string().contains("due to statement timeout"));
        assert!(backings_off.is_empty(), "{backings_off:?}");
    }
    pipeline.check_exactly_once(&load.ids).await;
    let verified = pipeline.command("verify", &["--postgres-url", &url]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    drop((serve, work));
    pipeline.execute_as_owner(format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn migrate_waits_for_its_lock_as_long_as_it_may_and_says_so() {
    let pipeline = Pipeline::new(json!({})).await;
    let migrate = async |wait: &str| {
        let begun = Instant::now();
        let migrated = pipeline.command("migrate", &["--wait-ms", wait]).await;
        (migrated.status.success(), String::from_utf8_lossy(&migrated.stderr).into_owned(), begun.elapsed())
    };
    let lock = "select pg_advisory_lock(hashtextextended('millrace migrate millrace_' || $1, 0))";
    let mut holder = pipeline.sql.acquire().await.unwrap();
    sqlx::query(lock).bind(&pipeline.name).execute(&mut *holder).await.unwrap();
    let (done, text, took) = migrate("1500").await;
    assert!(!done && took >= Duration::from_millis(1_500) && took < Duration::from_secs(6), "{took:?}: {text}");
    assert_eq!(text.matches("waiting: LockNotAvailable: another session holds the lock").count(), 1, "{text}");
    // It continues when the lock is free.
    let (freed, migrated) = tokio::join!(
        async {
            let waits = "select exists (select from pg_stat_activity where application_name = 'millrace'
                and datname = current_database())";
            eventually("migrate waits", async || sqlx::query_scalar(waits).fetch_one(&pipeline.sql).await.unwrap())
                .await;
            sqlx::query("select pg_advisory_unlock_all()").execute(&mut *holder).await
        },
        migrate("60000")
    );
    freed.unwrap();
    assert!(migrated.0, "{}", migrated.1);

    // A table that somebody locks.
    let mut locked = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("lock table pipeline in access exclusive mode").execute(&mut *locked).await.unwrap();
    let (done, text, took) = migrate("1500").await;
    assert!(!done && took < Duration::from_secs(6) && text.contains("lock timeout"), "{took:?}: {text}");
    assert!(!text.contains("at line") && !text.contains("lock.c"), "{text}");
}
