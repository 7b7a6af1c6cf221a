//! Which server holds which key: one by its URL, the primary that sentinels name, or a cluster's primaries by hash slot.
//!
//! A task of its own keeps asking sentinels or cluster; whoever meets an answer that speaks of another place (`MOVED`,
//! `READONLY`) has it ask at once. Must never send a command again that may have taken effect: only what a server refused
//! to begin is repeated.

use std::{cmp::Reverse, collections::HashMap, sync::Arc, time::Duration};

use futures::future::join_all;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue as _, Pipeline, RedisError,
    RedisFuture, RedisResult, ServerErrorKind, Value,
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
    shared::Shared,
};

/// How often sentinels or cluster are asked where the primaries are.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How soon at the earliest they are asked again, when what they said last turned out to be old.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long a command that a server refused to begin is tried elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);
/// How long a host sends nothing, not even that it received something, until it is taken for gone.
const RECREATED: Duration = Duration::from_secs(10);
const SLOTS: u16 = 16_384;
const CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);

/// One server and the connections to it.
pub(super) struct Server {
    node: Node,
    client: Client,
    /// For all that does not block.
    shared: Shared,
    /// For queries, each on a connection of its own: a long search holds up nobody's appends.
    queries: deadpool_redis::Pool,
}

impl Server {
    fn open(info: ConnectionInfo, node: Node) -> Result<Self, Error> {
        let info = info.set_tcp_settings(tcp());
        let client = Client::open(info.clone())?;
        let queries = deadpool_redis::Pool::builder(deadpool_redis::Manager::new_with_config(info, answers_soon())?)
            .max_size(4)
            .wait_timeout(Some(CONNECT))
            .create_timeout(Some(CONNECT))
            .recycle_timeout(Some(CONNECT))
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
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(longest + ANSWER));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

pub(super) fn answers_soon() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER))
}

/// Connections to a host that disappeared end, instead of failing one command after the other for a quarter of an hour.
fn tcp() -> TcpSettings {
    let probes = TcpKeepalive::new().with_time(RECREATED / 2).with_interval(RECREATED / 5);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(RECREATED);
    settings
}

/// The servers that take writes, and which slots each holds.
pub(super) struct Topology {
    pub(super) servers: Vec<Arc<Server>>,
    /// First slot, last slot, index of the server; one range for all where there is no cluster.
    ranges: Vec<(u16, u16, usize)>,
}

impl Topology {
    /// The server of a slot.
    pub(super) fn of(&self, slot: u16) -> RedisResult<&Arc<Server>> {
        Ok(&self.servers[self.index_of(slot)?])
    }

    /// The place among the servers of that of a slot.
    pub(super) fn index_of(&self, slot: u16) -> RedisResult<usize> {
        let range = self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        let index = range.map(|(_, _, server)| *server);
        index.ok_or_else(|| away(format!("the cluster says of no server that it holds slot {slot}")))
    }

    /// What a change is told by.
    fn places(&self) -> Vec<(u16, u16, &Node)> {
        self.ranges.iter().map(|(first, last, server)| (*first, *last, &self.servers[*server].node)).collect()
    }

    fn alone(server: Arc<Server>) -> Self {
        Self { servers: vec![server], ranges: vec![(0, SLOTS - 1, 0)] }
    }
}

/// The hash slot of a key.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    CRC.checksum(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

pub(super) fn away(why: String) -> RedisError {
    // Of the kind that says that nothing was sent.
    RedisError::from(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, why))
}

/// The servers of one URL, as they are known now.
#[derive(Clone)]
pub(super) struct Servers {
    known: watch::Receiver<Option<Arc<Topology>>>,
    /// Has them looked for at once.
    ask: Arc<Notify>,
    /// Looks for them, as long as anyone uses them; nobody has to where the URL names the one.
    seeker: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Servers {
    /// Prepares connections; servers may still be unavailable.
    pub(super) fn open(url: &str) -> Result<Self, Error> {
        let address: Address = url.parse()?;
        let ask = Arc::new(Notify::new());
        if let Address::One(info) = address {
            let node = Node { host: info.addr().to_string(), port: 0 };
            let alone = Topology::alone(Arc::new(Server::open(info, node)?));
            return Ok(Self { known: watch::channel(Some(Arc::new(alone))).1, ask, seeker: None });
        }
        let (tell, known) = watch::channel(None);
        let seeker = Seeker { address, tell, connections: HashMap::new(), failing: false };
        let seeker = tokio::spawn(seeker.run(Arc::clone(&ask)));
        Ok(Self { known, ask, seeker: Some(Arc::new(AbortOnDropHandle::new(seeker))) })
    }

    /// Where everything is; waits for it a little where nothing is known yet.
    pub(super) async fn known(&self) -> RedisResult<Arc<Topology>> {
        if let Some(known) = &*self.known.borrow() {
            return Ok(Arc::clone(known));
        }
        let mut known = self.known.clone();
        let found = timeout(CONNECT, known.wait_for(Option::is_some)).await;
        let found = found.ok().and_then(Result::ok).and_then(|known| known.clone());
        found.ok_or_else(|| away("it is not known yet which servers are the primaries".to_owned()))
    }

    /// A connection to wherever a key is.
    pub(super) fn link(&self, key: &str) -> Link {
        Link { servers: self.clone(), slot: slot(key) }
    }

    /// Whether a server holds a key still.
    pub(super) fn holds(&self, server: &Arc<Server>, key: &str) -> bool {
        let known = self.known.borrow();
        known.as_ref().and_then(|known| known.of(slot(key)).ok()).is_some_and(|holder| Arc::ptr_eq(holder, server))
    }

    /// Has the servers looked for at once. False: there is only the one.
    pub(super) fn look_again(&self) -> bool {
        self.ask.notify_one();
        self.seeker.is_some()
    }
}

/// A connection for one slot, wherever it goes.
#[derive(Clone)]
pub(super) struct Link {
    servers: Servers,
    slot: u16,
}

impl Link {
    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let until = Instant::now() + ELSEWHERE;
        loop {
            self.servers.known.mark_unchanged();
            let topology = self.servers.known().await?;
            let answer = match topology.of(self.slot) {
                Ok(server) => server.shared.send(cmd).await,
                Err(error) => Err(error),
            };
            let error = match &answer {
                Ok(Value::ServerError(error)) => RedisError::from(error.clone()),
                Err(error) => error.clone(),
                Ok(_) => return answer,
            };
            let is_elsewhere = is_elsewhere(&error);
            if is_answer(&error) && !is_elsewhere {
                return answer;
            }
            // Of what was met on the way nobody knows whether it began.
            if !self.servers.look_again()
                || !is_elsewhere
                || timeout_at(until, self.servers.known.changed()).await.is_err()
            {
                return answer;
            }
        }
    }
}

/// Whether a server said so, and nothing on the way to it.
fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// Whether a server refused to begin, for another has its place or will have it soon.
fn is_elsewhere(error: &RedisError) -> bool {
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
            let topology = self.servers.known().await?;
            let answers = topology.of(self.slot)?.shared.send_all(pipeline, offset, count).await;
            if answers.as_ref().map_or(true, |answers| answers.iter().any(|one| matches!(one, Value::ServerError(_)))) {
                self.servers.look_again();
            }
            answers
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Keeps asking where the primaries are.
struct Seeker {
    address: Address,
    tell: watch::Sender<Option<Arc<Topology>>>,
    /// To those that are asked.
    connections: HashMap<Node, MultiplexedConnection>,
    failing: bool,
}

impl Seeker {
    async fn run(mut self, ask: Arc<Notify>) {
        loop {
            let asked = Instant::now();
            let found = match &self.address {
                Address::One(_) => return,
                Address::Sentinel { primary, .. } => self.ask_sentinels(primary.clone()).await,
                Address::Cluster { .. } => self.ask_cluster().await,
            };
            match found.and_then(|found| self.turn_to(found)) {
                Ok(()) => self.failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(event = "streams.servers.not_found", %error, "the servers of Redis cannot be found");
                    }
                }
            }
            let _ = timeout(ASK_EVERY, ask.notified()).await;
            tokio::time::sleep_until(asked + ASK_AGAIN).await;
        }
    }

    /// Makes what was found known, if it is another than before. Servers that stay keep their connections.
    fn turn_to(&self, found: Vec<(u16, u16, Node)>) -> Result<(), Error> {
        let before = self.tell.borrow().clone();
        let mut servers: Vec<Arc<Server>> = Vec::new();
        let mut ranges = Vec::new();
        for (first, last, node) in found {
            let index = match servers.iter().position(|server| server.node == node) {
                Some(index) => index,
                None => {
                    let same = before.iter().flat_map(|before| &before.servers).find(|server| server.node == node);
                    servers.push(match same {
                        Some(same) => Arc::clone(same),
                        None => Arc::new(Server::open(self.address.of(&node), node)?),
                    });
                    servers.len() - 1
                }
            };
            ranges.push((first, last, index));
        }
        let topology = Topology { servers, ranges };
        let is_other = before.is_none_or(|before| before.places() != topology.places());
        if is_other {
            let primaries: Vec<String> = topology.servers.iter().map(|server| server.node.to_string()).collect();
            tracing::info!(
                event = "streams.servers.found",
                primaries = primaries.join(","),
                "found the servers of Redis"
            );
            self.tell.send_replace(Some(Arc::new(topology)));
        }
        Ok(())
    }

    /// Of what the sentinels say, that of the newest failover.
    async fn ask_sentinels(&mut self, primary: String) -> Result<Vec<(u16, u16, Node)>, Error> {
        let mut command = redis::cmd("SENTINEL");
        command.arg("MASTER").arg(&primary);
        let seeds = self.address.seeds().to_vec();
        let answers = self.ask(&seeds, &command).await;
        let mut newest: Option<(u64, Node)> = None;
        let mut failure = None;
        for (_, answer) in answers {
            match answer.and_then(|answer| Ok(HashMap::<String, String>::from_redis_value(answer)?)) {
                Ok(about) => {
                    let number = |field: &str| about.get(field).and_then(|text| text.parse::<u64>().ok());
                    let port = number("port").and_then(|port| u16::try_from(port).ok());
                    if let (Some(host), Some(port)) = (about.get("ip"), port) {
                        let epoch = number("config-epoch").unwrap_or(0);
                        if newest.as_ref().is_none_or(|(newest, _)| epoch > *newest) {
                            newest = Some((epoch, Node { host: host.clone(), port }));
                        }
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        match (newest, failure) {
            (Some((_, node)), _) => Ok(vec![(0, SLOTS - 1, node)]),
            (None, failure) => Err(Error::Redis(
                failure.unwrap_or_else(|| away(format!("no sentinel knows a primary called {primary}"))),
            )),
        }
    }

    /// What the cluster says of itself: known servers first, for one that was given may be gone for long.
    async fn ask_cluster(&mut self) -> Result<Vec<(u16, u16, Node)>, Error> {
        let known = self.tell.borrow().clone();
        let known = known.iter().flat_map(|known| &known.servers).map(|server| server.node.clone());
        let mut nodes: Vec<Node> = known.collect();
        nodes.extend(self.address.seeds().iter().filter(|seed| !nodes.contains(seed)).cloned().collect::<Vec<_>>());
        let mut command = redis::cmd("CLUSTER");
        command.arg("INFO");
        // A server that was cut off or was stalled says what was right before; the newest epoch knows best.
        let mut healthy = Vec::new();
        for (node, answer) in self.ask(&nodes, &command).await {
            let info = answer.and_then(|answer| Ok(String::from_redis_value(answer)?)).unwrap_or_default();
            let field = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
            let epoch =
                field("cluster_my_epoch").and(field("cluster_current_epoch")).and_then(|text| text.parse().ok());
            healthy.push((field("cluster_state") == Some("ok"), epoch.unwrap_or(0_u64), node));
        }
        healthy.sort_by_key(|(is_ok, epoch, _)| Reverse((*is_ok, *epoch)));
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let mut failure = None;
        for (_, _, node) in healthy {
            let Some((_, answer)) = self.ask(std::slice::from_ref(&node), &command).await.pop() else { continue };
            match answer.and_then(|answer| ranges(answer, &node)) {
                Ok(ranges) if !ranges.is_empty() => return Ok(ranges),
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(Error::Redis(failure.unwrap_or_else(|| away("no server of the cluster knows its slots".to_owned()))))
    }

    /// Asks several, all at once.
    async fn ask(&mut self, nodes: &[Node], command: &Cmd) -> Vec<(Node, RedisResult<Value>)> {
        let address = &self.address;
        let asked = nodes.iter().map(|node| {
            let connection = self.connections.remove(node);
            async move {
                let answer = timeout(CONNECT, async {
                    let mut connection = match connection {
                        Some(connection) => connection,
                        None => {
                            let client = Client::open(address.of_asked(node).set_tcp_settings(tcp()))?;
                            client.get_multiplexed_async_connection_with_config(&answers_soon()).await?
                        }
                    };
                    let answer = connection.req_packed_command(command).await?.extract_error()?;
                    Ok((answer, connection))
                });
                (node.clone(), answer.await.unwrap_or_else(|_| Err(away(format!("{node} does not answer")))))
            }
        });
        let mut answers = Vec::new();
        for (node, answer) in join_all(asked).await {
            answers.push((
                node.clone(),
                answer.map(|(answer, connection)| {
                    self.connections.insert(node, connection);
                    answer
                }),
            ));
        }
        answers
    }
}

/// Reads `[[first, last, [host, port, …], …], …]`.
fn ranges(answer: Value, asked: &Node) -> RedisResult<Vec<(u16, u16, Node)>> {
    let mut ranges = Vec::new();
    for range in Vec::<Vec<Value>>::from_redis_value(answer)? {
        let mut range = range.into_iter();
        let (Some(first), Some(last), Some(primary)) = (range.next(), range.next(), range.next()) else { continue };
        let mut primary = Vec::<Value>::from_redis_value(primary)?.into_iter();
        let host: Option<String> = redis::from_redis_value(primary.next().unwrap_or(Value::Nil))?;
        let port = redis::from_redis_value(primary.next().unwrap_or(Value::Nil))?;
        // A server that does not know its own name is where it was asked.
        let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host.clone());
        ranges.push((redis::from_redis_value(first)?, redis::from_redis_value(last)?, Node { host, port }));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_slot_of_what_stands_in_its_braces() {
        assert_eq!((slot("123456789"), slot("foo")), (12_739, 12_182));
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
        assert_eq!(slot("{payments.0}:records"), slot("{payments.0}:fence"));
        assert_eq!(slot("{payments.alerts}:cursor"), slot("payments.alerts"));
        // Empty braces are none.
        assert_ne!(slot("{}a"), slot("{}b"));
    }

    #[test]
    fn what_a_cluster_says_of_its_slots_is_read() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id")]);
        let range =
            |first, last, nodes: Vec<Value>| Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat());
        let answer = Value::Array(vec![
            range(0, 5, vec![node(text("a"), 1), node(text("replica"), 2)]),
            range(6, 16_383, vec![node(Value::Nil, 3)]),
        ]);
        let asked = Node { host: "asked".into(), port: 9 };
        let found: Vec<String> = ranges(answer, &asked)
            .expect("slots")
            .into_iter()
            .map(|(first, last, node)| format!("{first}-{last} {node}"))
            .collect();
        assert_eq!(found, ["0-5 a:1", "6-16383 asked:3"]);
    }
}
