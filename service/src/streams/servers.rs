//! The server of each key: the one of a URL, the primary of the sentinels, or a cluster's primaries by hash slot.
//!
//! `discovery` finds primaries. A reply that names another server (`MOVED`, `READONLY`) makes it query at once. A
//! command that may have taken effect must never be sent again: only a command that a server refused to run is
//! repeated.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Error,
    address::{Address, Node},
    discovery::Discovery,
    shared::Shared,
    tls,
};
use crate::tls::Endpoint;

/// How long a command that a server refused to run waits for another server.
const REDIRECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of connecting.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without any packet from a host after which its connections end.
const HOST_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const SLOTS: u16 = 16_384;
const CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);

/// A Redis server and the connections to it.
pub(super) struct RedisServer {
    pub(super) node: Node,
    client: Client,
    /// For all commands that do not block.
    shared: Shared,
    /// For queries, each on its own connection, so that a long search does not delay appends.
    queries: deadpool_redis::Pool,
}

impl RedisServer {
    pub(super) fn open(info: ConnectionInfo, node: Node) -> Result<Self, Error> {
        let info = info.set_tcp_settings(tcp_settings());
        let client = Client::open(info.clone())?;
        let queries =
            deadpool_redis::Pool::builder(deadpool_redis::Manager::new_with_config(info, connection_config())?)
                .max_size(4)
                .wait_timeout(Some(CONNECT_TIMEOUT))
                .create_timeout(Some(CONNECT_TIMEOUT))
                .recycle_timeout(Some(CONNECT_TIMEOUT))
                .runtime(deadpool_redis::Runtime::Tokio1)
                .build()
                .map_err(|error| Error::Refused(error.to_string()))?;
        Ok(Self { node, shared: Shared::new(client.clone()), client, queries })
    }

    /// A connection for a query.
    pub(super) async fn query(&self) -> Result<deadpool_redis::Connection, Error> {
        self.queries.get().await.map_err(|error| match error {
            deadpool_redis::PoolError::Backend(error) => Error::of(error),
            other => {
                Error::Redis(RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, other.to_string())))
            }
        })
    }

    /// A connection for commands that block for up to `longest`.
    pub(super) async fn blocking(&self, longest: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(longest + REPLY_TIMEOUT));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// The timeouts of connections whose commands do not block.
pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(Some(REPLY_TIMEOUT))
}

/// TCP settings that end the connections to a lost host. With the defaults each command would fail for a quarter of an
/// hour.
pub(super) fn tcp_settings() -> TcpSettings {
    let probes = TcpKeepalive::new().with_time(HOST_TIMEOUT / 2).with_interval(HOST_TIMEOUT / 5);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(HOST_TIMEOUT);
    settings
}

/// Hash slots of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotRange<S> {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) server: S,
}

impl<S> SlotRange<S> {
    /// All slots.
    pub(super) fn all(server: S) -> Self {
        Self { first: 0, last: SLOTS - 1, server }
    }
}

/// The servers that accept writes, and the slots of each.
pub(super) struct Topology {
    pub(super) servers: Vec<Arc<RedisServer>>,
    /// Each with the index of its server. Without a cluster one range has all slots.
    pub(super) ranges: Vec<SlotRange<usize>>,
}

impl Topology {
    /// The server of a slot.
    pub(super) fn of(&self, slot: u16) -> RedisResult<&Arc<RedisServer>> {
        Ok(&self.servers[self.index_of(slot)?])
    }

    /// The index of the server of a slot.
    pub(super) fn index_of(&self, slot: u16) -> RedisResult<usize> {
        let range = self.ranges.iter().find(|range| (range.first..=range.last).contains(&slot));
        let index = range.map(|range| range.server);
        index.ok_or_else(|| unavailable(format!("no server of the cluster holds slot {slot}")))
    }

    /// The ranges with their servers, to compare two topologies.
    pub(super) fn places(&self) -> Vec<SlotRange<&Node>> {
        let place = |range: &SlotRange<usize>| SlotRange {
            first: range.first,
            last: range.last,
            server: &self.servers[range.server].node,
        };
        self.ranges.iter().map(place).collect()
    }

    fn alone(server: Arc<RedisServer>) -> Self {
        Self { servers: vec![server], ranges: vec![SlotRange::all(0)] }
    }
}

/// The hash slot of a key.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    CRC.checksum(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

/// An error of the kind that means that nothing was sent.
pub(super) fn unavailable(why: String) -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, why))
}

const UNDISCOVERED: &str = "the primaries are not discovered yet";

/// As [`unavailable`], with the cause.
pub(super) fn unavailable_for(why: &'static str, cause: RedisError) -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, Unavailable { why, cause }))
}

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("{why}: {cause}")]
struct Unavailable {
    why: &'static str,
    #[source]
    cause: RedisError,
}

/// The current servers of one URL.
#[derive(Clone)]
pub(super) struct Servers {
    pub(super) endpoint: Arc<Endpoint>,
    /// Why the last discovery failed.
    failure: Arc<Mutex<Option<RedisError>>>,
    topology: watch::Receiver<Option<Arc<Topology>>>,
    /// Starts a discovery at once.
    refresh: Arc<Notify>,
    /// The task that discovers them, which ends with the last clone. `None` if the URL names one server.
    discovery: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Servers {
    /// Prepares connections; servers may still be unavailable.
    pub(super) fn open(endpoint: &Endpoint) -> Result<Self, Error> {
        let address = endpoint.url().parse::<Address>()?.with_files(endpoint)?;
        let (endpoint, failure) = (Arc::new(endpoint.clone()), Arc::default());
        let refresh = Arc::new(Notify::new());
        if let Address::One(info) = address {
            let node = Node { host: info.addr().to_string(), port: 0 };
            let alone = Topology::alone(Arc::new(RedisServer::open(info, node)?));
            let topology = watch::channel(Some(Arc::new(alone))).1;
            return Ok(Self { endpoint, topology, failure, refresh, discovery: None });
        }
        let (sender, topology) = watch::channel(None);
        let task = tokio::spawn(Discovery::new(address, sender, Arc::clone(&failure)).run(Arc::clone(&refresh)));
        let discovery = Some(Arc::new(AbortOnDropHandle::new(task)));
        Ok(Self { endpoint, topology, failure, refresh, discovery })
    }

    /// The current topology. Waits up to 2 s for the first discovery.
    pub(super) async fn topology(&self) -> RedisResult<Arc<Topology>> {
        if let Some(topology) = &*self.topology.borrow() {
            return Ok(Arc::clone(topology));
        }
        if let Some(failure) = self.failed().filter(tls::is_cause) {
            // No retry of this moment helps, and the caller may not wait long enough to see the cause.
            return Err(unavailable_for(UNDISCOVERED, failure));
        }
        let mut topology = self.topology.clone();
        let found = timeout(CONNECT_TIMEOUT, topology.wait_for(Option::is_some)).await;
        let found = found.ok().and_then(Result::ok).and_then(|topology| topology.clone());
        found.ok_or_else(|| match self.failed() {
            Some(failure) => unavailable_for(UNDISCOVERED, failure),
            None => unavailable(UNDISCOVERED.to_owned()),
        })
    }

    /// Why the last discovery failed.
    fn failed(&self) -> Option<RedisError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection to the server of a key.
    pub(super) fn link(&self, key: &str) -> Link {
        Link { servers: self.clone(), slot: slot(key) }
    }

    /// Whether a server still holds a key.
    pub(super) fn holds(&self, server: &Arc<RedisServer>, key: &str) -> bool {
        let topology = self.topology.borrow();
        topology
            .as_ref()
            .and_then(|topology| topology.of(slot(key)).ok())
            .is_some_and(|holder| Arc::ptr_eq(holder, server))
    }

    /// Starts a discovery at once. Returns false if the URL names one server.
    pub(super) fn refresh(&self) -> bool {
        self.refresh.notify_one();
        self.discovery.is_some()
    }
}

/// A connection for one slot, to its current server.
#[derive(Clone)]
pub(super) struct Link {
    servers: Servers,
    slot: u16,
}

impl Link {
    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let until = Instant::now() + REDIRECT_TIMEOUT;
        loop {
            self.servers.topology.mark_unchanged();
            let topology = self.servers.topology().await?;
            let answer = match topology.of(self.slot) {
                Ok(server) => server.shared.send(cmd).await,
                Err(error) => Err(error),
            };
            let error = match &answer {
                Ok(Value::ServerError(error)) => RedisError::from(error.clone()),
                Err(error) => error.clone(),
                Ok(_) => return answer,
            };
            let is_redirect = is_redirect(&error);
            if is_reply(&error) && !is_redirect {
                return answer;
            }
            // After an error of the connection it is unknown whether the command took effect, so it is not sent again.
            if !self.servers.refresh()
                || !is_redirect
                || timeout_at(until, self.servers.topology.changed()).await.is_err()
            {
                return answer;
            }
        }
    }
}

/// Whether the error is a reply of a server, and not an error of the connection.
fn is_reply(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// Whether a server refused to run the command because another server replaces it, or soon will.
fn is_redirect(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | TryAgain | ClusterDown | MasterDown | ReadOnly))
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.send(cmd))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let topology = self.servers.topology().await?;
            let answers = topology.of(self.slot)?.shared.send_all(pipeline, offset, count).await;
            if answers.as_ref().map_or(true, |answers| answers.iter().any(|one| matches!(one, Value::ServerError(_)))) {
                self.servers.refresh();
            }
            answers
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_in_braces_decides_the_slot_of_a_key() {
        assert_eq!((slot("123456789"), slot("foo")), (12_739, 12_182));
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
        assert_eq!(slot("{payments.0}:records"), slot("{payments.0}:fence"));
        assert_eq!(slot("{payments.alerts}:cursor"), slot("payments.alerts"));
        // Empty braces do not count.
        assert_ne!(slot("{}a"), slot("{}b"));
    }
}
