//! Identities of tokens that were verified, by the digest of the token, and what each holder uses of its limits.
//!
//! Must never hold a token itself, nor a token that was refused: anyone could fill the memory with those.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::SystemTime,
};

use super::super::{auth::Identity, rate_limits::Usage};

/// SHA-256 of a token.
pub(super) type Digest = [u8; 32];

/// Most tokens. A token has at most 8 KiB, so that limits of its claims take a few.
const MOST_TOKENS: usize = 4_096;

#[derive(Debug, Clone)]
struct Verified {
    identity: Arc<Identity>,
    /// The end of its validity, clock skew included.
    until: SystemTime,
}

/// Verified tokens.
#[derive(Debug, Default)]
pub(super) struct Cache {
    tokens: RwLock<HashMap<Digest, Verified>>,
    /// By the name of an identity, as long as one of its tokens is here or in use: the limits of a holder are those of all
    /// its tokens.
    usages: Mutex<HashMap<Arc<str>, Weak<Usage>>>,
}

impl Cache {
    /// The identity of a verified token that is still valid.
    pub(super) fn get(&self, digest: &Digest, now: SystemTime) -> Option<Arc<Identity>> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.get(digest).filter(|verified| now <= verified.until).map(|verified| Arc::clone(&verified.identity))
    }

    /// Adds a verified token. Where there is no place, expired ones go first, then all.
    pub(super) fn add(&self, digest: Digest, identity: Arc<Identity>, until: SystemTime, now: SystemTime) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MOST_TOKENS {
            tokens.retain(|_, verified| now <= verified.until);
        }
        if tokens.len() >= MOST_TOKENS {
            tokens.clear();
        }
        tokens.insert(digest, Verified { identity, until });
    }

    /// What the holder of that name uses of its limits.
    pub(super) fn usage(&self, name: &Arc<str>) -> Arc<Usage> {
        let mut usages = self.usages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = usages.get(name).and_then(Weak::upgrade) {
            return usage;
        }
        if usages.len() >= MOST_TOKENS {
            usages.retain(|_, usage| usage.strong_count() > 0);
        }
        let usage = Arc::default();
        usages.insert(Arc::clone(name), Arc::downgrade(&usage));
        usage
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_token_is_known_until_it_expires_and_the_number_is_bounded() {
        let cache = Cache::default();
        let identity = || Arc::new(Identity::default());
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        cache.add([0; 32], identity(), at(10), at(0));
        assert!(cache.get(&[0; 32], at(10)).is_some() && cache.get(&[0; 32], at(11)).is_none());
        assert!(cache.get(&[1; 32], at(0)).is_none());
        let digest = |n: usize| {
            let mut digest = [1; 32];
            digest[..8].copy_from_slice(&n.to_be_bytes());
            digest
        };
        for n in 0..3 * MOST_TOKENS {
            cache.add(digest(n), identity(), at(100), at(20));
            assert!(cache.get(&digest(n), at(20)).is_some());
            assert!(cache.tokens.read().expect("no panic").len() <= MOST_TOKENS);
        }
        assert!(cache.get(&[0; 32], at(0)).is_none(), "it was dropped");
    }

    #[test]
    fn tokens_of_one_holder_share_what_it_uses() {
        let cache = Cache::default();
        let (one, other): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let used = cache.usage(&one);
        assert!(Arc::ptr_eq(&used, &cache.usage(&one)) && !Arc::ptr_eq(&used, &cache.usage(&other)));
        for n in 0..3 * MOST_TOKENS {
            cache.usage(&n.to_string().into());
        }
        assert!(Arc::ptr_eq(&used, &cache.usage(&one)), "it is in use");
        assert!(cache.usages.lock().expect("no panic").len() <= MOST_TOKENS + 1);
    }
}
