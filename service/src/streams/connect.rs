//! Connections, and how failures are classed.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::future::try_join_all;
use redis::{ErrorKind, RedisError, aio::MultiplexedConnection};

use super::servers::{self, Link, Server, Servers, Topology};

const RIGHTS: &str = "grant it the pipeline's keys, the streams of its sinks, and the commands that \
                      docs/configuration.md lists under Servers; ACL LOG on the server names what was refused";

/// Why Redis did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis, or the way to it. Whether the command took effect may be unknown.
    #[error("redis: {0}")]
    Redis(RedisError),
    /// Redis does not admit the user, or refuses it a command or key: nothing was done.
    #[error("redis {0}")]
    Denied(String),
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

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        denied(&error).map_or(Self::Redis(error), Self::Denied)
    }
}

/// What Redis refuses this user, and the remedy. Its words name a command, and never a password.
fn denied(error: &RedisError) -> Option<String> {
    let words = error.detail().unwrap_or_default();
    match (error.code(), error.kind()) {
        (Some("WRONGPASS"), _) | (_, ErrorKind::AuthenticationFailed) => {
            Some("refuses the user or password of its URL".to_owned())
        }
        (Some("NOAUTH"), _) => Some("asks for a password, and its URL has none".to_owned()),
        (Some("NOPERM"), _) => Some(format!("refuses its user a right ({words}): {RIGHTS}")),
        // As versions before 7.2 say it of a command inside a script.
        _ if words.contains("ACL failure in script") || words.contains("user executing the script") => {
            Some(format!("refuses its user a right ({words}): {RIGHTS}"))
        }
        _ => None,
    }
}

impl Error {
    /// The same error, with the key that the command was about where the right to it may be missing.
    pub(super) fn on(self, key: &str) -> Self {
        match self {
            Self::Denied(words) => Self::Denied(format!("{words}; the key is {key}")),
            other => other,
        }
    }

    /// Classes what Redis answered by its error code.
    #[must_use]
    pub fn of(error: RedisError) -> Self {
        match error.code() {
            Some("OOM") => Self::Full,
            Some("NOGROUP") => Self::NoGroup,
            _ => Self::from(error),
        }
    }
}

/// Redis, as one pipeline uses it.
#[derive(Clone)]
pub struct Streams {
    /// Shared by all clones, so that all turn to another server together.
    servers: Arc<RwLock<Servers>>,
    /// The pipeline's name: prefix of its keys.
    pub(super) pipeline: String,
}

/// A connection for commands that block.
pub struct Blocking {
    pub(super) connection: MultiplexedConnection,
    server: Arc<Server>,
}

/// Connections for queries, one to each server: a long search holds up nobody's appends.
pub(super) struct Queries {
    topology: Arc<Topology>,
    connections: Vec<deadpool_redis::Connection>,
}

impl Queries {
    /// To wherever a key is; clones share the connection, so that many can be asked in one round trip.
    ///
    /// # Errors
    /// When no server of a cluster holds it.
    pub(super) fn of(&self, key: &str) -> Result<MultiplexedConnection, Error> {
        Ok((*self.connections[self.topology.index_of(servers::slot(key))?]).clone())
    }

    /// To each server.
    pub(super) fn each(&self) -> impl Iterator<Item = MultiplexedConnection> {
        self.connections.iter().map(|connection| (**connection).clone())
    }
}

impl Streams {
    /// Prepares connections; Redis may still be unavailable.
    ///
    /// # Errors
    /// When the URL is not one of Redis.
    pub fn connect(url: &str, pipeline: &str) -> Result<Self, Error> {
        let servers = Arc::new(RwLock::new(Servers::open(url)?));
        Ok(Self { servers, pipeline: pipeline.to_owned() })
    }

    /// Turns to another server or other credentials. What is under way ends where it began: whatever is at the other
    /// server is compared by every script, as after a start.
    ///
    /// # Errors
    /// When the URL is not one of Redis; nothing changed then.
    pub fn redirect(&self, url: &str) -> Result<(), Error> {
        let servers = Servers::open(url)?;
        *self.servers.write().unwrap_or_else(PoisonError::into_inner) = servers;
        Ok(())
    }

    fn servers(&self) -> Servers {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection of all that does not block, to wherever `key` is.
    pub(super) fn shared(&self, key: &str) -> Link {
        self.servers().link(key)
    }

    /// Connections for a query, from the pools.
    ///
    /// # Errors
    /// When a server cannot be reached, or all connections to it are busy for two seconds.
    pub(super) async fn queries(&self) -> Result<Queries, Error> {
        let servers = self.servers();
        let topology = servers.known().await?;
        let connections = try_join_all(topology.servers.iter().map(|server| server.query())).await;
        if connections.is_err() {
            servers.look_again();
        }
        Ok(Queries { connections: connections?, topology })
    }

    /// A connection of its own for commands on `key` that block for up to `longest`.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn blocking(&self, key: &str, longest: Duration) -> Result<Blocking, Error> {
        let servers = self.servers();
        let server = Arc::clone(servers.known().await?.of(servers::slot(key))?);
        let connection = server.blocking(longest).await.inspect_err(|_| {
            servers.look_again();
        })?;
        Ok(Blocking { connection, server })
    }

    /// Whether a connection goes to a server that was turned away from, or that does not hold `key` any more.
    pub(super) fn is_stale(&self, blocking: &Blocking, key: &str) -> bool {
        !self.servers().holds(&blocking.server, key)
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}
