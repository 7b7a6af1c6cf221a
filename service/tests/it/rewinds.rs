//! Servers that are rewound: lost records are counted and reported, and no sequence number is given twice.

use serde_json::json;

use crate::harness::{Load, Pipeline, PrivatePostgres, PrivateRedis, Process, eventually, lost, shared};

/// The `id` fields of a sink's entries, in order.
async fn ids(pipeline: &Pipeline, sink: &str) -> Vec<String> {
    let entries: Vec<(String, Vec<String>)> = pipeline.redis(&["XRANGE", &pipeline.stream(sink), "-", "+"]).await;
    let id = |fields: Vec<String>| fields.iter().skip_while(|field| *field != "id").nth(1).cloned().unwrap();
    entries.into_iter().map(|(_, fields)| id(fields)).collect()
}

fn numbers(range: std::ops::RangeInclusive<i64>) -> Vec<String> {
    range.map(|seq| format!("0-{seq}")).collect()
}

/// Starts a pipeline of one shard with a serve process and a worker.
pub(crate) async fn one_shard(redis: &str, postgres: &str) -> (Pipeline, Process, Process) {
    let pipeline = Pipeline::on(redis, postgres, json!({"shards": 1})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    (pipeline, serve, work)
}

#[tokio::test]
async fn a_restored_postgres_reuses_no_number_and_its_losses_are_reported() {
    let mut postgres = PrivatePostgres::start().await;
    let (pipeline, _serve, work) = one_shard(&shared().await.redis, &postgres.url()).await;
    let kept = Load::new("kept", 100);
    pipeline.send(&kept.records).await;
    pipeline.applied().await;
    // The backup holds a state of a publisher that has ended by then.
    pipeline
        .execute("insert into sink_states (sink, shard, state, detail) values ('alerts', 0, 'failing', 'full')")
        .await;
    postgres.stop();
    postgres.back_up();
    postgres.restart().await;
    let dropped = Load::new("dropped", 50);
    pipeline.send(&dropped.records).await;
    pipeline.applied().await;
    let (before, given) = (ids(&pipeline, "notifications").await, pipeline.number("select records from shards").await);
    postgres.stop();
    postgres.restore();
    postgres.restart().await;
    // The worker notices it without new records.
    work.logs("worker.postgres.rewound").await;
    let missing = given - pipeline.number("select processed from shards").await;
    assert!(missing > 0);
    eventually("the publisher runs", async || pipeline.number("select count(*) from sink_states").await == 0).await;
    lost(&pipeline, dropped.entries(), false).await;
    let after = Load::new("after", 30);
    pipeline.send(&after.records).await;
    pipeline.applied().await;
    let now = ids(&pipeline, "notifications").await;
    assert_eq!(now[..before.len()], before[..]);
    let stored = pipeline.number("select records from shards").await;
    assert_eq!(now[before.len()..], numbers(given + 1..=stored)[..], "no id is given twice");
    assert_eq!(
        pipeline.number("select count(*) from gaps where kind = 'records' and from_n = 101").await,
        1,
        "the gap is noted"
    );
    pipeline.verify().await;
    lost(&pipeline, dropped.entries(), false).await;
}

#[tokio::test]
async fn a_policy_version_that_postgres_lost_is_registered_before_any_decision() {
    let mut postgres = PrivatePostgres::start().await;
    let (pipeline, serve, work) = one_shard(&shared().await.redis, &postgres.url()).await;
    pipeline.send(&Load::new("before", 30).records).await;
    pipeline.applied().await;
    postgres.stop();
    postgres.back_up();
    postgres.restart().await;
    pipeline.change(|spec| spec["threshold"] = json!("10"));
    eventually("the shard runs version 2", async || pipeline.number("select policy_version from shards").await == 2)
        .await;
    for process in [&serve, &work] {
        // Otherwise the process could register version 2 only after the restore, and no process would report it as
        // lost.
        eventually("the process runs version 2", async || {
            process.logged("config.manifest.active").iter().any(|line| line["version"] == 2)
        })
        .await;
    }
    postgres.stop();
    postgres.restore();
    postgres.restart().await;
    eventually("a process reports the loss, or registers the version again", async || {
        let logged = |event| [&serve, &work].map(|process: &Process| process.logged(event)).concat();
        let registered = logged("config.manifest.registered").iter().filter(|line| line["version"] == 2).count();
        !logged("config.manifest.lost").is_empty() || registered > 1
    })
    .await;
    eventually("the shard runs version 2 again", async || {
        pipeline.number("select policy_version from shards").await == 2
    })
    .await;
    let after = Load::new("after", 30);
    pipeline.send(&after.records).await;
    pipeline.applied().await;
    assert!(pipeline.number("select count(*) from records where threshold = 10").await >= 19);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_log_rewound_under_its_owner_is_found_by_the_next_commit() {
    let servers = shared().await;
    let (pipeline, _serve, work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.send(&Load::new("r", 40).records).await;
    pipeline.applied().await;
    let given = pipeline.number("select records from shards").await;
    // As by a restore of the schema alone, without a restart of the server.
    pipeline
        .execute(
            "with gone as (delete from records where seq > 30 returning record_id),
                  freed as (delete from record_ids where record_id in (select record_id from gone)),
                  counted as (update shards set records = 30, processed = 30)
             delete from totals",
        )
        .await;
    pipeline
        .execute(
            "insert into totals
                 (shard, destination_id, reference, unit, positive_count, negative_count, positive_sum, negative_sum)
             select shard, destination_id, reference, unit, count(*) filter (where positive),
                    count(*) filter (where not positive), coalesce(sum(value) filter (where positive), 0),
                    coalesce(sum(value) filter (where not positive), 0)
             from records group by shard, destination_id, reference, unit",
        )
        .await;
    pipeline.send(&Load::new("after", 10).records).await;
    work.logs("worker.postgres.rewound").await;
    pipeline.applied().await;
    let notified = ids(&pipeline, "notifications").await;
    assert_eq!(notified, numbers(1..=pipeline.number("select records from shards").await));
    assert!(notified.len() as i64 > given);
}

/// As when one node of a cluster, which holds the sink and no shard, is rewound.
#[tokio::test]
async fn entries_that_a_sinks_redis_lost_are_published_again_when_idle() {
    let servers = shared().await;
    let (pipeline, _serve, _work) = one_shard(&servers.redis, &servers.postgres).await;
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let before = ids(&pipeline, "notifications").await;
    let back = "for _, entry in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 10)) do
                    redis.call('XDEL', KEYS[2], entry[1])
                end
                return redis.call('HSET', KEYS[1], '0', 90)";
    let (cursor, stream) = (pipeline.cursor("notifications"), pipeline.stream("notifications"));
    let _: i64 = pipeline.redis(&["EVAL", back, "2", &cursor, &stream]).await;
    pipeline.applied().await;
    assert_eq!(ids(&pipeline, "notifications").await, before);
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn watermarks_that_redis_lost_are_written_again() {
    let servers = shared().await;
    let (pipeline, _serve, _work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.send(&Load::new("r", 20).records).await;
    pipeline.applied().await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let given = pipeline.number("select records from shards").await;
    eventually("the watermark is written without new records", async || {
        let watermark: Option<i64> = pipeline.redis(&["HGET", &pipeline.fence(0), "records"]).await;
        watermark == Some(given)
    })
    .await;
    lost(&pipeline, 0, false).await;
}

#[tokio::test]
async fn records_lost_by_an_emptied_redis_are_counted() {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, _serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    lost(&pipeline, 0, false).await;
    // Stopped, not paused: Redis would still deliver entries to the read of a paused worker.
    work.stop().await;
    let gone = Load::new("lost", 25);
    pipeline.send(&gone.records).await;
    let _: String = pipeline.redis(&["FLUSHALL"]).await;
    let work = pipeline.work();
    work.logs("worker.records.lost").await;
    lost(&pipeline, gone.entries(), false).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!(stats["received"], json!(40 + stats["duplicates"].as_i64().unwrap() + gone.entries()), "{stats}");
}

#[tokio::test]
async fn newest_entries_that_redis_lost_are_counted() {
    let mut redis = PrivateRedis::start(&[]).await;
    let (pipeline, _serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    // Stopped, not paused: Redis would still deliver entries to the read of a paused worker.
    work.stop().await;
    let queued = Load::new("queued", 30);
    pipeline.send(&queued.records).await;
    redis.kill();
    redis.truncate_log(3_000);
    redis.restart().await;
    let left = pipeline.backlog().await as i64;
    let gone = queued.entries() - left;
    assert!(gone > 0, "no record was lost");
    let _work = pipeline.work();
    lost(&pipeline, gone, false).await;
    // Later entries do not hide the loss.
    pipeline.send_through(&Load::new("after", 20).records).await;
    pipeline.applied().await;
    lost(&pipeline, gone, false).await;
}
