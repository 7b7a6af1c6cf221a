//! The body of `/stats`.

use poem_openapi::Object;
use serde::Serialize;

use super::types::Time;
use crate::{domain::ShardId, store::StoredVerifyRun};

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
    /// Its cursor: the highest published number per shard; absent while Redis is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor_per_shard: Option<std::collections::BTreeMap<String, i64>>,
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
    /// Alerts of totals: thresholds on totals that records took a total over.
    pub total_alerts: i64,
    /// Records that raised no alert because their unit has no threshold although other units have one: the unit may be
    /// misspelt. `GET /records/rollups?groupBy=unit` lists all units.
    pub records_without_threshold: i64,
    /// Records that came after retention had closed their window of a declared rollup, which does not count them; once per
    /// rollup.
    pub late_after_retention: i64,
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
