//! Access: who sends a request, and what it may do. API keys are bearer tokens, checked against a snapshot that is
//! refreshed every 500 ms, and so are sessions of the console; other bearer tokens are access tokens of the issuer that the manifest names.
//!
//! Must never read Postgres for a request, and must never log or keep a secret itself.

use std::{collections::HashMap, sync::Arc, time::Instant};

use millrace_crds::RateLimits;
use poem::{Request, RequestBody, http::header::AUTHORIZATION};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{
    App, client_address::client_address, last_use::LastUse, oidc::AccessTokens, problem::Failure, rate_limits::Usage,
    session,
};
use crate::{
    domain::{AccessLimit, Scope},
    store::Actor,
};

/// Who may send requests, and what it may do: an API key, or the holder of an access token.
#[derive(Debug, Default)]
pub struct Identity {
    /// Its name: the actor in the audit trail.
    pub name: Arc<str>,
    /// The id of the API key; `None`: an access token, or access is open.
    pub key_id: Option<Arc<str>>,
    /// Its permissions.
    pub scopes: Vec<Scope>,
    /// The records that it may reach.
    pub limit: AccessLimit,
    /// Its own limits of what it may send, beside those of the manifest.
    pub rate_limits: RateLimits,
    /// What it uses of these limits.
    pub usage: Arc<Usage>,
}

impl Identity {
    pub(crate) fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// A secret that is active.
#[derive(Debug, Clone)]
pub struct KnownSecret {
    /// The identity that it proves.
    pub identity: Arc<Identity>,
    /// When it expires, also while Postgres is unavailable; `None`: never.
    pub expires: Option<Instant>,
    /// When it was last used.
    pub last_use: Arc<LastUse>,
    /// Whether it is a session of the console.
    pub is_session: bool,
}

impl KnownSecret {
    /// The identity, unless it expired.
    fn used(&self) -> Option<Arc<Identity>> {
        self.expires.is_none_or(|expires| Instant::now() < expires).then(|| {
            self.last_use.note();
            Arc::clone(&self.identity)
        })
    }
}

/// The secrets active, by the SHA-256 of the whole secret; `None` inside: access is open (development mode).
pub type Snapshot = Option<HashMap<[u8; 32], KnownSecret>>;

/// The secrets active, as of the last refresh.
#[derive(Debug, Clone)]
pub struct KeyRing {
    pub(super) secrets: watch::Receiver<Snapshot>,
    /// The identity of everyone where access is open.
    pub(super) open: Arc<Identity>,
    /// Access tokens; `None`: there is no task that follows an issuer.
    pub(super) tokens: Option<AccessTokens>,
}

/// What the API keys show of the sender of a request.
enum ByKey<'a> {
    Known(Arc<Identity>),
    /// The bearer token is no API key; its digest.
    Unknown(&'a str, [u8; 32]),
}

/// The records that a path is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Those that the caller may reach: the path applies the limit.
    Limited,
    /// All: a limited caller is refused.
    All,
}

impl KeyRing {
    /// The identity of the sender of a request.
    async fn authenticate(&self, request: &Request) -> Result<Arc<Identity>, Failure> {
        let (token, digest) = match self.by_key(request)? {
            ByKey::Known(identity) => return Ok(identity),
            ByKey::Unknown(token, digest) => (token, digest),
        };
        match &self.tokens {
            // No API key has a dot, and every JWT has two.
            // In a box: the future of every request would have room for it, and is moved through many layers.
            Some(tokens) if token.contains('.') && tokens.is_enabled() => {
                Box::pin(tokens.identify(token, digest)).await
            }
            _ => Err(Failure::new(401, "invalid_key", "this API key is not known, it expired, or it was revoked")),
        }
    }

    fn by_key<'a>(&self, request: &'a Request) -> Result<ByKey<'a>, Failure> {
        let snapshot = self.secrets.borrow();
        let Some(secrets) = snapshot.as_ref() else { return Ok(ByKey::Known(Arc::clone(&self.open))) };
        let Some(header) = request.headers().get(AUTHORIZATION) else {
            if let Some(session) = by_session(secrets, request) {
                return session.map(ByKey::Known);
            }
            return Err(Failure::new(401, "missing_key", "send an API key: Authorization: Bearer mk_…"));
        };
        let secret = header
            .to_str()
            .ok()
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or("", |(_, secret)| secret.trim());
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let known = secrets.get(&digest).filter(|known| !known.is_session).and_then(KnownSecret::used);
        Ok(known.map_or(ByKey::Unknown(secret, digest), ByKey::Known))
    }

    /// The identity that a secret or a session proves, by its hash.
    pub(crate) fn identity(&self, hash: &[u8; 32], is_session: bool) -> Option<Arc<Identity>> {
        let snapshot = self.secrets.borrow();
        let Some(secrets) = snapshot.as_ref() else { return Some(Arc::clone(&self.open)) };
        secrets.get(hash).filter(|known| known.is_session == is_session).and_then(KnownSecret::used)
    }

    /// Whether anyone may call.
    pub(crate) fn is_open(&self) -> bool {
        self.secrets.borrow().is_none()
    }

    pub(crate) async fn admit(&self, request: &Request, scope: Scope, reach: Reach) -> Result<Caller, Failure> {
        let identity = self.authenticate(request).await?;
        if !identity.has(scope) {
            let detail = format!("this API key or access token lacks the scope {}", scope.as_str());
            return Err(Failure::new(403, "insufficient_scope", detail));
        }
        if reach == Reach::All && identity.limit.is_limited() {
            let detail = "this path is about all records, and this API key or access token is limited to some sources or \
                          destinations; use a key without limits";
            return Err(Failure::new(403, "limited_key", detail));
        }
        Ok(Caller(identity))
    }
}

/// The identity of a session of the console; `None`: the request has none.
fn by_session(secrets: &HashMap<[u8; 32], KnownSecret>, request: &Request) -> Option<Result<Arc<Identity>, Failure>> {
    let mut is_ended = false;
    for token in session::tokens(request.headers()) {
        let known = secrets.get(&token.hash()).filter(|known| known.is_session).and_then(KnownSecret::used);
        if let Some(identity) = known {
            return Some(token.check_forgery(request).map(|()| identity));
        }
        is_ended = true;
    }
    let detail =
        "this session of the console expired or was ended, or its API key was revoked; sign in again at /console";
    is_ended.then(|| Err(Failure::new(401, "session_ended", detail)))
}

/// A caller that has the required scope.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Identity>);

impl Caller {
    /// The records that it may reach.
    #[must_use]
    pub fn limit(&self) -> &AccessLimit {
        &self.0.limit
    }

    /// Whether it may take back the records that it may reach: an administrator, or the source itself, whose key is limited to
    /// its own records.
    pub(crate) fn may_reverse(&self) -> bool {
        self.0.has(Scope::Admin) || self.0.has(Scope::Ingest) && self.0.limit.sources().is_some()
    }

    /// Its own limits of what it may send, and what it uses of them.
    pub(crate) fn rate_limits(&self) -> (RateLimits, &Arc<Usage>) {
        (self.0.rate_limits, &self.0.usage)
    }

    /// The actor of its requests where it is an administrator.
    pub(crate) fn administrator(&self, request: &Request, app: &App) -> Option<Actor> {
        self.0.has(Scope::Admin).then(|| self.actor(request, app))
    }

    /// The actor of an administrative action, with the address of the client that sent the request.
    fn actor(&self, request: &Request, app: &App) -> Actor {
        let manifest = Arc::clone(&app.manifest.borrow().manifest);
        let trusted = manifest.spec.serve.as_ref().map_or(&[] as &[String], |serve| &serve.trusted_proxies);
        Actor {
            name: Arc::clone(&self.0.name),
            key_id: self.0.key_id.clone(),
            address: client_address(request, trusted),
        }
    }
}

macro_rules! caller {
    ($(#[doc = $doc:literal])+ $name:ident($inner:ty), |$app:ident, $request:ident| $admit:expr) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone)]
        pub struct $name(pub $inner);

        impl<'a> ApiExtractor<'a> for $name {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                registry.create_security_scheme(
                    "accessToken",
                    MetaSecurityScheme {
                        ty: "http",
                        description: Some("An access token (JWT) of the issuer in `spec.oidc`, where the manifest has one."),
                        name: None,
                        key_in: None,
                        scheme: Some("bearer"),
                        bearer_format: Some("JWT"),
                        flows: None,
                        openid_connect_url: None,
                    },
                );
                registry.create_security_scheme(
                    "apiKey",
                    MetaSecurityScheme {
                        ty: "http",
                        description: Some("An API key, `mk_…`, made by `POST /keys` or `millrace keys create`."),
                        name: None,
                        key_in: None,
                        scheme: Some("bearer"),
                        bearer_format: Some("mk_…"),
                        flows: None,
                        openid_connect_url: None,
                    },
                );
            }

            fn security_schemes() -> Vec<&'static str> {
                vec!["apiKey", "accessToken"]
            }

            async fn from_request(
                $request: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                let $app: &App = $request
                    .data()
                    .ok_or_else(|| Failure::new(500, "internal", "the service failed; the log says why"))?;
                Ok(Self($admit))
            }
        }
    };
}

caller! {
    /// A caller that may send records: those that it may reach.
    Ingester(Caller), |app, request| app.keys.admit(request, Scope::Ingest, Reach::Limited).await?
}
caller! {
    /// A caller that may ask. The path answers with what the caller may reach only.
    Reader(Caller), |app, request| app.keys.admit(request, Scope::Read, Reach::Limited).await?
}
caller! {
    /// A caller that may ask about all records.
    ReaderOfAll(Caller), |app, request| app.keys.admit(request, Scope::Read, Reach::All).await?
}
caller! {
    /// A caller that may change things, as the actor of the change.
    Administrator(Actor), |app, request| app.keys.admit(request, Scope::Admin, Reach::All).await?.actor(request, app)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{domain::IdPattern, http::last_use::LastUses};

    /// A ring whose only secret expires at a time.
    fn ring(expires: Option<Instant>, scope: Scope, sources: &[IdPattern]) -> KeyRing {
        let limit = AccessLimit::new(sources, &[]).unwrap();
        let (key_id, rate_limits) = (Some("key_1".into()), RateLimits::default());
        let usage = Arc::default();
        let identity = Identity { name: "a".into(), key_id, scopes: vec![scope], limit, rate_limits, usage };
        let identity = Arc::new(identity);
        let secret = KnownSecret {
            identity: Arc::clone(&identity),
            expires,
            last_use: LastUses::new().of("sec_1"),
            is_session: false,
        };
        let secrets = HashMap::from([(Sha256::digest(b"mk_a").into(), secret)]);
        KeyRing { secrets: watch::channel(Some(secrets)).1, open: identity, tokens: None }
    }

    async fn refusal(ring: &KeyRing, scope: Scope, reach: Reach) -> Option<String> {
        let request = Request::builder().header(AUTHORIZATION, "Bearer mk_a").finish();
        ring.admit(&request, scope, reach).await.err().map(|failure| failure.problem().code.clone())
    }

    #[tokio::test]
    async fn a_key_expires_while_the_snapshot_stays_the_same() {
        let now = Instant::now();
        for (expires, code) in
            [(None, None), (Some(now + Duration::from_secs(3600)), None), (Some(now), Some("invalid_key".to_owned()))]
        {
            assert_eq!(refusal(&ring(expires, Scope::Read, &[]), Scope::Read, Reach::All).await, code, "{expires:?}");
        }
    }

    #[tokio::test]
    async fn a_limited_key_is_refused_where_a_path_is_about_all_records() {
        let limited = ring(None, Scope::Admin, &["exact=s".parse().unwrap()]);
        assert_eq!(refusal(&limited, Scope::Read, Reach::Limited).await, None);
        for scope in [Scope::Read, Scope::Admin] {
            assert_eq!(refusal(&limited, scope, Reach::All).await.as_deref(), Some("limited_key"));
        }
        let reader = ring(None, Scope::Read, &[]);
        assert_eq!(refusal(&reader, Scope::Ingest, Reach::Limited).await.as_deref(), Some("insufficient_scope"));
    }
}
