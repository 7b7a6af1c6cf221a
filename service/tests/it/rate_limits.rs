//! Limits of what clients may send, and the shares of sources in a full backlog: what is refused can be sent again, and
//! counts once.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    harness::{Answer, KEY, Pipeline, answer, eventually, obtain, record},
    refuse::lines,
};

fn of(source: &str, id: &str) -> Value {
    let mut record = record(id, "d");
    record["sourceId"] = source.into();
    record
}

async fn send(pipeline: &Pipeline, id: &str) -> Answer {
    pipeline.post_json("/records", record(id, "d").to_string()).await
}

/// A request with another key than the administrator's.
fn request(pipeline: &Pipeline, secret: &str, body: &Value) -> RequestBuilder {
    let request = reqwest::Client::new().request(Method::POST, format!("{}/records", pipeline.url()));
    request.bearer_auth(secret).json(body)
}

/// Creates a key, and waits until it is valid.
async fn key(pipeline: &Pipeline, limits: Value) -> String {
    let body = json!({"name": "shop", "scopes": ["ingest"], "limits": limits});
    let created = pipeline.post_json("/keys", body.to_string()).await.expect(201);
    let secret = created["secret"].as_str().unwrap().to_owned();
    assert_eq!(created["key"]["limits"], limits);
    eventually("the key is valid", async || {
        answer(request(pipeline, &secret, &json!({"recordId": 1}))).await.status != 401
    })
    .await;
    secret
}

/// Repeats a request while it is refused by a limit, and waits as its answers ask for. Returns how often it was refused.
async fn send_as_asked(pipeline: &Pipeline, id: &str) -> usize {
    for refused in 0.. {
        let answer = send(pipeline, id).await;
        if answer.status == 202 {
            return refused;
        }
        answer.refused(429, "rate_limited");
        let after: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..60).contains(&after), "{after}");
        tokio::time::sleep(Duration::from_secs(after)).await;
    }
    unreachable!()
}

#[tokio::test]
async fn a_request_over_the_rate_is_refused_and_sent_again_it_counts_once() {
    let (pipeline, serve, _work) = Pipeline::running(json!({"limits": {"perKey": {"requestsPerSecond": 1}}})).await;
    let (mut ids, mut refused) = (Vec::new(), 0);
    for n in 0..6 {
        let id = format!("r-{n}");
        refused += send_as_asked(&pipeline, &id).await;
        ids.push(id);
    }
    assert!(refused > 0, "one a second");
    let answer = obtain("a refusal", async || Some(send(&pipeline, "r-0").await).filter(|a| a.status == 429)).await;
    assert_eq!(answer.header("ratelimit-policy"), r#""key-requests";q=1;w=1"#);
    assert!(answer.header("ratelimit").starts_with(r#""key-requests";r=0;t="#), "{:?}", answer.headers);
    let detail = answer.refused(429, "rate_limited")["detail"].to_string();
    assert!(detail.contains("requestsPerSecond") && detail.contains("Retry-After"), "{detail}");
    assert!(serve.metric("millrace_limited_requests_total").await >= refused as f64);
    assert_eq!(pipeline.ask("/records").await.header("ratelimit-policy"), "", "queries have no limit");
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_batch_over_the_rate_is_taken_whole_and_lines_wait_for_their_turn() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"limits": {"pipeline": {"recordsPerSecond": 10}}})).await;
    let of = |prefix: &str, n: usize| (0..n).map(|n| record(&format!("{prefix}-{n}"), "d")).collect::<Vec<_>>();
    let text = of("line", 35).iter().map(|record| format!("{record}\n")).collect::<String>();
    let begun = Instant::now();
    assert_eq!(lines(&pipeline, text).await.expect(202)["accepted"], 35);
    assert!(begun.elapsed() > Duration::from_millis(1_500), "35 lines at 10 a second took {:?}", begun.elapsed());

    let batch = Value::from(of("batch", 40)).to_string();
    let taken = obtain("the batch is taken", async || {
        Some(pipeline.post_json("/records/batch", batch.clone()).await).filter(|answer| answer.status == 202)
    })
    .await;
    assert_eq!(taken.json()["accepted"], 40);
    assert_eq!(taken.header("ratelimit-policy"), r#""pipeline-records";q=10;w=1;qu="records""#);
    // Forty are paid for in four seconds.
    let refused = pipeline.post_json("/records/batch", batch.clone()).await;
    refused.refused(429, "rate_limited");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    send_as_asked(&pipeline, "single").await;
    pipeline.applied().await;
    let records: Vec<Value> = [of("line", 35), of("batch", 40), vec![record("single", "d")]].concat();
    let ids: Vec<String> = records.iter().map(|record| record["recordId"].as_str().unwrap().to_owned()).collect();
    pipeline.check_exactly_once(&ids).await;
}

/// Opens a request whose body does not end.
async fn open(pipeline: &Pipeline, path: &str, head: &str, part: &str) -> TcpStream {
    let mut stream = pipeline.connect().await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n{head}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(part.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn bytes_in_flight_are_those_of_bodies_that_are_announced_or_read() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"limits": {"perKey": {"bytesInFlight": 4_000}}})).await;
    let part = format!("1388\r\n[{}", " ".repeat(4_999));
    for (head, part) in [("content-length: 5000", "["), ("transfer-encoding: chunked", part.as_str())] {
        let held = open(&pipeline, "/records/batch", head, part).await;
        let refused = obtain("another is refused", async || {
            Some(send(&pipeline, "a").await).filter(|answer| answer.status == 429)
        })
        .await;
        let detail = refused.refused(429, "rate_limited")["detail"].to_string();
        assert!(detail.contains("bytesInFlight"), "{detail}");
        assert_eq!(refused.header("retry-after"), "1");
        drop(held);
        eventually("it is taken", async || send(&pipeline, "a").await.status == 202).await;
    }
    // Alone, a larger one is taken.
    let many: Vec<Value> = (0..50).map(|n| record(&format!("b-{n}"), "d")).collect();
    let batch = Value::from(many).to_string();
    assert!(batch.len() > 5_000);
    assert_eq!(pipeline.post_json("/records/batch", batch).await.expect(202)["accepted"], 50);
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from records").await, 51);
}

#[tokio::test]
async fn a_limit_is_divided_by_the_processes_that_serve() {
    let pipeline = Pipeline::new(json!({})).await;
    let mut first = pipeline.serve().await;
    let _second = pipeline.serve().await;
    assert_eq!(send(&pipeline, "a").await.header("ratelimit-policy"), "", "there are no limits");
    pipeline.change(|spec| spec["limits"] = json!({"perKey": {"requestsPerSecond": 400}}));
    let policy_is = async |quota: u64| {
        let expected = format!("\"key-requests\";q={quota};w=1");
        eventually(&expected, async || send(&pipeline, "a").await.header("ratelimit-policy") == expected).await;
    };
    policy_is(200).await;
    first.kill();
    policy_is(400).await;
}

#[tokio::test]
async fn a_key_lowers_the_limits_of_the_manifest_and_never_raises_them() {
    let limits = json!({"perKey": {"requestsPerSecond": 1_000}, "pipeline": {"recordsPerSecond": 5_000}});
    let pipeline = Pipeline::new(json!({"limits": limits})).await;
    let _serve = pipeline.serve().await;
    let secret = key(&pipeline, json!({"requestsPerSecond": 1, "recordsPerSecond": 50})).await;
    let own = obtain("a refusal", async || {
        Some(answer(request(&pipeline, &secret, &record("a", "d"))).await).filter(|answer| answer.status == 429)
    })
    .await;
    own.refused(429, "rate_limited");
    let policy = own.header("ratelimit-policy");
    assert!(
        policy.starts_with(r#""key-requests";q=1;w=1, "key-records";q=50;w=1;qu="records", "pipeline-"#),
        "{policy}"
    );
    assert_eq!(send(&pipeline, "b").await.status, 202, "another key has its own");
    for (limits, pointer) in [
        (json!({"requestsPerSecond": 1_001}), "/limits/requestsPerSecond"),
        (json!({"recordsPerSecond": 5_001}), "/limits/recordsPerSecond"),
        (json!({"bytesInFlight": 0}), "/limits/bytesInFlight"),
    ] {
        let body = json!({"name": "a", "scopes": ["ingest"], "limits": limits}).to_string();
        let problem = pipeline.post_json("/keys", body).await.refused(422, "invalid_value");
        assert_eq!(problem["pointer"], pointer, "{problem}");
    }
    let create = ["create", "--name", "a", "--scope", "ingest", "--requests-per-second"];
    let high = pipeline.command("keys", &[&create[..], &["1001"]].concat()).await;
    let error = String::from_utf8(high.stderr).unwrap();
    assert!(!high.status.success() && error.contains("--requests-per-second must be at most 1000"), "{error}");
    assert!(pipeline.command("keys", &[&create[..], &["7"]].concat()).await.status.success());
    let listed = String::from_utf8(pipeline.command("keys", &["list"]).await.stdout).unwrap();
    assert!(listed.contains("requestsPerSecond\t7") && listed.contains("recordsPerSecond\t50"), "{listed}");
}

#[tokio::test]
async fn all_keys_share_the_limit_of_the_pipeline() {
    let pipeline = Pipeline::new(json!({"limits": {"pipeline": {"requestsPerSecond": 1}}})).await;
    let _serve = pipeline.serve().await;
    let secret = key(&pipeline, json!({"recordsPerSecond": 1_000})).await;
    let refused = obtain("the other key is refused", async || {
        send(&pipeline, "a").await;
        Some(answer(request(&pipeline, &secret, &record("b", "d"))).await).filter(|answer| answer.status == 429)
    })
    .await;
    assert!(refused.refused(429, "rate_limited")["detail"].to_string().contains("all clients"), "{}", refused.text);
}

/// Sends records of one source, until one is refused with this code. Returns the ids of those that were accepted.
async fn fill(pipeline: &Pipeline, source: &str, code: &str) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let id = format!("{source}-{}", ids.len());
        let answer = pipeline.post_json("/records", of(source, &id).to_string()).await;
        if answer.status != 202 {
            answer.refused(429, code);
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            return ids;
        }
        ids.push(id);
    }
}

#[tokio::test]
async fn a_source_with_its_share_of_a_backlog_is_refused_and_others_are_not() {
    let pipeline = Pipeline::new(json!({"shards": 1, "backlogLimit": 100})).await;
    let serve = pipeline.serve().await;
    // Nothing is applied: no worker runs.
    pipeline.post_json("/records", of("quiet", "first").to_string()).await.expect(202);
    let loud = fill(&pipeline, "loud", "source_over_share").await;
    assert_eq!(loud.len(), 50, "half of the limit: two sources sent within a minute");
    let both = json!([of("loud", "more"), of("quiet", "second"), of("loud", "again")]);
    let report = pipeline.post_json("/records/batch", both.to_string()).await.expect(202);
    assert_eq!((&report["accepted"], &report["rejected"]), (&1.into(), &2.into()), "{report}");
    for (at, index) in [(0, 0), (1, 2)] {
        let error = &report["errors"][at];
        assert_eq!((&error["index"], &error["code"]), (&index.into(), &"source_over_share".into()), "{report}");
        assert_eq!(error["retryable"], true);
    }
    let refused = pipeline.post_json("/records/batch", json!([of("loud", "more")]).to_string()).await;
    refused.refused(429, "source_over_share");
    let quiet = fill(&pipeline, "quiet", "source_over_share").await;
    assert_eq!(quiet.len(), 48, "its own half");
    assert!(serve.metric("millrace_over_share_records_total").await >= 4.0);

    let _work = pipeline.work();
    eventually("the loud source is accepted again", async || {
        pipeline.post_json("/records", of("loud", "more").to_string()).await.status == 202
    })
    .await;
    pipeline.applied().await;
    let ids = [loud, quiet, ["first", "second", "more"].map(str::to_owned).to_vec()].concat();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_single_source_may_fill_the_backlog_and_a_second_one_halves_it() {
    let pipeline = Pipeline::new(json!({"shards": 1, "backlogLimit": 60})).await;
    let _serve = pipeline.serve().await;
    let loud = fill(&pipeline, "loud", "backlog_full").await;
    assert_eq!(loud.len(), 60);
    // The quiet source came too late. Once there is room again, it is the first to get it.
    pipeline.post_json("/records", of("quiet", "q").to_string()).await.refused(429, "backlog_full");
    let fence = pipeline.fence(0);
    let _: i64 = pipeline.redis(&["HSET", &fence, "acknowledged", "10"]).await;
    eventually("there is room", async || {
        pipeline.post_json("/records", of("quiet", "q").to_string()).await.status == 202
    })
    .await;
    pipeline.post_json("/records", of("loud", "more").to_string()).await.refused(429, "source_over_share");
}

#[tokio::test]
async fn each_process_divides_its_part_of_the_backlog() {
    let pipeline = Pipeline::new(json!({"shards": 1, "backlogLimit": 100})).await;
    let _first = pipeline.serve().await;
    let first = pipeline.url();
    let _second = pipeline.serve().await;
    let post = async |url: &str, record: Value| {
        let request = reqwest::Client::new().post(format!("{url}/records")).bearer_auth(KEY).json(&record);
        answer(request).await
    };
    // Each process counts the other one within a second or two: until then, it can take more.
    pipeline.change(|spec| spec["limits"] = json!({"perKey": {"requestsPerSecond": 2_000_000}}));
    for url in [&first, &pipeline.url()] {
        eventually("both serve", async || {
            let answer = post(url, json!({})).await;
            answer.header("ratelimit-policy").contains("q=1000000;")
        })
        .await;
        post(url, of("quiet", url)).await.expect(202);
    }
    let taken = async |url: &str, source: &str| {
        let mut taken = 0;
        while post(url, of(source, &format!("{source}-{url}-{taken}"))).await.status == 202 {
            taken += 1;
        }
        taken
    };
    let loud = (taken(&first, "loud").await, taken(&pipeline.url(), "loud").await);
    // A process divides 50 by two sources; what it takes while the backlog is at most half is not divided.
    assert!(loud.1 <= 25 && loud.0 <= 51, "{loud:?}");
    assert!(taken(&first, "quiet").await + taken(&pipeline.url(), "quiet").await > 0, "{loud:?}");
}
