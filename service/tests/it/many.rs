//! Many records in one request and in many: NDJSON, gzip, the bound of errors, and a load with exact totals.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
};

use flate2::{Compression, write::GzEncoder};
use reqwest::Method;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::{
    harness::{Pipeline, answer, check_stream, eventually, record},
    refuse::lines,
};

#[tokio::test]
async fn twenty_thousand_lines_are_accepted_in_one_request_plain_or_gzip() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let body = |from: usize, to: usize| -> (String, Vec<String>) {
        let ids: Vec<String> = (from..to).map(|n| format!("r{n}")).collect();
        // One line is blank, one ends with CRLF, and one is longer than a record may be.
        let mut lines: Vec<String> = ids.iter().map(|id| record(id, &format!("d{}", id.len())).to_string()).collect();
        lines[7].push('\r');
        lines.insert(100, "  ".to_owned());
        lines.insert(5_000, format!("{{\"recordId\":\"{}\"}}", "x".repeat(40_000)));
        (lines.join("\n"), ids)
    };
    let (plain, mut ids) = body(0, 20_000);
    let report = lines(&pipeline, plain).await.expect(202);
    let error = &report["errors"][0];
    assert_eq!((&report["accepted"], &report["rejected"]), (&20_000.into(), &1.into()));
    assert_eq!((&error["index"], &error["code"]), (&4_999.into(), &"too_large".into()), "blank lines are not counted");
    assert!(report.get("nextIndex").is_none(), "all of it was read");

    let (text, more) = body(20_000, 26_000);
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(text.as_bytes()).unwrap();
    let request = pipeline.request(Method::POST, "/records/batch").header("content-type", "application/x-ndjson");
    let report = answer(request.header("content-encoding", "gzip").body(packed.finish().unwrap())).await.expect(202);
    assert_eq!(report["accepted"], 6_000);
    ids.extend(more);
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
    let groups = pipeline.get("/records/rollups?groupBy=destinationId").await;
    let counts: BTreeMap<&str, i64> = groups["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["destinationId"].as_str().unwrap(), row["count"].as_i64().unwrap()))
        .collect();
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    ids.iter().for_each(|id| *expected.entry(format!("d{}", id.len())).or_default() += 1);
    assert!(
        counts
            .iter()
            .map(|(name, count)| (*name, *count))
            .eq(expected.iter().map(|(name, count)| (name.as_str(), *count)))
    );
}

#[tokio::test]
async fn after_a_thousand_errors_reading_stops_and_next_index_is_returned() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    // Every third line is good: the 1,000th error is at index 1,499, and reading stops there or a little later.
    let all: Vec<String> = (0..9_000)
        .map(|n| if n % 3 == 0 { record(&format!("r{n}"), "d").to_string() } else { format!("[{n}]") })
        .collect();
    let (mut next, mut accepted, mut errors, mut rounds) = (0, 0, Vec::new(), 0);
    loop {
        let report = lines(&pipeline, all[next..].join("\n")).await.expect(202);
        accepted += report["accepted"].as_u64().unwrap();
        let found = report["errors"].as_array().unwrap();
        assert_eq!(report["rejected"], found.len());
        errors.extend(found.iter().map(|error| next + usize::try_from(error["index"].as_u64().unwrap()).unwrap()));
        rounds += 1;
        let Some(index) = report["nextIndex"].as_u64() else { break };
        assert_eq!(found.len(), 1_000);
        next += usize::try_from(index).unwrap();
    }
    assert_eq!((accepted, rounds), (3_000, 7));
    let expected: Vec<usize> = (0..9_000).filter(|n| n % 3 != 0).collect();
    assert_eq!(errors, expected, "each wrong line is reported once");
    pipeline.applied().await;
    let ids: Vec<String> = (0..9_000).step_by(3).map(|n| format!("r{n}")).collect();
    pipeline.check_exactly_once(&ids).await;
    // Without an accepted record, the problem document has `nextIndex`.
    let bad = vec!["x"; 3_000].join("\n");
    let problem = lines(&pipeline, bad).await.refused(422, "batch_refused");
    assert_eq!((problem["errors"].as_array().unwrap().len(), &problem["nextIndex"]), (1_000, &1_000.into()));
}

#[tokio::test]
async fn an_empty_batch_is_no_error() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let nothing = json!({"accepted": 0, "rejected": 0, "errors": []});
    assert_eq!(pipeline.post_json("/records/batch", "[]").await.expect(202), nothing);
    assert_eq!(lines(&pipeline, "\n\n").await.expect(202), nothing);
}

/// `millrace send` generates 20,000 records, 30 % of them duplicates; two workers apply them.
#[tokio::test]
async fn a_load_with_duplicates_ends_in_exact_totals() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"threshold": "900"})).await;
    let _second = pipeline.work();
    let url = pipeline.url();
    let key = crate::harness::KEY;
    let flags = [
        "--generate",
        "20000",
        "--duplicates",
        "0.3",
        "--keys",
        "100",
        "--seed",
        "7",
        "--url",
        &url,
        "--key",
        key,
        "--json",
    ];
    let sent = pipeline.command("send", &flags).await;
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let summary: Value = serde_json::from_slice(&sent.stdout).unwrap();
    assert_eq!((&summary["accepted"], &summary["rejected"]), (&20_000.into(), &0.into()), "{summary}");
    pipeline.applied().await;
    let stats = pipeline.get("/stats").await;
    let counts =
        ["received", "processed", "duplicates", "conflicts", "backlog", "lost"].map(|name| stats[name].as_i64());
    assert_eq!(counts, [20_000, 14_000, 6_000, 0, 0, 0].map(Some), "{stats}");
    // Sums over the notifications are the totals, and running sums are the summaries.
    let entries = pipeline.sink_entries("notifications").await;
    let ids: Vec<String> = entries.iter().map(|entry| entry.record_id().to_owned()).collect();
    assert_eq!(ids.len(), 14_000);
    check_stream(&entries, &ids);
    let mut totals: BTreeMap<(String, String), (i64, Decimal)> = BTreeMap::new();
    let mut keys: HashMap<_, (i64, Decimal)> = HashMap::new();
    let mut above = 0;
    for entry in &entries {
        let record = &entry.data["record"];
        let field = |name: &str| record[name].as_str().unwrap().to_owned();
        let value: Decimal = field("value").parse().unwrap();
        let signed = if record["type"] == "negative" { -value } else { value };
        above += i64::from(value > 900.into());
        let total = totals.entry((field("destinationId"), field("unit"))).or_default();
        *total = (total.0 + 1, total.1 + signed);
        let before = keys.entry((field("destinationId"), field("reference"), field("unit"))).or_default();
        let summary = &entry.data["summary"];
        assert_eq!(summary["previousCount"], before.0);
        assert_eq!(summary["previousTotal"].as_str().unwrap().parse::<Decimal>().unwrap(), before.1);
        *before = (before.0 + 1, before.1 + signed);
    }
    let groups = pipeline.get("/records/aggregations?records=false").await;
    let mut found = BTreeMap::new();
    for group in groups["groups"].as_array().unwrap() {
        for total in group["totals"].as_array().unwrap() {
            let name =
                (group["destinationId"].as_str().unwrap().to_owned(), total["unit"].as_str().unwrap().to_owned());
            found.insert(name, (total["count"].as_i64().unwrap(), total["total"].as_str().unwrap().parse().unwrap()));
        }
    }
    assert_eq!(found, totals);
    assert_eq!(stats["destinations"], groups["groups"].as_array().unwrap().len());
    assert!(above > 0, "the threshold is within the load");
    assert_eq!(stats["alerts"], above);
    assert_eq!(pipeline.sink_entries("alerts").await.len() as i64, above);
    pipeline.verify().await;
}

/// Both roles are replaced, one process after the other, while a client sends.
#[tokio::test]
async fn a_rolling_restart_in_mid_load_loses_and_doubles_nothing() {
    let (pipeline, mut serve, mut work) = Pipeline::running(json!({})).await;
    let load = crate::harness::Load::new("r", 4_000);
    let stop = async |process: &mut crate::harness::Process| {
        let begun = std::time::Instant::now();
        process.stop().await;
        assert!(begun.elapsed().as_secs() < 30, "it took {:?} to stop", begun.elapsed());
    };
    let restarts = async {
        let applied = async |n: i64| {
            eventually("more records are applied", async || pipeline.number("select count(*) from records").await > n)
                .await;
        };
        applied(0).await;
        let next = pipeline.serve().await;
        stop(&mut serve).await;
        applied(500).await;
        let successor = pipeline.work();
        stop(&mut work).await;
        (next, successor)
    };
    let ((), _successors) = tokio::join!(pipeline.send_through(&load.records), restarts);
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!(
        (&stats["processed"], &stats["conflicts"], &stats["lost"]),
        (&load.ids.len().into(), &0.into(), &0.into())
    );
}
