//! The table of docs/security.md, cell by cell, with real keys on every path.

use std::{collections::BTreeSet, fs, path::Path};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Pipeline, Process, answer, eventually, record};

/// Texts of records that are outside a limit on sources, and outside one on destinations.
const OUTSIDER: &str = "outsider";
const ELSEWHERE: &str = "elsewhere";
/// A record that is outside both.
const OUTSIDE: &str = "outsider-elsewhere";

/// A row of the table.
#[derive(Debug)]
struct Row {
    method: Method,
    path: String,
    /// Without a key, then with ingest, read, admin.
    cells: [String; 4],
    limited: String,
}

fn table() -> Vec<Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.trim_end_matches(" |").split(" | ").collect();
        let (method, path) = cells[0].trim_end_matches('`').split_once(' ')?;
        let [_, cells @ .., limited] = cells.as_slice() else { panic!("{line}") };
        Some(Row {
            method: method.parse().ok().filter(|_| path.starts_with('/'))?,
            path: path.to_owned(),
            cells: std::array::from_fn(|index| cells[index].to_owned()),
            limited: (*limited).to_owned(),
        })
    });
    rows.collect()
}

/// Sends a request, with a body where the path takes one.
async fn ask(pipeline: &Pipeline, key: Option<&str>, row: &Row, path: &str, body: Option<&Value>) -> Answer {
    let mut request = reqwest::Client::new().request(row.method.clone(), format!("{}{path}", pipeline.url()));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    answer(request).await
}

async fn key(pipeline: &Pipeline, body: Value) -> String {
    pipeline.post_json("/keys", body.to_string()).await.expect(201)["secret"].as_str().unwrap().to_owned()
}

fn of(id: &str, source: &str, destination: &str, kind: &str) -> Value {
    let mut record = record(id, destination);
    record["sourceId"] = source.into();
    record["reference"] = format!("ref-{source}-{destination}").into();
    record["type"] = kind.into();
    record
}

/// A key with a limit and every scope, and what it may not see.
struct Limited {
    key: String,
    hidden: &'static [&'static str],
    limit: Value,
}

/// A pipeline with records, conflicts and dead letters of each combination of source and destination.
async fn filled() -> (Pipeline, Process, Process, Vec<Limited>) {
    let (pipeline, serve, work) = Pipeline::running(json!({"shards": 2, "policy": {"minimumTotal": "0"}})).await;
    for (id, source, destination) in [
        ("r1", "insider", "here"),
        ("r2", OUTSIDER, "here"),
        ("r3", "insider", ELSEWHERE),
        (OUTSIDE, OUTSIDER, ELSEWHERE),
    ] {
        pipeline.apply(&of(id, source, destination, "positive")).await.expect(200);
        // The same id from the other side: a conflict whose two contents are of different limits.
        let mut other = of(id, if source == OUTSIDER { "insider" } else { OUTSIDER }, destination, "positive");
        if id == OUTSIDE {
            other = of(id, source, destination, "negative");
        }
        pipeline.apply(&other).await.refused(409, "record_conflict");
        let dead = of(&format!("d-{id}"), source, &format!("{destination}-empty"), "negative");
        pipeline.apply(&dead).await.refused(422, "dead_lettered");
    }
    let mut limited = Vec::new();
    for (hidden, limit) in [
        (&[OUTSIDER][..], json!({"sourceIds": [{"exact": "insider"}]})),
        (&[ELSEWHERE], json!({"destinationIds": [{"prefix": "here"}]})),
        (
            &[OUTSIDER, ELSEWHERE],
            json!({"sourceIds": [{"prefix": "ins"}, {"exact": "x"}], "destinationIds": [{"exact": "here"}, {"exact": "here-empty"}]}),
        ),
    ] {
        let mut body = limit.clone();
        (body["name"], body["scopes"]) = ("limited".into(), json!(["ingest", "read"]));
        limited.push(Limited { key: key(&pipeline, body).await, hidden, limit });
    }
    // No key is made so: with every scope, only the limit can be what refuses it.
    pipeline.execute("update api_keys set scopes = array['admin'] where name = 'limited'").await;
    for Limited { key, .. } in &limited {
        let row = Row { method: Method::GET, path: String::new(), cells: Default::default(), limited: String::new() };
        eventually("serve has the key with its scope", async || {
            ask(&pipeline, Some(key), &row, "/keys", None).await.text.contains("limited_key")
        })
        .await;
    }
    (pipeline, serve, work, limited)
}

/// The request of a row, and its body.
fn request(row: &Row) -> (String, Option<Value>) {
    let path = row.path.replace("{recordId}", "r1").replace("{secretId}", "sec_0").replace("{name}", "none");
    let path = path.replace("{id}", if row.path.starts_with("/keys") { "key_0" } else { "0-d9" });
    let path = if path == "/totals" { format!("{path}?destinationId=here") } else { path };
    let body = match (row.method.as_str(), row.path.as_str()) {
        ("POST", "/records") => Some(record("r9", "here")),
        ("POST", "/records/{recordId}/reversal") => Some(json!({"reason": "tested"})),
        ("POST", "/records/batch") => Some(json!([record("r9", "here")])),
        ("POST", "/keys") => Some(json!({"name": "another", "scopes": ["read"]})),
        _ => None,
    };
    (path, body)
}

#[tokio::test]
async fn the_table_has_every_path_and_each_key_gets_what_it_says() {
    let (pipeline, _serve, _work, limited) = filled().await;
    let rows = table();
    let document = pipeline.get("/openapi.json").await;
    let mut documented: BTreeSet<String> = BTreeSet::from(["GET /openapi.json".to_owned(), "GET /docs".to_owned()]);
    for (path, operations) in document["paths"].as_object().unwrap() {
        documented
            .extend(operations.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let listed: BTreeSet<String> = rows.iter().map(|row| format!("{} {}", row.method, row.path)).collect();
    assert_eq!(listed, documented, "docs/security.md has a row for each path");

    let mut keys = vec![None];
    for scope in ["ingest", "read", "admin"] {
        keys.push(Some(key(&pipeline, json!({"name": scope, "scopes": [scope]})).await));
    }
    let row = rows.iter().find(|row| row.path == "/stats").unwrap();
    eventually("serve has the keys", async || {
        ask(&pipeline, keys[3].as_deref(), row, "/stats", None).await.status == 200
    })
    .await;
    for row in &rows {
        let (path, body) = request(row);
        for (key, cell) in keys.iter().zip(&row.cells) {
            let answer = ask(&pipeline, key.as_deref(), row, &path, body.as_ref()).await;
            match cell.as_str() {
                "401" => drop(answer.refused(401, "missing_key")),
                "403" => drop(answer.refused(403, "insufficient_scope")),
                "yes" => assert!(![401, 403].contains(&answer.status), "{row:?}: {}", answer.text),
                other => panic!("{other} of {row:?}"),
            }
        }
        for limited in &limited {
            limited_cell(&pipeline, row, &path, body.as_ref(), limited).await;
        }
    }
}

/// Checks the cell of a limited key.
async fn limited_cell(pipeline: &Pipeline, row: &Row, path: &str, body: Option<&Value>, limited: &Limited) {
    let Limited { key, hidden, limit } = limited;
    let key = Some(key.as_str());
    match row.limited.as_str() {
        "403" => drop(ask(pipeline, key, row, path, body).await.refused(403, "limited_key")),
        "yes" => assert_eq!(ask(pipeline, key, row, path, body).await.status, 200, "{row:?}"),
        "its records" => {
            let outside = of("r8", OUTSIDER, ELSEWHERE, "positive");
            let body = if row.path.ends_with("batch") { json!([outside]) } else { outside };
            ask(pipeline, key, row, path, Some(&body)).await.refused(403, "outside_limit");
            let own = of("r9", "insider", "here", "positive");
            let body = if row.path.ends_with("batch") { json!([own]) } else { own };
            ask(pipeline, key, row, path, Some(&body)).await.expect(202);
        }
        "its destinations" => {
            let of = async |destination: &str| {
                ask(pipeline, key, row, &format!("{}?destinationId={destination}", row.path), None).await
            };
            if hidden.contains(&OUTSIDER) {
                of("here").await.refused(403, "limited_key");
                return;
            }
            assert_ne!(of("here").await.expect(200)["totals"], json!([]));
            let all = pipeline.get(&format!("{}?destinationId={ELSEWHERE}", row.path)).await;
            assert_ne!(all["totals"], json!([]), "the administrator sees it: {all}");
            assert_eq!(of(ELSEWHERE).await.expect(200)["totals"], json!([]));
        }
        "matching, else 404" => {
            let of = async |id: &str| ask(pipeline, key, row, &row.path.replace("{recordId}", id), body).await;
            of("r1").await.expect(if row.method == Method::GET { 200 } else { 202 });
            let (outside, absent) = (of(OUTSIDE).await, of("absent").await);
            assert_eq!((outside.status, outside.text), (404, absent.text));
        }
        "matching" => {
            for query in ["", "?records=false", "?groupBy=sourceId,destinationId,reference", "?order=processed"] {
                if query.is_empty() || row.path.ends_with(query_path(query)) {
                    only_matching(pipeline, row, &format!("{path}{query}"), key, hidden).await;
                }
            }
        }
        other => panic!("{other} of {row:?}, limit {limit}"),
    }
}

/// The path that takes a query.
fn query_path(query: &str) -> &'static str {
    match query {
        "?records=false" => "/aggregations",
        "?order=processed" => "/records",
        _ => "/rollups",
    }
}

/// The answer has something, and nothing that is hidden, which the administrator's answer has.
async fn only_matching(pipeline: &Pipeline, row: &Row, path: &str, key: Option<&str>, hidden: &[&str]) {
    let all = pipeline.ask(path).await;
    all.expect(200);
    let found = ask(pipeline, key, row, path, None).await;
    found.expect(200);
    // Sums that are not grouped by source are compared below.
    let names_all = !path.ends_with("records=false") && !path.ends_with("/rollups");
    for hidden in hidden {
        assert!(all.text.contains(hidden) || !names_all, "{path}: {}", all.text);
        assert!(!found.text.contains(hidden), "{path}: {}", found.text);
    }
    assert!(found.text.contains("here") || !names_all || path.ends_with("/audit"), "{path}: {}", found.text);
}

#[tokio::test]
async fn a_limited_key_gets_the_sums_that_an_administrator_gets_by_filter() {
    let rollups = json!([
        {"name": "sources", "window": "1h", "groupBy": ["destinationId"], "distinct": "sourceId"},
        {"name": "destinations", "window": "1h", "groupBy": ["destinationId"]},
    ]);
    for spec in [json!({}), json!({ "rollups": rollups })] {
        let (pipeline, _serve, _work) = Pipeline::running(spec).await;
        for n in 0..20 {
            let (source, destination) = (format!("s{}", n % 3), format!("d{}", n % 4));
            let mut record = of(&format!("r{n}"), &source, &destination, "positive");
            record["value"] = format!("{n}.25").into();
            record["time"] = format!("2026-01-31T{n:02}:30:00Z").into();
            pipeline.apply(&record).await.expect(200);
        }
        let by_source = key(&pipeline, json!({"name": "s", "scopes": ["read"], "sourceIds": [{"exact": "s1"}]})).await;
        let by_destination =
            key(&pipeline, json!({"name": "d", "scopes": ["read"], "destinationIds": [{"prefix": "d2"}]})).await;
        let row = Row { method: Method::GET, path: String::new(), cells: Default::default(), limited: String::new() };
        for (key, filter) in [(&by_source, "sourceId=s1"), (&by_destination, "destinationId=d2")] {
            eventually("serve has the key", async || {
                ask(&pipeline, Some(key), &row, "/records", None).await.status == 200
            })
            .await;
            for path in [
                "/records/aggregations?records=false",
                "/records/aggregations?records=false&type=positive",
                "/records/aggregations?startTime=2026-01-31T02:10:00Z&endTime=2026-01-31T18:00:00Z&records=false",
                "/records/aggregations?unit=EUR",
                "/records/rollups?window=1h",
                "/records/rollups?groupBy=destinationId",
                "/records/rollups?distinct=sourceId&groupBy=unit",
                "/records/rollups?groupBy=sourceId,destinationId&window=1d",
                "/records?limit=1000",
            ] {
                let whole = |answer: &Answer| {
                    let mut whole = answer.expect(200);
                    whole.as_object_mut().unwrap().remove("asOf");
                    whole
                };
                let found = whole(&ask(&pipeline, Some(key), &row, path, None).await);
                let expected = whole(&pipeline.ask(&format!("{path}&{filter}")).await);
                assert_eq!(found, expected, "{path} with {filter}");
                assert_ne!(found, whole(&pipeline.ask(path).await), "{path}: the filter changes the answer");
            }
        }
    }
}

#[tokio::test]
async fn a_conflict_with_a_record_out_of_reach_reveals_nothing_of_it() {
    let (pipeline, _serve, _work, limited) = filled().await;
    let Limited { key, .. } = &limited[0];
    let send = async |record: &Value| {
        let request = reqwest::Client::new().post(format!("{}/records", pipeline.url())).bearer_auth(key);
        answer(request.header("prefer", "wait=30").json(record)).await
    };
    let get = async |path: &str| {
        answer(reqwest::Client::new().get(format!("{}{path}", pipeline.url())).bearer_auth(key)).await
    };
    // Ids that a record, a dead letter and nobody has.
    pipeline.apply(&of("taken", OUTSIDER, "here", "positive")).await.expect(200);
    pipeline.apply(&of("dead", OUTSIDER, "here-empty", "negative")).await.refused(422, "dead_lettered");
    for id in ["taken", "dead"] {
        let absent = get("/records/absent").await.text;
        assert_eq!(get(&format!("/records/{id}")).await.text, absent, "before it is sent");
        let refused = send(&of(id, "insider", "here", "positive")).await;
        let problem = refused.refused(409, "record_conflict");
        assert!(problem["deadLetter"].is_null() && !refused.text.contains(OUTSIDER), "{problem}");
        assert_eq!(get(&format!("/records/{id}")).await.text, absent, "after it was refused");
        let conflicts = get(&format!("/conflicts?recordId={id}")).await.expect(200);
        let [conflict] = conflicts["items"].as_array().unwrap().as_slice() else { panic!("{conflicts}") };
        assert_eq!(conflict["refused"]["sourceId"], "insider");
        assert!(conflict["record"].is_null() && conflict["deadLetter"].is_null(), "{conflict}");
        let whole = pipeline.get(&format!("/conflicts?recordId={id}")).await;
        assert!(whole.to_string().contains(OUTSIDER), "the administrator sees both: {whole}");
        let facts = get(&format!("/audit?recordId={id}")).await.expect(200);
        assert_eq!(facts["items"].as_array().unwrap().len(), 3, "received, queued, conflict: {facts}");
    }
    // A record of its own shows no sum over others', and not their conflicts with it.
    let again = send(&of("r1", "insider", "here", "positive")).await.expect(200);
    assert_eq!((&again["duplicate"], &again["summary"]), (&true.into(), &Value::Null));
    let fresh = send(&of("fresh", "insider", "here", "positive")).await.expect(200);
    assert_eq!((&fresh["status"], &fresh["summary"]), (&"processed".into(), &Value::Null));
    let history = get("/records/r1").await.expect(200);
    assert_eq!((&history["conflicts"], &history["summary"]), (&0.into(), &Value::Null));
    let whole = pipeline.get("/records/r1").await;
    assert!(whole["conflicts"] == 1 && whole["summary"].is_object(), "{whole}");
}

#[tokio::test]
async fn a_queued_record_out_of_reach_is_not_found() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let own = key(&pipeline, json!({"name": "k", "scopes": ["read"], "sourceIds": [{"exact": "insider"}]})).await;
    pipeline.send(&[of("a", OUTSIDER, "here", "positive"), of("b", "insider", "here", "positive")]).await;
    // The same id, first from the other source.
    pipeline.send(&[of("c", "insider", "here", "positive"), of("c", OUTSIDER, "here", "positive")]).await;
    let row = Row { method: Method::GET, path: String::new(), cells: Default::default(), limited: String::new() };
    let get = async |path: &str| ask(&pipeline, Some(&own), &row, path, None).await;
    eventually("serve has the key", async || get("/records/b").await.status == 200).await;
    assert_eq!(pipeline.get("/records/a").await["status"], "queued");
    let (outside, absent) = (get("/records/a").await, get("/records/absent").await);
    assert_eq!((outside.status, outside.text), (404, absent.text));
    assert_eq!(pipeline.get("/records/c").await["record"]["sourceId"], OUTSIDER, "the newest");
    assert_eq!(get("/records/c").await.expect(200)["record"]["sourceId"], "insider");
}
