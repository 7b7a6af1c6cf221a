//! The world of a run: servers, proxies between them, and the processes of one pipeline. Faults act upon it.

pub(crate) mod disk;
mod idle;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
mod sinks;
mod tools;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::{
    process::Command,
    sync::{Mutex, MutexGuard},
    time::sleep,
};

pub(crate) use crate::free_port::free_port;
use crate::{
    check::Wrong,
    endpoint::{self, Endpoint},
    load::KEY,
};
use postgres::Postgres;
use process::{Slot, Start};
use proxy::{Link, Proxies};
pub(crate) use redis::Redis;
pub(crate) use sinks::{ADDED, SINKS, stream};
pub(crate) use tools::{alive, children, clock_environment, clock_library, eventually, is_stopped, resident_kb};

/// The pipeline's name.
pub(crate) const NAME: &str = "faults";
/// How many shards it has.
pub(crate) const SHARDS: usize = 6;
/// Most deliveries of a shard at once.
pub(crate) const IN_FLIGHT: i64 = 16;
/// The duration of a lease: short, so that takeovers are quick.
pub(crate) const LEASE: Duration = Duration::from_millis(2_000);
/// Serve processes.
pub(crate) const SERVES: usize = 2;
/// Most workers: the number of slots.
pub(crate) const WORKERS: usize = 5;
/// Workers outside of faults.
pub(crate) const USUAL_WORKERS: usize = 3;

/// Settings of a run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    pub(crate) other_binary: Option<PathBuf>,
    pub(crate) toxiproxy: Option<PathBuf>,
    /// Whether each server gets a disk of its own, which can be filled and can lose power.
    pub(crate) disks: bool,
    /// The folder of data and logs.
    pub(crate) dir: PathBuf,
}

/// All servers and processes.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) redis: Mutex<Redis>,
    pub(crate) postgres: Mutex<Postgres>,
    pub(crate) proxies: Option<Proxies>,
    pub(crate) serves: Vec<Mutex<Slot>>,
    pub(crate) workers: Vec<Mutex<Slot>>,
    /// Violations that were found during a round: by faults, and processes that ended by themselves.
    found: std::sync::Mutex<Vec<(Wrong, String)>>,
    /// Whether new processes are of the other build.
    pub(crate) other_build: AtomicBool,
    pub(crate) starts: AtomicU64,
    /// How often a fault has moved the clock of Postgres.
    pub(crate) clock_moves: AtomicU64,
    /// Milliseconds from each loss until it was reported everywhere.
    pub(crate) report_ms: std::sync::Mutex<Vec<u64>>,
    pub(crate) http: reqwest::Client,
    /// Whether the manifest has its rollups.
    pub(crate) rollups: AtomicBool,
    /// A sink that a fault added, until the end of its round.
    pub(crate) added_sink: std::sync::Mutex<Option<String>>,
    /// The endpoint of the webhook, and whether the manifest has its address, rather than a name that does not resolve.
    pub(crate) endpoint: Endpoint,
    pub(crate) has_name: AtomicBool,
    /// Malformed entries that faults have appended to input streams.
    pub(crate) external: AtomicU64,
    /// Records that were removed from input streams, since the last round.
    pub(crate) trimmed: AtomicU64,
    /// Ports of Redis and Postgres, for processes without proxies.
    server_ports: (u16, u16),
}

impl World {
    /// Starts servers, creates the pipeline, and starts its processes.
    pub(crate) async fn start(setup: Setup) -> anyhow::Result<Arc<Self>> {
        fs::create_dir_all(setup.dir.join("logs"))?;
        fs::create_dir_all(setup.dir.join("traces"))?;
        fs::create_dir_all(setup.dir.join("secrets/hook"))?;
        fs::write(setup.dir.join("secrets/hook/signing"), endpoint::KEY)?;
        // The user of Postgres needs to enter it.
        fs::set_permissions(&setup.dir, fs::Permissions::from_mode(0o711))?;
        let redis = Redis::start(&setup.dir, setup.disks).await?;
        let postgres = Postgres::start(&setup.dir, setup.disks).await?;
        let proxies = match &setup.toxiproxy {
            Some(program) => Some(Proxies::start(program, &setup.dir).await?),
            None => None,
        };
        let serve_ports = [free_port(), free_port()];
        if let Some(proxies) = &proxies {
            for role in ["serve", "work"] {
                proxies.add(Link::redis(role), redis.port).await?;
                proxies.add(Link::postgres(role), postgres.port).await?;
            }
            for (n, port) in serve_ports.iter().enumerate() {
                proxies.add(Link::client(n), *port).await?;
            }
        }
        let this = Arc::new(Self {
            serves: serve_ports.iter().enumerate().map(|(n, port)| Mutex::new(Slot::serve(n, *port))).collect(),
            workers: (0..WORKERS).map(|n| Mutex::new(Slot::work(n))).collect(),
            setup,
            server_ports: (redis.port, postgres.port),
            redis: Mutex::new(redis),
            postgres: Mutex::new(postgres),
            proxies,
            found: std::sync::Mutex::default(),
            other_build: AtomicBool::new(false),
            starts: AtomicU64::new(0),
            clock_moves: AtomicU64::new(0),
            report_ms: std::sync::Mutex::default(),
            rollups: AtomicBool::new(true),
            added_sink: std::sync::Mutex::default(),
            endpoint: Endpoint::start().await?,
            has_name: AtomicBool::new(true),
            external: AtomicU64::new(0),
            trimmed: AtomicU64::new(0),
            http: reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?,
        });
        this.write_manifest(None)?;
        this.command(&["migrate"]).await?;
        for slot in &this.serves {
            slot.lock().await.start(&this, &Start::default())?;
        }
        this.scale(USUAL_WORKERS).await?;
        tokio::task::spawn_local(supervise(Arc::downgrade(&this)));
        Ok(this)
    }

    fn manifest(&self) -> PathBuf {
        self.setup.dir.join("pipeline.yaml")
    }

    /// The folder of the protocol traces.
    pub(crate) fn traces(&self) -> PathBuf {
        self.setup.dir.join("traces")
    }

    /// URLs of the serve processes.
    pub(crate) async fn urls(&self) -> anyhow::Result<Vec<String>> {
        let mut urls = Vec::new();
        for (n, slot) in self.serves.iter().enumerate() {
            let port = match &self.proxies {
                Some(proxies) => proxies.port(&Link::client(n))?,
                None => slot.lock().await.port,
            };
            urls.push(format!("http://127.0.0.1:{port}"));
        }
        Ok(urls)
    }

    /// The environment of every process of the pipeline. `role`: its role in Postgres.
    fn environment(&self, redis: u16, postgres: u16, role: &str) -> Vec<(String, String)> {
        vec![
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            ("MILLRACE_PIPELINE".to_owned(), self.manifest().display().to_string()),
            ("MILLRACE_REDIS_URL".to_owned(), format!("redis://127.0.0.1:{redis}")),
            ("MILLRACE_POSTGRES_URL".to_owned(), postgres::url(role, postgres)),
            ("MILLRACE_BOOTSTRAP_KEY".to_owned(), KEY.to_owned()),
            ("MILLRACE_LEASE_MS".to_owned(), LEASE.as_millis().to_string()),
            ("MILLRACE_LOG_FORMAT".to_owned(), "json".to_owned()),
            ("MILLRACE_WEBHOOK_SECRETS_DIR".to_owned(), self.setup.dir.join("secrets").display().to_string()),
        ]
    }

    /// The binary of processes that start now.
    fn build(&self) -> &Path {
        let other = self.setup.other_binary.as_ref().filter(|_| self.other_build.load(Ordering::Relaxed));
        other.unwrap_or(&self.setup.binary)
    }

    /// Runs a subcommand to its end, past the proxies.
    pub(crate) async fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (redis, postgres) = (self.redis.lock().await.port, self.postgres.lock().await.port);
        let mut command = Command::new(&self.setup.binary);
        command.args(arguments).env_clear().envs(self.environment(redis, postgres, postgres::OWNER)).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("{}", self.setup.binary.display()))?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        ensure!(output.status.success(), "millrace {}: {}: {text}", arguments.join(" "), output.status);
        Ok(text)
    }

    /// Changes the number of workers to `n`: the first slots are wanted, the others end. Returns how many started or
    /// ended.
    pub(crate) async fn scale(&self, n: usize) -> anyhow::Result<usize> {
        let mut changed = 0;
        for (index, slot) in self.workers.iter().enumerate() {
            let mut slot = slot.lock().await;
            if index < n && !slot.is_wanted() {
                slot.start(self, &Start::default())?;
                changed += 1;
            } else if index >= n && slot.is_wanted() {
                changed += usize::from(slot.stop().await);
            }
        }
        Ok(changed)
    }

    /// Locks the slots of all workers, so that no other fault uses them.
    pub(crate) async fn all_workers(&self) -> Vec<MutexGuard<'_, Slot>> {
        let mut all = Vec::new();
        for slot in &self.workers {
            all.push(slot.lock().await);
        }
        all
    }

    /// The answer of a serve process, past the proxies.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let mut last = None;
        for slot in &self.serves {
            let url = format!("http://127.0.0.1:{}{path}", slot.lock().await.port);
            match self.http.get(url).bearer_auth(KEY).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer.json().await?),
                Ok(answer) => last = Some(anyhow::anyhow!("{}: {}", answer.status(), answer.text().await?)),
                Err(error) => last = Some(error.into()),
            }
        }
        match last {
            Some(error) => Err(error),
            None => bail!("there is no serve process"),
        }
    }

    /// A number by a query.
    pub(crate) async fn number(&self, query: &'static str) -> anyhow::Result<i64> {
        let mut sql = self.postgres.lock().await.connect().await?;
        Ok(sqlx::query_scalar(query).fetch_one(&mut sql).await?)
    }

    /// How many sequence numbers of records were given.
    pub(crate) async fn records(&self) -> anyhow::Result<i64> {
        self.number("select sum(records)::bigint from shards").await
    }

    /// Whether the process of a slot reports a problem for this reason. `None`: it does not answer.
    pub(crate) async fn reports(&self, slot: &Slot, reason: &str) -> Option<bool> {
        let url = format!("http://127.0.0.1:{}/status", slot.health);
        let answer = self.http.get(url).timeout(Duration::from_secs(2)).send().await.ok()?;
        let status: Value = answer.json().await.ok()?;
        Some(status["problems"].as_array()?.iter().any(|problem| problem["reason"] == reason))
    }

    /// Restores the usual state: servers answer, no link is disturbed, the usual processes run.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        if let Some(proxies) = &self.proxies {
            proxies.clear().await?;
        }
        self.redis.lock().await.ensure().await?;
        self.postgres.lock().await.ensure().await?;
        self.scale(USUAL_WORKERS).await?;
        for slot in self.serves.iter().chain(&self.workers[..USUAL_WORKERS]) {
            let mut slot = slot.lock().await;
            slot.resume();
            if !slot.runs() {
                slot.start(self, &Start::default())?;
            }
        }
        Ok(())
    }

    /// Memory in kB: the most of any serve process and of any worker.
    pub(crate) async fn memory(&self) -> (u64, u64) {
        let mut most = (0, 0);
        for slot in &self.serves {
            most.0 = most.0.max(slot.lock().await.pid().map_or(0, resident_kb));
        }
        for slot in &self.workers {
            most.1 = most.1.max(slot.lock().await.pid().map_or(0, resident_kb));
        }
        most
    }

    /// Notes a violation that was found during the round.
    pub(crate) fn wrong(&self, wrong: Wrong, detail: String) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push((wrong, detail));
    }

    /// The violations that were noted since the last call.
    pub(crate) fn take_found(&self) -> Vec<(Wrong, String)> {
        std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lost records in a worker's metric. `None`: it does not answer, or a fault uses its slot.
    async fn counts_lost(&self, slot: &Mutex<Slot>) -> Option<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", slot.try_lock().ok()?.health);
        let answer = self.http.get(url).timeout(Duration::from_millis(300)).send().await.ok()?;
        let text = answer.text().await.ok()?;
        let lost = text.lines().filter(|line| line.starts_with("millrace_lost_records_total{"));
        Some(lost.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The losses that the pipeline reports.
    pub(crate) async fn reported_losses(&self) -> anyhow::Result<ReportedLosses> {
        let stats = self.get("/stats").await?["lost"].as_i64().unwrap_or(0);
        let mut metrics = Vec::new();
        for slot in &self.workers {
            metrics.push(self.counts_lost(slot).await);
        }
        let mut lines = 0;
        for log in fs::read_dir(self.setup.dir.join("logs"))?.flatten() {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            lines += text.matches("\"worker.records.lost\"").count();
        }
        Ok(ReportedLosses { stats, metrics, lines })
    }

    /// Ends everything.
    pub(crate) async fn end(&self) {
        for slot in self.serves.iter().chain(&self.workers) {
            slot.lock().await.kill().await;
        }
        let mut redis = self.redis.lock().await;
        redis.kill().await;
        redis.disk = None;
        let mut postgres = self.postgres.lock().await;
        postgres.end().await;
        postgres.disk = None;
    }
}

/// Reports of losses.
#[derive(Debug, Default)]
pub(crate) struct ReportedLosses {
    /// The number in `/stats`.
    pub(crate) stats: i64,
    /// The counter of each worker that answers; it starts from zero with its process.
    pub(crate) metrics: Vec<Option<f64>>,
    /// Lines in logs.
    pub(crate) lines: usize,
}

/// A shard's input stream.
pub(crate) fn records(shard: usize) -> String {
    format!("{{{NAME}.{shard}}}:records")
}

/// Restarts processes that ended by themselves, as a cluster does, and notes them.
async fn supervise(world: std::sync::Weak<World>) {
    loop {
        sleep(Duration::from_millis(200)).await;
        let Some(world) = world.upgrade() else { return };
        for slot in world.serves.iter().chain(&world.workers) {
            // A locked slot is in use by a fault.
            let Ok(mut slot) = slot.try_lock() else { continue };
            let Some(end) = slot.ended_by_itself() else { continue };
            world.wrong(Wrong::Stuck, end);
            if let Err(error) = slot.start(&world, &Start::default()) {
                eprintln!("cannot start a process again: {error:#}");
            }
        }
    }
}
