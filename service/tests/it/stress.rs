//! Stress on serve: slow clients, many clients, endless requests and many queries. Each gets a right answer or the
//! refusal of its limit, and records that another client sends meanwhile are accepted and processed.
//!
//! `MILLRACE_STRESS=long` runs the full measure: ten thousand connections, a stream of 10 GB.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures::{StreamExt as _, future::join_all, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{KEY, Pipeline, Process, answer, record};

/// The measure of a test: `short`, or `long` where `MILLRACE_STRESS=long` requests it.
fn much<T>(short: T, long: T) -> T {
    if std::env::var("MILLRACE_STRESS").is_ok_and(|measure| measure == "long") { long } else { short }
}

/// Resident memory of a process, in MiB.
fn resident(process: &Process) -> u64 {
    mebibytes(process, "VmRSS:")
}

fn mebibytes(process: &Process, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Sends one record after another until `done`, each on its own connection or all on one. Each must be accepted.
/// Returns their ids.
async fn behave(pipeline: &Pipeline, own_connections: bool, done: &AtomicBool) -> Vec<String> {
    let (mut ids, mut client) = (Vec::new(), reqwest::Client::new());
    while !done.load(Ordering::Relaxed) {
        let id = format!("well-behaved-{}", ids.len());
        if own_connections {
            client = reqwest::Client::new();
        }
        let request = client.post(format!("{}/records", pipeline.url())).bearer_auth(KEY);
        let taken = answer(request.json(&record(&id, &format!("d{}", ids.len() % 5)))).await;
        taken.expect(202);
        ids.push(id);
    }
    ids
}

/// Sends `head` at once and then a byte a second, until an answer comes; returns its status, or the error that the
/// connection ended with.
async fn drip(mut stream: TcpStream, head: String) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.split();
    let dripping = async {
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // The connection is closed for writing, and its answer can still be read.
        std::future::pending::<()>().await;
    };
    let mut line = [0; 12];
    tokio::select! {
        read = from.read_exact(&mut line) => match read {
            Ok(_) => String::from_utf8_lossy(&line[9..]).into_owned(),
            Err(error) => error.to_string(),
        },
        () = dripping => unreachable!(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_get_408_and_delay_no_other_client() {
    let (pipeline, serve, _work) = Pipeline::running(json!({})).await;
    let each = much(100, 1_000);
    let bearer = format!("Authorization: Bearer {KEY}\r\n");
    let post = |path: &str, kind: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Type: {kind}\r\nContent-Length: 1000000\r\n\r\n")
    };
    let heads = [
        "GET /stats HTTP/1.1\r\nHost: x\r\nX: ".to_owned(),
        post("/records", "application/json"),
        post("/records/batch", "application/json"),
        post("/records/batch", "application/x-ndjson"),
        // Without a valid key serve refuses before it reads the body.
        post("/records", "application/json").replace(KEY, "mk_other"),
    ];
    let done = AtomicBool::new(false);
    let slow = async {
        let mut dripping = Vec::new();
        for head in heads.iter().flat_map(|head| (0..each).map(move |_| head)) {
            dripping.push(tokio::spawn(drip(pipeline.connect().await, head.clone())));
        }
        let statuses: Vec<String> = join_all(dripping).await.into_iter().map(Result::unwrap).collect();
        done.store(true, Ordering::Relaxed);
        statuses
    };
    let (statuses, ids) = tokio::join!(slow, behave(&pipeline, true, &done));
    // A client that still sends when serve answers gets the answer, and no reset.
    let statuses: Vec<BTreeSet<&str>> =
        statuses.chunks(each).map(|part| part.iter().map(String::as_str).collect()).collect();
    assert_eq!(statuses, ["408", "408", "408", "408", "401"].map(|status| BTreeSet::from([status])));
    println!("{} slow clients; {} records meanwhile; serve {} MiB", each * heads.len(), ids.len(), resident(&serve));
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_cost_little_memory_and_delay_no_other_client() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (pipeline, serve, _work) = Pipeline::running(json!({})).await;
    let many = much(1_000, 10_000);
    assert!(most > many + 1_000, "{many} connections need as many files; this process may have {most}");
    let before = resident(&serve);
    // A third sends nothing, a third sends half a request, and a third is answered and stays open. Above the bound
    // serve answers with 503, or closes the connection.
    let open = async |n: u64| {
        let mut stream = pipeline.connect().await;
        let head: &[u8] = match n % 3 {
            0 => return stream,
            1 => b"GET /health HTTP/1.1\r\nHost",
            _ => b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        let mut line = [0; 12];
        if stream.write_all(head).await.is_ok() && n % 3 == 2 && stream.read_exact(&mut line).await.is_ok() {
            assert!(matches!(&line[9..], b"200" | b"503"), "{line:?}");
        }
        stream
    };
    let done = AtomicBool::new(false);
    let opening = async {
        let held: Vec<TcpStream> = stream::iter(0..many).map(open).buffer_unordered(200).collect().await;
        let resident = resident(&serve);
        // The other client sends for two more seconds beside the open connections.
        tokio::time::sleep(Duration::from_secs(2)).await;
        done.store(true, Ordering::Relaxed);
        (held, resident)
    };
    let ((held, after), ids) = tokio::join!(opening, behave(&pipeline, false, &done));
    let refused = serve.metric("millrace_http_refused_connections_total").await;
    let held = held.len();
    println!("{held} connections, {refused} refused: serve {before} MiB, then {after} MiB; {} records", ids.len());
    assert!(after < before + much(64, 200), "each costs little");
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_of_lines_is_accepted_in_constant_memory() {
    let (pipeline, serve, _work) = Pipeline::running(json!({"backlogLimit": 10_000_000})).await;
    // Lines near the longest allowed length, mostly blanks that are not stored.
    const LINE: usize = 15 * 1024;
    let lines = much(200_000_000, 10_000_000_000) / LINE;
    let id = |n: usize| format!("line-{n}");
    let line = move |n: usize| {
        let record = record(&id(n), &format!("d{}", n % 20)).to_string();
        let (head, tail) = record.split_at(1);
        format!("{head}{}{tail}\n", " ".repeat(LINE - 1 - record.len()))
    };
    let sent = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&sent);
    let parts = stream::iter(0..lines).map(move |n| {
        counted.fetch_add(LINE, Ordering::Relaxed);
        std::io::Result::Ok(line(n))
    });
    let request = pipeline.request(Method::POST, "/records/batch").header("content-type", "application/x-ndjson");
    let sending = tokio::spawn(answer(request.body(Body::wrap_stream(parts))));
    let (before, mut peak) = (resident(&serve), 0);
    while !sending.is_finished() {
        peak = peak.max(resident(&serve));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = sending.await.unwrap().expect(202);
    assert_eq!((&report["accepted"], &report["rejected"]), (&lines.into(), &0.into()), "{report}");
    let sent = sent.load(Ordering::Relaxed) / 1_000_000;
    println!("{sent} MB in {lines} lines: serve {before} MiB before, at most {peak} MiB meanwhile");
    assert!(peak < before + 64, "serve grew from {before} to {peak} MiB");
    let processed = async || pipeline.number("select count(*) from records").await;
    let mut last = -1;
    // There is no limit of time, while the worker makes progress.
    while pipeline.backlog().await > 0 {
        let now = processed().await;
        assert!(now > last || pipeline.backlog().await == 0, "the worker is stalled at {now}");
        last = now;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    pipeline.applied().await;
    assert_eq!(processed().await, i64::try_from(lines).unwrap());
    pipeline.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_parallel_batches_are_accepted_or_refused_in_bounded_memory() {
    let (pipeline, serve, _work) = Pipeline::running(json!({})).await;
    let batch = |client: usize| {
        let records = (0..1_900).map(|n| {
            let mut record = record(&format!("c{client}-{n}"), &format!("d{}", n % 20));
            record["attributes"] = json!({"x": "y".repeat(7_500)});
            record.to_string()
        });
        format!("[{}]", records.collect::<Vec<_>>().join(","))
    };
    let before = resident(&serve);
    let sending = join_all((0..8).map(|client| {
        let (pipeline, body) = (&pipeline, batch(client));
        async move {
            let mut refusals = 0;
            loop {
                let answer = answer(pipeline.posting("/records/batch", body.clone())).await;
                if answer.status == 202 {
                    assert_eq!(answer.json()["accepted"], 1_900);
                    return refusals;
                }
                answer.refused(503, "too_many_bytes_in_flight");
                refusals += 1;
            }
        }
    }));
    let refusals: usize = sending.await.into_iter().sum();
    let peak = mebibytes(&serve, "VmHWM:");
    println!("{refusals} refusals; serve {before} MiB before, at most {peak} MiB meanwhile");
    // The limit of a pod is 256 MiB; all eight batches at once would need some 700.
    assert!(refusals > 0 && peak < 256, "{refusals} refusals; serve grew from {before} to {peak} MiB");
    let ids: Vec<String> = (0..8).flat_map(|client| (0..1_900).map(move |n| format!("c{client}-{n}"))).collect();
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
}

/// Checks that an aggregation agrees with its records; returns how many it has.
fn check_aggregation(answer: &Value) -> usize {
    let mut records = 0;
    for group in answer["groups"].as_array().unwrap() {
        let of_group = group["records"].as_array().unwrap();
        assert_eq!(group["count"], of_group.len(), "{}", group["destinationId"]);
        let total = of_group.len().to_string();
        assert_eq!(group["totals"], json!([{"unit": "EUR", "count": of_group.len(), "total": total}]));
        records += of_group.len();
    }
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_queries_are_answered_or_refused_beside_new_records() {
    let (pipeline, serve, work) = Pipeline::running(json!({})).await;
    let first: Vec<Value> = (0..2_000).map(|n| record(&format!("first-{n}"), &format!("d{}", n % 20))).collect();
    pipeline.send(&first).await;
    pipeline.applied().await;
    let done = AtomicBool::new(false);
    let querying = async {
        let mut statuses: BTreeMap<(u16, String), usize> = BTreeMap::new();
        for _ in 0..much(1, 20) {
            let query = async |_| answer(pipeline.request(Method::GET, "/records/aggregations")).await;
            for answer in join_all((0..1_000).map(query)).await {
                let code = match answer.status {
                    200 => {
                        assert!(check_aggregation(&answer.json()) >= first.len());
                        String::new()
                    }
                    status => answer.json()["code"].as_str().unwrap_or_else(|| panic!("{status}")).to_owned(),
                };
                *statuses.entry((answer.status, code)).or_default() += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        statuses
    };
    let (statuses, mut ids) = tokio::join!(querying, behave(&pipeline, true, &done));
    println!(
        "{statuses:?}; {} records meanwhile; serve {} MiB, work {} MiB",
        ids.len(),
        resident(&serve),
        resident(&work)
    );
    assert!(statuses.contains_key(&(200, String::new())), "{statuses:?}");
    let refusals = [(503, "too_many_queries"), (503, "postgres_unavailable"), (429, "backlog_full")];
    for (status, code) in statuses.keys().filter(|(status, _)| *status != 200) {
        assert!(refusals.contains(&(*status, code.as_str())), "{statuses:?}");
    }
    ids.extend(first.iter().map(|record| record["recordId"].as_str().unwrap().to_owned()));
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
}
