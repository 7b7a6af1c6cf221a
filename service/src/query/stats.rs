//! `GET /stats`: counts that add up, lags, and the durability settings of the servers.

use std::{collections::HashMap, sync::Arc, time::Instant};

use poem::web::Data;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;

use super::{Tags, answer::Answer, types::Time};
use crate::{
    domain::{OutcomeKind, ShardId},
    http::{App, auth::ReaderOfAll, problem::Failure},
    publish::{SinkPosition, sink_lag, webhook_cursor},
    store::{Counts, RollupState, ShardCounts, StoredVerifyRun},
    streams::{Backlog, RedisPromises},
    telemetry::limits,
};

/// The backlog of a shard.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct ShardBacklog {
    /// Records that are not applied yet.
    pub records: i64,
    /// Age of the oldest of their entries in milliseconds.
    pub lag_ms: u64,
}

/// One shard.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShardStats {
    /// The shard.
    pub shard: u16,
    /// The worker that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The policy version that the shard runs.
    pub policy_version: i64,
    /// Number of processed records.
    pub processed: i64,
    /// Its backlog; absent while Redis is unavailable.
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
    /// The outcomes that it carries: Processed, Alert, DeadLettered or Conflicted.
    pub event: String,
    /// Its Redis stream; absent for another kind of sink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Whether its cursor was created.
    pub started: bool,
    /// Whether everything before its `until` was published: it publishes nothing more.
    pub complete: bool,
    /// Outcomes that it has not published yet, over all shards; absent while Redis is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// The same per shard; shards without lag are omitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_per_shard: Option<std::collections::BTreeMap<String, i64>>,
    /// Its publishers that do not run; empty: all run.
    pub states: Vec<PublisherState>,
}

/// A publisher that does not run.
#[derive(Debug, Clone, Object, Serialize)]
pub(super) struct PublisherState {
    /// The shard.
    pub shard: u16,
    /// `waiting`: for a consumer group, or because too many deliveries wait; `failing`: it retries; `halted` and `disabled`:
    /// until `millrace sinks resume`.
    pub state: String,
    /// The cause, and what to do.
    pub detail: String,
}

/// Dead letters by state.
#[derive(Debug, Clone, Object, Serialize)]
pub(super) struct DeadLetterCounts {
    /// They have their ids, and wait for a replay or discard.
    pub open: i64,
    /// Discarded.
    pub discarded: i64,
    /// Closed by a replay.
    pub replayed: i64,
}

/// A declared rollup.
#[derive(Debug, Clone, Object, Serialize)]
pub(super) struct RollupStats {
    /// Its name.
    pub name: String,
    /// Whether queries use it.
    pub complete: bool,
    /// Most stored records that are still to be added to it; 0 while no shard runs the policy version that declared it.
    pub unbuilt: i64,
}

/// The durability settings of Redis; `unknown` if it does not return one.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct RedisStats {
    /// Whether it writes an append-only file.
    pub appendonly: String,
    /// When it flushes that file; `always`: before it confirms an append.
    pub appendfsync: String,
    /// `noeviction`: it never evicts entries.
    pub maxmemory_policy: String,
    /// Its version; of Valkey, `valkey` and the version.
    pub version: String,
}

/// The durability settings of Postgres.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct PostgresStats {
    /// Whether a commit is on disk when Postgres confirms it.
    pub synchronous_commit: String,
    /// Whether it flushes to disk at all.
    pub fsync: String,
    /// Whether it can repair torn pages.
    pub full_page_writes: String,
    /// Its version.
    pub version: String,
}

/// A run of `millrace verify`.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct VerifyStats {
    /// When it began.
    pub started_at: Time,
    /// When it ended.
    pub ended_at: Time,
    /// The shards that it compared; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<Vec<u16>>,
    /// It compared what was processed since then; absent: everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Number of records that it compared.
    pub records: i64,
    /// Number of differences; absent: it could not compare everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<i64>,
}

impl From<StoredVerifyRun> for VerifyStats {
    fn from(run: StoredVerifyRun) -> Self {
        Self {
            started_at: Time(run.started_at),
            ended_at: Time(run.ended_at),
            shards: run.shards.map(|shards| shards.into_iter().map(ShardId::get).collect()),
            since: run.since.map(Time),
            records: run.records,
            differences: run.differences,
        }
    }
}

/// Counts since the pipeline was created, and lags.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    /// When the counts were read, by Postgres's clock.
    pub as_of: Time,
    /// processed + duplicates + conflicts + dead letters that are open or discarded + backlog + lost; exact while no
    /// replay is queued. Absent while Redis is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<i64>,
    /// Processed records.
    pub processed: i64,
    /// Records that were dropped because the same content had their id.
    pub duplicates: i64,
    /// Records that were refused because other content had their id.
    pub conflicts: i64,
    /// Records that could not be applied, and entries that hold none.
    pub dead_letters: DeadLetterCounts,
    /// Records above their threshold.
    pub alerts: i64,
    /// Records that raised no alert because their unit has no threshold although other units have one: the unit may be
    /// misspelt. `GET /records/rollups?groupBy=unit` lists all units.
    pub records_without_threshold: i64,
    /// Records that are not applied; absent while Redis is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<i64>,
    /// Age of the oldest entry that is not applied, in milliseconds; absent while Redis is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// Accepted records that are neither applied nor queued.
    pub lost: i64,
    /// Whether more records can be lost than `lost`: a serve process died without its last count while Redis was rewound.
    /// `POST /losses/acknowledge` sets it to false.
    pub loss_uncertain: bool,
    /// How often a worker recreated a missing input stream or consumer group.
    pub recreated_streams: i64,
    /// Destinations that have records.
    pub destinations: i64,
    /// The policy version that is active in this process.
    pub policy_version: i64,
    /// Seconds since the pipeline was created.
    pub uptime_seconds: i64,
    /// Seconds since this process started.
    pub process_uptime_seconds: u64,
    /// Each shard, in order.
    pub shards: Vec<ShardStats>,
    /// Each sink of the manifest, in its order.
    pub sinks: Vec<SinkStats>,
    /// Each declared rollup, by name.
    pub rollups: Vec<RollupStats>,
    /// The last run of `millrace verify`; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyStats>,
    /// The durability settings of Redis; absent while it is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisStats>,
    /// The durability settings of Postgres.
    pub postgres: PostgresStats,
    /// Why fields are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Statistics.
#[derive(Debug, Clone)]
pub struct StatsApi {
    /// When this process started.
    started: Instant,
}

impl Default for StatsApi {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

#[OpenApi(tag = "Tags::Audit")]
impl StatsApi {
    /// Counts, backlog and lag
    ///
    /// The counts come from the servers, so they cover restarts and all replicas. While Redis is unavailable, the
    /// fields that depend on it are absent and `missing` names them.
    #[oai(path = "/stats", method = "get", operation_id = "getStats")]
    async fn stats(&self, app: Data<&App>, _reader: ReaderOfAll) -> Result<Answer<Stats>, Failure> {
        let app = app.0;
        let shards = app.manifest.borrow().manifest.spec.shards;
        let policy_version = app.manifest.borrow().policy.version;
        // Redis first: a record that is applied between the two reads is above no offset that Postgres returns. So each
        // record counts exactly once.
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
        let unapplied =
            backlog.as_ref().map(|backlog| counts.shards.iter().map(|shard| unapplied(shard, backlog)).sum::<i64>());
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
            loss_uncertain: counts.shards.iter().any(|shard| shard.loss_uncertain_since.is_some()),
            recreated_streams: sum(|shard| shard.recreated_streams),
            destinations,
            policy_version,
            uptime_seconds: uptime.map_or(0, |uptime| uptime.num_seconds()),
            process_uptime_seconds: self.started.elapsed().as_secs(),
            shards: counts.shards.iter().map(|shard| shard_stats(shard, backlog.as_deref())).collect(),
            sinks,
            rollups: rollups(app).await?,
            verify: app.store.last_verify_run().await?.map(VerifyStats::from),
            missing: backlog
                .is_none()
                .then(|| "Redis is unavailable now: received, backlog and lags are missing".to_owned()),
            redis: promises.map(|promises| {
                let RedisPromises { appendonly, appendfsync, maxmemory_policy, version } = promises;
                RedisStats { appendonly, appendfsync, maxmemory_policy, version }
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

/// Number of records of a shard that are not applied. Records that were applied after the read of Redis do not count.
fn unapplied(shard: &ShardCounts, backlog: &[Backlog]) -> i64 {
    backlog.iter().find(|backlog| backlog.shard == shard.shard).map_or(0, |backlog| backlog.above(shard.accounted))
}

fn shard_stats(shard: &ShardCounts, backlog: Option<&[Backlog]>) -> ShardStats {
    let backlog = backlog.and_then(|all| all.iter().find(|backlog| backlog.shard == shard.shard));
    ShardStats {
        shard: shard.shard.get(),
        worker: shard.owner.clone(),
        policy_version: shard.policy_version,
        processed: shard.processed,
        backlog: backlog
            .map(|backlog| ShardBacklog { records: backlog.above(shard.accounted), lag_ms: backlog.lag_ms }),
    }
}

async fn rollups(app: &App) -> Result<Vec<RollupStats>, Failure> {
    let states = app.store.rollup_states().await?.into_iter();
    Ok(states.map(|RollupState { name, complete, unbuilt, .. }| RollupStats { name, complete, unbuilt }).collect())
}

async fn sinks_without_redis(app: &App) -> Result<Vec<SinkStats>, Failure> {
    let started = app.store.sink_beginnings().await?;
    let states = app.store.sink_states().await?;
    let manifest = app.manifest.borrow().manifest.clone();
    let stats = manifest.spec.sinks.iter().map(|sink| SinkStats {
        name: sink.name.clone(),
        event: OutcomeKind::from(sink.event).as_str().to_owned(),
        stream: sink.stream(&manifest.metadata.name),
        started: started.iter().any(|state| state.name == sink.name && state.started && !state.removed),
        complete: started.iter().any(|state| state.name == sink.name && state.completed && !state.removed),
        lag: None,
        lag_per_shard: None,
        states: states
            .iter()
            .filter(|status| status.sink == sink.name)
            .map(|status| PublisherState {
                shard: status.shard,
                state: status.state.as_str().to_owned(),
                detail: status.detail.clone(),
            })
            .collect(),
    });
    Ok(stats.collect())
}

async fn sinks(app: &App, counts: &Counts) -> Result<Vec<SinkStats>, Failure> {
    let mut sinks = sinks_without_redis(app).await?;
    let started = app.store.sink_beginnings().await?;
    let webhooks = app.store.webhook_cursors().await?;
    let manifest = app.manifest.borrow().manifest.clone();
    let streams: Vec<String> = sinks.iter().filter_map(|sink| sink.stream.clone()).collect();
    let Ok(cursors) = app.streams.sink_cursors(&streams).await else { return Ok(sinks) };
    let cursors: HashMap<&String, _> = streams.iter().zip(&cursors).collect();
    let pipeline_id = Arc::clone(&app.manifest.borrow().pipeline_id);
    for sink in &mut sinks {
        let cursor = match &sink.stream {
            Some(stream) => cursors.get(stream).map(|cursor| (*cursor).clone()),
            None => Some(webhook_cursor(&webhooks, &sink.name, &pipeline_id)),
        };
        let Some(cursor) = cursor else { continue };
        let Some(declared) = manifest.spec.sinks.iter().find(|declared| declared.name == sink.name) else { continue };
        let beginning = started.iter().find(|state| state.name == sink.name);
        let position = SinkPosition { kind: declared.event.into(), beginning, cursor: Some(&cursor) };
        let lags = sink_lag(&app.store, &counts.shards, position, &pipeline_id).await?;
        sink.lag = Some(lags.values().sum());
        let behind = lags.into_iter().filter(|(_, lag)| *lag > 0);
        sink.lag_per_shard = Some(behind.map(|(shard, lag)| (shard.to_string(), lag)).collect());
    }
    Ok(sinks)
}
