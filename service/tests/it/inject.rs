//! Values from clients stay values: they become no SQL, no Redis command, no log line and no label of a metric.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use regex::Regex;
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::harness::{KEY, Pipeline, PrivateRedis, Process, answer, record, shared};

/// Texts that fields of records may have.
const VALID: [&str; 13] = [
    "'; drop table records; --",
    "\" or 1=1 --",
    "$1",
    "%",
    "_",
    "\\'",
    "%s%n{}",
    "]] redis.call('FLUSHALL') --",
    "*1 $8 FLUSHALL",
    "a}:records{b",
    "../../etc/passwd",
    "x\"} 1 #",
    "a\u{2028}{\"level\":\"ERROR\",\"message\":\"forged\"}",
];

/// Texts that no field may have: each holds a character that ends a line or a command, controls a terminal, or reverses
/// the direction of text.
const REFUSED: [&str; 7] = [
    "a\r\nFLUSHALL\r\n",
    "a\n{\"level\":\"ERROR\",\"message\":\"forged\"}",
    "a\u{1b}[2Jforged",
    "a\u{9b}31mforged",
    "a\u{7f}",
    "a\u{202e}forged",
    "a\0b",
];

const FIELDS: [&str; 5] = ["recordId", "sourceId", "destinationId", "unit", "reference"];

/// The contents of both servers: names of the commands that Redis ran, its keys, and schemas and tables of Postgres.
async fn inventory(pipeline: &Pipeline) -> BTreeSet<String> {
    let stats: String = pipeline.redis(&["INFO", "commandstats"]).await;
    let commands = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next());
    let mut all: BTreeSet<String> = commands.map(|name| format!("command {name}")).collect();
    let keys: Vec<String> = pipeline.redis(&["KEYS", "*"]).await;
    all.extend(keys.into_iter().map(|key| format!("key {key:?}")));
    let tables: Vec<String> = sqlx::query_scalar(
        "select 'table ' || table_schema || '.' || table_name from information_schema.tables
         union all select 'schema ' || schema_name from information_schema.schemata",
    )
    .fetch_all(&pipeline.sql)
    .await
    .unwrap();
    all.extend(tables);
    all
}

/// A record with a text in one field, and with an id of its own.
fn with_text(field: &str, text: &str) -> Value {
    let mut record = record(&format!("{field} of {text}"), "d");
    if field != "recordId" {
        record["recordId"] = format!("{field} {text}").into();
    }
    record[field] = if field == "recordId" { record["recordId"].clone() } else { text.into() };
    record
}

/// The path of a record whose id is a text.
fn segment(text: &str) -> String {
    let mut url = Url::parse("http://host/records").unwrap();
    url.path_segments_mut().unwrap().push(text);
    url.path().to_owned()
}

fn query(path: &str, name: &str, text: &str) -> String {
    let mut url = Url::parse("http://host").unwrap().join(path).unwrap();
    url.query_pairs_mut().append_pair(name, text);
    format!("{}?{}", url.path(), url.query().unwrap())
}

/// Sends every text in every field and parameter; returns the ids of accepted records.
async fn attack(pipeline: &Pipeline) -> Vec<String> {
    let mut records: Vec<(&str, Value)> =
        VALID.iter().flat_map(|text| FIELDS.map(|field| (field, with_text(field, text)))).collect();
    // `attributes` may have all characters but U+0000.
    for (n, text) in REFUSED.iter().filter(|text| !text.contains('\0')).enumerate() {
        let mut record = record(&format!("attributes {n}"), "d");
        record["attributes"] = json!({ *text: [text] });
        records.push(("recordId", record));
    }
    let mut ids = Vec::new();
    for (_, record) in &records {
        // One in a request, so that each makes a log line.
        let accepted = pipeline.post_json("/records", record.to_string()).await.expect(202);
        ids.push(accepted["recordId"].as_str().unwrap().to_owned());
    }
    pipeline.applied().await;
    for (field, record) in records {
        let id = record["recordId"].as_str().unwrap();
        let history = pipeline.get(&segment(id)).await;
        let found = pipeline.list(&query("/records", field, record[field].as_str().unwrap())).await;
        assert_eq!(found.len(), 1, "{field} of {record}: {found:?}");
        for name in FIELDS.iter().chain(&["attributes"]) {
            assert_eq!((&history["record"][name], &found[0][name]), (&record[name], &record[name]), "{name}");
        }
    }
    for text in REFUSED {
        for field in FIELDS {
            let mut wrong = record("refused", "d");
            wrong[field] = text.into();
            let refused = pipeline.post_json("/records", wrong.to_string()).await;
            assert_eq!(refused.refused(422, "invalid_value")["pointer"], format!("/{field}"));
            pipeline.ask(&query("/records", field, text)).await.refused(400, "invalid_parameter");
        }
    }
    for text in VALID.iter().chain(&REFUSED) {
        send_where_it_is_invalid(pipeline, text).await;
    }
    ids
}

/// Sends a text where no such value is valid: it is refused or ignored, never answered with 5xx.
async fn send_where_it_is_invalid(pipeline: &Pipeline, text: &str) {
    let history = pipeline.ask(&segment(text)).await;
    assert!([400, 404].contains(&history.status), "{text:?}: {}", history.text);
    for (path, name) in [
        ("/records", "cursor"),
        ("/records", "startTime"),
        ("/records", "type"),
        ("/records", "limit"),
        ("/records", text),
        ("/records/rollups", "groupBy"),
        ("/records/rollups", "distinct"),
        ("/records/rollups", "window"),
        ("/audit", "action"),
        ("/audit", "cursor"),
        ("/audit/summary", "cursor"),
        ("/dead-letters", "reason"),
        ("/conflicts", "cursor"),
    ] {
        let refused = pipeline.ask(&query(path, name, text)).await;
        assert_eq!(refused.status, 400, "{path} {name} = {text:?}: {}", refused.text);
    }
    let dead_letter = segment(text).replace("/records/", "/dead-letters/");
    for verb in ["replay", "discard"] {
        let refused = pipeline.act(&format!("{dead_letter}/{verb}")).await;
        assert!([400, 404].contains(&refused.status), "{text:?}: {}", refused.text);
    }
    // Headers are written byte for byte; HTTP itself forbids some of them.
    let body = record("by header", "d").to_string();
    let length = body.len();
    for (name, expected) in [
        ("Idempotency-Key", [400, 422]),
        ("traceparent", [202, 400]),
        ("Authorization", [401, 400]),
        ("Prefer", [202, 400]),
        ("Content-Type", [415, 400]),
        ("Content-Encoding", [415, 400]),
        ("X-Other", [202, 400]),
    ] {
        let mut headers = BTreeMap::from([
            ("Authorization", format!("Bearer {KEY}")),
            ("Content-Type", "application/json".to_owned()),
        ]);
        headers.insert(name, text.to_owned());
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("POST /records HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n");
        let answer = pipeline.raw(format!("{head}{headers}\r\n{body}").as_bytes()).await;
        let status: u16 =
            answer.split(' ').nth(1).unwrap_or_else(|| panic!("{name} {text:?}: {answer}")).parse().unwrap();
        assert!(expected.contains(&status), "{name}: {text:?}: {answer}");
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(!head.contains("forged") && !head.contains("FLUSHALL"), "no header repeats it: {head}");
    }
    // The request line.
    for line in
        [format!("GET /{text} HTTP/1.1"), format!("{text} /stats HTTP/1.1"), "FLUSHALL /stats HTTP/1.1".to_owned()]
    {
        let answer = pipeline.raw(format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(!answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"), "{line:?}: {answer}");
    }
}

/// Sends forged cursors: a cursor is not signed, and anyone can build one of the right form.
async fn forge_cursors(pipeline: &Pipeline) {
    for path in ["/records", "/audit", "/audit/summary"] {
        let page = pipeline.get(&format!("{path}?limit=1")).await;
        let cursor = URL_SAFE_NO_PAD.decode(page["nextCursor"].as_str().unwrap()).unwrap();
        for place in [
            json!("\0"),
            json!("'; drop table records; --\n"),
            json!(["0); drop table records; --", 0]),
            json!([i64::MIN, i64::MAX]),
            json!([-6_300_000_000_000_000_000_i64, 0, 0, 0, 0]),
            json!(["294277-01-01T00:00:00Z", 0, 0, 0, 0]),
            json!({"$gt": ""}),
        ] {
            let forged = [&cursor[..8], place.to_string().as_bytes()].concat();
            let cursor = URL_SAFE_NO_PAD.encode(forged);
            pipeline.ask(&format!("{path}?limit=1&cursor={cursor}")).await.refused(400, "invalid_cursor");
        }
    }
}

/// Appends entries to the input streams, as another program would.
async fn poison(pipeline: &Pipeline) {
    for text in VALID.iter().chain(&REFUSED) {
        let fields = ["XADD", &pipeline.records(0), "*", text, text, "traceparent", text, "replayOf", text];
        let _: String = pipeline.redis(&fields).await;
        let record = with_text("unit", text).to_string();
        let _: String = pipeline.redis(&["XADD", &pipeline.records(1), "*", "record", &record, "serve", text]).await;
    }
    pipeline.applied().await;
    pipeline.list("/dead-letters").await;
    pipeline.list("/audit").await;
}

/// Checks that every log line was written by the logger, without characters that end a line or control a terminal.
fn check_log(log: &Path, format: &str) {
    let log = fs::read_to_string(log).unwrap();
    let head = Regex::new(r"^\d{4}-\d\d-\d\dT[\d:.]+Z +(TRACE|DEBUG|INFO|WARN|ERROR) ").unwrap();
    for line in log.lines() {
        let unsafe_character = |c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!line.contains(unsafe_character), "{line:?}");
        if format == "json" {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(
                line["message"] != "forged" && line["timestamp"].is_string() && line["level"].is_string(),
                "{line}"
            );
        } else {
            assert!(head.is_match(line), "{line:?}");
        }
    }
}

/// Checks that all metrics are in Prometheus's text format, with plain characters in labels.
async fn check_metrics(process: &Process) {
    let text = process.text("/metrics").await;
    let comment = Regex::new(r"^# (HELP [a-z_]+ [^\\]+|TYPE [a-z_]+ (counter|gauge|histogram|summary))$").unwrap();
    let label = r#"[a-z_]+="[A-Za-z0-9_./{}+-]*""#;
    let sample = format!(r"^[a-z_]+(\{{{label}(,{label})*\}})? ([0-9.]+(e-?[0-9]+)?|NaN|\+Inf)$");
    let sample = Regex::new(&sample).unwrap();
    for line in text.lines().filter(|line| !line.is_empty()) {
        assert!(comment.is_match(line) || sample.is_match(line), "{line:?}");
    }
    assert!(text.ends_with('\n') && text.contains("millrace_"), "{text}");
}

async fn values_stay_values(format: &str) {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let environment = [("MILLRACE_LOG", "info,millrace=trace"), ("MILLRACE_LOG_FORMAT", format)];
    let (work, serve) = (pipeline.work_with(&environment), pipeline.serve_with(&environment).await);
    work.ready().await;
    // One of each outcome, so that all keys, tables and commands exist before.
    let (first, mut other) = (record("first", "d"), record("first", "d"));
    other["unit"] = "USD".into();
    pipeline.apply(&first).await.expect(200);
    pipeline.apply(&other).await.refused(409, "record_conflict");
    let _: String = pipeline.redis(&["XADD", &pipeline.records(0), "*", "theirs", "x"]).await;
    let _: String = pipeline.redis(&["XADD", &pipeline.records(1), "*", "theirs", "x"]).await;
    pipeline.applied().await;
    pipeline.list("/records").await;
    answer(pipeline.request(Method::GET, "/stats")).await.expect(200);
    pipeline.ask("/records/none").await;
    // The search in a stream uses this command only while records wait there.
    let _: redis::Value = pipeline.redis(&["XRANGE", &pipeline.records(0), "-", "+"]).await;
    inventory(&pipeline).await;
    let before = inventory(&pipeline).await;

    let mut stored = attack(&pipeline).await;
    forge_cursors(&pipeline).await;
    stored.push("first".to_owned());
    let by_header = pipeline.list("/records?recordId=by%20header").await;
    stored.extend(by_header.iter().map(|_| "by header".to_owned()));
    poison(&pipeline).await;
    let all: Vec<String> = sqlx::query_scalar("select record_id from records").fetch_all(&pipeline.sql).await.unwrap();
    stored.extend(all.into_iter().filter(|id| id.starts_with("unit ") && !stored.contains(id)).collect::<Vec<_>>());

    let after = inventory(&pipeline).await;
    assert_eq!(after.symmetric_difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    pipeline.check_exactly_once(&stored).await;
    for process in [&serve, &work] {
        check_log(process.log(), format);
        check_metrics(process).await;
    }
    let log = fs::read_to_string(serve.log()).unwrap();
    assert!(log.contains("drop table records") && log.contains("FLUSHALL"), "the log has the values");
}

#[tokio::test]
async fn values_from_outside_stay_values_with_logs_for_people() {
    values_stay_values("human").await;
}

#[tokio::test]
async fn values_from_outside_stay_values_with_logs_in_json() {
    values_stay_values("json").await;
}

/// The name becomes the name of a schema and a prefix of keys.
#[tokio::test]
async fn an_unsafe_pipeline_name_is_refused() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    inventory(&pipeline).await;
    let before = inventory(&pipeline).await;
    for name in [
        "x; drop schema public cascade",
        "x\" cascade; --",
        "x,public",
        "x -c search_path=public",
        "x\\ y",
        "x}:records{y",
        "x\r\nFLUSHALL",
        "../x",
        "X",
        "",
        &"x".repeat(41),
    ] {
        pipeline.annotate(|metadata| metadata["name"] = name.into());
        for command in ["migrate", "purge", "verify", "config"] {
            let refused = pipeline.command(command, if command == "purge" { &["--yes"] } else { &[] }).await;
            let printed = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && printed.contains("metadata.name"), "{command} {name:?}: {printed}");
        }
    }
    pipeline.write("no manifest");
    for name in ["x; drop schema public cascade", "x,public", "x}:records{y", "X", "x\nFLUSHALL"] {
        for command in ["verify", "keys"] {
            let list: &[&str] = if command == "keys" { &["list"] } else { &[] };
            let arguments = [&["--pipeline-name", name], list].concat();
            let refused = pipeline.command(command, &arguments).await;
            let printed = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && printed.contains("--pipeline-name"), "{command} {name:?}: {printed}");
        }
    }
    let after = inventory(&pipeline).await;
    assert_eq!(after.symmetric_difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
}
