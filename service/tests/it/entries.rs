//! Entries of many records: parts that were applied, contents that changed, formats of other versions.

use serde_json::json;

use crate::harness::{Load, Pipeline, eventually, lost, record};

#[tokio::test]
async fn an_entry_is_applied_whole_and_counts_once_after_a_crash() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("r", 180);
    pipeline.send(&load.records).await;
    let entries: u64 = pipeline.redis(&["XLEN", &pipeline.records(0)]).await;
    assert_eq!(entries, 1, "one request is one entry");
    // Larger than a transaction usually is, and committed without an acknowledgement.
    let mut crashing = pipeline.work_with(&[("MILLRACE_BATCH", "50"), ("MILLRACE_FAULT", "after_commit:1")]);
    crashing.died_at_its_fault().await;
    assert_eq!(pipeline.number("select accounted from shards").await, load.entries());
    let _work = pipeline.work();
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    assert_eq!(pipeline.number("select accounted from shards").await, load.entries());
    lost(&pipeline, 0, false).await;
    pipeline.verify().await;
}

#[tokio::test]
async fn an_entry_with_a_wrong_checksum_becomes_one_dead_letter_and_its_neighbours_are_applied() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let (before, after) = (Load::from("r", 0, 20), Load::from("r", 100, 20));
    pipeline.send(&before.records).await;
    let appended: i64 = pipeline.redis(&["HINCRBY", &pipeline.fence(0), "appended", "3"]).await;
    let offsets = format!("{}-{appended}", appended - 2);
    let fields = ["format", "1", "offsets", &offsets, "records", "bytes of another entry"];
    let stream = pipeline.records(0);
    let entry = [&["XADD", &stream, "*"][..], &fields].concat();
    let _: String = pipeline.redis(&entry).await;
    pipeline.send(&after.records).await;
    let _work = pipeline.work();
    pipeline.applied().await;
    pipeline.check_exactly_once(&[before.ids, after.ids].concat()).await;
    let dead_letters = pipeline.list("/dead-letters").await;
    assert_eq!(dead_letters.len(), 1, "{dead_letters:?}");
    assert_eq!((&dead_letters[0]["reason"], dead_letters[0]["payloadBase64"].is_string()), (&json!("corrupted"), true));
    lost(&pipeline, 0, false).await;
}

#[tokio::test]
async fn an_entry_of_an_unknown_format_stops_its_shard_and_becomes_no_dead_letter() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let _serve = pipeline.serve().await;
    let mut load = Load::new("r", 40);
    pipeline.send(&load.records).await;
    let newer = ["XADD", &pipeline.records(0), "*", "format", "2", "payload", "x"];
    let id: String = pipeline.redis(&newer).await;
    let work = pipeline.work_with(&[("MILLRACE_LEASE_MS", "500")]);
    work.reports("the format is unknown", |status| {
        status["problems"].as_array().is_some_and(|problems| {
            problems.iter().any(|problem| {
                problem["reason"] == "StreamFormatUnknown"
                    && problem["message"].as_str().is_some_and(|text| text.contains(&id))
            })
        })
    })
    .await;
    eventually("the shard is returned", async || {
        pipeline.number("select count(*) from shards where shard = 0 and owner is null").await == 1
    })
    .await;
    let more = Load::from("r", 1_000, 20);
    pipeline.send(&more.records).await;
    eventually("the other shard is worked", async || {
        pipeline.number("select count(*) from records where shard = 1").await > 10
    })
    .await;
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0);
    // As a worker of the version that appended it would do.
    let _: i64 = pipeline.redis(&["XDEL", &pipeline.records(0), &id]).await;
    pipeline.applied().await;
    load.ids.extend(more.ids);
    pipeline.check_exactly_once(&load.ids).await;
    work.has_problems(&[]).await;
}

#[tokio::test]
async fn a_replay_of_a_dead_letter_that_postgres_lost_is_decided_as_a_record() {
    let (pipeline, _serve, mut work) = Pipeline::running(json!({"shards": 1, "policy": {"minimumTotal": "0"}})).await;
    let mut out = record("out", "account");
    (out["type"], out["value"]) = ("negative".into(), "15.50".into());
    let refused = pipeline.apply(&out).await.refused(422, "dead_lettered");
    let mut more = record("more", "account");
    more["value"] = "20".into();
    pipeline.apply(&more).await.expect(200);
    work.stop().await;
    for _ in 0..2 {
        let path = format!("/dead-letters/{}/replay", refused["deadLetter"].as_str().unwrap());
        pipeline.act(&path).await.expect(202);
    }
    pipeline.execute("with gone as (delete from dead_letters) delete from record_ids where period is null").await;
    let _work = pipeline.work();
    pipeline.applied().await;
    assert_eq!(pipeline.get("/records/out").await["status"], "processed");
    assert_eq!(pipeline.number("select count(*) from duplicates").await, 1, "the second replay");
    lost(&pipeline, 0, false).await;
}
