//! The pipeline id: a pipeline refuses the streams of another until an annotation adopts them, and a purge removes its
//! own.

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, eventually, record, sink};

/// The pipeline id in the schema.
async fn id(pipeline: &Pipeline) -> String {
    sqlx::query_scalar("select pipeline_id from pipeline").fetch_one(&pipeline.sql).await.unwrap()
}

/// Drops the schema and migrates again, as after the loss of a database; returns the new id.
async fn lose_postgres(pipeline: &Pipeline) -> String {
    let drop = format!("drop schema millrace_{} cascade", pipeline.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&pipeline.sql).await.unwrap();
    let migrated = pipeline.command("migrate", &[]).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    id(pipeline).await
}

#[tokio::test]
async fn another_pipelines_streams_are_refused_until_the_annotation_adopts_them() {
    let sinks = json!([sink("notifications", "Processed"), sink("alerts", "Alert")]);
    let pipeline = Pipeline::new(json!({"shards": 2, "sinks": sinks})).await;
    let (mut serve, mut work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    let before = Load::new("r", 200);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    work.stop().await;
    // These are accepted and not applied when Postgres is lost.
    let queued = Load::from("r", 200, 100);
    pipeline.send(&queued.records).await;
    serve.stop().await;
    let old = id(&pipeline).await;
    let new = lose_postgres(&pipeline).await;
    assert_ne!(old, new);

    let (serve, work) = (pipeline.serve().await, pipeline.work());
    work.logs("worker.shard.backing_off").await;
    work.logs("publish.sink.halted").await;
    for process in [&serve, &work] {
        let status = process
            .reports("the streams and the cursors", |status| status["problems"].as_array().map(Vec::len) == Some(2))
            .await;
        for problem in status["problems"].as_array().unwrap() {
            assert_eq!(problem["reason"], "OtherPipeline");
            let message = problem["message"].as_str().unwrap();
            assert!(message.contains(&format!("millrace.dev/adopt: {old}")), "{message}");
        }
    }
    pipeline.post_json("/records", record("refused", "d").to_string()).await.refused(503, "stream_refused");
    // The annotation must name the id in Redis.
    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": "0123456789abcdef"}));
    pipeline.post_json("/records", record("refused", "d").to_string()).await.refused(503, "stream_refused");
    assert_eq!(pipeline.backlog().await, queued.records.len() as u64, "no entry was read");
    assert_eq!(pipeline.number("select count(*) from records").await, 0);

    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": &old}));
    work.logs("streams.stream.adopted").await;
    eventually("the queued records are processed", async || {
        pipeline.number("select count(*) from records").await == queued.ids.len() as i64
    })
    .await;
    work.has_problems(&[]).await;
    let after = Load::from("r", 300, 100);
    pipeline.send(&after.records).await;
    pipeline.applied().await;
    for shard in 0..2 {
        let owner: String = pipeline.redis(&["HGET", &pipeline.fence(shard), "pipeline"]).await;
        assert_eq!(owner, new);
    }
    // Each number is published once, with the source of the pipeline that gave it.
    let entries = pipeline.sink_entries("notifications").await;
    let of = |id: &str| entries.iter().filter(|entry| entry.source.ends_with(id)).count();
    assert_eq!((of(&old), of(&new)), (before.ids.len(), queued.ids.len() + after.ids.len()));
    pipeline.verify().await;
}

/// The names of all keys of a pipeline.
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

/// Runs `purge`; returns whether it succeeded, its output, and its line in the termination log.
async fn purge(pipeline: &Pipeline, yes: bool) -> (bool, String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination");
    let mut arguments = vec!["--termination-log", log.to_str().unwrap(), "--wait-ms", "300"];
    arguments.extend(yes.then_some("--yes"));
    let ended = pipeline.command("purge", &arguments).await;
    let printed = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    let left = std::fs::read_to_string(log).unwrap_or_else(|_| "null".to_owned());
    (ended.status.success(), printed, serde_json::from_str(&left).unwrap())
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

    let (done, printed, left) = purge(&pipeline, true).await;
    assert!(!done && left["reason"] == "PreviousWorkersActive", "{printed}");
    work.stop().await;
    pipeline.send(&[record("queued", "d")]).await;
    serve.stop().await;
    let before = keys(&pipeline).await;
    assert_eq!(before.len(), 8, "{before:?}");

    // Without --yes it only lists.
    let (done, printed, left) = purge(&pipeline, false).await;
    assert!(done && left.is_null(), "{printed}");
    assert!(
        printed.contains(&format!("{} records", load.ids.len())) && printed.contains(&pipeline.records(1)),
        "{printed}"
    );
    // While one cursor or the schema belongs to another pipeline, nothing is removed.
    let cursor = pipeline.cursor("alerts");
    let _: i64 = pipeline.redis(&["HSET", &cursor, "pipeline", "another"]).await;
    let (done, printed, left) = purge(&pipeline, true).await;
    assert!(!done && left["reason"] == "OtherPipeline" && printed.contains("another"), "{printed}");
    let _: i64 = pipeline.redis(&["HSET", &cursor, "pipeline", &own]).await;
    pipeline.annotate(|metadata| (metadata["uid"], metadata["generation"]) = ("u2".into(), 1.into()));
    let (done, printed, left) = purge(&pipeline, true).await;
    assert!(!done && left["reason"] == "OtherPipeline" && printed.contains(&own), "{printed}");
    assert_eq!(keys(&pipeline).await.len(), before.len(), "nothing was removed");
    assert!(schema_is_there(&pipeline).await);

    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": &own}));
    let (done, printed, left) = purge(&pipeline, true).await;
    assert!(done && left["reason"] == "Purged" && left["pipelineId"] == own.as_str(), "{printed}");
    assert!(printed.contains(&format!("{} records", load.ids.len())), "{printed}");
    assert_eq!(keys(&pipeline).await, [""; 0]);
    assert!(!schema_is_there(&pipeline).await);
    let (done, printed, left) = purge(&pipeline, true).await;
    assert!(done && left["reason"] == "Purged" && printed.contains("nothing is left"), "{printed}");
    assert!(schema_is_there(&beside).await, "the other pipeline in the database stays");
}
