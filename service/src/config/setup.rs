//! The start of a role: find the pipeline in Postgres, and know what is active.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use millrace_crds::{
    API_VERSION, KIND, Metadata, Reason, RecordPipeline,
    status_api::{ActivePolicy, Problem},
};
use tokio::sync::watch;

use super::{
    ActiveManifest, Place, SecretError,
    follow::{self, Follower},
};
use crate::{
    board::{Board, cause, not_migrated, of_postgres, of_store, silent},
    lifecycle::Lifecycle,
    store::{Error, Newest, Offer, Pipeline, Registered, Store},
    streams::Streams,
    tls::Endpoint,
};

/// Heartbeat that is stalled until the pipeline exists.
const WAITING: &str = "waiting for the pipeline";
/// Part of the board for problems of the start.
const PART: &str = "start";
/// Part of the board for a file that is not active.
pub(super) const FILE: &str = "manifest";

/// Everything that a role starts from.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The manifest that is active, followed.
    pub active_manifest: watch::Receiver<ActiveManifest>,
    /// This process's name: never used by another, nor by this one after a restart.
    pub process: Arc<str>,
    /// The pipeline's name.
    pub name: Arc<str>,
}

impl Setup {
    /// Waits with back-off until the Secrets, the servers and the pipeline's schema are there, registers the manifest where
    /// it may, and has all of them followed from then on by a task of `lifecycle`. What is waited for stands on the
    /// lifecycle's board. `process` is this process's name.
    ///
    /// # Errors
    /// A manifest that cannot be read where no name was given beside it; a URL that was given and is none.
    pub async fn new(
        place: &Place,
        process: &Arc<str>,
        postgres_connections: u32,
        lifecycle: &Lifecycle,
    ) -> anyhow::Result<Self> {
        // Until the pipeline is there nothing of this role moves: it is not ready.
        let _still = lifecycle.heartbeats.register(WAITING, Duration::ZERO);
        let mut start = Start {
            place,
            board: &lifecycle.board,
            name: place.given_name().map(str::to_owned),
            connections: postgres_connections,
            store: None,
        };
        let found = tokio::select! {
            found = start.wait() => found?,
            () = lifecycle.soft.cancelled() => bail!("stopped before the pipeline was ready"),
        };
        let Found { frame, urls, store, active_manifest } = found;
        let name: Arc<str> = frame.metadata.name.as_str().into();
        let streams = Streams::connect(&urls.redis, &name).context("the URL of Redis")?;
        let (sender, receiver) = watch::channel(active_manifest);
        let follower =
            Follower::new(place.clone(), frame, urls, store.clone(), streams.clone(), sender, lifecycle.board.clone());
        let heartbeat = lifecycle.heartbeats.register("manifest", Duration::from_secs(30));
        lifecycle.heartbeats.remove(WAITING);
        lifecycle.spawn("manifest", follower.run(heartbeat, lifecycle.soft.clone()));
        Ok(Self { store, streams, active_manifest: receiver, process: Arc::clone(process), name })
    }
}

/// The search for all that a role starts from.
struct Start<'a> {
    place: &'a Place,
    board: &'a Board,
    /// The pipeline's name, once it is known.
    name: Option<String>,
    connections: u32,
    /// Connected by the last URL that was read.
    store: Option<Store>,
}

struct Found {
    frame: RecordPipeline,
    urls: follow::Urls,
    store: Store,
    active_manifest: ActiveManifest,
}

/// Why there is nothing to start from.
enum Lack {
    /// Waited for.
    Problems(Vec<Problem>),
    /// Waiting does not help.
    Fatal(anyhow::Error),
}

impl From<Problem> for Lack {
    fn from(problem: Problem) -> Self {
        Self::Problems(vec![problem])
    }
}

impl Start<'_> {
    async fn wait(&mut self) -> anyhow::Result<Found> {
        let mut pause = Duration::from_millis(200);
        let mut said = Vec::new();
        loop {
            let problems = match self.attempt().await {
                Ok(found) => {
                    self.board.set(PART, []);
                    return Ok(found);
                }
                Err(Lack::Fatal(error)) => return Err(error),
                Err(Lack::Problems(problems)) => problems,
            };
            if problems != said {
                for Problem { reason, message } in &problems {
                    let pipeline = self.name.as_deref();
                    tracing::warn!(
                        event = "config.pipeline.waiting",
                        pipeline,
                        ?reason,
                        waiting = message,
                        "the process waits before it starts"
                    );
                }
                self.board.set(PART, problems.clone());
                said = problems;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(3));
        }
    }

    async fn attempt(&mut self) -> Result<Found, Lack> {
        // Read again each time: it may be fixed, or annotated, while it is waited.
        let manifest = self.place.manifest();
        self.board.manifest(self.place.metadata().as_ref());
        let manifest = match manifest {
            Ok(manifest) => {
                self.name = Some(manifest.metadata.name.clone());
                Ok(manifest)
            }
            Err(error) => Err(format!("{error:#}")),
        };
        let name = match (&manifest, &self.name) {
            (_, Some(name)) => name.clone(),
            (Ok(manifest), None) => manifest.metadata.name.clone(),
            (Err(why), None) => return Err(Lack::Fatal(anyhow::anyhow!(why.clone()))),
        };
        self.board.pipeline(&name);
        let urls = self.urls(manifest.as_ref().ok())?;
        let store = match &self.store {
            Some(store) => {
                store.redirect(&urls.postgres, &name).map_err(|error| of_postgres(&error))?;
                store.clone()
            }
            None => Store::connect(&urls.postgres, &name, self.connections).map_err(|error| of_postgres(&error))?,
        };
        self.store = Some(store.clone());
        // The pool would try such a connection again and again, and gives no reason.
        store.probe().await.map_err(|error| of_store(&store, &error))?;
        let begun = match manifest {
            Ok(manifest) => begin(manifest, &store).await,
            Err(why) => continue_with_stored(self.place, why, &store).await,
        };
        match begun {
            Ok((frame, newest, refusal)) => {
                self.board.active_policy(active_policy(&newest));
                self.board.set(FILE, refusal.as_ref().and_then(Refusal::problem));
                let mut active_manifest = ActiveManifest::new(&frame, newest.spec, newest.version, newest.pipeline_id);
                active_manifest.refusal = refusal.map(|refusal| refusal.why.into());
                Ok(Found { frame, urls, store, active_manifest })
            }
            Err(Missing::Problem(problem)) => Err(problem.into()),
            Err(Missing::Store(Error::Sql(sqlx::Error::PoolTimedOut))) => Err(silent(&store).await.into()),
            Err(Missing::Store(error)) => Err(cause(&store, &error).await.into()),
        }
    }

    fn urls(&self, manifest: Option<&RecordPipeline>) -> Result<follow::Urls, Lack> {
        let spec = manifest.map(|manifest| &manifest.spec);
        let mut problems = Vec::new();
        let mut taken = |server: &str, url: Result<Endpoint, SecretError>| match url {
            Ok(url) => Ok(url),
            Err(error) => match error.problem() {
                Some(problem) => {
                    problems.push(problem);
                    Ok(Endpoint::default())
                }
                None => Err(Lack::Fatal(anyhow::anyhow!("the URL of {server}: {error}"))),
            },
        };
        let redis = taken("Redis", self.place.redis(spec))?;
        let postgres = taken("Postgres", self.place.postgres(spec))?;
        if problems.is_empty() { Ok(follow::Urls { redis, postgres }) } else { Err(Lack::Problems(problems)) }
    }
}

/// Why a start has to wait.
enum Missing {
    Problem(Problem),
    Store(Error),
}

impl From<Error> for Missing {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

type Begun = (RecordPipeline, Newest, Option<Refusal>);

/// Offers the manifest, and gives what is active.
async fn begin(manifest: RecordPipeline, store: &Store) -> Result<Begun, Missing> {
    let Some(pipeline) = store.pipeline().await? else { return Err(Missing::Problem(not_migrated())) };
    pipeline.admits(&manifest)?;
    if let Some(why) = other_uid(&pipeline, &manifest) {
        return Err(Missing::Problem(Problem::new(Reason::UidNotClaimed, why)));
    }
    store.ensure_shards(pipeline.shards).await?;
    let registered = store.register(&offer(&manifest, false)).await?;
    say(&registered);
    let newest =
        store.newest().await?.ok_or_else(|| Error::Refused("the manifest has no version in Postgres".to_owned()))?;
    Ok((manifest, newest, Refusal::of(&registered)))
}

/// Returns the manifest that was active last, for a file that cannot be read.
async fn continue_with_stored(place: &Place, why: String, store: &Store) -> Result<Begun, Missing> {
    let Some(pipeline) = store.pipeline().await? else { return Err(Missing::Problem(not_migrated())) };
    let Some(newest) = store.newest().await? else {
        return Err(Missing::Problem(Problem::new(Reason::ManifestInvalid, why)));
    };
    // Even of a file that breaks rules it can be known whose it is.
    let metadata = place.metadata().unwrap_or_else(|| Metadata {
        name: pipeline.name.clone(),
        namespace: Some(pipeline.namespace.clone()),
        uid: (pipeline.uid != pipeline.pipeline_id).then(|| pipeline.uid.clone()),
        generation: Some(newest.generation),
        ..Metadata::default()
    });
    let frame = RecordPipeline {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        metadata,
        spec: newest.spec.clone(),
        status: None,
    };
    pipeline.admits(&frame)?;
    if let Some(why) = other_uid(&pipeline, &frame) {
        return Err(Missing::Problem(Problem::new(Reason::UidNotClaimed, why)));
    }
    store.ensure_shards(pipeline.shards).await?;
    tracing::warn!(
        event = "config.manifest.refused",
        why,
        active_manifest = newest.version,
        "the manifest is refused; the last accepted one stays active"
    );
    Ok((frame, newest, Some(Refusal { reason: Some(Reason::ManifestInvalid), why })))
}

pub(super) fn active_policy(newest: &Newest) -> ActivePolicy {
    ActivePolicy { version: newest.version, uid: newest.uid.clone(), generation: newest.generation }
}

/// Why a manifest's uid cannot work on the schema yet.
pub(super) fn other_uid(pipeline: &Pipeline, manifest: &RecordPipeline) -> Option<String> {
    let asked = (pipeline.uid_of(manifest), manifest.namespace());
    (asked != (pipeline.uid.as_str(), pipeline.namespace.as_str())).then(|| {
        let (name, was) = (&pipeline.name, &pipeline.uid);
        format!("the schema is claimed for uid {was}, the manifest of {name} has {}: run `millrace migrate` once its workers have stopped", asked.0)
    })
}

pub(super) fn offer(manifest: &RecordPipeline, changed: bool) -> Offer<'_> {
    Offer {
        uid: manifest.metadata.uid.as_deref(),
        generation: manifest.metadata.generation.unwrap_or(0),
        accept: manifest.annotation(millrace_crds::ACCEPT_GENERATION),
        spec: &manifest.spec,
        changed,
    }
}

/// Why a file's content is not active.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// The problem that it is; `None`: it is as it should be, such as an old file in a late pod.
    pub(super) reason: Option<Reason>,
    pub(super) why: String,
}

impl Refusal {
    /// After it was offered.
    pub(super) fn of(registered: &Registered) -> Option<Self> {
        let (reason, why) = match registered {
            Registered::AsNew(_) | Registered::Same(_) => return None,
            Registered::Passed(newest) => (None, format!("the file is older than version {newest}, which is active")),
            Registered::Differs(newest) => (
                None,
                format!(
                    "the file differs from version {newest}, which is active and has running workers: change the file \
                     while this process runs to make it the next version"
                ),
            ),
            Registered::Refused(why) => (Some(Reason::ManifestRefused), why.clone()),
        };
        Some(Self { reason, why })
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        self.reason.clone().map(|reason| Problem::new(reason, &self.why))
    }
}

/// Says in the log what became of an offer.
pub(super) fn say(registered: &Registered) {
    match (registered, Refusal::of(registered)) {
        (Registered::AsNew(version), _) => {
            tracing::info!(event = "config.manifest.registered", version, "registered a policy version")
        }
        (_, Some(Refusal { why, .. })) => tracing::warn!(
            event = "config.manifest.differs",
            why,
            "the manifest of this process differs from the active one"
        ),
        (_, None) => {}
    }
}

/// A name for a process, never given twice.
#[must_use]
pub fn process_name(role: &str) -> Arc<str> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".to_owned());
    format!("{role}-{}-{:08x}", host.trim(), rand::random::<u32>()).into()
}
