//! Signatures of Standard Webhooks: HMAC-SHA256 over id, timestamp and body.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Most keys of one sink: receivers verify one after the other.
const MOST: usize = 8;
/// Bounds of a key in bytes, as the specification recommends them.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The signing keys of a sink, in the order of use. Each signs.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeys(Vec<Vec<u8>>);

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys (hidden)", self.0.len())
    }
}

impl SigningKeys {
    /// Reads keys in the form `whsec_` and base64, with white space between.
    ///
    /// # Errors
    /// The form that the text lacks; never the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys = text.split_whitespace().map(key).collect::<Option<Vec<_>>>();
        keys.filter(|keys| (1..=MOST).contains(&keys.len())).map(Self).ok_or_else(|| {
            format!(
                "must be 1 to {MOST} signing keys with white space between, each whsec_ and base64 of 24 to 64 random bytes"
            )
        })
    }

    /// The value of the header `webhook-signature`.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|key| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length is one");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

fn key(text: &str) -> Option<Vec<u8>> {
    let key = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
    BYTES.contains(&key.len()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_signature_of_the_published_example_is_the_same() {
        let keys = SigningKeys::parse(KEY).expect("a key");
        let signature = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_key_signs_and_no_key_is_shown() {
        let other = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
        let keys = SigningKeys::parse(&format!(" {other}\n{KEY}\n")).expect("keys");
        let signature = keys.sign("a", 1, b"b");
        let parts: Vec<&str> = signature.split(' ').collect();
        let alone = |key: &str| SigningKeys::parse(key).expect("a key").sign("a", 1, b"b");
        assert_eq!(parts, [alone(other), alone(KEY)]);
        assert!(!format!("{keys:?}").contains("MfKQ"));
        for wrong in ["", "  ", "secret", "whsec_", "whsec_AAAA", "whsec_!!!", &format!("{KEY} x"), &[KEY; 9].join(" ")]
        {
            assert!(SigningKeys::parse(wrong).is_err(), "{wrong}");
        }
    }
}
