//! The cost of 1,000 pipelines: the time until all are Ready, writes until then and while idle, memory, and the
//! duration of reconciles. The operator is a process of its own; the tests' fake cluster acts as controllers, kubelets
//! and pods.
//!
//! Variables: `MILLRACE_PIPELINES` (1000), `MILLRACE_REST_SECONDS` (600). It fails where a bound is exceeded.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot continue fails")]

#[path = "../tests/it/cluster/mod.rs"]
#[expect(dead_code, reason = "no behaviour changes here")]
mod cluster;
#[path = "../tests/it/ledger.rs"]
mod ledger;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::{Child, Command},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use millrace_crds::RecordPipelineResource;
use serde_json::json;

use crate::{
    cluster::FakeCluster,
    ledger::{Ledger, Object},
};

/// The operator's namespace.
const HOME: &str = "millrace-system";

/// Most resident memory of the operator, in MiB.
const MOST_MEMORY: u64 = 96;
/// Most writes on a resource until it is Ready.
const MOST_WRITES: usize = 4;
/// Longer than all pipelines need to become Ready.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// The operator's process, killed at the end.
struct Operator {
    process: Child,
    listen: SocketAddr,
}

impl Operator {
    fn start(status_port: u16) -> Self {
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = std::fs::File::create(std::env::temp_dir().join("millrace-bench-operator.log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_millrace-operator"))
            .arg("run")
            .env("MILLRACE_OPERATOR_RELEASE", "millrace")
            .env("MILLRACE_OPERATOR_NAMESPACE", HOME)
            .env("MILLRACE_DEFAULT_IMAGE", "millrace/service:1")
            .env("MILLRACE_STATUS_PORT", status_port.to_string())
            .env("MILLRACE_OPERATOR_LISTEN", listen.to_string())
            .env("MILLRACE_LOG", "warn")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, listen }
    }

    async fn metrics(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.listen)).await.unwrap().text().await.unwrap()
    }

    /// A field of memory in `/proc/<pid>/status`, in MiB.
    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[tokio::main]
async fn main() {
    // `cargo bench` also lists the tests of every target.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let (pipelines, idle_seconds) = (number("MILLRACE_PIPELINES", 1000), number("MILLRACE_REST_SECONDS", 600));
    let client = Client::try_default().await.unwrap();
    let cluster = FakeCluster::new(client.clone(), None).await;
    let ledger = Ledger::new(&client, None);
    create_pipelines(&client, pipelines).await;

    let operator = Operator::start(cluster.port);
    wait_until_ready(&client, pipelines).await;
    let before = wait_until_idle(&ledger, &cluster).await;
    let writes = Writes::new(&before);
    writes.print();
    let scrape = operator.metrics().await;
    println!("reconcile p99 while they became Ready: {}", p99(&scrape, ""));

    tokio::time::sleep(Duration::from_secs(idle_seconds as u64)).await;
    let after = ledger.writes(&cluster);
    let idle_writes: usize = after.values().sum::<usize>() - before.values().sum::<usize>();
    println!("writes in {idle_seconds} s while idle: {idle_writes}");
    println!("reconcile p99 while idle: {}", p99(&operator.metrics().await, &scrape));
    let (now, most) = (operator.memory("VmRSS:"), operator.memory("VmHWM:"));
    println!("resident memory of the operator: {now} MiB now, {most} MiB at most");

    assert_eq!(idle_writes, 0, "it wrote while idle");
    writes.check();
    assert!(most <= MOST_MEMORY, "it uses more than {MOST_MEMORY} MiB");
}

/// Creates the namespaces, one for each customer, with ten pipelines each.
async fn create_pipelines(client: &Client, pipelines: usize) {
    let namespaces: Vec<_> = (0..pipelines.div_ceil(10)).map(|number| format!("customer-{number}")).collect();
    let all: Api<Namespace> = Api::all(client.clone());
    for name in namespaces.iter().map(String::as_str).chain([HOME]) {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        all.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    }
    let created: Vec<_> = stream::iter(0..pipelines)
        .map(async |number| {
            let pipelines: Api<RecordPipelineResource> = Api::namespaced(client.clone(), &namespaces[number / 10]);
            let object = json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline",
                "metadata": { "name": format!("pipeline-{number}") },
                "spec": {
                    "threshold": "1000.00", "shards": 4, "replicas": 1,
                    "sinks": [{ "name": "notifications", "event": "Processed", "redisStream": {} }],
                    "redis": { "urlSecretRef": { "name": "servers", "key": "redis" } },
                    "postgres": { "urlSecretRef": { "name": "servers", "key": "postgres" } },
                },
            });
            pipelines.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
        })
        .buffer_unordered(16)
        .collect()
        .await;
    assert_eq!(created.len(), pipelines);
}

/// Waits until all pipelines are Ready, and prints the time.
async fn wait_until_ready(client: &Client, pipelines: usize) {
    let begun = Instant::now();
    loop {
        let ready = ready(client).await;
        if ready >= pipelines {
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "{ready} of {pipelines} are ready");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("{pipelines} pipelines are Ready after {:.1} s", begun.elapsed().as_secs_f64());
}

/// Waits until the writes end, such as the last status of each pipeline, and returns the writes so far.
async fn wait_until_idle(ledger: &Ledger, cluster: &FakeCluster) -> BTreeMap<Object, usize> {
    let begun = Instant::now();
    let mut before = ledger.writes(cluster);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = ledger.writes(cluster);
        if now == before {
            return now;
        }
        assert!(begun.elapsed() < TIMEOUT, "the operator does not become idle");
        before = now;
    }
}

/// The operator's writes by kind: the most on one object, and all.
struct Writes(BTreeMap<String, (usize, usize)>);

impl Writes {
    fn new(writes: &BTreeMap<Object, usize>) -> Self {
        let mut by_kind: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for ((kind, _), count) in writes {
            // This bench creates the resource, and creates each pod and writes its status.
            let own = match kind.as_str() {
                "RecordPipeline" => count - 1,
                "Pod" => count.saturating_sub(2),
                _ => *count,
            };
            let (most, all) = by_kind.entry(kind.clone()).or_default();
            *most = own.max(*most);
            *all += own;
        }
        Self(by_kind)
    }

    fn print(&self) {
        println!("writes until then, by kind: most on one, and all");
        for (kind, (most, all)) in &self.0 {
            println!("  {kind:24} {most:3} {all:7}");
        }
    }

    fn check(&self) {
        for (kind, (most, _)) in &self.0 {
            let allowed = match kind.as_str() {
                "RecordPipeline" => MOST_WRITES,
                "Pod" => 0,
                _ => 1,
            };
            assert!(*most <= allowed, "{most} writes on a {kind}");
        }
    }
}

/// The number of pipelines that are Ready.
async fn ready(client: &Client) -> usize {
    let pipelines: Api<RecordPipelineResource> = Api::all(client.clone());
    let found = pipelines.list(&ListParams::default()).await.unwrap().items;
    let ready = found.iter().filter(|pipeline| {
        let conditions = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        ready && !pipeline.finalizers().is_empty()
    });
    ready.count()
}

/// The bucket that contains 99 of 100 reconciles, without those of an earlier scrape.
fn p99(scrape: &str, before: &str) -> String {
    let buckets = |text: &str| -> Vec<(String, u64)> {
        let lines = text.lines().filter_map(|line| {
            let (bound, count) =
                line.strip_prefix("millrace_operator_reconcile_duration_seconds_bucket{le=\"")?.split_once("\"} ")?;
            Some((bound.to_owned(), count.parse().unwrap()))
        });
        lines.collect()
    };
    let earlier = buckets(before);
    let counts: Vec<_> = buckets(scrape)
        .into_iter()
        .map(|(bound, count)| {
            let before = earlier.iter().find(|(other, _)| *other == bound).map_or(0, |(_, count)| *count);
            (bound, count - before)
        })
        .collect();
    let all = counts.last().map_or(0, |(_, count)| *count);
    let found = counts.iter().find(|(_, count)| *count as f64 >= all as f64 * 0.99);
    found.map_or("none".to_owned(), |(bound, _)| format!("at most {bound} s, of {all} reconciles"))
}
