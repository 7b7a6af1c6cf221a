//! Exports: pages of records as NDJSON and CSV, and `millrace export`, whose files have each record once, whatever kills it.

use std::{fs, path::Path, process::Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{KEY, Load, Pipeline, answer, record, sink};

/// A pipeline with records in two shards, all applied.
async fn filled(records: &[Value]) -> (Pipeline, crate::harness::Process, crate::harness::Process) {
    let spec = serde_json::json!({"shards": 2, "sinks": [sink("notifications", "Processed")]});
    let (pipeline, serve, work) = Pipeline::running(spec).await;
    pipeline.send(records).await;
    pipeline.applied().await;
    (pipeline, serve, work)
}

impl Pipeline {
    async fn export(&self, arguments: &[&str], fault: &str) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(["export", "--url", &self.url(), "--key", KEY, "--page-size", "50"]).args(arguments);
        command.env("MILLRACE_FAULT", fault).output().await.unwrap()
    }

    async fn exported(&self, arguments: &[&str]) -> String {
        let output = self.export(arguments, "").await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn refused_export(&self, arguments: &[&str]) -> String {
        let output = self.export(arguments, "").await;
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn pages_come_as_lines_with_their_cursor_in_a_header() {
    let mut odd = record("odd", "a");
    odd["reference"] = "say \"hi\", or not".into();
    let mut records = vec![odd];
    records.extend((0..4).map(|n| record(&format!("r-{n}"), "a")));
    let (pipeline, _serve, _work) = filled(&records).await;
    let body = "{\"recordId\": \"broken\", \"time\": \"2026-01-31T12:00:00Z\", \"sourceId\": \"s\", \"destinationId\": \"a\", \
                \"type\": \"positive\", \"value\": \"1\", \"unit\": \"EUR\", \"reference\": \"r\", \"attributes\": {\n\"a\": 1\r\n}}";
    pipeline.post_json("/records", body).await.expect(202);
    pipeline.applied().await;
    let get = async |path: &str, accept: &str| {
        answer(pipeline.request(reqwest::Method::GET, path).header("accept", accept)).await
    };
    let json = get("/records?destinationId=a", "application/json").await.expect(200);
    for order in ["log", "processed"] {
        let mut lines = Vec::new();
        let mut path = format!("/records?destinationId=a&limit=4&order={order}");
        loop {
            let page = get(&path, "application/x-ndjson").await;
            assert_eq!((page.status, page.header("content-type")), (200, "application/x-ndjson"));
            assert_eq!(page.header("vary"), "Accept");
            let of: Vec<Value> = page.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let cursor = page.header("millrace-next-cursor").to_owned();
            let is_last = cursor.is_empty() || of.len() < 4;
            lines.extend(of);
            if is_last {
                break;
            }
            path = format!("/records?destinationId=a&limit=4&order={order}&cursor={cursor}");
        }
        assert_eq!(Value::from(lines), json["items"], "{order}");
    }
    let csv = get("/records?destinationId=a", "text/csv").await;
    assert_eq!(csv.header("content-type"), "text/csv; charset=utf-8; header=present");
    let mut reader = csv::Reader::from_reader(csv.text.as_bytes());
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!((rows.len(), &rows[0][0], &rows[0][7]), (6, "odd", "say \"hi\", or not"));
    assert_eq!(&rows[5][8], "{\n\"a\": 1\r\n}", "attributes byte for byte");
    get("/records", "image/png").await.refused(406, "not_acceptable");
}

#[tokio::test]
async fn an_export_that_was_killed_continues_with_each_record_once() {
    let load = Load::new("r", 230);
    let (pipeline, _serve, mut work) = filled(&load.records).await;
    let dir = TempDir::new().unwrap();
    for ending in ["ndjson", "csv"] {
        let path = dir.path().join(format!("all.{ending}"));
        let file = path.to_str().unwrap();
        let expected = pipeline.exported(&["--format", ending]).await;
        for n in [1, 2, 1] {
            let killed = pipeline.export(&[file], &format!("after_export_append:{n}")).await;
            assert!(!killed.status.success() && text(&path).len() < expected.len());
        }
        // What is behind the position is cut off, also half a line.
        fs::write(&path, text(&path) + "{\"recordId\":\"hal").unwrap();
        pipeline.exported(&[file]).await;
        assert!(text(&path) == expected, "{ending}: the same lines as an export that was not killed");
        let refused = pipeline.refused_export(&[file]).await;
        assert!(refused.contains("is complete"), "{refused}");
        let refused = pipeline.refused_export(&[file, "--unit", "EUR"]).await;
        assert!(refused.contains("is another export"), "{refused}");
        fs::write(&path, &expected[..10]).unwrap();
        let refused = pipeline.refused_export(&[file]).await;
        assert!(refused.contains("it was changed"), "{refused}");
        fs::remove_file(format!("{file}.cursor")).unwrap();
        let refused = pipeline.refused_export(&[file]).await;
        assert!(refused.contains("name another file"), "{refused}");
    }

    // In the order of processing, a repeated export appends what was processed since.
    let path = dir.path().join("since.csv");
    let file = path.to_str().unwrap();
    let since = ["--order", "processed", "--destination-id", "destination-3"];
    let arguments = [&[file][..], &since].concat();
    pipeline.exported(&arguments).await;
    let before = text(&path);
    pipeline.exported(&arguments).await;
    assert_eq!(text(&path), before, "nothing was processed since");
    pipeline.send(&[record("new", "destination-3"), record("other", "destination-4")]).await;
    pipeline.applied().await;
    pipeline.exported(&arguments).await;
    let after = text(&path);
    let new = after.strip_prefix(&before).unwrap();
    assert!(new.starts_with("new,") && new.lines().count() == 1, "{new}");

    // Standard output: the cursor is printed, and continues there.
    let output = pipeline.export(&since, "").await;
    let said = String::from_utf8(output.stderr).unwrap();
    let cursor = said.split("--from-cursor ").nth(1).unwrap().trim();
    pipeline.send(&[record("newer", "destination-3")]).await;
    pipeline.applied().await;
    let more = pipeline.exported(&[&since[..], &["--from-cursor", cursor]].concat()).await;
    assert!(more.starts_with("{\"recordId\":\"newer\"") && more.lines().count() == 1, "{more}");
    let refused = pipeline.refused_export(&["--from-cursor", cursor]).await;
    assert!(refused.contains("invalid_cursor"), "{refused}");
    work.stop().await;
}
