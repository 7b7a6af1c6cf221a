//! Queries through the whole HTTP API, over tables that SQL filled and a real Redis.

mod audit;
mod dead_letters;
mod declared;
mod filters;
mod following;
mod history;
mod records;
mod reversals;
mod stats;
mod sums;
mod values;

use std::{collections::HashMap, str::FromStr as _, sync::Arc};

use chrono::{DateTime, Utc};
use millrace_crds::RecordPipeline;
use poem::{Endpoint as _, EndpointExt as _, Request, Response, endpoint::BoxEndpoint, http::StatusCode};
use redis::AsyncCommands as _;
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    accept::Acceptor,
    config::ActiveManifest,
    domain::{DestinationId, Policy, ShardId, parse_time},
    http::{App, auth::KeyRing, standby::Standby},
    lifecycle::Heartbeats,
    store::Store,
    streams::{Producer, Streams, keys},
};

const SHARDS: u16 = 2;

/// One pipeline: a database of its own, a key prefix of its own, and the HTTP API over both.
struct World {
    pool: PgPool,
    api: BoxEndpoint<'static, Response>,
    redis: redis::aio::MultiplexedConnection,
    name: String,
    seqs: HashMap<ShardId, i64>,
}

fn time(text: &str) -> DateTime<Utc> {
    parse_time(text).expect("a time")
}

/// A processed record to store; `ROW` holds defaults for its fields.
#[derive(Clone, Copy)]
struct Row<'a> {
    id: &'a str,
    destination: &'a str,
    reference: &'a str,
    source: &'a str,
    unit: &'a str,
    /// With its sign.
    value: &'a str,
    time: &'a str,
    threshold: Option<&'a str>,
    attributes: Option<&'a str>,
    /// When it was processed, and the period of that.
    processed_at: &'a str,
    period: &'a str,
}

const ROW: Row<'static> = Row {
    id: "id",
    destination: "d",
    reference: "r",
    source: "s",
    unit: "EUR",
    value: "1",
    time: "2026-01-01T00:00:00Z",
    threshold: None,
    attributes: None,
    processed_at: "2026-02-01T00:00:01Z",
    period: "2026-11-01",
};

impl Row<'_> {
    fn shard(&self) -> ShardId {
        ShardId::of(&DestinationId::stored(self.destination), SHARDS)
    }

    /// Stores it as a commit does.
    async fn store(self, seq: i64, connection: &mut sqlx::PgConnection) {
        let row = self;
        let (value, positive) = row.value.strip_prefix('-').map_or((row.value, true), |value| (value, false));
        sqlx::query(
            "with stored as (
                 insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive,
                     record_id, source_id, destination_id, reference, unit, stream_id, value, previous_total, threshold,
                     attributes)
                 values ($1, $2, $13::date, 1, '2026-02-01T00:00:00Z', $14, $3, 0, $4, $5, $6, $7, $8, $9,
                     '1769904000500-0', $10::numeric, 0, $11::numeric, $12)),
             taken as (
                 insert into record_ids (record_id, shard, number, period, digest)
                 values ($5, $1, $2, $13::date, gen_random_uuid())
                 -- The id of a dead letter whose replay it is.
                 on conflict (record_id) do update set shard = $1, number = $2, period = $13::date),
             counted as (
                 insert into totals (shard, destination_id, reference, unit, positive_count, positive_sum, negative_count,
                                     negative_sum, alerts)
                 select $1, $7, $8, $9, $4::int, case when $4 then $10::numeric else 0 end, (not $4)::int,
                        case when $4 then 0 else $10::numeric end, ($11 is not null)::int
                 on conflict (destination_id, reference, unit, shard) do update
                 set positive_count = totals.positive_count + excluded.positive_count,
                     positive_sum = totals.positive_sum + excluded.positive_sum,
                     negative_count = totals.negative_count + excluded.negative_count,
                     negative_sum = totals.negative_sum + excluded.negative_sum,
                     alerts = totals.alerts + excluded.alerts),
             rolled as (
                 insert into rollup_totals (rollup_id, shard, built, positive, window_start, count, destination_id,
                                            reference, source_id, unit, sum)
                 select id, $1, false, $4,
                        date_bin(make_interval(secs => window_seconds), $3 at time zone time_zone at time zone 'UTC',
                            timestamptz '1970-01-01 00:00:00+00'), 1,
                        case when 'destinationId' = any(group_by) then $7 else '' end,
                        case when 'reference' = any(group_by) then $8 else '' end,
                        case when distinct_source or 'sourceId' = any(group_by) then $6 else '' end, $9, $10::numeric
                 from rollups
                 on conflict (rollup_id, destination_id, window_start, reference, source_id, unit, positive, shard, built)
                 do update set count = rollup_totals.count + 1, sum = rollup_totals.sum + excluded.sum)
             update shards set records = $2, processed = processed + 1, alerts = alerts + ($11 is not null)::int
             where shard = $1",
        )
        .bind(row.shard())
        .bind(seq)
        .bind(time(row.time))
        .bind(positive)
        .bind(row.id)
        .bind(row.source)
        .bind(row.destination)
        .bind(row.reference)
        .bind(row.unit)
        .bind(value)
        .bind(row.threshold)
        .bind(row.attributes)
        .bind(chrono::NaiveDate::from_str(row.period).expect("a date"))
        .bind(time(row.processed_at))
        .execute(connection)
        .await
        .expect("insert");
    }
}

impl World {
    async fn new(pool: PgPool) -> Self {
        let url = crate::streams::testing::url();
        Self::with_redis(pool, &url).await
    }

    async fn with_redis(pool: PgPool, url: &str) -> Self {
        let name = format!("query-{:016x}", rand::random::<u64>());
        let manifest = format!(
            "{{apiVersion: millrace.dev/v1alpha1, kind: RecordPipeline, metadata: {{name: {name}}}, spec: {{shards: {SHARDS}, \
             sinks: [{{name: notifications, event: Processed, redisStream: {{}}}}, \
             {{name: alerts, event: Alert, redisStream: {{}}}}, {{name: late, event: Processed, redisStream: {{}}}}]}}}}"
        );
        let manifest = Arc::new(RecordPipeline::from_yaml(&manifest).expect("a manifest"));
        let policy = Arc::new(Policy::of(&manifest.spec, 1));
        let (_, active_manifest) =
            watch::channel(ActiveManifest { manifest, policy, pipeline_id: "test-pipeline".into(), refusal: None });
        let streams = Streams::connect(url, &name).expect("URL");
        let app = App {
            standby: Standby::default(),
            store: Store::of_test(pool.clone()),
            producer: Producer::new(&streams, &"test".into(), SHARDS),
            streams,
            manifest: active_manifest,
            keys: KeyRing::open(),
            limiter: crate::http::rate_limits::RateLimiter::default(),
            process: "test".into(),
        };
        let real = crate::streams::testing::url();
        let redis = redis::Client::open(real)
            .expect("URL")
            .get_multiplexed_async_connection()
            .await
            .expect("a Redis for the tests");
        crate::store::testing::create_partition(&pool).await;
        let api =
            crate::routes::routes(app, Acceptor::default(), Heartbeats::default(), CancellationToken::new()).boxed();
        for shard in ShardId::all(SHARDS) {
            sqlx::query("insert into shards (shard, owner) values ($1, 'w1')")
                .bind(shard)
                .execute(&pool)
                .await
                .expect("insert");
            sqlx::query("insert into epochs (shard, epoch, worker) values ($1, 1, 'w1')")
                .bind(shard)
                .execute(&pool)
                .await
                .expect("insert");
        }
        Self { pool, api, redis, name, seqs: HashMap::new() }
    }

    /// Stores a processed record as a commit does; returns its shard and sequence number.
    async fn add(&mut self, row: Row<'_>) -> (u16, i64) {
        let shard = row.shard();
        let seq = self.seqs.entry(shard).or_default();
        *seq += 1;
        row.store(*seq, &mut self.pool.acquire().await.expect("a connection")).await;
        (shard.get(), *seq)
    }

    /// Stores an open dead letter, number `n` of shard 0.
    async fn dead_letter(&self, n: i64, id: Option<&str>, payload: &[u8]) {
        sqlx::query(
            "with opened as (
                 insert into dead_letters (shard, n, epoch, opened_at, received_at, record_id, destination_id, stream_id,
                                           payload, reason, detail)
                 values (0, $1, 1, '2026-02-01T00:00:02Z', '2026-02-01T00:00:00Z', $2, 'd', '1769904000500-1', $3,
                         'below_minimum_total', 'its total would be below')),
             taken as (
                 insert into record_ids (record_id, shard, number, digest)
                 select $2, 0, $1, gen_random_uuid() where $2 is not null),
             counted as (
                 insert into outcome_counts as c (destination_id, shard, dead_letters) values ('d', 0, 1)
                 on conflict (destination_id, shard) do update set dead_letters = c.dead_letters + 1)
             update shards set dead_letters = $1 where shard = 0",
        )
        .bind(n)
        .bind(id)
        .bind(payload)
        .execute(&self.pool)
        .await
        .expect("insert");
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.expect("SQL");
    }

    async fn send(&self, method: &str, path: &str, accept: &str) -> (StatusCode, Result<String, String>) {
        let request = Request::builder()
            .method(method.parse().expect("a method"))
            .uri(path.parse().expect("a path"))
            .header("accept", accept)
            .finish();
        let response = self.api.get_response(request).await;
        let status = response.status();
        (status, response.into_body().into_string().await.map_err(|error| error.to_string()))
    }

    async fn text(&self, path: &str, accept: &str) -> String {
        let (status, body) = self.send("GET", path, accept).await;
        let body = body.expect("a whole body");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path, "application/json").await).expect("JSON")
    }

    async fn post(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.send("POST", path, "application/json").await;
        (status.as_u16(), serde_json::from_str(&body.expect("a whole body")).expect("JSON"))
    }

    async fn post_json(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = Request::builder().method(poem::http::Method::POST).uri(path.parse().expect("a path"));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = self.api.get_response(request).await;
        let status = response.status().as_u16();
        let body = response.into_body().into_string().await.expect("a whole body");
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    /// Status, code and `retryable` of a refused request.
    async fn refusal(&self, path: &str) -> (u16, String, bool) {
        let (status, body) = self.send("GET", path, "application/json").await;
        let problem: Value = serde_json::from_str(&body.expect("a whole body")).expect("JSON");
        let retryable = problem["retryable"].as_bool().expect("retryable");
        (status.as_u16(), problem["code"].as_str().expect("a code").to_owned(), retryable)
    }

    fn stream(&self, shard: ShardId) -> String {
        keys::records(&self.name, shard)
    }

    /// All pages of a path that has parameters.
    async fn pages(&self, path: &str) -> Vec<Value> {
        let mut pages = vec![self.get(path).await];
        while let Some(next) = pages.last().and_then(|page| page.get("nextCursor")) {
            let path = format!("{path}&cursor={}", next.as_str().expect("a cursor"));
            pages.push(self.get(&path).await);
        }
        pages
    }

    /// All items of a list, page by page.
    async fn all(&self, path: &str, limit: u32) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{mark}limit={limit}{cursor}")).await;
            let found = page["items"].as_array().expect("items");
            assert!(found.len() <= limit as usize);
            items.extend(found.iter().cloned());
            match page.get("nextCursor") {
                Some(next) => cursor = format!("&cursor={}", next.as_str().expect("a cursor")),
                None => return items,
            }
        }
    }

    async fn clean(&mut self) {
        for shard in ShardId::all(SHARDS) {
            let keys = [self.stream(shard), keys::fence(&self.name, shard)];
            let () = self.redis.del(&keys).await.expect("DEL");
        }
        for sink in ["notifications", "alerts", "late"] {
            let () = self.redis.del(keys::cursor(&format!("{}.{sink}", self.name))).await.expect("DEL");
        }
    }
}

fn ids(items: &[Value], field: &str) -> Vec<String> {
    items.iter().map(|item| item[field].as_str().expect(field).to_owned()).collect()
}
