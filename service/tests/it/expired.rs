//! Records of a dropped partition: their ids stay taken, and everything that counted them stays right.

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, record, sink};

#[tokio::test]
async fn a_dropped_partition_takes_its_records_and_nothing_else() {
    let sinks = json!({"shards": 1, "sinks": [sink("notifications", "Processed")]});
    let (pipeline, _serve, _work) = Pipeline::running(sinks).await;
    let old: Vec<Value> = (0..40).map(|n| record(&format!("old-{n}"), &format!("destination-{}", n % 20))).collect();
    pipeline.send(&old).await;
    pipeline.applied().await;
    let totals = async || -> Vec<(String, i64, String)> {
        let rows = "select destination_id || ' ' || unit, count, total::text from totals order by 1";
        sqlx::query_as(rows).fetch_all(&pipeline.sql).await.unwrap()
    };
    let before = totals().await;
    let seq: i64 = pipeline.number("select records from shards").await;
    // The next period begins. A shard's period never falls, so the present one ends for it.
    let period: String =
        sqlx::query_scalar("select max(period)::text from shard_periods").fetch_one(&pipeline.sql).await.unwrap();
    pipeline.execute("update shards set period = (period + interval '1 month')::date").await;
    let partition = format!("records_{}", period.replace('-', ""));
    let detach = format!("alter table records detach partition {partition}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(detach)).execute(&pipeline.sql).await.unwrap();
    let drop = format!("drop table {partition}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&pipeline.sql).await.unwrap();

    // The same ids again: as they were, with another amount, and a new record on the key of an old one.
    let mut other = old[1].clone();
    other["value"] = "77".into();
    let mut new = old[0].clone();
    new["recordId"] = "new".into();
    pipeline.send(&[old[0].clone(), other, new]).await;
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from duplicates").await, 1);
    assert_eq!(pipeline.number("select count(*) from conflicts").await, 1);
    assert_eq!(pipeline.number("select count(*) from records").await, 1);
    let added: i64 = totals().await.iter().map(|(_, count, _)| count).sum();
    assert_eq!(added, before.iter().map(|(_, count, _)| count).sum::<i64>() + 1);
    let stored: (String, i64) =
        sqlx::query_as("select period::text, seq from records").fetch_one(&pipeline.sql).await.unwrap();
    assert!(stored.0 > period && stored.1 == seq + 1, "{stored:?}: the number continues in the next period");

    let again = pipeline.apply(&old[0]).await.expect(200);
    assert_eq!((&again["status"], &again["duplicate"]), (&json!("processed"), &json!(true)), "{again}");
    assert!(again["seq"].is_i64() && again.get("summary").is_none(), "{again}");
    let expired = pipeline.ask("/records/old-0").await;
    let problem = expired.refused(410, "record_expired");
    assert!(problem["detail"].as_str().unwrap().contains(&period), "{problem}");
    let history = pipeline.get("/records/new").await;
    let key = (&old[0]["destinationId"], &old[0]["reference"], &old[0]["unit"]);
    let same_key = old.iter().filter(|other| (&other["destinationId"], &other["reference"], &other["unit"]) == key);
    assert_eq!(history["summary"]["previousCount"], same_key.count(), "{history}");
    let published: u64 = pipeline.redis(&["XLEN", &pipeline.stream("notifications")]).await;
    assert_eq!(published as i64, seq + 1);
}

#[tokio::test]
async fn a_missing_partition_stops_commits_until_it_is_created() {
    let (pipeline, _serve, mut work) = Pipeline::running(json!({"shards": 1})).await;
    work.stop().await;
    let load = Load::new("r", 30);
    pipeline.send(&load.records).await;
    // The partition of the present period, and a name in the place of the one that the worker would create.
    let partition: String = sqlx::query_scalar(
        "select min(inhrelid::regclass::text) from pg_inherits where inhparent = 'records'::regclass",
    )
    .fetch_one(&pipeline.sql)
    .await
    .unwrap();
    let detach = format!("alter table records detach partition {partition}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(detach)).execute(&pipeline.sql).await.unwrap();
    let work = pipeline.work();
    work.reports("the partition is missing", |status| {
        status["problems"]
            .as_array()
            .is_some_and(|problems| problems.iter().any(|problem| problem["reason"] == "PartitionMissing"))
    })
    .await;
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0);
    assert_eq!(pipeline.number("select sum(processed)::bigint from shards").await, 0);
    let drop = format!("drop table {partition}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&pipeline.sql).await.unwrap();
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}
