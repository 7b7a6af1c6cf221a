//! Checks tokens of one issuer with its keys of one moment.
//!
//! Must never read a clock or a server. What is refused is refused with the rule, never with a part of the token.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use millrace_crds::Oidc;
use serde_json::Value;

use super::{
    super::auth::Identity,
    cache::{Cache, Digest},
    claims::{self, Claims},
    keys::{Key, Keys},
};

/// Longest token in bytes.
const LONGEST_TOKEN: usize = 8 << 10;

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The keys of the issuer were never read, or cannot be read again to find the key of the token.
    #[error("the keys of the issuer cannot be read now")]
    Unavailable,
    /// No key of the issuer has the id and the algorithm that the token names.
    #[error("this access token names a key that the issuer does not publish, or publishes for another algorithm")]
    UnknownKey,
    /// It breaks a rule.
    #[error("this access token is refused: {0}")]
    Invalid(String),
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    rules: Oidc,
    keys: Keys,
    cache: Cache,
}

impl Verifier {
    pub(super) fn new(rules: Oidc, keys: Keys) -> Self {
        Self { rules, keys, cache: Cache::default() }
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The identity of a token's holder. `digest` is the SHA-256 of the token.
    pub(super) fn identify(&self, token: &str, digest: Digest, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        if let Some(identity) = self.cache.get(&digest, now) {
            return Ok(identity);
        }
        let claims = self.verify(token, now)?;
        let mut identity = claims::identity(&claims, &self.rules).map_err(Refused::Invalid)?;
        identity.usage = self.cache.usage(&identity.name);
        let identity = Arc::new(identity);
        let seconds = claims.get("exp").and_then(Value::as_f64).unwrap_or_default();
        let expires = Duration::try_from_secs_f64(seconds).ok().and_then(|since| UNIX_EPOCH.checked_add(since));
        if let Some(until) = expires.and_then(|at| at.checked_add(self.skew())) {
            self.cache.add(digest, Arc::clone(&identity), until, now);
        }
        Ok(identity)
    }

    fn skew(&self) -> Duration {
        Duration::from_secs(self.rules.clock_skew_seconds.into())
    }

    /// The claims of a token that is signed by the issuer for this audience, and valid now.
    fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, Refused> {
        let invalid = |rule: &str| Refused::Invalid(rule.to_owned());
        if token.len() > LONGEST_TOKEN {
            return Err(invalid("it has more than 8 KiB"));
        }
        let header = decode_header(token).map_err(|_| {
            invalid("its header cannot be read, or names an algorithm other than RS256, PS256, ES256 and their like")
        })?;
        let Some(Key { key, .. }) = self.keys.find(header.kid.as_deref(), header.alg) else {
            return Err(if is_symmetric(header.alg) {
                invalid(
                    "its algorithm has a shared secret: only RS256, PS256, ES256, EdDSA and their like are accepted",
                )
            } else {
                Refused::UnknownKey
            });
        };
        let claims = decode::<Claims>(token, key, &self.validation(header.alg)).map_err(|error| {
            invalid(match error.kind() {
                ErrorKind::InvalidSignature => "its signature is not that of the issuer",
                ErrorKind::InvalidAudience => "its claim aud does not have the audience of spec.oidc",
                ErrorKind::MissingRequiredClaim(_) => "it lacks one of the claims iss, sub, aud and exp",
                _ => "it is no JWT",
            })
        })?;
        let claims = claims.claims;
        // A list of issuers would pass in the library.
        if claims.get("iss").and_then(Value::as_str) != Some(&self.rules.issuer) {
            return Err(invalid("its claim iss is not the issuer of spec.oidc"));
        }
        self.check_times(&claims, now)?;
        Ok(claims)
    }

    /// The rules of the library, but for those about time: it would read the clock.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.set_audience(&[&self.rules.audience]);
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
        validation
    }

    fn check_times(&self, claims: &Claims, now: SystemTime) -> Result<(), Refused> {
        let invalid = |rule: &str| Refused::Invalid(rule.to_owned());
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let skew = self.skew().as_secs_f64();
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| invalid("its claim exp or nbf is no number")),
        };
        let expires = time("exp")?.ok_or_else(|| invalid("it never expires"))?;
        if now > expires + skew {
            return Err(invalid("it expired"));
        }
        if time("nbf")?.is_some_and(|begins| now + skew < begins) {
            return Err(invalid("it is not valid yet"));
        }
        Ok(())
    }
}

fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use ring::{
        hmac,
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// The time of the tests, in seconds since 1970.
    const NOW: u64 = 1_800_000_000;

    /// An issuer with one key, and what checks its tokens.
    struct Issuer {
        key: EcdsaKeyPair,
        verifier: Verifier,
    }

    impl Issuer {
        fn new() -> Self {
            super::super::signatures::install();
            let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
            let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key");
            let (x, y) = key.public_key().as_ref()[1..].split_at(32);
            let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
            let set = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "a", "x": x, "y": y}]});
            let rules = json!({"issuer": "https://a", "audience": "records", "scopes": {"write": ["ingest"]}});
            let rules = serde_json::from_value(rules).expect("rules");
            let keys = Keys::new(serde_json::from_value(set).expect("a set"));
            Self { key, verifier: Verifier::new(rules, keys) }
        }

        fn message(algorithm: &str, claims: &Value) -> String {
            let mut all = json!({"iss": "https://a", "aud": "records", "sub": "s", "exp": NOW});
            all.as_object_mut().expect("claims").extend(claims.as_object().expect("claims").clone());
            let header = json!({"alg": algorithm, "kid": "a"});
            let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
            format!("{}.{}", part(&header), part(&all))
        }

        fn token(&self, claims: &Value) -> String {
            let message = Self::message("ES256", claims);
            let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature");
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
        }

        fn identify(&self, token: &str, now: u64) -> Result<Arc<Identity>, Refused> {
            let digest = Sha256::digest(token.as_bytes()).into();
            self.verifier.identify(token, digest, UNIX_EPOCH + Duration::from_secs(now))
        }
    }

    #[test]
    fn a_token_is_verified_once_and_refused_when_it_expires() {
        let issuer = Issuer::new();
        let token = issuer.token(&json!({}));
        let first = issuer.identify(&token, NOW).expect("valid");
        assert_eq!(&*first.name, "oidc:s");
        let second = issuer.identify(&token, NOW + 60).expect("valid");
        assert!(Arc::ptr_eq(&first, &second), "it is held");
        let refused = Err("this access token is refused: it expired".to_owned());
        let name = |now| issuer.identify(&token, now).map(|_| ()).map_err(|refused| refused.to_string());
        assert_eq!((name(NOW + 61), Issuer::new().identify(&token, NOW).is_err()), (refused, true));
    }

    #[test]
    fn the_tolerance_of_clocks_is_exact_for_both_times() {
        let issuer = Issuer::new();
        let is_valid = |claims: Value, now| issuer.identify(&issuer.token(&claims), now).is_ok();
        assert!(is_valid(json!({}), NOW + 60) && !is_valid(json!({}), NOW + 61));
        assert!(is_valid(json!({"nbf": NOW}), NOW - 60) && !is_valid(json!({"nbf": NOW}), NOW - 61));
        assert!(is_valid(json!({"nbf": null}), NOW) && is_valid(json!({"exp": 1.8e9}), NOW));
        for wrong in [json!({"exp": null}), json!({"exp": "1"}), json!({"exp": -1}), json!({"nbf": "1"})] {
            assert!(!is_valid(wrong.clone(), NOW), "{wrong}");
        }
    }

    #[test]
    fn a_public_key_is_no_shared_secret() {
        let issuer = Issuer::new();
        for algorithm in ["HS256", "HS384", "HS512"] {
            let message = Issuer::message(algorithm, &json!({}));
            let secret = hmac::Key::new(hmac::HMAC_SHA256, issuer.key.public_key().as_ref());
            let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&secret, message.as_bytes()));
            let refused = issuer.identify(&format!("{message}.{signature}"), NOW).expect_err("refused");
            assert!(refused.to_string().contains("shared secret"), "{refused}");
        }
    }
}
