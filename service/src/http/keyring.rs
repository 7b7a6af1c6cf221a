//! The keys active, kept up to date; and the first key, from the environment.
//!
//! Must never keep a key itself longer than it takes to hash it.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use millrace_crds::{RateLimits, status_api::Problem};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{
    auth::{Identity, KeyRing, KnownSecret, Snapshot},
    last_use::LastUses,
    oidc::AccessTokens,
    rate_limits::Usage,
};
use crate::{
    board::Board,
    config::{SecretError, secret},
    domain::{AccessLimit, IdPattern, Scope},
    lifecycle::Lifecycle,
    store::{self, Error, LiveSecret, Store},
};

/// How often the keys are read; a revoked key is refused within this and the time of one query.
pub(crate) const REFRESH: Duration = Duration::from_millis(500);
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
        Self::of(watch::channel(None).1)
    }

    fn of(secrets: watch::Receiver<Snapshot>) -> Self {
        let open = Identity { name: "dev".into(), scopes: vec![Scope::Admin], ..Identity::default() };
        Self { secrets, open: Arc::new(open), tokens: None }
    }

    /// Waits until this process has read a session; false: it did not in that time.
    pub(crate) async fn knows_session(&self, hash: &Hash, longest: Duration) -> bool {
        let mut secrets = self.secrets.clone();
        let knows = secrets.wait_for(|secrets| secrets.as_ref().is_none_or(|secrets| secrets.contains_key(hash)));
        matches!(tokio::time::timeout(longest, knows).await, Ok(Ok(_)))
    }

    /// The same keys, and access tokens beside them.
    #[must_use]
    pub fn with_tokens(self, tokens: AccessTokens) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// Registers the first key, reads the keys, and keeps them up to date by a task of `lifecycle`. While Postgres is
    /// unavailable the last known keys stay active. Waits for the first key's file only while there is no key at all: nobody
    /// could call.
    ///
    /// # Errors
    /// When the process stops before there were keys.
    pub async fn follow(store: &Store, bootstrap: Bootstrap, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        let board = lifecycle.board.clone();
        let mut follower = Follower {
            store: store.clone(),
            bootstrap,
            board,
            registered: None,
            last_uses: LastUses::new(),
            usages: HashMap::new(),
        };
        // Without keys every request is refused: not ready.
        let heartbeat = lifecycle.heartbeats.register("serve.keys", Duration::from_secs(30));
        let secrets = loop {
            let first = follower.first_key();
            let is_missing = first.is_none() && matches!(follower.bootstrap, Bootstrap::File { .. });
            match store::within(follower.refresh(first)).await {
                Ok(secrets) if is_missing && secrets.is_empty() => {}
                Ok(secrets) => break secrets,
                Err(error) => unavailable(&error),
            }
            tokio::select! {
                () = tokio::time::sleep(2 * REFRESH) => {}
                () = lifecycle.soft.cancelled() => anyhow::bail!("stopped before the API keys could be read"),
            }
        };
        let (sender, receiver) = watch::channel(Some(secrets));
        let soft = lifecycle.soft.clone();
        // The keys were read just now.
        heartbeat.record();
        lifecycle.spawn("serve.keys", async move {
            let mut failing = false;
            while tokio::time::timeout(REFRESH, soft.cancelled()).await.is_err() {
                heartbeat.record();
                let first = follower.first_key();
                let refreshed = store::within(follower.refresh(first)).await;
                if let (Err(error), false) = (&refreshed, failing) {
                    unavailable(error);
                }
                failing = refreshed.is_err();
                if let Ok(secrets) = refreshed {
                    sender.send_replace(Some(secrets));
                    follower.note_uses(false).await;
                }
            }
            follower.note_uses(true).await;
            Ok(())
        });
        Ok(Self::of(receiver))
    }
}

fn unavailable(error: &Error) {
    tracing::warn!(event = "http.keys.unavailable", %error, "the API keys cannot be read from Postgres");
}

/// Reads the keys again and again.
struct Follower {
    store: Store,
    bootstrap: Bootstrap,
    board: Board,
    /// The first key that was registered.
    registered: Option<Hash>,
    last_uses: LastUses,
    /// What each key uses of its limits, by its id.
    usages: HashMap<String, Arc<Usage>>,
}

impl Follower {
    /// The first key; `None`: there is none, or what is wrong with it stands on the board.
    fn first_key(&self) -> Option<Hash> {
        let read = self.bootstrap.hash();
        let problem = read.as_ref().err().and_then(SecretError::problem);
        if self.board.of(PART).first() != problem.as_ref() {
            if let Some(Problem { reason, message }) = &problem {
                tracing::warn!(
                    event = "http.keys.bootstrap_refused",
                    ?reason,
                    message,
                    "the first API key cannot be used"
                );
            }
            self.board.set(PART, problem);
        }
        read.ok().flatten()
    }

    /// Registers the first key if it is another than before, and reads all secrets.
    async fn refresh(&mut self, first: Option<Hash>) -> Result<HashMap<Hash, KnownSecret>, Error> {
        if let Some(hash) = first.filter(|hash| self.registered.as_ref() != Some(hash)) {
            if self.store.bootstrap_key(&hash).await? {
                tracing::info!(event = "http.keys.bootstrapped", "stored the first API key");
            }
            self.registered = Some(hash);
        }
        let read_at = Instant::now();
        let secrets = self.store.live_secrets().await?;
        let active: HashSet<String> = secrets.iter().map(|secret| secret.secret_id.clone()).collect();
        self.last_uses.keep(|secret| active.contains(secret));
        let keys: HashSet<&str> = secrets.iter().map(|secret| secret.key_id.as_str()).collect();
        self.usages.retain(|key, _| keys.contains(key.as_str()));
        let mut known_secrets = HashMap::new();
        for secret in secrets {
            let usage = Arc::clone(self.usages.entry(secret.key_id.clone()).or_default());
            known_secrets.extend(known(secret, read_at, usage, &mut self.last_uses));
        }
        Ok(known_secrets)
    }

    async fn note_uses(&mut self, all: bool) {
        // It stays due, and a failing Postgres is logged by what needs it.
        if let Err(error) = store::within(self.last_uses.note(&self.store, all)).await {
            tracing::debug!(event = "http.keys.use_unnoted", %error, "the last uses of API keys cannot be noted");
        }
    }
}

/// A secret as requests are checked against it; `None`: nobody can use it here.
fn known(
    secret: LiveSecret,
    read_at: Instant,
    usage: Arc<Usage>,
    last_uses: &mut LastUses,
) -> Option<(Hash, KnownSecret)> {
    let hash = secret.hash.try_into().ok()?;
    // A limit of a later version must not become none.
    let patterns = |json: &str| serde_json::from_str::<Vec<IdPattern>>(json).ok();
    let limit = AccessLimit::new(&patterns(&secret.source_ids)?, &patterns(&secret.destination_ids)?).ok()?;
    let rate_limits = serde_json::from_str::<RateLimits>(&secret.rate_limits).ok()?;
    // A scope of a later version allows nothing here.
    let scopes = secret.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect();
    let (name, key_id) = (secret.name.into(), Some(secret.key_id.into()));
    let identity = Identity { name, key_id, scopes, limit, rate_limits, usage };
    let left = secret.expires_in_ms.map(|ms| Duration::from_millis(ms.try_into().unwrap_or(0)));
    let expires = left.and_then(|left| read_at.checked_add(left));
    let (last_use, is_session) = (last_uses.of(&secret.secret_id), secret.is_session);
    Some((hash, KnownSecret { identity: Arc::new(identity), expires, last_use, is_session }))
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
