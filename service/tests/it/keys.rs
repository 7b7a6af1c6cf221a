//! API keys from their creation to their revocation, by the API and by commands, and the trail of what administrators do.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::harness::{Answer, KEY, Pipeline, answer, eventually, obtain, record};

/// A request with another key than the administrator's.
fn request(pipeline: &Pipeline, secret: &str, method: Method, path: &str) -> RequestBuilder {
    reqwest::Client::new().request(method, format!("{}{path}", pipeline.url())).bearer_auth(secret)
}

/// The status of a query with this key.
async fn status(pipeline: &Pipeline, secret: &str) -> u16 {
    answer(request(pipeline, secret, Method::GET, "/records")).await.status
}

async fn delete(pipeline: &Pipeline, path: &str) -> Answer {
    answer(pipeline.request(Method::DELETE, path)).await
}

async fn create(pipeline: &Pipeline, body: Value) -> Value {
    pipeline.post_json("/keys", body.to_string()).await.expect(201)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn both_secrets_of_a_rotated_key_are_valid_until_one_is_revoked() {
    let pipeline = Pipeline::new(json!({})).await;
    let serve = pipeline.serve().await;
    let created = create(&pipeline, json!({"name": "shop", "scopes": ["read"]})).await;
    let (id, old) = (text(&created["key"]["id"]), text(&created["secret"]));
    eventually("the key is valid", async || status(&pipeline, old).await == 200).await;
    let rotated = pipeline.act(&format!("/keys/{id}/rotate")).await.expect(200);
    let new = text(&rotated["secret"]);
    assert_ne!(old, new);
    eventually("the new secret is valid", async || status(&pipeline, new).await == 200).await;
    assert_eq!(status(&pipeline, old).await, 200);
    pipeline.act(&format!("/keys/{id}/rotate")).await.refused(409, "key_has_two_secrets");
    pipeline.act("/keys/bootstrap/rotate").await.refused(409, "bootstrap_key");
    pipeline.act("/keys/key_0/rotate").await.refused(404, "not_found");

    let mut later = vec![pipeline.ask("/keys").await.text];
    let path = format!("/keys/{id}/secrets/{}", text(&created["secretId"]));
    let begun = Instant::now();
    later.push(delete(&pipeline, &path).await.expect(200).to_string());
    eventually("the old secret is refused", async || status(&pipeline, old).await == 401).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    assert_eq!(status(&pipeline, new).await, 200);
    delete(&pipeline, &path).await.refused(404, "not_found");
    delete(&pipeline, &format!("/keys/key_0/secrets/{}", text(&rotated["secretId"]))).await.refused(404, "not_found");
    let used = obtain("the uses are noted", async || {
        let keys = pipeline.list("/keys").await;
        let key = keys.into_iter().find(|key| key["id"] == id)?;
        key["secrets"].as_array().unwrap().iter().all(|secret| secret["lastUsedAt"].is_string()).then_some(key)
    })
    .await;
    assert!(used["secrets"][0]["revokedAt"].is_string() && used["secrets"][1]["revokedAt"].is_null(), "{used}");
    later.push(delete(&pipeline, &format!("/keys/{id}")).await.expect(200).to_string());
    eventually("the key is refused", async || status(&pipeline, new).await == 401).await;
    delete(&pipeline, &format!("/keys/{id}")).await.refused(404, "not_found");
    later.push(pipeline.ask("/keys").await.text);
    later.push(pipeline.ask("/audit?action=ADMIN").await.text);
    later.push(std::fs::read_to_string(serve.log()).unwrap());
    for secret in [old, new, KEY] {
        assert!(later.iter().all(|text| !text.contains(&secret[3..])), "no answer shows a secret again: {later:?}");
    }
}

#[tokio::test]
async fn a_key_is_refused_from_its_expiry_on() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    // By Postgres's clock, as the product.
    let expiry: String = sqlx::query_scalar(
        "select to_char(clock_timestamp() at time zone 'UTC' + interval '3 seconds', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .fetch_one(&pipeline.sql)
    .await
    .unwrap();
    let created = create(&pipeline, json!({"name": "guest", "scopes": ["read"], "expiresAt": expiry})).await;
    let secret = text(&created["secret"]);
    eventually("the key is valid", async || status(&pipeline, secret).await == 200).await;
    eventually("the key is refused", async || status(&pipeline, secret).await == 401).await;
    let after: f64 = sqlx::query_scalar(
        "select extract(epoch from clock_timestamp() - expires_at)::float8 from api_keys where name = 'guest'",
    )
    .fetch_one(&pipeline.sql)
    .await
    .unwrap();
    assert!((0.0..2.0).contains(&after), "{after} s after it expired");
    let listed = pipeline.command("keys", &["list"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.lines().any(|line| line.contains("guest") && line.contains("expired 20")), "{listed}");
}

#[tokio::test]
async fn a_key_that_breaks_a_rule_is_refused_with_the_field() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let many: Vec<Value> = (0..101).map(|n| json!({ "exact": n.to_string() })).collect();
    for (change, pointer) in [
        (json!({"name": " a"}), "/name"),
        (json!({"scopes": []}), "/scopes"),
        (json!({"scopes": ["read", "admin"], "sourceIds": [{"exact": "s"}]}), "/scopes"),
        (json!({ "sourceIds": many }), "/sourceIds"),
        (json!({ "destinationIds": many }), "/destinationIds"),
        (json!({"expiresAt": "2020-01-01T00:00:00Z"}), "/expiresAt"),
    ] {
        let mut body = json!({"name": "a", "scopes": ["read"]});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let problem = pipeline.post_json("/keys", body.to_string()).await.refused(422, "invalid_value");
        assert_eq!(problem["pointer"], pointer, "{problem}");
    }
    for body in [
        "{",
        r#"{"name": "a"}"#,
        r#"{"name": "a", "scopes": ["root"]}"#,
        r#"{"name": "a", "scopes": ["read"], "sourceIds": ["a"]}"#,
        r#"{"name": "a", "scopes": ["read"], "sourceIds": [{}]}"#,
        r#"{"name": "a", "scopes": ["read"], "sourceIds": [{"exact": "a", "prefix": "a"}]}"#,
        r#"{"name": "a", "scopes": ["read"], "sourceIds": [{"prefix": ""}]}"#,
        r#"{"name": "a", "scopes": ["read"], "sourceIDs": [{"exact": "a"}]}"#,
    ] {
        pipeline.post_json("/keys", body).await.refused(400, "invalid_body");
    }
    assert_eq!(pipeline.list("/keys").await.len(), 1, "only the first key");
}

#[tokio::test]
async fn commands_and_the_api_make_the_same_keys() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let run = async |arguments: &[&str]| {
        let done = pipeline.command("keys", arguments).await;
        let (out, error) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        (done.status.success(), out.trim().to_owned(), error)
    };
    let (_, secret, printed) = run(&[
        "create",
        "--name",
        "shop 7",
        "--scope",
        "read",
        "--scope",
        "ingest",
        "--source-id",
        "exact=shop=7",
        "--destination-id",
        "prefix=eu-*",
        "--destination-id",
        "exact=us",
        "--expires-at",
        "2099-01-01T00:00:00Z",
    ])
    .await;
    let id = printed.split(',').next().unwrap();
    eventually("the key is valid", async || status(&pipeline, &secret).await == 200).await;
    let keys = pipeline.list("/keys").await;
    let shown = keys.iter().find(|key| key["id"] == id).unwrap();
    assert_eq!(shown["scopes"], json!(["ingest", "read"]));
    assert_eq!(shown["sourceIds"], json!([{"exact": "shop=7"}]));
    assert_eq!(shown["destinationIds"], json!([{"prefix": "eu-*"}, {"exact": "us"}]));
    assert_eq!(shown["expiresAt"], "2099-01-01T00:00:00Z");
    let (_, second, _) = run(&["rotate", id]).await;
    eventually("the second secret is valid", async || status(&pipeline, &second).await == 200).await;
    let (_, listed, _) = run(&["list"]).await;
    let first = text(&shown["secrets"][0]["id"]);
    for part in [id, "shop 7", "prefix=eu-*", "exact=shop=7", "active until 2099", first] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(!listed.contains(&secret) && !listed.contains(&second));
    assert!(run(&["revoke", id, "--secret", first]).await.0);
    eventually("the first secret is refused", async || status(&pipeline, &secret).await == 401).await;
    assert_eq!(status(&pipeline, &second).await, 200);
    for wrong in [
        &["create", "--name", "a", "--scope", "admin", "--source-id", "exact=a"][..],
        &["create", "--name", "a", "--scope", "read", "--source-id", "a*"],
        &["create", "--name", "a", "--scope", "read", "--expires-at", "2020-01-01T00:00:00Z"],
        &["rotate", "bootstrap"],
        &["rotate", "key_0"],
        &["revoke", id, "--secret", first],
    ] {
        let (done, _, error) = run(wrong).await;
        assert!(!done && !error.is_empty(), "{wrong:?}");
    }
}

#[tokio::test]
async fn each_act_of_an_administrator_names_key_and_address() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({"shards": 1, "policy": {"minimumTotal": "0"}})).await;
    for id in ["a", "b", "c"] {
        let mut out = record(id, "empty");
        out["type"] = "negative".into();
        pipeline.apply(&out).await.refused(422, "dead_lettered");
    }
    let created = create(&pipeline, json!({"name": "other", "scopes": ["admin"]})).await;
    let (id, secret, first) = (text(&created["key"]["id"]), text(&created["secret"]), text(&created["secretId"]));
    eventually("the key is valid", async || status(&pipeline, secret).await == 200).await;
    let act = async |method: Method, path: &str, forwarded: &str| {
        let request = request(&pipeline, secret, method, path).header("x-forwarded-for", forwarded);
        assert!([200, 202].contains(&answer(request).await.status), "{path}");
    };
    pipeline.execute("update shards set loss_uncertain_since = now()").await;
    act(Method::POST, "/losses/acknowledge?reason=checked", "198.51.100.1").await;
    act(Method::POST, "/dead-letters/0-d1/replay", "198.51.100.1").await;
    act(Method::POST, "/dead-letters/replay?recordId=b", "198.51.100.1").await;
    act(Method::POST, "/dead-letters/0-d3/discard", "198.51.100.1").await;
    act(Method::POST, &format!("/keys/{id}/rotate"), "198.51.100.1").await;
    pipeline.change(|spec| spec["serve"] = json!({"trustedProxies": ["127.0.0.0/8"]}));
    let shown = obtain("the proxy is trusted", async || {
        act(Method::POST, "/dead-letters/replay?recordId=b", "203.0.113.5, 198.51.100.1, 127.0.0.9").await;
        let facts = pipeline.list("/audit?action=ADMIN").await;
        facts.iter().any(|fact| fact["address"] == "198.51.100.1").then_some(facts)
    })
    .await;
    act(Method::DELETE, &format!("/keys/{id}/secrets/{first}"), "198.51.100.1").await;
    assert!(pipeline.command("keys", &["revoke", id]).await.status.success());

    let own: Vec<(&str, &str)> = shown
        .iter()
        .filter(|fact| fact["actorId"] == id && fact["address"] == "127.0.0.1")
        .map(|fact| (text(&fact["reason"]), text(&fact["actor"])))
        .collect();
    let began = |reason: &str| own.iter().any(|(shown, actor)| shown.starts_with(reason) && *actor == "other");
    for reason in [
        "losses.acknowledge: shards 0: checked",
        "dead_letters.replay: 0-d1",
        "dead_letters.replay: 0-d2",
        "dead_letters.discard: 0-d3",
        &format!("keys.rotate: key {id} (other), new secret sec_"),
    ] {
        assert!(began(reason), "{reason}: {shown:#?}");
    }
    let facts = pipeline.list("/audit?action=ADMIN").await;
    let of = |start: &str| {
        let found = facts.iter().find(|fact| text(&fact["reason"]).starts_with(start));
        found.unwrap_or_else(|| panic!("{start}: {facts:#?}"))
    };
    let created = of(&format!("keys.create: key {id} (other) with scopes admin"));
    assert_eq!(
        (&created["actorId"], &created["actor"], &created["address"]),
        (&"bootstrap".into(), &"bootstrap".into(), &"127.0.0.1".into())
    );
    assert_eq!(of(&format!("keys.revoke_secret: secret {first} of key {id}"))["address"], "198.51.100.1");
    let by_command = of(&format!("keys.revoke: key {id}"));
    assert!(text(&by_command["actor"]).starts_with("command:"), "{by_command}");
    assert!(by_command["actorId"].is_null() && by_command["address"].is_null(), "{by_command}");
}
