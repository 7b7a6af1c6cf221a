//! Thresholds on totals: each crossing raises one alert, of the record that made it, whatever dies meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::{
    harness::{Load, Pipeline, SinkEntry, eventually, obtain, record, sink},
    webhooks::Hooked,
};

/// An alert: id, threshold, steps, total before, total with the record.
type Alert = (String, String, i64, Decimal, Decimal);

fn thresholds() -> Value {
    json!([
        {"name": "key", "unit": "EUR", "above": "300", "every": "150.5", "per": "Key"},
        {"name": "low", "unit": "EUR", "below": "0", "per": "Destination"},
        {"name": "hour", "unit": "EUR", "above": "400", "every": "100", "per": "Destination", "rollup": "hourly"},
    ])
}

fn spec() -> Value {
    json!({
        "totalThresholds": thresholds(),
        "rollups": [{"name": "hourly", "window": "1h", "groupBy": ["destinationId", "sourceId"]}],
        "sinks": [sink("notifications", "Processed"), sink("total-alerts", "TotalAlert")],
    })
}

/// Records over five hours.
fn load(prefix: &str, start: usize, n: usize) -> Load {
    let mut load = Load::from(prefix, start, n);
    for record in &mut load.records {
        let n = record["attributes"]["n"].as_u64().unwrap();
        record["time"] = format!("2026-01-31T{:02}:59:59.999999Z", 19 + n % 5).into();
        record["sourceId"] = format!("source-{}", n % 3).into();
    }
    load
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn decimal(value: &Value) -> Decimal {
    value.as_str().unwrap().parse().unwrap()
}

/// The alerts that follow from the notifications of all records, in the order of each shard, by adding up and looking at each
/// step. `from`: thresholds on a rollup begin with this number of each shard.
fn by_hand(notifications: &[SinkEntry], from: &HashMap<u64, i64>) -> BTreeMap<u64, Vec<Alert>> {
    let mut totals: HashMap<Vec<String>, Decimal> = HashMap::new();
    let mut alerts: BTreeMap<u64, Vec<Alert>> = BTreeMap::new();
    let thresholds = thresholds();
    for entry in notifications {
        let record = &entry.data["record"];
        let (shard, seq) = entry.number();
        let value = decimal(&record["value"]);
        let signed = if record["type"] == "positive" { value } else { -value };
        let mut changed: BTreeSet<Vec<String>> = BTreeSet::new();
        for threshold in thresholds.as_array().unwrap() {
            let mut total: Vec<String> = vec![text(threshold, "rollup").into(), text(record, "destinationId").into()];
            total.extend((threshold["per"] == "Key").then(|| text(record, "reference").to_owned()));
            total.extend((total[0] == "hourly").then(|| text(record, "time")[..13].to_owned()));
            let before = totals.get(&total).copied().unwrap_or_default();
            changed.insert(total);
            let bound = threshold.get("above").or(threshold.get("below")).unwrap();
            let above = threshold.get("above").is_some();
            let over = |total: Decimal| if above { total - decimal(bound) } else { decimal(bound) - total };
            let (mut steps, mut at) = (0, Decimal::ZERO);
            while over(before + signed) > at {
                steps += i64::from(over(before) <= at);
                let Some(every) = threshold.get("every") else { break };
                at += decimal(every);
            }
            let is_decided = threshold["rollup"].is_null() || from.get(&shard).is_none_or(|from| *from <= seq);
            if steps > 0 && is_decided {
                let name = text(threshold, "name").to_owned();
                let id = format!("{}-total-{name}", entry.id);
                alerts.entry(shard).or_default().push((id, name, steps, before, before + signed));
            }
        }
        for total in changed {
            *totals.entry(total).or_default() += signed;
        }
    }
    alerts
}

fn published(entries: &[SinkEntry]) -> BTreeMap<u64, Vec<Alert>> {
    let mut alerts: BTreeMap<u64, Vec<Alert>> = BTreeMap::new();
    for entry in entries {
        let alert = &entry.data["totalAlert"];
        assert_eq!(entry.kind, "record.total_alert");
        let (name, steps) = (text(alert, "name").to_owned(), alert["steps"].as_i64().unwrap());
        let (before, total) = (decimal(&alert["previousTotal"]), decimal(&alert["total"]));
        alerts.entry(entry.number().0).or_default().push((entry.id.clone(), name, steps, before, total));
    }
    alerts
}

/// Compares the published alerts with those that follow from the notifications, and with the counts. Returns them.
async fn check(pipeline: &Pipeline, from: &HashMap<u64, i64>) -> BTreeMap<u64, Vec<Alert>> {
    pipeline.applied().await;
    let expected = by_hand(&pipeline.sink_entries("notifications").await, from);
    let found = published(&pipeline.sink_entries("total-alerts").await);
    assert_eq!(found, expected);
    let count: usize = found.values().map(Vec::len).sum();
    assert_eq!(pipeline.get("/stats").await["totalAlerts"], count);
    pipeline.verify().await;
    found
}

#[tokio::test]
async fn each_crossing_is_published_once_while_workers_die() {
    let pipeline = Pipeline::new(spec()).await;
    let _serve = pipeline.serve().await;
    let faults = ["after_commit:3", "before_commit:3", "before_publish:2", "after_publish:3"];
    for (n, fault) in faults.into_iter().enumerate() {
        let mut dying = pipeline.work_with(&[("MILLRACE_FAULT", fault), ("MILLRACE_BATCH", "20")]);
        let records = load("r", n * 500, 500).records;
        pipeline.send(&records).await;
        dying.died_at_its_fault().await;
        let mut work = pipeline.work_with(&[("MILLRACE_BATCH", "50")]);
        pipeline.applied().await;
        work.stop().await;
    }
    let found = check(&pipeline, &HashMap::new()).await;
    let names: BTreeSet<&str> = found.values().flatten().map(|alert| alert.1.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["hour", "key", "low"]));
    let several = found.values().flatten().filter(|alert| alert.2 > 1).count();
    let ids: BTreeSet<&str> = found.values().flatten().filter_map(|alert| alert.0.split("-total").next()).collect();
    let all: usize = found.values().map(Vec::len).sum();
    assert!(several > 0 && ids.len() < all, "a record passes several steps, and one raises several alerts");
}

#[tokio::test]
async fn a_threshold_on_a_rollup_that_is_declared_under_load_begins_once_the_rollup_is_built() {
    let mut without = spec();
    without["rollups"] = json!([]);
    without["totalThresholds"].as_array_mut().unwrap().truncate(2);
    let pipeline = Pipeline::new(without).await;
    let _serve = pipeline.serve().await;
    let small = [("MILLRACE_BATCH", "20")];
    let (_first, _second) = (pipeline.work_with(&small), pipeline.work_with(&small));
    pipeline.send(&load("r", 0, 1_500).records).await;
    pipeline.applied().await;
    let declare = async {
        eventually("some more are applied", async || pipeline.number("select count(*) from records").await > 1_600)
            .await;
        pipeline.change(|of| (of["rollups"], of["totalThresholds"]) = (spec()["rollups"].clone(), thresholds()));
    };
    tokio::join!(async { pipeline.send(&load("r", 1_500, 3_000).records).await }, declare);
    eventually("every shard decides", async || {
        pipeline.send(&load("more", 0, 40).records).await;
        pipeline.applied().await;
        pipeline.number("select count(*) from rollup_builds where decided_from is not null").await
            == pipeline.shards() as i64
    })
    .await;
    pipeline.send(&load("r", 4_500, 1_000).records).await;
    pipeline.applied().await;
    let from: Vec<(i32, i64)> =
        sqlx::query_as("select shard, decided_from from rollup_builds").fetch_all(&pipeline.sql).await.unwrap();
    let from: HashMap<u64, i64> = from.into_iter().map(|(shard, from)| (shard as u64, from)).collect();
    assert!(from.values().any(|from| *from > 1), "{from:?}");
    let found = check(&pipeline, &from).await;
    assert!(found.values().flatten().any(|alert| alert.1 == "hour"));
}

#[tokio::test]
async fn a_changed_threshold_fires_for_later_crossings_only() {
    let threshold = |above: &str| json!([{"name": "a", "unit": "EUR", "above": above, "per": "Destination"}]);
    let sinks = json!([sink("total-alerts", "TotalAlert")]);
    let pipeline = Pipeline::new(json!({"shards": 1, "totalThresholds": threshold("100"), "sinks": sinks})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let send = async |id: &str, value: &str, kind: &str| {
        let mut record = record(id, "account");
        (record["value"], record["type"]) = (value.into(), kind.into());
        pipeline.send(&[record]).await;
        pipeline.applied().await;
    };
    let change = async |above: &str| {
        let version = pipeline.number("select max(version) from policies").await;
        pipeline.change(|spec| spec["totalThresholds"] = threshold(above));
        eventually("the shard runs the changed version", async || {
            pipeline.number("select min(policy_version) from shards").await > version
        })
        .await;
    };
    send("r-1", "150.00", "positive").await;
    change("120").await;
    send("r-2", "1", "positive").await;
    change("200").await;
    send("r-3", "49", "positive").await;
    send("r-4", "0.5", "positive").await;
    send("r-5", "100", "negative").await;
    send("r-6", "100", "positive").await;
    let alerts = pipeline.sink_entries("total-alerts").await;
    let shown = |entry: &SinkEntry| {
        let alert = &entry.data["totalAlert"];
        let text = |field: &str| text(alert, field).to_owned();
        (entry.record_id().to_owned(), entry.id.clone(), text("above"), text("previousTotal"), text("total"))
    };
    let shown: Vec<_> = alerts.iter().map(shown).collect();
    let row = |record: &str, id: &str, above: &str, before: &str, total: &str| {
        (record.to_owned(), id.to_owned(), above.to_owned(), before.to_owned(), total.to_owned())
    };
    assert_eq!(
        shown,
        [
            row("r-1", "0-1-total-a", "100", "0.00", "150.00"),
            row("r-4", "0-4-total-a", "200", "200.0", "200.5"),
            row("r-6", "0-6-total-a", "200", "100.5", "200.5"),
        ]
    );
    let history = pipeline.get("/records/r-4").await;
    assert_eq!(history["totalAlerts"][0]["total"], "200.5", "{history}");
    assert_eq!(history["published"], json!([{"sink": "total-alerts", "state": "published"}]));
    assert_eq!(pipeline.get("/records/r-3").await["totalAlerts"], json!([]));
    pipeline.verify().await;
}

#[tokio::test]
async fn a_reversal_takes_a_total_over_a_threshold_as_any_record_does() {
    let thresholds = json!([
        {"name": "low", "unit": "EUR", "below": "10", "per": "Key"},
        {"name": "high", "unit": "EUR", "above": "40", "per": "Destination"},
    ]);
    let sinks = json!([sink("total-alerts", "TotalAlert")]);
    let pipeline = Pipeline::new(json!({"shards": 1, "totalThresholds": thresholds, "sinks": sinks})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let mut paid = record("paid", "account");
    paid["value"] = "50.00".into();
    pipeline.send(&[paid]).await;
    pipeline.applied().await;
    let reverse = async |body: Value| {
        pipeline.posting("/records/paid/reversal", body.to_string()).send().await.unwrap();
        pipeline.applied().await;
    };
    // The second one takes what remains, which only the commit decides; the same again counts nowhere.
    reverse(json!({"recordId": "part", "value": "20.00", "reason": "one was broken"})).await;
    reverse(json!({"reason": "cancelled"})).await;
    reverse(json!({"reason": "cancelled"})).await;
    let alerts = published(&pipeline.sink_entries("total-alerts").await).remove(&0).unwrap();
    let row = |id: &str, name: &str, before: &str, total: &str| {
        (id.to_owned(), name.to_owned(), 1, before.parse::<Decimal>().unwrap(), total.parse::<Decimal>().unwrap())
    };
    assert_eq!(alerts, [row("0-1-total-high", "high", "0", "50"), row("0-3-total-low", "low", "30", "0")]);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_webhook_delivers_each_alert_of_a_record_and_repeats_them_together() {
    let hooked = Hooked::new(1, |sink| sink["event"] = "TotalAlert".into()).await;
    let thresholds = json!([
        {"name": "a", "unit": "EUR", "above": "0", "per": "Key"},
        {"name": "b", "unit": "EUR", "above": "0", "per": "Destination"},
    ]);
    hooked.pipeline.change(|spec| spec["totalThresholds"] = thresholds);
    hooked.receiver.answer_by_destination(|destination| if destination == "bad" { 500 } else { 204 });
    let _work = hooked.work();
    eventually("the shard runs the changed version", async || {
        hooked.pipeline.number("select min(policy_version) from shards").await == 2
    })
    .await;
    hooked.pipeline.send(&[record("r-1", "bad"), record("r-2", "good"), record("r-3", "good")]).await;
    hooked.received(2).await;
    let item =
        obtain("the delivery that failed", async || hooked.pipeline.get("/deliveries").await["items"].get(0).cloned())
            .await;
    assert_eq!((&item["id"], &item["destinationId"]), (&json!("hooks.0-1-total"), &json!("bad")));
    hooked.receiver.answer_by_destination(|_| 204);
    hooked.pipeline.act("/deliveries/hooks.0-1-total/retry").await.expect(202);
    hooked.received(4).await;
    let ids: BTreeSet<String> = hooked.receiver.received().iter().map(|one| text(&one.body, "id").to_owned()).collect();
    assert_eq!(ids, ["0-1-total-a", "0-1-total-b", "0-2-total-a", "0-2-total-b"].map(str::to_owned).into());
    eventually("nothing waits", async || hooked.pipeline.get("/deliveries").await["items"] == json!([])).await;
}

#[tokio::test]
async fn a_full_stream_takes_the_alerts_of_a_record_together() {
    let names: Vec<String> = (0..16).map(|n| format!("t{n}")).collect();
    let threshold = |name: &String| json!({"name": name, "unit": "EUR", "above": "0", "per": "Destination"});
    let mut full = sink("total-alerts", "TotalAlert");
    full["redisStream"]["maxLength"] = 40.into();
    let thresholds: Vec<Value> = names.iter().map(threshold).collect();
    let spec = json!({"shards": 1, "totalThresholds": thresholds, "sinks": [full]});
    let pipeline = Pipeline::new(spec).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let stream = pipeline.stream("total-alerts");
    let _: String = pipeline.redis(&["XGROUP", "CREATE", &stream, "readers", "0", "MKSTREAM"]).await;
    pipeline.send(&[record("r-1", "a"), record("r-2", "b"), record("r-3", "c")]).await;
    eventually("the stream is full", async || {
        pipeline.number("select count(*) from sink_states where state = 'waiting'").await == 1
    })
    .await;
    let ids = async || -> Vec<String> { pipeline.entries(&stream).await.into_iter().map(|entry| entry.id).collect() };
    let of = |seq: u8| names.iter().map(move |name| format!("0-{seq}-total-{name}"));
    assert_eq!(ids().await, of(1).chain(of(2)).collect::<Vec<_>>(), "no part of the third");
    for entry in pipeline.redis::<redis::streams::StreamRangeReply>(&["XRANGE", &stream, "-", "+"]).await.ids {
        let read = ["XREADGROUP", "GROUP", "readers", "one", "COUNT", "1", "STREAMS", &stream, ">"];
        let _: redis::Value = pipeline.redis(&read).await;
        let _: i64 = pipeline.redis(&["XACK", &stream, "readers", &entry.id]).await;
    }
    pipeline.applied().await;
    assert_eq!(ids().await.into_iter().rev().take(16).rev().collect::<Vec<_>>(), of(3).collect::<Vec<_>>());
    pipeline.verify().await;
}
