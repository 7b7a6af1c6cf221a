//! The check whether Postgres accepts writes, and the texts of its errors.

use sqlx::migrate::MigrateError;

use super::{Error, Store};

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Error {
    /// Whether Postgres is available and refuses a write: it is read-only (SQLSTATE 25006), its disk is full (53100),
    /// or a lock was not available (55P03).
    #[must_use]
    pub fn refuses_write(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| ["25006", "53100", "55P03"].contains(&&*code))
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
    /// Why Postgres accepts no writes now; `None` if it accepts them. This reads no table, so that it works while
    /// tables are locked.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn takes_no_writes(&self) -> Result<Option<&'static str>, Error> {
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
        Ok(if row.standby {
            Some("it is a standby, which accepts no writes: give the URL of the primary")
        } else if row.read_only {
            Some(
                "default_transaction_read_only is on for the server, the database or the role: turn it off to allow \
                 writes",
            )
        } else if row.waits {
            Some(
                "a write waits for a lock that another session holds: pg_blocking_pids() of the waiting session in \
                 pg_stat_activity names it",
            )
        } else {
            None
        })
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
