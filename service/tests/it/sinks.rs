//! Sinks are added, removed, moved, filled, broken and resumed while the pipeline runs.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, Process, SinkEntry, check_stream, eventually, obtain, record, shared, sink};

/// A pipeline of one shard that processed a load.
async fn running(spec: Value) -> (Pipeline, Process, Process, Load) {
    let mut spec = spec;
    spec["shards"] = 1.into();
    let pipeline = Pipeline::new(spec).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    pipeline.send(&load.records).await;
    (pipeline, serve, work, load)
}

/// State and detail of a sink in its lowest shard that has one.
async fn state(pipeline: &Pipeline, sink: &str) -> Option<(String, String)> {
    sqlx::query_as("select state, detail from sink_states where sink = $1 order by shard limit 1")
        .bind(sink)
        .fetch_optional(&pipeline.sql)
        .await
        .unwrap()
}

/// Waits until a sink is in this state; returns its detail.
async fn becomes(pipeline: &Pipeline, sink: &str, wanted: &str) -> String {
    obtain(&format!("{sink} is {wanted}"), async || match state(pipeline, sink).await {
        Some((state, detail)) if state == wanted => Some(detail),
        _ => None,
    })
    .await
}

fn bounded(name: &str, event: &str, most: u64, overflow: &str) -> Value {
    json!({"name": name, "event": event, "redisStream": {"maxLength": most, "overflow": overflow}})
}

fn add(pipeline: &Pipeline, sink: Value) {
    pipeline.change(|spec| spec["sinks"].as_array_mut().unwrap().push(sink));
}

async fn is_started(pipeline: &Pipeline, sink: &str) -> bool {
    sqlx::query_scalar("select exists (select from sinks where name = $1 and started and not removed)")
        .bind(sink)
        .fetch_one(&pipeline.sql)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_sink_that_is_added_starts_now_or_at_the_beginning() {
    let (pipeline, _serve, mut work, mut load) = running(json!({})).await;
    // Postgres stores zeros of all spellings in one form.
    let zeros = ["0.00", "0", "0.0"].into_iter().enumerate().map(|(n, value)| {
        let mut zero = record(&format!("zero-{n}"), "zero");
        (zero["value"], zero["type"]) = (value.into(), "negative".into());
        zero
    });
    pipeline.send(&zeros.collect::<Vec<_>>()).await;
    pipeline.applied().await;
    // A new worker has no recent commits.
    work.stop().await;
    let work = pipeline.work();
    let mut whole = sink("whole", "Processed");
    whole["from"] = json!({"position": "Beginning"});
    add(&pipeline, sink("late", "Processed"));
    add(&pipeline, whole);
    for sink in ["late", "whole"] {
        eventually("the sink is started", async || is_started(&pipeline, sink).await).await;
    }
    let more = Load::from("r", load.ids.len(), 100);
    load.ids.extend((0..3).map(|n| format!("zero-{n}")));
    pipeline.send(&more.records).await;
    pipeline.applied().await;
    let late = pipeline.sink_entries("late").await;
    let ids: Vec<&str> = late.iter().map(SinkEntry::record_id).collect();
    assert_eq!(ids, more.ids.iter().map(String::as_str).collect::<Vec<_>>(), "only records that came later");

    // Entries that are read from the log equal those of the recent commits, byte for byte.
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    let (memory, log) = (pipeline.sink_entries("notifications").await, pipeline.sink_entries("whole").await);
    check_stream(&log, &ids);
    for (one, other) in memory.iter().zip(&log) {
        assert_eq!(one.fields, other.fields);
    }
    assert!(work.metric("millrace_publisher_postgres_reads_total").await > 0.0, "the new sink read the log");
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_sink_that_is_removed_leaves_no_cursor() {
    let (pipeline, _serve, work, load) = running(json!({})).await;
    pipeline.applied().await;
    assert!(pipeline.redis::<bool>(&["EXISTS", &pipeline.cursor("alerts")]).await);
    let alerts = pipeline.sink_entries("alerts").await.len();
    pipeline.change(|spec| spec["sinks"].as_array_mut().unwrap().retain(|sink| sink["name"] != "alerts"));
    work.logs("publish.sink.removed").await;
    assert!(!pipeline.redis::<bool>(&["EXISTS", &pipeline.cursor("alerts")]).await);
    assert_eq!(pipeline.number("select count(*) from sinks where name = 'alerts'").await, 0);
    assert_eq!(pipeline.number("select count(*) from sink_starts where sink = 'alerts'").await, 0);
    let more = Load::from("r", load.ids.len(), 100);
    pipeline.send(&more.records).await;
    pipeline.applied().await;
    assert_eq!(pipeline.sink_entries("alerts").await.len(), alerts, "no entry is added or removed");
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}

#[tokio::test]
async fn a_sink_that_moves_to_another_stream_continues_at_its_position() {
    let (pipeline, _serve, work, load) = running(json!({})).await;
    let more = Load::from("r", load.ids.len(), 600);
    let other = pipeline.stream("moved");
    let move_sink = async {
        eventually("some entries are published", async || !pipeline.sink_entries("notifications").await.is_empty())
            .await;
        pipeline.change(|spec| spec["sinks"][0]["redisStream"]["stream"] = other.clone().into());
    };
    tokio::join!(pipeline.send(&more.records), move_sink);
    work.logs("publish.sink.moving").await;
    let rest = Load::from("r", load.ids.len() + more.ids.len(), 50);
    eventually("the sink has moved", async || {
        pipeline
            .number("select count(*) from sinks where name = 'notifications' and started and old_stream is null")
            .await
            == 1
            && pipeline.redis::<bool>(&["EXISTS", &pipeline.cursor("moved")]).await
    })
    .await;
    pipeline.send(&rest.records).await;
    pipeline.applied().await;
    let (old, new) = (pipeline.sink_entries("notifications").await, pipeline.entries(&other).await);
    assert!(!old.is_empty() && !new.is_empty(), "{} in the old stream, {} in the new", old.len(), new.len());
    let both: Vec<SinkEntry> = old.into_iter().chain(new).collect();
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).chain(rest.ids).collect();
    check_stream(&both, &ids);
    assert!(!pipeline.redis::<bool>(&["EXISTS", &pipeline.cursor("notifications")]).await, "the old cursor is gone");
    pipeline.verify().await;
}

#[tokio::test]
async fn a_stream_that_belongs_to_another_sink_is_refused() {
    let (pipeline, _serve, _work, load) = running(json!({})).await;
    pipeline.applied().await;
    let mut theirs = sink("copies", "Processed");
    theirs["redisStream"]["stream"] = pipeline.stream("notifications").into();
    let spec = json!({"shards": 1, "sinks": [theirs, sink("alerts", "Alert")]});
    let other = Pipeline::beside(&shared().await.redis, pipeline.postgres_url(), spec).await;
    let (_other_serve, other_work) = (other.serve().await, other.work());
    let line = other_work.logs("publish.sink.halted").await;
    assert!(line["detail"].as_str().unwrap().contains("belongs to sink notifications"), "{line}");
    becomes(&other, "copies", "halted").await;
    // The other pipeline continues with its other sink, and appends no entry to the stream.
    let load_of_other = Load::new("other", 250);
    other.send(&load_of_other.records).await;
    other.applied_except(&["copies"]).await;
    assert_eq!(other.number("select count(*) from records").await, 250);
    assert!(!other.sink_entries("alerts").await.is_empty());
    assert_eq!(other_work.logged("publish.sink.halted").len(), 1, "it is logged once");
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_sink_whose_stream_is_something_else_keeps_no_other_from_running() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    // The sink reconciler checks this sink first.
    let _: String = pipeline.redis(&["SET", &pipeline.stream("alerts"), "no stream"]).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    eventually("another sink publishes", async || pipeline.sink_entries("notifications").await.len() == load.ids.len())
        .await;
    let line = work.logs("publish.sinks.failed").await;
    assert!(line["error"].as_str().unwrap().starts_with("sink alerts: "), "{line}");
    let _: i64 = pipeline.redis(&["DEL", &pipeline.stream("alerts")]).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_sink_whose_cursor_is_too_high_halts_until_a_new_owner_skips_to_it() {
    let (pipeline, _serve, mut work, load) = running(json!({})).await;
    pipeline.applied().await;
    for shard in ["0", "1"] {
        let _: i64 = pipeline.redis(&["HSET", &pipeline.cursor("notifications"), shard, "1000000"]).await;
    }
    let more = Load::from("r", load.ids.len(), 50);
    pipeline.send(&more.records).await;
    let detail = becomes(&pipeline, "notifications", "halted").await;
    assert!(detail.contains("above") && detail.contains("millrace sinks resume notifications"), "{detail}");
    pipeline.applied_except(&["notifications"]).await;
    assert_eq!(pipeline.sink_entries("notifications").await.len(), load.ids.len());
    let cursor: String = pipeline.redis(&["HGET", &pipeline.cursor("notifications"), "0"]).await;
    assert_eq!(cursor, "1000000");
    // The next owner finds a log that is behind the published numbers, as after a rewind of Postgres.
    work.stop().await;
    let successor = pipeline.work();
    successor.logs("worker.postgres.rewound").await;
    let last = Load::from("r", load.ids.len() + more.ids.len(), 50);
    pipeline.send(&last.records).await;
    pipeline.applied().await;
    assert_eq!(pipeline.sink_entries("notifications").await.len(), load.ids.len() + last.ids.len());
    assert_eq!(pipeline.number("select min(seq) from records where seq > 1000000").await, 1_000_001);
}

#[tokio::test]
async fn a_sink_without_its_cursor_halts_until_it_is_resumed_and_delays_no_other() {
    let (pipeline, _serve, work, load) = running(json!({})).await;
    pipeline.applied().await;
    let refused = pipeline.command("sinks", &["resume", "notifications", "--from", "now"]).await;
    assert!(!refused.status.success(), "a running sink cannot be resumed");
    let _: i64 = pipeline.redis(&["DEL", &pipeline.cursor("notifications")]).await;
    let lost = Load::from("r", load.ids.len(), 200);
    pipeline.send(&lost.records).await;
    let detail = becomes(&pipeline, "notifications", "halted").await;
    assert!(detail.contains("millrace sinks resume notifications"), "{detail}");
    assert_eq!(work.logs("publisher.halted").await["sink"], "notifications");
    // Alerts of the same records are published.
    pipeline.applied_except(&["notifications"]).await;
    assert_eq!(pipeline.number("select count(*) from records").await, (load.ids.len() + lost.ids.len()) as i64);
    assert_eq!(pipeline.sink_entries("notifications").await.len(), load.ids.len());
    assert!((work.metric("millrace_sink_halted").await - 1.0).abs() < 0.1);
    let listed = pipeline.command("sinks", &["list"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("halted"), "{listed}");

    let resumed = pipeline.command("sinks", &["resume", "notifications", "--from", "now"]).await;
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    eventually("the sink runs", async || {
        is_started(&pipeline, "notifications").await && state(&pipeline, "notifications").await.is_none()
    })
    .await;
    let more = Load::from("r", load.ids.len() + lost.ids.len(), 100);
    pipeline.send(&more.records).await;
    pipeline.applied().await;
    let entries = pipeline.sink_entries("notifications").await;
    let ids: Vec<&str> = entries.iter().map(SinkEntry::record_id).collect();
    let expected: Vec<&str> = load.ids.iter().chain(&more.ids).map(String::as_str).collect();
    assert_eq!(ids, expected, "it continues with records that came after it was resumed");
    pipeline.verify().await;

    // From the beginning, with an empty stream, it publishes all.
    let _: i64 = pipeline.redis(&["DEL", &pipeline.cursor("notifications"), &pipeline.stream("notifications")]).await;
    let last = Load::from("r", 600, 20);
    pipeline.send(&last.records).await;
    becomes(&pipeline, "notifications", "halted").await;
    let resumed = pipeline.command("sinks", &["resume", "notifications", "--from", "beginning"]).await;
    assert!(resumed.status.success());
    eventually("the sink is started", async || is_started(&pipeline, "notifications").await).await;
    pipeline.applied().await;
    let ids: Vec<String> = [load.ids, lost.ids, more.ids, last.ids].concat();
    pipeline.check_exactly_once(&ids).await;

    // A stream with entries needs `--repeat`, since ids come again; `verify` finds where this start begins.
    let before = pipeline.sink_entries("notifications").await.len();
    let _: i64 = pipeline.redis(&["DEL", &pipeline.cursor("notifications")]).await;
    let refused = pipeline.command("sinks", &["resume", "notifications", "--from", "beginning"]).await;
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("still has entries") && text.contains("--repeat"), "{text}");
    let resumed = pipeline.command("sinks", &["resume", "notifications", "--from", "beginning", "--repeat"]).await;
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    eventually("the sink is started", async || is_started(&pipeline, "notifications").await).await;
    pipeline.applied().await;
    let entries = pipeline.sink_entries("notifications").await;
    check_stream(&entries[before..], &ids);
    pipeline.verify().await;
    let actions = pipeline.number("select count(*) from admin_actions where action = 'sinks.resume'").await;
    assert_eq!(actions, 3, "each resume is noted");
}

#[tokio::test]
async fn a_full_stream_waits_for_its_slowest_group_and_loses_nothing() {
    let sinks = json!([bounded("notifications", "Processed", 60, "Wait"), sink("alerts", "Alert")]);
    let pipeline = Pipeline::new(json!({"shards": 1, "sinks": sinks})).await;
    let stream = pipeline.stream("notifications");
    for group in ["quick", "slow"] {
        let _: String = pipeline.redis(&["XGROUP", "CREATE", &stream, group, "0", "MKSTREAM"]).await;
    }
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    pipeline.send(&load.records).await;
    let mut read: HashMap<&str, Vec<String>> = HashMap::new();
    let mut step = async |group: &'static str| {
        let page: Option<redis::streams::StreamReadReply> =
            pipeline.redis(&["XREADGROUP", "GROUP", group, "me", "COUNT", "25", "STREAMS", &stream, ">"]).await;
        let entries: Vec<_> =
            page.map(|page| page.keys.into_iter().flat_map(|key| key.ids).collect()).unwrap_or_default();
        for entry in &entries {
            let _: i64 = pipeline.redis(&["XACK", &stream, group, &entry.id]).await;
            let id: String = entry.get("id").unwrap();
            read.entry(group).or_default().push(id);
        }
        !entries.is_empty()
    };
    // The processing and the other sink do not wait.
    pipeline.applied_except(&["notifications"]).await;
    assert_eq!(pipeline.number("select count(*) from records").await, load.ids.len() as i64);
    eventually("the sink names the group that it waits for", async || {
        step("quick").await;
        let current = state(&pipeline, "notifications").await;
        current.is_some_and(|(state, detail)| state == "waiting" && detail.contains("group slow"))
    })
    .await;
    assert!(pipeline.redis::<u64>(&["XLEN", &stream]).await <= 60);
    eventually("both groups read all", async || {
        step("slow").await;
        step("quick").await;
        assert!(pipeline.redis::<u64>(&["XLEN", &stream]).await <= 60);
        pipeline.redis::<String>(&["HGET", &pipeline.cursor("notifications"), "0"]).await == "300"
            && !step("slow").await
            && !step("quick").await
    })
    .await;
    let expected: Vec<String> = (1..=300).map(|n| format!("0-{n}")).collect();
    assert_eq!(read["slow"], expected);
    assert_eq!(read["quick"], expected);
    eventually("the sink has no state, so it runs", async || state(&pipeline, "notifications").await.is_none()).await;
    pipeline.verify().await;
}

#[tokio::test]
async fn a_full_stream_without_a_group_waits_and_reports_it() {
    let sinks = json!([bounded("notifications", "Processed", 60, "Wait")]);
    let (pipeline, _serve, _work, load) = running(json!({"sinks": sinks})).await;
    let detail = becomes(&pipeline, "notifications", "waiting").await;
    assert!(detail.starts_with("NoConsumerGroup"), "{detail}");
    assert_eq!(pipeline.redis::<u64>(&["XLEN", &pipeline.stream("notifications")]).await, 60);
    pipeline.applied_except(&["notifications"]).await;
    assert_eq!(pipeline.number("select count(*) from records").await, load.ids.len() as i64);
    // While Postgres refuses to remove the state, the publisher tries again.
    sqlx::query("alter table sink_states rename to away").execute(&pipeline.sql).await.unwrap();
    // A higher bound is used at once.
    pipeline.change(|spec| spec["sinks"][0]["redisStream"]["maxLength"] = 0.into());
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from away").await, 1);
    sqlx::query("alter table away rename to sink_states").execute(&pipeline.sql).await.unwrap();
    eventually("the sink has no state, so it runs", async || state(&pipeline, "notifications").await.is_none()).await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn a_stream_that_trims_counts_the_unread_entries_it_lost() {
    let sinks = json!([bounded("notifications", "Processed", 60, "Trim")]);
    let (pipeline, _serve, work, load) = running(json!({"sinks": sinks})).await;
    pipeline.applied().await;
    let entries = pipeline.sink_entries("notifications").await;
    assert_eq!(entries.len(), 60);
    assert_eq!(entries.last().unwrap().id, "0-300");
    let lost: u64 = pipeline.redis(&["HGET", &pipeline.cursor("notifications"), "unreadLost"]).await;
    assert_eq!(lost, 240);
    assert!((work.metric("millrace_sink_trimmed_unread_total").await - 240.0).abs() < 0.1);
    // A trimmed entry that a group has acknowledged is not lost.
    let stream = pipeline.stream("notifications");
    let _: String = pipeline.redis(&["XGROUP", "CREATE", &stream, "reader", "$"]).await;
    pipeline.send(&Load::from("r", load.ids.len(), 40).records).await;
    pipeline.applied().await;
    let lost: u64 = pipeline.redis(&["HGET", &pipeline.cursor("notifications"), "unreadLost"]).await;
    assert_eq!(lost, 240);
    pipeline.verify().await;
}

#[tokio::test]
async fn dead_letters_and_conflicts_have_streams_and_numbers_of_their_own() {
    let pipeline = Pipeline::new(json!({"shards": 1, "policy": {"minimumTotal": "0"}})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let mut ids = Vec::new();
    for n in 0..30 {
        let good = record(&format!("good-{n}"), "account");
        let (mut low, mut other) = (record(&format!("low-{n}"), "account"), good.clone());
        (low["type"], low["value"]) = ("negative".into(), "1000.5".into());
        other["value"] = "2".into();
        pipeline.send(&[good, low, other]).await;
        ids.push(format!("good-{n}"));
    }
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
    for (sink, prefix_of_number, kind, reason, prefix) in [
        ("dead-letters", 'd', "record.dead_lettered", "below_minimum_total", "low"),
        ("conflicts", 'c', "record.conflicted", "record_conflict", "good"),
    ] {
        let entries = pipeline.sink_entries(sink).await;
        assert_eq!(entries.len(), 30, "{sink}");
        for (n, entry) in entries.iter().enumerate() {
            assert_eq!(entry.id, format!("0-{prefix_of_number}{}", n + 1));
            assert_eq!(entry.kind, kind);
            assert!(entry.source.starts_with(&format!("{}/", pipeline.name)), "{}", entry.source);
            assert_eq!(entry.record_id(), format!("{prefix}-{n}"));
            assert_eq!(entry.data["reason"], reason);
            assert_eq!(entry.data["payload"]["recordId"], format!("{prefix}-{n}"));
        }
    }
    let value = |entry: &SinkEntry| entry.data["payload"]["value"].clone();
    assert_eq!(value(&pipeline.sink_entries("dead-letters").await[0]), "1000.5");
    assert_eq!(value(&pipeline.sink_entries("conflicts").await[0]), "2", "the refused content");
}
