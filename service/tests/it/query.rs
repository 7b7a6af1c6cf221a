//! Queries: sums, lists and formats agree with each other and with a count by hand, page by page.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use reqwest::Method;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::harness::{Pipeline, Process, answer, record};

/// Sixty records over three destinations, four references, two units, both types, five sources and an hour.
fn records() -> Vec<Value> {
    (0..60)
        .map(|n| {
            let mut record = record(&format!("r{n:02}"), ["a", "b,\"c\"", "d é/ü"][n % 3]);
            record["time"] = format!("2026-01-31T12:{n:02}:30Z").into();
            record["reference"] = format!("ref{}", n % 4).into();
            record["unit"] = ["EUR", "min"][n / 3 % 2].into();
            record["type"] = ["positive", "positive", "negative"][n / 2 % 3].into();
            record["sourceId"] = format!("s{}", n * 7 % 5).into();
            record["value"] = format!("{}.{:0<1$}", n * 5, n % 9 + 1).into();
            if n % 4 == 1 {
                record["attributes"] = json!({"text": "two\nlines, \"quoted\"", "n": n});
            }
            record
        })
        .collect()
}

async fn loaded() -> (Pipeline, Process, Process, Vec<Value>) {
    let (pipeline, serve, work) = Pipeline::running(json!({"threshold": "250", "thresholds": {"min": "280"}})).await;
    let records = records();
    pipeline.send(&records).await;
    pipeline.applied().await;
    (pipeline, serve, work, records)
}

/// A filter as a query string, and the same filter as a function.
type Filter = (&'static str, fn(&Value) -> bool);
const FILTERS: &[Filter] = &[
    ("", |_| true),
    ("destinationId=b,%22c%22", |record| record["destinationId"] == "b,\"c\""),
    ("destinationId=d%20%C3%A9%2F%C3%BC&type=negative", |record| {
        record["destinationId"] == "d é/ü" && record["type"] == "negative"
    }),
    ("type=positive&unit=min", |record| record["type"] == "positive" && record["unit"] == "min"),
    ("reference=ref2", |record| record["reference"] == "ref2"),
    ("sourceId=s3&unit=EUR", |record| record["sourceId"] == "s3" && record["unit"] == "EUR"),
    ("startTime=2026-01-31T12:10:30Z&endTime=2026-01-31T13:20:30%2B01:00", |record| {
        let minute = record["time"].as_str().unwrap()[14..16].to_owned();
        ("10".."20").contains(&minute.as_str())
    }),
    ("recordId=r01&recordId=r59&recordId=never", |record| {
        ["r01", "r59"].contains(&record["recordId"].as_str().unwrap())
    }),
    ("alerted=true", above),
    ("alerted=false&destinationId=a", |record| !above(record) && record["destinationId"] == "a"),
    ("unit=nothing", |_| false),
];

fn value(record: &Value) -> Decimal {
    record["value"].as_str().unwrap().parse().unwrap()
}

fn above(record: &Value) -> bool {
    value(record) > if record["unit"] == "min" { 280.into() } else { 250.into() }
}

fn signed(record: &Value) -> Decimal {
    if record["type"] == "negative" { -value(record) } else { value(record) }
}

fn ids<'a>(records: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    records.into_iter().map(|record| record["recordId"].as_str().unwrap().to_owned()).collect()
}

/// Count and total by (group, unit).
fn sums<'a>(
    records: impl IntoIterator<Item = &'a Value>,
    group: impl Fn(&Value) -> String,
) -> BTreeMap<(String, String), (i64, Decimal)> {
    let mut sums: BTreeMap<_, (i64, Decimal)> = BTreeMap::new();
    for record in records {
        let sum = sums.entry((group(record), record["unit"].as_str().unwrap().to_owned())).or_default();
        *sum = (sum.0 + 1, sum.1 + signed(record));
    }
    sums
}

/// Count and total by (group, unit) from the `totals` of returned rows.
fn totals<'a>(
    rows: impl IntoIterator<Item = &'a Value>,
    group: impl Fn(&Value) -> String,
) -> BTreeMap<(String, String), (i64, Decimal)> {
    let total = |row: &Value, total: &Value| {
        let sum = (total["count"].as_i64().unwrap(), total["total"].as_str().unwrap().parse().unwrap());
        ((group(row), total["unit"].as_str().unwrap().to_owned()), sum)
    };
    rows.into_iter()
        .flat_map(|row| row["totals"].as_array().unwrap().iter().map(move |it| (row, it)))
        .map(|(row, it)| total(row, it))
        .collect()
}

fn destination(row: &Value) -> String {
    row["destinationId"].as_str().unwrap().to_owned()
}

async fn text(pipeline: &Pipeline, path: &str, accept: &str) -> String {
    let answer = answer(pipeline.request(Method::GET, path).header("accept", accept)).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    assert!(answer.header("content-type").starts_with(accept), "{:?}", answer.headers);
    answer.text
}

fn rows_of_csv(text: &str) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_reader(text.as_bytes()).deserialize().map(Result::unwrap).collect()
}

#[tokio::test]
async fn lists_sums_and_rollups_agree_with_a_count_by_hand_for_every_filter() {
    let (pipeline, _serve, _work, records) = loaded().await;
    for (query, lets) in FILTERS {
        let expected: Vec<&Value> = records.iter().filter(|record| lets(record)).collect();
        let listed = pipeline.list(&format!("/records?{query}")).await;
        assert_eq!(ids(&listed), ids(expected.clone()), "{query}");
        assert_eq!(listed.len(), expected.len(), "{query}");
        let answer = pipeline.get(&format!("/records/aggregations?{query}")).await;
        let groups = answer["groups"].as_array().unwrap();
        assert_eq!(totals(groups, destination), sums(expected.clone(), destination), "{query}");
        let within: Vec<&Value> = groups.iter().flat_map(|group| group["records"].as_array().unwrap()).collect();
        assert_eq!(ids(within.clone()), ids(expected.clone()), "{query}");
        for group in groups {
            let inside = group["records"].as_array().unwrap();
            assert_eq!(group["count"], inside.len());
            assert!(inside.iter().all(|record| record["destinationId"] == group["destinationId"]));
        }
        assert!(groups.iter().map(destination).is_sorted(), "in the order of destinations");
        let bare = pipeline.get(&format!("/records/aggregations?records=false&{query}")).await;
        assert_eq!(
            totals(bare["groups"].as_array().unwrap(), destination),
            sums(expected.clone(), destination),
            "{query}"
        );
        let whole = pipeline.get(&format!("/records/rollups?distinct=sourceId&{query}")).await;
        let rows = whole["items"].as_array().unwrap();
        assert_eq!(rows.len(), usize::from(!expected.is_empty()), "{query}: one row, or none for nothing");
        assert_eq!(totals(rows, |_| String::new()), sums(expected.clone(), |_| String::new()), "{query}");
        if let Some(row) = rows.first() {
            let sources: BTreeSet<String> = expected.iter().map(|record| record["sourceId"].to_string()).collect();
            assert_eq!((&row["count"], &row["distinctSourceIds"]), (&expected.len().into(), &sources.len().into()));
        }
    }
    // Each field to group by, and each window.
    for field in ["destinationId", "reference", "sourceId", "type", "unit"] {
        let of = |record: &Value| record[field].as_str().unwrap().to_owned();
        let answer = pipeline.get(&format!("/records/rollups?groupBy={field}")).await;
        assert_eq!(totals(answer["items"].as_array().unwrap(), of), sums(&records, of), "{field}");
    }
    let both = pipeline.get("/records/rollups?groupBy=type,reference").await;
    let of = |record: &Value| format!("{}{}", record["type"], record["reference"]);
    assert_eq!(totals(both["items"].as_array().unwrap(), of), sums(&records, of));
    for (window, minutes) in [("1m", 1), ("5m", 5), ("15m", 15), ("1h", 60), ("1d", 24 * 60)] {
        let answer = pipeline.get(&format!("/records/rollups?window={window}")).await;
        let rows = answer["items"].as_array().unwrap();
        let start = |minute: usize| {
            let minute = (12 * 60 + minute) / minutes * minutes;
            format!("2026-01-31T{:02}:{:02}:00Z", minute / 60, minute % 60)
        };
        let of = |record: &Value| start(record["time"].as_str().unwrap()[14..16].parse().unwrap());
        assert_eq!(totals(rows, |row| row["windowStart"].as_str().unwrap().to_owned()), sums(&records, of), "{window}");
        assert!(rows.iter().all(|row| row["windowEnd"].as_str() > row["windowStart"].as_str()));
    }
}

#[tokio::test]
async fn json_lines_and_csv_have_the_same_content() {
    let (pipeline, _serve, _work, _records) = loaded().await;
    for query in ["", "type=negative", "unit=nothing"] {
        let path = format!("/records/aggregations?{query}");
        let json: Value = serde_json::from_str(&text(&pipeline, &path, "application/json").await).unwrap();
        let groups = json["groups"].as_array().unwrap();
        let inside: Vec<Value> = groups.iter().flat_map(|group| group["records"].as_array().unwrap().clone()).collect();

        let lines = text(&pipeline, &path, "application/x-ndjson").await;
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (end, lines) = lines.split_last().unwrap();
        assert_eq!(
            (&end["end"]["groups"], &end["end"]["records"]),
            (&groups.len().into(), &inside.len().into()),
            "{query}"
        );
        let read: Vec<Value> = lines.iter().filter_map(|line| line.get("record").cloned()).collect();
        assert_eq!(read, inside, "{query}");
        let read: Vec<Value> = lines.iter().filter_map(|line| line.get("group").cloned()).collect();
        let bare = pipeline.get(&format!("{path}&records=false")).await;
        assert_eq!(Value::from(read), bare["groups"], "{query}");

        let rows = rows_of_csv(&text(&pipeline, &path, "text/csv").await);
        assert_eq!(rows.len(), inside.len(), "{query}");
        for (row, record) in rows.iter().zip(&inside) {
            for (field, value) in record.as_object().unwrap() {
                if field == "attributes" {
                    assert_eq!(serde_json::from_str::<Value>(&row[field]).unwrap(), *value);
                } else {
                    assert_eq!(row[field], value.as_str().unwrap());
                }
            }
            assert_eq!(row["attributes"].is_empty(), record.get("attributes").is_none());
        }
        let rows = rows_of_csv(&text(&pipeline, &format!("{path}&records=false"), "text/csv").await);
        let read: BTreeMap<_, _> = rows
            .iter()
            .map(|row| {
                let sum = (row["count"].parse().unwrap(), row["total"].parse().unwrap());
                ((row["destinationId"].clone(), row["unit"].clone()), sum)
            })
            .collect();
        assert_eq!(read, totals(groups, destination), "{query}");

        let path = format!("/records/rollups?window=15m&groupBy=destinationId,unit&{query}");
        let json: Value = serde_json::from_str(&text(&pipeline, &path, "application/json").await).unwrap();
        let lines = text(&pipeline, &path, "application/x-ndjson").await;
        let mut lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.pop().unwrap()["end"]["rows"], json["items"].as_array().unwrap().len());
        let read: Vec<Value> = lines.into_iter().map(|line| line["row"].clone()).collect();
        assert_eq!(Value::from(read), json["items"], "{query}");
        let rows = rows_of_csv(&text(&pipeline, &path, "text/csv").await);
        assert_eq!(rows.len(), json["items"].as_array().unwrap().len());
        for (row, item) in rows.iter().zip(json["items"].as_array().unwrap()) {
            for field in ["windowStart", "windowEnd", "destinationId", "unit"] {
                assert_eq!(row[field], item[field].as_str().unwrap());
            }
            assert_eq!(
                (&row["total"], row["count"].parse().unwrap()),
                (&item["totals"][0]["total"].as_str().unwrap().to_owned(), item["count"].as_i64().unwrap())
            );
        }
    }
}

#[tokio::test]
async fn pages_list_each_item_once_in_order_and_cursors_are_bound_to_filters() {
    let (pipeline, _serve, _work, records) = loaded().await;
    for record in &records[..9] {
        let mut other = record.clone();
        other["unit"] = "other".into();
        pipeline.apply(&other).await.refused(409, "record_conflict");
    }
    pipeline.send(&records[..9]).await;
    pipeline.applied().await;
    for (path, filter, limit, whole) in [
        ("/records", "", 7, 60),
        ("/records", "type=positive&", 3, records.iter().filter(|record| record["type"] == "positive").count()),
        ("/records", "", 60, 60),
        ("/conflicts", "", 2, 9),
        ("/audit", "", 11, 1 + 3 * 60 + records.iter().filter(|record| above(record)).count() + 3 * 9 + 3 * 9),
        ("/audit", "action=DROPPED&", 4, 9),
    ] {
        let first = format!("{path}?{filter}limit={limit}");
        let mut page = pipeline.get(&first).await;
        let (mut items, mut cursors) = (Vec::new(), Vec::new());
        loop {
            let of_page = page["items"].as_array().unwrap();
            assert!(of_page.len() <= limit && !of_page.is_empty(), "{first}");
            items.extend(of_page.clone());
            let Some(cursor) = page["nextCursor"].as_str() else { break };
            assert_eq!(of_page.len(), limit, "{first}: only the last page is short");
            cursors.push(cursor.to_owned());
            page = pipeline.get(&format!("{first}&cursor={cursor}")).await;
        }
        let facts = || items.iter().map(|item| item["action"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(items.len(), whole, "{first}: {:?}", if path == "/audit" { facts() } else { Vec::new() });
        if path == "/audit" && filter.is_empty() {
            let stored = pipeline.list("/audit").await;
            assert_eq!(stored, items, "the size of a page does not change the items");
        }
        if path == "/records" {
            assert_eq!(ids(&items).len(), whole, "no record is listed twice");
            let stored = pipeline.list(&format!("{path}?{filter}")).await;
            assert_eq!(stored, items);
        }
        // A cursor is invalid with other filters, on another path, or when it is changed.
        if let Some(cursor) = cursors.first() {
            for other in [format!("{path}?destinationId=a&limit={limit}"), "/dead-letters?".to_owned()] {
                pipeline.ask(&format!("{other}&cursor={cursor}")).await.refused(400, "invalid_cursor");
            }
            pipeline.ask(&format!("{first}&cursor={}", &cursor[1..])).await.refused(400, "invalid_cursor");
            // The size of a page may change.
            pipeline.ask(&format!("{path}?{filter}limit=1&cursor={cursor}")).await.expect(200);
        }
    }
}

#[tokio::test]
async fn a_reader_that_follows_live_workers_gets_every_record_once() {
    const COUNT: usize = 1_000;
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 8})).await;
    let _other = pipeline.work();
    let sent: Vec<Value> = (0..COUNT).map(|n| record(&format!("{n:04}"), &format!("d{}", n % 40))).collect();
    let sending = join_all(sent.chunks(20).map(|records| pipeline.send(records)));
    let following = async {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        while seen.len() < COUNT {
            let page = pipeline.get(&format!("/records?order=processed&limit=30{cursor}")).await;
            seen.extend(page["items"].as_array().unwrap().clone());
            cursor = format!("&cursor={}", page["nextCursor"].as_str().expect("a cursor on every page"));
        }
        (seen, cursor)
    };
    let (_, (seen, cursor)) = tokio::join!(sending, following);
    assert_eq!((seen.len(), ids(&seen)), (COUNT, ids(&sent)));
    pipeline.applied().await;
    let rest = pipeline.get(&format!("/records?order=processed{cursor}")).await;
    assert_eq!(rest["items"], json!([]), "nothing follows");
    for destination in ["d0", "d39"] {
        let of = |records: &[Value]| {
            let of = records.iter().filter(|record| record["destinationId"] == destination);
            of.map(|record| record["recordId"].clone()).collect::<Vec<_>>()
        };
        let log = pipeline.list(&format!("/records?destinationId={destination}")).await;
        assert_eq!(of(&seen), of(&log), "the order of processing");
    }
}

#[tokio::test]
async fn paths_without_a_version_mean_v1() {
    let (pipeline, _serve, _work, records) = loaded().await;
    let paths = [
        "/records?limit=5",
        "/records/r01",
        "/records/aggregations?records=false",
        "/records/rollups?window=1h",
        "/audit?limit=10",
        "/audit/summary",
        "/conflicts",
        "/dead-letters",
        "/openapi.json",
        "/health",
        "/ready",
    ];
    join_all(paths.map(async |path| {
        let (bare, versioned) = (pipeline.ask(path).await, pipeline.ask(&format!("/v1{path}")).await);
        assert_eq!((bare.status, versioned.status), (200, 200), "{path}");
        let same = |answer: &str| {
            let mut json: Value = serde_json::from_str(answer).unwrap();
            json.as_object_mut().unwrap().remove("asOf");
            json
        };
        assert_eq!(same(&bare.text), same(&versioned.text), "{path}");
    }))
    .await;
    let mut new = records[0].clone();
    new["recordId"] = "new".into();
    pipeline.post_json("/v1/records", new.to_string()).await.expect(202);
    pipeline.post_json("/v1/records/batch", json!([new]).to_string()).await.expect(202);
    pipeline.applied().await;
    assert_eq!(pipeline.get("/v1/records/new").await["duplicates"], 1);
    pipeline.act("/v1/dead-letters/0-d1/replay").await.refused(404, "not_found");
    let docs = pipeline.ask("/docs").await;
    assert_eq!(docs.status, 200);
    for elsewhere in ["src=\"http", "src=\"//", "rel=\"stylesheet\" href"] {
        assert!(!docs.text.contains(elsewhere), "the page works without the internet");
    }
    // serve returns the committed file.
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json")).unwrap();
    assert!(pipeline.ask("/openapi.json").await.text == committed, "run: millrace openapi > docs/openapi.json");
}
