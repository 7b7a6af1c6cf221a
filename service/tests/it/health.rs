//! Health of processes: readiness, answers while a server is unavailable, and answers that stay when each part
//! restarts.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::harness::{KEY, Load, Pipeline, PrivatePostgres, PrivateRedis, eventually, record};

/// The answers of a pipeline to queries, without fields that change by themselves. `lossUncertain` is left out, too: after
/// a kill it depends on how long Redis ran before; `counts.rs` tests it.
async fn answers(pipeline: &Pipeline) -> Vec<Value> {
    const LEFT_OUT: [&str; 6] =
        ["asOf", "uptimeSeconds", "processUptimeSeconds", "shards", "policyVersion", "lossUncertain"];
    let mut answers = Vec::new();
    for path in ["/stats", "/records/aggregations", "/audit/summary", "/conflicts", "/dead-letters"] {
        let mut answer = pipeline.get(path).await;
        answer.as_object_mut().unwrap().retain(|name, _| !LEFT_OUT.contains(&name.as_str()));
        answers.push(answer);
    }
    answers
}

#[tokio::test]
async fn everything_stays_when_each_part_restarts() {
    let (mut redis, mut postgres) = (PrivateRedis::start(&[]).await, PrivatePostgres::start().await);
    let pipeline = Pipeline::on(&redis.url(), &postgres.url(), json!({})).await;
    let (mut serve, mut work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    let mut expected = Vec::new();
    for (n, part) in ["serve", "work", "Redis", "Postgres"].into_iter().enumerate() {
        let load = Load::from("r", n * 150, 150);
        pipeline.send_through(&load.records).await;
        let mut conflict = load.records[0].clone();
        conflict["unit"] = "USD".into();
        pipeline.apply(&conflict).await.refused(409, "record_conflict");
        pipeline.applied().await;
        expected.extend(load.ids);
        let before = answers(&pipeline).await;
        match part {
            "serve" => {
                serve.kill();
                serve = pipeline.serve().await;
            }
            "work" => {
                work.kill();
                work = pipeline.work();
                work.ready().await;
            }
            "Redis" => {
                redis.kill();
                redis.restart().await;
            }
            _ => {
                postgres.stop();
                postgres.restart().await;
            }
        }
        eventually(&format!("after {part} restarted the answers are the same"), async || {
            // A connection may have to be opened again first.
            pipeline.ask("/stats").await.status == 200 && answers(&pipeline).await == before
        })
        .await;
        // All records are stored: sent again, they are duplicates.
        pipeline.send_through(&load.records).await;
        eventually("the records are duplicates", async || {
            let conflicts = pipeline.number("select count(*) from conflicts").await;
            let records = pipeline.number("select count(*) from records").await;
            pipeline.backlog().await == 0 && (conflicts, records) == (n as i64 + 1, expected.len() as i64)
        })
        .await;
    }
    pipeline.applied().await;
    pipeline.check_exactly_once(&expected).await;
}

#[tokio::test]
async fn a_process_is_ready_while_its_loops_run() {
    let (mut redis, mut postgres) = (PrivateRedis::start(&[]).await, PrivatePostgres::start().await);
    let pipeline = Pipeline::on(&redis.url(), &postgres.url(), json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    serve.ready().await;

    postgres.stop();
    eventually("a worker without Postgres is not ready", async || !work.is_ready().await).await;
    assert!(work.text("/ready").await.contains("\"own\""), "it names the stalled loop: {}", work.text("/ready").await);
    assert!(work.text("/health").await.contains("true"), "it is alive");
    // Records are accepted all the same: they wait in Redis.
    pipeline.post_json("/records", record("a", "d").to_string()).await.expect(202);
    pipeline.ask("/records").await.refused(503, "postgres_unavailable");
    postgres.restart().await;
    work.ready().await;
    eventually("the record that was accepted meanwhile is processed", async || {
        pipeline.ask("/records/a").await.status == 200 && pipeline.get("/records/a").await["status"] == "processed"
    })
    .await;

    redis.kill();
    eventually("a worker without Redis is not ready", async || !work.is_ready().await).await;
    // The outcome of a request whose connection ended is unknown; later requests are not sent.
    eventually("serve refuses records", async || {
        let refused = pipeline.post_json("/records", record("b", "d").to_string()).await.expect(503);
        assert!(["redis_unavailable", "outcome_unknown"].contains(&refused["code"].as_str().unwrap()), "{refused}");
        refused["code"] == "redis_unavailable"
    })
    .await;
    for answer in [
        pipeline.post_json("/records", record("b", "d").to_string()).await,
        pipeline.post_json("/records/batch", json!([record("b", "d")]).to_string()).await,
    ] {
        answer.refused(503, "redis_unavailable");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    assert!(serve.is_ready().await, "serve is ready without Redis");
    assert_eq!(pipeline.ask("/ready").await.status, 200);
    // Queries read Postgres, and name the values from Redis as missing.
    pipeline.ask("/records").await.expect(200);
    let stats = pipeline.get("/stats").await;
    assert!(stats.get("backlog").is_none() && stats["missing"].is_string() && stats["processed"] == 1, "{stats}");
    let unknown = pipeline.ask("/records/b").await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &"not_found_or_queued".into()));
    redis.restart().await;
    work.ready().await;
    pipeline.send_through(&[record("b", "d")]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&["a".into(), "b".into()]).await;
}

#[tokio::test]
async fn a_full_redis_is_answered_with_503_and_queries_continue() {
    let redis = PrivateRedis::start(&[]).await;
    let shared = crate::harness::shared().await;
    let pipeline = Pipeline::on(&redis.url(), &shared.postgres, json!({})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    pipeline.apply(&record("a", "d")).await.expect(200);
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    for answer in [
        pipeline.post_json("/records", record("b", "d").to_string()).await,
        pipeline.post_json("/records/batch", json!([record("b", "d"), record("c", "d")]).to_string()).await,
    ] {
        answer.refused(503, "redis_full");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    let mixed = json!([record("b", "d"), {"recordId": "c"}]).to_string();
    let problem = pipeline.post_json("/records/batch", mixed).await.refused(503, "redis_full");
    let codes: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["retryable"].clone()).collect();
    assert_eq!(codes, [true, false], "only the first may be sent again");
    assert_eq!(pipeline.get("/records/a").await["status"], "processed");
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
    pipeline.apply(&record("b", "d")).await.expect(200);
    pipeline.applied().await;
    pipeline.check_exactly_once(&["a".into(), "b".into()]).await;
}

#[tokio::test]
async fn a_second_signal_ends_a_process_at_once() {
    let pipeline = Pipeline::new(json!({})).await;
    let mut serve = pipeline.serve().await;
    // A client that does not end its request delays the stop.
    let mut client = TcpStream::connect(pipeline.url().trim_start_matches("http://")).await.unwrap();
    let lines: String = (0..1_000).map(|n| format!("{}\n", record(&format!("r{n}"), "d"))).collect();
    let head = format!(
        "POST /records/batch HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{lines}\r\n",
        lines.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    eventually("the request is under way", async || pipeline.backlog().await == 1_000).await;
    serve.signal(Signal::SIGTERM);
    serve.logs("lifecycle.process.stopping").await;
    eventually("serve refuses connections", async || {
        TcpStream::connect(pipeline.url().trim_start_matches("http://")).await.is_err()
    })
    .await;
    assert!(!serve.has_ended(), "it waits for the open request");
    let begun = Instant::now();
    serve.signal(Signal::SIGTERM);
    let status = serve.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!status.success(), "an aborted stop is no success");
    let line = serve.logs("lifecycle.process.aborted").await;
    assert!(line.to_string().contains("serve.http"), "it names the dropped task: {line}");
}
