//! Commits over several shards: ids that shards take at the same time, and dead letters that are replayed and discarded at
//! once.

use futures::future::{join, join_all};
use serde_json::{Value, json};

use crate::harness::{Pipeline, eventually, record};

#[tokio::test]
async fn the_same_ids_in_opposite_orders_are_taken_once_and_no_shard_waits_for_ever() {
    const IDS: usize = 300;
    let pipeline = Pipeline::new(json!({"shards": 16})).await;
    let _serve = pipeline.serve().await;
    // All wait before the first is decided.
    let of_destination = |destination: usize| {
        let ids: Vec<usize> = if destination.is_multiple_of(2) { (0..IDS).collect() } else { (0..IDS).rev().collect() };
        ids.into_iter()
            .map(move |id| record(&format!("id-{id:04}"), &format!("d{destination}")))
            .collect::<Vec<Value>>()
    };
    join_all((0..16).map(|destination| {
        let records = of_destination(destination);
        let pipeline = &pipeline;
        async move { pipeline.send(&records).await }
    }))
    .await;
    let _workers = [pipeline.work(), pipeline.work()];
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from records").await, IDS as i64);
    assert_eq!(pipeline.number("select count(distinct record_id) from records").await, IDS as i64);
    assert_eq!(pipeline.number("select count(*) from conflicts").await, 15 * IDS as i64);
    assert_eq!(pipeline.number("select count(*) from dead_letters").await, 0);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_dead_letter_that_is_replayed_and_discarded_at_once_is_closed_once() {
    let spec = json!({"shards": 2, "policy": {"minimumTotal": "0"}});
    let (pipeline, _serve, _work) = Pipeline::running(spec).await;
    let mut dead_letters = Vec::new();
    for n in 0..20 {
        let mut out = record(&format!("out-{n}"), &format!("account-{}", n % 4));
        (out["type"], out["value"]) = ("negative".into(), "5".into());
        let problem = pipeline.apply(&out).await.refused(422, "dead_lettered");
        dead_letters.push(problem["deadLetter"].as_str().unwrap().to_owned());
    }
    let deposits: Vec<Value> = (0..4)
        .map(|n| {
            let mut deposit = record(&format!("in-{n}"), &format!("account-{n}"));
            deposit["value"] = "100".into();
            deposit
        })
        .collect();
    pipeline.send(&deposits).await;
    pipeline.applied().await;
    join_all(dead_letters.iter().map(|id| {
        let (replay, discard) = (format!("/dead-letters/{id}/replay"), format!("/dead-letters/{id}/discard"));
        let pipeline = &pipeline;
        async move { join(pipeline.act(&replay), pipeline.act(&discard)).await }
    }))
    .await;
    eventually("each is closed", async || {
        pipeline.number("select count(*) from dead_letters where state = 'open'").await == 0
    })
    .await;
    pipeline.applied().await;
    // A replayed one is a record, a discarded one is none, and its id is free.
    let replayed = pipeline.number("select count(*) from dead_letters where state = 'replayed'").await;
    assert_eq!(pipeline.number("select count(*) from records where record_id like 'out-%'").await, replayed);
    assert_eq!(pipeline.number("select count(*) from record_ids where record_id like 'out-%'").await, replayed);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_shard_whose_ids_another_takes_for_ever_delays_no_other_shard_for_long() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 4})).await;
    for round in 0..10 {
        let same =
            |destination: &str| (0..50).map(|n| record(&format!("same-{round}-{n}"), destination)).collect::<Vec<_>>();
        let other: Vec<Value> = (0..50).map(|n| record(&format!("own-{round}-{n}"), &format!("own-{n}"))).collect();
        let (one, two) = (same("a"), same("b"));
        join(join(pipeline.send(&one), pipeline.send(&two)), pipeline.send(&other)).await;
    }
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from records").await, 1_000);
    assert_eq!(pipeline.number("select count(*) from conflicts").await, 500);
    pipeline.verify().await;
}
