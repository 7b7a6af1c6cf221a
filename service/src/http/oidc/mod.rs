//! Access tokens of an issuer (`spec.oidc`), as identities beside API keys.
//!
//! A token is checked against the keys of the issuer that were read last, in memory: a request never asks the issuer, but for
//! one with an unknown key id, at most every ten seconds. Must never accept a token while no keys were read, or one that no
//! key of the issuer signed; must never log a token or a claim.

mod cache;
mod claims;
mod fetch;
mod follower;
mod keys;
mod signatures;
mod verifier;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, watch};

use self::{
    cache::Digest,
    follower::Follower,
    verifier::{Refused, Verifier},
};
use super::{auth::Identity, problem::Failure};
use crate::{config::ActiveManifest, lifecycle::Lifecycle};

/// Least time between two readings of the keys that requests ask for.
const REREAD_PAUSE: Duration = Duration::from_secs(10);
/// Longest time that a request with an unknown key id waits for the keys.
const REREAD_WAIT: Duration = Duration::from_secs(3);

/// Flags of access tokens.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OidcArgs {
    /// A PEM file of the authorities that sign the certificate of the issuer in spec.oidc, in place of the system's
    #[arg(long, value_name = "FILE", env = "MILLRACE_OIDC_CA_FILE")]
    oidc_ca_file: Option<PathBuf>,
}

/// What tokens are checked with, and the last attempt to read the keys.
#[derive(Debug, Clone, Default)]
struct Current {
    /// Whether the manifest names an issuer.
    is_enabled: bool,
    /// `None`: the keys were never read.
    verifier: Option<Arc<Verifier>>,
    attempted: Option<Instant>,
    /// Whether the last attempt failed.
    is_failing: bool,
}

/// The outcome of a request's wish to have the keys read again.
#[derive(Debug, Clone, Copy)]
enum Reread {
    /// An attempt ended.
    Done,
    /// The last attempt was a moment ago.
    Recent,
    /// The attempt takes too long.
    TimedOut,
}

/// Checks access tokens. Clones are the same.
#[derive(Debug, Clone)]
pub struct AccessTokens {
    current: watch::Receiver<Current>,
    reread: Arc<Notify>,
}

impl AccessTokens {
    /// Has the keys of the issuer read by a task of `lifecycle`, now and again, and the manifest followed. Does not wait for
    /// the issuer: API keys are valid without it.
    pub(crate) fn follow(args: OidcArgs, manifest: &watch::Receiver<ActiveManifest>, lifecycle: &Lifecycle) -> Self {
        signatures::install();
        let reread = Arc::new(Notify::new());
        let (sender, current) = watch::channel(Current::default());
        let follower = Follower::new(args, manifest.clone(), sender, Arc::clone(&reread), lifecycle.board.clone());
        lifecycle.spawn("serve.oidc", follower.run(lifecycle.soft.clone()));
        Self { current, reread }
    }

    /// Whether the manifest names an issuer.
    pub(super) fn is_enabled(&self) -> bool {
        self.current.borrow().is_enabled
    }

    /// The identity of a token's holder. `digest` is the SHA-256 of the token.
    pub(super) async fn identify(&self, token: &str, digest: Digest) -> Result<Arc<Identity>, Failure> {
        let mut checked = self.check(token, digest);
        if matches!(checked, Err(Refused::UnknownKey)) {
            match self.read_keys().await {
                Reread::Done => checked = self.check(token, digest),
                Reread::Recent => {}
                Reread::TimedOut => checked = Err(Refused::Unavailable),
            }
        }
        checked.map_err(|refused| self.failure(&refused))
    }

    fn check(&self, token: &str, digest: Digest) -> Result<Arc<Identity>, Refused> {
        let verifier = self.current.borrow().verifier.clone().ok_or(Refused::Unavailable)?;
        verifier.identify(token, digest, SystemTime::now())
    }

    /// Has the keys read again, and waits until they are.
    async fn read_keys(&self) -> Reread {
        let mut current = self.current.clone();
        if current.borrow_and_update().attempted.is_some_and(|at| at.elapsed() < REREAD_PAUSE) {
            return Reread::Recent;
        }
        self.reread.notify_one();
        match tokio::time::timeout(REREAD_WAIT, current.changed()).await {
            Ok(_) => Reread::Done,
            Err(_) => Reread::TimedOut,
        }
    }

    fn failure(&self, refused: &Refused) -> Failure {
        let is_unknown = match refused {
            Refused::Unavailable => true,
            // The issuer may have a new key.
            Refused::UnknownKey => self.current.borrow().is_failing,
            Refused::Invalid(_) => false,
        };
        if is_unknown {
            let detail =
                "the keys of the issuer of this access token cannot be read now; send again, or use an API key";
            return Failure::new(503, "issuer_unavailable", detail);
        }
        Failure::new(401, "invalid_token", refused.to_string())
    }
}
