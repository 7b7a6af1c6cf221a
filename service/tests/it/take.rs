//! Accepted records: each counts once, from however many clients it comes, and with exactly its content.

use futures::future::join_all;
use millrace::domain::{DestinationId, ShardId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Pipeline, answer, eventually, record},
    refuse::lines,
};

/// A destination of this shard, of two shards.
pub(crate) fn destination(shard: u16) -> String {
    (0..)
        .map(|n| format!("d{n}"))
        .find(|name| ShardId::of(&DestinationId::stored(name.as_str()), 2).get() == shard)
        .unwrap()
}

/// The total of a destination that has one unit.
async fn total(pipeline: &Pipeline, destination: &str) -> Value {
    let answer = pipeline.get(&format!("/records/aggregations?destinationId={destination}&records=false")).await;
    assert_eq!(answer["groups"].as_array().unwrap().len(), 1, "{answer}");
    answer["groups"][0]["totals"][0]["total"].clone()
}

#[tokio::test]
async fn duplicates_within_and_among_batches_count_once_in_any_spelling() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let one = r#"{"recordId":"a","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive",
        "value":"1.50","unit":"EUR","reference":"r","attributes":{"x":1.0,"y":["é"]}}"#;
    let same = [
        one.to_owned(),
        one.replace("\"1.50\"", "1.5"),
        one.replace("12:00:00Z", "13:00:00.000+01:00"),
        one.replace(r#"{"x":1.0,"y":["é"]}"#, r#"{ "y" : ["\u00e9"], "x" : 10e-1 }"#),
        one.replace("\"1.50\"", "001.500").replace("001.500", "\"001.500000000\""),
    ];
    let other = one.replace("\"a\"", "\"b\"");
    let batch = format!("[{},{other}]", same.join(","));
    for _ in 0..3 {
        let report = pipeline.post_json("/records/batch", batch.clone()).await.expect(202);
        assert_eq!(
            report,
            json!({"accepted": 6, "rejected": 0, "errors": []}),
            "a duplicate is accepted: it is no error"
        );
    }
    pipeline.applied().await;
    pipeline.check_exactly_once(&["a".into(), "b".into()]).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["processed"], &stats["duplicates"], &stats["conflicts"]), (&2.into(), &16.into(), &0.into()));
    assert_eq!(stats["received"], 18);
    assert_eq!(pipeline.get("/records/a").await["duplicates"], 14);
    assert_eq!(total(&pipeline, "d").await, "3.00");
}

#[tokio::test]
async fn the_same_id_from_five_clients_at_once_counts_once() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let _second = pipeline.work();
    let records: Vec<Value> = (0..40).map(|n| record(&format!("r{n}"), &format!("d{}", n % 4))).collect();
    let client = async || {
        let singles = records.iter().map(|record| pipeline.post("/records", record));
        assert!(join_all(singles).await.iter().all(|(status, _)| *status == 202));
        pipeline.send(&records).await;
    };
    join_all((0..5).map(|_| client())).await;
    pipeline.applied().await;
    let ids: Vec<String> = (0..40).map(|n| format!("r{n}")).collect();
    pipeline.check_exactly_once(&ids).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["duplicates"], &stats["received"]), (&360.into(), &400.into()));
}

#[tokio::test]
async fn one_id_in_two_shards_counts_in_one_and_is_a_conflict_in_the_other() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let (here, there) = (destination(0), destination(1));
    let both: Vec<Value> =
        (0..50).flat_map(|n| [record(&format!("r{n}"), &here), record(&format!("r{n}"), &there)]).collect();
    pipeline.send(&both).await;
    // Two workers, a shard each, decide the same ids at the same time.
    let _workers = (pipeline.work(), pipeline.work());
    pipeline.applied().await;
    let ids: Vec<String> = (0..50).map(|n| format!("r{n}")).collect();
    pipeline.check_exactly_once(&ids).await;
    let conflicts = pipeline.list("/conflicts").await;
    assert_eq!(conflicts.len(), 50);
    for conflict in &conflicts {
        let (kept, refused) = (&conflict["record"]["destinationId"], &conflict["refused"]["destinationId"]);
        assert_ne!(kept, refused, "{conflict}");
        let history = pipeline.get(&format!("/records/{}", conflict["recordId"].as_str().unwrap())).await;
        assert_eq!((&history["record"]["destinationId"], &history["conflicts"]), (kept, &1.into()));
    }
    assert_eq!(pipeline.sink_entries("conflicts").await.len(), 50);
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["processed"], &stats["conflicts"], &stats["received"]), (&50.into(), &50.into(), &100.into()));
}

#[tokio::test]
async fn other_content_under_a_known_id_is_a_conflict_and_changes_nothing() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let first = record("a", "d");
    pipeline.apply(&first).await.expect(200);
    let changes = [
        ("time", json!("2026-01-31T12:00:00.000001Z")),
        ("sourceId", json!("other")),
        ("type", json!("negative")),
        ("value", json!("1.000000001")),
        ("unit", json!("USD")),
        ("reference", json!("other")),
        ("attributes", json!({"n": 1})),
    ];
    for (field, value) in &changes {
        let mut other = first.clone();
        other[field] = value.clone();
        let problem = pipeline.apply(&other).await.refused(409, "record_conflict");
        assert!(problem.get("pointer").is_none());
    }
    pipeline.applied().await;
    let conflicts = pipeline.list("/conflicts?recordId=a").await;
    assert_eq!(conflicts.len(), changes.len());
    for (conflict, (field, value)) in conflicts.iter().zip(&changes) {
        assert_eq!(conflict["refused"][field], *value, "{conflict}");
        assert_eq!(conflict["record"]["value"], "1", "{conflict}");
    }
    assert_eq!(total(&pipeline, "d").await, "1");
    let entries = pipeline.sink_entries("conflicts").await;
    let ids: Vec<&str> = entries.iter().map(|entry| entry.id.split_once('-').unwrap().1).collect();
    assert_eq!(ids, ["c1", "c2", "c3", "c4", "c5", "c6", "c7"], "conflicts have numbers of their own");
    assert!(entries.iter().all(|entry| entry.kind == "record.conflicted" && entry.data["recordId"] == "a"));
    pipeline.check_exactly_once(&["a".into()]).await;
}

#[tokio::test]
async fn items_of_one_shard_are_accepted_all_or_none_and_a_full_backlog_gets_429() {
    let pipeline = Pipeline::new(json!({"backlogLimit": 10})).await;
    let _serve = pipeline.serve().await;
    let (here, there) = (destination(0), destination(1));
    let some = |name: &str, n: usize, destination: &str| -> Vec<Value> {
        (0..n).map(|k| record(&format!("{name}{k}"), destination)).collect()
    };
    pipeline.send(&some("a", 8, &here)).await;
    let mixed: Vec<Value> =
        some("b", 3, &here).into_iter().zip(some("c", 3, &there)).flat_map(|(b, c)| [b, c]).collect();
    let report = pipeline.post_json("/records/batch", json!(mixed).to_string()).await.expect(202);
    assert_eq!((&report["accepted"], &report["rejected"]), (&3.into(), &3.into()));
    let errors = report["errors"].as_array().unwrap();
    let found: Vec<_> = errors.iter().map(|error| (error["index"].clone(), error["recordId"].clone())).collect();
    assert_eq!(found, [(0.into(), "b0".into()), (2.into(), "b1".into()), (4.into(), "b2".into())]);
    assert!(errors.iter().all(|error| error["code"] == "backlog_full" && error["retryable"] == true), "{errors:?}");
    for (shard, records) in [(0, 8), (1, 3)] {
        assert_eq!(pipeline.redis::<u64>(&["HGET", &pipeline.fence(shard), "appended"]).await, records);
    }
    // When no record is accepted, the answer itself has status 429.
    let batch = pipeline.post_json("/records/batch", json!(some("b", 3, &here)).to_string()).await;
    assert_eq!(batch.refused(429, "backlog_full")["errors"].as_array().unwrap().len(), 3);
    assert!(batch.header("retry-after").parse::<u64>().unwrap() >= 1);
    pipeline.send(&some("e", 2, &here)).await;
    let single = pipeline.post_json("/records", record("f", &here).to_string()).await;
    single.refused(429, "backlog_full");
    assert!(single.header("retry-after").parse::<u64>().unwrap() >= 1);
    let _work = pipeline.work();
    pipeline.send_through(&some("b", 3, &here)).await;
    pipeline.applied().await;
    let ids = [("a", 8), ("c", 3), ("e", 2), ("b", 3)];
    let ids: Vec<String> = ids.iter().flat_map(|(name, n)| (0..*n).map(move |k| format!("{name}{k}"))).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn times_out_of_order_change_no_order_and_no_total() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let times = ["12:02:00", "12:00:00", "12:00:59.999999", "11:59:59.999999", "12:01:00", "12:00:30"];
    let records: Vec<Value> = (0..)
        .zip(times)
        .map(|(n, time)| {
            let mut record = record(&format!("r{n}"), "d");
            (record["time"], record["value"]) = (format!("2026-01-31T{time}Z").into(), (1 << n).to_string().into());
            record
        })
        .collect();
    pipeline.send(&records).await;
    pipeline.applied().await;
    // Records are processed and summed up in the order of arrival.
    let entries = pipeline.sink_entries("notifications").await;
    let summaries: Vec<_> = entries.iter().map(|entry| entry.data["summary"].clone()).collect();
    let expected: Vec<_> = (0..6)
        .map(|n| json!({"previousCount": n, "previousTotal": ((1 << n) - 1).to_string(), "unit": "EUR"}))
        .collect();
    assert_eq!(summaries, expected);
    // Queries filter by the records' own times; a range has its start and lacks its end.
    let between = "/records/aggregations?startTime=2026-01-31T12:00:00Z&endTime=2026-01-31T12:01:00Z";
    let found = pipeline.get(between).await;
    assert_eq!(found["groups"][0]["totals"], json!([{"unit": "EUR", "count": 3, "total": (2 + 4 + 32).to_string()}]));
    let rollups = pipeline.get("/records/rollups?window=1m").await;
    let rows: Vec<_> = rollups["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["windowStart"].clone(), row["totals"][0]["total"].clone()))
        .collect();
    let expected = [("11:59", "8"), ("12:00", "38"), ("12:01", "16"), ("12:02", "1")];
    let expected = expected.map(|(start, total)| (Value::from(format!("2026-01-31T{start}:00Z")), Value::from(total)));
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn decimals_are_exact_from_end_to_end_and_keep_their_scale() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"threshold": null})).await;
    // Each as JSON number and as string: the sums in f64 would be wrong.
    let values =
        ["0.00", "125.50", "999999999999999.999999999", "0.000000001", "123456789012345.123456789", "0.1", "0.2", "7"];
    for (n, value) in values.iter().enumerate() {
        for (kind, spelt) in [("number", (*value).to_owned()), ("string", format!("\"{value}\""))] {
            let body = format!(
                r#"{{"recordId":"{kind}{n}","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"{kind}",
                "type":"positive","value":{spelt},"unit":"EUR","reference":"r{n}"}}"#
            );
            pipeline.post_json("/records", body).await.expect(202);
        }
    }
    pipeline.applied().await;
    for (n, value) in values.iter().enumerate() {
        for kind in ["number", "string"] {
            let history = pipeline.get(&format!("/records/{kind}{n}")).await;
            assert_eq!(history["record"]["value"], *value, "{kind}: always a string, its scale kept");
        }
    }
    for entry in pipeline.sink_entries("notifications").await {
        let n: usize = entry.record_id().trim_start_matches(char::is_alphabetic).parse().unwrap();
        assert_eq!(entry.data["record"]["value"], values[n]);
    }
    // 0 + 125.5 + 999999999999999.999999999 + 0.000000001 + 123456789012345.123456789 + 0.1 + 0.2 + 7
    let sum = "1123456789012477.923456789";
    for kind in ["number", "string"] {
        assert_eq!(total(&pipeline, kind).await, sum);
        let rollup = pipeline.get(&format!("/records/rollups?destinationId={kind}")).await;
        assert_eq!(rollup["items"][0]["totals"][0]["total"], sum);
    }
    pipeline.verify().await;
}

#[tokio::test]
async fn attributes_are_returned_byte_for_byte_everywhere() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let attributes =
        r#"{ "b" : 1.10,"a":[1,2E+2 , "\u00e9\/"], "é": 1234567890123456789012345678901234567890, "n":null}"#;
    let body = format!(
        r#"{{"recordId":"a","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":1,
        "unit":"EUR","reference":"r","attributes":{attributes}}}"#
    );
    let queued = pipeline.post_json("/records", body).await;
    queued.expect(202);
    pipeline.applied().await;
    for path in ["/records/a", "/records", "/records/aggregations"] {
        let answer = pipeline.ask(path).await;
        assert!(answer.text.contains(attributes), "{path}: {}", answer.text);
    }
    let entry = pipeline.sink_entries("notifications").await.remove(0);
    assert!(entry.fields["data"].contains(attributes), "{}", entry.fields["data"]);
    // A queued record has them, too.
    let destination = destination(1);
    let mut work = _work;
    work.stop().await;
    let queued = record("q", &destination).to_string();
    let queued = queued.replacen('{', &format!(r#"{{"attributes":{attributes},"#), 1);
    pipeline.post_json("/records", queued).await.expect(202);
    let mut answer = pipeline.ask("/records/q").await;
    eventually("the record is found queued", async || {
        answer = pipeline.ask("/records/q").await;
        answer.status == 200
    })
    .await;
    assert_eq!(answer.json()["status"], "queued");
    assert!(answer.text.contains(attributes), "{}", answer.text);
}

#[tokio::test]
async fn byte_order_marks_line_ends_and_media_types_are_accepted() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let bom = "\u{feff}";
    let send = async |path: &str, kind: &str, body: String| {
        let request = pipeline.request(Method::POST, path).header("content-type", kind);
        answer(request.header("expect", "100-continue").body(body)).await.expect(202)
    };
    send("/records", "application/json", format!("{bom}{}", record("single", "d"))).await;
    send("/records/batch", "application/json", format!("{bom}[{}]", record("array", "d"))).await;
    let mut expected = vec!["single".to_owned(), "array".to_owned()];
    for (n, kind) in
        ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl"].iter().enumerate()
    {
        let (first, second) = (format!("a{n}"), format!("b{n}"));
        // Two files with byte order marks, one after the other, with CRLF line ends.
        let lines = format!("{bom}{}\r\n{bom}{}\r\n{bom}\r\n", record(&first, "d"), record(&second, "d"));
        let report = send("/records/batch", kind, lines).await;
        assert_eq!(report, json!({"accepted": 2, "rejected": 0, "errors": []}), "{kind}");
        expected.extend([first, second]);
    }
    let mut zeros = record("می\u{200c}خواهم 👩\u{200d}👧", "d");
    zeros["time"] = "2026-01-31T13:00:00.1234560000+01:00".into();
    pipeline.apply(&zeros).await.expect(200);
    expected.push("می\u{200c}خواهم 👩\u{200d}👧".to_owned());
    pipeline.applied().await;
    pipeline.check_exactly_once(&expected).await;
    let found =
        pipeline.list("/records?startTime=2026-01-31T12:00:00.123456Z&endTime=2026-01-31T12:00:00.123457Z").await;
    assert_eq!(found.len(), 1, "{found:?}");
    // A client removed the line feeds of a file.
    let joined = format!("{}{}", record("x", "d"), record("y", "d"));
    let report = lines(&pipeline, joined).await.refused(422, "batch_refused");
    assert!(report["errors"][0]["detail"].as_str().unwrap().contains("--data-binary"), "{report}");
}

#[tokio::test]
async fn look_alike_units_are_refused_and_one_without_threshold_is_reported() {
    let (pipeline, _serve, work) = Pipeline::running(json!({"threshold": null, "thresholds": {"EUR": "1000"}})).await;
    let of_unit = |id: &str, unit: &str| {
        let mut record = record(id, "d");
        (record["unit"], record["value"]) = (unit.into(), "5000".into());
        record
    };
    let units = ["EUR  ", "eur", "EUR\u{200b}", " EUR", "EUR"];
    let records: Vec<Value> = (1..).zip(units).map(|(n, unit)| of_unit(&format!("u{n}"), unit)).collect();
    let report = pipeline.post_json("/records/batch", json!(records).to_string()).await.expect(202);
    let refused: Vec<_> = report["errors"].as_array().unwrap().iter().map(|error| error["detail"].clone()).collect();
    let ends = [
        "ends with a space (U+0020)",
        "has a zero-width space (U+200B) as character 4",
        "starts with a space (U+0020)",
    ];
    assert_eq!(refused, ends.map(|end| format!("{end}; remove it")));
    pipeline.apply(&of_unit("u6", "eur")).await.expect(200);
    pipeline.applied().await;
    let stats = pipeline.get("/stats").await;
    assert_eq!(
        (&stats["processed"], &stats["alerts"], &stats["recordsWithoutThreshold"]),
        (&3.into(), &1.into(), &2.into())
    );
    let lines = work.logged("worker.unit.without_threshold");
    assert_eq!((lines.len(), &lines[0]["unit"]), (1, &"eur".into()), "once: {lines:?}");
}

#[tokio::test]
async fn many_conflicts_make_few_log_lines_that_count_them_all() {
    let (pipeline, _serve, work) = Pipeline::running(json!({})).await;
    pipeline.apply(&record("a", "d")).await.expect(200);
    let conflicts: Vec<Value> = (0..300)
        .map(|n| {
            let mut other = record("a", "d");
            other["value"] = format!("{}", 100 + n).into();
            other
        })
        .collect();
    pipeline.send(&conflicts).await;
    pipeline.applied().await;
    let counted = || {
        let lines = work.logged("worker.record.conflicted");
        assert!(lines.iter().all(|line| line["record_id"] == "a" && line["n"].is_u64()), "{lines:?}");
        let rest = work.logged("telemetry.lines.left_out");
        assert!(rest.iter().all(|line| line["of"] == "worker.record.conflicted"), "{rest:?}");
        (lines.len() as u64, rest.iter().map(|line| line["left_out"].as_u64().unwrap()).sum::<u64>())
    };
    // The number of left-out lines is logged without further conflicts, too.
    eventually("all conflicts are counted", async || counted().0 + counted().1 == 300).await;
    assert!(counted().0 <= 60, "{:?}", counted());
}
