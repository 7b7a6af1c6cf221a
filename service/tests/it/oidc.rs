//! Access tokens of a real OpenID provider: which are accepted, what they may do, and what happens while it is unavailable.

use std::fs;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{AUDIENCE, Answer, Issuer, Pipeline, Process, answer, eventually, now, obtain, record},
    restricted::libfaketime,
};

/// A provider, and a pipeline that accepts its tokens.
struct World {
    issuer: Issuer,
    pipeline: Pipeline,
}

impl World {
    async fn new() -> Self {
        let issuer = Issuer::start().await;
        let pipeline = Pipeline::new(json!({"oidc": issuer.spec()})).await;
        Self { issuer, pipeline }
    }

    /// Starts a serve process with further variables, and waits until it has keys.
    async fn serve_with(&self, environment: &[(&str, &str)]) -> Process {
        let ca = self.issuer.ca_file().display().to_string();
        let mut all = vec![("MILLRACE_OIDC_CA_FILE", ca.as_str())];
        all.extend(environment);
        let serve = self.pipeline.serve_with(&all).await;
        eventually("serve has the keys of the issuer", async || {
            serve.metric("millrace_issuer_keys_read_timestamp_seconds").await > 0.0
        })
        .await;
        serve
    }

    async fn serve(&self) -> Process {
        self.serve_with(&[]).await
    }

    /// A valid token, but for these claims.
    async fn with(&self, claims: Value) -> String {
        self.issuer.sign("ES256", json!({}), claims).await
    }

    /// A query with a token.
    async fn ask(&self, token: &str) -> Answer {
        ask(&self.pipeline, token, "/records").await
    }

    /// The token is refused, and the answer has this reason.
    async fn refuses(&self, token: &str, reason: &str) {
        let refused = self.ask(token).await;
        let problem = refused.refused(401, "invalid_token");
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{reason}: {problem}");
        assert!(refused.header("www-authenticate").contains("invalid_token"), "{:?}", refused.headers);
    }
}

async fn ask(pipeline: &Pipeline, token: &str, path: &str) -> Answer {
    answer(reqwest::Client::new().get(format!("{}{path}", pipeline.url())).bearer_auth(token)).await
}

/// The parts of a token.
fn parts(token: &str) -> [&str; 3] {
    token.split('.').collect::<Vec<_>>().try_into().unwrap()
}

fn encoded(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

#[tokio::test]
async fn a_token_of_another_issuer_or_audience_or_without_a_signature_is_refused() {
    let world = World::new().await;
    let _serve = world.serve().await;
    let issued = world.issuer.token(AUDIENCE).await;
    world.ask(&issued).await.expect(200);
    let [header, claims, signature] = parts(&issued);

    let other = Issuer::start().await;
    world.refuses(&other.token(AUDIENCE).await, "its signature is not that of the issuer").await;
    world.refuses(&world.with(json!({"iss": other.url()})).await, "its claim iss is not the issuer").await;
    world.refuses(&world.with(json!({"iss": [world.issuer.url()]})).await, "its claim iss is not the issuer").await;
    world.refuses(&world.issuer.token("https://other.example").await, "its claim aud").await;

    let none = encoded(&json!({"alg": "none", "typ": "at+jwt"}));
    world.refuses(&format!("{none}.{claims}."), "algorithm").await;
    world.refuses(&format!("{none}.{claims}.{signature}"), "algorithm").await;
    world.refuses(&format!("{header}.{claims}."), "its signature is not that of the issuer").await;
    let shared = encoded(&json!({"alg": "HS256", "kid": "RS256-1"}));
    world.refuses(&format!("{shared}.{claims}.{signature}"), "its algorithm has a shared secret").await;
    let more = encoded(&json!({"sub": "shop-7", "scope": "records:admin"}));
    world.refuses(&format!("{header}.{more}.{signature}"), "its signature is not that of the issuer").await;
    // A key is valid for the algorithm that the issuer publishes with it.
    let confused = encoded(&json!({"alg": "RS512", "kid": "RS256-1"}));
    world.refuses(&format!("{confused}.{claims}.{signature}"), "publishes for another algorithm").await;
    world.refuses(&format!("{issued}.{signature}"), "header").await;
    world.refuses(&format!("e.{}", "a".repeat(20_000)), "8 KiB").await;
    world.ask("no-token").await.refused(401, "invalid_key");
}

#[tokio::test]
async fn a_token_is_accepted_with_each_asymmetric_algorithm() {
    let world = World::new().await;
    let _serve = world.serve().await;
    for algorithm in ["RS256", "PS384", "ES256", "ES384", "EdDSA"] {
        let token = world.issuer.sign(algorithm, json!({}), json!({})).await;
        world.ask(&token).await.expect(200);
        let [header, claims, _] = parts(&token);
        let other = world.issuer.sign(algorithm, json!({}), json!({})).await;
        let [_, _, signature] = parts(&other);
        world.refuses(&format!("{header}.{claims}.{signature}"), "its signature is not that of the issuer").await;
    }
}

#[tokio::test]
async fn an_expired_token_and_one_that_is_not_valid_yet_are_refused() {
    let world = World::new().await;
    let _serve = world.serve().await;
    world.refuses(&world.with(json!({"exp": now() - 70})).await, "it expired").await;
    world.refuses(&world.with(json!({"nbf": now() + 120})).await, "it is not valid yet").await;
    for absent in ["exp", "sub", "aud", "iss"] {
        let token = world.with(json!({absent: null})).await;
        world.refuses(&token, "it lacks one of the claims").await;
    }
    world.refuses(&world.with(json!({"exp": "tomorrow"})).await, "exp").await;
    // The token that was accepted, too, is refused once it expires.
    let brief = world.with(json!({"exp": now() - 50})).await;
    world.ask(&brief).await.expect(200);
    eventually("the token expires", async || world.ask(&brief).await.status == 401).await;
    world.refuses(&brief, "it expired").await;
}

#[tokio::test]
async fn unknown_key_ids_are_refused_and_do_not_make_each_request_ask_the_issuer() {
    let world = World::new().await;
    let _serve = world.serve().await;
    let before = world.issuer.reads().await;
    for n in 0..40 {
        let token = world.issuer.sign("ES256", json!({"kid": format!("unknown-{n}")}), json!({})).await;
        world.refuses(&token, "a key that the issuer does not publish").await;
    }
    let asked = world.issuer.reads().await - before;
    // One for each ten seconds.
    assert!(asked <= 3, "the keys were read {asked} times");
}

#[tokio::test]
async fn rotated_keys_are_read_once_a_token_names_one_and_old_ones_end() {
    let world = World::new().await;
    let _serve = world.serve().await;
    let old = world.with(json!({})).await;
    world.ask(&old).await.expect(200);
    world.issuer.rotate().await;
    world.ask(&old).await.expect(200);
    // The keys were read a moment ago: it takes ten seconds until a request may have them read again.
    let new = world.issuer.token(AUDIENCE).await;
    eventually("the new key is known", async || world.ask(&new).await.status == 200).await;
    world.refuses(&old, "a key that the issuer does not publish").await;
    world.refuses(&world.issuer.sign_with_previous("EdDSA").await, "a key that the issuer does not publish").await;
}

#[tokio::test]
async fn known_keys_stay_valid_while_the_issuer_is_unavailable_for_ten_minutes() {
    let world = World::new().await;
    // The clock of serve, both the one of the world and the one that only rises.
    let clock = tempfile::NamedTempFile::new().unwrap();
    fs::write(&clock, "+0").unwrap();
    let (library, file) = (libfaketime(), clock.path().display().to_string());
    let serve = world
        .serve_with(&[("LD_PRELOAD", &library), ("FAKETIME_TIMESTAMP_FILE", &file), ("FAKETIME_CACHE_DURATION", "1")])
        .await;
    let (used, unused) = (world.with(json!({})).await, world.with(json!({})).await);
    let brief = world.with(json!({"exp": now() + 300})).await;
    world.ask(&used).await.expect(200);
    world.ask(&brief).await.expect(200);

    world.issuer.leave().await;
    fs::write(&clock, "+600").unwrap();
    eventually("ten minutes have passed for serve", async || world.ask(&brief).await.status == 401).await;
    world.refuses(&brief, "it expired").await;
    let is_unavailable = |status: &Value| {
        let problems = status["problems"].as_array();
        problems.is_some_and(|problems| problems.iter().any(|problem| problem["reason"] == "IssuerUnreachable"))
    };
    let status = serve.reports("the issuer is unavailable", is_unavailable).await;
    assert!(status.to_string().contains(&world.issuer.url()), "{status}");
    world.ask(&used).await.expect(200);
    world.ask(&unused).await.expect(200);
    world.ask(&world.with(json!({})).await).await.expect(200);
    let unknown = world.issuer.sign("ES256", json!({"kid": "unknown"}), json!({})).await;
    world.ask(&unknown).await.refused(503, "issuer_unavailable");
    world.pipeline.ask("/records").await.expect(200);
    serve.ready().await;

    world.issuer.come_back().await;
    serve.reports("the issuer is back", |status| status["problems"].is_array() && !is_unavailable(status)).await;
    world.ask(&used).await.expect(200);
    eventually("the keys were read", async || world.ask(&unknown).await.status == 401).await;
}

#[tokio::test]
async fn a_clock_that_is_a_minute_off_refuses_no_valid_token() {
    let world = World::new().await;
    let library = libfaketime();
    for (clock, accepted, refused) in [
        ("+60s", json!({"exp": now() + 120}), json!({"exp": now() - 30})),
        ("-60s", json!({"nbf": now()}), json!({"nbf": now() + 120})),
    ] {
        let off = [("LD_PRELOAD", library.as_str()), ("FAKETIME", clock), ("DONT_FAKE_MONOTONIC", "1")];
        let _serve = world.serve_with(&off).await;
        // Without the tolerance it would expire or begin too early: the clock is off.
        let edge = if clock.starts_with('+') { json!({"exp": now() + 20}) } else { accepted.clone() };
        world.ask(&world.with(edge).await).await.expect(200);
        world.ask(&world.with(accepted).await).await.expect(200);
        world.ask(&world.issuer.token(AUDIENCE).await).await.expect(200);
        world.ask(&world.with(refused).await).await.refused(401, "invalid_token");
    }
}

#[tokio::test]
async fn claims_give_scopes_and_limits_and_the_subject_is_the_actor() {
    let world = World::new().await;
    let _serve = world.serve().await;
    let send = async |token: &str, record: &Value| {
        let request = reqwest::Client::new().post(format!("{}/records", world.pipeline.url()));
        answer(request.bearer_auth(token).json(record)).await
    };
    let issued = world.issuer.token(AUDIENCE).await;
    let mut own = record("a", "d");
    own["sourceId"] = "shop-7".into();
    send(&issued, &own).await.expect(202);
    let problem = send(&issued, &record("b", "d")).await.refused(403, "outside_limit");
    assert_eq!(problem["pointer"], "/sourceId");
    ask(&world.pipeline, &issued, "/stats").await.refused(403, "limited_key");
    ask(&world.pipeline, &issued, "/keys").await.refused(403, "insufficient_scope");
    let reader = world.with(json!({"scope": "openid records:read"})).await;
    send(&reader, &own).await.refused(403, "insufficient_scope");
    world.ask(&world.with(json!({"scope": "openid"})).await).await.refused(403, "insufficient_scope");
    for limit in [json!(null), json!([]), json!(["shop-7"])] {
        world.refuses(&world.with(json!({ "sources": limit })).await, "claim sources").await;
    }

    let admin = world.with(json!({"sub": "auth0|ada", "scope": "records:admin", "sources": null})).await;
    let request = reqwest::Client::new().request(Method::POST, format!("{}/keys", world.pipeline.url()));
    answer(request.bearer_auth(&admin).json(&json!({"name": "shop", "scopes": ["read"]}))).await.expect(201);
    let acts = world.pipeline.list("/audit?action=ADMIN").await;
    let act = acts.iter().find(|act| act["reason"].as_str().unwrap().starts_with("keys.create")).unwrap();
    assert_eq!((&act["actor"], &act["address"]), (&json!("oidc:auth0|ada"), &json!("127.0.0.1")), "{act}");
    assert!(act["actorId"].is_null(), "{act}");
}

#[tokio::test]
async fn keys_are_valid_before_the_issuer_ever_answered_and_tokens_are_not() {
    let world = World::new().await;
    world.issuer.leave().await;
    let ca = tempfile::tempdir().unwrap();
    let file = ca.path().join("ca.crt");
    let serve = world.pipeline.serve_with(&[("MILLRACE_OIDC_CA_FILE", file.to_str().unwrap())]).await;
    serve.ready().await;
    let status = serve.has_problems(&["SecretNotFound"]).await;
    assert_eq!(status["problems"][0]["message"], "issuer-ca, key ca.crt");
    let token = world.with(json!({})).await;
    world.ask(&token).await.refused(503, "issuer_unavailable");
    world.pipeline.ask("/records").await.expect(200);

    fs::copy(world.issuer.ca_file(), &file).unwrap();
    serve.has_problems(&["IssuerUnreachable"]).await;
    world.ask(&token).await.refused(503, "issuer_unavailable");
    world.issuer.come_back().await;
    serve.has_problems(&[]).await;
    world.ask(&token).await.expect(200);
    let log = fs::read_to_string(serve.log()).unwrap();
    let [header, claims, signature] = parts(&token);
    assert!([header, claims, signature].iter().all(|part| !log.contains(part)), "the log shows a token");

    // The manifest is followed.
    world.pipeline.change(|spec| spec["oidc"]["audience"] = "https://another.example".into());
    eventually("the new audience is active", async || world.ask(&token).await.status == 401).await;
    let other = obtain("a token for the new audience", async || {
        let token = world.issuer.token("https://another.example").await;
        (world.ask(&token).await.status == 200).then_some(token)
    })
    .await;
    world.pipeline.change(|spec| spec["oidc"] = Value::Null);
    eventually("tokens are no longer accepted", async || world.ask(&other).await.text.contains("invalid_key")).await;
    world.pipeline.ask("/records").await.expect(200);
}
