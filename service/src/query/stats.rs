//! `GET /stats`: counts that add up, lags, and the durability settings of the servers.

use std::{collections::HashMap, sync::Arc, time::Instant};

use poem::web::Data;
use poem_openapi::OpenApi;

use super::{
    Tags,
    answer::Answer,
    stats_view::{
        DeadLetterCounts, PostgresStats, PublisherState, RedisStats, RollupStats, ShardBacklog, ShardStats, SinkStats,
        Stats, VerifyStats,
    },
    types::Time,
};
use crate::{
    domain::OutcomeKind,
    http::{App, auth::ReaderOfAll, problem::Failure},
    publish::{SinkPosition, sink_lag, webhook_cursor},
    store::{Counts, RollupState, ShardCounts},
    streams::{Backlog, RedisPromises},
    telemetry::limits,
};

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
        let destinations = app.store.count_destinations().await?;
        gather(app, self.started, destinations).await.map(Answer)
    }
}

/// The counts and lags of this moment. `started` is when this process started. The destinations are counted by the caller:
/// that takes longer than all else.
async fn gather(app: &App, started: Instant, destinations: i64) -> Result<Stats, Failure> {
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
    let sum = |count: fn(&ShardCounts) -> i64| counts.shards.iter().map(count).sum::<i64>();
    let unapplied =
        backlog.as_ref().map(|backlog| counts.shards.iter().map(|shard| unapplied(shard, backlog)).sum::<i64>());
    let dead_letters = counts.dead_letters_open + counts.dead_letters_discarded;
    let (processed, duplicates, lost) =
        (sum(|shard| shard.processed), sum(|shard| shard.duplicates), sum(|shard| shard.lost));
    let uptime = counts.created_at.map(|since| counts.now - since);
    Ok(Stats {
        as_of: Time(counts.now),
        received: unapplied.map(|backlog| processed + duplicates + counts.conflicts + dead_letters + backlog + lost),
        processed,
        duplicates,
        conflicts: counts.conflicts,
        dead_letters: DeadLetterCounts {
            open: counts.dead_letters_open,
            discarded: counts.dead_letters_discarded,
            replayed: counts.dead_letters_replayed,
        },
        alerts: sum(|shard| shard.alerts),
        total_alerts: sum(|shard| shard.total_alerts),
        records_without_threshold: sum(|shard| shard.without_threshold),
        late_after_retention: sum(|shard| shard.late_after_retention),
        backlog: unapplied,
        lag_ms: backlog.as_ref().map(|backlog| backlog.iter().map(|shard| shard.lag_ms).max().unwrap_or(0)),
        lost,
        loss_uncertain: counts.shards.iter().any(|shard| shard.loss_uncertain_since.is_some()),
        recreated_streams: sum(|shard| shard.recreated_streams),
        destinations,
        policy_version,
        uptime_seconds: uptime.map_or(0, |uptime| uptime.num_seconds()),
        process_uptime_seconds: started.elapsed().as_secs(),
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
    })
}

/// The body of `/stats`; `started` and `destinations` as in [`gather`].
pub(crate) async fn body(app: &App, started: Instant, destinations: i64) -> Result<String, Failure> {
    let stats = gather(app, started, destinations).await?;
    serde_json::to_string(&stats).map_err(|error| Failure::internal(&error))
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
        cursor_per_shard: None,
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
        sink.cursor_per_shard =
            Some(cursor.numbers.iter().map(|(shard, seq)| (shard.to_string(), seq.get())).collect());
        sink.lag = Some(lags.values().sum());
        let behind = lags.into_iter().filter(|(_, lag)| *lag > 0);
        sink.lag_per_shard = Some(behind.map(|(shard, lag)| (shard.to_string(), lag)).collect());
    }
    Ok(sinks)
}
