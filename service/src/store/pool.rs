//! Connections, and how failures are classed.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::session::{BEGIN, Session};

/// Why a statement did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres, or the way to it.
    #[error("postgres: {}", super::writes::plain(.0))]
    Sql(sqlx::Error),
    /// Another owner took the shard: nothing was written.
    #[error("the shard was taken over by another worker")]
    Fenced,
    /// The shard is worked by a newer policy: nothing was written.
    #[error("the shard stands at policy {0}, which is newer")]
    OldPolicy(i64),
    /// Another transaction took one of the ids or dead letters in between: nothing was written.
    #[error("an id or letter of the batch was taken in between")]
    Raced,
    /// The schema, or what stands in it, needs a newer binary.
    #[error("{0}")]
    TooNew(String),
    /// The schema is another pipeline's.
    #[error("{0}")]
    OtherPipeline(String),
    /// The pipeline is still worked under another uid.
    #[error("{0}")]
    PreviousWorkersActive(String),
    /// A session lacks a setting that it was asked for.
    #[error("{0}")]
    Session(String),
    /// Another session holds a lock that a migration needs.
    #[error("{0}")]
    Locked(String),
    /// Anything else that may not be done.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether the data is to blame: SQLSTATE classes 22, 23 and 54 (a race for an id is [`Error::Raced`]).
    #[must_use]
    pub fn is_data_error(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
    }

    /// Whether a table or the schema is not there: SQLSTATE 42P01, 42703 (a column of it) and 3F000.
    #[must_use]
    pub fn misses_schema(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| ["42P01", "42703", "3F000"].contains(&&*code))
    }

    /// Whether waiting may help: no connection, a server that starts, stops or is full (SQLSTATE classes 57P and 53), one
    /// that does not let this user in (yet: class 28), or whose database is not there (yet: 3D000).
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Sql(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut) => true,
            Self::Sql(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| ["57P", "53", "28", "3D000"].iter().any(|class| code.starts_with(class))),
            _ => false,
        }
    }
}

/// A server, told by when it was started: one that was restored, or took another's place, is another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Server(pub(super) i64);

/// The server that the newest connection came to, and when it was first seen.
#[derive(Debug, Default)]
struct Newest(Mutex<(Server, Option<Instant>)>);

impl Newest {
    fn get(&self) -> (Server, Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, server: Server) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0 != server {
            *newest = (server, Some(Instant::now()));
        }
    }

    /// Whether a connection of this age goes to it: one that is older goes to a server that was replaced, which may live on
    /// and tell of what is not so any more.
    fn is_of(&self, age: Duration) -> bool {
        self.get().1.is_none_or(|since| age <= since.elapsed())
    }
}

/// A pipeline's schema in Postgres.
#[derive(Debug, Clone)]
pub struct Store {
    /// Connections with `search_path` set to the pipeline's schema.
    pub(super) pool: PgPool,
    /// Connections for commits alone, so that nothing else can keep a commit waiting.
    pub(super) commits: PgPool,
    session: Session,
    newest: Arc<Newest>,
}

/// Most commits of a worker at a time.
pub const COMMITS: u32 = 3;

/// Longest that a step in the background waits for Postgres: a host that disappeared during a statement never answers, and no
/// packet tells that it is gone.
const LONGEST: Duration = Duration::from_secs(20);
/// Longest that a connection which comes back to its pool is waited for, the rest of what it was asked included.
const COMES_BACK: Duration = Duration::from_secs(10);

/// Longest that an idle connection is waited for before it is used.
const IS_THERE: Duration = Duration::from_secs(2);

/// Whether a connection answers in time.
async fn answers(connection: &mut PgConnection, longest: Duration) -> Result<bool, sqlx::Error> {
    let answer = tokio::time::timeout(longest, connection.ping()).await;
    answer.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?.map(|()| true)
}

/// Runs a step that asks Postgres, and gives it up when that does not answer within 20 seconds.
///
/// # Errors
/// The step's own, and one that [`Error::is_away`]; what the step has written is unknown then.
pub async fn within<T, E: From<Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(LONGEST, step).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", LONGEST.as_secs());
        Err(Error::Sql(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, why))).into())
    })
}

impl Store {
    /// The schema of a pipeline: `millrace_` and its name, `-` as `_`.
    #[must_use]
    pub fn schema(pipeline: &str) -> String {
        format!("millrace_{}", pipeline.replace('-', "_"))
    }

    /// Makes pools that connect when they are first used.
    ///
    /// # Errors
    /// When the URL is not one of Postgres.
    pub fn connect(url: &str, pipeline: &str, connections: u32) -> Result<Self, Error> {
        let newest = Arc::new(Newest::default());
        let pool = |connections, session: Session| -> Result<PgPool, Error> {
            let (seen, newest) = (Arc::clone(&newest), Arc::clone(&newest));
            let options = Self::options(url, &session)?;
            let pool = PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(5))
                .after_connect(move |connection, _| {
                    let (seen, session) = (Arc::clone(&seen), session.clone());
                    Box::pin(async move {
                        seen.see(session.check(connection).await.map_err(|error| match error {
                            Error::Sql(error) => error,
                            error => sqlx::Error::Configuration(error.into()),
                        })?);
                        Ok(())
                    })
                })
                // Else one that was given up during a statement would keep its place in the pool for ever.
                .after_release(|connection, _| Box::pin(answers(connection, COMES_BACK)))
                // And idle ones would be found out one by one, each by a caller whose time is up.
                .test_before_acquire(false)
                .before_acquire(move |connection, of| {
                    let stays = newest.is_of(of.age);
                    Box::pin(async move { Ok(stays && answers(connection, IS_THERE).await?) })
                })
                .connect_lazy_with(options);
            Ok(pool)
        };
        let session = Session::of_queries(pipeline);
        let (commits, pool) = (pool(COMMITS, Session::of_commits(pipeline))?, pool(connections, session.clone())?);
        Ok(Self { pool, commits, session, newest })
    }

    /// The server that the newest connection came to.
    #[must_use]
    pub fn server(&self) -> Server {
        self.newest.get().0
    }

    /// Turns to another server or other credentials: for connections that are opened from now on. The first one that comes
    /// to another server ends those to the last.
    ///
    /// # Errors
    /// When the URL is not one of Postgres.
    pub fn redirect(&self, url: &str, pipeline: &str) -> Result<(), Error> {
        self.pool.set_connect_options(Self::options(url, &self.session)?);
        self.commits.set_connect_options(Self::options(url, &Session::of_commits(pipeline))?);
        Ok(())
    }

    /// Begins a transaction that reads what others committed meanwhile.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin_with(BEGIN).await
    }

    fn options(url: &str, session: &Session) -> Result<PgConnectOptions, Error> {
        Ok(PgConnectOptions::from_str(url)?.application_name(session.application).options(session.options()))
    }

    /// The schema that a pool of a test's own database shows.
    #[cfg(test)]
    pub(crate) fn of_test(pool: PgPool) -> Self {
        Self { commits: pool.clone(), pool, session: Session::of_queries("test"), newest: Arc::default() }
    }

    /// Makes a connection of its own and asks something. The pool tells only that time was up; this tells why.
    ///
    /// # Errors
    /// Why Postgres cannot be reached.
    pub async fn probe(&self) -> Result<(), Error> {
        let mut connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
        let answer = self.session.check(&mut connection).await;
        connection.close().await?;
        answer.map(|_| ())
    }

    /// Ends the connections.
    pub async fn close(&self) {
        self.pool.close().await;
        self.commits.close().await;
    }
}

/// A numeric that came as text. The driver's own conversion loses the scale of a zero.
pub(super) fn numeric(text: &str) -> Result<rust_decimal::Decimal, Error> {
    rust_decimal::Decimal::from_str_exact(text).map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[tokio::test]
    async fn a_statement_that_was_given_up_keeps_no_place_in_the_pool() {
        let store = Store::connect(&testing::url(), "nobody", 1).unwrap();
        let endless = sqlx::query("select pg_sleep(600)").execute(&store.pool);
        assert!(tokio::time::timeout(Duration::from_millis(200), endless).await.is_err(), "it sleeps");
        let mut tries = 0;
        while let Err(error) = sqlx::query("select 1").execute(&store.pool).await {
            tries += 1;
            assert!(tries < 5, "{error}");
        }
    }

    async fn session(connection: &mut PgConnection) -> i32 {
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_to_a_server_that_was_replaced_is_not_used_again() {
        let store = Store::connect(&testing::url(), "replaced", 2).unwrap();
        let mut old = store.pool.acquire().await.unwrap();
        let server = store.server();
        // As if it had come to another server than the next one does.
        *store.newest.0.lock().unwrap() = (Server(1), None);
        let mut new = store.pool.acquire().await.unwrap();
        assert_eq!(store.server(), server);
        let (gone, stays) = (session(&mut old).await, session(&mut new).await);
        drop((old, new));
        let (mut one, mut other) = (store.pool.acquire().await.unwrap(), store.pool.acquire().await.unwrap());
        let now = [session(&mut one).await, session(&mut other).await];
        assert!(now.contains(&stays) && !now.contains(&gone), "{now:?}: {gone} is not used again, {stays} is");
    }
}
