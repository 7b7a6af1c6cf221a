//! The settings of a connection, and the check that the session has them: a pooler may drop the settings that a client
//! requests when it connects.
//!
//! It must never let a statement run in a session with another `search_path`: the statement would use the tables of
//! another pipeline, or none.

use sqlx::PgConnection;

use super::{Error, Store, pool::Server};

/// Begins a transaction with isolation `read committed`. It is explicit because a role or a database may have another
/// default.
pub(super) const BEGIN: &str = "begin isolation level read committed";

/// A setting with the value that a session must have.
#[derive(Debug, Clone)]
struct Setting {
    name: &'static str,
    value: String,
}

/// The name and the settings of a pool's sessions.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The `application_name` in `pg_stat_activity`.
    pub(super) application: &'static str,
    settings: Vec<Setting>,
}

impl Session {
    /// The session of connections for queries.
    pub(super) fn of_queries(pipeline: &str) -> Self {
        Self::new(
            "millrace",
            pipeline,
            &[
                // Postgres removes absent filters only from a plan for the given values.
                ("plan_cache_mode", "force_custom_plan"),
            ],
        )
    }

    /// The session of connections for commits.
    pub(super) fn of_commits(pipeline: &str) -> Self {
        Self::new(
            "millrace-commit",
            pipeline,
            &[
                // Postgres plans the commit's statements once. A plan from a time when a table was small would keep a
                // sequential scan for good, although each statement has an index.
                ("enable_seqscan", "off"),
                // Postgres compares plans by their estimates, and a plan for the few values of a small commit looks
                // cheaper than one for any values: it would plan each small commit again.
                ("plan_cache_mode", "force_generic_plan"),
                // A worker that is paused or disconnected during a commit would keep its shard's row locked, and no
                // other worker could take the shard.
                ("idle_in_transaction_session_timeout", "5s"),
            ],
        )
    }

    fn new(application: &'static str, pipeline: &str, more: &[(&'static str, &str)]) -> Self {
        let setting = |name, value: &str| Setting { name, value: value.to_owned() };
        let mut settings = vec![
            setting("search_path", &Store::schema(pipeline)),
            setting("timezone", "UTC"),
            // For single statements; a transaction sets its own.
            setting("default_transaction_isolation", "read committed"),
            // Compiling a plan takes hundreds of milliseconds, its execution about one.
            setting("jit", "off"),
            // Without it, a session that locks a table would block this process without any error.
            setting("lock_timeout", "10s"),
        ];
        settings.extend(more.iter().map(|(name, value)| setting(name, value)));
        Self { application, settings }
    }

    /// Names and values as connection options.
    pub(super) fn options(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.settings.iter().map(|Setting { name, value }| (*name, value.as_str()))
    }

    /// Checks that the session has its settings. Returns its server.
    ///
    /// # Errors
    /// [`Error::Session`] names the missing setting and the remedy.
    pub(super) async fn check(&self, connection: &mut PgConnection) -> Result<Server, Error> {
        let names: Vec<String> = self.settings.iter().map(|setting| setting.name.to_owned()).collect();
        let row = sqlx::query!(
            r#"select array(
                   select coalesce(current_setting(name, true), '') from unnest($1::text[]) with ordinality as u (name, n)
                   order by n
               ) as "found!",
               (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "started!""#,
            &names,
        )
        .fetch_one(connection)
        .await?;
        for (Setting { name, value }, found) in self.settings.iter().zip(&row.found) {
            if value != found {
                return Err(Error::Session(format!(
                    "the session has {name} = {found} instead of {value}: a pooler between here and Postgres drops \
                     the settings of a connection, as PgBouncer does with `options` in ignore_startup_parameters. Give \
                     the URL of Postgres itself"
                )));
            }
        }
        Ok(Server(row.started))
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use sqlx::{Connection as _, postgres::PgConnectOptions};

    use super::*;
    use crate::store::testing;

    /// A connection of which a pooler has dropped all but these options.
    async fn connected(options: impl Iterator<Item = (&str, &str)>) -> PgConnection {
        let plain = PgConnectOptions::from_str(&testing::url()).unwrap();
        PgConnection::connect_with(&plain.options(options)).await.unwrap()
    }

    #[tokio::test]
    async fn transactions_and_single_statements_read_committed_rows() {
        // Like the default of a role or a database.
        let strict = [("default_transaction_isolation", "serializable")];
        let strict = PgConnectOptions::from_str(&testing::url()).unwrap().options(strict);
        let store = Store::of_test(sqlx::PgPool::connect_lazy_with(strict.clone()));
        let isolation = "select current_setting('transaction_isolation')";
        let mut transaction = store.begin().await.unwrap();
        let found: String = sqlx::query_scalar(isolation).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(found, "read committed");
        let single = strict.options(Session::of_queries("a").options());
        let mut single = PgConnection::connect_with(&single).await.unwrap();
        let found: String = sqlx::query_scalar(isolation).fetch_one(&mut single).await.unwrap();
        assert_eq!(found, "read committed");
    }

    #[tokio::test]
    async fn a_session_that_lacks_a_setting_is_refused() {
        for session in [Session::of_queries("a-b"), Session::of_commits("a-b")] {
            session.check(&mut connected(session.options()).await).await.unwrap();
            for (dropped, value) in session.options() {
                // The defaults of the test server may equal the requested values.
                if dropped == "timezone" || dropped == "default_transaction_isolation" {
                    continue;
                }
                let others = session.options().filter(|(name, _)| *name != dropped);
                let refused = session.check(&mut connected(others).await).await.unwrap_err().to_string();
                for part in [dropped, value, "PgBouncer", "URL of Postgres itself"] {
                    assert!(refused.contains(part), "{dropped}: {refused}");
                }
            }
        }
    }
}
