//! The history of a record, the audit trail, the trace of a request, and the metrics of each stage.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Pipeline, answer, eventually, record};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn a_record_is_seen_queued_then_processed_then_published() {
    let (pipeline, _serve, mut work) = Pipeline::running(json!({"shards": 1})).await;
    pipeline.apply(&record("before", "d")).await.expect(200);
    pipeline.applied().await;
    work.stop().await;
    let mut big = record("a/b é", "d");
    big["value"] = "200.01".into();
    pipeline.send(&[big.clone(), big.clone()]).await;
    let path = "/records/a%2Fb%20%C3%A9";
    let queued = pipeline.get(path).await;
    assert_eq!((&queued["status"], &queued["published"]), (&"queued".into(), &json!([])));
    assert!(
        queued["receivedAt"].is_string() && queued["queuedAt"].is_string() && queued.get("seq").is_none(),
        "{queued}"
    );
    assert_eq!(queued["record"]["value"], "200.01");
    assert_eq!(pipeline.get("/stats").await["backlog"], 2);
    pipeline.ask("/records/other").await.refused(404, "not_found");

    // A sink whose stream cannot be written is behind, and the record's history shows it.
    let alerts = pipeline.stream("alerts");
    let _: i64 = pipeline.redis(&["DEL", &alerts]).await;
    let _: String = pipeline.redis(&["SET", &alerts, "no stream"]).await;
    let _work = pipeline.work();
    let published = |history: &Value| -> BTreeMap<String, String> {
        let sinks = history["published"].as_array().unwrap().iter();
        sinks
            .map(|sink| (sink["sink"].as_str().unwrap().to_owned(), sink["state"].as_str().unwrap().to_owned()))
            .collect()
    };
    let states = |states: &[(&str, &str)]| -> BTreeMap<String, String> {
        states.iter().map(|(sink, state)| ((*sink).to_owned(), (*state).to_owned())).collect()
    };
    pipeline.applied_except(&["alerts"]).await;
    let history = pipeline.get(path).await;
    assert_eq!(published(&history), states(&[("alerts", "waiting"), ("notifications", "published")]));
    let expected = json!({"previousCount": 1, "previousTotal": "1", "unit": "EUR"});
    assert_eq!((&history["status"], &history["seq"], &history["id"]), (&"processed".into(), &2.into(), &"0-2".into()));
    assert_eq!(
        (&history["summary"], &history["threshold"], &history["duplicates"]),
        (&expected, &"200".into(), &1.into())
    );
    assert_eq!((&history["receivedAt"], &history["queuedAt"]), (&queued["receivedAt"], &queued["queuedAt"]));
    let lag =
        pipeline.get("/stats").await["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == "alerts").unwrap()
            ["lag"]
            .clone();
    assert_eq!(lag, 1);
    let _: i64 = pipeline.redis(&["DEL", &alerts]).await;
    eventually("the alert is published, too", async || {
        published(&pipeline.get(path).await) == states(&[("alerts", "published"), ("notifications", "published")])
    })
    .await;
    assert_eq!(pipeline.sink_entries("alerts").await.len(), 1);
    assert_eq!(
        published(&pipeline.get("/records/before").await),
        states(&[("notifications", "published")]),
        "it raised no alert"
    );
}

#[tokio::test]
async fn a_search_that_reaches_its_bound_answers_not_found_or_queued() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let records: Vec<Value> = (0..5_200).map(|n| record(&format!("r{n}"), "d")).collect();
    for part in records.chunks(1_000) {
        let (status, _) = pipeline.post("/records/batch", &part.into()).await;
        assert_eq!(status, 202);
    }
    assert_eq!(pipeline.get("/records/r5199").await["status"], "queued");
    let unknown = pipeline.ask("/records/r0").await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &"not_found_or_queued".into()));
    assert_eq!(unknown.json()["retryable"], true);
}

#[tokio::test]
async fn the_audit_trail_lists_every_fact_and_its_summary_counts_them() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"policy": {"minimumTotal": "0"}})).await;
    let mut big = record("big", "a");
    big["value"] = "300".into();
    let mut small = record("small", "b");
    pipeline.apply(&big).await.expect(200);
    pipeline.apply(&small).await.expect(200);
    pipeline.apply(&small).await.expect(200);
    small["value"] = "2".into();
    pipeline.apply(&small).await.refused(409, "record_conflict");
    let mut out = record("out", "b");
    (out["type"], out["value"]) = ("negative".into(), "5000".into());
    let dead_letter =
        pipeline.apply(&out).await.refused(422, "dead_lettered")["deadLetter"].as_str().unwrap().to_owned();
    pipeline.act(&format!("/dead-letters/{dead_letter}/replay")).await.expect(202);
    eventually("the replay is decided", async || pipeline.get("/stats").await["deadLetters"]["replayed"] == 1).await;
    let second = pipeline.list("/dead-letters?state=open").await[0]["id"].as_str().unwrap().to_owned();
    pipeline.act(&format!("/dead-letters/{second}/discard")).await.expect(200);
    pipeline.applied().await;

    let facts = pipeline.list("/audit").await;
    let of = |id: &str| -> Vec<&str> {
        let facts = facts.iter().filter(|fact| fact["recordId"] == id);
        facts.map(|fact| fact["action"].as_str().unwrap()).collect()
    };
    assert_eq!(of("big"), ["RECEIVED", "QUEUED", "PROCESSED", "ALERTED"]);
    let mut of_small = of("small");
    of_small.sort_unstable();
    assert_eq!(
        of_small,
        ["CONFLICT", "DROPPED", "PROCESSED", "QUEUED", "QUEUED", "QUEUED", "RECEIVED", "RECEIVED", "RECEIVED"]
    );
    let of_out = of("out");
    for (action, times) in [("RECEIVED", 1), ("DEAD_LETTERED", 2), ("REPLAYED", 1), ("DISCARDED", 1)] {
        assert_eq!(of_out.iter().filter(|fact| **fact == action).count(), times, "{action} in {of_out:?}");
    }
    facts.iter().for_each(check_fields_of_fact);
    for filter in
        ["", "action=PROCESSED&action=DROPPED", "destinationId=b", "recordId=small", "action=ALERTED&destinationId=b"]
    {
        check_audit_summary(&pipeline, filter).await;
    }
    // A range of times has its start and lacks its end.
    let processed = pipeline.list("/audit?action=PROCESSED&recordId=big").await[0]["time"].as_str().unwrap().to_owned();
    assert_eq!(pipeline.list(&format!("/audit?action=PROCESSED&recordId=big&startTime={processed}")).await.len(), 1);
    assert_eq!(pipeline.list(&format!("/audit?action=PROCESSED&recordId=big&endTime={processed}")).await.len(), 0);
}

/// Checks that a fact of the audit trail has the fields of its action.
fn check_fields_of_fact(fact: &Value) {
    let action = fact["action"].as_str().unwrap();
    assert!(fact["time"].is_string(), "{fact}");
    let has = |field: &str| fact.get(field).is_some_and(Value::is_string);
    if ["PROCESSED", "DROPPED", "CONFLICT", "ALERTED", "DEAD_LETTERED"].contains(&action) {
        assert!(has("worker") && has("destinationId"), "{fact}");
    }
    if ["DEAD_LETTERED", "REPLAYED"].contains(&action) {
        assert_eq!(fact["reason"], "below_minimum_total", "{fact}");
    }
    if ["DISCARDED", "ADMIN"].contains(&action) {
        assert!(has("actor"), "{fact}");
    }
}

/// Checks that the summary of the audit trail counts the facts that the list returns for the same filter.
async fn check_audit_summary(pipeline: &Pipeline, filter: &str) {
    let listed = pipeline.list(&format!("/audit?{filter}")).await;
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    let mut destinations: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let mut workers: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for fact in &listed {
        let action = fact["action"].as_str().unwrap();
        *counts.entry(action).or_default() += 1;
        if let Some(destination) = fact["destinationId"].as_str() {
            *destinations.entry((destination, action)).or_default() += 1;
        }
        if let Some(worker) = fact["worker"].as_str() {
            *workers.entry((worker, action)).or_default() += 1;
        }
    }
    let summary = pipeline.get(&format!("/audit/summary?{filter}")).await;
    assert_eq!(summary["actions"], json!(counts), "{filter}");
    let returned = |rows: &Value, name: &str| -> Vec<(String, String, i64)> {
        let rows = rows.as_array().unwrap().iter();
        let each = rows.flat_map(|row| {
            row["actions"].as_object().unwrap().iter().map(move |(action, count)| {
                (row[name].as_str().unwrap().to_owned(), action.clone(), count.as_i64().unwrap())
            })
        });
        each.collect()
    };
    let counted = |counts: BTreeMap<(&str, &str), i64>| -> Vec<(String, String, i64)> {
        counts.into_iter().map(|((name, action), count)| (name.to_owned(), action.to_owned(), count)).collect()
    };
    assert_eq!(returned(&summary["destinations"], "destinationId"), counted(destinations), "{filter}");
    assert_eq!(returned(&summary["workers"], "worker"), counted(workers), "{filter}");
}

#[tokio::test]
async fn the_trace_of_a_request_continues_into_every_outcome() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"policy": {"minimumTotal": "0"}})).await;
    let mut big = record("big", "a");
    big["value"] = "300".into();
    let mut conflict = big.clone();
    conflict["unit"] = "USD".into();
    let mut out = record("out", "b");
    out["type"] = "negative".into();
    let batch = json!([big, conflict, out]).to_string();
    answer(pipeline.posting("/records/batch", batch).header("traceparent", TRACE)).await.expect(202);
    // A malformed trace context is left out; the record is accepted.
    let other = pipeline.posting("/records", record("other", "a").to_string()).header("traceparent", "00-nonsense-01");
    answer(other).await.expect(202);
    pipeline.applied().await;
    for sink in ["alerts", "dead-letters", "conflicts"] {
        let entries = pipeline.sink_entries(sink).await;
        assert_eq!(entries.len(), 1, "{sink}");
        assert_eq!(entries[0].fields["traceparent"], TRACE, "{sink}");
    }
    for entry in pipeline.sink_entries("notifications").await {
        let trace = entry.fields.get("traceparent").map(String::as_str).unwrap_or_default();
        assert_eq!(trace, if entry.record_id() == "big" { TRACE } else { "" });
        assert_eq!((entry.kind.as_str(), entry.fields["version"].as_str()), ("record.processed", "1"));
        assert!(entry.source.starts_with(&format!("{}/", pipeline.name)), "{}", entry.source);
    }
}

#[tokio::test]
async fn each_stage_has_its_metrics_with_right_counts() {
    let (pipeline, serve, work) = Pipeline::running(json!({})).await;
    let mut big = record("big", "a");
    big["value"] = "300".into();
    pipeline.send(&[big.clone(), big.clone(), record("small", "b")]).await;
    let mut conflict = record("small", "b");
    conflict["unit"] = "USD".into();
    pipeline.apply(&conflict).await.refused(409, "record_conflict");
    pipeline.post_json("/records", "{}").await.refused(422, "missing_field");
    let _: String = pipeline.redis(&["XADD", &pipeline.records(0), "*", "record", "nonsense"]).await;
    pipeline.applied().await;
    for (name, least) in [
        ("millrace_accepted_records_total", 4.0),
        ("millrace_rejected_records_total", 1.0),
        ("millrace_append_seconds_count", 2.0),
        ("millrace_http_request_seconds_count", 3.0),
    ] {
        let value = serve.metric(name).await;
        assert!(value >= least, "{name}: {value}");
    }
    for (name, exactly) in [
        ("millrace_processed_total", 2.0),
        ("millrace_duplicates_total", 1.0),
        ("millrace_conflicts_total", 1.0),
        ("millrace_dead_letters_total", 1.0),
        ("millrace_alerts_total", 1.0),
        ("millrace_shards_owned", 2.0),
        ("millrace_backlog_records", 0.0),
        ("millrace_sink_lag_outcomes", 0.0),
        // Two notifications, an alert, a dead letter, a conflict.
        ("millrace_published_total", 5.0),
        ("millrace_policy_version", 1.0),
        ("millrace_lost_records_total", 0.0),
    ] {
        // The worker writes gauges at intervals.
        eventually(&format!("{name} is {exactly}"), async || (work.metric(name).await - exactly).abs() < 0.1).await;
    }
    for name in [
        "millrace_batch_records_count",
        "millrace_commit_seconds_count",
        "millrace_accept_to_commit_seconds_count",
        "millrace_lease_changes_total",
    ] {
        let value = work.metric(name).await;
        assert!(value >= 1.0, "{name}: {value}");
    }
    // Each metric has a help text and a type.
    let text = work.text("/metrics").await;
    for name in [
        "millrace_backlog_records",
        "millrace_sink_lag_outcomes",
        "millrace_commit_seconds",
        "millrace_lease_changes_total",
    ] {
        assert!(text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} ")), "{name}");
    }
    let status: Value = serde_json::from_str(&work.text("/status").await).unwrap();
    assert_eq!(
        (&status["role"], &status["active"]["version"], status["shards"].as_array().unwrap().len()),
        (&"work".into(), &1.into(), 2)
    );
}
