//! Connections, and the classes of errors.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::future::try_join_all;
use redis::{ErrorKind, RedisError, aio::MultiplexedConnection};

use super::servers::{self, Link, RedisServer, Servers, Topology};
use crate::{domain::StreamId, tls::Endpoint};

const RIGHTS: &str = "grant it the pipeline's keys, the streams of its sinks, and the commands that docs/servers.md lists \
                      under Redis; ACL LOG on the server names what was refused";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of Redis, or of the connection to it. It may be unknown whether the command took effect.
    #[error("redis: {0}")]
    Redis(RedisError),
    /// Redis refuses the user, or denies it a command or key: nothing was done.
    #[error("redis {0}")]
    Denied(String),
    /// Redis is at its memory limit: nothing was written.
    #[error("redis is full")]
    Full,
    /// The stream or its group is missing.
    #[error("the stream or its consumer group is missing")]
    NoGroup,
    /// Another owner has set the fence: nothing was done.
    #[error("the fence has epoch {0} of another owner")]
    Fenced(i64),
    /// Another version appended an entry, in a format that this one does not support: nothing was applied.
    #[error("the entry {id} has the format {format}, which this version does not support")]
    UnknownFormat {
        /// Id of the entry.
        id: StreamId,
        /// Its format.
        format: String,
    },
    /// The key belongs to another pipeline or sink: nothing was done.
    #[error("{0}")]
    Refused(String),
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        denied(&error).map_or(Self::Redis(error), Self::Denied)
    }
}

/// The right that Redis denies this user, and the remedy. The text of Redis names a command and never a password.
fn denied(error: &RedisError) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    match (error.code(), error.kind()) {
        (Some("WRONGPASS"), _) | (_, ErrorKind::AuthenticationFailed) => {
            Some("refuses the user or password of its URL".to_owned())
        }
        (Some("NOAUTH"), _) => Some("requires a password, and its URL has none".to_owned()),
        (Some("NOPERM"), _) => Some(format!("refuses its user a right ({detail}): {RIGHTS}")),
        // Versions before 7.2 use these texts for a command inside a script.
        _ if detail.contains("ACL failure in script") || detail.contains("user executing the script") => {
            Some(format!("refuses its user a right ({detail}): {RIGHTS}"))
        }
        _ => None,
    }
}

impl Error {
    /// Adds the key of the command to [`Error::Denied`], because the right to the key may be missing.
    pub(super) fn on(self, key: &str) -> Self {
        match self {
            Self::Denied(detail) => Self::Denied(format!("{detail}; the key is {key}")),
            other => other,
        }
    }

    /// Whether a server sent it, so that the connection works.
    #[must_use]
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Redis(error) => error.code().is_some(),
            _ => true,
        }
    }

    /// Classifies an error by its error code.
    #[must_use]
    pub fn of(error: RedisError) -> Self {
        match error.code() {
            Some("OOM") => Self::Full,
            Some("NOGROUP") => Self::NoGroup,
            _ => Self::from(error),
        }
    }
}

/// The Redis of one pipeline.
#[derive(Clone)]
pub struct Streams {
    /// Shared by all clones, so that all change to another server together.
    servers: Arc<RwLock<Servers>>,
    /// The pipeline's name, the prefix of its keys.
    pub(super) pipeline: String,
}

/// A connection for commands that block.
pub struct Blocking {
    pub(super) connection: MultiplexedConnection,
    server: Arc<RedisServer>,
}

/// Connections for queries, one to each server, so that a long search does not delay appends.
pub(super) struct Queries {
    topology: Arc<Topology>,
    connections: Vec<deadpool_redis::Connection>,
}

impl Queries {
    /// A connection to the server of a key. Clones share it, so that one round trip can carry many queries.
    ///
    /// # Errors
    /// When no server of a cluster holds it.
    pub(super) fn of(&self, key: &str) -> Result<MultiplexedConnection, Error> {
        Ok((*self.connections[self.topology.index_of(servers::slot(key))?]).clone())
    }

    /// A connection to each server.
    pub(super) fn each(&self) -> impl Iterator<Item = MultiplexedConnection> {
        self.connections.iter().map(|connection| (**connection).clone())
    }
}

impl Streams {
    /// Prepares connections; Redis may still be unavailable.
    ///
    /// # Errors
    /// When the URL is not a Redis URL.
    pub fn connect(endpoint: impl Into<Endpoint>, pipeline: &str) -> Result<Self, Error> {
        let servers = Arc::new(RwLock::new(Servers::open(&endpoint.into())?));
        Ok(Self { servers, pipeline: pipeline.to_owned() })
    }

    /// Uses another server or other credentials for new commands. Running commands end at the old server. Every script
    /// compares the state of the new server, as after a start.
    ///
    /// # Errors
    /// When the URL is not a Redis URL; then nothing changes.
    pub fn redirect(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let servers = Servers::open(endpoint)?;
        *self.servers.write().unwrap_or_else(PoisonError::into_inner) = servers;
        Ok(())
    }

    pub(super) fn servers(&self) -> Servers {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The shared connection for commands that do not block, to the server of `key`.
    pub(super) fn shared(&self, key: &str) -> Link {
        self.servers().link(key)
    }

    /// Connections for a query, from the pools.
    ///
    /// # Errors
    /// When a server cannot be reached, or all connections to it are busy for two seconds.
    pub(super) async fn queries(&self) -> Result<Queries, Error> {
        let servers = self.servers();
        let topology = servers.topology().await?;
        let connections = try_join_all(topology.servers.iter().map(|server| server.query())).await;
        if connections.is_err() {
            servers.refresh();
        }
        Ok(Queries { connections: connections?, topology })
    }

    /// A separate connection for commands on `key` that block for up to `longest`.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn blocking(&self, key: &str, longest: Duration) -> Result<Blocking, Error> {
        let servers = self.servers();
        let server = Arc::clone(servers.topology().await?.of(servers::slot(key))?);
        let connection = server.blocking(longest).await.inspect_err(|_| {
            servers.refresh();
        })?;
        Ok(Blocking { connection, server })
    }

    /// Whether a connection leads to a previous server, or to one that no longer holds `key`.
    pub(super) fn is_stale(&self, blocking: &Blocking, key: &str) -> bool {
        !self.servers().holds(&blocking.server, key)
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}
