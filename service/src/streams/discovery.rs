//! Discovery of the primaries of Redis: a task queries the sentinels or the cluster, and publishes the topology.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use redis::{
    Client, Cmd, FromRedisValue as _, RedisError, RedisResult, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use super::{
    Error,
    address::{Address, Node},
    servers::{CONNECT_TIMEOUT, RedisServer, SlotRange, Topology, connection_config, tcp_settings, unavailable},
};

/// Interval between two queries of the sentinels or the cluster.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shortest interval, for when a server has refused a command because the last topology was outdated.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// Queries the sentinels or the cluster for the primaries, again and again.
pub(super) struct Discovery {
    address: Address,
    topology: watch::Sender<Option<Arc<Topology>>>,
    /// Connections to the queried servers.
    connections: HashMap<Node, MultiplexedConnection>,
    failing: bool,
    /// Why the last discovery failed.
    failure: Arc<Mutex<Option<RedisError>>>,
}

impl Discovery {
    pub(super) fn new(
        address: Address,
        topology: watch::Sender<Option<Arc<Topology>>>,
        failure: Arc<Mutex<Option<RedisError>>>,
    ) -> Self {
        Self { address, topology, failure, connections: HashMap::new(), failing: false }
    }

    /// Publishes the topology each second, and at once after `refresh`. Never ends, unless the URL names one server.
    pub(super) async fn run(mut self, refresh: Arc<Notify>) {
        loop {
            let began = Instant::now();
            let found = match &self.address {
                Address::One(_) => return,
                Address::Sentinel { primary, .. } => self.query_sentinels(primary.clone()).await,
                Address::Cluster { .. } => self.query_cluster().await,
            };
            match found.and_then(|found| self.publish(found)) {
                Ok(()) => self.failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(
                            event = "streams.servers.not_found",
                            %error,
                            "the servers of Redis cannot be found"
                        );
                    }
                    let failure = match error {
                        Error::Redis(error) => Some(error),
                        _ => None,
                    };
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
                }
            }
            let _ = timeout(INTERVAL, refresh.notified()).await;
            tokio::time::sleep_until(began + SHORTEST_INTERVAL).await;
        }
    }

    /// Publishes the topology if it has changed. Servers that remain keep their connections.
    fn publish(&self, found: Vec<SlotRange<Node>>) -> Result<(), Error> {
        let before = self.topology.borrow().clone();
        let mut servers: Vec<Arc<RedisServer>> = Vec::new();
        let mut ranges = Vec::new();
        for SlotRange { first, last, server: node } in found {
            let index = match servers.iter().position(|server| server.node == node) {
                Some(index) => index,
                None => {
                    let same = before.iter().flat_map(|before| &before.servers).find(|server| server.node == node);
                    servers.push(match same {
                        Some(same) => Arc::clone(same),
                        None => Arc::new(RedisServer::open(self.address.of(&node), node)?),
                    });
                    servers.len() - 1
                }
            };
            ranges.push(SlotRange { first, last, server: index });
        }
        let topology = Topology { servers, ranges };
        let has_changed = before.is_none_or(|before| before.places() != topology.places());
        if has_changed {
            let primaries: Vec<String> = topology.servers.iter().map(|server| server.node.to_string()).collect();
            tracing::info!(
                event = "streams.servers.found",
                primaries = primaries.join(","),
                "found the servers of Redis"
            );
            self.topology.send_replace(Some(Arc::new(topology)));
        }
        Ok(())
    }

    /// The primary according to the sentinel with the newest failover.
    async fn query_sentinels(&mut self, primary: String) -> Result<Vec<SlotRange<Node>>, Error> {
        let mut command = redis::cmd("SENTINEL");
        command.arg("MASTER").arg(&primary);
        let seeds = self.address.seeds().to_vec();
        let answers = self.query_all(&seeds, &command).await;
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
            (Some((_, node)), _) => Ok(vec![SlotRange::all(node)]),
            (None, failure) => Err(Error::Redis(
                failure.unwrap_or_else(|| unavailable(format!("no sentinel has a primary called {primary}"))),
            )),
        }
    }

    /// The slots according to the cluster. Known servers come first, because a seed may be long removed.
    async fn query_cluster(&mut self) -> Result<Vec<SlotRange<Node>>, Error> {
        let known = self.topology.borrow().clone();
        let known = known.iter().flat_map(|known| &known.servers).map(|server| server.node.clone());
        let mut nodes: Vec<Node> = known.collect();
        nodes.extend(self.address.seeds().iter().filter(|seed| !nodes.contains(seed)).cloned().collect::<Vec<_>>());
        let mut command = redis::cmd("CLUSTER");
        command.arg("INFO");
        // A server that was disconnected or stalled returns an outdated topology, so the newest epoch comes first.
        let mut healthy = Vec::new();
        for (node, answer) in self.query_all(&nodes, &command).await {
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
            let Some((_, answer)) = self.query_all(std::slice::from_ref(&node), &command).await.pop() else { continue };
            match answer.and_then(|answer| ranges(answer, &node)) {
                Ok(ranges) if !ranges.is_empty() => return Ok(ranges),
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(Error::Redis(
            failure.unwrap_or_else(|| unavailable("no server of the cluster returns its slots".to_owned())),
        ))
    }

    /// Sends a command to several servers concurrently.
    async fn query_all(&mut self, nodes: &[Node], command: &Cmd) -> Vec<(Node, RedisResult<Value>)> {
        let address = &self.address;
        let queries = nodes.iter().map(|node| {
            let connection = self.connections.remove(node);
            async move {
                let answer = timeout(CONNECT_TIMEOUT, async {
                    let mut connection = match connection {
                        Some(connection) => connection,
                        None => {
                            let client = Client::open(address.discovery(node).set_tcp_settings(tcp_settings()))?;
                            client.get_multiplexed_async_connection_with_config(&connection_config()).await?
                        }
                    };
                    let answer = connection.req_packed_command(command).await?.extract_error()?;
                    Ok((answer, connection))
                });
                (node.clone(), answer.await.unwrap_or_else(|_| Err(unavailable(format!("{node} does not answer")))))
            }
        });
        let mut answers = Vec::new();
        for (node, answer) in join_all(queries).await {
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
fn ranges(answer: Value, queried: &Node) -> RedisResult<Vec<SlotRange<Node>>> {
    let mut ranges = Vec::new();
    for range in Vec::<Vec<Value>>::from_redis_value(answer)? {
        let mut range = range.into_iter();
        let (Some(first), Some(last), Some(primary)) = (range.next(), range.next(), range.next()) else { continue };
        let mut primary = Vec::<Value>::from_redis_value(primary)?.into_iter();
        let host: Option<String> = redis::from_redis_value(primary.next().unwrap_or(Value::Nil))?;
        let port = redis::from_redis_value(primary.next().unwrap_or(Value::Nil))?;
        // A server without a name of its own is reached under the queried one.
        let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| queried.host.clone());
        let (first, last) = (redis::from_redis_value(first)?, redis::from_redis_value(last)?);
        ranges.push(SlotRange { first, last, server: Node { host, port } });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_of_a_cluster_are_parsed() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id")]);
        let range =
            |first, last, nodes: Vec<Value>| Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat());
        let answer = Value::Array(vec![
            range(0, 5, vec![node(text("a"), 1), node(text("replica"), 2)]),
            range(6, 16_383, vec![node(Value::Nil, 3)]),
        ]);
        let queried = Node { host: "queried".into(), port: 9 };
        let found: Vec<String> = ranges(answer, &queried)
            .expect("slots")
            .into_iter()
            .map(|range| format!("{}-{} {}", range.first, range.last, range.server))
            .collect();
        assert_eq!(found, ["0-5 a:1", "6-16383 queried:3"]);
    }
}
