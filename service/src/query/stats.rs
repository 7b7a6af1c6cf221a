//! `GET /stats`: counts that add up, how far everything is behind, and what the servers promise.

use std::{collections::HashMap, time::Instant};

use millrace_crds::SinkEvent;
use poem::web::Data;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;

use super::{Tags, answer::Answer, types::Time};
use crate::{
    http::{App, auth::Reader, problem::Failure},
    store::{Counts, ShardCounts},
    streams::Backlog,
    telemetry::limits,
};

/// Entries of a shard that are not applied.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct ShardBacklog {
    /// Entries that no worker has taken yet.
    pub queued: u64,
    /// Entries that a worker has taken and not applied.
    pub pending: u64,
    /// Age of the oldest of them in milliseconds.
    pub lag_ms: u64,
}

/// One shard.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShardStats {
    /// The shard.
    pub shard: i32,
    /// The worker that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Version of the policy it is worked by.
    pub policy_version: i64,
    /// Records processed.
    pub processed: i64,
    /// Entries that are not applied; absent while Redis cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<ShardBacklog>,
}

/// One sink of the manifest.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct SinkStats {
    /// Its name.
    pub name: String,
    /// What it carries: Processed, Alert, DeadLettered or Conflicted.
    pub event: String,
    /// Its Redis stream; absent for another kind of sink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Whether its position was made.
    pub started: bool,
    /// Outcomes that it has yet to carry, over all shards; absent while Redis cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// The same by shard, those without lag left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_per_shard: Option<std::collections::BTreeMap<String, i64>>,
    /// What its publishers say of themselves; empty: all run.
    pub states: Vec<PublisherState>,
}

/// A publisher that does not run.
#[derive(Debug, Clone, Object, Serialize)]
pub(super) struct PublisherState {
    /// The shard.
    pub shard: u16,
    /// `waiting`: for a consumer group; `failing`: tries again; `halted`: until `millrace sinks resume`.
    pub state: String,
    /// Why, and what to do.
    pub detail: String,
}

/// Dead letters by state.
#[derive(Debug, Clone, Object, Serialize)]
pub(super) struct DeadLetterCounts {
    /// They take their ids, and wait for a person.
    pub open: i64,
    /// Given up.
    pub discarded: i64,
    /// Decided again.
    pub replayed: i64,
}

/// What Redis promises; `unknown` where it does not tell.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct RedisStats {
    /// Whether it keeps a log on disk.
    pub appendonly: String,
    /// When that log is flushed; `always`: before an append is answered.
    pub appendfsync: String,
    /// `noeviction`: it never drops what was appended.
    pub maxmemory_policy: String,
    /// Its version.
    pub version: String,
}

/// What Postgres promises.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct PostgresStats {
    /// Whether a commit is on disk when it is answered.
    pub synchronous_commit: String,
    /// Whether it flushes at all.
    pub fsync: String,
    /// Whether torn pages can be repaired.
    pub full_page_writes: String,
    /// Its version.
    pub version: String,
}

/// Counts over the whole life of the pipeline, and how far everything is behind.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    /// When this was read, by Postgres's clock.
    pub as_of: Time,
    /// processed + duplicates + conflicts + dead letters that are open or discarded + backlog + lost; exact while no replay
    /// is queued. Absent while Redis cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<i64>,
    /// Records that count.
    pub processed: i64,
    /// Entries whose id was taken by the same content.
    pub duplicates: i64,
    /// Entries whose id was taken by other content.
    pub conflicts: i64,
    /// Entries that could not be applied.
    pub dead_letters: DeadLetterCounts,
    /// Records above their threshold.
    pub alerts: i64,
    /// Records that raised no alert because their unit has no threshold while other units have one: the unit may be
    /// misspelt. `GET /records/rollups?groupBy=unit` shows all units.
    pub records_without_threshold: i64,
    /// Entries that are not applied; absent while Redis cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<i64>,
    /// Age of the oldest entry that is not applied, in milliseconds; absent while Redis cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// Entries that were taken and are neither applied nor queued: the least that was lost.
    pub lost: i64,
    /// The most that was lost; absent while it is not known: a serve process died without its final count and Redis may
    /// have been rewound, or Redis or the shards' workers cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_at_most: Option<i64>,
    /// How often an input stream or its consumer group was gone.
    pub recreated_streams: i64,
    /// Destinations that have records.
    pub destinations: i64,
    /// Version of the policy active in this process.
    pub policy_version: i64,
    /// Seconds since the pipeline was made.
    pub uptime_seconds: i64,
    /// Seconds since the process that answers began to.
    pub process_uptime_seconds: u64,
    /// Each shard, in order.
    pub shards: Vec<ShardStats>,
    /// Each sink of the manifest, in its order.
    pub sinks: Vec<SinkStats>,
    /// What Redis promises; absent while it cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisStats>,
    /// What Postgres promises.
    pub postgres: PostgresStats,
    /// Why something is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Statistics.
#[derive(Debug, Clone)]
pub struct StatsApi {
    /// When this process began to answer.
    began: Instant,
}

impl Default for StatsApi {
    fn default() -> Self {
        Self { began: Instant::now() }
    }
}

#[OpenApi(tag = "Tags::Audit")]
impl StatsApi {
    /// Counts, backlog and lag
    ///
    /// Read from the servers, so it is true across restarts and replicas. While Redis cannot be asked, what depends on it
    /// is absent and `missing` says so.
    #[oai(path = "/stats", method = "get", operation_id = "getStats")]
    async fn stats(&self, app: Data<&App>, _reader: Reader) -> Result<Answer<Stats>, Failure> {
        let app = app.0;
        let shards = app.manifest.borrow().manifest.spec.shards;
        let policy_version = app.manifest.borrow().policy.version;
        // Redis first: what is beside its streams tells what had been applied then, so that no entry is counted twice
        // or not at all, whatever is applied in between.
        let backlog = app.streams.backlog(shards).await;
        let counts = app.store.stats().await?;
        let backlog = backlog.inspect_err(|error| {
            if limits::BACKLOG_FAILED.allows(Instant::now()) {
                tracing::warn!(event = "query.backlog.failed", %error, "the backlog cannot be read");
            }
        });
        let backlog = backlog.ok();
        let (sinks, promises) = match &backlog {
            Some(_) => (sinks(app, &counts).await?, app.streams.promises().await.ok()),
            None => (sinks_without_redis(app).await?, None),
        };
        let postgres = app.store.postgres_promises().await?;
        let destinations = app.store.count_destinations().await?;
        let sum = |count: fn(&ShardCounts) -> i64| counts.shards.iter().map(count).sum::<i64>();
        let unapplied = backlog.as_ref().map(|backlog| unapplied(&counts, backlog));
        let dead_letters = counts.dead_letters_open + counts.dead_letters_discarded;
        let (processed, duplicates, lost) =
            (sum(|shard| shard.processed), sum(|shard| shard.duplicates), sum(|shard| shard.lost));
        let uptime = counts.created_at.map(|since| counts.now - since);
        Ok(Answer(Stats {
            as_of: Time(counts.now),
            received: unapplied
                .map(|backlog| processed + duplicates + counts.conflicts + dead_letters + backlog + lost),
            processed,
            duplicates,
            conflicts: counts.conflicts,
            dead_letters: DeadLetterCounts {
                open: counts.dead_letters_open,
                discarded: counts.dead_letters_discarded,
                replayed: counts.dead_letters_replayed,
            },
            alerts: sum(|shard| shard.alerts),
            records_without_threshold: sum(|shard| shard.without_threshold),
            backlog: unapplied,
            lag_ms: backlog.as_ref().map(|backlog| backlog.iter().map(|shard| shard.lag_ms).max().unwrap_or(0)),
            lost,
            lost_at_most: backlog.as_ref().and_then(|backlog| lost_at_most(&counts, backlog)),
            recreated_streams: sum(|shard| shard.recreated_streams),
            destinations,
            policy_version,
            uptime_seconds: uptime.map_or(0, |uptime| uptime.num_seconds()),
            process_uptime_seconds: self.began.elapsed().as_secs(),
            shards: counts.shards.iter().map(|shard| shard_stats(shard, backlog.as_deref())).collect(),
            sinks,
            missing: backlog.is_none().then(|| "Redis cannot be asked now: received, backlog and lags".to_owned()),
            redis: promises.map(|redis| RedisStats {
                appendonly: redis.appendonly,
                appendfsync: redis.appendfsync,
                maxmemory_policy: redis.maxmemory_policy,
                version: redis.version,
            }),
            postgres: PostgresStats {
                synchronous_commit: postgres.synchronous_commit,
                fsync: postgres.fsync,
                full_page_writes: postgres.full_page_writes,
                version: postgres.version,
            },
        }))
    }
}

/// Entries that are committed and not acknowledged yet: they stand in both servers.
fn in_flight(counts: &Counts, backlog: &[Backlog]) -> i64 {
    backlog
        .iter()
        .filter_map(|shard| {
            let counted = counts.shards.iter().find(|counted| counted.shard == i32::from(shard.shard))?;
            let applied = counted.records + counted.dead_letters + counted.conflicts + counted.duplicates;
            let Some(committed) = shard.committed else {
                // Nothing was acknowledged yet; or what was beside the stream is gone, and with it the measure.
                return Some(applied).filter(|first| *first <= shard.pending as i64);
            };
            let acknowledged = committed.records + committed.dead_letters + committed.conflicts + committed.duplicates;
            // What was applied since Redis was asked was still queued then.
            Some((applied - acknowledged).clamp(0, (shard.pending + shard.queued) as i64))
        })
        .sum()
}

/// Entries that only Redis has.
fn unapplied(counts: &Counts, backlog: &[Backlog]) -> i64 {
    let entries: u64 = backlog.iter().map(|shard| shard.queued + shard.pending).sum();
    entries as i64 - in_flight(counts, backlog)
}

/// The most that was lost, over all shards.
fn lost_at_most(counts: &Counts, backlog: &[Backlog]) -> Option<i64> {
    let most = |shard: &Backlog| {
        let least = counts.shards.iter().find(|counted| counted.shard == i32::from(shard.shard))?.lost;
        shard.lost_at_most.map(|most| most.max(least))
    };
    backlog.iter().map(most).sum()
}

fn shard_stats(shard: &ShardCounts, backlog: Option<&[Backlog]>) -> ShardStats {
    let backlog = backlog.and_then(|all| all.iter().find(|backlog| i32::from(backlog.shard) == shard.shard));
    ShardStats {
        shard: shard.shard,
        worker: shard.owner.clone(),
        policy_version: shard.policy_version,
        processed: shard.processed,
        backlog: backlog.map(|backlog| ShardBacklog {
            queued: backlog.queued,
            pending: backlog.pending,
            lag_ms: backlog.lag_ms,
        }),
    }
}

async fn sinks_without_redis(app: &App) -> Result<Vec<SinkStats>, Failure> {
    let started = app.store.sink_beginnings().await?;
    let states = app.store.sink_states().await?;
    let manifest = app.manifest.borrow().manifest.clone();
    let stats = manifest.spec.sinks.iter().map(|sink| SinkStats {
        name: sink.name.clone(),
        event: format!("{:?}", sink.event),
        stream: sink.stream(&manifest.metadata.name),
        started: started.iter().any(|state| state.name == sink.name && state.started && !state.removed),
        lag: None,
        lag_per_shard: None,
        states: states
            .iter()
            .filter(|(name, ..)| *name == sink.name)
            .map(|(_, shard, state, detail)| PublisherState {
                shard: *shard,
                state: state.clone(),
                detail: detail.clone(),
            })
            .collect(),
    });
    Ok(stats.collect())
}

async fn sinks(app: &App, counts: &Counts) -> Result<Vec<SinkStats>, Failure> {
    let mut sinks = sinks_without_redis(app).await?;
    let started = app.store.sink_beginnings().await?;
    let manifest = app.manifest.borrow().manifest.clone();
    let streams: Vec<String> = sinks.iter().filter_map(|sink| sink.stream.clone()).collect();
    let Ok(cursors) = app.streams.cursors(&streams).await else { return Ok(sinks) };
    let cursors: HashMap<&String, _> = streams.iter().zip(cursors).collect();
    for sink in &mut sinks {
        let Some(cursor) = sink.stream.as_ref().and_then(|stream| cursors.get(stream)) else { continue };
        let Some(event) = manifest.spec.sinks.iter().find(|known| known.name == sink.name).map(|known| known.event)
        else {
            continue;
        };
        let state = started.iter().find(|state| state.name == sink.name);
        // Without a cursor it stands where it began.
        let at = |shard: i32| {
            let begins = state.and_then(|state| state.begins_after(shard)).unwrap_or(0);
            cursor.get(&shard).copied().unwrap_or(begins).max(begins)
        };
        let lags: Vec<(i32, i64)> = if event == SinkEvent::Alert {
            let (shards, numbers): (Vec<i32>, Vec<i64>) =
                counts.shards.iter().map(|shard| (shard.shard, at(shard.shard))).unzip();
            app.store.alerts_above(&shards, &numbers).await?
        } else {
            let highest = |shard: &ShardCounts| match event {
                SinkEvent::Processed | SinkEvent::Alert => shard.records,
                SinkEvent::DeadLettered => shard.dead_letters,
                SinkEvent::Conflicted => shard.conflicts,
            };
            counts.shards.iter().map(|shard| (shard.shard, (highest(shard) - at(shard.shard)).max(0))).collect()
        };
        sink.lag = Some(lags.iter().map(|(_, lag)| lag).sum());
        let behind = lags.into_iter().filter(|(_, lag)| *lag > 0);
        sink.lag_per_shard = Some(behind.map(|(shard, lag)| (shard.to_string(), lag)).collect());
    }
    Ok(sinks)
}
