//! Connection pools, and the classes of errors.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    limit::{PROBE_TIMEOUT, answer_within, limited},
    newest::{NewestServer, Server},
    pooler,
    session::{BEGIN, Session},
    standby::Notes,
    tls,
};
use crate::tls::Endpoint;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of Postgres, or of the connection to it.
    #[error("postgres: {}", super::writes::plain(.0))]
    Sql(sqlx::Error),
    /// Another worker owns the shard: nothing was written.
    #[error("the shard was taken over by another worker")]
    Fenced,
    /// The shard runs a newer policy version: nothing was written.
    #[error("the shard runs policy version {0}, which is newer")]
    OldPolicy(i64),
    /// Another transaction took one of the ids, or closed one of the dead letters, meanwhile: nothing was written.
    #[error("another transaction took an id or closed a dead letter of the batch meanwhile")]
    Raced,
    /// The schema, or its content, needs a newer binary.
    #[error("{0}")]
    TooNew(String),
    /// Another pipeline has claimed the schema.
    #[error("{0}")]
    OtherPipeline(String),
    /// Workers of the pipeline are still active under another uid.
    #[error("{0}")]
    PreviousWorkersActive(String),
    /// A pooler does not give a connection a session of its own.
    #[error("{0}")]
    Pooler(String),
    /// The role lacks a right to the schema.
    #[error("{0}")]
    PermissionDenied(String),
    /// Another session holds a lock that a migration needs.
    #[error("{0}")]
    Locked(String),
    /// Any other operation that is not allowed.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether this is a data error: SQLSTATE classes 22 and 54. No constraint of the schema depends on a record, so class
    /// 23 is no data error: a race for an id is [`Error::Raced`], and a missing partition is to be created.
    #[must_use]
    pub fn is_data_error(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| ["22", "54"].iter().any(|class| code.starts_with(class)))
    }

    /// Whether the records of a period have no partition: SQLSTATE 23514, for which no other constraint is checked there.
    #[must_use]
    pub fn misses_partition(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().as_deref() == Some("23514") && error.table() == Some("records")
    }

    /// Whether a table or the schema is missing: SQLSTATE 42P01, 42703 (a column of it) and 3F000.
    #[must_use]
    pub fn misses_schema(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| ["42P01", "42703", "3F000"].contains(&&*code))
    }

    /// Whether Postgres is unavailable, so that a retry may help: no connection, a server that starts, stops or is full
    /// (SQLSTATE classes 57P and 53), that refuses this user (class 28), or whose database is missing (3D000).
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Sql(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut) => true,
            Self::Sql(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| ["57P", "53", "28", "3D000"].iter().any(|class| code.starts_with(class))),
            _ => false,
        }
    }
}

/// A pipeline's schema in Postgres.
#[derive(Debug, Clone)]
pub struct Store {
    /// Connections with `search_path` set to the pipeline's schema.
    pub(super) pool: PgPool,
    /// Connections only for commits, so that nothing else delays a commit.
    pub(super) commits: PgPool,
    session: Session,
    pub(super) shared: Arc<Shared>,
}

/// State that the pools of a store share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) newest: NewestServer,
    pub(super) notes: Notes,
    pooler: pooler::Watch,
    /// Whether the last periodic write was refused because its session is read-only.
    pub(super) is_read_only: AtomicBool,
    /// Whom new connections lead to.
    endpoint: Mutex<Endpoint>,
    /// Their options.
    options: Mutex<PgConnectOptions>,
}

impl Shared {
    fn options(&self) -> PgConnectOptions {
        self.options.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lead_to(&self, endpoint: Endpoint, options: PgConnectOptions) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = endpoint;
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
        self.pooler.redirected();
    }

    /// Whether an idle connection of a pool may be used again: it answers, in its own session. Once one has another session,
    /// none is used again, and the next one that is opened finds why.
    async fn may_continue(&self, ties: &pooler::Ties, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let hold = ties.hold(connection).await?;
        if !hold {
            self.newest.renew();
            self.pooler.redirected();
        }
        Ok(hold)
    }

    /// Makes the session of a new connection of a pool.
    async fn establish(&self, session: &Session, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let established = async {
            self.pooler.check(connection, &self.options()).await?;
            let server = session.establish(connection).await?;
            pooler::tie(connection).await?;
            Ok(server)
        };
        self.newest.see(established.await.map_err(|error| match error {
            Error::Sql(error) => error,
            error => sqlx::Error::Configuration(error.into()),
        })?);
        Ok(())
    }
}

/// Maximum number of connections for commits: of all appliers, and one to read the progress of a shard.
const COMMITS: u32 = 9;

/// The connections for queries.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// At the most.
    pub(super) connections: u32,
    /// Longest wait for one.
    pub(super) acquire_timeout: Duration,
}

impl Size {
    fn of(connections: u32) -> Self {
        Self { connections, acquire_timeout: Duration::from_secs(5) }
    }
}

/// Timeout of the ping when a connection returns to its pool. It includes the rest of an abandoned statement.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of the check before an idle connection is used.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

impl Store {
    /// The schema of a pipeline: `millrace_` and its name, with `_` for `-`.
    #[must_use]
    pub fn schema(pipeline: &str) -> String {
        format!("millrace_{}", pipeline.replace('-', "_"))
    }

    /// Creates pools that connect on first use.
    ///
    /// # Errors
    /// When the URL is not a Postgres URL.
    pub fn connect(endpoint: impl Into<Endpoint>, pipeline: &str, connections: u32) -> Result<Self, Error> {
        Self::connect_as(Session::of_queries(pipeline), endpoint.into(), pipeline, Size::of(connections))
    }

    /// The same for a command that waits for a lock at most this long.
    ///
    /// # Errors
    /// When the URL is not a Postgres URL.
    pub fn connect_waiting(
        endpoint: impl Into<Endpoint>,
        pipeline: &str,
        connections: u32,
        longest: Duration,
    ) -> Result<Self, Error> {
        let session = Session::of_queries(pipeline).waiting_at_most(longest);
        Self::connect_as(session, endpoint.into(), pipeline, Size::of(connections))
    }

    pub(super) fn connect_as(session: Session, endpoint: Endpoint, pipeline: &str, size: Size) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let options = Self::options(&endpoint)?;
        shared.lead_to(endpoint, session.named(options.clone()));
        let pool = |connections, session: Session| {
            let (connecting, acquiring) = (Arc::clone(&shared), Arc::clone(&shared));
            let options = session.named(options.clone());
            let ties = Arc::new(pooler::Ties::default());
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(size.acquire_timeout)
                .after_connect(move |connection, _| {
                    let (shared, session) = (Arc::clone(&connecting), session.clone());
                    Box::pin(async move { shared.establish(&session, connection).await })
                })
                // Without this, a connection whose statement was abandoned would keep its place in the pool for ever.
                .after_release(|connection, _| {
                    Box::pin(async { answer_within(RELEASE_TIMEOUT, connection.ping()).await.map(|()| true) })
                })
                // The test of sqlx has no timeout: each broken idle connection would cost one caller its whole time.
                // `before_acquire` tests with a timeout instead.
                .test_before_acquire(false)
                .before_acquire(move |connection, of| {
                    let (shared, ties) = (Arc::clone(&acquiring), Arc::clone(&ties));
                    Box::pin(async move {
                        let continues = shared.may_continue(&ties, connection);
                        Ok(shared.newest.is_of(of.age) && answer_within(ACQUIRE_TIMEOUT, continues).await?)
                    })
                })
                .connect_lazy_with(options)
        };
        let (commits, pool) = (pool(COMMITS, Session::of_commits(pipeline)), pool(size.connections, session.clone()));
        Ok(Self { pool, commits, session, shared })
    }

    /// The server of the newest connection.
    #[must_use]
    pub fn server(&self) -> Server {
        self.shared.newest.get().0
    }

    /// Uses another server or other credentials for new connections. The first connection to another server ends the
    /// connections to the previous one.
    ///
    /// # Errors
    /// When the URL is not a Postgres URL.
    pub fn redirect(&self, endpoint: impl Into<Endpoint>, pipeline: &str) -> Result<(), Error> {
        let endpoint = endpoint.into();
        let options = Self::options(&endpoint)?;
        let of_queries = self.session.named(options.clone());
        self.shared.lead_to(endpoint, of_queries.clone());
        self.pool.set_connect_options(of_queries);
        self.commits.set_connect_options(Session::of_commits(pipeline).named(options));
        Ok(())
    }

    /// Begins a transaction with isolation `read committed`.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin_with(BEGIN).await
    }

    /// The options of all connections to an endpoint, but for their name. Reads the system's authorities where they count.
    fn options(endpoint: &Endpoint) -> Result<PgConnectOptions, Error> {
        let options = tls::options(PgConnectOptions::from_str(endpoint.url())?, endpoint);
        // Of the options of a startup message only those that every pooler knows: the session sets all others.
        let options = options.extra_float_digits(None);
        // The log of the driver has the text of statements. `slow` has a log without it.
        Ok(options.disable_statement_logging())
    }

    /// A store over the pool of a test's database.
    #[cfg(test)]
    pub(crate) fn of_test(pool: PgPool) -> Self {
        Self { commits: pool.clone(), pool, session: Session::of_queries("test"), shared: Arc::default() }
    }

    /// Opens two separate connections, and checks that each has a session of its own with the settings. The pool only
    /// returns a timeout; this returns the cause.
    ///
    /// # Errors
    /// Why Postgres cannot be reached, or cannot be used by this URL; after 5 seconds without an answer, that.
    pub async fn probe(&self) -> Result<(), Error> {
        limited(PROBE_TIMEOUT, self.probe_with(&self.pool.connect_options())).await
    }

    /// As [`Self::probe`], of an endpoint that is not used yet.
    ///
    /// # Errors
    /// As of [`Self::probe`].
    pub async fn probe_endpoint(&self, endpoint: &Endpoint) -> Result<(), Error> {
        self.probe_with(&self.session.named(Self::options(endpoint)?)).await
    }

    async fn probe_with(&self, options: &PgConnectOptions) -> Result<(), Error> {
        let mut one = PgConnection::connect_with(options).await?;
        let mut other = PgConnection::connect_with(options).await?;
        let outcome = async {
            pooler::check(&mut one, &mut other).await?;
            self.session.establish(&mut one).await
        };
        let outcome = outcome.await;
        other.close().await?;
        one.close().await?;
        outcome.map(|_| ())
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
        self.commits.close().await;
    }
}

/// Parses a numeric from its text. The driver's conversion loses the scale of a zero.
pub(super) fn numeric(text: &str) -> Result<rust_decimal::Decimal, Error> {
    rust_decimal::Decimal::from_str_exact(text).map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[tokio::test]
    async fn an_abandoned_statement_frees_its_place_in_the_pool() {
        let store = Store::connect(&testing::url(), "nobody", 1).unwrap();
        let endless = sqlx::query("select pg_sleep(600)").execute(&store.pool);
        assert!(tokio::time::timeout(Duration::from_millis(200), endless).await.is_err(), "it sleeps");
        let mut tries = 0;
        while let Err(error) = sqlx::query("select 1").execute(&store.pool).await {
            tries += 1;
            assert!(tries < 5, "{error}");
        }
    }

    #[tokio::test]
    async fn the_driver_logs_no_text_of_a_statement() {
        let log = testing::Log::start();
        let store = Store::connect(&testing::url(), "nobody", 1).unwrap();
        for pool in [&store.pool, &store.commits] {
            sqlx::query("select 'a value of a client'").execute(pool).await.unwrap();
        }
        tracing::debug!("the log works");
        let lines = log.lines();
        assert!(lines.contains("the log works") && !lines.contains("select"), "{lines}");
    }

    async fn session(connection: &mut PgConnection) -> i32 {
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_to_a_replaced_server_is_not_used_again() {
        let store = Store::connect(&testing::url(), "replaced", 2).unwrap();
        let mut old = store.pool.acquire().await.unwrap();
        let server = store.server();
        // As if this connection led to another server than the next one.
        *store.shared.newest.0.lock().unwrap() = (Server(1), None);
        let mut new = store.pool.acquire().await.unwrap();
        assert_eq!(store.server(), server);
        let (gone, stays) = (session(&mut old).await, session(&mut new).await);
        drop((old, new));
        let (mut one, mut other) = (store.pool.acquire().await.unwrap(), store.pool.acquire().await.unwrap());
        let now = [session(&mut one).await, session(&mut other).await];
        assert!(now.contains(&stays) && !now.contains(&gone), "{now:?}: {gone} is not used again, {stays} is");
    }
}
