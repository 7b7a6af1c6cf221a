//! Workers whose role in Postgres reads and writes rows, and may not create tables.

use reqwest::Url;
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::harness::{Load, Pipeline};

impl Pipeline {
    /// Runs statements with a generated name, as the owner of the tables.
    async fn execute_as_owner(&self, statements: String) {
        // Safe: the tests write them, with names that they generate.
        let done = sqlx::raw_sql(AssertSqlSafe(statements.clone())).execute(&self.sql).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// Creates a role that reads and writes rows of this pipeline; returns the URL of the database for it.
    async fn grant(&self, role: &str) -> String {
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
