//! Dead letters: queried, replayed, discarded. However often a replay is requested, it is decided once.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Pipeline, eventually, record};

fn amount(id: &str, kind: &str, value: &str) -> Value {
    let mut record = record(id, "account");
    (record["type"], record["value"]) = (kind.into(), value.into());
    record
}

/// A pipeline of one shard whose balances may not go below zero.
async fn accounts() -> (Pipeline, crate::harness::Process, crate::harness::Process) {
    Pipeline::running(json!({"shards": 1, "policy": {"minimumTotal": "0"}})).await
}

async fn refused(pipeline: &Pipeline, record: &Value) -> String {
    let problem = pipeline.apply(record).await.refused(422, "dead_lettered");
    assert_eq!(problem["reason"], "below_minimum_total");
    problem["deadLetter"].as_str().unwrap().to_owned()
}

async fn closed(pipeline: &Pipeline, dead_letter: &str) -> Value {
    let path = "/dead-letters?state=replayed";
    eventually("the replay is decided", async || {
        pipeline.list(path).await.iter().any(|known| known["id"] == *dead_letter)
    })
    .await;
    pipeline.list(path).await.into_iter().find(|known| known["id"] == *dead_letter).unwrap()
}

async fn balance(pipeline: &Pipeline) -> Value {
    let answer = pipeline.get("/records/aggregations?destinationId=account&records=false").await;
    answer["groups"][0]["totals"][0]["total"].clone()
}

#[tokio::test]
async fn a_replay_is_decided_once_however_often_it_is_asked_for() {
    let (pipeline, _serve, mut work) = accounts().await;
    pipeline.apply(&amount("in", "positive", "10")).await.expect(200);
    let mut out = amount("out", "negative", "15.50");
    out["attributes"] = json!({"why": "rent"});
    let dead_letter = refused(&pipeline, &out).await;
    let shown = pipeline.list("/dead-letters?state=open&recordId=out").await.remove(0);
    assert_eq!((&shown["id"], &shown["reason"]), (&dead_letter.clone().into(), &"below_minimum_total".into()));
    assert_eq!(shown["payload"], {
        let mut payload = out.clone();
        payload["recordId"] = "out".into();
        payload
    });
    assert_eq!(pipeline.get("/records/out").await["status"], "dead_lettered");
    pipeline.apply(&amount("more", "positive", "6")).await.expect(200);

    // Five requests at once, without a worker: all are queued, one is decided.
    work.stop().await;
    let path = format!("/dead-letters/{dead_letter}/replay");
    for answer in join_all((0..5).map(|_| pipeline.act(&path))).await {
        assert_eq!(answer.expect(202), json!({"id": dead_letter, "status": "queued"}));
    }
    assert_eq!(pipeline.act("/dead-letters/replay?recordId=out").await.expect(202)["queued"], 1);
    assert_eq!(pipeline.backlog().await, 6);
    let _work = pipeline.work();
    let shown = closed(&pipeline, &dead_letter).await;
    assert!(shown["closedAt"].is_string() && shown["requestedBy"].is_string(), "{shown}");
    pipeline.applied().await;
    assert_eq!(balance(&pipeline).await, "0.50");
    pipeline.check_exactly_once(&["in".into(), "more".into(), "out".into()]).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["processed"], &stats["duplicates"], &stats["conflicts"]), (&3.into(), &0.into(), &0.into()));
    assert_eq!(stats["deadLetters"], json!({"open": 0, "discarded": 0, "replayed": 1}));
    assert_eq!(stats["received"], 3, "a replay is received once");
    // A closed dead letter can be neither replayed nor discarded.
    for action in ["replay", "discard"] {
        pipeline.act(&format!("/dead-letters/{dead_letter}/{action}")).await.refused(409, "dead_letter_not_open");
    }
    let history = pipeline.get("/records/out").await;
    assert_eq!((&history["status"], &history["deadLetters"][0]["state"]), (&"processed".into(), &"replayed".into()));
}

#[tokio::test]
async fn a_replay_that_is_refused_again_opens_a_dead_letter_that_names_the_old() {
    let (pipeline, _serve, _work) = accounts().await;
    let first = refused(&pipeline, &amount("out", "negative", "5")).await;
    pipeline.act(&format!("/dead-letters/{first}/replay")).await.expect(202);
    closed(&pipeline, &first).await;
    pipeline.applied().await;
    let open = pipeline.list("/dead-letters?state=open").await;
    assert_eq!(open.len(), 1);
    assert_eq!((&open[0]["recordId"], &open[0]["replayOf"]), (&"out".into(), &first.clone().into()), "{open:?}");
    let second = open[0]["id"].as_str().unwrap();
    assert_ne!(second, first);
    // The new dead letter keeps the id taken.
    assert_eq!(refused(&pipeline, &amount("out", "negative", "5.0")).await, second);
    pipeline.apply(&amount("in", "positive", "5")).await.expect(200);
    pipeline.act(&format!("/dead-letters/{second}/replay")).await.expect(202);
    closed(&pipeline, second).await;
    pipeline.applied().await;
    assert_eq!(balance(&pipeline).await, "0");
    let entries = pipeline.sink_entries("dead-letters").await;
    assert_eq!(entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), [first.as_str(), second]);
    assert!(
        entries
            .iter()
            .all(|entry| entry.kind == "record.dead_lettered" && entry.data["reason"] == "below_minimum_total")
    );
    pipeline.check_exactly_once(&["in".into(), "out".into()]).await;
}

#[tokio::test]
async fn the_id_of_an_open_dead_letter_is_taken_and_discarding_frees_it() {
    let (pipeline, _serve, _work) = accounts().await;
    let out = amount("out", "negative", "5");
    let dead_letter = refused(&pipeline, &out).await;
    let again = pipeline.apply(&out).await.refused(422, "dead_lettered");
    assert_eq!((&again["deadLetter"], &again["duplicate"]), (&dead_letter.clone().into(), &true.into()));
    let other = amount("out", "positive", "7");
    pipeline.apply(&other).await.refused(409, "record_conflict");
    assert_eq!(
        pipeline.act(&format!("/dead-letters/{dead_letter}/discard")).await.expect(200),
        json!({"id": dead_letter, "status": "discarded"})
    );
    assert_eq!(pipeline.get("/records/out").await["status"], "discarded");
    pipeline.apply(&other).await.expect(200);
    assert_eq!(pipeline.get("/records/out").await["status"], "processed");
    pipeline.act(&format!("/dead-letters/{dead_letter}/replay")).await.refused(409, "dead_letter_not_open");
    pipeline.applied().await;
    assert_eq!(balance(&pipeline).await, "7");
    let stats = pipeline.get("/stats").await;
    assert_eq!(stats["deadLetters"], json!({"open": 0, "discarded": 1, "replayed": 0}));
    assert_eq!(
        (&stats["processed"], &stats["duplicates"], &stats["conflicts"], &stats["received"]),
        (&1.into(), &1.into(), &1.into(), &4.into())
    );
    pipeline.check_exactly_once(&["out".into()]).await;
}

#[tokio::test]
async fn dead_letters_are_replayed_by_filter_and_a_dry_run_changes_nothing() {
    let (pipeline, _serve, _work) = accounts().await;
    let mut dead_letters = Vec::new();
    for n in 0..5 {
        dead_letters.push(refused(&pipeline, &amount(&format!("out-{n}"), "negative", "1")).await);
    }
    let mut elsewhere = amount("elsewhere", "negative", "1");
    elsewhere["destinationId"] = "other".into();
    let kept = refused(&pipeline, &elsewhere).await;
    pipeline.apply(&amount("in", "positive", "3")).await.expect(200);

    let filter = "/dead-letters/replay?destinationId=account&reason=below_minimum_total";
    let dry = pipeline.act(&format!("{filter}&dryRun=true")).await.expect(202);
    assert_eq!(dry, json!({"dryRun": true, "matching": 5, "queued": 0, "unreadable": 0, "ids": dead_letters}));
    assert_eq!(pipeline.backlog().await, 0, "nothing was queued");
    assert_eq!(pipeline.list("/dead-letters?state=open").await.len(), 6);

    // Two requests: the second continues at the cursor of the first.
    let first = pipeline.act(&format!("{filter}&limit=2")).await.expect(202);
    assert_eq!((&first["queued"], &first["ids"]), (&2.into(), &json!(dead_letters[..2])));
    let cursor = first["nextCursor"].as_str().unwrap();
    pipeline.act(&format!("/dead-letters/replay?limit=2&cursor={cursor}")).await.refused(400, "invalid_cursor");
    let second = pipeline.act(&format!("{filter}&limit=3&cursor={cursor}")).await.expect(202);
    assert_eq!((&second["queued"], &second["ids"]), (&3.into(), &json!(dead_letters[2..])));
    for dead_letter in &dead_letters {
        closed(&pipeline, dead_letter).await;
    }
    pipeline.applied().await;
    assert_eq!(balance(&pipeline).await, "0");
    let open = pipeline.list("/dead-letters?state=open").await;
    let of: Vec<_> = open.iter().map(|dead_letter| dead_letter["replayOf"].clone()).collect();
    assert_eq!(
        of,
        [Value::Null, dead_letters[3].clone().into(), dead_letters[4].clone().into()],
        "in the order of the list"
    );
    assert_eq!(open[0]["id"], kept);
    // The balance suffices for three records, in order.
    let ids = ["in", "out-0", "out-1", "out-2"].map(str::to_owned);
    pipeline.check_exactly_once(&ids).await;
}
