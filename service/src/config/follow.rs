//! Follows the manifest's file and its newest version in Postgres while the process runs.
//!
//! Files are followed by their content, which also holds for the symbolic links that a mounted ConfigMap swaps. Must never
//! put anything active that Postgres does not have as its newest version, and never drop what is active because a server
//! or the file is missing.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use millrace_crds::{Reason, RecordPipeline, status_api::Problem};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    ActiveManifest, Place, SecretError,
    place::metadata,
    setup::{FILE, Refusal, active_policy, offer, other_uid, say},
    trial::Trials,
};
use crate::{
    board::{Board, of_postgres, silent},
    lifecycle::Heartbeat,
    store::{self, Error, Registered, Store},
    streams::Streams,
    telemetry::metrics::{MANIFEST_REFUSED, POLICY_VERSION},
    tls::Endpoint,
};

/// Between two looks. A change is active after two of them at the most: one for the file, one for another process's.
const LOOK: Duration = Duration::from_millis(300);
/// Part of the board for a Secret that cannot be used.
const SECRETS: &str = "secrets";
/// Part of the board for a schema that is not claimed for the file.
const CLAIM: &str = "claim";
/// Part of the board for a newest version that this process cannot read.
const NEWEST: &str = "newest";
/// Between two checks that every shard has its row.
const CHECK_SHARDS: u32 = 10;

/// What the connections are made with.
pub(super) struct Urls {
    pub(super) redis: Endpoint,
    pub(super) postgres: Endpoint,
}

pub(super) struct Follower {
    place: Place,
    /// The last content of the file that was read, valid or not.
    content: Option<String>,
    /// While the file cannot be read: what was refused before, and the problem that it was.
    unreadable: Option<(Option<Arc<str>>, Vec<Problem>)>,
    /// The file as it was last accepted; of its spec only `shards`, which never changes, counts.
    frame: RecordPipeline,
    /// A change that Postgres has not judged yet.
    pending: Option<RecordPipeline>,
    urls: Urls,
    trials: Trials,
    store: Store,
    streams: Streams,
    active_manifest: watch::Sender<ActiveManifest>,
    board: Board,
    /// The last reported state of Postgres; reported again only when it changes.
    trouble: String,
}

impl Follower {
    pub(super) fn new(
        place: Place,
        frame: RecordPipeline,
        urls: Urls,
        store: Store,
        streams: Streams,
        active_manifest: watch::Sender<ActiveManifest>,
        board: Board,
    ) -> Self {
        Self {
            place,
            content: None,
            unreadable: None,
            frame,
            pending: None,
            urls,
            trials: Trials::default(),
            store,
            streams,
            active_manifest,
            board,
            trouble: String::new(),
        }
    }

    pub(super) async fn run(mut self, heartbeat: Arc<Heartbeat>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = 0_u32;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            self.look_at_file().await;
            tokio::select! {
                () = self.look_at_urls() => {}
                () = stop.cancelled() => return Ok(()),
            }
            let outcome = tokio::select! {
                outcome = store::within(self.look_at_postgres(look.is_multiple_of(CHECK_SHARDS))) => outcome,
                () = stop.cancelled() => return Ok(()),
            };
            // A newer process may have put active what this one does not understand: the old version stays.
            let too_new = match &outcome {
                Err(Trouble::Passing(error @ Error::TooNew(_))) => Some(of_postgres(error)),
                _ => None,
            };
            self.board.set(NEWEST, too_new);
            match outcome {
                Ok(()) if self.trouble.is_empty() => {}
                Ok(()) => {
                    tracing::info!(event = "config.postgres.available", "Postgres is available again");
                    self.trouble.clear();
                }
                Err(Trouble::Passing(error)) => {
                    let error = match error {
                        // The pool has no cause.
                        Error::Sql(sqlx::Error::PoolTimedOut) => silent(&self.store).await.message,
                        error => error.to_string(),
                    };
                    if error != self.trouble {
                        tracing::warn!(event = "config.postgres.unavailable", error, "Postgres is unavailable");
                        self.trouble = error;
                    }
                }
                Err(Trouble::OtherPipeline(id)) => bail!(
                    "the database is now pipeline {id}'s: its id differs from the one that this process started with; start again"
                ),
            }
            self.measure();
            heartbeat.record();
            look = look.wrapping_add(1);
        }
    }

    fn measure(&self) {
        let active_manifest = self.active_manifest.borrow();
        // Versions count from 1, far below what a float holds exactly.
        metrics::gauge!(POLICY_VERSION).set(active_manifest.policy.version as f64);
        metrics::gauge!(MANIFEST_REFUSED).set(if active_manifest.refusal.is_some() { 1.0 } else { 0.0 });
    }

    /// Reads the file; a content that was not seen yet becomes pending, or is refused with one line.
    async fn look_at_file(&mut self) {
        let read = tokio::fs::read_to_string(&self.place.pipeline).await;
        let content = match read {
            Ok(content) => content,
            // Not held as content, so that the same content coming back is no change.
            Err(error) => {
                if self.unreadable.is_none() {
                    self.unreadable = Some((self.active_manifest.borrow().refusal.clone(), self.board.of(FILE)));
                    self.board.manifest(None);
                    self.refuse(Reason::ManifestInvalid, &format!("cannot be read: {error}"));
                }
                return;
            }
        };
        if let Some((before, problems)) = self.unreadable.take() {
            self.active_manifest.send_modify(|active_manifest| active_manifest.refusal = before);
            self.board.set(FILE, problems);
            self.board.manifest(metadata(&content).as_ref());
        }
        if self.content.as_ref() == Some(&content) {
            return;
        }
        let parsed = RecordPipeline::from_yaml(&content);
        let origin = metadata(&content);
        let first = self.content.replace(content).is_none();
        match parsed {
            // Offered at the start already, unless it was fixed since.
            Ok(manifest) if first && manifest == self.frame && !self.was_invalid() => {}
            Ok(manifest) if manifest.metadata.name != self.frame.metadata.name => {
                let (was, is) = (&self.frame.metadata.name, &manifest.metadata.name);
                let why =
                    format!("metadata.name changed from {was} to {is}: a pipeline keeps its name; start another one");
                self.refuse(Reason::ManifestRefused, &why);
            }
            // Nothing is known against it yet: the operator takes a refusal of an earlier content for one of this.
            Ok(manifest) => {
                self.accept();
                self.pending = Some(manifest);
            }
            Err(error) => self.refuse(Reason::ManifestInvalid, &error.to_string()),
        }
        self.board.manifest(origin.as_ref());
    }

    /// A changed URL of Postgres holds for new connections, one of Redis for all. One that is gone or is none changes
    /// nothing but is said. Changed certificates are tried first.
    async fn look_at_urls(&mut self) {
        let spec = Some(&self.frame.spec);
        let mut problems = Vec::new();
        let mut taken = |given: Result<Endpoint, SecretError>, was: &Endpoint| match given {
            Ok(endpoint) => Some(endpoint).filter(|endpoint| endpoint != was),
            Err(error) => {
                problems.extend(error.problem());
                None
            }
        };
        let postgres = taken(self.place.postgres(spec), &self.urls.postgres);
        let redis = taken(self.place.redis(spec), &self.urls.redis);
        if let Some(next) = postgres {
            let (store, changes_files) = (&self.store, next.files != self.urls.postgres.files);
            match self.trials.postgres.admits(&next, changes_files, || store.try_endpoint(&next)).await {
                Ok(()) if store.redirect(&next, &self.frame.metadata.name).is_ok() => {
                    if changes_files {
                        store.renew_connections();
                    }
                    tracing::info!(
                        event = "config.postgres_url.changed",
                        "the URL of Postgres or its certificates changed; new connections use them"
                    );
                    self.urls.postgres = next;
                }
                Ok(()) => {}
                Err(problem) => problems.extend(problem),
            }
        }
        if let Some(next) = redis {
            let (streams, changes_files) = (&self.streams, next.files != self.urls.redis.files);
            match self.trials.redis.admits(&next, changes_files, || streams.try_endpoint(&next)).await {
                Ok(()) if streams.redirect(&next).is_ok() => {
                    tracing::info!(
                        event = "config.redis_url.changed",
                        "the URL of Redis or its certificates changed; new connections use them"
                    );
                    self.urls.redis = next;
                }
                Ok(()) => {}
                Err(problem) => problems.extend(problem),
            }
        }
        if problems != self.board.of(SECRETS) {
            for Problem { reason, message } in &problems {
                tracing::warn!(event = "config.secret.refused", ?reason, message, "a secret cannot be used");
            }
            self.board.set(SECRETS, problems);
        }
    }

    async fn look_at_postgres(&mut self, check_shards: bool) -> Result<(), Trouble> {
        if let Some(manifest) = self.pending.take() {
            match self.offer(&manifest).await {
                Ok(()) => {}
                Err(error) => {
                    self.pending = Some(manifest);
                    return Err(error.into());
                }
            }
        }
        if check_shards {
            self.store.ensure_shards(self.frame.spec.shards).await?;
        }
        let Some(newest) = self.store.newest().await? else { return Ok(()) };
        let fresh = active_policy(&newest);
        let now = self.active_manifest.borrow().clone();
        if *newest.pipeline_id != *now.pipeline_id {
            return Err(Trouble::OtherPipeline(newest.pipeline_id));
        }
        // A Postgres that was rewound has lost versions, and gives their numbers again.
        let is_other = newest.version != now.policy.version || newest.spec != now.manifest.spec;
        if is_other && newest.version <= now.policy.version {
            tracing::warn!(
                event = "config.manifest.lost",
                version = newest.version,
                was = now.policy.version,
                "Postgres lost a policy version; it is registered again"
            );
            self.pending = Some(self.frame.clone());
        }
        // An annotation, too, reaches those who run it: it makes no version.
        if is_other || self.frame.metadata != now.manifest.metadata {
            let mut next = ActiveManifest::new(&self.frame, newest.spec, newest.version, now.pipeline_id);
            next.refusal = now.refusal;
            if is_other {
                tracing::info!(
                    event = "config.manifest.active",
                    version = newest.version,
                    was = now.policy.version,
                    "a policy version is active"
                );
            }
            self.active_manifest.send_replace(next);
            self.board.active_policy(fresh);
        }
        Ok(())
    }

    async fn offer(&mut self, manifest: &RecordPipeline) -> Result<(), Error> {
        let Some(pipeline) = self.store.pipeline().await? else {
            return Err(Error::Refused(
                "the schema is not there, or older than this millrace: run `millrace migrate`".to_owned(),
            ));
        };
        match pipeline.admits(manifest) {
            Ok(()) => {}
            Err(Error::OtherPipeline(why)) => {
                self.refuse(Reason::OtherPipeline, &why);
                return Ok(());
            }
            Err(error) => {
                self.refuse(Reason::ManifestRefused, &error.to_string());
                return Ok(());
            }
        }
        let unclaimed = other_uid(&pipeline, manifest);
        self.board.set(CLAIM, unclaimed.as_ref().map(|why| Problem::new(Reason::UidNotClaimed, why)));
        if let Some(why) = unclaimed {
            // Stays pending: it is judged once the schema was claimed for it.
            return Err(Error::Refused(why));
        }
        let registered = self.store.register(&offer(manifest, true)).await?;
        match Refusal::of(&registered) {
            Some(refusal) => self.note_refusal(&refusal),
            None => {
                say(&registered);
                self.accept();
            }
        }
        if matches!(registered, Registered::AsNew(_) | Registered::Same(_)) {
            self.frame = manifest.clone();
        }
        Ok(())
    }

    fn was_invalid(&self) -> bool {
        self.board.of(FILE).iter().any(|problem| problem.reason == Reason::ManifestInvalid)
    }

    /// Drops the refusal of an earlier content.
    fn accept(&self) {
        self.active_manifest.send_if_modified(|active_manifest| active_manifest.refusal.take().is_some());
        self.board.set(FILE, []);
    }

    fn refuse(&self, reason: Reason, why: &str) {
        self.note_refusal(&Refusal { reason: Some(reason), why: why.to_owned() });
    }

    /// Says why the file's content is not active, and keeps it for `/status`. Called once for each content.
    fn note_refusal(&self, refusal: &Refusal) {
        let why = &refusal.why;
        let (file, version) = (self.place.pipeline.display(), self.active_manifest.borrow().policy.version);
        tracing::warn!(event = "config.manifest.refused", %file, why, active_manifest = version, "the manifest is refused; the last accepted one stays active");
        self.active_manifest.send_modify(|active_manifest| active_manifest.refusal = Some(why.as_str().into()));
        self.board.set(FILE, refusal.problem());
    }
}

enum Trouble {
    /// Waited for.
    Passing(Error),
    /// Ends the process: what it holds belongs to another pipeline.
    OtherPipeline(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Passing(error)
    }
}
