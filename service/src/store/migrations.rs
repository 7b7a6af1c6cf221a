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
            if Self::has_all(steps, turn).await? {
                continue;
            }
            steps.run_direct(None, turn, false).await.map_err(|error| match error {
                MigrateError::VersionMismatch(step) => older(schema, step),
                error => refused(error),
            })?;
        }
        let applied = Self::applied(turn).await?;
        Ok(Migrated { from, to: newest(&applied), contracting: steps.contracting(&applied) })
    }

    /// Whether all of these steps are applied, as they are in this binary. The migrator would ask for the right to create
    /// a table also where it has nothing to do.
    async fn has_all(steps: &Migrator, connection: &mut PgConnection) -> Result<bool, Error> {
        let table = &steps.table_name;
        if Self::applied(connection).await?.is_empty()
            || connection.dirty_version(table).await.map_err(refused)?.is_some()
        {
            return Ok(false);
        }
        let applied = connection.list_applied_migrations(table).await.map_err(refused)?;
        Ok(steps.iter().all(|step| {
            applied.iter().any(|applied| applied.version == step.version && applied.checksum == step.checksum)
        }))
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
    match error {
        Execute(sqlx::Error::Database(cause)) | ExecuteMigration(sqlx::Error::Database(cause), _)
            if cause.code().as_deref() == Some(LOCK_NOT_AVAILABLE) =>
        {
            let cause = Error::Sql(sqlx::Error::Database(cause));
            Error::Locked(format!("another session holds a lock on a table of the schema: {cause}"))
        }
        // With its SQLSTATE: a role without a right, or a full disk, is no fault of the migration.
        Execute(error) | ExecuteMigration(error, _) => Error::Sql(error),
        error => Error::Refused(format!("the schema cannot be migrated: {error}")),
    }
}

#[cfg(test)]
mod tests;
