//! Ids for records that came without: derived from the `Idempotency-Key`, so that a repeated request is a duplicate.

use poem::Request;
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{RecordId, SourceId},
    http::{errors::invalid_idempotency_key, problem::Failure},
};

/// The request's `Idempotency-Key`, if it has one.
///
/// # Errors
/// 400 when it is given twice, under the name that other services give it, or is not 1 to 200 visible ASCII characters.
pub(super) fn key(request: &Request) -> Result<Option<String>, Failure> {
    if request.headers().contains_key("x-idempotency-key") {
        let detail = "X-Idempotency-Key is not read here; send the header as Idempotency-Key";
        return Err(Failure::new(400, "invalid_idempotency_key", detail));
    }
    let mut headers = request.headers().get_all("idempotency-key").iter();
    let Some(header) = headers.next() else { return Ok(None) };
    let key = header.to_str().ok().filter(|key| {
        (1..=200).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) && headers.next().is_none()
    });
    match key {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(invalid_idempotency_key()),
    }
}

/// The id of the record at `index` of a request with this key: `ik-` and 40 hex digits.
pub(crate) fn derive(source_id: &SourceId, key: &str, index: u64) -> RecordId {
    let mut hash = Sha256::new();
    // With its length before it, no part can be read as the end of another.
    for part in [source_id.as_str(), key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(index.to_be_bytes());
    let digest = hex::encode(hash.finalize());
    RecordId::stored(format!("ik-{}", &digest[..40]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> SourceId {
        SourceId::stored(text)
    }

    #[test]
    fn every_part_counts_and_the_same_parts_give_the_same_id() {
        let id = derive(&text("a"), "k", 0);
        assert_eq!(id, derive(&text("a"), "k", 0));
        assert_eq!(id.as_str().len(), 43);
        for other in [derive(&text("b"), "k", 0), derive(&text("a"), "l", 0), derive(&text("a"), "k", 1)] {
            assert_ne!(id, other);
        }
        assert_ne!(derive(&text("ab"), "c", 0), derive(&text("a"), "bc", 0));
    }

    #[test]
    fn keys_are_visible_ascii_given_once() {
        let with = |keys: &[&str]| {
            let mut builder = Request::builder();
            for key in keys {
                builder = builder.header("Idempotency-Key", *key);
            }
            key(&builder.finish())
        };
        assert_eq!(with(&[]).expect("absent"), None);
        assert_eq!(with(&["k-1"]).expect("valid"), Some("k-1".to_owned()));
        let long = "k".repeat(201);
        for wrong in [&["a", "a"][..], &[""], &["a b"], &["ü"], &[&long]] {
            assert!(with(wrong).is_err(), "{wrong:?}");
        }
        let other = Request::builder().header("X-Idempotency-Key", "k").finish();
        assert!(key(&other).expect_err("not read").problem().detail.contains("send the header as Idempotency-Key"));
    }
}
