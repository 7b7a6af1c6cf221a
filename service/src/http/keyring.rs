//! The keys active, kept up to date; and the first key, from the environment.
//!
//! Must never keep a key itself longer than it takes to hash it.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::ensure;
use millrace_crds::status_api::Problem;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::auth::{KeyRing, KnownKey, Scope};
use crate::{
    board::Board,
    config::{SecretError, secret},
    lifecycle::Lifecycle,
    store::{self, Error, LiveKey, Store},
};

/// How often the keys are read; a revoked key is refused within this and the time of one query.
const REFRESH: Duration = Duration::from_millis(500);
/// Part of the board for a first key that cannot be used.
const PART: &str = "keys";
/// Fewest characters of a key.
const SHORTEST: usize = 32;

/// SHA-256 of a key: what is stored of it.
pub type Hash = [u8; 32];

/// Source of the first key.
#[derive(Debug, Clone)]
pub enum Bootstrap {
    /// There is none.
    None,
    /// It was given.
    Key(Hash),
    /// It stands in a file, which may come late and is followed.
    File {
        /// Name for a person: the Secret and its key.
        name: String,
        /// Path of the mounted file.
        file: PathBuf,
    },
}

impl Bootstrap {
    fn hash(&self) -> Result<Option<Hash>, SecretError> {
        match self {
            Self::None => Ok(None),
            Self::Key(hash) => Ok(Some(*hash)),
            Self::File { name, file } => {
                let key = secret::read(file, name)?;
                hash(&key).map(Some).map_err(|rule| SecretError::Invalid(format!("{name}: {rule}")))
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
    /// unavailable the last known keys stay active. Waits for the first key's file only while there is no key at all: nobody
    /// could call.
    ///
    /// # Errors
    /// When the process stops before there were keys.
    pub async fn follow(store: &Store, bootstrap: Bootstrap, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        let mut registered = None;
        let board = lifecycle.board.clone();
        // Without keys every request is refused: not ready.
        let heartbeat = lifecycle.heartbeats.register("serve.keys", Duration::from_secs(30));
        let keys = loop {
            let first = first_key(&bootstrap, &board);
            let is_missing = first.is_none() && matches!(bootstrap, Bootstrap::File { .. });
            match store::within(refresh(store, first, &mut registered)).await {
                Ok(keys) if is_missing && keys.is_empty() => {}
                Ok(keys) => break keys,
                Err(error) => {
                    tracing::warn!(event = "http.keys.unavailable", %error, "the API keys cannot be read from Postgres")
                }
            }
            tokio::select! {
                () = tokio::time::sleep(2 * REFRESH) => {}
                () = lifecycle.soft.cancelled() => anyhow::bail!("stopped before the API keys could be read"),
            }
        };
        let (sender, receiver) = watch::channel(Some(keys));
        let (store, soft) = (store.clone(), lifecycle.soft.clone());
        // The keys were read just now.
        heartbeat.record();
        lifecycle.spawn("serve.keys", async move {
            let mut failing = false;
            while tokio::time::timeout(REFRESH, soft.cancelled()).await.is_err() {
                heartbeat.record();
                let first = first_key(&bootstrap, &board);
                match store::within(refresh(&store, first, &mut registered)).await {
                    Ok(keys) => {
                        sender.send_replace(Some(keys));
                        failing = false;
                    }
                    Err(error) => {
                        if !failing {
                            tracing::warn!(event = "http.keys.unavailable", %error, "the API keys cannot be read from Postgres");
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

/// The first key; `None`: there is none, or what is wrong with it stands on the board.
fn first_key(bootstrap: &Bootstrap, board: &Board) -> Option<Hash> {
    let read = bootstrap.hash();
    let problem = read.as_ref().err().and_then(SecretError::problem);
    if board.of(PART).first() != problem.as_ref() {
        if let Some(Problem { reason, message }) = &problem {
            tracing::warn!(event = "http.keys.bootstrap_refused", ?reason, message, "the first API key cannot be used");
        }
        board.set(PART, problem);
    }
    read.ok().flatten()
}

/// Registers the first key if it is another than before, and reads all keys.
async fn refresh(
    store: &Store,
    first: Option<Hash>,
    registered: &mut Option<Hash>,
) -> Result<HashMap<Hash, KnownKey>, Error> {
    if let Some(hash) = first.filter(|hash| registered.as_ref() != Some(hash)) {
        if store.bootstrap_key(&hash).await? {
            tracing::info!(event = "http.keys.bootstrapped", "stored the first API key");
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
