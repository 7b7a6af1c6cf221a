//! Access: API keys as bearer tokens, checked against a snapshot that is refreshed every 500 ms.
//!
//! Must never read Postgres for a request, and must never log or keep a key itself.

use std::{collections::HashMap, sync::Arc};

use poem::{Request, RequestBody, http::header::AUTHORIZATION};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{App, problem::Failure};

/// A permission of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Sending records.
    Ingest,
    /// Asking.
    Read,
    /// Dead letters and other changes; implies the others.
    Admin,
}

impl Scope {
    /// The scope by its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ingest" => Some(Self::Ingest),
            "read" => Some(Self::Read),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// A key that is active.
#[derive(Debug, Clone)]
pub struct KnownKey {
    /// Its name: the actor in the audit trail.
    pub name: Arc<str>,
    /// Its permissions.
    pub scopes: Vec<Scope>,
}

/// The keys active, by the SHA-256 of the whole key; `None` inside: access is open (development mode).
pub type Snapshot = Option<HashMap<[u8; 32], KnownKey>>;

/// The keys active, as of the last refresh.
#[derive(Debug, Clone)]
pub struct KeyRing(pub watch::Receiver<Snapshot>);

/// A caller that has the required scope.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key's name; `dev` where access is open.
    pub name: Arc<str>,
}

impl KeyRing {
    fn admit(&self, request: &Request, scope: Scope) -> Result<Caller, Failure> {
        let snapshot = self.0.borrow();
        let Some(keys) = snapshot.as_ref() else { return Ok(Caller { name: "dev".into() }) };
        let Some(header) = request.headers().get(AUTHORIZATION) else {
            return Err(Failure::new(401, "missing_key", "send an API key: Authorization: Bearer mk_…"));
        };
        let key = header
            .to_str()
            .ok()
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let digest: Option<[u8; 32]> = key.map(|key| Sha256::digest(key.as_bytes()).into());
        let known = digest.and_then(|digest| keys.get(&digest));
        let Some(known) = known else {
            return Err(Failure::new(401, "invalid_key", "this API key is not known, or it was revoked"));
        };
        if known.scopes.contains(&scope) || known.scopes.contains(&Scope::Admin) {
            Ok(Caller { name: Arc::clone(&known.name) })
        } else {
            let detail = format!("this API key lacks the scope {}", format!("{scope:?}").to_lowercase());
            Err(Failure::new(403, "insufficient_scope", detail))
        }
    }
}

macro_rules! caller {
    ($name:ident, $scope:expr, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone)]
        pub struct $name(pub Caller);

        impl<'a> ApiExtractor<'a> for $name {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                registry.create_security_scheme(
                    "apiKey",
                    MetaSecurityScheme {
                        ty: "http",
                        description: Some("An API key, `mk_…`, made by `millrace keys create`."),
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
                vec!["apiKey"]
            }

            async fn from_request(
                request: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                let app: &App = request
                    .data()
                    .ok_or_else(|| Failure::new(500, "internal", "the service failed; the log says why"))?;
                Ok(Self(app.keys.admit(request, $scope)?))
            }
        }
    };
}

caller!(Ingester, Scope::Ingest, "A caller that may send records.");
caller!(Reader, Scope::Read, "A caller that may ask.");
caller!(Administrator, Scope::Admin, "A caller that may change things.");
