//! What 1,000 pipelines cost: the time until all are Ready, writes until then and at rest, memory, and how long a
//! reconcile takes. The operator is a process of its own; the tests' player plays controllers, kubelets and `/status`.
//!
//! Variables: `MILLRACE_PIPELINES` (1000), `MILLRACE_REST_SECONDS` (600). Fails where a mark is missed.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../tests/it/ledger.rs"]
mod ledger;
#[path = "../tests/it/player/mod.rs"]
#[expect(dead_code, reason = "no scene is changed here")]
mod player;

use std::{
    collections::BTreeMap,
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

use crate::{ledger::Ledger, player::Player};

/// Most resident memory of the operator, in MiB.
const MOST_MEMORY: u64 = 96;
/// Most writes on a resource until it is Ready.
const MOST_WRITES: usize = 4;
/// Longer than it takes to make all ready.
const TIMEOUT: Duration = Duration::from_secs(1800);

struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[tokio::main]
async fn main() {
    // `cargo bench` asks every target for its tests, too.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let (pipelines, rest) = (number("MILLRACE_PIPELINES", 1000), number("MILLRACE_REST_SECONDS", 600));
    let client = Client::try_default().await.unwrap();
    let player = Player::new(client.clone(), None).await;
    let ledger = Ledger::new(&client, None);
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = "millrace-system";
    // A customer a namespace, with ten pipelines each.
    let namespaces: Vec<_> = (0..pipelines.div_ceil(10)).map(|number| format!("customer-{number}")).collect();
    let all: Api<Namespace> = Api::all(client.clone());
    for name in namespaces.iter().map(String::as_str).chain([home]) {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        all.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    }
    let made: Vec<_> = stream::iter(0..pipelines)
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
    assert_eq!(made.len(), pipelines);

    let log = std::fs::File::create(std::env::temp_dir().join("millrace-bench-operator.log")).unwrap();
    let begun = Instant::now();
    let operator = Command::new(env!("CARGO_BIN_EXE_millrace-operator"))
        .arg("run")
        .env("MILLRACE_OPERATOR_RELEASE", "millrace")
        .env("MILLRACE_OPERATOR_NAMESPACE", home)
        .env("MILLRACE_DEFAULT_IMAGE", "millrace/service:1")
        .env("MILLRACE_STATUS_PORT", player.port.to_string())
        .env("MILLRACE_OPERATOR_LISTEN", listen.to_string())
        .env("MILLRACE_LOG", "warn")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let operator = Operator(operator);
    while ready(&client).await < pipelines {
        assert!(begun.elapsed() < TIMEOUT, "{} of {pipelines} are ready", ready(&client).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("{pipelines} pipelines are Ready after {:.1} s", begun.elapsed().as_secs_f64());

    // What is under way at that moment is not at rest yet: the last status of each, in the ledger.
    let mut before = ledger.writes(&player);
    let applied = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = ledger.writes(&player);
        if now == before {
            break;
        }
        assert!(applied.elapsed() < TIMEOUT, "it does not come to rest");
        before = now;
    }
    let mut most: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sum: BTreeMap<&str, usize> = BTreeMap::new();
    for ((kind, _), count) in &before {
        // The resource was made, and each pod is made and let run, by this bench.
        let ours = match kind.as_str() {
            "RecordPipeline" => count - 1,
            "Pod" => count.saturating_sub(2),
            _ => *count,
        };
        *sum.entry(kind).or_default() += ours;
        let most = most.entry(kind).or_default();
        *most = ours.max(*most);
    }
    println!("writes until then, by kind: most on one, and all");
    for (kind, most) in &most {
        println!("  {kind:24} {most:3} {:7}", sum[kind]);
    }
    let scrape = metrics(&listen.to_string()).await;
    println!("reconcile p99 while they became Ready: {}", p99(&scrape, ""));

    tokio::time::sleep(Duration::from_secs(rest as u64)).await;
    let after = ledger.writes(&player);
    let at_rest: usize = after.values().sum::<usize>() - before.values().sum::<usize>();
    println!("writes in {rest} s at rest: {at_rest}");
    println!("reconcile p99 at rest: {}", p99(&metrics(&listen.to_string()).await, &scrape));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", operator.0.id())).unwrap();
    let mebibytes = |field: &str| {
        let line = memory.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    println!("resident memory of the operator: {} MiB now, {} MiB at most", mebibytes("VmRSS:"), mebibytes("VmHWM:"));

    assert_eq!(at_rest, 0, "it wrote at rest");
    for (kind, most) in most {
        let mark = match kind {
            "RecordPipeline" => MOST_WRITES,
            "Pod" => 0,
            _ => 1,
        };
        assert!(most <= mark, "{most} writes on a {kind}");
    }
    assert!(mebibytes("VmHWM:") <= MOST_MEMORY, "it takes more than {MOST_MEMORY} MiB");
}

/// How many pipelines are Ready.
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

async fn metrics(listen: &str) -> String {
    reqwest::get(format!("http://{listen}/metrics")).await.unwrap().text().await.unwrap()
}

/// The bucket that 99 of 100 reconciles are in, leaving out those of an earlier scrape.
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
            let old = earlier.iter().find(|(other, _)| *other == bound).map_or(0, |(_, count)| *count);
            (bound, count - old)
        })
        .collect();
    let all = counts.last().map_or(0, |(_, count)| *count);
    let found = counts.iter().find(|(_, count)| *count as f64 >= all as f64 * 0.99);
    found.map_or("none".to_owned(), |(bound, _)| format!("at most {bound} s, of {all} reconciles"))
}
