//! The settings of a connection, and whether the server has them: a pooler may drop what a client asks for at its start.
//!
//! Must never let a statement run in a session with another `search_path`: it would find another pipeline's tables, or none.

use sqlx::PgConnection;

use super::{Error, Store, pool::Server};

/// How a transaction begins that reads what others committed meanwhile. It states its isolation, for a role or a database may
/// have another default.
pub(super) const BEGIN: &str = "begin isolation level read committed";

/// One setting and the value that a session has to have.
#[derive(Debug, Clone)]
struct Setting {
    name: &'static str,
    value: String,
}

/// The name and the settings of a pool's sessions.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// By which `pg_stat_activity` shows them.
    pub(super) application: &'static str,
    settings: Vec<Setting>,
}

impl Session {
    /// Of connections for queries.
    pub(super) fn of_queries(pipeline: &str) -> Self {
        Self::new(
            "millrace",
            pipeline,
            &[
                // Filters that are absent fold away only in a plan for the values at hand.
                ("plan_cache_mode", "force_custom_plan"),
            ],
        )
    }

    /// Of connections for commits.
    pub(super) fn of_commits(pipeline: &str) -> Self {
        Self::new(
            "millrace-commit",
            pipeline,
            &[
                // The commit's statements are planned once. A plan made while a table was small would keep a sequential
                // scan for good: there is an index for each of them.
                ("enable_seqscan", "off"),
                // A worker that is paused, or cut off, within a commit would hold its shard's row, and nobody could take it.
                ("idle_in_transaction_session_timeout", "5s"),
            ],
        )
    }

    fn new(application: &'static str, pipeline: &str, more: &[(&'static str, &str)]) -> Self {
        let setting = |name, value: &str| Setting { name, value: value.to_owned() };
        let mut settings = vec![
            setting("search_path", &Store::schema(pipeline)),
            setting("timezone", "UTC"),
            // Of single statements; a transaction states its own.
            setting("default_transaction_isolation", "read committed"),
            // Compiling a plan takes hundreds of milliseconds, running it one.
            setting("jit", "off"),
            // Whoever locks a table would else stop this process without a word.
            setting("lock_timeout", "10s"),
        ];
        settings.extend(more.iter().map(|(name, value)| setting(name, value)));
        Self { application, settings }
    }

    /// Names and values, as options of a connection.
    pub(super) fn options(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.settings.iter().map(|Setting { name, value }| (*name, value.as_str()))
    }

    /// Compares the session with its settings, and gives the server that it came to.
    ///
    /// # Errors
    /// [`Error::Session`] names the setting that the session lacks, and the remedy.
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
                    "the session has {name} = {found} instead of {value}: a pooler between here and Postgres drops the \
                     settings of a connection, as PgBouncer does with `options` in ignore_startup_parameters. Give the URL of \
                     Postgres itself"
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

    /// A connection whose options a pooler dropped but for these.
    async fn connected(options: impl Iterator<Item = (&str, &str)>) -> PgConnection {
        let plain = PgConnectOptions::from_str(&testing::url()).unwrap();
        PgConnection::connect_with(&plain.options(options)).await.unwrap()
    }

    #[tokio::test]
    async fn a_transaction_and_a_single_statement_read_what_is_committed() {
        // As the default of a role or a database.
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
                // The test server's own zone may be the one that is asked for.
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
