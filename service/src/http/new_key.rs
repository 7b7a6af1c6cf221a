//! New API keys: their ids and secrets, and the rules that a key has to keep.
//!
//! Must never show a secret but to the caller that it is made for.

use chrono::{DateTime, Utc};
use millrace_crds::{Limits, RateLimits};
use sha2::{Digest as _, Sha256};

use super::keyring::Hash;
use crate::{
    domain::{AccessLimit, IdPattern, Scope, Text},
    store::{NewKey, NewSecret},
};

/// A secret that was made just now. Only its hash is stored.
#[derive(Clone)]
pub struct FreshSecret {
    /// Its id.
    pub id: String,
    /// The secret: `mk_` and 64 hex digits.
    pub secret: String,
    hash: Hash,
}

impl FreshSecret {
    /// Makes a secret.
    #[must_use]
    pub fn random() -> Self {
        let secret = format!("mk_{}", hex::encode(rand::random::<[u8; 32]>()));
        let hash = Sha256::digest(secret.as_bytes()).into();
        Self { id: format!("sec_{}", hex::encode(rand::random::<[u8; 6]>())), secret, hash }
    }

    /// What is stored of it.
    #[must_use]
    pub fn stored(&self) -> NewSecret<'_> {
        NewSecret { id: &self.id, hash: &self.hash }
    }
}

/// The wishes for a new key.
#[derive(Debug, Clone)]
pub struct KeyWishes {
    /// Its name.
    pub name: String,
    /// Its scopes, in any order.
    pub scopes: Vec<Scope>,
    /// The sources that it is limited to; empty: any.
    pub source_ids: Vec<IdPattern>,
    /// The destinations that it is limited to; empty: any.
    pub destination_ids: Vec<IdPattern>,
    /// Its own limits of what it may send, at most those of the manifest.
    pub rate_limits: RateLimits,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A field of a new key that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct BrokenRule {
    /// The field, as in the API.
    pub field: &'static str,
    /// The rule, with the remedy.
    pub rule: String,
}

impl KeyWishes {
    /// The key, with a new id. `limits` are those of the manifest.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn key(self, limits: Option<Limits>) -> Result<NewKey, BrokenRule> {
        let Self { name, mut scopes, source_ids, destination_ids, rate_limits, expires_at } = self;
        let broken = |field| move |rule: String| BrokenRule { field, rule };
        let name = Text::parse(name).map_err(|rule| broken("name")(rule.to_string()))?;
        scopes.sort_unstable();
        scopes.dedup();
        if scopes.is_empty() {
            return Err(broken("scopes")("must have at least one of ingest, read, admin".to_owned()));
        }
        AccessLimit::new(&source_ids, &[]).map_err(broken("sourceIds"))?;
        let limit = AccessLimit::new(&source_ids, &destination_ids).map_err(broken("destinationIds"))?;
        if limit.is_limited() && scopes.contains(&Scope::Admin) {
            let rule = "a limited key cannot have admin, which is about all records; give it ingest and read";
            return Err(broken("scopes")(rule.to_owned()));
        }
        check_rate_limits(rate_limits, limits.unwrap_or_default())?;
        let id = format!("key_{}", hex::encode(rand::random::<[u8; 6]>()));
        Ok(NewKey { id, name, scopes, source_ids, destination_ids, rate_limits, expires_at })
    }
}

/// Checks that a key's own limits are in bounds, and not above those of the manifest.
fn check_rate_limits(own: RateLimits, limits: Limits) -> Result<(), BrokenRule> {
    if let Some((field, rule)) = own.broken().next() {
        return Err(BrokenRule { field: in_limits(field), rule: rule.to_owned() });
    }
    for (at, above) in [("perKey", limits.per_key), ("pipeline", limits.pipeline)] {
        let above = above.unwrap_or_default().fields();
        for ((field, own), (_, most)) in own.fields().into_iter().zip(above) {
            if let (Some(own), Some(most)) = (own, most)
                && own > most
            {
                let rule =
                    format!("must be at most {most}, which is spec.limits.{at}.{field}; a key can only lower it");
                return Err(BrokenRule { field: in_limits(field), rule });
            }
        }
    }
    Ok(())
}

/// The path of a field of the limits of a new key.
fn in_limits(field: &str) -> &'static str {
    match field {
        "requestsPerSecond" => "limits/requestsPerSecond",
        "recordsPerSecond" => "limits/recordsPerSecond",
        _ => "limits/bytesInFlight",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_name_a_scope_and_no_admin_with_a_limit() {
        let eu: IdPattern = "prefix=eu-".parse().unwrap();
        let wishes = |name: &str, scopes: &[Scope], sources: Vec<IdPattern>, destinations: Vec<IdPattern>| KeyWishes {
            name: name.to_owned(),
            scopes: scopes.to_vec(),
            source_ids: sources,
            destination_ids: destinations,
            rate_limits: RateLimits::default(),
            expires_at: None,
        };
        let all = [Scope::Read, Scope::Ingest, Scope::Read];
        let key = wishes("a", &all, vec![eu.clone()], Vec::new()).key(None).unwrap();
        assert_eq!(key.scopes, [Scope::Ingest, Scope::Read]);
        assert!(wishes("a", &[Scope::Admin], Vec::new(), Vec::new()).key(None).is_ok());
        let many = vec![eu.clone(); 101];
        for (wrong, field) in [
            (wishes(" a", &all, Vec::new(), Vec::new()), "name"),
            (wishes("a", &[], Vec::new(), Vec::new()), "scopes"),
            (wishes("a", &[Scope::Admin], vec![eu.clone()], Vec::new()), "scopes"),
            (wishes("a", &[Scope::Read, Scope::Admin], Vec::new(), vec![eu.clone()]), "scopes"),
            (wishes("a", &all, many.clone(), Vec::new()), "sourceIds"),
            (wishes("a", &all, Vec::new(), many), "destinationIds"),
        ] {
            assert_eq!(wrong.key(None).unwrap_err().field, field);
        }
    }

    #[test]
    fn the_limits_of_a_key_are_at_most_those_of_the_manifest() {
        let of = |requests, records| RateLimits {
            requests_per_second: requests,
            records_per_second: records,
            ..RateLimits::default()
        };
        let limits = Limits { per_key: Some(of(Some(10), None)), pipeline: Some(of(Some(100), Some(50))) };
        for (own, field) in [
            (of(Some(10), Some(50)), None),
            (of(None, None), None),
            (of(Some(11), None), Some("limits/requestsPerSecond")),
            (of(None, Some(51)), Some("limits/recordsPerSecond")),
            (of(Some(0), None), Some("limits/requestsPerSecond")),
        ] {
            assert_eq!(check_rate_limits(own, limits).err().map(|broken| broken.field), field, "{own:?}");
        }
        assert_eq!(check_rate_limits(of(Some(1_000), None), Limits::default()), Ok(()));
    }

    #[test]
    fn secrets_differ_and_are_well_formed() {
        let (one, other) = (FreshSecret::random(), FreshSecret::random());
        assert_ne!(one.secret, other.secret);
        assert_eq!(super::super::keyring::hash(&one.secret).unwrap(), one.hash);
    }
}
