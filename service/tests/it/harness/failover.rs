//! A Redis Cluster and a Redis with sentinels: several servers, one of which can be paused, killed or replaced.

use std::{fs, process::Child, time::Duration};

use nix::sys::signal::Signal;
use redis::{FromRedisValue, RedisError, RedisResult, aio::MultiplexedConnection};
use tempfile::TempDir;

use super::{eventually, free_port, process::send, servers};

/// A cluster of three primaries with a replica each, or a primary with two replicas and three sentinels.
#[derive(Debug)]
pub(crate) struct ManyRedis {
    dir: TempDir,
    servers: Vec<One>,
    sentinels: Vec<One>,
}

#[derive(Debug)]
struct One {
    port: u16,
    child: Option<Child>,
}

/// The servers of which one takes a command.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Ports of a cluster: a redirection names the server of a key.
    Cluster(Vec<u16>),
    /// Ports of sentinels: they name the primary.
    Sentinels(Vec<u16>),
}

impl ManyRedis {
    /// Starts a cluster.
    pub(crate) async fn cluster() -> Self {
        let dir = servers::server_dir();
        let mut this = Self { dir, servers: Vec::new(), sentinels: Vec::new() };
        for _ in 0..6 {
            let port = free_port();
            let settings = [
                "cluster-enabled yes".to_owned(),
                format!("cluster-config-file nodes-{port}.conf"),
                format!("cluster-port {}", free_port()),
                "cluster-node-timeout 1500".to_owned(),
            ];
            this.servers.push(this.start(port, &settings, false).await);
        }
        let nodes = this.servers.iter().map(|one| format!("127.0.0.1:{}", one.port));
        let made = tokio::process::Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(nodes)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .await
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        for one in &this.servers {
            eventually("each is connected to all", async || {
                let about = ask::<String>(one.port, &["CLUSTER", "INFO"]).await.unwrap_or_default();
                about.contains("cluster_state:ok") && about.contains("cluster_known_nodes:6")
            })
            .await;
        }
        this.is_replicated().await;
        this
    }

    /// Starts a primary that sentinels name `primary`, with replicas and sentinels.
    pub(crate) async fn sentinels() -> Self {
        let dir = servers::server_dir();
        let mut this = Self { dir, servers: Vec::new(), sentinels: Vec::new() };
        let primary = free_port();
        this.servers.push(this.start(primary, &[], false).await);
        for _ in 0..2 {
            let one = this.start(free_port(), &[format!("replicaof 127.0.0.1 {primary}")], false).await;
            this.servers.push(one);
        }
        for _ in 0..3 {
            let settings = [
                format!("sentinel monitor primary 127.0.0.1 {primary} 2"),
                "sentinel down-after-milliseconds primary 1000".to_owned(),
                "sentinel failover-timeout primary 3000".to_owned(),
            ];
            let one = this.start(free_port(), &settings, true).await;
            this.sentinels.push(one);
        }
        for one in &this.sentinels {
            eventually("each is connected to all", async || {
                let about = ask::<String>(one.port, &["INFO", "sentinel"]).await.unwrap_or_default();
                about.contains("status=ok") && about.contains("slaves=2,sentinels=3")
            })
            .await;
        }
        this.is_replicated().await;
        this
    }

    async fn start(&self, port: u16, settings: &[String], sentinel: bool) -> One {
        let mut command = servers::guarded(None);
        let file = self.dir.path().join(format!("redis-{port}.conf"));
        let dir = self.dir.path().join(port.to_string());
        fs::create_dir(&dir).unwrap();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let content = if sentinel {
            format!("bind 127.0.0.1\nport {port}\ndir {}\n{}\n", dir.display(), settings.join("\n"))
        } else {
            let quick = ["repl-diskless-sync-delay 0", "repl-ping-replica-period 1"];
            servers::redis_configuration(&dir, port, &[&quick, &*settings].concat())
        };
        fs::write(&file, content).unwrap();
        command.arg("redis-server").arg(&file);
        if sentinel {
            command.arg("--sentinel");
        }
        let child = Some(servers::spawn(command, self.dir.path()));
        eventually("Redis answers", async || ask::<String>(port, &["PING"]).await.is_ok()).await;
        One { port, child }
    }

    /// Waits until every replica is linked to a primary, and every primary has a replica.
    pub(crate) async fn is_replicated(&self) {
        for one in &self.servers {
            eventually("replicas are linked", async || {
                let about = ask::<String>(one.port, &["INFO", "replication"]).await.unwrap_or_default();
                let has_replicas = about.contains("role:master") && !about.contains("connected_slaves:0");
                has_replicas || about.contains("master_link_status:up")
            })
            .await;
        }
    }

    /// The URL for the pipeline. It names three servers at most; any of them may be the one that fails.
    pub(crate) fn url(&self) -> String {
        let hosts =
            |all: &[One]| all.iter().map(|one| format!("127.0.0.1:{}", one.port)).take(3).collect::<Vec<_>>().join(",");
        match self.place() {
            Place::Cluster(_) => format!("redis+cluster://{}", hosts(&self.servers)),
            Place::Sentinels(_) => format!("redis+sentinel://{}/primary", hosts(&self.sentinels)),
        }
    }

    pub(crate) fn place(&self) -> Place {
        let ports = |all: &[One]| all.iter().map(|one| one.port).collect();
        match self.sentinels.is_empty() {
            true => Place::Cluster(ports(&self.servers)),
            false => Place::Sentinels(ports(&self.sentinels)),
        }
    }

    /// The port of the primary that holds a key.
    pub(crate) async fn primary_of(&self, key: &str) -> u16 {
        self.place().port_of(key).await.unwrap()
    }

    /// The ports of the replicas of the primary on a port.
    pub(crate) async fn replicas_of(&self, primary: u16) -> Vec<u16> {
        let about: String = ask(primary, &["INFO", "replication"]).await.unwrap();
        let ports = about.lines().filter(|line| line.starts_with("slave"));
        let ports = ports.filter_map(|line| line.split("port=").nth(1)?.split(',').next()?.parse().ok());
        ports.collect()
    }

    /// How many bytes of replication the slowest replica of the primary on a port lacks.
    pub(crate) async fn replica_lag(&self, primary: u16) -> u64 {
        let about: String = ask(primary, &["INFO", "replication"]).await.unwrap();
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let all = about.lines().find_map(|line| number(line.strip_prefix("master_repl_offset:")?)).unwrap();
        let least = about.lines().filter_map(|line| number(line.split("offset=").nth(1)?.split(',').next()?)).min();
        all - least.unwrap()
    }

    /// Pauses replicas and ends their connections to the primary, so that later writes do not wait for them in a
    /// buffer.
    pub(crate) async fn disconnect_replicas(&self, primary: u16, replicas: &[u16]) {
        replicas.iter().for_each(|port| self.signal(*port, Signal::SIGSTOP));
        let _: i64 = ask(primary, &["CLIENT", "KILL", "TYPE", "replica"]).await.unwrap();
    }

    /// Sends a signal to the server on a port.
    pub(crate) fn signal(&self, port: u16, signal: Signal) {
        let one = self.servers.iter().find(|one| one.port == port).unwrap();
        send(one.child.as_ref().unwrap(), signal).unwrap();
    }

    /// Kills the server on a port and starts it again with its data.
    pub(crate) async fn restart(&mut self, port: u16) {
        let file = self.dir.path().join(format!("redis-{port}.conf"));
        let one = self.servers.iter_mut().find(|one| one.port == port).unwrap();
        servers::end(&mut one.child, Signal::SIGKILL);
        let mut command = servers::guarded(None);
        command.arg("redis-server").arg(file);
        one.child = Some(servers::spawn(command, self.dir.path()));
        self.is_replicated().await;
    }

    /// Fails over in order from the primary that holds a key to a replica.
    pub(crate) async fn fail_over(&self, key: &str) {
        let before = self.primary_of(key).await;
        match self.place() {
            Place::Sentinels(ports) => {
                eventually("a sentinel begins the failover", async || {
                    ask::<String>(ports[0], &["SENTINEL", "FAILOVER", "primary"]).await.is_ok()
                })
                .await;
            }
            Place::Cluster(_) => {
                let nodes: String = ask(before, &["CLUSTER", "NODES"]).await.unwrap();
                let id = nodes.lines().find(|line| line.contains("myself")).unwrap().split(' ').next().unwrap();
                let replica = nodes.lines().find(|line| line.contains(&format!("slave {id}"))).unwrap();
                let address = replica.split(' ').nth(1).unwrap();
                let port = address.split(['@', ':']).nth(1).unwrap().parse().unwrap();
                let _: String = ask(port, &["CLUSTER", "FAILOVER"]).await.unwrap();
            }
        }
        self.moved_from(key, before).await;
    }

    /// Waits until another server is the primary that holds a key.
    pub(crate) async fn moved_from(&self, key: &str, before: u16) {
        eventually("another server is the primary", async || {
            self.place().port_of(key).await.is_ok_and(|port| port != before)
                && self.place().ask::<i64>(&["EXISTS", key]).await.is_ok()
        })
        .await;
    }
}

impl Drop for ManyRedis {
    fn drop(&mut self) {
        for one in self.servers.iter_mut().chain(&mut self.sentinels) {
            servers::end(&mut one.child, Signal::SIGKILL);
        }
    }
}

impl Place {
    /// Sends a command whose first argument is its key to the server of that key.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        ask(self.port_of(words[1]).await?, words).await
    }

    /// The port of the server that holds a key.
    async fn port_of(&self, key: &str) -> RedisResult<u16> {
        let mut failure = None;
        let (Self::Cluster(ports) | Self::Sentinels(ports)) = self;
        for port in ports {
            let found = match self {
                Self::Sentinels(_) => {
                    let answer = ask(*port, &["SENTINEL", "get-master-addr-by-name", "primary"]).await;
                    answer.map(|(_, port): (String, u16)| port)
                }
                Self::Cluster(_) => match ask::<redis::Value>(*port, &["EXISTS", key]).await {
                    Ok(_) => Ok(*port),
                    Err(error) => match error.redirect_node() {
                        Some((address, _)) => Ok(address.rsplit_once(':').unwrap().1.parse().unwrap()),
                        None => Err(error),
                    },
                },
            };
            match found {
                Ok(port) => return Ok(port),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap())
    }
}

/// Sends a command to one server; times out after a second.
async fn ask<T: FromRedisValue>(port: u16, words: &[&str]) -> RedisResult<T> {
    let asked = async {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
        let mut connection: MultiplexedConnection = client.get_multiplexed_async_connection().await?;
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
    };
    let late = |_| Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)));
    tokio::time::timeout(Duration::from_secs(1), asked).await.unwrap_or_else(late)
}
