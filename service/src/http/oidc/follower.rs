//! Keeps the keys of the issuer: reads them at times, when a request has an unknown key id, and when the manifest changes.
//!
//! Must never drop keys because the issuer is unavailable, and never ask it more often because more requests come.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use millrace_crds::{Oidc, Reason, status_api::Problem};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Current, OidcArgs, REREAD_PAUSE, fetch,
    keys::{JwkSet, Keys},
    verifier::Verifier,
};
use crate::{
    board::Board,
    config::{ActiveManifest, SecretError, given, trusted},
    telemetry::metrics::ISSUER_KEYS_READ,
};

/// Between two readings of the keys.
const READ: Duration = Duration::from_secs(300);
/// First pause after a failed reading; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Part of the board for an issuer whose keys cannot be read.
const PART: &str = "oidc";

pub(super) struct Follower {
    ca_file: Option<PathBuf>,
    manifest: watch::Receiver<ActiveManifest>,
    current: watch::Sender<Current>,
    reread: Arc<Notify>,
    board: Board,
    pause: Duration,
}

impl Follower {
    pub(super) fn new(
        args: OidcArgs,
        manifest: watch::Receiver<ActiveManifest>,
        current: watch::Sender<Current>,
        reread: Arc<Notify>,
        board: Board,
    ) -> Self {
        let ca_file = given(&args.oidc_ca_file).map(ToOwned::to_owned);
        Self { ca_file, manifest, current, reread, board, pause: FIRST_PAUSE }
    }

    /// Runs until `soft` is cancelled.
    pub(super) async fn run(mut self, soft: CancellationToken) -> anyhow::Result<()> {
        let mut rules = None;
        let mut due = Instant::now();
        loop {
            let wanted = self.manifest.borrow_and_update().manifest.spec.oidc.clone();
            if wanted != rules {
                rules = wanted;
                due = Instant::now();
                self.begin(rules.is_some());
            }
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                changed = self.manifest.changed() => {
                    if changed.is_err() {
                        // The task that follows the manifest ends: so does the process.
                        soft.cancelled().await;
                    }
                }
                () = tokio::time::sleep_until(due.into()), if rules.is_some() => {
                    due = self.read_unless(rules.as_ref(), &soft).await;
                }
                () = self.reread.notified(), if rules.is_some() => {
                    if self.current.borrow().attempted.is_none_or(|at| at.elapsed() >= REREAD_PAUSE) {
                        due = self.read_unless(rules.as_ref(), &soft).await;
                    }
                }
            }
        }
    }

    /// Begins again, by other rules: without keys.
    fn begin(&mut self, is_enabled: bool) {
        self.pause = FIRST_PAUSE;
        self.board.set(PART, []);
        self.current.send_replace(Current { is_enabled, ..Current::default() });
    }

    /// Reads the keys unless the process stops meanwhile; returns when they are to be read next.
    async fn read_unless(&mut self, rules: Option<&Oidc>, soft: &CancellationToken) -> Instant {
        if let Some(rules) = rules {
            tokio::select! {
                read = self.read(rules) => self.note(rules, read),
                () = soft.cancelled() => {}
            }
        }
        Instant::now() + if self.current.borrow().is_failing { self.pause } else { READ }
    }

    async fn read(&self, rules: &Oidc) -> Result<JwkSet, Problem> {
        if let Some(file) = &self.ca_file {
            trusted(rules.ca_secret_ref.as_ref(), file).map_err(|error: SecretError| {
                error.problem().unwrap_or_else(|| Problem::new(Reason::SecretInvalid, error.to_string()))
            })?;
        }
        let read = fetch::keys(rules, self.ca_file.as_deref()).await;
        read.map_err(|error| Problem::new(Reason::IssuerUnreachable, format!("{error:#}")))
    }

    fn note(&mut self, rules: &Oidc, read: Result<JwkSet, Problem>) {
        let Current { verifier: known, is_failing, .. } = self.current.borrow().clone();
        let attempted = Some(Instant::now());
        let (verifier, problem) = match read {
            Ok(set) if known.as_ref().is_some_and(|known| known.keys().are_of(&set)) => (known, None),
            Ok(set) => {
                let keys = Keys::new(set);
                let count = keys.len();
                tracing::info!(event = "http.oidc.keys_read", keys = count, "the issuer has other keys than before");
                let why = format!("{} publishes no key that can be used", rules.issuer);
                let problem = (count == 0).then(|| Problem::new(Reason::IssuerUnreachable, why));
                (Some(Arc::new(Verifier::new(rules.clone(), keys))), problem)
            }
            Err(problem) => (known, Some(problem)),
        };
        match &problem {
            None => {
                self.pause = FIRST_PAUSE;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                metrics::gauge!(ISSUER_KEYS_READ).set(now.as_secs_f64());
                if is_failing {
                    tracing::info!(event = "http.oidc.available", "the keys of the issuer can be read again");
                }
            }
            Some(Problem { reason, message }) => {
                self.pause = if is_failing { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
                if !is_failing {
                    tracing::warn!(
                        event = "http.oidc.unavailable",
                        ?reason,
                        message,
                        has_keys = verifier.is_some(),
                        "the keys of the issuer cannot be read; those that were read last stay valid"
                    );
                }
            }
        }
        let is_failing = problem.is_some();
        self.board.set(PART, problem);
        self.current.send_replace(Current { is_enabled: true, verifier, attempted, is_failing });
    }
}
