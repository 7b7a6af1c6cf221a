//! Reversals: `POST /records/{recordId}/reversal`, from the request to the sums, the sinks and `verify`.

use serde_json::{Value, json};

use crate::harness::{Answer, Pipeline, answer, eventually, record};

/// A record of a value.
fn of(id: &str, destination: &str, value: &str) -> Value {
    let mut record = record(id, destination);
    record["value"] = value.into();
    record
}

/// Requests a reversal and waits for its outcome.
async fn reverse(pipeline: &Pipeline, id: &str, body: &Value) -> Answer {
    let path = format!("/records/{id}/reversal");
    answer(pipeline.posting(&path, body.to_string()).header("prefer", "wait=30")).await
}

/// The total of a destination, and the number of its records.
async fn total(pipeline: &Pipeline, destination: &str, query: &str) -> (Value, Value) {
    let path = format!("/records/aggregations?destinationId={destination}{query}");
    let total = pipeline.get(&path).await["groups"][0]["totals"][0].clone();
    (total["total"].clone(), total["count"].clone())
}

/// Spoils stored reversals of a record, one at a time: `verify` finds each.
async fn find_what_is_wrong(pipeline: &Pipeline) {
    for (wrong, right) in [
        (
            "update reversals set rest = rest + 1 where seq = (select seq from records where record_id = 'part')",
            "update reversals set rest = rest - 1 where seq = (select seq from records where record_id = 'part')",
        ),
        (
            "update records set original_seq = seq where record_id = 'part'",
            "update records set original_seq = 1 where record_id = 'part'",
        ),
        (
            "insert into reversals select shard, 1, 1000000, period, 0 from records where seq = 1",
            "delete from reversals where seq = 1000000",
        ),
    ] {
        pipeline.execute(wrong).await;
        let verified = pipeline.command("verify", &["--json"]).await;
        let verdict = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(!verified.status.success() && verdict.contains(r#""check":"reversal""#), "{wrong}: {verdict}");
        pipeline.execute(right).await;
    }
}

#[tokio::test]
async fn a_record_is_taken_back_in_parts_and_then_what_remains() {
    let rollups = json!({"rollups": [{"name": "hourly", "window": "1h", "groupBy": ["destinationId"]}]});
    let (pipeline, _serve, _work) = Pipeline::running(rollups).await;
    pipeline.apply(&of("order", "d", "250.50")).await.expect(200);
    let part = json!({"recordId": "part", "value": "50.25", "reason": "two were broken"});
    let answered = reverse(&pipeline, "order", &part).await.expect(200);
    assert_eq!((&answered["recordId"], &answered["summary"]["previousTotal"]), (&"part".into(), &"250.50".into()));
    // The same again is a duplicate, and less is a conflict.
    assert_eq!(reverse(&pipeline, "order", &part).await.expect(200)["duplicate"], true);
    let other = json!({"recordId": "part", "value": "1", "reason": "two were broken"});
    reverse(&pipeline, "order", &other).await.refused(409, "record_conflict");
    let too_much = json!({"recordId": "much", "value": "200.26", "reason": "all"});
    let problem = reverse(&pipeline, "order", &too_much).await.refused(422, "exceeds_original");
    assert_eq!(problem["pointer"], "/value");
    assert!(problem["detail"].as_str().unwrap().contains("200.25"), "{problem}");

    let whole = json!({"reason": "cancelled"});
    let answered = reverse(&pipeline, "order", &whole).await.expect(200);
    assert!(answered["recordId"].as_str().unwrap().starts_with("rv-"), "{answered}");
    let again = reverse(&pipeline, "order", &whole).await.expect(200);
    assert_eq!((&again["recordId"], &again["duplicate"]), (&answered["recordId"], &true.into()));
    let late = json!({"recordId": "late", "value": "0.01", "reason": "more"});
    reverse(&pipeline, "order", &late).await.refused(409, "already_reversed");

    pipeline.applied().await;
    // The link in both directions.
    let history = pipeline.get("/records/order").await;
    let reversals = &history["reversals"];
    assert_eq!((&reversals["count"], &reversals["rest"]), (&2.into(), &"0.00".into()), "{history}");
    let newest: Vec<_> = reversals["newest"].as_array().unwrap().iter().map(|one| one["value"].clone()).collect();
    assert_eq!(newest, ["200.25", "50.25"]);
    let reversal = pipeline.get(&format!("/records/{}", answered["recordId"].as_str().unwrap())).await;
    let record = &reversal["record"];
    assert_eq!((&reversal["reverses"], &record["reverses"]), (&"order".into(), &"order".into()));
    assert_eq!((&record["type"], &record["value"]), (&"negative".into(), &"200.25".into()));
    assert_eq!((&record["time"], &record["attributes"]), (&"2026-01-31T12:00:00Z".into(), &whole));
    assert_eq!(reversal["threshold"], "200", "a threshold applies to a reversal, too");

    // Each reversal that was asked for is an act of an administrator, whose reason it has.
    let acts = pipeline.list("/audit?action=ADMIN").await;
    let of_reversals: Vec<&str> =
        acts.iter().filter_map(|act| act["reason"].as_str()?.strip_prefix("records.reverse: order by ")).collect();
    assert!(
        matches!(of_reversals[..], [part, rest] if part == "part: two were broken" && rest.ends_with(": cancelled")),
        "{acts:?}"
    );

    // Notifications, rollups and sums are of the same commits.
    let published = pipeline.sink_entries("notifications").await;
    let of_reversal = published.iter().find(|entry| entry.id == reversal["id"]).unwrap();
    assert_eq!(of_reversal.data["record"]["reverses"], "order");
    assert_eq!(of_reversal.data["record"]["value"], "200.25");
    let alerted = pipeline.sink_entries("alerts").await;
    assert_eq!(alerted.iter().map(|entry| entry.record_id()).collect::<Vec<_>>().len(), 2, "{alerted:?}");
    let rolled = pipeline.get("/records/rollups?window=1h&groupBy=destinationId").await;
    assert_eq!(rolled["items"][0]["totals"][0]["total"], "0.00", "{rolled}");
    assert_eq!(total(&pipeline, "d", "").await, ("0.00".into(), 3.into()));
    for records in ["", "&records=false"] {
        let excluded = pipeline.get(&format!("/records/aggregations?reversed=exclude{records}")).await;
        assert_eq!(excluded["groups"], json!([]), "{excluded}");
    }
    pipeline.verify().await;
    find_what_is_wrong(&pipeline).await;
    pipeline.verify().await;
}

#[tokio::test]
async fn concurrent_reversals_never_take_more_than_the_record() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"policy": {"minimumTotal": "0"}})).await;
    pipeline.apply(&of("order", "d", "10")).await.expect(200);
    pipeline.apply(&of("other", "d", "1000")).await.expect(200);
    // Each fits alone, and so each is queued: the commits decide.
    let requests = (0..40).map(|n| {
        let body = match n % 4 {
            0 => json!({"reason": "what remains"}),
            _ => json!({"recordId": format!("part-{n}"), "value": "0.9", "reason": "a part"}),
        };
        let pipeline = &pipeline;
        async move {
            let path = "/records/order/reversal";
            answer(pipeline.posting(path, body.to_string())).await.status
        }
    });
    let statuses = futures::future::join_all(requests).await;
    assert!(statuses.iter().all(|status| [202, 409, 422].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 202).count() > 1, "{statuses:?}");
    pipeline.applied().await;
    // A reversal of what remains was among them: nothing does now.
    let history = pipeline.get("/records/order").await;
    assert_eq!(history["reversals"]["rest"].as_str().unwrap().trim_end_matches(['.', '0']), "", "{history}");
    let (total, _) = total(&pipeline, "d", "&records=false").await;
    assert_eq!(total.as_str().unwrap().split('.').next(), Some("1000"), "{total}");
    assert!(total.as_str().unwrap().trim_start_matches("1000").trim_matches(['.', '0']).is_empty(), "{total}");
    let refused = pipeline.list("/dead-letters").await;
    assert!(refused.iter().all(|dead_letter| dead_letter["reason"] == "reversal_exceeds_original"), "{refused:?}");
    pipeline.verify().await;
}

#[tokio::test]
async fn a_reversal_of_what_remains_is_never_refused_when_it_is_sent_again() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    for n in 0..10 {
        let id = format!("order-{n}");
        pipeline.apply(&of(&id, "d", "10")).await.expect(200);
        let (path, body) = (format!("/records/{id}/reversal"), json!({"reason": "cancelled"}).to_string());
        // Until the answers are those of a reversal that was applied long ago, each comes somewhere around its commit.
        let send = async || {
            for _ in 0..12 {
                answer(pipeline.posting(&path, body.clone())).await.expect(202);
            }
        };
        futures::join!(send(), send(), send());
    }
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from reversals").await, 10);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_reversal_that_cannot_be_is_refused_with_its_reason() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 1, "policy": {"minimumTotal": "0"}})).await;
    pipeline.apply(&of("order", "d", "10")).await.expect(200);
    pipeline.apply(&of("spent", "e", "10")).await.expect(200);
    let mut spending = of("spending", "e", "7");
    spending["type"] = "negative".into();
    pipeline.apply(&spending).await.expect(200);
    let reason = || json!({"reason": "tested"});
    let with = |field: &str, value: Value| {
        let mut body = reason();
        body[field] = value;
        body
    };
    for (id, body, status, code, pointer) in [
        ("none", reason(), 404, "not_found_or_queued", ""),
        ("order", json!({}), 422, "missing_field", "/reason"),
        ("order", with("reason", " ".into()), 422, "invalid_value", "/reason"),
        ("order", with("more", 1.into()), 422, "unknown_field", "/more"),
        ("order", with("value", "1".into()), 422, "missing_field", "/recordId"),
        ("order", with("recordId", "own".into()), 422, "invalid_value", "/recordId"),
        ("order", with("value", "-1".into()), 422, "invalid_value", "/value"),
        ("order", with("value", "0.00".into()), 422, "invalid_value", "/value"),
        ("order", json!([]), 422, "wrong_type", ""),
    ] {
        let problem = reverse(&pipeline, id, &body).await.refused(status, code);
        assert_eq!(problem["pointer"].as_str().unwrap_or_default(), pointer, "{body}: {problem}");
    }
    // minimumTotal applies: 3 are left of the destination.
    let refused = reverse(&pipeline, "spent", &reason()).await.refused(422, "dead_lettered");
    assert_eq!(refused["reason"], "below_minimum_total");
    // The dead letter holds the id: the same again is its duplicate, and its history shows what it would reverse.
    let again = reverse(&pipeline, "spent", &reason()).await.refused(422, "dead_lettered");
    assert_eq!(again["duplicate"], true);
    let dead_letter = &pipeline.list("/dead-letters").await[0];
    let history = pipeline.get(&format!("/records/{}", dead_letter["recordId"].as_str().unwrap())).await;
    assert_eq!((&history["status"], &history["reverses"]), (&"dead_lettered".into(), &"spent".into()));
    assert_eq!(history.get("record"), None, "it has no value yet: {history}");
    pipeline.apply(&of("more", "e", "7")).await.expect(200);
    pipeline.act(&format!("/dead-letters/{}/replay", dead_letter["id"].as_str().unwrap())).await;
    pipeline.applied().await;
    assert_eq!(pipeline.get("/records/spent").await["reversals"]["rest"], "0");
    pipeline.verify().await;
}

#[tokio::test]
async fn a_reversal_by_another_program_or_again_is_decided_by_the_same_rules() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 1})).await;
    pipeline.apply(&of("order", "d", "10")).await.expect(200);
    let mut spending = of("spending", "e", "7");
    spending["type"] = "negative".into();
    pipeline.apply(&spending).await.expect(200);
    let reason = json!({"reason": "tested"});
    let reversal = reverse(&pipeline, "order", &reason).await.expect(200)["recordId"].as_str().unwrap().to_owned();
    reverse(&pipeline, &reversal, &reason).await.refused(422, "original_is_reversal");
    // A reversal that was exported is a duplicate, with the value that it got.
    let mut exported = pipeline.get(&format!("/records/{reversal}")).await["record"].clone();
    for added in ["receivedAt", "processedAt"] {
        exported.as_object_mut().unwrap().remove(added);
    }
    assert_eq!(exported["value"], "10");
    assert_eq!(pipeline.apply(&exported).await.expect(200)["duplicate"], true);
    // Another program can append `reverses`, too: the commit decides.
    for (id, reverses, change) in [
        ("x-1", "nothing", json!({})),
        ("x-2", reversal.as_str(), json!({})),
        ("x-3", "spending", json!({"destinationId": "e"})),
        ("x-4", "order", json!({"type": "negative"})),
        ("x-5", "spending", json!({"destinationId": "e", "reference": "another"})),
    ] {
        let mut entry = of(id, "d", "1");
        entry["reverses"] = reverses.into();
        change.as_object().unwrap().iter().for_each(|(field, value)| entry[field] = value.clone());
        let _: String = pipeline.redis(&["XADD", &pipeline.records(0), "*", "record", &entry.to_string()]).await;
    }
    pipeline.applied().await;
    let mut reasons: Vec<(String, String)> = Vec::new();
    for dead_letter in pipeline.list("/dead-letters?state=open").await {
        let text = |field: &str| dead_letter[field].as_str().unwrap().to_owned();
        reasons.push((text("recordId"), text("reason")));
    }
    let expected = [
        ("x-1", "original_not_found"),
        ("x-2", "reversal_of_reversal"),
        ("x-4", "reversal_exceeds_original"),
        ("x-5", "reversal_mismatch"),
    ];
    assert_eq!(reasons, expected.map(|(id, reason)| (id.to_owned(), reason.to_owned())));
    assert_eq!(pipeline.get("/records/x-3").await["reverses"], "spending", "it fits, also by another program");
    pipeline.verify().await;
}

#[tokio::test]
async fn a_source_reverses_its_own_records_and_no_other() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let mut other = of("theirs", "d", "5");
    other["sourceId"] = "another".into();
    for record in [&of("mine", "d", "5"), &other] {
        pipeline.apply(record).await.expect(200);
    }
    let key = async |arguments: &[&str]| {
        let made = pipeline.command("keys", &[&["create", "--name", "k"], arguments].concat()).await;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    };
    let own = key(&["--scope", "ingest", "--source-id", "exact=source"]).await;
    let reader = key(&["--scope", "read", "--source-id", "exact=source"]).await;
    let unlimited = key(&["--scope", "ingest"]).await;
    let send = async |key: &str, id: &str| {
        let client = reqwest::Client::new();
        let request = client.post(format!("{}/records/{id}/reversal", pipeline.url())).bearer_auth(key);
        answer(request.header("prefer", "wait=30").json(&json!({"reason": "tested"}))).await
    };
    // The keys that were created before the last one are known with it.
    eventually("the keys are known", async || send(&unlimited, "none").await.status == 403).await;
    send(&reader, "mine").await.refused(403, "insufficient_scope");
    send(&unlimited, "mine").await.refused(403, "insufficient_scope");
    send(&own, "theirs").await.refused(404, "not_found_or_queued");
    let mut record = of("own", "d", "1");
    record["reverses"] = "mine".into();
    let sent = reqwest::Client::new().post(format!("{}/records", pipeline.url())).bearer_auth(&unlimited).json(&record);
    assert_eq!(answer(sent).await.refused(403, "outside_limit")["pointer"], "/reverses");
    let taken = send(&own, "mine").await.expect(200);
    assert_eq!((&taken["status"], taken.get("summary")), (&"processed".into(), None));
    let keyed = async |request: reqwest::RequestBuilder| {
        answer(request.header("idempotency-key", "k-1").header("prefer", "wait=30")).await.expect(200)
    };
    let request = || pipeline.posting("/records/theirs/reversal", r#"{"value": 2, "reason": "tested"}"#);
    let (first, again) = (keyed(request()).await, keyed(request()).await);
    assert_eq!((&first["recordId"], &again["duplicate"]), (&again["recordId"], &true.into()));
    pipeline.verify().await;
}

#[tokio::test]
async fn a_record_that_is_no_longer_kept_cannot_be_reversed() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 1})).await;
    for id in ["old", "reversed"] {
        pipeline.apply(&of(id, "d", "5")).await.expect(200);
    }
    // The next period begins, and holds the reversal of a record of the old one.
    let period: String =
        sqlx::query_scalar("select max(period)::text from shard_periods").fetch_one(&pipeline.sql).await.unwrap();
    pipeline.execute("update shards set period = (period + interval '1 month')::date").await;
    let reversed = reverse(&pipeline, "reversed", &json!({"reason": "tested"})).await.expect(200);
    pipeline.applied().await;
    let partition = format!("records_{}", period.replace('-', ""));
    for statement in [format!("alter table records detach partition {partition}"), format!("drop table {partition}")] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pipeline.sql).await.unwrap();
    }
    let problem = reverse(&pipeline, "old", &json!({"reason": "tested"})).await.refused(410, "record_expired");
    assert!(problem["detail"].as_str().unwrap().contains(&period), "{problem}");
    let entry = json!({"reverses": "old", "type": "negative"});
    let mut late = of("late", "d", "1");
    entry.as_object().unwrap().iter().for_each(|(field, value)| late[field] = value.clone());
    let _: String = pipeline.redis(&["XADD", &pipeline.records(0), "*", "record", &late.to_string()]).await;
    pipeline.applied().await;
    assert_eq!(pipeline.list("/dead-letters").await[0]["reason"], "original_not_found");
    let history = pipeline.get(&format!("/records/{}", reversed["recordId"].as_str().unwrap())).await;
    assert_eq!(history["reverses"], "reversed");
}
