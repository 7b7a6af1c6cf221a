//! Pipelines that share their servers are independent, and all processes of a pipeline run one manifest.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, eventually, record};

#[tokio::test]
async fn two_pipelines_on_the_same_servers_are_apart() {
    let first = Pipeline::new(json!({})).await;
    let second = Pipeline::beside(first.redis_url(), first.postgres_url(), json!({"threshold": "10"})).await;
    let _serving = (first.serve().await, second.serve().await);
    let _working = (first.work(), second.work());
    // The same ids and destinations, with other content in each pipeline.
    let load = Load::new("r", 600);
    let mut other = Load::new("r", 300);
    other.records.iter_mut().for_each(|record| record["unit"] = "USD".into());
    tokio::join!(first.send(&load.records), second.send(&other.records));
    for (pipeline, load, unit) in [(&first, &load, "EUR"), (&second, &other, "USD")] {
        pipeline.applied().await;
        pipeline.check_exactly_once(&load.ids).await;
        let stats = pipeline.get("/stats").await;
        let counts = ["processed", "duplicates", "conflicts"].map(|name| stats[name].as_u64().unwrap() as usize);
        assert_eq!(counts, [load.ids.len(), load.duplicates, 0]);
        let rollups = pipeline.get("/records/rollups?groupBy=unit").await;
        assert_eq!(rollups["items"].as_array().unwrap().len(), 1);
        assert_eq!(rollups["items"][0]["unit"], unit);
        let source = format!("{}/", pipeline.name);
        assert!(pipeline.sink_entries("notifications").await.iter().all(|entry| entry.source.starts_with(&source)));
    }
    assert!(first.get("/stats").await["alerts"].as_i64() < second.get("/stats").await["alerts"].as_i64());
    // Each pipeline has its own conflicts and keys.
    let mut conflict = load.records[0].clone();
    conflict["unit"] = "USD".into();
    first.apply(&conflict).await.refused(409, "record_conflict");
    assert!(second.list("/conflicts").await.is_empty());
    let made = first.command("keys", &["create", "--name", "own", "--scope", "admin"]).await;
    let key = String::from_utf8(made.stdout).unwrap();
    let ask = async |pipeline: &Pipeline| {
        let request = reqwest::Client::new().get(format!("{}/stats", pipeline.url())).bearer_auth(key.trim());
        crate::harness::answer(request).await.status
    };
    eventually("serve accepts the new key", async || ask(&first).await == 200).await;
    assert_eq!(ask(&second).await, 401);
}

#[tokio::test]
async fn a_changed_threshold_is_active_at_once_and_an_invalid_one_is_refused() {
    let (pipeline, serve, work) = Pipeline::running(json!({"threshold": "100"})).await;
    let mut n = 0;
    let mut send = async |value: &str| -> Value {
        n += 1;
        let mut record = record(&format!("r{n}"), "d");
        record["value"] = value.into();
        pipeline.apply(&record).await.expect(200);
        pipeline.get(&format!("/records/r{n}")).await
    };
    assert_eq!(send("100").await.get("threshold"), None, "the value is not above the threshold");
    assert_eq!(send("100.000000001").await["threshold"], "100");
    pipeline.change(|spec| spec["threshold"] = "50.5".into());
    eventually("the new threshold is active", async || send("60").await["threshold"] == "50.5").await;
    pipeline.change(|spec| spec["threshold"] = "not a number".into());
    for process in [&serve, &work] {
        let line = process.logs("config.manifest.refused").await;
        assert!(line.to_string().contains("threshold"), "{line}");
    }
    assert_eq!(send("60").await["threshold"], "50.5", "the old threshold stays");
    pipeline.write("{ no manifest");
    assert_eq!(send("60").await["threshold"], "50.5");
    pipeline.change(|spec| {
        spec["threshold"] = Value::Null;
        spec["thresholds"] = json!({"USD": "1"});
    });
    eventually("no threshold is active for EUR", async || send("60").await.get("threshold").is_none()).await;
    pipeline.applied().await;
    // Alerts are exactly the records with a threshold, that of their version; `verify` agrees.
    let alerted = pipeline.list("/records?alerted=true").await;
    let entries = pipeline.sink_entries("alerts").await;
    let ids: Vec<&str> = entries.iter().map(|entry| entry.record_id()).collect();
    let mut expected: Vec<&str> = alerted.iter().map(|record| record["recordId"].as_str().unwrap()).collect();
    expected.sort_by_key(|id| id[1..].parse::<u32>().unwrap());
    assert_eq!(ids, expected);
    assert_eq!(entries[0].data["threshold"], "100");
    assert!(entries[1..].iter().all(|entry| entry.data["threshold"] == "50.5" && entry.kind == "record.alert"));
    assert_eq!(pipeline.get("/stats").await["alerts"], entries.len());
    pipeline.verify().await;
}

#[tokio::test]
async fn many_clients_get_the_same_answers_from_two_serve_processes() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let first = pipeline.url();
    let _second = pipeline.serve().await;
    let (load, client) = (Load::new("r", 200), reqwest::Client::new());
    let urls = [first, pipeline.url()];
    let posts = load.records.iter().zip(urls.iter().cycle()).map(|(record, url)| {
        let request = client.post(format!("{url}/records")).bearer_auth(crate::harness::KEY).json(record);
        crate::harness::answer(request)
    });
    assert!(join_all(posts).await.iter().all(|answer| answer.status == 202));
    pipeline.applied().await;
    let mut answers = Vec::new();
    for url in &urls {
        let request = client.get(format!("{url}/stats")).bearer_auth(crate::harness::KEY);
        let mut stats = crate::harness::answer(request).await.expect(200);
        for own in ["asOf", "uptimeSeconds", "processUptimeSeconds"] {
            stats.as_object_mut().unwrap().remove(own);
        }
        answers.push(stats);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0]["received"], load.records.len());
    pipeline.verify().await;
}

#[tokio::test]
async fn counts_and_sums_hold_together_at_every_moment_of_a_load() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("r", 3_000);
    pipeline.send(&load.records).await;
    // Small batches, so that many moments are in mid-load.
    let _work = pipeline.work_with(&[("MILLRACE_BATCH", "40")]);
    let (mut moments, mut in_mid_load) = (0, 0);
    loop {
        let stats = pipeline.get("/stats").await;
        assert_eq!(stats["received"], load.records.len(), "an entry is counted once, wherever it is: {stats}");
        let answer = pipeline.get("/records/aggregations").await;
        for group in answer["groups"].as_array().unwrap() {
            let records = group["records"].as_array().unwrap();
            let mut sum = rust_decimal::Decimal::ZERO;
            for record in records {
                let value: rust_decimal::Decimal = record["value"].as_str().unwrap().parse().unwrap();
                sum += if record["type"] == "negative" { -value } else { value };
            }
            let total: rust_decimal::Decimal = group["totals"][0]["total"].as_str().unwrap().parse().unwrap();
            assert_eq!((&group["count"], total), (&records.len().into(), sum), "one snapshot");
        }
        moments += 1;
        in_mid_load += u32::from(stats["backlog"] != 0 && stats["processed"] != 0);
        if stats["backlog"] == 0 {
            break;
        }
    }
    assert!(in_mid_load > 2, "{in_mid_load} of {moments} moments are in mid-load");
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}
