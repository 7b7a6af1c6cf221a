use sqlx::{SqlSafeStr as _, migrate::MigrationType};

use super::*;
use crate::store::testing::{self, TestPipeline};

#[tokio::test]
async fn concurrent_migrations_run_one_after_another() {
    let manifest = testing::manifest("shards: 1");
    let name = &manifest.metadata.name;
    let store = Store::connect(&testing::url(), name, 8).unwrap();
    assert_eq!(store.pipeline().await.unwrap(), None, "no schema yet");
    let migrating = async || loop {
        match store.migrate(name).await {
            Err(Error::Locked(holder)) => assert!(holder.contains("holds the lock"), "{holder}"),
            outcome => break outcome.unwrap(),
        }
    };
    let outcomes = futures::future::join_all((0..4).map(|_| migrating())).await;
    assert_eq!(outcomes.iter().filter(|migrated| migrated.from == 0).count(), 1);
    assert_eq!(store.pipeline().await.unwrap(), None, "not claimed yet");
    testing::drop_schema(name);
}

#[tokio::test]
async fn a_migration_names_the_session_that_holds_its_lock() {
    let test = TestPipeline::new("shards: 1").await;
    let name = &test.manifest.metadata.name;
    let mut holder = test.store.pool.acquire().await.unwrap();
    Store::take_turn(&mut holder, &Store::schema(name)).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *holder).await.unwrap();
    let Err(Error::Locked(why)) = test.store.migrate(name).await else { panic!("another session holds the lock") };
    assert!(why.contains(&format!("pid {pid} (millrace, connected since")), "{why}");
}

#[tokio::test]
async fn a_migration_waits_for_a_locked_table_no_longer_than_the_lock_timeout() {
    let test = TestPipeline::new("shards: 1").await;
    let (store, name) = (&test.store, &test.manifest.metadata.name);
    let steps = |timeout: &str| {
        let mut steps: Vec<Migration> = STEPS.all.iter().cloned().collect();
        let sql = format!("set local lock_timeout = '{timeout}'; alter table totals add column x int");
        let kind = MigrationType::Simple;
        steps.push(Migration::new(1_001, "x".into(), kind, sqlx::AssertSqlSafe(sql).into_sql_str(), false));
        Steps::of(Migrator::with_migrations(steps))
    };
    let mut other = store.begin().await.unwrap();
    sqlx::query("lock table totals").execute(&mut *other).await.unwrap();
    let locked = store.migrate_by(&steps("50ms"), name, false).await;
    assert!(matches!(&locked, Err(Error::Locked(why)) if why.contains("lock timeout")), "{locked:?}");
    other.rollback().await.unwrap();
    // A session that is about to close may hold its lock for longer than 50 ms.
    assert_eq!(store.migrate_by(&steps("30s"), name, false).await.unwrap().to, 1_001);
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused_and_unchanged() {
    let database = format!("latin{:016x}", rand::random::<u64>());
    let url = testing::url();
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let create = format!("create database {database} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let store = Store::connect(&format!("{server}/{database}"), "latin", 1).unwrap();
    let refused = store.migrate("latin").await;
    assert!(
        matches!(&refused, Err(Error::Refused(why)) if why.contains("LATIN1") && why.contains("encoding 'UTF8'")),
        "{refused:?}"
    );
    let made: bool = sqlx::query_scalar("select to_regnamespace('millrace_latin') is not null")
        .fetch_one(&store.pool)
        .await
        .unwrap();
    assert!(!made);
    store.close().await;
    let drop = format!("drop database {database}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
}

#[tokio::test]
async fn a_schema_of_an_older_format_is_refused_with_the_remedy_and_unchanged() {
    let test = TestPipeline::new("shards: 1").await;
    let (store, name) = (&test.store, &test.manifest.metadata.name);
    let edited = "update _sqlx_migrations set checksum = '\\x00' where version = 1";
    sqlx::query(edited).execute(&store.pool).await.unwrap();
    for outcome in [store.migrate_by(&later(), name, false).await, store.migrate_by(&later(), name, true).await] {
        let Err(Error::Refused(why)) = outcome else { panic!("{outcome:?}") };
        for part in [&*Store::schema(name), "an older format", "`millrace purge`", "another name"] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }
    let added = "select to_regclass('ways') is not null";
    assert!(!sqlx::query_scalar::<_, bool>(added).fetch_one(&store.pool).await.unwrap());
}

#[tokio::test]
async fn a_binary_that_is_too_old_is_refused() {
    let test = TestPipeline::new("shards: 1").await;
    sqlx::query!("update pipeline set min_compatible = 999").execute(&test.store.pool).await.unwrap();
    assert!(matches!(test.store.pipeline().await, Err(Error::TooNew(why)) if why.contains("999")));
    let again = test.store.migrate(&test.manifest.metadata.name).await;
    assert!(matches!(again, Err(Error::TooNew(why)) if why.contains("newer version")));
}

/// The steps of a later release: two expanding ones, and between them a contracting one.
fn later() -> Steps {
    let step = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut steps: Vec<Migration> = STEPS.all.iter().cloned().collect();
    steps.push(step(1_001, "ways", "create table ways (n bigint)"));
    steps.push(step(
        1_002,
        "no ways contract",
        "alter table ways drop column n; update pipeline set min_compatible = 1001",
    ));
    steps.push(step(1_003, "means", "create table means (n bigint)"));
    Steps::of(Migrator::with_migrations(steps))
}

#[tokio::test]
async fn expanding_steps_run_at_once_and_contracting_steps_on_request() {
    let test = TestPipeline::new("shards: 1").await;
    let (store, name, now) = (&test.store, &test.manifest.metadata.name, Store::schema_number());
    let columns = async || {
        sqlx::query_scalar::<_, i64>(
            "select count(*) from information_schema.columns
             where table_schema = current_schema() and table_name in ('ways', 'means')",
        )
        .fetch_one(&store.pool)
        .await
        .unwrap()
    };
    let expanded = store.migrate_by(&later(), name, false).await.unwrap();
    assert_eq!(expanded, Migrated { from: now, to: 1_003, contracting: 1 });
    assert_eq!(columns().await, 2);
    // The current binary works on the expanded schema, and its `migrate` changes nothing.
    assert_eq!(store.pipeline().await.unwrap().as_ref(), Some(&test.pipeline));
    assert_eq!(store.migrate_and_contract(name).await.unwrap(), Migrated { from: 1_003, to: 1_003, contracting: 0 });
    assert_eq!(
        store.migrate_by(&later(), name, false).await.unwrap().contracting,
        1,
        "the contracting step still waits"
    );

    let contracted = store.migrate_by(&later(), name, true).await.unwrap();
    assert_eq!(contracted, Migrated { from: 1_003, to: 1_003, contracting: 0 });
    assert_eq!(columns().await, 1);
    // From here on the current binary is too old.
    assert!(matches!(store.pipeline().await, Err(Error::TooNew(_))));
    assert!(matches!(store.migrate(name).await, Err(Error::TooNew(_))));
    store.migrate_by(&later(), name, true).await.unwrap();
}
