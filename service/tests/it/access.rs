//! API keys: how a request gives one, and a revoked key that is refused within two seconds. `security.rs` has the paths.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, KEY, Pipeline, answer, eventually, record};

/// Creates a key; returns it and its id.
async fn key(pipeline: &Pipeline, name: &str, scopes: &[&str]) -> (String, String) {
    let mut arguments = vec!["create", "--name", name];
    arguments.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
    let made = pipeline.command("keys", &arguments).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let printed = String::from_utf8(made.stderr).unwrap();
    (key, printed.split(',').next().unwrap().to_owned())
}

/// Sends a request with the given `Authorization` header, or with none.
async fn with(pipeline: &Pipeline, key: Option<&str>, method: Method, path: &str) -> Answer {
    let client = reqwest::Client::new();
    let mut request = client.request(method.clone(), format!("{}{path}", pipeline.url()));
    if let Some(key) = key {
        request = request.header("authorization", key);
    }
    if method == Method::POST && path.starts_with("/records") {
        request = request.json(&record("a", "d"));
    }
    answer(request).await
}

#[tokio::test]
async fn a_key_is_read_from_the_header_and_lacks_what_it_was_not_given() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let (ingest, _) = key(&pipeline, "sender", &["ingest"]).await;
    let (both, _) = key(&pipeline, "both", &["ingest", "read"]).await;
    assert!([&ingest, &both].iter().all(|key| key.starts_with("mk_") && key.len() > 32));
    let stats = async |authorization: Option<&str>| with(&pipeline, authorization, Method::GET, "/stats").await;
    let bearer = format!("bearer {both}");
    eventually("serve accepts the new keys", async || stats(Some(&bearer)).await.status == 200).await;
    let missing = stats(None).await;
    missing.refused(401, "missing_key");
    assert_eq!(missing.header("www-authenticate"), "Bearer realm=\"millrace\"");
    for wrong in ["Bearer mk_0000000000000000000000000000000000000000", "Bearer ", "Basic bWs6", &ingest, "Bearer"] {
        let refused = stats(Some(wrong)).await;
        refused.refused(401, "invalid_key");
        assert!(refused.header("www-authenticate").contains("error=\"invalid_token\""), "{:?}", refused.headers);
    }
    let refused = stats(Some(&format!("Bearer {ingest}"))).await;
    refused.refused(403, "insufficient_scope");
    assert!(refused.header("www-authenticate").contains("insufficient_scope"), "{:?}", refused.headers);
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_two_seconds_and_only_hashes_are_stored() {
    let pipeline = Pipeline::new(json!({})).await;
    let serve = pipeline.serve().await;
    let (key, id) = key(&pipeline, "sender", &["ingest"]).await;
    let bearer = format!("Bearer {key}");
    let send = async || with(&pipeline, Some(&bearer), Method::POST, "/records").await;
    eventually("serve accepts the new key", async || send().await.status == 202).await;
    let dump: Vec<String> = sqlx::query_scalar("select k::text || s::text from api_keys k, api_key_secrets s")
        .fetch_all(&pipeline.sql)
        .await
        .unwrap();
    assert!(
        !dump.is_empty()
            && dump.iter().all(|row| !row.contains(&key) && !row.contains(&key[3..]) && !row.contains(KEY))
    );
    let listed = pipeline.command("keys", &["list"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(&id) && listed.contains("sender") && !listed.contains(&key), "{listed}");

    let revoked = pipeline.command("keys", &["revoke", &id]).await;
    assert!(revoked.status.success());
    let begun = Instant::now();
    eventually("the revoked key is refused", async || send().await.status == 401).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    send().await.refused(401, "invalid_key");
    assert!(!pipeline.command("keys", &["revoke", &id]).await.status.success(), "it is revoked already");
    // The audit trail names the actor of each action; no log line holds a key.
    let facts = pipeline.list("/audit?action=ADMIN").await;
    assert!(
        facts.iter().filter(|fact| fact["actor"].as_str().unwrap().starts_with("command:")).count() >= 2,
        "{facts:?}"
    );
    let log = std::fs::read_to_string(serve.log()).unwrap();
    assert!(!log.contains(&key) && !log.contains(KEY));
}
