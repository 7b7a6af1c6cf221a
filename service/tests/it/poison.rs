//! Data errors and entries that crash workers: only the bad entry becomes a dead letter, and its neighbours count.

use std::collections::BTreeSet;

use millrace::domain::{DestinationId, ShardId};
use redis::AsyncCommands as _;
use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, PrivatePostgres, eventually, record, shared};

/// The reason of a record's dead letter, if it has one.
async fn reason(pipeline: &Pipeline, id: &str) -> Option<String> {
    sqlx::query_scalar("select reason from dead_letters where record_id = $1")
        .bind(id)
        .fetch_optional(&pipeline.sql)
        .await
        .unwrap()
}

/// Appends an entry as another program would.
async fn append(pipeline: &Pipeline, shard: u64, fields: &[(&str, &[u8])]) {
    let client = redis::Client::open(pipeline.redis_url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _: String = connection.xadd(pipeline.records(shard), "*", fields).await.unwrap();
}

/// Lets Postgres refuse records as data errors whose id begins with `poison`.
async fn refuse_poison(pipeline: &Pipeline) {
    let refuse = "create function refuse_poison() returns trigger language plpgsql as $$ begin
                      if new.record_id like 'poison%' then raise exception 'no poison' using errcode = '22023'; end if;
                      return new;
                  end $$";
    pipeline.execute(refuse).await;
    pipeline
        .execute("create trigger refuse before insert on records for each row execute function refuse_poison()")
        .await;
}

/// A destination of this shard, of two shards.
fn destination(shard: u16) -> String {
    (0..)
        .map(|n| format!("d{n}"))
        .find(|name| ShardId::of(&DestinationId::stored(name.as_str()), 2).get() == shard)
        .unwrap()
}

/// Twenty good records of one shard, in two halves.
fn neighbours(shard: u16) -> (Vec<Value>, Vec<Value>, Vec<String>) {
    let destination = destination(shard);
    let records: Vec<Value> = (0..20).map(|n| record(&format!("good-{n}"), &destination)).collect();
    let ids = (0..20).map(|n| format!("good-{n}")).collect();
    (records[..10].to_vec(), records[10..].to_vec(), ids)
}

#[tokio::test]
async fn bad_entries_first_middle_and_last_of_a_batch_become_dead_letters() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let (first, second, ids) = neighbours(0);
    let stray = record("stray", &destination(1)).to_string();
    append(&pipeline, 0, &[("record", b"\xff\xfe\0garbage"), ("receivedAt", b"never")]).await;
    append(&pipeline, 0, &[("record", stray.as_bytes())]).await;
    pipeline.send(&first).await;
    append(&pipeline, 0, &[("something", b"else"), ("and", b"more")]).await;
    append(&pipeline, 0, &[("record", br#"{"recordId":"half"}"#)]).await;
    pipeline.send(&second).await;
    append(&pipeline, 0, &[("record", b"")]).await;
    // The worker starts now, so that one batch holds them all.
    let _work = pipeline.work();
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
    let dead_letters: Vec<(i64, String, Vec<u8>)> =
        sqlx::query_as("select n, reason, payload from dead_letters where shard = 0 order by n")
            .fetch_all(&pipeline.sql)
            .await
            .unwrap();
    let reasons: Vec<&str> = dead_letters.iter().map(|(_, reason, _)| reason.as_str()).collect();
    assert_eq!(reasons, ["malformed", "wrong_shard", "malformed", "malformed", "malformed"]);
    assert_eq!(dead_letters[0].2, b"\xff\xfe\0garbage", "the payload is kept byte for byte");
    assert_eq!(
        serde_json::from_slice::<Value>(&dead_letters[2].2).unwrap(),
        json!({"something": "else", "and": "more"})
    );
    let published = pipeline.sink_entries("dead-letters").await;
    let numbers: Vec<i64> = published.iter().map(|entry| entry.number().1).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5], "dead letters have numbers of their own, without a gap");
}

/// Starts workers that die while they decide the record "poison", one after the other, until it is a dead letter and all
/// others are applied.
async fn workers_die_at_the_poison(pipeline: &Pipeline) {
    let environment = [("MILLRACE_FAULT_POISON", "poison:kill"), ("MILLRACE_LEASE_MS", "500")];
    let mut deaths = 0;
    loop {
        let mut worker = pipeline.work_with(&environment);
        let mut died = false;
        eventually("the worker crashes or applies all", async || {
            died = worker.has_ended();
            died || reason(pipeline, "poison").await.is_some()
        })
        .await;
        if !died {
            pipeline.applied().await;
            break;
        }
        worker.died_at_its_fault().await;
        deaths += 1;
        assert!(deaths <= 5, "it is noted from the third delivery on, and three notes suffice");
    }
    // It crashes a worker twice in a batch, then three times alone.
    assert_eq!(deaths, 5);
    assert_eq!(reason(pipeline, "poison").await.as_deref(), Some("crashed_worker"));
    assert_eq!(pipeline.number("select count(*) from attempts").await, 0, "no note is left");
}

#[tokio::test]
async fn an_entry_that_crashes_workers_becomes_a_dead_letter_after_three_notes() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut load = Load::new("r", 60);
    load.records.insert(30, record("poison", "destination-3"));
    pipeline.send(&load.records).await;
    workers_die_at_the_poison(&pipeline).await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn record_500_of_a_batch_that_crashes_workers_becomes_the_one_dead_letter() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut load = Load::new("r", 900);
    load.records.insert(499, record("poison", "destination-3"));
    load.records.truncate(1_000);
    let ids: BTreeSet<&str> = load.records.iter().filter_map(|record| record["recordId"].as_str()).collect();
    let ids: Vec<String> = ids.into_iter().filter(|id| *id != "poison").map(str::to_owned).collect();
    let (status, answer) = pipeline.post("/records/batch", &load.records.as_slice().into()).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(1_000)), "{answer}");
    let entries: u64 = pipeline.redis(&["XLEN", &pipeline.records(0)]).await;
    assert!(entries >= 5, "one batch has {entries} entries");
    workers_die_at_the_poison(&pipeline).await;
    pipeline.check_exactly_once(&ids).await;
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 1);
    pipeline.counted(0).await;
    assert_eq!(pipeline.number("select accounted from shards").await, 1_000);
}

#[tokio::test]
async fn an_entry_beside_one_that_crashes_workers_becomes_no_dead_letter() {
    let postgres = PrivatePostgres::start().await;
    let pipeline = Pipeline::on(&shared().await.redis, &postgres.url(), json!({"shards": 2})).await;
    pipeline
        .execute("do $$ begin execute format('alter database %I set lock_timeout = 100', current_database()); end $$")
        .await;
    let _serve = pipeline.serve().await;
    pipeline.send(&[record("poison", &destination(0)), record("neighbour", &destination(1))]).await;
    // The neighbour is decided and cannot be written; dead letters can.
    let mut held = pipeline.sql.begin_with("begin").await.unwrap();
    sqlx::query("lock table records in share mode").execute(&mut *held).await.unwrap();
    let mut deaths = 0;
    while reason(&pipeline, "poison").await.is_none() {
        assert!(deaths < 12, "it is a dead letter after three notes");
        let mut worker = pipeline.work_with(&[("MILLRACE_FAULT_POISON", "poison:kill"), ("MILLRACE_LEASE_MS", "500")]);
        eventually("the worker crashes, or has isolated it", async || {
            worker.has_ended() || reason(&pipeline, "poison").await.is_some()
        })
        .await;
        deaths += 1;
    }
    held.rollback().await.unwrap();
    let _work = pipeline.work();
    pipeline.applied().await;
    assert_eq!(reason(&pipeline, "neighbour").await, None);
    pipeline.check_exactly_once(&["neighbour".to_owned()]).await;
}

#[tokio::test]
async fn a_record_whose_decision_panics_becomes_a_dead_letter() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut load = Load::new("r", 60);
    load.records.insert(30, record("poison", "destination-3"));
    pipeline.send(&load.records).await;
    let mut worker = pipeline.work_with(&[("MILLRACE_FAULT_POISON", "poison:panic")]);
    pipeline.applied().await;
    assert!(!worker.has_ended());
    let reasons: Vec<String> =
        sqlx::query_scalar("select reason from dead_letters").fetch_all(&pipeline.sql).await.unwrap();
    assert_eq!(reasons, ["panicked"]);
    // The open dead letter keeps its id taken: the same record again is a duplicate.
    pipeline.send(&[record("poison", "destination-3")]).await;
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from dead_letters where record_id = 'poison'").await, 1);
    assert_eq!(pipeline.number("select count(*) from duplicates where record_id = 'poison'").await, 1);
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn records_that_postgres_refuses_are_isolated_by_bisection() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    refuse_poison(&pipeline).await;
    let mut load = Load::new("r", 100);
    for (place, id) in [(0, "poison-first"), (50, "poison-middle"), (51, "poison-next")] {
        load.records.insert(place, record(id, "destination-3"));
    }
    load.records.push(record("poison-last", "destination-3"));
    pipeline.send(&load.records).await;
    let worker = pipeline.work();
    pipeline.applied().await;
    for id in ["poison-first", "poison-middle", "poison-next", "poison-last"] {
        assert_eq!(reason(&pipeline, id).await.as_deref(), Some("refused_by_store"), "{id}");
    }
    assert_eq!(worker.logged("worker.record.isolated").len(), 4);
    pipeline.check_exactly_once(&load.ids).await;
}
