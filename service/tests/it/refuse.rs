//! Invalid input: each item is refused with its code and a pointer to its field, never with a 5xx, and its neighbours
//! count.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Pipeline, answer, record};

/// A record as JSON whose `field` has the value `raw`. The field is left out when `raw` is empty.
fn with(id: &str, field: &str, raw: &str) -> String {
    let fields = [
        ("recordId", format!("{id:?}")),
        ("time", "\"2026-01-31T12:00:00Z\"".to_owned()),
        ("sourceId", "\"s\"".to_owned()),
        ("destinationId", "\"d\"".to_owned()),
        ("type", "\"positive\"".to_owned()),
        ("value", "1".to_owned()),
        ("unit", "\"EUR\"".to_owned()),
        ("reference", "\"r\"".to_owned()),
    ];
    let known = fields.iter().any(|(name, _)| *name == field);
    let mut spelt: Vec<String> = fields
        .into_iter()
        .map(|(name, value)| (name, if name == field { raw.to_owned() } else { value }))
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{}:{value}", Value::from(name)))
        .collect();
    if !known {
        spelt.push(format!("{}:{raw}", Value::from(field)));
    }
    format!("{{{}}}", spelt.join(","))
}

/// A field, its value as JSON, and the code and pointer that it must be refused with.
type Case = (&'static str, String, &'static str, &'static str);

fn wrong_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |field, raw: &str, code, pointer| cases.push((field, raw.to_owned(), code, pointer));
    wrong_values(&mut case);
    wrong_texts(&mut case);
    wrong_times_and_types(&mut case);
    wrong_attributes(&mut case);
    case("extra", "1", "unknown_field", "/extra");
    case("a/b~c", "1", "unknown_field", "/a~1b~0c");
    case("receivedAt", "\"2026-01-31T12:00:00Z\"", "unknown_field", "/receivedAt");
    cases
}

/// Adds a case to a list, by the parts of a [`Case`].
type Add<'a> = &'a mut dyn FnMut(&'static str, &str, &'static str, &'static str);

fn wrong_values(case: Add<'_>) {
    for raw in ["\"NaN\"", "\"Infinity\"", "1e3", "\"1e3\"", "1E0", "1.5e-3", "-1", "\"-1\"", "-0", "\"+1\"", "\"\""] {
        case("value", raw, "invalid_value", "/value");
    }
    for raw in
        ["\"1.\"", "\".5\"", "\" 1\"", "\"1 \"", "\"1,5\"", "\"0x1\"", "\"١\"", "\"1_0\"", "\"1.2.3\"", "\"\\u0000\""]
    {
        case("value", raw, "invalid_value", "/value");
    }
    for digits in ["1234567890123456", "0.1234567890", "1234567890123456.1", "99999999999999999999999999999999999999"] {
        case("value", digits, "invalid_value", "/value");
        case("value", &format!("\"{digits}\""), "invalid_value", "/value");
    }
    for raw in ["true", "[1]", "{\"amount\":1}"] {
        case("value", raw, "wrong_type", "/value");
    }
}

/// Each field is missing, null, of a wrong type, and with a text that is not allowed.
fn wrong_texts(case: Add<'_>) {
    let long = format!("\"{}\"", "x".repeat(201));
    for (field, pointer) in [
        ("time", "/time"),
        ("sourceId", "/sourceId"),
        ("destinationId", "/destinationId"),
        ("type", "/type"),
        ("value", "/value"),
        ("unit", "/unit"),
        ("reference", "/reference"),
        ("recordId", "/recordId"),
    ] {
        case(field, "", "missing_field", pointer);
        case(field, "null", "missing_field", pointer);
        if !["type", "value", "time"].contains(&field) {
            for raw in ["\"\"", "\"a\\u0000b\"", "\"a\\nb\"", "\"\\u007f\"", "\"\\u0085\"", &long] {
                case(field, raw, "invalid_value", pointer);
            }
            case(field, &format!("\"{}\"", "𝄞".repeat(101)), "invalid_value", pointer);
            for raw in
                ["\"a \"", "\" a\"", "\"a\\u00a0\"", "\"\u{3000}a\"", "\"a\\u200bb\"", "\"\\ufeffa\"", "\"a\u{202e}b\""]
            {
                case(field, raw, "invalid_value", pointer);
            }
        }
        if field != "value" {
            for raw in ["5", "true", "{}", "[\"a\"]"] {
                case(field, raw, "wrong_type", pointer);
            }
        }
    }
}

fn wrong_times_and_types(case: Add<'_>) {
    for raw in [
        "\"2026-01-31\"",
        "\"2026-01-31T12:00:00\"",
        "\"2026-01-31 12:00:00Z\"",
        "\"31.01.2026 12:00\"",
        "\"2026-01-31T12:00:00.1234567Z\"",
        "\"2026-02-30T12:00:00Z\"",
        "\"2026-01-31T25:00:00Z\"",
        "\"2026-06-30T23:59:60Z\"",
        "\"+12026-01-31T12:00:00Z\"",
        "\"0000-01-01T00:00:00Z\"",
        "\"yesterday\"",
        "\"\"",
    ] {
        case("time", raw, "invalid_value", "/time");
    }
    for raw in ["\"Positive\"", "\"other\"", "\"\""] {
        case("type", raw, "invalid_value", "/type");
    }
}

fn wrong_attributes(case: Add<'_>) {
    for raw in ["[]", "\"x\"", "1", "false"] {
        case("attributes", raw, "wrong_type", "/attributes");
    }
    case("attributes", "{\"a\":1,\"a\":1}", "duplicate_key", "/attributes/a");
    case("attributes", "{\"a\":{\"b\":[{\"c\":1,\"c\":2}]}}", "duplicate_key", "/attributes/a/b/0/c");
    case("attributes", "{\"a\":[1,\"\\u0000\"]}", "invalid_value", "/attributes/a/1");
    case("attributes", "{\"a\\u0000\":1}", "invalid_value", "/attributes");
    case("attributes", "{\"a\":1e100}", "invalid_value", "/attributes/a");
    case("attributes", &format!("{{\"a\":{}}}", "1".repeat(41)), "invalid_value", "/attributes/a");
    case("attributes", &format!("{{\"a\":\"{}\"}}", "x".repeat(8 * 1024)), "too_large", "/attributes");
}

#[tokio::test]
async fn every_wrong_field_is_refused_by_pointer_and_costs_no_good_neighbour() {
    let (pipeline, serve, _work) = Pipeline::running(json!({})).await;
    let cases = wrong_fields();
    let mut ids = Vec::new();
    let mut items = Vec::new();
    for (n, (field, raw, code, pointer)) in cases.iter().enumerate() {
        let bad = with(&format!("bad-{n}"), field, raw);
        let problem = pipeline.post_json("/records", bad.clone()).await.refused(422, code);
        assert_eq!(problem["pointer"], *pointer, "{bad}");
        items.extend([with(&format!("good-{n}"), "attributes", "{}"), bad]);
        ids.push(format!("good-{n}"));
    }
    // The same items as a JSON array and as NDJSON.
    let check = |answer: &Answer| {
        let report = answer.expect(202);
        assert_eq!((&report["accepted"], &report["rejected"]), (&cases.len().into(), &cases.len().into()));
        for (n, (error, (field, raw, code, pointer))) in
            report["errors"].as_array().unwrap().iter().zip(&cases).enumerate()
        {
            let found = (&error["index"], &error["code"], &error["pointer"], &error["retryable"]);
            let expected = (&(2 * n + 1).into(), &(*code).into(), &(*pointer).into(), &false.into());
            assert_eq!(found, expected, "{field}: {raw}");
            let id_is_good = *field != "recordId";
            assert_eq!(error["recordId"] == format!("bad-{n}"), id_is_good, "{error}");
        }
    };
    check(&pipeline.post_json("/records/batch", format!("[{}]", items.join(","))).await);
    check(&lines(&pipeline, items.join("\n")).await);
    pipeline.applied().await;
    pipeline.check_exactly_once(&ids).await;
    assert_eq!(pipeline.get("/stats").await["received"], 2 * ids.len(), "no refused record is queued");
    let rejected = serve.metric("millrace_rejected_records_total").await;
    assert!((rejected - 3.0 * cases.len() as f64).abs() < 0.1, "{rejected}");
}

/// Sends NDJSON.
pub(crate) async fn lines(pipeline: &Pipeline, body: impl Into<reqwest::Body>) -> Answer {
    answer(pipeline.request(Method::POST, "/records/batch").header("content-type", "application/x-ndjson").body(body))
        .await
}

#[tokio::test]
async fn a_body_that_is_not_json_gets_400_and_none_of_it_is_accepted() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let good = with("good", "attributes", "{}");
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "NaN",
        "{\"recordId\":}",
        "{'recordId':'a'}",
        "<record/>",
        "{\"value\":NaN}",
        "{\"value\":Infinity}",
    ]
    .map(|body| body.as_bytes().to_vec())
    .to_vec();
    for raw in ["NaN", "-Infinity", "01", "+1", "1.", ".5", "\"a\tb\"", "\"\0\"", "\"\\x\"", "\"a"] {
        bodies.push(with("bad", "unit", raw).into_bytes());
    }
    bodies.push([b"{\"unit\":\"".as_slice(), b"\xff\xfe", b"\"}"].concat());
    bodies.push([good.as_bytes(), b" trailing"].concat());
    bodies.push([good.as_bytes(), good.as_bytes()].concat());
    for body in &bodies {
        let shown = String::from_utf8_lossy(body).into_owned();
        let single = pipeline.post_json("/records", body.clone()).await;
        assert_eq!(single.status, 400, "{shown}: {}", single.text);
        single.refused(400, "invalid_json");
        let array = [b"[".as_slice(), good.as_bytes(), b",", body.as_slice(), b"]"].concat();
        if !shown.trim().is_empty() || body.is_empty() {
            let array = pipeline.post_json("/records/batch", array).await;
            // Two records without a comma make no array.
            assert_eq!(array.status, 400, "{shown}: {}", array.text);
            array.refused(400, "invalid_json");
        }
    }
    for array in ["{}", "null", "1", "\"x\"", "[1] 2"] {
        pipeline.post_json("/records/batch", array).await.refused(400, "invalid_json");
    }
    assert_eq!(pipeline.backlog().await, 0, "no record is accepted");
    // Each line of NDJSON is an item of its own.
    let mut body = good.clone().into_bytes();
    let unbroken: Vec<_> = bodies.iter().filter(|body| !body.trim_ascii().is_empty()).collect();
    for bad in &unbroken {
        body.extend_from_slice(b"\n");
        body.extend_from_slice(bad);
    }
    body.extend_from_slice(format!("\n{}", with("last", "unit", "\"x\"")).as_bytes());
    let report = lines(&pipeline, body).await.expect(202);
    assert_eq!((&report["accepted"], &report["rejected"]), (&2.into(), &unbroken.len().into()), "{report}");
    assert!(report["errors"].as_array().unwrap().iter().all(|error| error["code"] == "invalid_json"), "{report}");
    // Without a good line, the request itself is refused.
    let report = lines(&pipeline, "x\ny\n").await.refused(422, "batch_refused");
    assert_eq!(report["errors"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn sizes_are_bounded_by_413_and_an_item_that_is_too_long_is_its_own_error() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let padded = |id: &str, bytes: usize| {
        let record = with(id, "attributes", "{}");
        format!("{record}{}", " ".repeat(bytes - record.len()))
    };
    pipeline.post_json("/records", padded("longest", 16 * 1024)).await.expect(202);
    pipeline.post_json("/records", padded("longer", 16 * 1024 + 1)).await.refused(413, "too_large");
    let long = with("long", "attributes", &format!("{{\"a\":[{}1]}}", " ".repeat(16 * 1024)));
    let (first, last) = (with("first", "attributes", "{}"), with("last", "attributes", "{}"));
    for (answer, id) in [
        (pipeline.post_json("/records/batch", format!("[{first},{long},{last}]")).await, Some("long")),
        (lines(&pipeline, format!("{first}\n{long}\n{last}")).await, None),
    ] {
        let report = answer.expect(202);
        assert_eq!((&report["accepted"], &report["rejected"]), (&2.into(), &1.into()));
        let error = &report["errors"][0];
        assert_eq!((&error["index"], &error["code"]), (&1.into(), &"too_large".into()));
        assert_eq!(error["recordId"].as_str(), id);
    }
    let batch = format!("[{first}{}]", " ".repeat(16 * 1024 * 1024));
    pipeline.post_json("/records/batch", batch).await.refused(413, "too_large");
    pipeline.post_json("/records/batch", format!("[{}1]", "1,".repeat(100_000))).await.refused(413, "too_large");
    assert_eq!(pipeline.backlog().await, 5);
    let dead_letters = pipeline.post_json("/dead-letters/replay?dryRun=true", " ".repeat(70_000)).await;
    assert!([202, 413].contains(&dead_letters.status), "{}", dead_letters.text);
}

#[tokio::test]
async fn a_gzip_bomb_and_a_truncated_gzip_are_refused() {
    let pipeline = Pipeline::new(json!({})).await;
    let serve = pipeline.serve().await;
    let packed = |bytes: &[u8], times: usize| {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        (0..times).for_each(|_| packed.write_all(bytes).unwrap());
        packed.finish().unwrap()
    };
    let send = async |path: &str, kind: &str, body: Vec<u8>| {
        let request = pipeline.request(Method::POST, path).header("content-type", kind);
        answer(request.header("content-encoding", "gzip").body(body)).await
    };
    let mebibyte = vec![b' '; 1024 * 1024];
    let json = "application/json";
    send("/records", json, packed(&mebibyte, 200)).await.refused(413, "too_large");
    send("/records/batch", json, packed(&mebibyte, 200)).await.refused(413, "too_large");
    // A line without an end is too large; empty lines are no items.
    let ndjson = "application/x-ndjson";
    send("/records/batch", ndjson, packed(&vec![b'x'; 1024 * 1024], 200)).await.refused(413, "too_large");
    send("/records/batch", ndjson, packed(&vec![b'\n'; 1024 * 1024], 100)).await.expect(202);
    let good = record("a", "d").to_string();
    let whole = packed(good.as_bytes(), 1);
    for torn in [b"no gzip at all".to_vec(), whole[..whole.len() / 2].to_vec(), Vec::new()] {
        for path in ["/records", "/records/batch"] {
            let refused = send(path, json, torn.clone()).await;
            assert_eq!(refused.status, 400, "{}", refused.text);
        }
    }
    let twice = pipeline.posting("/records", whole.clone()).header("content-encoding", "gzip, gzip");
    answer(twice).await.refused(415, "unsupported_content_encoding");
    for other in ["br", "deflate", "zstd", "compress"] {
        let packed = pipeline.posting("/records", whole.clone()).header("content-encoding", other);
        answer(packed).await.refused(415, "unsupported_content_encoding");
    }
    for kind in ["text/plain", "application/xml", "application/json; charset=latin1"] {
        let request = pipeline.request(Method::POST, "/records").header("content-type", kind).body(good.clone());
        answer(request).await.refused(415, "unsupported_media_type");
    }
    assert_eq!(pipeline.backlog().await, 0);
    send("/records", json, whole).await.expect(202);
    assert!(serve.is_ready().await);
}

/// Paths with a query that is refused with status 400, and the code.
const WRONG_QUERIES: &[(&str, &str)] = &[
    ("/records?destination=d", "unknown_parameter"),
    ("/records?destinationid=d", "unknown_parameter"),
    ("/records/aggregations?start=2026-01-31T12:00:00Z", "unknown_parameter"),
    ("/records/rollups?groupby=unit", "unknown_parameter"),
    ("/stats?x=1", "unknown_parameter"),
    ("/records/a?x=1", "unknown_parameter"),
    ("/audit?worker=w", "unknown_parameter"),
    ("/conflicts?reason=r", "unknown_parameter"),
    ("/dead-letters?states=open", "unknown_parameter"),
    ("/records?unit=EUR&unit=USD", "repeated_parameter"),
    ("/records?unit=EUR&unit=EUR", "repeated_parameter"),
    ("/records/aggregations?type=positive&type=negative", "repeated_parameter"),
    ("/records/rollups?window=1m&window=1h", "repeated_parameter"),
    ("/records?startTime=yesterday", "invalid_parameter"),
    ("/records?startTime=2026-01-31T12:00:00", "invalid_parameter"),
    ("/records?type=Positive", "invalid_parameter"),
    ("/records?type=", "invalid_parameter"),
    ("/records?unit=", "invalid_parameter"),
    ("/records?unit=%00", "invalid_parameter"),
    ("/records?unit=%ff", "invalid_parameter"),
    ("/records?unit=EUR%20", "invalid_parameter"),
    ("/records?startTime=2026-02-01T00:00:00Z&endTime=2026-01-01T00:00:00Z", "invalid_parameter"),
    ("/records?alerted=maybe", "invalid_parameter"),
    ("/records?limit=0", "invalid_parameter"),
    ("/records?limit=1001", "invalid_parameter"),
    ("/records?limit=-1", "invalid_parameter"),
    ("/records?limit=x", "invalid_parameter"),
    ("/records/rollups?window=2m", "invalid_parameter"),
    ("/records/rollups?groupBy=value", "invalid_parameter"),
    ("/records/rollups?distinct=destinationId", "invalid_parameter"),
    ("/records/aggregations?records=perhaps", "invalid_parameter"),
    ("/audit?action=EATEN", "invalid_parameter"),
    ("/dead-letters?state=closed", "invalid_parameter"),
    ("/records?cursor=x", "invalid_cursor"),
    ("/records?cursor=", "invalid_cursor"),
    ("/audit?cursor=AAAA", "invalid_cursor"),
];

#[tokio::test]
async fn unknown_paths_methods_and_parameters_are_refused_and_never_ignored() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let long = "x".repeat(201);
    for path in ["/", "/nothing", "/records/a/b", "/records/", "/v2/records", "/dead-letters/0-d1/other"] {
        pipeline.ask(path).await.refused(404, "not_found");
    }
    for path in ["/records", "/v1/stats", "/audit", "/dead-letters"] {
        let answer = answer(pipeline.request(Method::DELETE, path)).await;
        answer.refused(405, "method_not_allowed");
        assert!(answer.header("allow").contains("GET"), "{:?}", answer.headers);
    }
    for &(path, code) in WRONG_QUERIES {
        let refused = pipeline.ask(path).await;
        assert_eq!(refused.status, 400, "{path}: {}", refused.text);
        assert_eq!(refused.json()["code"], code, "{path}: {}", refused.text);
        refused.refused(400, code);
    }
    let many: String = (0..101).map(|n| format!("&recordId=r{n}")).collect();
    pipeline.ask(&format!("/records?{}", &many[1..])).await.refused(400, "invalid_parameter");
    pipeline.ask(&format!("/records?unit={long}")).await.refused(400, "invalid_parameter");
    for id in ["%00", "%ff", "%0a", "a%20", long.as_str()] {
        let refused = pipeline.ask(&format!("/records/{id}")).await;
        assert!([400, 404].contains(&refused.status), "{id}: {}", refused.text);
        assert!(refused.header("content-type").starts_with("application/problem+json"));
    }
    pipeline.ask("/records/never").await.refused(404, "not_found");
    for (path, status, code) in [
        ("/dead-letters/nonsense/replay", 404, "not_found"),
        ("/dead-letters/0-d1/replay", 404, "not_found"),
        ("/dead-letters/0-d1/discard", 404, "not_found"),
        ("/dead-letters/0-d99999999999999999999/replay", 404, "not_found"),
        ("/dead-letters/replay?dryrun=true", 400, "unknown_parameter"),
        ("/dead-letters/replay?dryRun=yes", 400, "invalid_parameter"),
    ] {
        pipeline.act(path).await.refused(status, code);
    }
    for path in ["/records/aggregations", "/records/rollups"] {
        let request = pipeline.request(Method::GET, path).header("accept", "image/png");
        answer(request).await.refused(406, "not_acceptable");
    }
}
