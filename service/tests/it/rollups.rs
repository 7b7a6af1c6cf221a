//! Declared rollups: the rows of each equal its records, whenever it was declared, and whatever dies meanwhile.

use std::collections::{BTreeMap, HashSet};

use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::{
    harness::{Load, Pipeline, PrivatePostgres, eventually, shared},
    rewinds::one_shard,
};

/// The rollups of these tests.
fn rollups() -> Value {
    json!([
        {"name": "hourly", "window": "1h", "groupBy": ["destinationId"]},
        {"name": "sources", "window": "1d", "timeZone": "Europe/Berlin", "groupBy": ["reference"], "distinct": "sourceId"},
    ])
}

/// A key of a row: group, window and sign.
type Row = (String, String, bool);

/// Records over five hours, the last of which belongs to the next day in Berlin, and eleven sources.
fn load(prefix: &str, start: usize, n: usize) -> Load {
    let mut load = Load::from(prefix, start, n);
    for record in &mut load.records {
        let n = record["attributes"]["n"].as_u64().unwrap();
        record["time"] = format!("2026-01-31T{:02}:59:59.999999Z", 19 + n % 5).into();
        record["sourceId"] = format!("source-{}", n % 11).into();
    }
    load
}

/// Count and sum per row, from the records that were sent. A record whose id came before counts once.
fn by_hand(loads: &[&Load], key: impl Fn(&Value) -> (String, String)) -> BTreeMap<Row, (i64, Decimal)> {
    let mut rows: BTreeMap<Row, (i64, Decimal)> = BTreeMap::new();
    let mut ids = HashSet::new();
    for record in loads.iter().flat_map(|load| &load.records) {
        if ids.insert(record["recordId"].as_str().unwrap()) {
            let (group, window) = key(record);
            let row = rows.entry((group, window, record["type"] == "positive")).or_default();
            row.0 += 1;
            row.1 += record["value"].as_str().unwrap().parse::<Decimal>().unwrap();
        }
    }
    rows
}

fn text(record: &Value, field: &str) -> String {
    record[field].as_str().unwrap().to_owned()
}

/// Waits until a rollup is complete, as a query defines it.
async fn complete(pipeline: &Pipeline, count: i64) {
    eventually("the rollups are complete", async || {
        pipeline
            .number(
                "select count(*) from rollups r
                 where removed is null and (select bool_and(s.policy_version >= r.version and exists (
                     select from rollup_builds b where b.rollup_id = r.id and b.shard = s.shard and next_seq >= until_seq
                 )) from shards s)",
            )
            .await
            == count
    })
    .await;
}

/// Compares both rollups with a count of the sent records by hand, and runs `verify`.
async fn check(pipeline: &Pipeline, loads: &[&Load]) {
    complete(pipeline, 2).await;
    for (name, expected) in [
        (
            "hourly",
            by_hand(loads, |record| {
                (text(record, "destinationId"), format!("31 {}", &record["time"].as_str().unwrap()[11..13]))
            }),
        ),
        (
            "sources",
            by_hand(loads, |record| {
                let is_next_day = &record["time"].as_str().unwrap()[11..13] == "23";
                let day = if is_next_day { "01 00" } else { "31 00" };
                (text(record, "reference") + " " + &text(record, "sourceId"), day.into())
            }),
        ),
    ] {
        let rows: Vec<(String, String, bool, i64, String)> = sqlx::query_as(
            "select trim(concat_ws(' ', nullif(destination_id, ''), nullif(t.reference, ''), nullif(source_id, ''))),
                    to_char(window_start, 'DD HH24'), positive, sum(count)::bigint, sum(sum)::text
             from rollup_totals t join rollups r on r.id = rollup_id
             where r.name = $1 and r.removed is null and window_start >= '2026-01-31' and window_start < '2026-02-02'
             group by 1, 2, 3",
        )
        .bind(name)
        .fetch_all(&pipeline.sql)
        .await
        .unwrap();
        let found: BTreeMap<Row, (i64, Decimal)> = rows
            .into_iter()
            .map(|(group, window, positive, count, sum)| ((group, window, positive), (count, sum.parse().unwrap())))
            .collect();
        assert_eq!(found, expected, "{name}");
    }
    check_answer(pipeline, loads).await;
    let complete = |name: &str| json!({"name": name, "complete": true, "unbuilt": 0});
    assert_eq!(pipeline.get("/stats").await["rollups"], json!([complete("hourly"), complete("sources")]));
    pipeline.verify().await;
}

/// Compares the answer of a query that the hourly rollup fits with a count of the sent records by hand.
async fn check_answer(pipeline: &Pipeline, loads: &[&Load]) {
    let range = "startTime=2026-01-31T00:00:00Z&endTime=2026-02-01T00:00:00Z";
    let answer = pipeline.get(&format!("/records/rollups?window=1h&groupBy=destinationId,type&{range}")).await;
    let row = |row: &Value| {
        let key = (text(row, "destinationId"), text(row, "windowStart")[11..13].to_owned(), row["type"] == "positive");
        let total: Decimal = row["totals"][0]["total"].as_str().unwrap().parse().unwrap();
        (key, (row["count"].as_i64().unwrap(), total.abs()))
    };
    let found: BTreeMap<Row, (i64, Decimal)> = answer["items"].as_array().unwrap().iter().map(row).collect();
    let hour = |record: &Value| (text(record, "destinationId"), text(record, "time")[11..13].to_owned());
    assert_eq!(found, by_hand(loads, hour), "GET /records/rollups");
}

#[tokio::test]
async fn a_rollup_that_is_declared_under_load_counts_each_record_once() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let small = [("MILLRACE_BATCH", "20")];
    let (_first, _second) = (pipeline.work_with(&small), pipeline.work_with(&small));
    let before = load("r", 0, 1_500);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    let during = load("r", 1_500, 3_000);
    let declare = async {
        eventually("some more are applied", async || pipeline.number("select count(*) from records").await > 1_600)
            .await;
        pipeline.change(|spec| spec["rollups"] = rollups());
    };
    tokio::join!(pipeline.send(&during.records), declare);
    pipeline.applied().await;
    let after = load("r", 4_500, 200);
    complete(&pipeline, 2).await;
    // Each id once more: duplicates count nowhere.
    pipeline.send(&before.records[..300]).await;
    pipeline.send(&after.records).await;
    pipeline.applied().await;
    check(&pipeline, &[&before, &during, &after]).await;
    for built in ["built", "not built"] {
        let rows = format!("select count(*) from rollup_totals where {built}");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(rows)).fetch_one(&pipeline.sql).await.unwrap();
        assert!(rows > 0, "{built}: both parts hold records");
    }
}

#[tokio::test]
async fn a_rollup_that_is_removed_and_declared_again_is_built_again() {
    let pipeline = Pipeline::new(json!({"rollups": rollups()})).await;
    let _serve = pipeline.serve().await;
    let (one, other) = (pipeline.work(), pipeline.work());
    // A process that starts later could register the manifest as it was before a change.
    tokio::join!(one.ready(), other.ready());
    let first = load("r", 0, 900);
    pipeline.send(&first.records).await;
    pipeline.applied().await;
    check(&pipeline, &[&first]).await;
    assert_eq!(pipeline.number("select count(*) from rollup_totals where built").await, 0, "declared at the beginning");
    let (second, third) = (load("r", 900, 900), load("r", 1_800, 900));
    let change = async {
        pipeline.change(|spec| spec["rollups"] = json!([rollups()[1]]));
        eventually("a shard runs the version without it", async || {
            pipeline.number("select max(policy_version) from shards").await == 2
        })
        .await;
        pipeline.change(|spec| spec["rollups"] = rollups());
    };
    tokio::join!(pipeline.send(&second.records), change);
    pipeline.send(&third.records).await;
    pipeline.applied().await;
    eventually("the removed rollup is deleted", async || {
        pipeline.number("select count(*) from rollups").await == 2
            && pipeline.number("select count(distinct rollup_id) from rollup_totals").await == 2
            && pipeline.number("select count(distinct rollup_id) from rollup_builds").await == 2
    })
    .await;
    check(&pipeline, &[&first, &second, &third]).await;
    let versions: Vec<(String, i64)> =
        sqlx::query_as("select name, version from rollups order by name").fetch_all(&pipeline.sql).await.unwrap();
    assert_eq!(versions, [("hourly".to_owned(), 3), ("sources".to_owned(), 1)], "an unchanged one stays");
}

#[tokio::test]
async fn a_worker_that_dies_in_a_build_adds_no_record_twice() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let mut work = pipeline.work();
    let records = load("r", 0, 1_500);
    pipeline.send(&records.records).await;
    pipeline.applied().await;
    work.kill();
    // A step of the build has as many records as five batches.
    let mut crashing = pipeline.work_with(&[("MILLRACE_FAULT", "before_rollup_commit:4"), ("MILLRACE_BATCH", "20")]);
    eventually("the worker owns all shards", async || pipeline.shares().await == [2]).await;
    pipeline.change(|spec| spec["rollups"] = rollups());
    crashing.died_at_its_fault().await;
    let built = pipeline.number("select sum(next_seq - 1)::bigint from rollup_builds").await;
    assert!(0 < built && built < 3_000, "it died within the build: {built}");
    let _successor = pipeline.work();
    check(&pipeline, &[&records]).await;
}

#[tokio::test]
async fn a_rollup_that_a_restored_postgres_lost_is_declared_again() {
    let mut postgres = PrivatePostgres::start().await;
    let (pipeline, _serve, work) = one_shard(&shared().await.redis, &postgres.url()).await;
    let kept = load("kept", 0, 300);
    pipeline.send(&kept.records).await;
    pipeline.applied().await;
    postgres.stop();
    postgres.back_up();
    postgres.restart().await;
    pipeline.change(|spec| spec["rollups"] = rollups());
    complete(&pipeline, 2).await;
    pipeline.send(&load("dropped", 300, 100).records).await;
    pipeline.applied().await;
    postgres.stop();
    postgres.restore();
    postgres.restart().await;
    work.logs("worker.postgres.rewound").await;
    let after = load("after", 400, 200);
    pipeline.send_through(&after.records).await;
    pipeline.applied().await;
    check(&pipeline, &[&kept, &after]).await;
}
