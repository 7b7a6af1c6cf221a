//! `millrace send` with files of other programs and exports of the API, and against a service that refuses, delays or
//! is missing: it waits as `Retry-After` requires, gives up in time, and its counts are right.

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

use crate::harness::{KEY, Pipeline, answer, free_port, record};

/// A request that the service below got.
#[derive(Debug)]
struct Request {
    at: Instant,
    ids: Vec<String>,
}

/// A fake service. It answers request `n`, counted from 0, with `answers(n)`: status line, further headers and body.
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

    /// Stops the service and returns its requests. To be called after the client ended.
    async fn requests(mut self) -> Vec<Request> {
        self.task.abort();
        let mut requests = Vec::new();
        while let Some(request) = self.seen.recv().await {
            requests.push(request);
        }
        requests
    }
}

/// Reads one request, answers it, and closes the connection.
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
    let media_type = match status.starts_with('2') {
        _ if headers.contains("content-type") => "",
        true => "content-type: application/json\r\n",
        false => "content-type: application/problem+json\r\n",
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{media_type}{headers}\r\n{body}"
    );
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

/// The summary as JSON, without the fields that depend on time.
fn summary(output: &Output) -> Value {
    let mut summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in ["elapsedSeconds", "rate", "requestMs"] {
        summary.as_object_mut().unwrap().remove(field);
    }
    summary
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused() -> Value {
    json!({"code": "redis_unavailable", "detail": "Redis cannot be reached", "retryable": true})
}

#[tokio::test]
async fn a_send_waits_for_the_time_in_retry_after() {
    let service = Service::start(|n| match n {
        0 => ("429 Too Many Requests", "retry-after: 2\r\n", json!({"code": "backlog_full", "retryable": true})),
        _ => ("202 Accepted", "", json!({"accepted": 3, "rejected": 0, "errors": []})),
    })
    .await;
    let output = send(&service.url, &["--json"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        summary(&output),
        json!({
            "sent": 3, "accepted": 3, "rejected": 0, "unsent": 0, "givenUp": 0, "skipped": 0,
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
async fn a_send_gives_up_in_time_and_counts_rows_with_unknown_outcome() {
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
    assert!(stderr(&output).contains("gave up: 1 rows are not known to be accepted (503"), "{}", stderr(&output));
    assert!(stderr(&output).contains("row 3: unknown_field /x no"), "{}", stderr(&output));
    let requests = service.requests().await;
    assert!(requests.len() >= 3, "it tried for a second: {requests:?}");
    assert_eq!(
        summary(&output),
        json!({
            "sent": 3, "accepted": 1, "rejected": 1, "unsent": 0, "givenUp": 1, "skipped": 0,
            "requests": requests.len(), "answered": requests.len(), "repetitions": requests.len() - 1,
        })
    );
    // Only the row without a final answer is sent again.
    assert!(requests[1..].iter().all(|request| request.ids == ["r-0"]), "{requests:?}");
}

#[tokio::test]
async fn a_send_whose_wait_would_exceed_its_limit_gives_up_at_once() {
    let service = Service::start(|_| ("503 Service Unavailable", "retry-after: 3600\r\n", refused())).await;
    let output = send(&service.url, &["--json", "--give-up-after", "60"]).await;
    assert_eq!(output.status.code(), Some(1));
    let summary = summary(&output);
    assert_eq!((&summary["givenUp"], &summary["requests"], &summary["repetitions"]), (&3.into(), &1.into(), &0.into()));
    assert_eq!(service.requests().await.len(), 1);
}

#[tokio::test]
async fn a_send_to_a_closed_port_reports_that_no_request_was_answered() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let output = send(&url, &["--give-up-after", "1"]).await;
    assert_eq!(output.status.code(), Some(1));
    let summary = String::from_utf8_lossy(&output.stdout);
    assert!(summary.starts_with("sent 3: accepted 0, rejected 0, given up 3\n"), "{summary}");
    let attempts = summary.lines().find_map(|line| line.strip_suffix(" attempts, none answered")).expect("attempts");
    assert!(attempts.parse::<u64>().unwrap() >= 2, "{summary}");
    assert!(stderr(&output).contains("gave up: 3 rows are not known to be accepted"), "{}", stderr(&output));
}

#[tokio::test]
async fn an_answer_of_something_else_is_never_counted_as_accepted() {
    const HTML: &str = "content-type: text/html\r\n";
    let replies: [fn(usize) -> Reply; 9] = [
        |_| ("200 OK", "", json!({})),
        |_| ("202 Accepted", "", json!({"status": "ok"})),
        |_| ("202 Accepted", HTML, json!("<html>please log in</html>")),
        |_| ("302 Found", "location: /200/other\r\n", json!({})),
        |_| ("401 Unauthorized", HTML, json!("<html>")),
        |_| ("425 Too Early", HTML, json!("<html>")),
        |_| ("507 Insufficient Storage", HTML, json!("<html>")),
        |_| ("521 Web Server Is Down", HTML, json!("<html>")),
        |_| ("422 Unprocessable Entity", "", json!({"title": "of another service"})),
    ];
    for reply in replies {
        let (status, headers, body) = reply(0);
        let service = Service::start(reply).await;
        let output = send(&service.url, &["--json"]).await;
        assert_eq!(output.status.code(), Some(1), "{status} {body}");
        let summary = summary(&output);
        assert_eq!((&summary["accepted"], &summary["rejected"]), (&0.into(), &0.into()), "{status} {body}");
        let shown =
            if headers.contains("location") { "/200/other".to_owned() } else { body.to_string().replace('"', "\\\"") };
        for part in [&service.url, &status[..3], "no answer of Millrace", &shown] {
            assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
        }
        assert_eq!(service.requests().await.len(), 1, "{status}: it stops at once");
    }
}

#[tokio::test]
async fn a_problem_that_is_no_fault_of_the_rows_stops_the_send() {
    let service = Service::start(|_| {
        ("403 Forbidden", "", json!({"code": "insufficient_scope", "detail": "needs ingest", "retryable": false}))
    })
    .await;
    let output = send(&service.url, &["--json"]).await;
    assert_eq!(summary(&output)["rejected"], 0);
    assert!(stderr(&output).contains("insufficient_scope: needs ingest"), "{}", stderr(&output));
}

/// Answers of a service behind a proxy, which refuses three records in one request and accepts one in each.
fn behind_a_proxy(n: usize) -> Reply {
    match n {
        0 => ("413 Payload Too Large", "content-type: text/html\r\n", json!("<html>413</html>")),
        _ => ("202 Accepted", "", json!({"accepted": 1, "rejected": 0, "errors": []})),
    }
}

#[tokio::test]
async fn a_request_that_a_proxy_finds_too_large_is_sent_in_parts() {
    let service = Service::start(behind_a_proxy).await;
    let output = send(&service.url, &["--json"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("a proxy refuses requests of"), "{}", stderr(&output));
    let requests = service.requests().await;
    let ids: Vec<_> = requests.iter().map(|request| request.ids.join(" ")).collect();
    assert_eq!(ids, ["r-0 r-1 r-2", "r-0", "r-1", "r-2"]);
    let refused = Service::start(|_| behind_a_proxy(0)).await;
    let output = send(&refused.url, &["--json"]).await;
    assert!(stderr(&output).contains("that holds one row: raise its limit"), "{}", stderr(&output));
    assert_eq!(summary(&output)["rejected"], 0);
}

/// Sends a file to a pipeline; returns the output of the command and the refused rows.
async fn send_file(pipeline: &Pipeline, name: &str, content: &[u8], flags: &[&str]) -> (Output, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let [file, errors] = [name, "refused.ndjson"].map(|name| dir.path().join(name));
    std::fs::write(&file, content).unwrap();
    let (url, file, errors) = (pipeline.url(), file.to_str().unwrap(), errors.to_str().unwrap());
    let fixed = [file, "--url", &url, "--key", KEY, "--json", "--errors", errors];
    let output = pipeline.command("send", &[&fixed, flags].concat()).await;
    let refused = std::fs::read_to_string(errors).unwrap();
    (output, refused.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test]
async fn every_export_can_be_sent_again_and_all_are_duplicates() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let mut records: Vec<Value> = (0..4).map(|n| record(&format!("r-{n}"), "plain")).collect();
    records[1]["reference"] = json!("a, \"b\" & ünï");
    records[2]["attributes"] = json!({"note": "x,\"y\"\nz", "n": [1, null]});
    records[3]["type"] = json!("negative");
    pipeline.send(&records).await;
    // A record whose attributes span several lines.
    let lines = record("r-lines", "lines").to_string();
    let lines = format!("{},\n\"attributes\": {{\n \"a\": 1,\n \"b\": \"é\"\n}}}}", lines.strip_suffix('}').unwrap());
    pipeline.post_json("/records", lines).await.expect(202);
    pipeline.applied().await;
    let mut duplicates = 0;
    for (path, accept, name, rows) in [
        ("/records/aggregations", "text/csv", "export.csv", 5),
        ("/records/aggregations", "application/json", "export.json", 5),
        ("/records/aggregations", "application/x-ndjson", "export.ndjson", 5),
        ("/records", "application/json", "page.json", 5),
    ] {
        let export = answer(pipeline.request(reqwest::Method::GET, path).header("accept", accept)).await;
        let (output, refused) = send_file(&pipeline, name, export.text.as_bytes(), &[]).await;
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        let summary = summary(&output);
        assert_eq!((&summary["accepted"], &summary["unsent"], refused.len()), (&rows.into(), &0.into(), 0), "{name}");
        pipeline.applied().await;
        duplicates += rows;
        let stats = pipeline.get("/stats").await;
        let counts = ["processed", "duplicates", "conflicts"].map(|name| stats[name].as_i64().unwrap());
        assert_eq!(counts, [5, duplicates, 0], "{name}");
    }
}

/// `send` refuses some rows and the service others; the repaired file is sent again.
#[tokio::test]
async fn refused_rows_cost_no_other_and_keep_every_id_after_a_repair() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let row = |reference: &str, value: &str| format!("2026-01-31T12:00:00Z,s,d,positive,{value},EUR,{reference}\n");
    let head = "time,sourceId,destinationId,type,Betrag,unit,reference\n";
    let long = "x".repeat(201);
    let good: Vec<String> = (0..6).map(|n| row(&format!("r{n}"), "1")).collect();
    let mut bad: Vec<Vec<u8>> = good.iter().map(|row| row.clone().into_bytes()).collect();
    bad[1] = b"2026-01-31T12:00:00Z,s,d,positive,1,EUR,r\xe9\n".to_vec();
    bad[2] = b"only,two\n".to_vec();
    bad[3] = row("r3", "1.5x").into_bytes();
    bad[4] = row(&long, "1").into_bytes();
    let flags = ["--map", "Betrag=value", "--idempotency-key", "k"];
    let file = [head.as_bytes(), &bad.concat()].concat();
    let (output, mut refused) = send_file(&pipeline, "f.csv", &file, &flags).await;
    assert_eq!(output.status.code(), Some(1));
    let counts = summary(&output);
    assert_eq!(
        ["sent", "accepted", "rejected", "unsent"].map(|name| counts[name].as_u64().unwrap()),
        [3, 2, 4, 3],
        "{counts}"
    );
    assert!(stderr(&output).contains("[line 5, Betrag: \"1.5x\"]"), "{}", stderr(&output));
    refused.sort_by_key(|row| row["row"].as_u64());
    let codes: Vec<_> =
        refused.iter().map(|row| (row["row"].clone(), row["line"].clone(), row["code"].clone())).collect();
    let expected = [(2, 3, "not_utf8"), (3, 4, "wrong_columns"), (4, 5, "invalid_value"), (5, 6, "invalid_value")];
    assert_eq!(codes, expected.map(|(row, line, code)| (json!(row), json!(line), json!(code))));
    assert!(refused[0]["contentBase64"].is_string() && refused[0]["content"].is_null());
    assert_eq!(refused[1]["content"], "only,two");
    assert_eq!((&refused[2]["column"], &refused[2]["cell"]), (&json!("Betrag"), &json!("1.5x")));
    assert_eq!((&refused[3]["pointer"], &refused[3]["cell"]), (&json!("/reference"), &json!(long)));
    let repaired = format!("{head}{}", good.concat());
    let (output, refused) = send_file(&pipeline, "f.csv", repaired.as_bytes(), &flags).await;
    assert!(output.status.success() && refused.is_empty(), "{}", stderr(&output));
    pipeline.applied().await;
    let stats = pipeline.get("/stats").await;
    let counts = ["processed", "duplicates", "conflicts"].map(|name| stats[name].as_i64().unwrap());
    assert_eq!(counts, [6, 2, 0]);
}

#[tokio::test]
async fn a_pipe_is_read_whatever_its_format_and_packing() {
    use std::io::Write as _;
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let json = json!([record("p-0", "d"), record("p-1", "d")]).to_string();
    let ndjson = format!("{}\r\n{}\r\n", record("p-2", "d"), record("p-3", "d"));
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(ndjson.as_bytes()).unwrap();
    for input in [json.into_bytes(), packer.finish().unwrap()] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(["send", "-", "--json", "--url", &pipeline.url(), "--key", KEY]).env_clear().kill_on_drop(true);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&input).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(summary(&output)["accepted"], 2);
    }
}
