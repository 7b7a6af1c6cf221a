//! The settings of a connection: set after it is established, and then read back.
//!
//! Startup options carry none of them, because a pooler may drop those, or refuse the connection because of them. It must
//! never let a statement run in a session with another `search_path`: the statement would use the tables of another
//! pipeline, or none. It uses simple queries only: behind a pooler in transaction mode a prepared statement fails, and the
//! error would hide the cause.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
};

use super::{Error, Server, Store};

/// Begins a transaction with isolation `read committed`. It is explicit because a role or a database may have another
/// default.
pub(super) const BEGIN: &str = "begin isolation level read committed";

/// Longest wait for a lock. Without it, a session that locks a table would block this process without any error.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A setting with the value that a session must have.
#[derive(Debug, Clone)]
struct Setting {
    name: &'static str,
    value: String,
}

/// Settings of newer versions of Postgres: a role or a database may have a default for them, and older versions do not
/// have them.
const OFF_WHERE_KNOWN: [&str; 2] = ["idle_session_timeout", "transaction_timeout"];

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
                // A streamed answer waits within its transaction for a slow reader.
                ("idle_in_transaction_session_timeout", "0"),
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
            setting("client_encoding", "UTF8"),
            // `pg_stat_activity` shows which sessions are ours.
            setting("application_name", application),
            // For single statements; a transaction sets its own.
            setting("default_transaction_isolation", "read committed"),
            // Compiling a plan takes hundreds of milliseconds, its execution about one.
            setting("jit", "off"),
            // Each step has a timeout of its own.
            setting("statement_timeout", "0"),
            setting("lock_timeout", &milliseconds(LOCK_TIMEOUT)),
        ];
        settings.extend(more.iter().map(|(name, value)| setting(name, value)));
        Self { application, settings }
    }

    /// Options of a connection that shows the session's name from its start.
    pub(super) fn named(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.application_name(self.application)
    }

    /// The same session with a shorter wait for locks.
    pub(super) fn waiting_at_most(mut self, longest: Duration) -> Self {
        let lock_timeout = self.settings.iter_mut().find(|setting| setting.name == "lock_timeout");
        // Zero would wait without an end.
        let shortest = longest.clamp(Duration::from_millis(1), LOCK_TIMEOUT);
        lock_timeout.expect("each session has it").value = milliseconds(shortest);
        self
    }

    /// Sets the settings of a new session, and checks that it has them. Returns its server.
    ///
    /// # Errors
    /// [`Error::Pooler`] names the setting that the session does not have, and the remedy.
    pub(super) async fn establish(&self, connection: &mut PgConnection) -> Result<Server, Error> {
        // A session from a pooler may have prepared statements of another connection, under the names that the driver uses.
        run(connection, &format!("deallocate all; {}", self.set())).await?;
        self.check(connection).await
    }

    fn set(&self) -> String {
        // Names and values are constants, numbers, and a schema's name, which has only letters, digits and `_`.
        let set = self.settings.iter().map(|Setting { name, value }| format!("set_config('{name}', '{value}', false)"));
        let off = OFF_WHERE_KNOWN.iter().map(|name| {
            format!("case when current_setting('{name}', true) is not null then set_config('{name}', '0', false) end")
        });
        format!("select {}", set.chain(off).collect::<Vec<_>>().join(", "))
    }

    /// Checks that the session has its settings. Returns its server.
    async fn check(&self, connection: &mut PgConnection) -> Result<Server, Error> {
        let read = self.settings.iter().map(|Setting { name, .. }| format!("current_setting('{name}')"));
        let started = "(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint".to_owned();
        let read = format!("select {}", read.chain([started]).collect::<Vec<_>>().join(", "));
        let row = run(connection, &read).await?;
        for (index, Setting { name, value }) in self.settings.iter().enumerate() {
            let found: String = row.try_get(index)?;
            // Postgres shows a duration in the largest unit that fits.
            let is_same = match (duration(&found), duration(value)) {
                (Some(found), Some(value)) => found == value,
                _ => found == *value,
            };
            if !is_same {
                return Err(Error::Pooler(format!(
                    "the session has {name} = {found}, and not {value}, which was set just before: {}",
                    super::pooler::REMEDY
                )));
            }
        }
        Ok(Server(row.try_get(self.settings.len())?))
    }
}

/// Runs a simple query that returns one row.
pub(super) async fn run(connection: &mut PgConnection, query: &str) -> Result<PgRow, sqlx::Error> {
    // Safe: of constants, see the callers.
    sqlx::raw_sql(AssertSqlSafe(query.to_owned())).fetch_one(connection).await
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// The milliseconds of a value such as `5s` or `100ms`.
fn duration(value: &str) -> Option<u64> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use sqlx::Connection as _;

    use super::*;
    use crate::store::testing;

    /// Options like the defaults of a role or a database, each of which would break something.
    const HOSTILE: [(&str, &str); 11] = [
        ("search_path", "public"),
        ("timezone", "Asia/Tokyo"),
        ("default_transaction_isolation", "serializable"),
        // Long enough for the statement that sets it, also on a busy machine.
        ("statement_timeout", "100ms"),
        ("lock_timeout", "1ms"),
        ("idle_in_transaction_session_timeout", "1ms"),
        ("idle_session_timeout", "1s"),
        ("jit", "on"),
        ("plan_cache_mode", "auto"),
        ("enable_seqscan", "on"),
        ("application_name", "other"),
    ];

    async fn hostile() -> PgConnection {
        let plain = PgConnectOptions::from_str(&testing::url()).unwrap();
        PgConnection::connect_with(&plain.options(HOSTILE)).await.unwrap()
    }

    async fn shown(connection: &mut PgConnection, name: &str) -> String {
        run(connection, &format!("select current_setting('{name}')")).await.unwrap().get(0)
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
        let mut single = PgConnection::connect_with(&strict).await.unwrap();
        Session::of_queries("a").establish(&mut single).await.unwrap();
        let found: String = sqlx::query_scalar(isolation).fetch_one(&mut single).await.unwrap();
        assert_eq!(found, "read committed");
    }

    #[tokio::test]
    async fn a_session_has_its_settings_whatever_the_defaults_are() {
        for session in [Session::of_queries("a-b"), Session::of_commits("a-b")] {
            let mut connection = hostile().await;
            session.establish(&mut connection).await.unwrap();
            for (name, _) in HOSTILE.iter().filter(|(name, _)| session.settings.iter().all(|own| own.name != *name)) {
                let kept = ["enable_seqscan", "idle_session_timeout"].contains(name);
                assert!(kept, "{name} is not set");
            }
            assert_eq!(shown(&mut connection, "search_path").await, "millrace_a_b");
            assert_eq!(shown(&mut connection, "statement_timeout").await, "0");
            assert_eq!(shown(&mut connection, "lock_timeout").await, "10s");
            assert_eq!(shown(&mut connection, "idle_session_timeout").await, "0");
            assert_eq!(shown(&mut connection, "application_name").await, session.application);
        }
    }

    #[tokio::test]
    async fn a_session_that_lacks_a_setting_is_refused() {
        for session in [Session::of_queries("a-b"), Session::of_commits("a-b")] {
            let mut connection = hostile().await;
            session.establish(&mut connection).await.unwrap();
            for Setting { name, value } in &session.settings {
                let other = HOSTILE.iter().find(|(hostile, _)| hostile == name).map_or("LATIN1", |(_, other)| other);
                run(&mut connection, &format!("select set_config('{name}', '{other}', false)")).await.unwrap();
                let refused = session.check(&mut connection).await;
                // Short timeouts end the check itself.
                if let Err(Error::Sql(_)) = refused {
                    assert_eq!(*name, "statement_timeout");
                    connection = hostile().await;
                    session.establish(&mut connection).await.unwrap();
                    continue;
                }
                let refused = refused.unwrap_err().to_string();
                for part in [*name, value, "pool_mode = session"] {
                    assert!(refused.contains(part), "{name}: {refused}");
                }
                run(&mut connection, &format!("select set_config('{name}', '{value}', false)")).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_shorter_wait_for_locks_is_kept() {
        let mut connection = hostile().await;
        let session = Session::of_queries("a").waiting_at_most(Duration::from_millis(1_500));
        session.establish(&mut connection).await.unwrap();
        assert_eq!(shown(&mut connection, "lock_timeout").await, "1500ms");
    }
}
