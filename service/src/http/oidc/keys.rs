//! The keys of an issuer, from its JWK set.
//!
//! Must never use a key for an algorithm of another kind, or one that the issuer has for encryption.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Most keys of a set that are used.
const MOST_KEYS: usize = 100;

/// A JWK set, whose keys may be of kinds that are unknown here.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct JwkSet {
    keys: Vec<Value>,
}

/// A key that verifies tokens.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// The algorithms that its tokens may name.
    algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// The keys of an issuer.
#[derive(Debug)]
pub(super) struct Keys {
    /// As it came, to be compared with the next one.
    set: JwkSet,
    keys: Vec<Key>,
}

impl Keys {
    /// The keys of a set that verify signatures. Others are left out: an issuer may have them for another use.
    pub(super) fn new(set: JwkSet) -> Self {
        let keys = set.keys.iter().filter_map(|key| usable(&Jwk::deserialize(key).ok()?)).take(MOST_KEYS).collect();
        Self { set, keys }
    }

    /// Whether these are the keys of the same set.
    pub(super) fn are_of(&self, set: &JwkSet) -> bool {
        self.set == *set
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key that a token names and that may have its algorithm. A token without a key id needs a set with one such key.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let mut fitting = self
            .keys
            .iter()
            .filter(|key| key.algorithms.contains(&algorithm) && (id.is_none() || key.id.as_deref() == id));
        let first = fitting.next()?;
        (id.is_some() || fitting.next().is_none()).then_some(first)
    }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let is_for_signatures = match (&jwk.common.public_key_use, &jwk.common.key_operations) {
        (Some(PublicKeyUse::Signature) | None, None) => true,
        (Some(PublicKeyUse::Signature) | None, Some(operations)) => operations.contains(&KeyOperations::Verify),
        _ => false,
    };
    let kind: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms(),
        AlgorithmParameters::EllipticCurve(point) => match point.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(point) => match point.curve {
            EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            _ => &[],
        },
        // A shared secret, or a kind to come.
        _ => &[],
    };
    let algorithms = match jwk.common.key_algorithm {
        None => kind.to_vec(),
        Some(one) => Algorithm::try_from(one).ok().filter(|one| kind.contains(one)).into_iter().collect(),
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (is_for_signatures && !algorithms.is_empty()).then(|| Key { id: jwk.common.key_id.clone(), algorithms, key })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";

    fn keys(set: serde_json::Value) -> Keys {
        Keys::new(serde_json::from_value(json!({ "keys": set })).expect("a set"))
    }

    #[test]
    fn a_key_is_used_for_what_the_issuer_has_it_for() {
        let all = keys(json!([
            {"kty": "RSA", "kid": "rsa", "n": X, "e": "AQAB"},
            {"kty": "RSA", "kid": "pss", "n": X, "e": "AQAB", "alg": "PS384", "use": "sig"},
            {"kty": "EC", "kid": "p256", "crv": "P-256", "x": X, "y": X, "key_ops": ["verify"]},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": X},
            {"kty": "RSA", "kid": "oaep", "n": X, "e": "AQAB", "alg": "RSA-OAEP"},
            {"kty": "RSA", "kid": "enc", "n": X, "e": "AQAB", "use": "enc"},
            {"kty": "EC", "kid": "wrong", "crv": "P-256", "x": X, "y": X, "alg": "RS256"},
            {"kty": "EC", "kid": "p521", "crv": "P-521", "x": X, "y": X},
            {"kty": "EC", "kid": "signs", "crv": "P-256", "x": X, "y": X, "key_ops": ["sign"]},
            {"kty": "oct", "kid": "secret", "k": X},
            {"kty": "EC", "kid": "other", "crv": "secp256k1", "x": X, "y": X},
            {"kty": "to come"},
            7,
        ]));
        assert_eq!(all.len(), 4);
        let found = |id: &str, algorithm| all.find(Some(id), algorithm).is_some();
        assert!(found("rsa", Algorithm::RS256) && found("rsa", Algorithm::PS512) && found("pss", Algorithm::PS384));
        assert!(found("p256", Algorithm::ES256) && found("ed", Algorithm::EdDSA));
        for (id, algorithm) in [
            ("pss", Algorithm::PS256),
            ("p256", Algorithm::ES384),
            ("rsa", Algorithm::HS256),
            ("secret", Algorithm::HS256),
            ("enc", Algorithm::RS256),
            ("absent", Algorithm::RS256),
        ] {
            assert!(!found(id, algorithm), "{id} {algorithm:?}");
        }
    }

    #[test]
    fn a_token_without_a_key_id_needs_one_key_that_fits() {
        let one = json!({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": X});
        let ec = json!({"kty": "EC", "crv": "P-256", "x": X, "y": X});
        assert!(keys(json!([one, ec])).find(None, Algorithm::ES256).is_some());
        assert!(keys(json!([one, ec])).find(None, Algorithm::EdDSA).is_some());
        assert!(keys(json!([ec, ec])).find(None, Algorithm::ES256).is_none());
        assert!(keys(json!([])).find(None, Algorithm::ES256).is_none());
    }
}
