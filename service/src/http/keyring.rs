//! The keys in force, kept up to date; and the first key, from the environment.
//!
//! Must never keep a key itself longer than it takes to hash it.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::auth::{KeyRing, KnownKey, Scope};
use crate::{
    lifecycle::Lifecycle,
    store::{Error, LiveKey, Store},
};

/// How often the keys are read; a revoked key is refused within this and the time of one query.
const REFRESH: Duration = Duration::from_millis(500);
/// Fewest characters of a key.
const SHORTEST: usize = 32;

/// SHA-256 of a key: what is stored of it.
pub type Hash = [u8; 32];

/// Where the first key comes from.
#[derive(Debug, Clone)]
pub enum Bootstrap {
    /// There is none.
    None,
    /// It was given.
    Key(Hash),
    /// It stands in a file, which is followed.
    File(PathBuf),
}

impl Bootstrap {
    async fn hash(&self) -> anyhow::Result<Option<Hash>> {
        match self {
            Self::None => Ok(None),
            Self::Key(hash) => Ok(Some(*hash)),
            Self::File(file) => {
                let text =
                    tokio::fs::read_to_string(file).await.with_context(|| format!("cannot read {}", file.display()))?;
                hash(text.trim()).with_context(|| file.display().to_string()).map(Some)
            }
        }
    }
}

/// The hash of a well-formed key: `mk_` and at least 29 letters, digits, `-` or `_`.
///
/// # Errors
/// The rule that it breaks, without the key.
pub fn hash(key: &str) -> anyhow::Result<Hash> {
    let form = key
        .strip_prefix("mk_")
        .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
    ensure!(
        form && key.len() >= SHORTEST,
        "an API key is mk_ and letters, digits, - or _, at least {SHORTEST} characters in all; `echo mk_$(openssl rand -hex 32)` makes one"
    );
    Ok(Sha256::digest(key.as_bytes()).into())
}

impl KeyRing {
    /// Access for all: the development mode, on loopback only.
    #[must_use]
    pub fn open() -> Self {
        // A receiver keeps its last value when the sender is gone.
        Self(watch::channel(None).1)
    }

    /// Registers the first key, reads the keys, and keeps them up to date by a task of `lifecycle`. While Postgres is
    /// away the last known keys stay in force.
    ///
    /// # Errors
    /// When the first key is not well-formed at the start, or the process stops before Postgres could be asked.
    pub async fn follow(store: &Store, bootstrap: Bootstrap, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        let mut registered = None;
        let first = bootstrap.hash().await?;
        let keys = loop {
            match refresh(store, first, &mut registered).await {
                Ok(keys) => break keys,
                Err(error) => tracing::warn!(%error, "http.keys.unavailable"),
            }
            tokio::select! {
                () = tokio::time::sleep(2 * REFRESH) => {}
                () = lifecycle.soft.cancelled() => anyhow::bail!("stopped before the API keys could be read"),
            }
        };
        let (sender, receiver) = watch::channel(Some(keys));
        let (store, soft) = (store.clone(), lifecycle.soft.clone());
        let beat = lifecycle.vitals.register("serve.keys", Duration::from_secs(30));
        // They were read just now.
        beat.beat();
        lifecycle.spawn("serve.keys", async move {
            let mut failing = false;
            while tokio::time::timeout(REFRESH, soft.cancelled()).await.is_err() {
                beat.beat();
                let first = bootstrap.hash().await;
                if let (Err(error), false) = (&first, failing) {
                    tracing::warn!(error = format!("{error:#}"), "http.keys.bootstrap_refused");
                }
                let failed = first.is_err();
                match refresh(&store, first.ok().flatten(), &mut registered).await {
                    Ok(keys) => {
                        sender.send_replace(Some(keys));
                        failing = failed;
                    }
                    Err(error) => {
                        if !failing {
                            tracing::warn!(%error, "http.keys.unavailable");
                        }
                        failing = true;
                    }
                }
            }
            Ok(())
        });
        Ok(Self(receiver))
    }
}

/// Registers the first key if it is another than before, and reads all keys.
async fn refresh(
    store: &Store,
    first: Option<Hash>,
    registered: &mut Option<Hash>,
) -> Result<HashMap<Hash, KnownKey>, Error> {
    if let Some(hash) = first.filter(|hash| registered.as_ref() != Some(hash)) {
        if store.bootstrap_key(&hash).await? {
            tracing::info!("http.keys.bootstrapped");
        }
        *registered = Some(hash);
    }
    Ok(known(store.live_keys().await?))
}

fn known(keys: Vec<LiveKey>) -> HashMap<Hash, KnownKey> {
    let known = keys.into_iter().filter_map(|key| {
        // A scope of a later version allows nothing here.
        let scopes = key.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect();
        Some((key.hash.try_into().ok()?, KnownKey { name: Arc::from(key.name), scopes }))
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_and_foreign_keys_are_refused_without_being_shown() {
        hash(&format!("mk_{}", "a".repeat(29))).expect("well-formed");
        for wrong in [
            "",
            "mk_",
            "secret",
            &format!("mk_{}", "a".repeat(28)),
            &format!("mk_{} ", "a".repeat(40)),
            &"a".repeat(64),
        ] {
            let error = hash(wrong).expect_err(wrong).to_string();
            assert!(wrong.len() < 4 || !error.contains(wrong));
        }
    }
}
