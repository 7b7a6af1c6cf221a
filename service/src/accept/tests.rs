//! The paths that take records, through the whole HTTP API, with a real Redis.

use std::{io::Write as _, sync::Arc};

use millrace_crds::RecordPipeline;
use poem::{
    Endpoint as _, EndpointExt as _, Request, Response,
    endpoint::BoxEndpoint,
    http::{HeaderMap, Method, StatusCode},
};
use redis::AsyncCommands as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::ActiveManifest,
    domain::{AppendCount, DestinationId, ShardId},
    http::{auth::KeyRing, standby::Standby},
    lifecycle::Heartbeats,
    streams::{Producer, Streams, keys},
};

const SHARDS: u16 = 4;
const LIMIT: u64 = 2_000;

fn redis_url() -> String {
    crate::streams::testing::url()
}

/// A pipeline of its own, without a Postgres behind it: taking records needs none.
struct Api {
    endpoint: BoxEndpoint<'static, Response>,
    producer: Producer,
    streams: Streams,
    pipeline: String,
}

fn api(redis: &str) -> Api {
    let pipeline = format!("accept-{:016x}", rand::random::<u64>());
    let manifest = format!(
        "{{apiVersion: millrace.dev/v1alpha1, kind: RecordPipeline, metadata: {{name: {pipeline}}}, \
         spec: {{shards: {SHARDS}, backlogLimit: {LIMIT}}}}}"
    );
    let manifest = RecordPipeline::from_yaml(&manifest).expect("a manifest");
    let active_manifest = ActiveManifest::new(&manifest, manifest.spec.clone(), 1, "pipeline-id");
    let streams = Streams::connect(redis, &pipeline).expect("a URL of Redis");
    let producer = Producer::new(&streams, &Arc::from("serve-test"), SHARDS);
    let app = App {
        standby: Standby::default(),
        store: Store::connect("postgres://127.0.0.1:1/none", &pipeline, 1).expect("a URL of Postgres"),
        streams: streams.clone(),
        producer: producer.clone(),
        // A receiver keeps its last value when the sender is gone.
        manifest: watch::channel(active_manifest).1,
        keys: KeyRing::open(),
        limiter: crate::http::rate_limits::RateLimiter::default(),
        process: Arc::from("serve-test"),
    };
    let endpoint = crate::routes::routes(app, Acceptor::default(), moving(), CancellationToken::new()).boxed();
    Api { endpoint, producer, streams, pipeline }
}

/// Status, headers and JSON of an answer.
type Answer = (u16, HeaderMap, Value);

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

impl Api {
    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let mut request = Request::builder().method(method).uri(path.parse().expect("a path"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.endpoint.get_response(request.body(body.into())).await;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().into_bytes().await.expect("a body");
        let content_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let expected = if status.is_success() { "application/json; charset=utf-8" } else { "application/problem+json" };
        assert_eq!(content_type, expected, "{status}");
        (status.as_u16(), headers, serde_json::from_slice(&body).expect("JSON"))
    }

    async fn post(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> (u16, Value) {
        let (status, _, answer) = self.send(Method::POST, path, &[("content-type", content_type)], body).await;
        (status, answer)
    }

    /// Ids in a shard's stream, in order.
    async fn ids(&self, shard: ShardId) -> Vec<String> {
        let id = |input: crate::domain::InputRecord| {
            let record: Value = serde_json::from_slice(&input.payload).expect("JSON");
            record["recordId"].as_str().expect("an id").to_owned()
        };
        crate::streams::testing::records(&self.streams, shard).await.into_iter().map(id).collect()
    }

    async fn all_ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        for shard in ShardId::all(SHARDS) {
            ids.extend(self.ids(shard).await);
        }
        ids.sort();
        ids
    }

    async fn clean(self) {
        let client = redis::Client::open(redis_url()).expect("a URL of Redis");
        let mut redis = client.get_multiplexed_async_connection().await.expect("a connection");
        for shard in ShardId::all(SHARDS) {
            let both = [keys::records(&self.pipeline, shard), keys::fence(&self.pipeline, shard)];
            let _: () = redis.del(&both).await.expect("deleted");
        }
    }
}

fn shard_of_d() -> ShardId {
    ShardId::of(&DestinationId::stored("d"), SHARDS)
}

fn record(id: &str, destination: &str) -> Value {
    json!({
        "recordId": id, "time": "2026-01-31T12:00:00Z", "sourceId": "s", "destinationId": destination,
        "type": "positive", "value": "1.50", "unit": "u", "reference": "r"
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

#[tokio::test]
async fn a_record_is_answered_once_it_is_in_its_shard() {
    let api = api(&redis_url());
    let with_number = record("a", "d")
        .to_string()
        .replace("\"1.50\"", "12345678901234567.89")
        .replace("12345678901234567", "123456789012345");
    for path in ["/records", "/v1/records"] {
        let (status, answer) = api.post(path, "application/json; charset=UTF-8", with_number.clone()).await;
        assert_eq!((status, answer), (202, json!({"recordId": "a", "status": "queued"})));
    }
    assert_eq!(api.ids(shard_of_d()).await, ["a", "a"]);
    let counted: Vec<_> = api.producer.counts().into_iter().filter(|count| count.appended > 0).collect();
    assert_eq!(counted, [AppendCount { shard: shard_of_d(), appended: 2 }]);
    api.clean().await;
}

#[tokio::test]
async fn every_bad_request_is_a_problem_that_names_what_is_wrong() {
    let api = api(&redis_url());
    let good = record("a", "d");
    let with = |field: &str, value: Value| {
        let mut record = good.clone();
        record[field] = value;
        record.to_string().into_bytes()
    };
    let long = "x".repeat(201);
    /// Content type, body, and the status, code and pointer that are expected.
    type Case = (&'static str, Vec<u8>, u16, &'static str, Option<&'static str>);
    let cases: Vec<Case> = vec![
        (JSON, b"{".to_vec(), 400, "invalid_json", None),
        (JSON, b"".to_vec(), 400, "invalid_json", None),
        (JSON, b"\xff\xfe".to_vec(), 400, "invalid_json", None),
        (JSON, b"{\"recordId\":\"\xff\"}".to_vec(), 400, "invalid_json", None),
        (JSON, b"[]".to_vec(), 422, "wrong_type", None),
        (JSON, with("value", json!("NaN")), 422, "invalid_value", Some("/value")),
        (JSON, with("value", json!("1e3")), 422, "invalid_value", Some("/value")),
        (JSON, with("value", json!("-1")), 422, "invalid_value", Some("/value")),
        (JSON, with("value", json!("1234567890123456")), 422, "invalid_value", Some("/value")),
        (JSON, with("value", json!("1.1234567890")), 422, "invalid_value", Some("/value")),
        (JSON, with("value", json!(true)), 422, "wrong_type", Some("/value")),
        (JSON, with("value", json!(null)), 422, "missing_field", Some("/value")),
        (JSON, with("unit", json!("a\u{0}b")), 422, "invalid_value", Some("/unit")),
        (JSON, with("unit", json!("a\nb")), 422, "invalid_value", Some("/unit")),
        (JSON, with("recordId", json!(long)), 422, "invalid_value", Some("/recordId")),
        (JSON, with("time", json!("2026-01-31 12:00")), 422, "invalid_value", Some("/time")),
        (JSON, with("a/b", json!(1)), 422, "unknown_field", Some("/a~1b")),
        (JSON, with("attributes", json!({"x": "y".repeat(9_000)})), 422, "too_large", Some("/attributes")),
        (JSON, vec![b' '; 16 * 1024 + 1], 413, "too_large", None),
        (NDJSON, good.to_string().into(), 415, "unsupported_media_type", None),
        ("text/plain", good.to_string().into(), 415, "unsupported_media_type", None),
        ("application/json; charset=latin1", good.to_string().into(), 415, "unsupported_media_type", None),
    ];
    for (content_type, body, status, code, pointer) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let (found, problem) = api.post("/records", content_type, body).await;
        let summary = (found, problem["code"].as_str(), problem["pointer"].as_str(), problem["retryable"].as_bool());
        assert_eq!(summary, (status, Some(code), pointer, Some(false)), "{content_type} {shown}");
        assert_eq!(problem["status"], status);
    }
    assert_eq!(api.all_ids().await, [""; 0]);
    api.clean().await;
}

#[tokio::test]
async fn what_the_framework_refuses_is_a_problem_too() {
    let api = api(&redis_url());
    let body = record("a", "d").to_string();
    let json = ("content-type", JSON);
    for (method, path, headers, status, code) in [
        (Method::GET, "/nowhere", vec![], 404, "not_found"),
        (Method::DELETE, "/records/batch", vec![], 405, "method_not_allowed"),
        (Method::GET, "/ready?verbose=1", vec![], 400, "unknown_parameter"),
        (Method::POST, "/records?x=1", vec![json], 400, "unknown_parameter"),
        (Method::POST, "/records", vec![json, ("idempotency-key", "a b")], 400, "invalid_idempotency_key"),
        (Method::POST, "/records", vec![json, ("content-encoding", "br")], 415, "unsupported_content_encoding"),
    ] {
        let (found, headers, problem) = api.send(method, path, &headers, body.clone()).await;
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{path}");
        let allow = headers.get("allow").and_then(|value| value.to_str().ok());
        assert_eq!(allow, (status == 405).then_some("POST, OPTIONS"));
    }
    api.clean().await;
}

#[tokio::test]
async fn good_items_are_taken_whatever_their_neighbours_are() {
    let api = api(&redis_url());
    let mut large = record("large", "d");
    large["attributes"] = json!({"x": "y".repeat(20_000)});
    let batch = json!([record("a", "d"), 1, record("b", "e"), {"recordId": "c"}, large, record("f", "d")]);
    let lines = batch.as_array().expect("an array").iter().map(|item| format!("{item}\n\n")).collect::<String>();
    for (content_type, body) in [(JSON, batch.to_string()), (NDJSON, lines)] {
        let (status, report) = api.post("/records/batch", content_type, body).await;
        assert_eq!((status, &report["accepted"], &report["rejected"]), (202, &json!(3), &json!(3)), "{report}");
        let errors = report["errors"].as_array().expect("errors");
        let summary: Vec<_> = errors.iter().map(|error| (error["index"].as_u64(), error["code"].as_str())).collect();
        assert_eq!(
            summary,
            [(Some(1), Some("wrong_type")), (Some(3), Some("missing_field")), (Some(4), Some("too_large"))]
        );
        assert_eq!((&errors[1]["recordId"], &errors[1]["pointer"]), (&json!("c"), &json!("/time")));
        assert!(report.get("nextIndex").is_none());
    }
    assert_eq!(api.all_ids().await, ["a", "a", "b", "b", "f", "f"]);
    api.clean().await;
}

#[tokio::test]
async fn items_of_one_shard_keep_their_order_and_are_taken_all_or_none() {
    let api = api(&redis_url());
    let items: Vec<Value> = (0..LIMIT + 1).map(|n| record(&format!("{n:05}"), "d")).collect();
    let (status, problem) = api.post("/records/batch", JSON, Value::from(items.clone()).to_string()).await;
    assert_eq!((status, problem["code"].as_str()), (429, Some("backlog_full")));
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(items.len()));
    assert_eq!(api.all_ids().await, [""; 0], "not even those below the limit");
    let fitting = Value::from(items[1..].to_vec()).to_string();
    assert_eq!(api.post("/records/batch", JSON, fitting).await.0, 202);
    let expected: Vec<String> = (1..=LIMIT).map(|n| format!("{n:05}")).collect();
    assert_eq!(api.ids(shard_of_d()).await, expected);
    let more = record("x", "d").to_string();
    let (status, headers, problem) = api.send(Method::POST, "/records", &[("content-type", JSON)], more).await;
    let retry_after = headers.get("retry-after").and_then(|value| value.to_str().ok());
    assert_eq!((status, retry_after, problem["retryable"].as_bool()), (429, Some("1"), Some(true)));
    api.clean().await;
}

#[tokio::test]
async fn nothing_taken_and_nothing_retryable_is_a_422_and_no_array_a_400() {
    let api = api(&redis_url());
    let (status, problem) = api.post("/records/batch", JSON, "[1,2]").await;
    assert_eq!(
        (status, problem["code"].as_str(), problem["errors"].as_array().map(Vec::len)),
        (422, Some("batch_refused"), Some(2))
    );
    for body in ["", "{}", "[1,", "[] []"] {
        assert_eq!(api.post("/records/batch", JSON, body).await.0, 400, "{body}");
    }
    for (content_type, body) in [(JSON, "[]"), (NDJSON, "\n\n"), (NDJSON, "")] {
        let (status, report) = api.post("/records/batch", content_type, body).await;
        assert_eq!((status, report), (202, json!({"accepted": 0, "rejected": 0, "errors": []})));
    }
    api.clean().await;
}

#[tokio::test]
async fn reading_of_lines_stops_after_a_thousand_errors() {
    let api = api(&redis_url());
    let body = format!("{}\n{}", record("a", "d"), "1\n".repeat(5_000));
    let (status, report) = api.post("/records/batch", NDJSON, body).await;
    assert_eq!((status, &report["accepted"], &report["rejected"]), (202, &json!(1), &json!(1_000)));
    assert_eq!(report["nextIndex"], 1_001);
    api.clean().await;
}

#[tokio::test]
async fn gzip_is_taken_and_a_bomb_is_harmless() {
    let api = api(&redis_url());
    let send_gzip = async |path: &str, content_type: &str, body: Vec<u8>| {
        let headers = [("content-type", content_type), ("content-encoding", "gzip")];
        let (status, _, answer) = api.send(Method::POST, path, &headers, body).await;
        (status, answer["code"].as_str().map(ToOwned::to_owned))
    };
    let one = record("a", "d").to_string();
    assert_eq!(send_gzip("/records", JSON, gzip(one.as_bytes())).await, (202, None));
    assert_eq!(send_gzip("/records/batch", NDJSON, gzip(one.as_bytes())).await, (202, None));
    let bomb = gzip(&vec![b' '; 64 * 1024 * 1024]);
    for (path, content_type) in [("/records", JSON), ("/records/batch", JSON), ("/records/batch", NDJSON)] {
        assert_eq!(send_gzip(path, content_type, bomb.clone()).await, (413, Some("too_large".to_owned())), "{path}");
    }
    let whole = gzip(one.as_bytes());
    let cut = whole[..whole.len() / 2].to_vec();
    for broken in [cut, b"plain".to_vec(), Vec::new()] {
        assert_eq!(send_gzip("/records", JSON, broken).await, (400, Some("unreadable_body".to_owned())));
    }
    // The report counts the items before the broken place.
    let mut half = gzip(format!("{one}\n").repeat(1_000).as_bytes());
    half.truncate(half.len() - 4);
    let headers = [("content-type", NDJSON), ("content-encoding", "gzip")];
    let (status, _, report) = api.send(Method::POST, "/records/batch", &headers, half).await;
    assert_eq!((status, &report["accepted"], &report["nextIndex"]), (202, &json!(1_000), &json!(1_000)));
    assert_eq!(report["errors"][0]["code"], "unreadable_body");
    api.clean().await;
}

#[tokio::test]
async fn a_repeated_request_with_an_idempotency_key_gives_the_same_ids() {
    let api = api(&redis_url());
    let mut one = record("x", "d");
    one.as_object_mut().expect("an object").remove("recordId");
    let batch = json!([one, record("own", "d"), one]).to_string();
    for _ in 0..2 {
        let headers = [("content-type", JSON), ("idempotency-key", "k")];
        let (status, _, report) = api.send(Method::POST, "/records/batch", &headers, batch.clone()).await;
        assert_eq!((status, &report["accepted"], &report["rejected"]), (202, &json!(2), &json!(1)));
        let error = &report["errors"][0];
        assert_eq!(
            (&error["index"], &error["code"], &error["pointer"]),
            (&json!(1), &json!("invalid_value"), &json!("/recordId"))
        );
    }
    let ids = api.ids(shard_of_d()).await;
    assert_eq!(ids[..2], ids[2..]);
    assert!(ids[0] != ids[1] && ids[0].starts_with("ik-"), "{ids:?}");
    api.clean().await;
}

/// A process of which a loop moves.
fn moving() -> Heartbeats {
    let heartbeats = Heartbeats::default();
    heartbeats.register("test", std::time::Duration::from_secs(600)).record();
    heartbeats
}

#[tokio::test]
async fn without_redis_every_item_can_be_sent_again_and_the_process_stays_ready() {
    let api = api("redis://127.0.0.1:1");
    let (status, problem) = api.post("/records", JSON, record("a", "d").to_string()).await;
    assert_eq!(
        (status, problem["code"].as_str(), &problem["retryable"]),
        (503, Some("redis_unavailable"), &json!(true))
    );
    let (status, problem) = api.post("/records/batch", JSON, json!([1, record("a", "d")]).to_string()).await;
    assert_eq!((status, problem["errors"].as_array().map(Vec::len)), (503, Some(2)));
    assert_eq!(api.send(Method::GET, "/ready", &[], "").await.0, 200);
}

#[tokio::test]
async fn the_page_needs_no_internet() {
    let api = api("redis://127.0.0.1:1");
    let page = api.endpoint.get_response(Request::builder().uri_str("/docs").finish()).await;
    assert_eq!(page.status(), StatusCode::OK);
    let page = page.into_body().into_string().await.expect("a page");
    assert!(page.contains("/records/batch"));
    for outside in ["<script src", "<link", "@import", "src=\"http"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
