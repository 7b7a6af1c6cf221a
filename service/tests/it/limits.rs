//! At the limits of what can be asked for and taken: each is told in its own words, and the service continues.

use millrace::domain::shard_of;
use reqwest::Method;
use serde_json::json;

use crate::harness::{Pipeline, answer, eventually, record};

/// As docs/errors.md says: the one kind of error that is no problem document.
#[tokio::test]
async fn what_is_no_http_that_can_be_read_is_answered_by_its_status_alone() {
    let pipeline = Pipeline::new(json!({})).await;
    let serve = pipeline.serve().await;
    let long = "x".repeat(70_000);
    let many: String = (0..200).map(|n| format!("h{n}: x\r\n")).collect();
    for (request, status) in [
        (format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"), "414"),
        ("GET /stats HTTP/1.1\r\nhost: x\r\nh: a\x7fb\r\n\r\n".to_owned(), "400"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
        (format!("GET /stats HTTP/1.1\r\nhost: x\r\n{many}\r\n"), "431"),
    ] {
        // Read to its end: the connection is closed.
        let answer = pipeline.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "without a body: {answer}");
        serve.ready().await;
    }
    // Below those bounds a path is one that is not ours.
    let path = format!("/{}", &long[..60_000]);
    answer(pipeline.request(Method::GET, &path)).await.refused(404, "not_found");
}

#[tokio::test]
async fn what_is_nested_deeper_than_a_record_can_be_is_given_as_text() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 1})).await;
    let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let (shallow, deep) = (nested(60), nested(5_000));
    for entry in [&shallow, &deep] {
        let _: String = pipeline.redis(&["XADD", &pipeline.records(0), "*", "record", entry]).await;
    }
    pipeline.applied().await;
    let dead_letters = pipeline.list("/dead-letters").await;
    let published = pipeline.sink_entries("letters").await;
    assert_eq!((dead_letters.len(), published.len()), (2, 2));
    for shown in [&dead_letters[0], &published[0].data] {
        assert_eq!(shown["payload"].to_string(), shallow);
        assert_eq!(shown.get("payloadText"), None);
    }
    for shown in [&dead_letters[1], &published[1].data] {
        assert_eq!(shown["payloadText"], deep);
        assert_eq!(shown.get("payload"), None);
    }
    pipeline.verify().await;
}

/// Somebody else wrote an entry with the highest id there is: Redis can give none after it.
#[tokio::test]
async fn a_queue_without_ids_says_so_and_the_other_shards_continue() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let place = |shard| (0..).map(|n| format!("d{n}")).find(|name| shard_of(name, 2) == shard).unwrap();
    let last = "18446744073709551615-18446744073709551615";
    let _: String = pipeline.redis(&["XADD", &pipeline.records(0), last, "record", "theirs"]).await;
    let refused = pipeline.put_in("/records", record("a", &place(0)).to_string()).await;
    refused.refused(503, "stream_exhausted");
    let mixed = json!([record("b", &place(0)), record("c", &place(1))]);
    let answer = pipeline.put_in("/records/batch", mixed.to_string()).await.expect(202);
    assert_eq!((&answer["accepted"], &answer["errors"][0]["code"]), (&1.into(), &"stream_exhausted".into()));
    // As docs/operations.md says: once nothing else is in it, the stream is taken away, and the worker makes it again.
    eventually("that entry is decided", async || pipeline.number("select count(*) from dead_letters").await == 1).await;
    eventually("nothing else is queued", async || pipeline.backlog().await == 1).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    pipeline.apply(&record("b", &place(0))).await.expect(200);
    pipeline.applied().await;
    pipeline.check_exactly_once(&["b", "c"].map(str::to_owned)).await;
}

/// Some ids are also names of paths: by path those are meant, by filter the records.
#[tokio::test]
async fn a_record_whose_id_is_the_name_of_a_path_is_found_by_filter() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let ids = ["aggregations", "rollups", "batch"];
    let records: Vec<_> = ids.iter().map(|id| record(id, "d")).collect();
    pipeline.send(&records).await;
    pipeline.applied().await;
    for id in ids {
        let found = pipeline.list(&format!("/records?recordId={id}")).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["recordId"], id);
    }
    assert!(pipeline.get("/records/aggregations").await["groups"].is_array());
    assert!(pipeline.get("/records/rollups").await["items"].is_array());
    answer(pipeline.request(Method::GET, "/records/batch")).await.refused(405, "method_not_allowed");
}

#[tokio::test]
async fn a_wrong_choice_is_told_the_right_ones() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    for (path, expected) in [
        ("/records?type=Positive", "type: must be one of positive, negative"),
        ("/dead-letters?state=closed", "state: must be one of open, replayed, discarded"),
        (
            "/dead-letters?reason=bogus",
            "reason: must be one of below_minimum_total, total_out_of_bounds, malformed, wrong_shard, refused_by_store, \
             panicked, crashed_worker",
        ),
        (
            "/audit?action=EATEN",
            "action: must be one of RECEIVED, QUEUED, PROCESSED, DROPPED, CONFLICT, ALERTED, DEAD_LETTERED, REPLAYED, \
             DISCARDED, ADMIN",
        ),
        ("/records/rollups?window=2m", "window: must be one of 1m, 5m, 15m, 1h, 1d"),
        ("/records?limit=0", "limit: must be a whole number from 1 to 1000"),
        ("/records?alerted=maybe", "alerted: must be true or false"),
    ] {
        assert_eq!(pipeline.ask(path).await.refused(400, "invalid_parameter")["detail"], expected, "{path}");
    }
    for path in ["/records?startTime=yesterday", "/records?unit=", "/records/rollups?groupBy=value"] {
        let detail = pipeline.ask(path).await.refused(400, "invalid_parameter")["detail"].to_string();
        assert!(!detail.contains("parse"), "{path}: no word of the framework: {detail}");
    }
    let latin = pipeline.request(Method::POST, "/records").header("content-type", "application/json; charset=latin1");
    let refused = answer(latin.body(record("a", "d").to_string())).await.refused(415, "unsupported_media_type");
    assert!(refused["detail"].as_str().unwrap().contains("charset"), "{refused}");
}
