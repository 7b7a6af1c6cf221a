//! Pipelines for tests: each has its own schema in the server at `DATABASE_URL`, which is dropped with the value.

use std::{
    io,
    sync::{Arc, Mutex},
};

use millrace_crds::{Partition, RecordPipeline};
use tracing::subscriber::DefaultGuard;

use super::{Pipeline, Store, partitions};
use crate::domain::{Period, ShardId};

/// A migrated and claimed pipeline with a unique name.
pub(crate) struct TestPipeline {
    pub(crate) store: Store,
    pub(crate) manifest: RecordPipeline,
    pub(crate) pipeline: Pipeline,
}

/// The URL of the server for tests.
pub(crate) fn url() -> String {
    std::env::var("DATABASE_URL").expect("DATABASE_URL names a Postgres in which schemas can be made")
}

/// A manifest with a unique name. `spec` is YAML of its fields, in flow style.
pub(crate) fn manifest(spec: &str) -> RecordPipeline {
    let name = format!("t{:016x}", rand::random::<u64>());
    let yaml = format!(
        "{{apiVersion: millrace.dev/v1alpha1, kind: RecordPipeline, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    );
    RecordPipeline::from_yaml(&yaml).unwrap()
}

impl TestPipeline {
    pub(crate) async fn new(spec: &str) -> Self {
        let manifest = manifest(spec);
        let store = Store::connect(&url(), &manifest.metadata.name, 4).unwrap();
        store.migrate(&manifest.metadata.name).await.unwrap();
        store.create_partitions(Partition::Month).await.unwrap();
        let pipeline = store.claim(&manifest, &hex::encode(rand::random::<[u8; 16]>())).await.unwrap();
        Self { store, manifest, pipeline }
    }
}

/// The log lines of this thread, of every level, as JSON.
pub(crate) struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Begins to collect.
    pub(crate) fn start() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE);
        let log = log.with_writer(move || writer.clone()).finish();
        Self { lines, _guard: tracing::subscriber::set_default(log) }
    }

    /// The lines so far.
    pub(crate) fn lines(&self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }
}

/// A migrated pipeline that nothing has claimed, with the partitions of 2026-11-01 and 2026-12-01.
pub(crate) struct UnclaimedPipeline {
    pub(crate) store: Store,
    pub(crate) name: String,
}

impl UnclaimedPipeline {
    pub(crate) async fn new() -> Self {
        let name = manifest("").metadata.name;
        let store = Store::connect(&url(), &name, 20).unwrap();
        store.migrate(&name).await.unwrap();
        create_partition(&store.pool).await;
        Self { store, name }
    }
}

impl Drop for UnclaimedPipeline {
    fn drop(&mut self) {
        drop_schema(&self.name);
    }
}

/// Creates the partitions of 2026-11-01 and 2026-12-01, which rows of tests name.
pub(crate) async fn create_partition(pool: &sqlx::PgPool) {
    for month in [11, 12] {
        let period = Period::stored(chrono::NaiveDate::from_ymd_opt(2026, month, 1).unwrap());
        partitions::create_partition(pool, period).await.unwrap();
    }
}

impl Drop for TestPipeline {
    fn drop(&mut self) {
        drop_schema(&self.manifest.metadata.name);
    }
}

/// Drops a test's schema, on a thread with its own runtime because `Drop` cannot await.
pub(crate) fn drop_schema(name: &str) {
    let schema = Store::schema(name);
    let dropping = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url()).await.unwrap();
            // The test's runtime is blocked meanwhile: its open transactions would hold their locks for ever.
            sqlx::query(
                "select pg_terminate_backend(pid) from pg_locks, pg_class
                 where relation = pg_class.oid and relnamespace = to_regnamespace($1)",
            )
            .bind(&schema)
            .execute(&mut connection)
            .await
            .unwrap();
            // Safe in SQL: this module made the name.
            let drop = format!("drop schema if exists {schema} cascade");
            sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
        });
    });
    // A failed test must not panic again while it unwinds.
    let _ = dropping.join();
}

impl Store {
    /// Deletes a shard's row. The service never does that.
    pub(crate) async fn lose_shard(&self, shard: ShardId) {
        sqlx::query!("delete from shards where shard = $1", shard as ShardId).execute(&self.pool).await.unwrap();
    }

    /// Number of shards that have a row.
    pub(crate) async fn shard_rows(&self) -> i64 {
        sqlx::query_scalar!("select count(*) from shards").fetch_one(&self.pool).await.unwrap().unwrap()
    }

    /// Changes the pipeline id, as if the database were of another pipeline.
    pub(crate) async fn become_another(&self) {
        sqlx::query!("update pipeline set pipeline_id = 'another'").execute(&self.pool).await.unwrap();
    }

    /// Sets the schema number below which a binary is too old.
    pub(crate) async fn need_schema(&self, least: i64) {
        sqlx::query!("update pipeline set min_compatible = $1", least).execute(&self.pool).await.unwrap();
    }

    /// Deletes the record of migrations, as in a backup of an older version.
    pub(crate) async fn delete_migrations(&self) {
        sqlx::query("delete from _sqlx_migrations").execute(&self.pool).await.unwrap();
    }

    /// Registers a spec like another version of this software.
    pub(crate) async fn register_later(&self, version: i64, spec: &str) {
        sqlx::query("insert into policies (version, uid, generation, spec) values ($1, 'later', 1, $2)")
            .bind(version)
            .bind(spec)
            .execute(&self.pool)
            .await
            .unwrap();
    }
}
