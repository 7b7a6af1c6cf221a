//! Details of HTTP: HEAD, `Expect: 100-continue`, cross-origin requests, IPv6.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Answer, KEY, Pipeline, answer, eventually, free_port, record};

const ORIGIN: &str = "https://app.example.com";

#[tokio::test]
async fn head_gives_the_headers_of_get_and_no_body_on_every_path() {
    let (pipeline, serve, _work) = Pipeline::running(json!({})).await;
    pipeline.apply(&record("r", "1")).await.expect(200);
    let document = pipeline.ask("/openapi.json").await.json();
    let documented = document["paths"].as_object().unwrap();
    let documented = documented.iter().filter(|(_, methods)| methods.get("get").is_some());
    let mut paths: Vec<String> = documented.map(|(path, _)| path.replace("{recordId}", "r")).collect();
    assert!(paths.len() > 8 && paths.iter().all(|path| !path.contains('{')), "{paths:?}");
    paths.extend(["/openapi.json", "/docs", "/records/unknown", "/records?limit=0", "/nothing"].map(str::to_owned));
    paths.extend(["/records/aggregations?format=csv", "/v1/stats"].map(str::to_owned));
    for path in &paths {
        let (get, head) = (pipeline.ask(path).await, answer(pipeline.request(Method::HEAD, path)).await);
        assert_eq!(head.status, get.status, "{path}");
        // Counts change, and with them lengths. How a body is framed is left out where there is none.
        let names = |answer: &Answer| {
            let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
            names.retain(|name| name != "transfer-encoding");
            names.sort();
            names
        };
        assert_eq!(names(&head), names(&get), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.text, "", "{path}");
    }
    let (get, head) = (pipeline.ask("/docs").await, answer(pipeline.request(Method::HEAD, "/docs")).await);
    assert_eq!(head.header("content-length"), get.text.len().to_string());
    // A client would take a body for the beginning of the next answer.
    let twice = format!("HEAD /docs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n");
    let said = pipeline.raw(format!("{twice}\r\n{twice}connection: close\r\n\r\n").as_bytes()).await;
    assert_eq!(said.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{said}");
    assert!(said.ends_with("\r\n\r\n") && !said.contains("<html"), "{said}");
    let refused = answer(pipeline.request(Method::HEAD, "/records/batch")).await;
    assert_eq!((refused.status, refused.text.as_str(), refused.header("allow")), (405, "", "POST, OPTIONS"));
    for path in ["/health", "/ready", "/metrics", "/status"] {
        let head = serve.head(path).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        assert!(head.header("content-length").parse::<usize>().unwrap() > 10, "{path}: {:?}", head.headers);
    }
}

/// Sends the head of a request whose client waits for a word; returns what comes first.
async fn first_word(pipeline: &Pipeline, head: &str, body: &[u8]) -> (String, String) {
    let mut stream = pipeline.connect().await;
    let head = format!("{head}host: x\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut text).await.unwrap() > 0, "closed without a word");
    }
    let first = String::from_utf8(text).unwrap();
    if !first.starts_with("HTTP/1.1 100 Continue\r\n\r\n") {
        return (first, String::new());
    }
    stream.write_all(body).await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    (first, rest)
}

#[tokio::test]
async fn a_client_that_waits_is_told_to_continue_or_refused_before_it_sends() {
    let pipeline = Pipeline::new(json!({})).await;
    let (serve, body) = (pipeline.serve().await, record("r", "1").to_string());
    serve.ready().await;
    let head = |path: &str, length: usize, more: &str| {
        format!("POST {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}")
    };
    let key = format!("authorization: Bearer {KEY}\r\n");
    let (first, rest) = first_word(&pipeline, &head("/records", body.len(), &key), body.as_bytes()).await;
    assert_eq!(first, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(rest.starts_with("HTTP/1.1 202 "), "{rest}");
    let gzip = format!("{key}content-encoding: gzip\r\n");
    for (head, status) in [
        (head("/records", body.len(), ""), 401),
        (head("/records", body.len(), "authorization: Bearer mk_unknown\r\n"), 401),
        (head("/records", 1024 * 1024, &key), 413),
        (head("/records/batch", 17 * 1024 * 1024, &key), 413),
        (head("/records?x=1", body.len(), &key), 400),
        (head("/records", body.len(), &format!("{key}content-encoding: br\r\n")), 415),
        (head("/nothing", body.len(), &key), 404),
    ] {
        let (first, _) = first_word(&pipeline, &head, b"").await;
        assert!(first.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {first}");
    }
    // The length of what is packed says nothing about a record, and NDJSON has any length.
    for head in [head("/records", 20_000, &gzip), head("/records/batch", 17 << 20, &key).replace("/json", "/x-ndjson")]
    {
        let mut stream = pipeline.connect().await;
        stream.write_all(format!("{head}host: x\r\nexpect: 100-continue\r\n\r\n").as_bytes()).await.unwrap();
        let mut word = [0; 25];
        stream.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}

async fn from_origin(pipeline: &Pipeline, method: Method, path: &str, origin: &str) -> Answer {
    let mut request = pipeline.request(method.clone(), path).header("origin", origin);
    if method == Method::OPTIONS {
        request = request.header("access-control-request-method", "POST");
        request = request.header("access-control-request-headers", "authorization,content-type");
    }
    answer(request).await
}

fn cors(answer: &Answer) -> Vec<&str> {
    answer.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("access-control-")).collect()
}

#[tokio::test]
async fn pages_of_other_origins_are_allowed_by_the_manifest_alone() {
    let pipeline = Pipeline::new(json!({})).await;
    let serve = pipeline.serve().await;
    serve.ready().await;
    for method in [Method::GET, Method::OPTIONS] {
        let answer = from_origin(&pipeline, method, "/stats", ORIGIN).await;
        assert_eq!(cors(&answer), [""; 0], "off by default");
    }
    let allow = |origins: Value| pipeline.change(|spec| spec["serve"] = json!({"cors": {"allowedOrigins": origins}}));
    allow(json!(["https://other.example", ORIGIN]));
    eventually("the origin is allowed", async || {
        !cors(&from_origin(&pipeline, Method::GET, "/stats", ORIGIN).await).is_empty()
    })
    .await;

    let preflight = from_origin(&pipeline, Method::OPTIONS, "/v1/records", ORIGIN).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), ORIGIN);
    assert_eq!(preflight.header("access-control-allow-methods"), preflight.header("allow"));
    let may_send = preflight.header("access-control-allow-headers");
    for name in ["authorization", "content-type", "idempotency-key", "prefer", "traceparent"] {
        assert!(may_send.split(", ").any(|allowed| allowed == name), "{may_send}");
    }
    assert_eq!(preflight.header("access-control-max-age"), "600");
    // A page reads errors, too: that it may send again, and when.
    let refused = answer(pipeline.posting("/records", "{}").header("origin", ORIGIN)).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (422, ORIGIN));
    assert!(refused.header("access-control-expose-headers").contains("retry-after"));
    assert_eq!(refused.header("vary"), "Origin");
    let without_key = reqwest::Client::new().get(format!("{}/stats", pipeline.url())).header("origin", ORIGIN);
    assert_eq!(answer(without_key).await.header("access-control-allow-origin"), ORIGIN);

    for other in ["https://evil.example", "https://app.example.com.evil.example", "null"] {
        for method in [Method::GET, Method::OPTIONS] {
            let answer = from_origin(&pipeline, method, "/stats", other).await;
            assert_eq!((cors(&answer), answer.header("vary")), (vec![], "Origin"), "{other}");
            assert!([200, 204].contains(&answer.status), "it is the browser that refuses");
        }
    }
    allow(json!(["*"]));
    eventually("any origin is allowed", async || {
        let answer = from_origin(&pipeline, Method::GET, "/stats", "https://evil.example").await;
        assert!(answer.headers.get("access-control-allow-credentials").is_none());
        answer.header("access-control-allow-origin") == "*"
    })
    .await;
}

#[tokio::test]
async fn a_port_on_all_addresses_answers_by_ipv4_and_ipv6() {
    let pipeline = Pipeline::new(json!({})).await;
    let port = free_port();
    let serve = pipeline.start_listening(&format!("[::]:{port}"));
    serve.ready().await;
    let mut hosts = vec!["127.0.0.1"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        hosts.push("[::1]");
    }
    for host in hosts {
        let request = reqwest::Client::new().get(format!("http://{host}:{port}/stats")).bearer_auth(KEY);
        answer(request).await.expect(200);
    }
}
