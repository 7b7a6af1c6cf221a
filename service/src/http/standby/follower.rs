//! Asks the standby, twice a second, what it has replayed.

use std::{sync::Arc, time::Duration};

use millrace_crds::{Reason, status_api::Problem};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Fresh, Standby};
use crate::{
    board::{Board, of_store, silent},
    config::{ActiveManifest, StandbyPlace},
    lifecycle::Heartbeat,
    store::{Error, Store},
    telemetry::metrics::STANDBY_STALENESS,
    tls::Endpoint,
};

/// Between two questions.
const ASK: Duration = Duration::from_millis(500);
/// Longest wait for an answer.
const LONGEST: Duration = Duration::from_secs(2);
/// Part of the board for the standby.
const PART: &str = "standby";
/// Connections to the standby, one of them for the questions.
const CONNECTIONS: u32 = 11;

pub(super) struct Follower {
    standby: Standby,
    place: StandbyPlace,
    primary: Store,
    manifest: watch::Receiver<ActiveManifest>,
    process: Arc<str>,
    /// What is connected, and with what.
    connected: Option<(Endpoint, Store)>,
    /// When the newest note that the standby has was begun; without one, when it was first asked.
    replayed: Option<Instant>,
    /// Whether `replayed` is of a note.
    has_note: bool,
}

impl Follower {
    pub(super) fn new(
        standby: Standby,
        place: StandbyPlace,
        primary: Store,
        manifest: watch::Receiver<ActiveManifest>,
        process: Arc<str>,
    ) -> Self {
        Self { standby, place, primary, manifest, process, connected: None, replayed: None, has_note: false }
    }

    /// Runs until `soft` is cancelled.
    pub(super) async fn run(mut self, board: &Board, heartbeat: &Heartbeat, soft: &CancellationToken) {
        let mut said = Vec::new();
        loop {
            let problems = tokio::select! {
                problems = self.look() => problems,
                () = soft.cancelled() => return,
            };
            if problems != said {
                say(&problems);
                board.set(PART, problems.clone());
                said = problems;
            }
            heartbeat.record();
            if timeout(ASK, soft.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    /// Follows the URL, asks the standby, and returns what is wrong.
    async fn look(&mut self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.connect().err().into_iter().collect();
        let Some((_, store)) = self.connected.clone() else {
            self.standby.set(None);
            return problems;
        };
        let asked = self.ask(&store).await;
        if let Some(replayed) = self.replayed.filter(|_| self.has_note) {
            metrics::gauge!(STANDBY_STALENESS).set(replayed.elapsed().as_secs_f64());
        }
        match asked {
            Ok(fresh) => {
                if fresh.is_none() {
                    problems.extend(self.behind());
                }
                self.standby.set(fresh);
            }
            Err(problem) => {
                self.standby.set(None);
                problems.push(problem);
            }
        }
        problems
    }

    /// Connects with the present URL and files. What cannot be used leaves the connections as they are.
    fn connect(&mut self) -> Result<(), Problem> {
        let spec = self.manifest.borrow().manifest.clone();
        let endpoint = self.place.endpoint(&spec.spec).map_err(|error| {
            error
                .problem()
                .unwrap_or_else(|| Problem::new(Reason::SecretInvalid, format!("--postgres-read-url: {error}")))
        })?;
        let Some(endpoint) = endpoint.filter(|next| self.connected.as_ref().is_none_or(|(now, _)| now != next)) else {
            return Ok(());
        };
        let name = &spec.metadata.name;
        let unusable = |error| unavailable(&format!("{error}"));
        match &mut self.connected {
            Some((present, store)) => {
                store.redirect(&endpoint, name).map_err(unusable)?;
                store.renew_connections();
                *present = endpoint;
                (self.replayed, self.has_note) = (None, false);
                tracing::info!(
                    event = "http.standby.redirected",
                    "the URL of the standby or its certificates changed; new connections use them"
                );
            }
            None => {
                let store = Store::connect_standby(&endpoint, name, CONNECTIONS).map_err(unusable)?;
                self.connected = Some((endpoint, store));
            }
        }
        Ok(())
    }

    /// Asks the standby. Returns it if queries may read from it.
    async fn ask(&mut self, store: &Store) -> Result<Option<Fresh>, Problem> {
        self.replayed.get_or_insert(Instant::now());
        let replayed = match timeout(LONGEST, store.replayed(&self.process)).await {
            Ok(Ok(replayed)) => replayed,
            Ok(Err(Error::Sql(sqlx::Error::PoolTimedOut))) | Err(_) => {
                // Queries need not wait while the cause is found.
                self.standby.set(None);
                return Err(of_standby(silent(store).await));
            }
            Ok(Err(error)) => return Err(of_standby(of_store(store, &error))),
        };
        if !replayed.is_standby {
            return Err(unavailable(
                "the URL leads to a server that is no standby: give the URL of a standby of the primary, or leave it out",
            ));
        }
        // Read first: the notes of a newer primary then count for none that queries know.
        let primary = self.primary.server();
        let began = replayed.note.and_then(|note| self.primary.note_began(note));
        let Some(began) = began else { return Ok(None) };
        self.replayed = Some(Instant::from_std(began));
        self.has_note = true;
        let most = self.most();
        let fresh = Fresh { store: store.clone(), server: replayed.server, primary, until: began + most };
        Ok((began.elapsed() < most).then_some(fresh))
    }

    fn most(&self) -> Duration {
        let manifest = self.manifest.borrow();
        manifest.manifest.spec.postgres.as_ref().map(|postgres| postgres.max_staleness).unwrap_or_default().duration()
    }

    /// The problem of a standby that is behind for longer than queries may be.
    fn behind(&self) -> Option<Problem> {
        let (since, most) = (self.replayed?.elapsed(), self.most());
        (since >= most).then(|| {
            let message = format!(
                "it has not replayed what this process wrote to the primary in the last {} s: queries read from the primary",
                most.as_secs()
            );
            Problem::new(Reason::StandbyBehind, message)
        })
    }
}

/// A problem of Postgres as one of the standby. Those of TLS name the Secret to change.
fn of_standby(problem: Problem) -> Problem {
    if problem.reason.is_of_tls() { problem } else { unavailable(&problem.message) }
}

fn unavailable(why: &str) -> Problem {
    Problem::new(Reason::StandbyUnavailable, format!("{why}; queries read from the primary"))
}

fn say(problems: &[Problem]) {
    for Problem { reason, message } in problems {
        tracing::warn!(event = "http.standby.unused", ?reason, message, "queries do not read from the standby");
    }
    if problems.is_empty() {
        tracing::info!(event = "http.standby.used", "queries that ask for it read from the standby");
    }
}
