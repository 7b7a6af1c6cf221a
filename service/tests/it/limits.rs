//! Requests at and beyond the limits: each gets its own answer, and the service continues.

use millrace::domain::{DestinationId, ShardId};
use reqwest::Method;
use serde_json::json;

use crate::harness::{Pipeline, answer, eventually, record};

/// The only errors that are no problem documents; see docs/errors.md.
#[tokio::test]
async fn unreadable_http_is_answered_by_a_status_without_a_body() {
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
        // `raw` reads to the end of the connection.
        let answer = pipeline.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "without a body: {answer}");
        serve.ready().await;
    }
    // Below the bound it is an unknown path.
    let path = format!("/{}", &long[..60_000]);
    answer(pipeline.request(Method::GET, &path)).await.refused(404, "not_found");
}

#[tokio::test]
async fn a_payload_nested_too_deep_for_a_record_is_shown_as_text() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 1})).await;
    let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let (shallow, deep) = (nested(60), nested(5_000));
    for entry in [&shallow, &deep] {
        let _: String = pipeline.redis(&["XADD", &pipeline.records(0), "*", "record", entry]).await;
    }
    pipeline.applied().await;
    let dead_letters = pipeline.list("/dead-letters").await;
    let published = pipeline.sink_entries("dead-letters").await;
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

/// Another program appended an entry with the highest possible id: Redis gives no id after it.
#[tokio::test]
async fn an_exhausted_stream_is_refused_and_other_shards_continue() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let destination = |shard| {
        (0..)
            .map(|n| format!("d{n}"))
            .find(|name| ShardId::of(&DestinationId::stored(name.as_str()), 2).get() == shard)
            .unwrap()
    };
    let last = "18446744073709551615-18446744073709551615";
    let _: String = pipeline.redis(&["XADD", &pipeline.records(0), last, "record", "theirs"]).await;
    let refused = pipeline.post_json("/records", record("a", &destination(0)).to_string()).await;
    refused.refused(503, "stream_exhausted");
    let mixed = json!([record("b", &destination(0)), record("c", &destination(1))]);
    let answer = pipeline.post_json("/records/batch", mixed.to_string()).await.expect(202);
    assert_eq!((&answer["accepted"], &answer["errors"][0]["code"]), (&1.into(), &"stream_exhausted".into()));
    // The repair of docs/operations.md: once the stream is applied, delete it; the worker recreates it.
    eventually("that entry is decided", async || pipeline.number("select count(*) from dead_letters").await == 1).await;
    eventually("the other shard is applied", async || pipeline.backlog().await == 1).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    pipeline.apply(&record("b", &destination(0))).await.expect(200);
    pipeline.applied().await;
    pipeline.check_exactly_once(&["b", "c"].map(str::to_owned)).await;
}

/// Some ids are names of paths, too: the path returns its own resource, and a filter finds the record.
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
async fn an_invalid_choice_is_refused_with_the_valid_ones() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    for (path, expected) in [
        ("/records?type=Positive", "type: must be one of positive, negative"),
        ("/dead-letters?state=closed", "state: must be one of open, replayed, discarded"),
        (
            "/dead-letters?reason=bogus",
            "reason: must be one of below_minimum_total, total_out_of_bounds, original_not_found, reversal_of_reversal, \
             reversal_mismatch, reversal_exceeds_original, malformed, wrong_shard, refused_by_store, panicked, \
             crashed_worker, corrupted",
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
        assert!(!detail.contains("parse"), "{path}: no message of the framework: {detail}");
    }
    let latin = pipeline.request(Method::POST, "/records").header("content-type", "application/json; charset=latin1");
    let refused = answer(latin.body(record("a", "d").to_string())).await.refused(415, "unsupported_media_type");
    assert!(refused["detail"].as_str().unwrap().contains("charset"), "{refused}");
}
