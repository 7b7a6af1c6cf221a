//! Proxies between each pair of processes: toxiproxy, controlled over its HTTP interface.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::{eventually, free_port};

/// A connection between two roles.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link(String);

impl Link {
    /// A role and Redis.
    pub(crate) fn redis(role: &str) -> Self {
        Self(format!("{role}-redis"))
    }

    /// A role and Postgres.
    pub(crate) fn postgres(role: &str) -> Self {
        Self(format!("{role}-postgres"))
    }

    /// The clients and a serve process.
    pub(crate) fn client(serve: usize) -> Self {
        Self(format!("client-serve-{serve}"))
    }

    /// All links.
    pub(crate) fn all() -> Vec<Self> {
        let servers = ["serve", "work"].into_iter().flat_map(|role| [Self::redis(role), Self::postgres(role)]);
        servers.chain((0..super::SERVES).map(Self::client)).collect()
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

/// A running toxiproxy.
#[derive(Debug)]
pub(crate) struct Proxies {
    _child: Child,
    url: String,
    http: reqwest::Client,
    ports: Mutex<BTreeMap<Link, u16>>,
}

impl Proxies {
    /// Starts it.
    pub(super) async fn start(program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let port = free_port().to_string();
        let log = fs::File::create(dir.join("toxiproxy.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(program).args([
            "-host",
            "127.0.0.1",
            "-port",
            &port,
            "-proxy-metrics",
        ]);
        command.env("LOG_LEVEL", "warn").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("toxiproxy")?;
        let this = Self {
            _child: child,
            url: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?,
            ports: Mutex::default(),
        };
        let answers = eventually(Duration::from_secs(20), async || this.get("/version").await.is_ok()).await;
        ensure!(answers, "toxiproxy does not answer");
        Ok(this)
    }

    /// Makes a link to a port of loopback.
    pub(super) async fn add(&self, link: Link, upstream: u16) -> anyhow::Result<()> {
        let port = free_port();
        let proxy = json!({"name": link.name(), "listen": format!("127.0.0.1:{port}"), "upstream": format!("127.0.0.1:{upstream}"), "enabled": true});
        self.post("/proxies", &proxy).await?;
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(link, port);
        Ok(())
    }

    /// The port on which a link listens.
    pub(crate) fn port(&self, link: &Link) -> anyhow::Result<u16> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(link).copied().with_context(|| format!("there is no link {}", link.name()))
    }

    /// Opens or closes a link: a closed one refuses connections and cuts the open ones.
    pub(crate) async fn enable(&self, link: &Link, enabled: bool) -> anyhow::Result<()> {
        self.post(&format!("/proxies/{}", link.name()), &json!({"enabled": enabled})).await
    }

    /// Connects a link to another port; cuts open connections.
    pub(crate) async fn redirect(&self, link: &Link, upstream: u16) -> anyhow::Result<()> {
        self.post(&format!("/proxies/{}", link.name()), &json!({"upstream": format!("127.0.0.1:{upstream}")})).await
    }

    /// Adds a toxic to a link; `towards` is `downstream` for the direction to the client.
    pub(crate) async fn add_toxic(
        &self,
        link: &Link,
        kind: &str,
        towards: &str,
        attributes: Value,
    ) -> anyhow::Result<()> {
        let toxic =
            json!({"name": format!("{kind}-{towards}"), "type": kind, "stream": towards, "attributes": attributes});
        self.post(&format!("/proxies/{}/toxics", link.name()), &toxic).await
    }

    /// Removes all toxics from a link.
    pub(crate) async fn remove_toxics(&self, link: &Link) -> anyhow::Result<()> {
        let toxics = self.get(&format!("/proxies/{}/toxics", link.name())).await?;
        for name in toxics.as_array().into_iter().flatten().filter_map(|toxic| toxic["name"].as_str()) {
            let url = format!("{}/proxies/{}/toxics/{name}", self.url, link.name());
            self.http.delete(url).send().await?.error_for_status()?;
        }
        Ok(())
    }

    /// Opens every link and removes all toxics.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        self.post("/reset", &Value::Null).await
    }

    /// Bytes that a link has carried: to the server, and to the client.
    pub(crate) async fn bytes(&self, link: &Link) -> anyhow::Result<[u64; 2]> {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await?.error_for_status()?.text().await?;
        let sum = |direction: &str| {
            let lines = text.lines().filter(|line| line.starts_with("toxiproxy_proxy_sent_bytes_total"));
            let of_link = lines.filter(|line| {
                line.contains(&format!("proxy=\"{}\"", link.name()))
                    && line.contains(&format!("direction=\"{direction}\""))
            });
            of_link.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        Ok([sum("upstream"), sum("downstream")])
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.http.get(format!("{}{path}", self.url)).send().await?.error_for_status()?.json().await?)
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let answer = self.http.post(format!("{}{path}", self.url)).json(body).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "toxiproxy: {path}: {status}: {text}");
        Ok(())
    }
}
