//! API keys as the API takes and returns them: never with a secret, but in the answer that makes it.

use millrace_crds::RateLimits;
use poem_openapi::{Object, Union, types::Example};
use serde::Serialize;

use super::types::{Time, Word};
use crate::{
    domain::{IdPattern, Scope},
    http::new_key::{FreshSecret, KeyWishes},
    store::{ApiKey, KeySecret},
};

/// One id.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(deny_unknown_fields)]
pub(super) struct ExactId {
    /// The id.
    pub exact: Word,
}

/// All ids that begin with a text.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(deny_unknown_fields)]
pub(super) struct IdPrefix {
    /// Their beginning, byte for byte.
    pub prefix: Word,
}

/// Ids that a key may reach.
#[derive(Debug, Clone, Union, Serialize)]
#[oai(one_of)]
#[serde(untagged)]
pub(super) enum Pattern {
    /// One id.
    ExactId(ExactId),
    /// All ids that begin with a text.
    IdPrefix(IdPrefix),
}

impl From<IdPattern> for Pattern {
    fn from(pattern: IdPattern) -> Self {
        match pattern {
            IdPattern::Exact(id) => Self::ExactId(ExactId { exact: Word(id) }),
            IdPattern::Prefix(start) => Self::IdPrefix(IdPrefix { prefix: Word(start) }),
        }
    }
}

impl From<Pattern> for IdPattern {
    fn from(pattern: Pattern) -> Self {
        match pattern {
            Pattern::ExactId(ExactId { exact }) => Self::Exact(exact.0),
            Pattern::IdPrefix(IdPrefix { prefix }) => Self::Prefix(prefix.0),
        }
    }
}

/// A key to create.
#[derive(Debug, Object)]
#[oai(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KeyRequest {
    /// Its purpose: the actor in the audit trail.
    pub name: String,
    /// Its permissions; `admin` implies the others, and excludes limits.
    pub scopes: Vec<Scope>,
    /// The sources whose records it may send and read, at most 100 patterns; empty: any.
    #[oai(default)]
    pub source_ids: Vec<Pattern>,
    /// The destinations whose records it may send and read, at most 100 patterns; empty: any.
    #[oai(default)]
    pub destination_ids: Vec<Pattern>,
    /// Its own limits of what it may send; absent: those of the manifest only.
    pub limits: Option<KeyLimits>,
    /// When it expires; absent: never.
    pub expires_at: Option<Time>,
}

/// Limits of what a key may send. The processes that serve divide each among themselves. Absent fields: those of the
/// manifest only.
#[derive(Debug, Clone, Default, Object, Serialize)]
#[oai(rename_all = "camelCase", deny_unknown_fields, skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyLimits {
    /// Most requests a second, at most that of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u64>,
    /// Most records a second, at most that of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records_per_second: Option<u64>,
    /// Most bytes of request bodies at once, at most that of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in_flight: Option<u64>,
}

impl From<RateLimits> for KeyLimits {
    fn from(limits: RateLimits) -> Self {
        let RateLimits { requests_per_second, records_per_second, bytes_in_flight } = limits;
        Self { requests_per_second, records_per_second, bytes_in_flight }
    }
}

impl From<KeyLimits> for RateLimits {
    fn from(limits: KeyLimits) -> Self {
        let KeyLimits { requests_per_second, records_per_second, bytes_in_flight } = limits;
        Self { requests_per_second, records_per_second, bytes_in_flight }
    }
}

impl From<KeyRequest> for KeyWishes {
    fn from(request: KeyRequest) -> Self {
        let patterns = |patterns: Vec<Pattern>| patterns.into_iter().map(IdPattern::from).collect();
        Self {
            name: request.name,
            scopes: request.scopes,
            source_ids: patterns(request.source_ids),
            destination_ids: patterns(request.destination_ids),
            rate_limits: request.limits.map(RateLimits::from).unwrap_or_default(),
            expires_at: request.expires_at.map(|time| time.0),
        }
    }
}

/// A secret of a key, without the secret itself.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct Secret {
    /// Its id, which is not secret.
    pub id: String,
    /// When it was created.
    pub created_at: Time,
    /// When it was last used, up to a minute ago; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// When it was revoked by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
}

impl From<KeySecret> for Secret {
    fn from(secret: KeySecret) -> Self {
        Self {
            id: secret.id,
            created_at: Time(secret.created_at),
            last_used_at: secret.last_used_at.map(Time),
            revoked_at: secret.revoked_at.map(Time),
        }
    }
}

/// An API key, without its secrets.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none, example)]
#[serde(rename_all = "camelCase")]
pub(super) struct Key {
    /// Its id, which is not secret.
    pub id: String,
    /// Its name: the actor in the audit trail.
    pub name: String,
    /// Its permissions: `ingest`, `read`, `admin`.
    pub scopes: Vec<String>,
    /// The sources that it is limited to; empty: any.
    pub source_ids: Vec<Pattern>,
    /// The destinations that it is limited to; empty: any.
    pub destination_ids: Vec<Pattern>,
    /// Its own limits of what it may send; absent: those of the manifest only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<KeyLimits>,
    /// When it was created.
    pub created_at: Time,
    /// When it expires; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When it was revoked; absent: it is active until it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// Its secrets, oldest first.
    pub secrets: Vec<Secret>,
}

impl From<ApiKey> for Key {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            scopes: key.scopes,
            source_ids: key.source_ids.into_iter().map(Pattern::from).collect(),
            destination_ids: key.destination_ids.into_iter().map(Pattern::from).collect(),
            limits: (!key.rate_limits.is_empty()).then(|| key.rate_limits.into()),
            created_at: Time(key.created_at),
            expires_at: key.expires_at.map(Time),
            revoked_at: key.revoked_at.map(Time),
            secrets: key.secrets.into_iter().map(Secret::from).collect(),
        }
    }
}

impl Example for Key {
    fn example() -> Self {
        let secret = Secret {
            id: "sec_0123456789ab".to_owned(),
            created_at: Time::example(),
            last_used_at: Some(Time::example()),
            revoked_at: None,
        };
        Self {
            id: "key_0123456789ab".to_owned(),
            name: "shop 7".to_owned(),
            scopes: vec!["ingest".to_owned(), "read".to_owned()],
            source_ids: vec![IdPattern::Exact(crate::domain::Text::stored("shop-7")).into()],
            destination_ids: vec![IdPattern::Prefix(crate::domain::Text::stored("account-")).into()],
            limits: Some(KeyLimits { records_per_second: Some(1_000), ..KeyLimits::default() }),
            created_at: Time::example(),
            expires_at: None,
            revoked_at: None,
            secrets: vec![secret],
        }
    }
}

/// A key with a secret that was made just now. No other answer has the secret.
#[derive(Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyWithSecret {
    /// The key.
    pub key: Key,
    /// The id of the new secret.
    pub secret_id: String,
    /// The secret: send it as `Authorization: Bearer …`.
    pub secret: String,
}

impl KeyWithSecret {
    pub(super) fn new(key: ApiKey, fresh: FreshSecret) -> Self {
        Self { key: key.into(), secret_id: fresh.id, secret: fresh.secret }
    }
}
