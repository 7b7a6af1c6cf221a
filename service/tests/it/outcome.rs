//! Requests that wait for the outcome (`Prefer: wait`), and repeated requests without ids (`Idempotency-Key`).

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Pipeline, answer, record};

/// A record without an id.
fn nameless(value: &str) -> Value {
    let mut record = record("", "d");
    record.as_object_mut().unwrap().remove("recordId");
    record["value"] = value.into();
    record
}

async fn keyed(pipeline: &Pipeline, path: &str, key: &str, body: &Value) -> Answer {
    answer(pipeline.posting(path, body.to_string()).header("idempotency-key", key).header("prefer", "wait=30")).await
}

#[tokio::test]
async fn an_awaited_outcome_is_final_and_a_duplicate_gets_that_of_its_original() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"policy": {"minimumTotal": "0"}})).await;
    let (mut paid, mut again) = (record("paid", "d"), record("more", "d"));
    (paid["value"], again["value"]) = ("10.50".into(), "0.25".into());
    let first = pipeline.apply(&paid).await.expect(200);
    let shard = first["shard"].clone();
    let expected = json!({
        "recordId": "paid", "status": "processed", "shard": shard, "seq": 1,
        "summary": {"previousCount": 0, "previousTotal": "0", "unit": "EUR"},
    });
    assert_eq!(first, expected);
    let second = pipeline.apply(&again).await.expect(200);
    assert_eq!(second["summary"], json!({"previousCount": 1, "previousTotal": "10.50", "unit": "EUR"}));
    // The first record again, with another spelling of its value.
    paid["value"] = "10.5".into();
    let mut duplicate = expected.clone();
    duplicate["duplicate"] = true.into();
    assert_eq!(pipeline.apply(&paid).await.expect(200), duplicate);
    paid["value"] = "11".into();
    pipeline.apply(&paid).await.refused(409, "record_conflict");
    // The policy refuses it; sent again, it is a duplicate of the dead letter.
    let mut much = record("much", "d");
    (much["type"], much["value"]) = ("negative".into(), "10.76".into());
    let refused = pipeline.apply(&much).await.refused(422, "dead_lettered");
    let dead_letter = format!("{shard}-d1");
    assert_eq!(
        (&refused["reason"], &refused["deadLetter"]),
        (&"below_minimum_total".into(), &dead_letter.clone().into())
    );
    assert!(refused.get("duplicate").is_none());
    let refused = pipeline.apply(&much).await.refused(422, "dead_lettered");
    assert_eq!((&refused["deadLetter"], &refused["duplicate"]), (&dead_letter.into(), &true.into()));
    // The whole balance may be taken.
    much["value"] = "10.75".into();
    much["recordId"] = "all".into();
    assert_eq!(pipeline.apply(&much).await.expect(200)["summary"]["previousTotal"], "10.75");
    pipeline.applied().await;
    pipeline.check_exactly_once(&["paid".into(), "more".into(), "all".into()]).await;
}

#[tokio::test]
async fn a_wait_ends_in_202_when_time_is_up_and_the_record_is_still_queued() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let begun = Instant::now();
    let waiting = pipeline.posting("/records", record("a", "d").to_string()).header("prefer", "wait=1");
    let queued = answer(waiting).await.expect(202);
    assert_eq!(queued, json!({"recordId": "a", "status": "queued"}));
    assert!(begun.elapsed() >= Duration::from_secs(1), "it waited for {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for {:?}", begun.elapsed());
    // Requests that wait when a worker starts get the outcome: each is a duplicate of the first record.
    let waiters = join_all((0..4).map(|_| async { pipeline.apply(&record("a", "d")).await.expect(200) }));
    let (answers, _work) = tokio::join!(waiters, async { pipeline.work() });
    assert!(answers.iter().all(|answer| answer["duplicate"] == true && answer["seq"] == 1), "{answers:?}");
    pipeline.applied().await;
    pipeline.check_exactly_once(&["a".into()]).await;
}

#[tokio::test]
async fn a_waiting_request_gets_202_when_its_process_stops() {
    let pipeline = Pipeline::new(json!({})).await;
    let mut serve = pipeline.serve().await;
    let stop = async {
        crate::harness::eventually("the record is queued", async || pipeline.backlog().await == 1).await;
        serve.stop().await;
    };
    let (begun, record) = (Instant::now(), record("a", "d"));
    let (answer, ()) = tokio::join!(pipeline.apply(&record), stop);
    answer.expect(202);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "the stop does not wait for the end of the wait: {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn records_without_ids_count_once_under_their_idempotency_key() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let first = keyed(&pipeline, "/records", "k1", &nameless("1")).await.expect(200);
    let again = keyed(&pipeline, "/records", "k1", &nameless("1.00")).await.expect(200);
    assert_eq!((&again["recordId"], &again["duplicate"]), (&first["recordId"], &true.into()));
    keyed(&pipeline, "/records", "k1", &nameless("2")).await.refused(409, "record_conflict");
    let other = keyed(&pipeline, "/records", "k2", &nameless("1")).await.expect(200);
    assert_ne!(other["recordId"], first["recordId"]);
    // Keys of two sources are different keys.
    let mut elsewhere = nameless("1");
    elsewhere["sourceId"] = "another".into();
    let elsewhere = keyed(&pipeline, "/records", "k1", &elsewhere).await.expect(200);
    assert_ne!(elsewhere["recordId"], first["recordId"]);
    // A record with an id is refused: the key would have no effect.
    let both = keyed(&pipeline, "/records", "k1", &record("own", "d")).await.refused(422, "invalid_value");
    assert_eq!(both["pointer"], "/recordId");
    pipeline.apply(&record("own", "d")).await.expect(200);

    // A batch is repeated as JSON and as NDJSON; one item has an id, and one is invalid.
    let wrong = nameless("-1");
    let items = vec![nameless("1"), record("named", "d"), wrong, nameless("1"), nameless("3")];
    let lines: Vec<String> = items.iter().map(Value::to_string).collect();
    let mut expected: Vec<String> = vec!["own".to_owned()];
    expected.extend([&first, &other, &elsewhere].map(|answer| answer["recordId"].as_str().unwrap().to_owned()));
    for round in 0..3 {
        let report = if round < 2 {
            keyed(&pipeline, "/records/batch", "k3", &json!(items)).await
        } else {
            let request = pipeline.request(Method::POST, "/records/batch").header("idempotency-key", "k3");
            answer(request.header("content-type", "application/x-ndjson").body(lines.join("\n"))).await
        };
        let report = report.expect(202);
        assert_eq!((&report["accepted"], &report["errors"][0]["pointer"]), (&3.into(), &"/recordId".into()));
        let indexes = [0, 1].map(|error| report["errors"][error]["index"].as_i64());
        assert_eq!(indexes, [Some(1), Some(2)], "{report}");
    }
    pipeline.applied().await;
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["processed"], &stats["duplicates"], &stats["conflicts"]), (&7.into(), &7.into(), &1.into()));
    let stored = pipeline.list("/records").await;
    let derived = stored.iter().map(|record| record["recordId"].as_str().unwrap().to_owned());
    let derived: Vec<String> = derived.filter(|id| !expected.contains(id)).collect();
    assert_eq!(derived.len(), 3, "each index has an id of its own");
    expected.extend(derived);
    pipeline.check_exactly_once(&expected).await;

    for key in ["", " ", "a b", "é", &"x".repeat(201)] {
        for path in ["/records", "/records/batch"] {
            keyed(&pipeline, path, key, &json!([])).await.refused(400, "invalid_idempotency_key");
        }
    }
    let twice = pipeline.posting("/records", nameless("1").to_string());
    let twice = twice.header("idempotency-key", "a").header("idempotency-key", "b");
    answer(twice).await.refused(400, "invalid_idempotency_key");
    let problem = pipeline.post_json("/records", nameless("1").to_string()).await.refused(422, "missing_field");
    assert_eq!(problem["pointer"], "/recordId");
}
