//! The check whether Postgres accepts writes, and the texts of its errors.

use std::{fmt, sync::atomic::Ordering};

use sqlx::migrate::MigrateError;

use super::{Error, Store};

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Error {
    /// Whether Postgres is available and refuses a write: it is read-only (SQLSTATE 25006), its disk is full (53100), a
    /// lock was not available (55P03), or the role lacks a right (42501).
    #[must_use]
    pub fn refuses_write(&self) -> bool {
        self.is_read_only() || self.is_one_of(&["53100"]) || self.met_lock() || self.lacks_right()
    }

    /// Whether the session, or the server, is read-only: SQLSTATE 25006.
    fn is_read_only(&self) -> bool {
        self.is_one_of(&["25006"])
    }

    /// Whether a lock was not available in time: SQLSTATE 55P03.
    #[must_use]
    pub fn met_lock(&self) -> bool {
        matches!(self, Self::Locked(_)) || self.is_one_of(&["55P03"])
    }

    /// Whether the role lacks a right: SQLSTATE 42501.
    #[must_use]
    pub fn lacks_right(&self) -> bool {
        matches!(self, Self::PermissionDenied(_)) || self.is_one_of(&["42501"])
    }

    /// Whether Postgres does not admit the user or its password: SQLSTATE class 28.
    #[must_use]
    pub fn denies_access(&self) -> bool {
        // PgBouncer has no code of its own for a wrong password.
        let is_refused_by_pooler = || {
            let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
            error.code().as_deref() == Some("08P01") && error.message().contains("authentication failed")
        };
        self.is_one_of(&["28"]) || is_refused_by_pooler()
    }

    /// Whether there is no such database: SQLSTATE 3D000.
    #[must_use]
    pub fn misses_database(&self) -> bool {
        self.is_one_of(&["3D000"])
    }

    /// Whether the SQLSTATE begins with one of these.
    pub(super) fn is_one_of(&self, states: &[&str]) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| states.iter().any(|state| code.starts_with(state)))
    }
}

/// Why Postgres accepts no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoWrites {
    /// It is a standby.
    Standby,
    /// It is read-only by a setting.
    ReadOnly,
    /// A write waits for a lock.
    Locked,
}

impl fmt::Display for NoWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standby => "it is a standby, which accepts no writes: give the URL of the primary",
            Self::ReadOnly => {
                "default_transaction_read_only is on for the server, the database or the role: turn it off to allow writes"
            }
            Self::Locked => {
                "a write waits for a lock that another session holds: pg_blocking_pids() of the waiting session in \
                 pg_stat_activity names it"
            }
        })
    }
}

/// The message of an error. The driver would add the line in the source code of Postgres, which looks like a line of a
/// file.
pub(super) fn plain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} (SQLSTATE {code})", error.message()),
            None => error.message().to_owned(),
        },
        sqlx::Error::Migrate(migrate) => match &**migrate {
            MigrateError::Execute(error) => plain(error),
            MigrateError::ExecuteMigration(error, version) => format!("in migration {version}: {}", plain(error)),
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

impl Store {
    /// Notes the outcome of a write that a process repeats every few seconds. A session keeps `default_transaction_read_only` as
    /// it was when the session began: connections are opened again, each before its next use, while writes are refused, and
    /// once more when they are accepted.
    pub fn note_write(&self, error: Option<&Error>) {
        let is_read_only = error.is_some_and(Error::is_read_only);
        if self.shared.is_read_only.swap(is_read_only, Ordering::Relaxed) || is_read_only {
            self.renew_connections();
        }
    }

    /// Why Postgres accepts no writes now; `None` if it accepts them. This reads no table, so that it works while
    /// tables are locked.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn takes_no_writes(&self) -> Result<Option<NoWrites>, Error> {
        // A lock counts only after three seconds, because shorter waits are normal.
        let row = sqlx::query!(
            r#"select pg_is_in_recovery() as "standby!",
                      current_setting('default_transaction_read_only')::bool as "read_only!",
                      exists (
                          select from pg_locks waiting
                          join pg_stat_activity session on session.pid = waiting.pid
                          join pg_locks used on used.pid = waiting.pid and used.locktype = 'relation'
                          join pg_class on pg_class.oid = used.relation
                          where not waiting.granted
                            and waiting.locktype in ('relation', 'transactionid', 'tuple')
                            and waiting.waitstart < clock_timestamp() - interval '3 seconds'
                            and session.datname = current_database()
                            and session.application_name like 'millrace%'
                            and pg_class.relnamespace = to_regnamespace(quote_ident(current_schema()))
                      ) as "waits!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(match (row.standby, row.read_only, row.waits) {
            (true, _, _) => Some(NoWrites::Standby),
            (_, true, _) => Some(NoWrites::ReadOnly),
            (_, _, true) => Some(NoWrites::Locked),
            _ => None,
        })
    }

    /// Checks that the role may use the schema, where there is one: without that right Postgres leaves the schema out of
    /// the search path, and no table is found.
    pub(super) async fn may_use_schema(connection: &mut sqlx::PgConnection) -> Result<(), Error> {
        let denied = sqlx::query!(
            r#"select nspname::text as "schema!", current_user::text as "role!" from pg_namespace
               where quote_ident(nspname) = current_setting('search_path')
                   and not has_schema_privilege(oid, 'usage')"#
        );
        match denied.fetch_optional(connection).await? {
            None => Ok(()),
            Some(row) => Err(Error::PermissionDenied(format!(
                "the role {role} may not use the schema {schema}: run grant usage on schema {schema} to {role}, and grant \
                 it the tables",
                role = row.role,
                schema = row.schema,
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrations = "../migrations")]
    async fn an_error_of_postgres_is_rendered_once_without_its_source(pool: PgPool) {
        for statement in
            ["select nothing", "select 1/0", "create table t (", "insert into shards (shard) values (null)"]
        {
            let error = sqlx::query(statement).execute(&pool).await.expect_err(statement);
            let text = format!("{:#}", anyhow::Error::from(Error::from(error)).context("a query"));
            assert!(text.contains("(SQLSTATE ") && !text.contains("at line"), "{text}");
            assert_eq!(text.matches("SQLSTATE").count(), 1, "{text}");
        }
    }
}
