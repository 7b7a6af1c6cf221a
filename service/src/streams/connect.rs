//! Connections, and how failures are classed.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};

/// Why Redis did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis, or the way to it. Whether the command took effect may be unknown.
    #[error("redis: {0}")]
    Redis(#[from] RedisError),
    /// Redis is at its memory limit: nothing was written.
    #[error("redis is full")]
    Full,
    /// The stream or its group is gone.
    #[error("the stream or its consumer group is gone")]
    NoGroup,
    /// Another owner holds the fence: nothing was done.
    #[error("the fence stands at epoch {0}")]
    Fenced(i64),
    /// The key belongs to another pipeline or sink: nothing was done.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Classes what Redis answered by its error code.
    #[must_use]
    pub fn of(error: RedisError) -> Self {
        match error.code() {
            Some("OOM") => Self::Full,
            Some("NOGROUP") => Self::NoGroup,
            _ => Self::Redis(error),
        }
    }
}

/// Redis, as one pipeline uses it.
#[derive(Clone)]
pub struct Streams {
    /// Shared by all clones, so that all turn to another server together.
    links: Arc<RwLock<Links>>,
    /// The pipeline's name: prefix of its keys.
    pub(super) pipeline: String,
}

/// Connections to one server by one URL.
#[derive(Clone)]
struct Links {
    client: Client,
    /// Shared by all that does not block; reconnects by itself.
    shared: ConnectionManager,
    /// For queries, each on a connection of its own: a long search holds up nobody's appends.
    queries: deadpool_redis::Pool,
    /// Rises when another URL is turned to.
    turn: u64,
}

/// A connection for commands that block.
pub struct Blocking {
    pub(super) connection: MultiplexedConnection,
    turn: u64,
}

impl Links {
    fn open(url: &str, turn: u64) -> Result<Self, Error> {
        let client = Client::open(url)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(Duration::from_secs(5)))
            // Who asks waits for one more try only: callers have back-offs of their own, or answer 503 at once.
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(1));
        let shared = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(Duration::from_secs(5)));
        let queries = deadpool_redis::Pool::builder(deadpool_redis::Manager::new_with_config(url, config)?)
            .max_size(4)
            .wait_timeout(Some(Duration::from_secs(2)))
            .create_timeout(Some(Duration::from_secs(2)))
            .recycle_timeout(Some(Duration::from_secs(2)))
            .runtime(deadpool_redis::Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Refused(error.to_string()))?;
        Ok(Self { client, shared, queries, turn })
    }
}

impl Streams {
    /// Prepares connections; Redis may still be away.
    ///
    /// # Errors
    /// When the URL is not one of Redis.
    pub fn connect(url: &str, pipeline: &str) -> Result<Self, Error> {
        let links = Arc::new(RwLock::new(Links::open(url, 0)?));
        Ok(Self { links, pipeline: pipeline.to_owned() })
    }

    /// Turns to another server or other credentials. What is under way ends where it began: whatever is at the other
    /// server is compared by every script, as after a start.
    ///
    /// # Errors
    /// When the URL is not one of Redis; nothing changed then.
    pub fn redirect(&self, url: &str) -> Result<(), Error> {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        *links = Links::open(url, links.turn + 1)?;
        Ok(())
    }

    fn links(&self) -> Links {
        self.links.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection of all that does not block.
    pub(super) fn shared(&self) -> ConnectionManager {
        self.links.read().unwrap_or_else(PoisonError::into_inner).shared.clone()
    }

    /// A connection for a query, from the pool.
    ///
    /// # Errors
    /// When Redis cannot be reached, or all connections are busy for two seconds.
    pub(super) async fn query(&self) -> Result<deadpool_redis::Connection, Error> {
        let queries = self.links().queries;
        queries.get().await.map_err(|error| match error {
            deadpool_redis::PoolError::Backend(error) => Error::of(error),
            other => {
                Error::Redis(RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, other.to_string())))
            }
        })
    }

    /// A connection of its own for commands that block for up to `longest`.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn blocking(&self, longest: Duration) -> Result<Blocking, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(longest + Duration::from_secs(5)));
        let Links { client, turn, .. } = self.links();
        Ok(Blocking { connection: client.get_multiplexed_async_connection_with_config(&config).await?, turn })
    }

    /// Whether a connection goes to a server that was turned away from.
    pub(super) fn is_stale(&self, blocking: &Blocking) -> bool {
        self.links.read().unwrap_or_else(PoisonError::into_inner).turn != blocking.turn
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}
