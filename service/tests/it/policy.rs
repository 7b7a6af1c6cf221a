//! Changes of the manifest while the pipeline runs: a valid one is active within two seconds, an invalid one is
//! refused.

use std::time::Instant;

use serde_json::json;

use crate::harness::{Load, Pipeline, eventually, record};

async fn alerted(pipeline: &Pipeline, id: &str) -> bool {
    sqlx::query_scalar("select threshold is not null from records where record_id = $1")
        .bind(id)
        .fetch_optional(&pipeline.sql)
        .await
        .unwrap()
        .unwrap_or(false)
}

#[tokio::test]
async fn a_changed_threshold_is_active_without_a_restart() {
    let pipeline = Pipeline::new(json!({"threshold": "1000"})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(threshold) from records").await, 0);
    let begun = Instant::now();
    pipeline.change(|spec| spec["threshold"] = "5".into());
    let mut n = 0;
    eventually("a record raises an alert", async || {
        n += 1;
        let id = format!("probe-{n}");
        let mut probe = record(&id, "destination-1");
        probe["value"] = "5.01".into();
        pipeline.send(&[probe]).await;
        eventually("the record is processed", async || {
            sqlx::query_scalar("select exists (select from records where record_id = $1)")
                .bind(&id)
                .fetch_one(&pipeline.sql)
                .await
                .unwrap()
        })
        .await;
        alerted(&pipeline, &id).await
    })
    .await;
    println!("active after {:?}, {n} records", begun.elapsed());
    pipeline.applied().await;
    let alerts = pipeline.sink_entries("alerts").await;
    assert_eq!(alerts.len(), 1);
    assert_eq!(alerts[0].data["threshold"], "5");
    pipeline.verify().await;
}

#[tokio::test]
async fn alerts_match_the_active_policy_version_however_often_it_changes() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, _first, _second) = (pipeline.serve().await, pipeline.work(), pipeline.work());
    let load = Load::new("r", 1_500);
    let changes = async {
        for threshold in ["10", "150.25", "240", "0"] {
            let versions = pipeline.number("select max(version) from policies").await;
            pipeline.change(|spec| spec["threshold"] = threshold.into());
            eventually("the version is registered", async || {
                pipeline.number("select max(version) from policies").await > versions
            })
            .await;
        }
    };
    eventually("the first version is registered", async || pipeline.number("select count(*) from policies").await == 1)
        .await;
    tokio::join!(pipeline.send(&load.records), changes);
    // A process that starts meanwhile may register the manifest that it read before: as one more version, then the
    // current one.
    let newest =
        "select (spec::jsonb ->> 'threshold' = '0' and version = (select min(policy_version) from shards))::int::bigint
                  from policies order by version desc limit 1";
    eventually("every shard runs the newest version", async || pipeline.number(newest).await == 1).await;
    let more = Load::from("r", 1_500, 200);
    pipeline.send(&more.records).await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    pipeline.check_exactly_once(&ids).await;
    let alerts = pipeline.sink_entries("alerts").await.len() as i64;
    assert_eq!(alerts, pipeline.number("select count(threshold) from records").await);
    assert_eq!(alerts, pipeline.number("select sum(alerts)::bigint from shards").await);
    // The newest threshold decided the last records; counted without `verify`.
    let by_hand = "select count(*) from records where record_id ~ '^r-1[5-9][0-9][0-9]$' and \
                   (threshold is null or threshold <> 0 or value <= 0)";
    assert_eq!(pipeline.number(by_hand).await, 0, "all of them raised an alert");
}

#[tokio::test]
async fn an_invalid_manifest_is_refused_and_the_old_one_stays() {
    let pipeline = Pipeline::new(json!({"threshold": "5"})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let good = std::fs::read_to_string(pipeline.manifest()).unwrap();
    work.ready().await;
    eventually("the first version is registered", async || pipeline.number("select count(*) from policies").await == 1)
        .await;
    pipeline.write(&good.replace(r#""threshold":"5""#, r#""threshold":"-7""#));
    let line = work.logs("config.manifest.refused").await;
    assert!(line["why"].as_str().unwrap().contains("threshold"), "{line}");
    pipeline.write("neither YAML: [nor");
    eventually("the file is refused, too", async || work.logged("config.manifest.refused").len() == 2).await;
    let mut high = record("high", "destination-1");
    high["value"] = "6".into();
    pipeline.send(&[high]).await;
    pipeline.applied().await;
    assert!(alerted(&pipeline, "high").await, "the old threshold is active");
    assert_eq!(pipeline.number("select max(version) from policies").await, 1);
    pipeline.write(&good.replace(r#""threshold":"5""#, r#""threshold":"7""#));
    eventually("a valid manifest is registered", async || {
        pipeline.number("select max(version) from policies").await == 2
    })
    .await;
    pipeline.verify().await;
}

#[tokio::test]
async fn a_commit_below_its_shards_version_is_refused() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 50);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    // As if another worker had run a newer version of the policy in between.
    pipeline.execute("update shards set policy_version = 99").await;
    let more = Load::from("r", 50, 50);
    pipeline.send(&more.records).await;
    let line = work.logs("worker.shard.backing_off").await;
    assert!(line["error"].as_str().unwrap().contains("runs policy version 99"), "{line}");
    assert_eq!(pipeline.number("select count(*) from records").await, 50, "the old policy decides no record");
    pipeline.execute("update shards set policy_version = 1").await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.into_iter().chain(more.ids).collect();
    pipeline.check_exactly_once(&ids).await;
}
