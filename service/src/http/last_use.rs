//! When secrets were last used, noted in Postgres at most once a minute each, away from requests.
//!
//! Must never make a request wait.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::store::{Error, Store};

/// Shortest time between two notes of one secret.
const PAUSE: Duration = Duration::from_secs(60);

/// When a secret was last used.
#[derive(Debug)]
pub struct LastUse {
    /// The beginning of the count.
    origin: Instant,
    /// Milliseconds from `origin`, plus one; 0: not used since the last note.
    used_ms: AtomicU64,
}

impl LastUse {
    fn new(origin: Instant) -> Self {
        Self { origin, used_ms: AtomicU64::new(0) }
    }

    /// Notes a use: now.
    pub(super) fn note(&self) {
        self.used_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

/// A use that is not in Postgres yet.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    secret: String,
    used_ms: u64,
    ago_ms: i64,
}

/// The last uses of all secrets of this process.
#[derive(Debug)]
pub(super) struct LastUses {
    origin: Instant,
    secrets: HashMap<String, Noted>,
}

#[derive(Debug)]
struct Noted {
    last_use: Arc<LastUse>,
    /// When it was noted in Postgres.
    at: Option<Instant>,
}

impl LastUses {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), secrets: HashMap::new() }
    }

    /// The last use of a secret, the same at each call.
    pub(super) fn of(&mut self, secret: &str) -> Arc<LastUse> {
        let origin = self.origin;
        let noted = self.secrets.entry(secret.to_owned());
        Arc::clone(&noted.or_insert_with(|| Noted { last_use: Arc::new(LastUse::new(origin)), at: None }).last_use)
    }

    /// Drops the secrets that are no longer active: only the ring of this process holds others.
    pub(super) fn keep(&mut self, is_active: impl Fn(&str) -> bool) {
        self.secrets.retain(|secret, _| is_active(secret));
    }

    /// Uses to note: those of secrets that were not noted within the pause; with `all`, of every secret.
    fn due(&self, now: Instant, all: bool) -> Vec<Use> {
        let due = |noted: &Noted| all || noted.at.is_none_or(|at| now.duration_since(at) >= PAUSE);
        let used = self.secrets.iter().filter(|(_, noted)| due(noted)).filter_map(|(secret, noted)| {
            let used_ms = noted.last_use.used_ms.load(Ordering::Relaxed);
            let ago = noted.last_use.now_ms().saturating_sub(used_ms);
            let ago_ms = i64::try_from(ago).unwrap_or(i64::MAX);
            (used_ms > 0).then(|| Use { secret: secret.clone(), used_ms, ago_ms })
        });
        used.collect()
    }

    /// Notes uses that are due in Postgres. What cannot be noted stays due.
    pub(super) async fn note(&mut self, store: &Store, all: bool) -> Result<(), Error> {
        let now = Instant::now();
        let due = self.due(now, all);
        if due.is_empty() {
            return Ok(());
        }
        let secrets: Vec<String> = due.iter().map(|one| one.secret.clone()).collect();
        let ago_ms: Vec<i64> = due.iter().map(|one| one.ago_ms).collect();
        store.note_last_use(&secrets, &ago_ms).await?;
        for Use { secret, used_ms, ago_ms: _ } in due {
            if let Some(noted) = self.secrets.get_mut(&secret) {
                noted.at = Some(now);
                // A use since then stays due.
                let _ = noted.last_use.used_ms.compare_exchange(used_ms, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TestPipeline;

    #[tokio::test]
    async fn a_use_is_noted_at_once_and_then_at_most_once_a_minute() {
        let test = TestPipeline::new("threshold: '1'").await;
        let mut uses = LastUses::new();
        let now = Instant::now();
        assert!(uses.due(now, true).is_empty(), "nothing was used");
        let (of_a, of_b) = (uses.of("a"), uses.of("b"));
        of_a.note();
        assert!(Arc::ptr_eq(&of_a, &uses.of("a")));
        assert_eq!(uses.due(now, false).len(), 1);
        uses.note(&test.store, false).await.expect("noted");
        assert!(uses.due(Instant::now(), true).is_empty(), "it was not used since");
        of_a.note();
        of_b.note();
        let due = |uses: &LastUses, now, all| {
            let mut secrets: Vec<String> = uses.due(now, all).into_iter().map(|one| one.secret).collect();
            secrets.sort();
            secrets
        };
        assert_eq!(due(&uses, Instant::now(), false), ["b"], "a was noted just now");
        assert_eq!(due(&uses, Instant::now(), true), ["a", "b"], "the process ends");
        assert_eq!(due(&uses, Instant::now() + PAUSE, false), ["a", "b"]);
        uses.keep(|secret| secret == "b");
        assert_eq!(due(&uses, Instant::now() + PAUSE, false), ["b"]);
    }
}
