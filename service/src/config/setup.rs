//! The start of a role: find the pipeline in Postgres, and know what is in force.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use millrace_crds::RecordPipeline;
use tokio::sync::watch;

use super::{
    InForce, Place,
    follow::{self, Follower},
};
use crate::{
    lifecycle::Lifecycle,
    store::{Error, Offer, Pipeline, Registered, Store},
    streams::Streams,
};

/// What stands still until the pipeline is there.
const WAITING: &str = "waiting for the pipeline";

/// What a role starts from.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The manifest that is in force, followed.
    pub in_force: watch::Receiver<InForce>,
    /// This process's name: never used by another, nor by this one after a restart.
    pub process: Arc<str>,
    /// The pipeline's name.
    pub name: Arc<str>,
}

impl Setup {
    /// Connects, waits with back-off until the pipeline's schema is there, registers the manifest where it may, and has
    /// both followed from then on by a task of `lifecycle`.
    ///
    /// # Errors
    /// A wrong manifest or URL, or a schema that is another pipeline's. A server that is away is waited for.
    pub async fn new(
        place: &Place,
        role: &'static str,
        postgres_connections: u32,
        lifecycle: &Lifecycle,
    ) -> anyhow::Result<Self> {
        let manifest = place.manifest()?;
        let name: Arc<str> = manifest.metadata.name.as_str().into();
        let urls = follow::Urls { redis: place.redis_url()?, postgres: place.postgres_url()? };
        let store = Store::connect(&urls.postgres, &name, postgres_connections).context("the URL of Postgres")?;
        let streams = Streams::connect(&urls.redis, &name).context("the URL of Redis")?;
        // Until the pipeline is there nothing of this role moves: it is not ready.
        let _still = lifecycle.vitals.register(WAITING, Duration::ZERO);
        let in_force = tokio::select! {
            in_force = first(place, &manifest, &store) => in_force?,
            () = lifecycle.soft.cancelled() => bail!("stopped before the pipeline was ready"),
        };
        let (sender, receiver) = watch::channel(in_force);
        let follower = Follower::new(place.clone(), manifest, urls, store.clone(), sender);
        let beat = lifecycle.vitals.register("manifest", Duration::from_secs(30));
        lifecycle.vitals.forget(WAITING);
        lifecycle.spawn("manifest", follower.run(beat, lifecycle.soft.clone()));
        Ok(Self { store, streams, in_force: receiver, process: process_name(role).into(), name })
    }
}

/// Waits for the schema, offers the manifest, and gives what is in force.
async fn first(place: &Place, manifest: &RecordPipeline, store: &Store) -> anyhow::Result<InForce> {
    let mut pause = Duration::from_millis(200);
    let mut said = String::new();
    loop {
        let waiting = match attempt(manifest, store).await {
            Ok(Attempt::There(in_force)) => return Ok(*in_force),
            Ok(Attempt::NotYet(why)) => why,
            Err(error @ Error::Refused(_)) => bail!(error),
            Err(error) => error.to_string(),
        };
        if waiting != said {
            let file = place.pipeline.display();
            tracing::warn!(pipeline = manifest.metadata.name, %file, waiting, "config.pipeline.waiting");
            said = waiting;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}

enum Attempt {
    There(Box<InForce>),
    NotYet(String),
}

async fn attempt(manifest: &RecordPipeline, store: &Store) -> Result<Attempt, Error> {
    let Some(pipeline) = store.pipeline().await? else {
        return Ok(Attempt::NotYet("the pipeline's schema is not there: run `millrace migrate`".to_owned()));
    };
    pipeline.admits(manifest)?;
    if let Some(why) = other_uid(&pipeline, manifest) {
        return Ok(Attempt::NotYet(why));
    }
    store.ensure_shards(pipeline.shards).await?;
    let registered = store.register(&offer(manifest, false)).await?;
    let refusal = refusal(&registered);
    say(&registered);
    let newest =
        store.newest().await?.ok_or_else(|| Error::Refused("the manifest has no version in Postgres".to_owned()))?;
    let mut in_force = InForce::new(manifest, newest.spec, newest.version, newest.pipeline_id);
    in_force.refusal = refusal.map(Into::into);
    Ok(Attempt::There(Box::new(in_force)))
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

/// Why a file's content is not in force after it was offered.
pub(super) fn refusal(registered: &Registered) -> Option<String> {
    match registered {
        Registered::AsNew(_) | Registered::Same(_) => None,
        Registered::Passed(newest) => Some(format!("the file is older than version {newest}, which is in force")),
        Registered::Differs(newest) => Some(format!(
            "the file differs from version {newest}, which is in force as workers are running: change the file while this \
             process runs to make it the next version"
        )),
        Registered::Refused(why) => Some(why.clone()),
    }
}

/// Says in the log what became of an offer.
pub(super) fn say(registered: &Registered) {
    match (registered, refusal(registered)) {
        (Registered::AsNew(version), _) => tracing::info!(version, "config.manifest.registered"),
        (_, Some(why)) => tracing::warn!(why, "config.manifest.not_in_force"),
        (_, None) => {}
    }
}

fn process_name(role: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".to_owned());
    format!("{role}-{}-{:08x}", host.trim(), rand::random::<u32>())
}
