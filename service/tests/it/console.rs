//! The console's session: who may sign in, what its cookie allows, and when it ends.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, header::COOKIE};
use serde_json::{Value, json};

use crate::harness::{Answer, KEY, Pipeline, answer, eventually, record};

/// The header with the token against forgery.
const FORGERY: &str = "x-millrace-forgery-token";

/// A browser: its cookie, and the token against forgery that its page read.
struct Browser {
    cookie: String,
    forgery: String,
}

impl Browser {
    fn request(&self, url: &str, method: Method, path: &str) -> RequestBuilder {
        reqwest::Client::new().request(method, format!("{url}{path}")).header(COOKIE, &self.cookie)
    }

    async fn get(&self, pipeline: &Pipeline, path: &str) -> Answer {
        answer(self.request(&pipeline.url(), Method::GET, path)).await
    }

    /// A request that changes something, as the console's page sends it.
    async fn act(&self, pipeline: &Pipeline, method: Method, path: &str) -> Answer {
        answer(self.request(&pipeline.url(), method, path).header(FORGERY, &self.forgery)).await
    }
}

fn signing_in(pipeline: &Pipeline, key: &str) -> RequestBuilder {
    reqwest::Client::new().post(format!("{}/console/session", pipeline.url())).json(&json!({ "key": key }))
}

async fn sign_in(pipeline: &Pipeline, key: &str) -> Browser {
    let answer = answer(signing_in(pipeline, key)).await;
    let forgery = answer.expect(200)["forgeryToken"].as_str().unwrap().to_owned();
    let cookie = answer.header("set-cookie").split(';').next().unwrap().to_owned();
    Browser { cookie, forgery }
}

/// Makes a key, and waits until serve has it.
async fn key(pipeline: &Pipeline, body: Value) -> (String, String) {
    let created = pipeline.post_json("/keys", body.to_string()).await.expect(201);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (id, secret) = (text(&created["key"]["id"]), text(&created["secret"]));
    eventually("serve has the key", async || {
        let request = reqwest::Client::new().get(format!("{}/keys", pipeline.url())).bearer_auth(&secret);
        answer(request).await.status != 401
    })
    .await;
    (id, secret)
}

#[tokio::test]
async fn a_session_is_a_cookie_that_scripts_cannot_read_and_every_process_takes() {
    let (pipeline, serve, _work) = Pipeline::running(json!({})).await;
    let refused = answer(signing_in(&pipeline, &format!("mk_{}", "0".repeat(64)))).await;
    refused.refused(401, "invalid_key");
    assert_eq!(refused.header("set-cookie"), "");
    answer(signing_in(&pipeline, "not a key")).await.refused(401, "invalid_key");
    let form = reqwest::Client::new().post(format!("{}/console/session", pipeline.url()));
    answer(form.header("content-type", "text/plain").body(json!({"key": KEY}).to_string()))
        .await
        .refused(415, "unsupported_media_type");
    let of_another = answer(signing_in(&pipeline, KEY).header("sec-fetch-site", "cross-site")).await;
    of_another.refused(403, "forged_request");

    let begun = answer(signing_in(&pipeline, KEY)).await;
    let cookie = begun.header("set-cookie").to_owned();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=28800"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(&KEY[3..]) && !begun.text.contains(&KEY[3..]), "{cookie}");
    let https = answer(signing_in(&pipeline, KEY).header("x-forwarded-proto", "https")).await;
    assert!(https.header("set-cookie").contains("; Secure"), "{:?}", https.headers);

    // Another process, right after the answer.
    let first = pipeline.url();
    let _second = pipeline.serve().await;
    assert_ne!(first, pipeline.url());
    let browser = sign_in(&pipeline, KEY).await;
    for url in [&first, &pipeline.url()] {
        let shown = answer(browser.request(url, Method::GET, "/console/session")).await.expect(200);
        assert_eq!(
            (&shown["name"], &shown["mayAct"], &shown["open"]),
            (&"bootstrap".into(), &true.into(), &false.into())
        );
        let stats = answer(browser.request(url, Method::GET, "/stats")).await;
        stats.expect(200);
        assert_eq!(stats.header("cache-control"), "no-store");
    }
    let token = browser.cookie.split_once('=').unwrap().1;
    let bearer = reqwest::Client::new().get(format!("{first}/stats")).bearer_auth(token);
    answer(bearer).await.refused(401, "invalid_key");
    let log = std::fs::read_to_string(serve.log()).unwrap();
    assert!(!log.contains(token) && !log.contains(&KEY[3..]), "the log has no secret");
    let stored: i64 = sqlx::query_scalar("select count(*) from console_sessions where encode(hash, 'hex') = $1")
        .bind(token)
        .fetch_one(&pipeline.sql)
        .await
        .unwrap();
    assert_eq!(stored, 0, "only the hash is stored");
}

#[tokio::test]
async fn a_change_needs_the_token_against_forgery_and_the_same_origin() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    let browser = sign_in(&pipeline, KEY).await;
    let path = "/losses/acknowledge";
    let bare = || browser.request(&pipeline.url(), Method::POST, path);
    answer(bare()).await.refused(403, "forged_request");
    answer(bare().header(FORGERY, "0".repeat(64))).await.refused(403, "forged_request");
    let other = sign_in(&pipeline, KEY).await;
    answer(bare().header(FORGERY, &other.forgery)).await.refused(403, "forged_request");
    browser.act(&pipeline, Method::POST, path).await.expect(200);
    for site in ["same-site", "cross-site"] {
        let sent = bare().header(FORGERY, &browser.forgery).header("sec-fetch-site", site);
        answer(sent).await.refused(403, "forged_request");
        let read = browser.request(&pipeline.url(), Method::GET, "/stats").header("sec-fetch-site", site);
        answer(read).await.refused(403, "forged_request");
    }
    let read = browser.request(&pipeline.url(), Method::GET, "/stats").header("sec-fetch-site", "same-origin");
    answer(read).await.expect(200);
    // A record is a change, too, and an API key needs no such token.
    let sent = browser.request(&pipeline.url(), Method::POST, "/records").json(&record("r1", "d"));
    answer(sent).await.refused(403, "forged_request");
    pipeline.act(path).await.expect(200);
    // Signing out is a change: another site cannot end a session.
    let unsigned = answer(browser.request(&pipeline.url(), Method::DELETE, "/console/session")).await;
    unsigned.refused(403, "forged_request");
}

#[tokio::test]
async fn scope_and_limit_of_the_key_decide_what_a_session_may_do() {
    let (pipeline, _serve, _work) = Pipeline::running(json!({})).await;
    for (id, destination) in [("r1", "mine"), ("r2", "others")] {
        pipeline.apply(&record(id, destination)).await.expect(200);
    }
    let (_, ingest) = key(&pipeline, json!({"name": "in", "scopes": ["ingest"]})).await;
    answer(signing_in(&pipeline, &ingest)).await.refused(403, "insufficient_scope");

    let (_, read) = key(&pipeline, json!({"name": "reader", "scopes": ["read"]})).await;
    let reader = sign_in(&pipeline, &read).await;
    for path in ["/stats", "/workers", "/policies", "/records"] {
        reader.get(&pipeline, path).await.expect(200);
    }
    reader.get(&pipeline, "/keys").await.refused(403, "insufficient_scope");
    reader.act(&pipeline, Method::POST, "/losses/acknowledge").await.refused(403, "insufficient_scope");
    reader.act(&pipeline, Method::POST, "/sinks/alerts/resume").await.refused(403, "insufficient_scope");
    let shown = reader.get(&pipeline, "/console/session").await.expect(200);
    assert_eq!((&shown["mayAct"], &shown["limited"]), (&false.into(), &false.into()));

    let limit = json!({"name": "tenant", "scopes": ["read"], "destinationIds": [{"exact": "mine"}]});
    let (_, limited) = key(&pipeline, limit).await;
    let tenant = sign_in(&pipeline, &limited).await;
    let rows = tenant.get(&pipeline, "/records").await.expect(200);
    let ids: Vec<&Value> = rows["items"].as_array().unwrap().iter().map(|row| &row["recordId"]).collect();
    assert_eq!(ids, ["r1"]);
    for path in ["/stats", "/console/events", "/workers", "/policies"] {
        tenant.get(&pipeline, path).await.refused(403, "limited_key");
    }
    assert_eq!(tenant.get(&pipeline, "/console/session").await.expect(200)["limited"], true);
    // Who acts is in the trail, by the key and not by the session.
    let admin = sign_in(&pipeline, KEY).await;
    admin.act(&pipeline, Method::DELETE, "/keys/key_0").await.refused(404, "not_found");
    let (id, _) = key(&pipeline, json!({"name": "gone", "scopes": ["read"]})).await;
    admin.act(&pipeline, Method::DELETE, &format!("/keys/{id}")).await.expect(200);
    let acts = pipeline.list("/audit?action=ADMIN").await;
    let revoked = acts.iter().find(|act| act["reason"].as_str().unwrap().starts_with("keys.revoke")).unwrap();
    assert_eq!((&revoked["actor"], &revoked["actorId"]), (&"bootstrap".into(), &"bootstrap".into()));
}

#[tokio::test]
async fn a_session_ends_by_signing_out_by_its_time_and_with_its_key() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let left = sign_in(&pipeline, KEY).await;
    let out = left.act(&pipeline, Method::DELETE, "/console/session").await;
    assert_eq!((out.status, out.header("set-cookie").contains("Max-Age=0")), (204, true), "{:?}", out.headers);
    let is_ended = async |browser: &Browser| {
        let begun = Instant::now();
        eventually("the session is refused", async || browser.get(&pipeline, "/records").await.status == 401).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
        browser.get(&pipeline, "/records").await.refused(401, "session_ended");
        browser.get(&pipeline, "/console/session").await.refused(401, "session_ended");
    };
    is_ended(&left).await;

    let late = sign_in(&pipeline, KEY).await;
    late.get(&pipeline, "/records").await.expect(200);
    pipeline.execute("update console_sessions set expires_at = now()").await;
    is_ended(&late).await;
    // Who signs in clears what expired.
    let (id, secret) = key(&pipeline, json!({"name": "short", "scopes": ["read"]})).await;
    let revoked = sign_in(&pipeline, &secret).await;
    let expired: i64 = sqlx::query_scalar("select count(*) from console_sessions where expires_at <= now()")
        .fetch_one(&pipeline.sql)
        .await
        .unwrap();
    assert_eq!(expired, 0);
    let mut events = revoked.request(&pipeline.url(), Method::GET, "/console/events").send().await.unwrap();
    assert_eq!(events.status(), 200);
    assert!(events.chunk().await.unwrap().is_some());
    pipeline.request(Method::DELETE, &format!("/keys/{id}")).send().await.unwrap().error_for_status().unwrap();
    is_ended(&revoked).await;
    while events.chunk().await.unwrap().is_some() {}

    // A first key that is replaced in the environment ends the sessions of the one before.
    let first = sign_in(&pipeline, KEY).await;
    first.get(&pipeline, "/records").await.expect(200);
    pipeline.execute("update api_key_secrets set hash = sha256('another') where id = 'bootstrap'").await;
    is_ended(&first).await;
}

#[tokio::test]
async fn a_secret_has_so_many_sessions_and_the_oldest_end_first() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let first = sign_in(&pipeline, KEY).await;
    pipeline
        .execute(
            "insert into console_sessions (hash, secret_hash, created_at, expires_at)
             select sha256(n::text::bytea), secret_hash, now() + n * interval '1 ms', expires_at
             from console_sessions, generate_series(1, 40) as n",
        )
        .await;
    let last = sign_in(&pipeline, KEY).await;
    let count: i64 =
        sqlx::query_scalar("select count(*) from console_sessions").fetch_one(&pipeline.sql).await.unwrap();
    assert_eq!(count, 32);
    first.get(&pipeline, "/records").await.refused(401, "session_ended");
    last.get(&pipeline, "/records").await.expect(200);
}

#[tokio::test]
async fn the_pages_load_nothing_from_elsewhere_and_come_again_only_when_they_changed() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let get = async |path: &str, tag: Option<&str>| {
        let mut request = reqwest::Client::new().get(format!("{}{path}", pipeline.url()));
        if let Some(tag) = tag {
            request = request.header("if-none-match", tag);
        }
        answer(request).await
    };
    let page = get("/console", None).await;
    assert_eq!((page.status, page.text.contains("<script type=\"module\" src=")), (200, true), "{}", page.text);
    for path in ["/console/", "/console/app.js", "/console/style.css", "/v1/console/"] {
        let file = get(path, None).await;
        assert_eq!(file.status, 200, "{path}");
        let policy = file.header("content-security-policy");
        assert!(policy.starts_with("default-src 'self';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!((file.header("x-content-type-options"), file.header("referrer-policy")), ("nosniff", "no-referrer"));
        let again = get(path, Some(file.header("etag"))).await;
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
        assert!(again.header("content-security-policy").starts_with("default-src 'self'"));
        assert_eq!(get(path, Some("\"other\"")).await.status, 200);
    }
    get("/console/none.js", None).await.refused(404, "not_found");
    get("/console/../records", None).await.refused(401, "missing_key");
    get("/console/?a=b", None).await.refused(400, "unknown_parameter");
    get("/console/session", None).await.refused(401, "session_ended");
    get("/console/events", None).await.refused(401, "missing_key");
    let put = reqwest::Client::new().put(format!("{}/console/session", pipeline.url()));
    let put = answer(put).await;
    put.refused(405, "method_not_allowed");
    assert_eq!(put.header("allow"), "GET, POST, DELETE, HEAD, OPTIONS");
}

/// The moments of the first three events that a new console gets.
async fn moments(pipeline: &Pipeline) -> Vec<String> {
    let mut stream = pipeline.request(Method::GET, "/console/events").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while text.matches("\n\n").count() < 3 {
        text.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
    }
    let events = text.split("\n\n").take(3).map(|event| event.split_once("event: stats\ndata: ").expect(event).1);
    let stats = events.map(|data| serde_json::from_str::<Value>(data).unwrap());
    stats.map(|stats| stats["asOf"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn open_consoles_share_one_reading_and_do_not_hold_up_the_end_of_a_process() {
    let (pipeline, mut serve, _work) = Pipeline::running(json!({})).await;
    let streams = (0..5).map(|_| moments(&pipeline));
    let all = futures::future::join_all(streams).await.concat();
    let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!(all.len(), 15);
    assert!((3..=5).contains(&distinct.len()), "{distinct:?}");
    let mut open = pipeline.request(Method::GET, "/console/events").send().await.unwrap();
    assert!(open.chunk().await.unwrap().is_some());
    let begun = Instant::now();
    serve.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
    while open.chunk().await.unwrap().is_some() {}
}
