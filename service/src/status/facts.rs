//! The state of the pipeline in both servers, gathered for `/status`.
//!
//! Redis's backlog first, then Postgres, then the cursors: an entry that is applied in between counts as waiting, so an
//! empty backlog is never reported too early.

use std::{collections::HashMap, future::Future, time::Duration};

use millrace_crds::{
    Reason,
    status_api::{PipelineCounts, Problem, PublisherStatus, RedisDurability, ShardStatus},
};

use super::servers;
use crate::{
    board::{not_migrated, of_no_writes, of_store, of_streams, silent},
    config::Setup,
    domain::ShardId,
    publish::{SinkPosition, sink_lag, webhook_cursor},
    store::{self, Counts as Applied, SinkBeginning, SinkRow, Store, WebhookCursor},
    streams::{Backlog, Cursor},
};

/// Longest wait for each part.
const LONGEST: Duration = Duration::from_secs(2);

/// The gathered facts; absent: not available now.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) problems: Vec<Problem>,
    /// Records of each shard that are not applied.
    pub(super) backlog: Option<Vec<(ShardId, i64)>>,
    pub(super) shards: Option<Vec<ShardStatus>>,
    pub(super) sinks: Option<Vec<PublisherStatus>>,
    pub(super) counts: Option<PipelineCounts>,
    pub(super) redis_durability: Option<RedisDurability>,
}

/// State in Postgres.
struct Stored {
    applied: Applied,
    shard_states: Vec<ShardStatus>,
    states: Vec<PublisherStatus>,
    /// The sinks that are in the manifest, with where they began.
    sinks: Vec<(SinkRow, Option<SinkBeginning>)>,
    webhooks: Vec<WebhookCursor>,
}

/// Gathers all facts. Each part is bounded by [`LONGEST`]; a part that depends on one that failed is left out.
pub(super) async fn gather(setup: &Setup) -> Facts {
    let (mut facts, servers) = tokio::join!(of_pipeline(setup), bounded(servers::gather(setup)));
    if let Some((problems, redis_durability)) = servers {
        facts.problems.extend(problems);
        facts.redis_durability = redis_durability;
    }
    facts
}

async fn of_pipeline(setup: &Setup) -> Facts {
    let (shards, pipeline_id) = {
        let active_manifest = setup.active_manifest.borrow();
        (active_manifest.manifest.spec.shards, active_manifest.pipeline_id.to_string())
    };
    let mut facts = Facts::default();
    let backlog = async {
        let backlog = setup.streams.backlog(shards).await?;
        Ok((backlog, setup.streams.takes_no_writes().await?))
    };
    let backlog = match bounded(backlog).await {
        Some(Ok((backlog, refusal))) => {
            facts.problems.extend(refusal.map(|why| Problem::new(Reason::RedisReadOnlyOrFull, why)));
            facts.problems.extend(external_stream(&backlog, &pipeline_id));
            facts.backlog = Some(backlog.iter().map(|shard| (shard.shard, shard.records())).collect());
            Some(backlog)
        }
        Some(Err(error)) => facts.lacks(of_streams(&setup.streams, &error)),
        None => facts.lacks(Problem::new(Reason::RedisUnreachable, "it did not answer within 2 s")),
    };
    // Before tables are read: one of them may be locked.
    // The parts below report a Postgres that does not answer.
    if let Some(Ok(Some(why))) = bounded(setup.store.takes_no_writes()).await {
        facts.problems.push(of_no_writes(why));
    }
    let stored = match bounded(stored(&setup.store, &pipeline_id)).await {
        Some(Ok(stored)) => Some(stored),
        Some(Err(Lack::Problem(problem))) => facts.lacks(problem),
        Some(Err(Lack::Store(error))) => facts.lacks(of_store(&setup.store, &error)),
        None => facts.lacks(silent(&setup.store).await),
    };
    let Some(stored) = stored else { return facts };
    if let Some(backlog) = backlog {
        let streams: Vec<String> = stored.sinks.iter().filter_map(|(row, _)| row.stream.clone()).collect();
        let published = async {
            let cursors =
                setup.streams.sink_cursors(&streams).await.map_err(|error| of_streams(&setup.streams, &error))?;
            let external = external_cursor(&streams, &cursors, &pipeline_id);
            let cursors: HashMap<String, Cursor> = streams.iter().cloned().zip(cursors).collect();
            let behind = unpublished(&setup.store, &stored, &cursors, &pipeline_id).await;
            Ok((behind.map_err(|error| of_store(&setup.store, &error))?, external))
        };
        match bounded(published).await {
            Some(Ok((unpublished, external))) => {
                facts.problems.extend(external);
                facts.counts = Some(counts(&stored.applied, &backlog, unpublished));
            }
            Some(Err(problem)) => facts.problems.push(problem),
            None => {
                facts.problems.push(Problem::new(Reason::RedisUnreachable, "it did not return the cursors within 2 s"))
            }
        }
    }
    facts.shards = Some(stored.shard_states);
    facts.sinks = Some(stored.states);
    facts
}

impl Facts {
    /// Adds the problem that explains an absent fact.
    fn lacks<T>(&mut self, problem: Problem) -> Option<T> {
        self.problems.push(problem);
        None
    }
}

async fn bounded<T>(part: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(LONGEST, part).await.ok()
}

/// Why the state in Postgres is missing.
enum Lack {
    Problem(Problem),
    Store(store::Error),
}

impl From<store::Error> for Lack {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

async fn stored(store: &Store, pipeline_id: &str) -> Result<Stored, Lack> {
    match store.pipeline().await? {
        None => return Err(Lack::Problem(not_migrated())),
        Some(pipeline) if pipeline.pipeline_id != pipeline_id => {
            return Err(Lack::Problem(Problem::new(
                Reason::OtherPipeline,
                format!(
                    "the database is now pipeline {}'s; this process works for {pipeline_id}",
                    pipeline.pipeline_id
                ),
            )));
        }
        Some(_) => {}
    }
    let applied = store.stats().await?;
    let shard_states = store.shard_states().await?;
    let states = store.sink_states().await?;
    let webhooks = store.webhook_cursors().await?;
    let mut beginnings = store.sink_beginnings().await?;
    let rows = store.sinks().await?.into_iter().filter(|row| !row.removed);
    let sinks = rows.map(|row| {
        let at = beginnings.iter().position(|beginning| beginning.name == row.name);
        let beginning = at.map(|at| beginnings.swap_remove(at));
        (row, beginning)
    });
    Ok(Stored { applied, shard_states, states, sinks: sinks.collect(), webhooks })
}

/// The highest lag of a sink, over all shards.
async fn unpublished(
    store: &Store,
    stored: &Stored,
    cursors: &HashMap<String, Cursor>,
    pipeline_id: &str,
) -> Result<i64, store::Error> {
    let mut most = 0;
    for (row, beginning) in &stored.sinks {
        let cursor = match &row.stream {
            Some(stream) => cursors.get(stream).cloned(),
            None => Some(webhook_cursor(&stored.webhooks, &row.name, pipeline_id)),
        };
        let sink = SinkPosition { kind: row.kind, beginning: beginning.as_ref(), cursor: cursor.as_ref() };
        let lag = sink_lag(store, &stored.applied.shards, sink, pipeline_id).await?;
        most = most.max(lag.values().sum());
    }
    Ok(most)
}

fn counts(applied: &Applied, backlog: &[Backlog], unpublished: i64) -> PipelineCounts {
    PipelineCounts {
        backlog: backlog.iter().map(|shard| shard.records().unsigned_abs()).sum(),
        unpublished,
        processed: applied.shards.iter().map(|shard| shard.processed).sum(),
        alerts: applied.shards.iter().map(|shard| shard.alerts).sum(),
        dead_letters: applied.dead_letters_open,
        lost: applied.shards.iter().map(|shard| shard.lost).sum(),
    }
}

/// A problem when an input stream belongs to another pipeline.
fn external_stream(backlog: &[Backlog], pipeline_id: &str) -> Option<Problem> {
    let external: Vec<(ShardId, &String)> = backlog
        .iter()
        .filter_map(|shard| Some((shard.shard, shard.pipeline_id.as_ref().filter(|id| *id != pipeline_id)?)))
        .collect();
    let (shard, id) = external.first()?;
    let message = format!(
        "in Redis the input streams of {} shards, such as that of shard {shard}, belong to the pipeline with id {id}: use \
         another name or Redis, or take them over with the annotation {}: {id}",
        external.len(),
        millrace_crds::ADOPT,
    );
    Some(Problem::new(Reason::OtherPipeline, message))
}

/// A problem when the stream of a sink belongs to another pipeline.
fn external_cursor(streams: &[String], cursors: &[Cursor], pipeline_id: &str) -> Option<Problem> {
    let (stream, id) = streams
        .iter()
        .zip(cursors)
        .find_map(|(stream, cursor)| Some((stream, cursor.pipeline_id.as_ref().filter(|id| *id != pipeline_id)?)))?;
    let adopt = millrace_crds::ADOPT;
    Some(Problem::new(
        Reason::OtherPipeline,
        format!(
            "the sink's stream {stream} belongs to the pipeline with id {id}: name another stream, or take it over with the \
             annotation {adopt}: {id}"
        ),
    ))
}
