//! What the pipeline does on one machine, beside the ceiling of the same statements: throughput, latency, memory.
//!
//! Needs servers: `hack/bench` starts them. Prints figures; judges nothing.

use std::{
    collections::HashMap,
    error::Error,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use millrace::{
    domain::{DestinationId, Entry, Item, Policy, Record, ShardId, StreamId, decide},
    store::Store,
};
use millrace_crds::RecordPipeline;
use redis::{AsyncCommands as _, streams::StreamReadOptions, streams::StreamReadReply};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Entries of one batch, at the ceiling and from HTTP.
const CEILING_BATCH: usize = 1_000;
const HTTP_BATCH: usize = 500;
const CONNECTIONS: usize = 8;
const KEYS: usize = 1_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    // `cargo test --benches` runs this too: it measures only when asked to.
    if std::env::args().any(|arg| arg == "--test") || !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let records = setting("MILLRACE_BENCH_RECORDS", 300_000) as usize;
    let seconds = setting("MILLRACE_BENCH_SECONDS", 20);
    println!("{} cores, {records} records a part", std::thread::available_parallelism()?);
    let ceiling = ceiling(records).await?;
    println!(
        "ceiling: the commit's statements, {CONNECTIONS} connections, batches of {CEILING_BATCH}   {ceiling:>9.0} records/s"
    );
    let singles = accept_singles(Duration::from_secs(seconds / 2)).await?;
    println!("accept alone, single records, 64 at a time                       {singles:>9.0} records/s");
    let batches = accept_batches(records).await?;
    println!("accept alone, NDJSON batches of {HTTP_BATCH}, 4 at a time                 {batches:>9.0} records/s");
    let whole = end_to_end(records).await?;
    println!(
        "end to end, HTTP batches to notifications read by a consumer     {:>9.0} records/s = {:.2} of the ceiling",
        whole.rate,
        whole.rate / ceiling
    );
    println!("  peak resident memory: serve {} MiB, work {} MiB", whole.serve_mib, whole.work_mib);
    println!(
        "  a query that streams {records} records under load: {:.1} s; peak of serve after it {} MiB, of work {} MiB",
        whole.query_seconds, whole.query_serve_mib, whole.query_work_mib
    );
    let latency = latency(Duration::from_secs(seconds)).await?;
    println!(
        "POST to notification at 1,000 records/s for {seconds} s: p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms ({} records)",
        latency[0], latency[1], latency[2], latency[3]
    );
    Ok(())
}

/// A pipeline of its own: a database, a manifest, processes.
struct Bench {
    name: String,
    directory: PathBuf,
    postgres: String,
    redis: String,
    port: u16,
    processes: Vec<(&'static str, Child)>,
}

impl Bench {
    async fn new(name: &str, shards: u16) -> Outcome<Self> {
        let postgres = std::env::var("MILLRACE_TEST_POSTGRES_URL").map_err(|_| "hack/bench starts what this needs")?;
        let redis = std::env::var("MILLRACE_TEST_REDIS_URL")?;
        let directory = std::env::temp_dir().join(format!("millrace-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)?;
        fs::write(
            directory.join("pipeline.yaml"),
            format!(
                "apiVersion: millrace.dev/v1alpha1\nkind: RecordPipeline\nmetadata: {{ name: {name} }}\nspec:\n  \
                 threshold: \"1000\"\n  shards: {shards}\n  backlogLimit: 10000000\n  sinks:\n    \
                 - {{ name: notifications, event: Processed, redisStream: {{ maxLength: 0 }} }}\n    \
                 - {{ name: alerts, event: Alert, redisStream: {{ maxLength: 0 }} }}\n"
            ),
        )?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let bench = Self { name: name.to_owned(), directory, postgres, redis, port, processes: Vec::new() };
        if !bench.command("migrate").stdout(Stdio::null()).status()?.success() {
            return Err("migrate failed".into());
        }
        Ok(bench)
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command
            .arg(what)
            .env("MILLRACE_PIPELINE", self.directory.join("pipeline.yaml"))
            .env("MILLRACE_REDIS_URL", &self.redis)
            .env("MILLRACE_POSTGRES_URL", &self.postgres)
            .env("MILLRACE_BOOTSTRAP_KEY", KEY)
            .env("MILLRACE_LOG", "warn")
            .stderr(Stdio::inherit());
        command
    }

    async fn serve(&mut self) -> Outcome<()> {
        let listen = format!("127.0.0.1:{}", self.port);
        let child = self.command("serve").args(["--listen", &listen]).spawn()?;
        self.processes.push(("serve", child));
        let started = Instant::now();
        while client().get(format!("http://{listen}/ready")).send().await.is_err() {
            if started.elapsed() > Duration::from_secs(30) {
                return Err("serve did not start".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn work(&mut self) -> Outcome<()> {
        let child = self.command("work").spawn()?;
        self.processes.push(("work", child));
        // Ready when the sink has its cursor.
        let cursor = format!("{{{}.notifications}}:cursor", self.name);
        let mut redis = self.redis().await?;
        while !redis.exists::<_, bool>(&cursor).await? {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn redis(&self) -> Outcome<redis::aio::MultiplexedConnection> {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        Ok(redis::Client::open(self.redis.as_str())?.get_multiplexed_async_connection_with_config(&config).await?)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Peak resident memory of a role so far, in MiB.
    fn peak(&self, role: &str) -> u64 {
        let pid = self.processes.iter().find(|(name, _)| *name == role).map_or(0, |(_, child)| child.id());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const KEY: &str = "mk_bench_0123456789abcdef0123456789abcdef";

fn client() -> reqwest::Client {
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {KEY}").parse().expect("a header"));
    reqwest::Client::builder().default_headers(headers).timeout(Duration::from_secs(60)).build().expect("a client")
}

fn json(prefix: &str, n: usize) -> String {
    format!(
        r#"{{"recordId":"{prefix}-{n}","time":"2026-01-31T12:00:00Z","sourceId":"source-{}","destinationId":"destination-{}","type":"positive","value":"{}.25","unit":"EUR","reference":"reference-{}"}}"#,
        n % 97,
        n % KEYS,
        n % 1_100,
        n % 3
    )
}

fn manifest(bench: &Bench) -> Outcome<RecordPipeline> {
    Ok(RecordPipeline::from_yaml(&fs::read_to_string(bench.directory.join("pipeline.yaml"))?)?)
}

/// The very statements of a commit, without Redis and HTTP: parsed, decided, written.
async fn ceiling(records: usize) -> Outcome<f64> {
    let bench = Bench::new("bench-ceiling", CONNECTIONS as u16).await?;
    let spec = manifest(&bench)?.spec;
    let mut batches: Vec<Vec<Vec<Item>>> = (0..CONNECTIONS).map(|_| vec![Vec::new()]).collect();
    for n in 0..records {
        let payload = json("c", n);
        let record = Record::parse(payload.as_bytes()).map(Arc::new);
        let shard = ShardId::of(&DestinationId::stored(format!("destination-{}", n % KEYS)), CONNECTIONS as u16).get();
        let shard = &mut batches[usize::from(shard)];
        if shard.last().is_some_and(|batch| batch.len() == CEILING_BATCH) {
            shard.push(Vec::new());
        }
        let entry = Entry {
            id: StreamId { ms: 1_763_700_000_000 + n as u64, n: 0 },
            deliveries: 1,
            payload: payload.into_bytes(),
            received_at: chrono::DateTime::UNIX_EPOCH,
            traceparent: None,
            marked: true,
            replay_of: None,
        };
        shard.last_mut().ok_or("a batch")?.push(Item { entry, record, isolated: None });
    }
    let policy = Arc::new(Policy::of(&spec, 1));
    let mut tasks = Vec::new();
    let started = Instant::now();
    for (shard, batches) in batches.into_iter().enumerate() {
        let store = Store::connect(&bench.postgres, &bench.name, 1)?;
        let policy = Arc::clone(&policy);
        tasks.push(tokio::spawn(async move {
            let shard = ShardId::new(shard as u16);
            let fence = store.take("bench", shard, "token", 3_600_000).await?.ok_or("the shard is free")?;
            for batch in batches.iter().filter(|batch| !batch.is_empty()) {
                let mut commit = store.begin_commit(shard, CONNECTIONS as u16, &fence, 1, false).await?;
                let known = commit.known(batch, &policy).await?;
                let decision = decide(batch, known, &policy, commit.position);
                commit.write(batch, &decision, 1).await?;
            }
            Outcome::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(records as f64 / started.elapsed().as_secs_f64())
}

async fn accept_singles(long: Duration) -> Outcome<f64> {
    let mut bench = Bench::new("bench-singles", 4).await?;
    bench.serve().await?;
    let (client, next, url) = (client(), Arc::new(AtomicU64::new(0)), bench.url("/records"));
    let started = Instant::now();
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (client, next, url) = (client.clone(), Arc::clone(&next), url.clone());
            tokio::spawn(async move {
                while started.elapsed() < long {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let body = json("s", n as usize);
                    let answer = client.post(&url).header("content-type", "application/json").body(body).send().await?;
                    answer.error_for_status()?.bytes().await?;
                }
                Outcome::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(next.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// Sends all records in NDJSON batches, four requests at a time.
async fn send(url: String, prefix: &'static str, records: usize) -> Outcome<()> {
    let (client, next) = (client(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (client, next, url) = (client.clone(), Arc::clone(&next), url.clone());
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(HTTP_BATCH as u64, Ordering::Relaxed) as usize;
                    if first >= records {
                        return Outcome::Ok(());
                    }
                    let lines: Vec<String> =
                        (first..records.min(first + HTTP_BATCH)).map(|n| json(prefix, n)).collect();
                    let answer = client
                        .post(&url)
                        .header("content-type", "application/x-ndjson")
                        .body(lines.join("\n"))
                        .send()
                        .await?;
                    answer.error_for_status()?.bytes().await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn accept_batches(records: usize) -> Outcome<f64> {
    let mut bench = Bench::new("bench-batches", 4).await?;
    bench.serve().await?;
    let started = Instant::now();
    send(bench.url("/records/batch"), "b", records).await?;
    Ok(records as f64 / started.elapsed().as_secs_f64())
}

struct Whole {
    rate: f64,
    serve_mib: u64,
    work_mib: u64,
    query_seconds: f64,
    query_serve_mib: u64,
    query_work_mib: u64,
}

/// A consumer group that reads and acknowledges; calls `seen` with each entry's data.
async fn consume(bench: &Bench, stop: Arc<AtomicBool>, mut seen: impl FnMut(&str)) -> Outcome<()> {
    let stream = format!("{}.notifications", bench.name);
    let mut redis = bench.redis().await?;
    let _: Result<(), _> = redis.xgroup_create_mkstream(&stream, "bench", "0").await;
    let options = StreamReadOptions::default().group("bench", "one").count(1_000).block(100);
    while !stop.load(Ordering::Relaxed) {
        let reply: Option<StreamReadReply> = redis.xread_options(&[&stream], &[">"], &options).await?;
        for key in reply.into_iter().flat_map(|reply| reply.keys) {
            let ids: Vec<String> = key.ids.iter().map(|entry| entry.id.clone()).collect();
            for entry in &key.ids {
                seen(&entry.get::<String>("data").unwrap_or_default());
            }
            let _: i64 = redis.xack(&stream, "bench", &ids).await?;
        }
    }
    Ok(())
}

async fn end_to_end(records: usize) -> Outcome<Whole> {
    let mut bench = Bench::new("bench-whole", 8).await?;
    bench.serve().await?;
    bench.work().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let sending = tokio::spawn(send(bench.url("/records/batch"), "e", records));
    let mut count = 0;
    let mut took = Duration::ZERO;
    let end = Arc::clone(&stop);
    consume(&bench, Arc::clone(&stop), |_| {
        count += 1;
        if count == records {
            took = started.elapsed();
            end.store(true, Ordering::Relaxed);
        }
    })
    .await?;
    sending.await??;
    let (serve_mib, work_mib) = (bench.peak("serve"), bench.peak("work"));
    // The same again, while a query streams what is there.
    let sending = tokio::spawn(send(bench.url("/records/batch"), "q", records / 3));
    let asked = Instant::now();
    let mut answer = client().get(bench.url("/records/aggregations")).send().await?.error_for_status()?;
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await? {
        bytes += chunk.len();
    }
    assert!(bytes > records * 100, "the answer holds every record");
    let query_seconds = asked.elapsed().as_secs_f64();
    sending.await??;
    Ok(Whole {
        rate: records as f64 / took.as_secs_f64(),
        serve_mib,
        work_mib,
        query_seconds,
        query_serve_mib: bench.peak("serve"),
        query_work_mib: bench.peak("work"),
    })
}

/// p50, p95, p99 in milliseconds, and how many records: from POST to the notification, at 1,000 records/s.
async fn latency(long: Duration) -> Outcome<[f64; 4]> {
    let mut bench = Bench::new("bench-latency", 4).await?;
    bench.serve().await?;
    bench.work().await?;
    let total = long.as_millis() as usize;
    let (sent, sent_times) = tokio::sync::mpsc::unbounded_channel::<(usize, Instant)>();
    let (client, url) = (client(), bench.url("/records"));
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(async move {
        // An open loop: one record a millisecond, whatever came of the one before.
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut requests = tokio::task::JoinSet::new();
        for n in 0..total {
            ticks.tick().await;
            let (client, url, body) = (client.clone(), url.clone(), json("l", n));
            let _ = sent.send((n, Instant::now()));
            requests.spawn(async move {
                client.post(&url).header("content-type", "application/json").body(body).send().await?.error_for_status()
            });
            while let Some(done) = requests.try_join_next() {
                done??;
            }
        }
        while let Some(done) = requests.join_next().await {
            done??;
        }
        Outcome::Ok(())
    });
    let mut sent_times = sent_times;
    let mut pending: HashMap<usize, Instant> = HashMap::new();
    let mut took: Vec<f64> = Vec::with_capacity(total);
    let end = Arc::clone(&stop);
    consume(&bench, Arc::clone(&stop), |data| {
        let now = Instant::now();
        while let Ok((n, at)) = sent_times.try_recv() {
            pending.insert(n, at);
        }
        let n = data.split("\"l-").nth(1).and_then(|rest| rest.split('"').next()).and_then(|n| n.parse().ok());
        if let Some(at) = n.and_then(|n: usize| pending.remove(&n)) {
            took.push((now - at).as_secs_f64() * 1_000.0);
        }
        if took.len() == total {
            end.store(true, Ordering::Relaxed);
        }
    })
    .await?;
    load.await??;
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Ok([at(0.50), at(0.95), at(0.99), took.len() as f64])
}
