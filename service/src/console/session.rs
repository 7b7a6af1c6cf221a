//! `/console/session`: sign in with an API key, see who is signed in, sign out.
//!
//! Must never return or log the key, and must never put the session's token anywhere but into the cookie.

use std::{sync::Arc, time::Duration};

use poem::{
    Request, Response,
    http::{
        HeaderMap, Method, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, SET_COOKIE},
        uri::Scheme,
    },
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    domain::Scope,
    http::{
        App,
        auth::Identity,
        errors, guard,
        keyring::{self, REFRESH},
        problem::Failure,
        session::{self, SessionToken},
    },
    store::SESSION_HOURS,
};

/// Longest wait until this process has read a new session.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    key: String,
}

/// Answers a request.
pub(super) async fn answer(request: Request, app: &App) -> Result<Response, Failure> {
    match *request.method() {
        Method::GET => show(&request, app),
        Method::POST => begin(request, app).await,
        Method::DELETE => end(&request, app).await,
        _ => Ok(errors::render(poem::error::MethodNotAllowedError.into())),
    }
}

/// The session of a request, with the identity of its key.
fn current(headers: &HeaderMap, app: &App) -> Option<(SessionToken, Arc<Identity>)> {
    session::tokens(headers).find_map(|token| app.keys.identity(&token.hash(), true).map(|identity| (token, identity)))
}

fn pipeline(app: &App) -> String {
    app.manifest.borrow().manifest.metadata.name.clone()
}

fn described(app: &App, identity: &Identity, token: Option<&SessionToken>) -> Response {
    let scopes: Vec<&str> = identity.scopes.iter().map(|scope| scope.as_str()).collect();
    let body = json!({
        "pipeline": pipeline(app),
        "open": token.is_none(),
        "name": &*identity.name,
        "scopes": scopes,
        "mayAct": identity.has(Scope::Admin) && !identity.limit.is_limited(),
        "limited": identity.limit.is_limited(),
        "forgeryToken": token.map(SessionToken::forgery_token),
    });
    Response::builder().header(CACHE_CONTROL, "no-store").content_type("application/json").body(body.to_string())
}

fn show(request: &Request, app: &App) -> Result<Response, Failure> {
    if app.keys.is_open() {
        let open = app.keys.identity(&[0; 32], true).unwrap_or_default();
        return Ok(described(app, &open, None));
    }
    let Some((token, identity)) = current(request.headers(), app) else {
        return Err(Failure::new(
            401,
            "session_ended",
            "nobody is signed in, or the session ended; sign in with an API key",
        ));
    };
    token.check_forgery(request)?;
    Ok(described(app, &identity, Some(&token)))
}

async fn begin(mut request: Request, app: &App) -> Result<Response, Failure> {
    if app.keys.is_open() {
        return show(&request, app);
    }
    if session::is_of_another_origin(request.headers()) {
        return Err(Failure::new(
            403,
            "forged_request",
            "a page of another origin sent this request; sign in at /console",
        ));
    }
    // A form of another site can send other types without being asked.
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|header| header.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return Err(Failure::new(415, "unsupported_media_type", "send application/json: {\"key\": \"mk_…\"}"));
    }
    let is_https = is_https(&request);
    let body = request.take_body().into_bytes().await.map_err(|error| guard::read_failure(&error))?;
    // The error of the parser can hold a part of the key.
    let SignIn { key } = serde_json::from_slice(&body)
        .map_err(|_| Failure::new(400, "invalid_body", "the body must be {\"key\": \"mk_…\"}"))?;
    let unknown = || Failure::new(401, "invalid_key", "this API key is not known, it expired, or it was revoked");
    let key = keyring::hash(key.trim()).map_err(|_| unknown())?;
    let identity = app.keys.identity(&key, false).ok_or_else(unknown)?;
    if !identity.has(Scope::Read) {
        return Err(Failure::new(403, "insufficient_scope", "the console needs a key with the scope read or admin"));
    }
    let token = SessionToken::random();
    if !app.store.begin_session(&token.hash(), &key).await? {
        return Err(unknown());
    }
    // The next request may reach any process: by then each has read the sessions.
    tokio::time::sleep(2 * REFRESH).await;
    if !app.keys.knows_session(&token.hash(), LONGEST_WAIT).await {
        return Err(Failure::new(503, "postgres_unavailable", "the database cannot be asked now; sign in again"));
    }
    let name = &identity.name;
    tracing::info!(event = "console.session.begun", %name, "somebody signed in to the console");
    let seconds = i64::from(SESSION_HOURS) * 3600;
    let mut answer = described(app, &identity, Some(&token));
    set_cookie(&mut answer, &token.cookie(&pipeline(app), seconds, is_https))?;
    Ok(answer)
}

async fn end(request: &Request, app: &App) -> Result<Response, Failure> {
    if let Some((token, _)) = current(request.headers(), app) {
        token.check_forgery(request)?;
        app.store.end_session(&token.hash()).await?;
    }
    let mut answer = Response::builder().status(StatusCode::NO_CONTENT).finish();
    set_cookie(&mut answer, &session::removed_cookie(&pipeline(app)))?;
    Ok(answer)
}

fn set_cookie(answer: &mut Response, cookie: &str) -> Result<(), Failure> {
    let cookie = cookie.parse().map_err(|error| Failure::internal(&error))?;
    answer.headers_mut().insert(SET_COOKIE, cookie);
    Ok(())
}

/// Whether the browser uses HTTPS, also to a proxy in front. Who invents the header only loses the cookie.
fn is_https(request: &Request) -> bool {
    let forwarded = request.headers().get("x-forwarded-proto").and_then(|header| header.to_str().ok());
    *request.scheme() == Scheme::HTTPS || forwarded.is_some_and(|proto| proto.trim().eq_ignore_ascii_case("https"))
}
