//! `millrace send` against a service that refuses, delays, or is not there: it waits as it was told, gives up in time, and
//! its counts are right.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use crate::harness::{free_port, record};

/// A request as the service below saw it.
#[derive(Debug)]
struct Request {
    at: Instant,
    ids: Vec<String>,
}

/// A service that answers the n-th request, from 0, with status line, further headers and body of `answers(n)`.
struct Service {
    url: String,
    seen: mpsc::UnboundedReceiver<Request>,
    task: JoinHandle<()>,
}

type Reply = (&'static str, &'static str, Value);

impl Service {
    async fn start(answers: fn(usize) -> Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            for n in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                sender.send(serve(stream, answers(n)).await).unwrap();
            }
        });
        Self { url, seen, task }
    }

    /// The requests that came, after the client ended.
    async fn requests(mut self) -> Vec<Request> {
        self.task.abort();
        let mut requests = Vec::new();
        while let Some(request) = self.seen.recv().await {
            requests.push(request);
        }
        requests
    }
}

/// Reads one request, answers it, and ends the connection.
async fn serve(mut stream: TcpStream, (status, headers, body): Reply) -> Request {
    let at = Instant::now();
    let mut bytes = Vec::new();
    let (head, length) = loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "a request");
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some(head) = text.find("\r\n\r\n") else { continue };
        let length = text[..head].lines().find_map(|line| line.strip_prefix("content-length:")).unwrap();
        break (head + 4, length.trim().parse::<usize>().unwrap());
    };
    while bytes.len() < head + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "its body");
    }
    let lines = bytes[head..].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let ids = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()["recordId"].as_str().unwrap().to_owned());
    let (ids, body) = (ids.collect(), body.to_string());
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    Request { at, ids }
}

/// Runs `millrace send` for the records `r-0` to `r-2`.
async fn send(url: &str, flags: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records.ndjson");
    let lines: Vec<String> = (0..3).map(|n| record(&format!("r-{n}"), "destination").to_string()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.arg("send").arg(&file).args(["--url", url]).args(flags).env_clear().kill_on_drop(true);
    command.output().await.unwrap()
}

/// The summary as JSON, without the fields that hang on time.
fn summary(output: &Output) -> Value {
    let mut summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in ["elapsedSeconds", "rate", "requestMs"] {
        summary.as_object_mut().unwrap().remove(field);
    }
    summary
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused() -> Value {
    json!({"code": "redis_unavailable", "detail": "the queue cannot be reached", "retryable": true})
}

#[tokio::test]
async fn a_send_waits_as_long_as_retry_after_says() {
    let service = Service::start(|n| match n {
        0 => ("429 Too Many Requests", "retry-after: 2\r\n", json!({"code": "backlog_full", "retryable": true})),
        _ => ("202 Accepted", "", json!({"accepted": 3, "rejected": 0, "errors": []})),
    })
    .await;
    let output = send(&service.url, &["--json"]).await;
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        summary(&output),
        json!({
            "sent": 3, "accepted": 3, "rejected": 0, "givenUp": 0, "skipped": 0,
            "requests": 2, "answered": 2, "repetitions": 1,
        })
    );
    let requests = service.requests().await;
    let [first, second] = &requests[..] else { panic!("{requests:?}") };
    // Without the header it would wait for a tenth of a second at most.
    assert!(second.at - first.at >= Duration::from_secs(2), "{requests:?}");
    assert_eq!(first.ids, second.ids);
}

#[tokio::test]
async fn a_send_gives_up_in_time_and_counts_what_is_not_known_to_be_accepted() {
    let service = Service::start(|n| match n {
        0 => (
            "202 Accepted",
            "",
            json!({"accepted": 1, "rejected": 2, "errors": [
                {"index": 0, "recordId": "r-0", "code": "outcome_unknown", "retryable": true},
                {"index": 2, "recordId": "r-2", "code": "unknown_field", "retryable": false, "pointer": "/x", "detail": "no"},
            ]}),
        ),
        _ => ("503 Service Unavailable", "", refused()),
    })
    .await;
    let output = send(&service.url, &["--json", "--give-up-after", "1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("gave up: 1 rows are not known to be accepted (503"), "{}", said(&output));
    assert!(said(&output).contains("row 3: unknown_field /x no"), "{}", said(&output));
    let requests = service.requests().await;
    assert!(requests.len() >= 3, "it tried for a second: {requests:?}");
    assert_eq!(
        summary(&output),
        json!({
            "sent": 3, "accepted": 1, "rejected": 1, "givenUp": 1, "skipped": 0,
            "requests": requests.len(), "answered": requests.len(), "repetitions": requests.len() - 1,
        })
    );
    // Only what was open is sent again.
    assert!(requests[1..].iter().all(|request| request.ids == ["r-0"]), "{requests:?}");
}

#[tokio::test]
async fn a_send_that_would_have_to_wait_for_longer_than_it_may_gives_up_at_once() {
    let service = Service::start(|_| ("503 Service Unavailable", "retry-after: 3600\r\n", refused())).await;
    let output = send(&service.url, &["--json", "--give-up-after", "60"]).await;
    assert_eq!(output.status.code(), Some(1));
    let summary = summary(&output);
    assert_eq!((&summary["givenUp"], &summary["requests"], &summary["repetitions"]), (&3.into(), &1.into(), &0.into()));
    assert_eq!(service.requests().await.len(), 1);
}

#[tokio::test]
async fn a_send_to_nobody_says_that_nobody_answered() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let output = send(&url, &["--give-up-after", "1"]).await;
    assert_eq!(output.status.code(), Some(1));
    let summary = String::from_utf8_lossy(&output.stdout);
    assert!(summary.starts_with("sent 3: accepted 0, rejected 0, given up 3\n"), "{summary}");
    let attempts = summary.lines().find_map(|line| line.strip_suffix(" attempts, none answered")).expect("attempts");
    assert!(attempts.parse::<u64>().unwrap() >= 2, "{summary}");
    assert!(said(&output).contains("gave up: 3 rows are not known to be accepted"), "{}", said(&output));
}
