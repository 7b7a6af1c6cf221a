//! The migration of the schema: expanding steps at once, contracting steps on request.
//!
//! It must never run a contracting step without a request: processes of an older version may still run.

use std::sync::LazyLock;

use sqlx::{
    Connection as _, PgConnection,
    migrate::{Migrate as _, MigrateError, Migration, Migrator},
};

use super::{Error, Store};

/// SQLSTATE when a lock was not available within `lock_timeout`.
const LOCK_NOT_AVAILABLE: &str = "55P03";

static STEPS: LazyLock<Steps> = LazyLock::new(|| Steps::of(sqlx::migrate!("../migrations")));

/// The migrations of a binary. A file whose name ends in `_contract` removes something that an older binary uses: it
/// runs only on request, after all others.
struct Steps {
    expanding: Migrator,
    all: Migrator,
}

impl Steps {
    fn of(mut all: Migrator) -> Self {
        let expanding = all.iter().filter(|migration| !contracts(migration)).cloned().collect();
        let mut expanding = Migrator::with_migrations(expanding);
        for migrations in [&mut all, &mut expanding] {
            // An older binary must continue to work on a schema that a newer one expanded, unless `min_compatible`
            // forbids it. And each of the two lists lacks steps of the other.
            migrations.set_ignore_missing(true);
        }
        Self { expanding, all }
    }

    /// The newest step that this binary needs.
    fn number(&self) -> i64 {
        self.expanding.iter().map(|migration| migration.version).max().unwrap_or(0)
    }

    /// Number of contracting steps that are not applied yet.
    fn contracting(&self, applied: &[i64]) -> usize {
        self.all.iter().filter(|step| contracts(step) && !applied.contains(&step.version)).count()
    }
}

fn contracts(migration: &Migration) -> bool {
    // sqlx makes the description from the file name, with spaces for underscores.
    migration.description.split(' ').next_back() == Some("contract")
}

/// The result of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The schema number before; 0 if there was no schema.
    pub from: i64,
    /// The schema number now.
    pub to: i64,
    /// Number of contracting steps that wait for a request.
    pub contracting: usize,
}

impl Store {
    /// The newest schema number that this binary needs.
    #[must_use]
    pub fn schema_number() -> i64 {
        STEPS.number()
    }

    /// Creates the pipeline's schema, or applies all missing expanding steps. Does not wait for another migration.
    ///
    /// # Errors
    /// When Postgres cannot be reached, or a migration fails; [`Error::TooNew`] when this binary is too old for the
    /// schema; [`Error::Locked`] while another migration runs, or another session holds a lock on a table.
    pub async fn migrate(&self, pipeline: &str) -> Result<Migrated, Error> {
        self.migrate_by(&STEPS, pipeline, false).await
    }

    /// Does the same, then applies the contracting steps. Only for pipelines without processes of an older version.
    ///
    /// # Errors
    /// As [`Self::migrate`].
    pub async fn migrate_and_contract(&self, pipeline: &str) -> Result<Migrated, Error> {
        self.migrate_by(&STEPS, pipeline, true).await
    }

    async fn migrate_by(&self, steps: &Steps, pipeline: &str, contract: bool) -> Result<Migrated, Error> {
        // A separate connection, closed at the end in every case, because the lock ends with it.
        let mut turn = self.pool.acquire().await?.detach();
        let schema = Self::schema(pipeline);
        let outcome = match Self::take_turn(&mut turn, &schema).await {
            Ok(()) => Self::migrate_alone(steps, &mut turn, &schema, contract).await,
            Err(error) => Err(error),
        };
        // The server closes a session a moment after the client, and the next migration would find the lock taken. After an
        // error the connection can be broken: then the lock has ended with it.
        let _ = sqlx::raw_sql("select pg_advisory_unlock_all()").execute(&mut turn).await;
        turn.close().await?;
        outcome
    }

    /// Takes the lock of this schema's migrations. Fails if another session has it.
    async fn take_turn(turn: &mut PgConnection, schema: &str) -> Result<(), Error> {
        let lock = sqlx::query_scalar!(
            r#"select pg_try_advisory_lock(hashtextextended('millrace migrate ' || $1, 0)) as "taken!""#,
            schema,
        );
        if lock.fetch_one(&mut *turn).await? {
            return Ok(());
        }
        let holder = sqlx::query!(
            r#"select a.pid as "pid!", coalesce(a.application_name, '') as "name!", a.backend_start
               from pg_locks l join pg_stat_activity a using (pid)
               where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                   and l.database = (select oid from pg_database where datname = current_database())
                   and (l.classid::bigint << 32) | l.objid::bigint = hashtextextended('millrace migrate ' || $1, 0)"#,
            schema,
        );
        let holder = match holder.fetch_optional(turn).await? {
            Some(holder) => {
                let since = holder.backend_start.map_or_else(String::new, |at| format!(", connected since {at}"));
                format!("pid {} ({}{since})", holder.pid, holder.name)
            }
            None => "it ended just now".to_owned(),
        };
        Err(Error::Locked(format!(
            "another session holds the lock of this schema's migrations: {holder}. If it hangs, end it by \
             pg_terminate_backend"
        )))
    }

    /// Checks that the database can hold every text. With another encoding than UTF8, `serve` would accept some records
    /// that Postgres can never store.
    async fn holds_unicode(turn: &mut PgConnection) -> Result<(), Error> {
        let row = sqlx::query!(
            r#"select current_setting('server_encoding') as "encoding!", current_database() as "database!""#
        );
        let row = row.fetch_one(turn).await?;
        if row.encoding == "UTF8" {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "the database {} has the encoding {}, which cannot hold every record; create one by: create database NAME \
             encoding 'UTF8' template template0",
            row.database, row.encoding
        )))
    }

    async fn migrate_alone(
        steps: &Steps,
        turn: &mut PgConnection,
        schema: &str,
        contract: bool,
    ) -> Result<Migrated, Error> {
        Self::holds_unicode(turn).await?;
        let known = sqlx::query_scalar!("select exists (select from pg_namespace where nspname = $1)", schema);
        let made = known.fetch_one(&mut *turn).await? != Some(true);
        // Checked first, because `create schema if not exists` needs the right to create even if the schema exists.
        if made {
            turn.create_schema_if_not_exists(schema).await.map_err(refused)?;
        }
        let newest = |applied: &[i64]| applied.iter().copied().max().unwrap_or(0);
        let from = if made { 0 } else { newest(&Self::applied(turn).await?) };
        if from > 0 {
            Self::compatible(steps, turn).await?;
        }
        for steps in [Some(&steps.expanding), contract.then_some(&steps.all)].into_iter().flatten() {
            steps.run_direct(None, turn, false).await.map_err(|error| match error {
                MigrateError::VersionMismatch(step) => older(schema, step),
                error => refused(error),
            })?;
        }
        let applied = Self::applied(turn).await?;
        Ok(Migrated { from, to: newest(&applied), contracting: steps.contracting(&applied) })
    }

    /// The numbers of the applied migrations; empty before the first.
    async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
        let known = sqlx::query_scalar!("select to_regclass('_sqlx_migrations') is not null");
        if known.fetch_one(&mut *connection).await? != Some(true) {
            return Ok(Vec::new());
        }
        let applied = connection.list_applied_migrations(&STEPS.all.table_name).await.map_err(refused)?;
        Ok(applied.iter().map(|migration| migration.version).collect())
    }

    async fn compatible(steps: &Steps, connection: &mut PgConnection) -> Result<(), Error> {
        if sqlx::query_scalar!("select to_regclass('pipeline') is not null").fetch_one(&mut *connection).await?
            != Some(true)
        {
            return Ok(());
        }
        let least = sqlx::query_scalar!("select min_compatible from pipeline").fetch_optional(connection).await?;
        match least {
            Some(least) if least > steps.number() => Err(Error::TooNew(format!(
                "the schema needs a millrace for schema {least} or newer; this one is for {}: use a newer version",
                steps.number()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether all steps that this binary needs are applied.
    ///
    /// # Errors
    /// When Postgres cannot be reached; [`Error::TooNew`] when this binary is too old for the schema.
    pub(super) async fn is_migrated(connection: &mut PgConnection) -> Result<bool, Error> {
        let applied = Self::applied(connection).await?;
        if !STEPS.expanding.iter().all(|step| applied.contains(&step.version)) {
            return Ok(false);
        }
        Self::compatible(&STEPS, connection).await?;
        Ok(true)
    }
}

/// The error for a schema whose step has other content in this binary: no step leads from there to here.
fn older(schema: &str, step: i64) -> Error {
    Error::Refused(format!(
        "the schema {schema} is of an older format and was not changed: its migration {step} is another than that of this \
         millrace. Continue with the version that made it; or remove the pipeline and its records with that version's \
         `millrace purge`, then migrate; or give the pipeline another name. For `millrace dev`, remove its data directory"
    ))
}

fn refused(error: MigrateError) -> Error {
    use MigrateError::{Execute, ExecuteMigration};
    if let Execute(sqlx::Error::Database(cause)) | ExecuteMigration(sqlx::Error::Database(cause), _) = &error
        && cause.code().as_deref() == Some(LOCK_NOT_AVAILABLE)
    {
        return Error::Locked(format!("another session holds a lock on a table of the schema: {cause}"));
    }
    match error {
        Execute(error) => Error::Sql(error),
        error => Error::Refused(format!("the schema cannot be migrated: {error}")),
    }
}

#[cfg(test)]
mod tests {
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
        let create =
            format!("create database {database} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
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
        assert_eq!(
            store.migrate_and_contract(name).await.unwrap(),
            Migrated { from: 1_003, to: 1_003, contracting: 0 }
        );
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
}
