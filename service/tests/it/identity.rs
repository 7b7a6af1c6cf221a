//! Whose it is: what stands in Redis of another pipeline is refused until it is taken over, and what is a pipeline's own
//! can be removed.

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, eventually, record, sink};

/// The id in the schema.
async fn id(pipeline: &Pipeline) -> String {
    sqlx::query_scalar("select pipeline_id from pipeline").fetch_one(&pipeline.sql).await.unwrap()
}

/// Drops the schema and makes it again, as after a database that was lost; answers the new id.
async fn lose_postgres(pipeline: &Pipeline) -> String {
    let drop = format!("drop schema millrace_{} cascade", pipeline.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&pipeline.sql).await.unwrap();
    let migrated = pipeline.command("migrate", &[]).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    id(pipeline).await
}

#[tokio::test]
async fn streams_of_another_pipeline_are_refused_by_all_and_taken_over_by_the_annotation() {
    let sinks = json!([sink("notifications", "Processed"), sink("alerts", "Alert")]);
    let pipeline = Pipeline::new(json!({"shards": 2, "sinks": sinks})).await;
    let (mut serve, mut work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    let before = Load::new("r", 200);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    work.stop().await;
    // Accepted, and not processed when Postgres was lost.
    let queued = Load::from("r", 200, 100);
    pipeline.send(&queued.records).await;
    serve.stop().await;
    let old = id(&pipeline).await;
    let new = lose_postgres(&pipeline).await;
    assert_ne!(old, new);

    let (serve, work) = (pipeline.serve().await, pipeline.work());
    work.says("worker.shard.backing_off").await;
    work.says("publish.sink.halted").await;
    for process in [&serve, &work] {
        let status = process
            .tells("the streams and the cursors", |status| status["problems"].as_array().map(Vec::len) == Some(2))
            .await;
        for problem in status["problems"].as_array().unwrap() {
            assert_eq!(problem["reason"], "OtherPipeline");
            let message = problem["message"].as_str().unwrap();
            assert!(message.contains(&format!("millrace.dev/adopt: {old}")), "{message}");
        }
    }
    pipeline.put_in("/records", record("refused", "d").to_string()).await.refused(503, "stream_refused");
    // The annotation has to name the id that is there.
    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": "0123456789abcdef"}));
    pipeline.put_in("/records", record("refused", "d").to_string()).await.refused(503, "stream_refused");
    assert_eq!(pipeline.backlog().await, queued.records.len() as u64, "nothing was taken");
    assert_eq!(pipeline.number("select count(*) from records").await, 0);

    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": &old}));
    work.says("streams.stream.adopted").await;
    eventually("what was queued is processed", async || {
        pipeline.number("select count(*) from records").await == queued.ids.len() as i64
    })
    .await;
    work.has_problems(&[]).await;
    let after = Load::from("r", 300, 100);
    pipeline.send(&after.records).await;
    pipeline.applied().await;
    for shard in 0..2 {
        let stands: String = pipeline.redis(&["HGET", &pipeline.fence(shard), "pipeline"]).await;
        assert_eq!(stands, new);
    }
    // Each number once, under the source that gave it.
    let entries = pipeline.sink_entries("notifications").await;
    let of = |id: &str| entries.iter().filter(|entry| entry.source.ends_with(id)).count();
    assert_eq!((of(&old), of(&new)), (before.ids.len(), queued.ids.len() + after.ids.len()));
    pipeline.verify().await;
}

/// Names of all keys of a pipeline.
async fn keys(pipeline: &Pipeline) -> Vec<String> {
    pipeline.redis(&["KEYS", &format!("*{}*", pipeline.name)]).await
}

async fn schema_is_there(pipeline: &Pipeline) -> bool {
    sqlx::query_scalar("select to_regnamespace($1) is not null")
        .bind(format!("millrace_{}", pipeline.name))
        .fetch_one(&pipeline.sql)
        .await
        .unwrap()
}

/// Runs `purge`; answers whether it succeeded, what it said, and the line that it left.
async fn purge(pipeline: &Pipeline, yes: bool) -> (bool, String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination");
    let mut arguments = vec!["--termination-log", log.to_str().unwrap(), "--wait-ms", "300"];
    arguments.extend(yes.then_some("--yes"));
    let ended = pipeline.command("purge", &arguments).await;
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    let left = std::fs::read_to_string(log).unwrap_or_else(|_| "null".to_owned());
    (ended.status.success(), said, serde_json::from_str(&left).unwrap())
}

#[tokio::test]
async fn a_purge_removes_all_that_is_the_pipelines_and_nothing_else() {
    let sinks = json!([sink("notifications", "Processed"), sink("alerts", "Alert")]);
    let pipeline = Pipeline::new(json!({"shards": 2, "threshold": "0", "sinks": sinks})).await;
    let beside = Pipeline::beside(pipeline.redis_url(), pipeline.postgres_url(), json!({"shards": 1})).await;
    let (mut serve, mut work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let own = id(&pipeline).await;

    let (done, said, left) = purge(&pipeline, true).await;
    assert!(!done && left["reason"] == "PreviousWorkersActive", "{said}");
    work.stop().await;
    pipeline.send(&[record("queued", "d")]).await;
    serve.stop().await;
    let before = keys(&pipeline).await;
    assert_eq!(before.len(), 8, "{before:?}");

    // Without --yes it only says.
    let (done, said, left) = purge(&pipeline, false).await;
    assert!(done && left.is_null(), "{said}");
    assert!(said.contains(&format!("{} records", load.ids.len())) && said.contains(&pipeline.records(1)), "{said}");
    // A stream or a schema of another keeps all of it from being removed.
    let cursor = pipeline.cursor("alerts");
    let _: i64 = pipeline.redis(&["HSET", &cursor, "pipeline", "another"]).await;
    let (done, said, left) = purge(&pipeline, true).await;
    assert!(!done && left["reason"] == "OtherPipeline" && said.contains("another"), "{said}");
    let _: i64 = pipeline.redis(&["HSET", &cursor, "pipeline", &own]).await;
    pipeline.annotate(|metadata| (metadata["uid"], metadata["generation"]) = ("u2".into(), 1.into()));
    let (done, said, left) = purge(&pipeline, true).await;
    assert!(!done && left["reason"] == "OtherPipeline" && said.contains(&own), "{said}");
    assert_eq!(keys(&pipeline).await.len(), before.len(), "nothing was removed");
    assert!(schema_is_there(&pipeline).await);

    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": &own}));
    let (done, said, left) = purge(&pipeline, true).await;
    assert!(done && left["reason"] == "Purged" && left["pipelineId"] == own.as_str(), "{said}");
    assert!(said.contains(&format!("{} records", load.ids.len())), "{said}");
    assert_eq!(keys(&pipeline).await, [""; 0]);
    assert!(!schema_is_there(&pipeline).await);
    let (done, said, left) = purge(&pipeline, true).await;
    assert!(done && left["reason"] == "Purged" && said.contains("nothing is left"), "{said}");
    assert!(schema_is_there(&beside).await, "another pipeline in the database goes on");
}
