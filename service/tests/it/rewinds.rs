//! Servers that was rewound: what is lost is counted, said, and no number is ever given twice.

use futures::future::join;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Load, Pipeline, PrivatePostgres, PrivateRedis, Process, eventually, lost, record, shared, told_lost,
};

/// The ids of a sink's entries, in order.
async fn ids(pipeline: &Pipeline, sink: &str) -> Vec<String> {
    let entries: Vec<(String, Vec<String>)> = pipeline.redis(&["XRANGE", &pipeline.stream(sink), "-", "+"]).await;
    let id = |fields: Vec<String>| fields.iter().skip_while(|field| *field != "id").nth(1).cloned().unwrap();
    entries.into_iter().map(|(_, fields)| id(fields)).collect()
}

fn numbers(range: std::ops::RangeInclusive<i64>) -> Vec<String> {
    range.map(|seq| format!("0-{seq}")).collect()
}

async fn one_shard(redis: &str, postgres: &str) -> (Pipeline, Process, Process) {
    let pipeline = Pipeline::on(redis, postgres, json!({"shards": 1})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    (pipeline, serve, work)
}

#[tokio::test]
async fn after_a_restored_postgres_no_number_is_given_twice_and_what_it_lost_is_said() {
    let mut postgres = PrivatePostgres::start().await;
    let (pipeline, _serve, work) = one_shard(&shared().await.redis, &postgres.url()).await;
    let kept = Load::new("kept", 100);
    pipeline.send(&kept.records).await;
    pipeline.applied().await;
    // What a publisher said for a moment comes back with the backup.
    pipeline
        .execute("insert into sink_states (sink, shard, state, detail) values ('alerts', 0, 'failing', 'full')")
        .await;
    postgres.stop();
    postgres.back_up();
    postgres.start_again().await;
    let forgotten = Load::new("forgotten", 50);
    pipeline.send(&forgotten.records).await;
    pipeline.applied().await;
    let (before, given) = (ids(&pipeline, "notifications").await, pipeline.number("select records from shards").await);
    postgres.stop();
    postgres.restore();
    postgres.start_again().await;
    // Nothing new comes, and it is noticed.
    work.says("worker.postgres.rewound").await;
    let missing = given - pipeline.number("select processed from shards").await;
    assert!(missing > 0);
    eventually("the publisher runs", async || pipeline.number("select count(*) from sink_states").await == 0).await;
    lost(&pipeline, forgotten.entries(), Some(forgotten.entries())).await;
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
    lost(&pipeline, forgotten.entries(), Some(forgotten.entries())).await;
}

#[tokio::test]
async fn a_policy_that_postgres_lost_is_registered_again_before_anything_is_decided() {
    let mut postgres = PrivatePostgres::start().await;
    let (pipeline, serve, work) = one_shard(&shared().await.redis, &postgres.url()).await;
    pipeline.send(&Load::new("before", 30).records).await;
    pipeline.applied().await;
    postgres.stop();
    postgres.back_up();
    postgres.start_again().await;
    pipeline.change(|spec| spec["threshold"] = json!("10"));
    eventually("the shard works by it", async || pipeline.number("select policy_version from shards").await == 2).await;
    for process in [&serve, &work] {
        // Or it registers it after the restore as its own, and nobody finds it lost.
        eventually("each works by it", async || {
            process.said("config.manifest.active").iter().any(|said| said["version"] == 2)
        })
        .await;
    }
    postgres.stop();
    postgres.restore();
    postgres.start_again().await;
    eventually("one of them says it, or comes to register it itself", async || {
        let said = |line| [&serve, &work].map(|process: &Process| process.said(line)).concat();
        let registered = said("config.manifest.registered").iter().filter(|said| said["version"] == 2).count();
        !said("config.manifest.lost").is_empty() || registered > 1
    })
    .await;
    eventually("the shard works by it again", async || pipeline.number("select policy_version from shards").await == 2)
        .await;
    let after = Load::new("after", 30);
    pipeline.send(&after.records).await;
    pipeline.applied().await;
    assert!(pipeline.number("select count(*) from records where threshold = 10").await >= 19);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_log_that_is_set_back_under_its_owner_is_found_by_the_next_commit() {
    let servers = shared().await;
    let (pipeline, _serve, work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.send(&Load::new("r", 40).records).await;
    pipeline.applied().await;
    let given = pipeline.number("select records from shards").await;
    // As by a restore of the schema alone: no server was started again.
    pipeline
        .execute(
            "with gone as (delete from records where seq > 30 returning value),
                  counted as (update shards set records = 30, processed = 30)
             delete from totals",
        )
        .await;
    pipeline.execute("insert into totals select shard, count(*), destination_id, reference, unit, sum(case when positive then value else -value end) from records group by shard, destination_id, reference, unit").await;
    pipeline.send(&Load::new("after", 10).records).await;
    work.says("worker.postgres.rewound").await;
    pipeline.applied().await;
    let notified = ids(&pipeline, "notifications").await;
    assert_eq!(notified, numbers(1..=pipeline.number("select records from shards").await));
    assert!(notified.len() as i64 > given);
}

/// As where the node of a cluster that holds a sink is rewound, and that of the shards does not.
#[tokio::test]
async fn what_a_sinks_redis_lost_comes_again_though_nothing_new_comes() {
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
async fn numbers_that_redis_lost_are_told_to_it_again() {
    let servers = shared().await;
    let (pipeline, _serve, _work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.send(&Load::new("r", 20).records).await;
    pipeline.applied().await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let given = pipeline.number("select records from shards").await;
    eventually("they stand there, though nothing new came", async || {
        let mark: Option<i64> = pipeline.redis(&["HGET", &pipeline.fence(0), "records"]).await;
        mark == Some(given)
    })
    .await;
    lost(&pipeline, 0, Some(0)).await;
}

#[tokio::test]
async fn what_a_redis_that_was_emptied_held_is_counted() {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, _serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    lost(&pipeline, 0, Some(0)).await;
    // Not only paused: what it had asked for would still be given to it.
    work.stop().await;
    let gone = Load::new("gone", 25);
    pipeline.send(&gone.records).await;
    let _: String = pipeline.redis(&["FLUSHALL"]).await;
    let work = pipeline.work();
    let line = work.says("worker.records.lost").await;
    assert_eq!((&line["at_least"], &line["at_most"]), (&json!(gone.entries()), &json!(gone.entries())), "{line}");
    lost(&pipeline, gone.entries(), Some(gone.entries())).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!(stats["received"], json!(40 + stats["duplicates"].as_i64().unwrap() + gone.entries()), "{stats}");
}

#[tokio::test]
async fn what_a_redis_lost_of_its_newest_entries_is_counted() {
    let mut redis = PrivateRedis::start(&[]).await;
    let (pipeline, _serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    // Not only paused: what it had asked for would still be given to it.
    work.stop().await;
    let queued = Load::new("queued", 30);
    pipeline.send(&queued.records).await;
    redis.kill();
    redis.cut(3_000);
    redis.start_again().await;
    let left: i64 = pipeline.redis(&["XLEN", &pipeline.records(0)]).await;
    let gone = queued.entries() - left;
    assert!(gone > 0, "the cut took nothing");
    let _work = pipeline.work();
    lost(&pipeline, gone, Some(gone)).await;
    // Entries that follow do not hide it.
    pipeline.send_through(&Load::new("after", 20).records).await;
    pipeline.applied().await;
    // The first of them may have gone out by a connection that was broken by then: nobody knows of those.
    eventually("as many are lost, and maybe those that nobody knows of", async || {
        let unknown = pipeline.number("select sum(unknown)::bigint from appends").await;
        told_lost(&pipeline).await == (gone, Some(gone + unknown))
    })
    .await;
}

#[tokio::test]
async fn of_a_serve_process_that_died_the_last_word_is_spoken_unless_redis_was_rewound() {
    let mut redis = PrivateRedis::start(&[]).await;
    let (pipeline, mut serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.stood_for_long(0).await;
    serve.kill();
    let buried = work.says("process.appender.buried").await;
    assert_eq!(buried["accounted"], Value::Bool(true));
    let mut serve = pipeline.serve().await;
    pipeline.applied().await;
    lost(&pipeline, 0, Some(0)).await;
    // Not only paused: what it had asked for would still be given to it.
    work.stop().await;
    pipeline.send(&Load::new("gone", 20).records).await;
    serve.kill();
    redis.kill();
    redis.cut(2_000);
    redis.start_again().await;
    let work = pipeline.work();
    let buried = work.says("process.appender.buried").await;
    assert_eq!(buried["accounted"], Value::Bool(false));
    let metrics = work.text("/metrics").await;
    assert!(metrics.contains("millrace_unaccounted_appenders_total{shard=\"0\"} 1\n"), "{metrics}");
    let _serve = pipeline.serve().await;
    lost(&pipeline, pipeline.number("select lost from shards").await, None).await;
}

#[tokio::test]
async fn an_append_whose_answer_never_came_is_counted_and_hides_no_loss() {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, mut serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    // A connection that is in use is not tried before it is used: the append is sent.
    pipeline.send(&[record("just-before", "d")]).await;
    // It does what it was sent, but later than anyone waits for an answer.
    redis.signal(Signal::SIGSTOP);
    pipeline.put_in("/records", record("unanswered", "d").to_string()).await.refused(503, "outcome_unknown");
    redis.signal(Signal::SIGCONT);
    eventually("it is applied", async || {
        pipeline.number("select count(*) from records where record_id = 'unanswered'").await == 1
    })
    .await;
    eventually("it is known, though nothing more comes", async || {
        pipeline.number("select acknowledged - unknown from appends").await == before.entries() + 2
    })
    .await;
    lost(&pipeline, 0, Some(0)).await;
    // Not only paused: what it had asked for would still be given to it.
    work.stop().await;
    serve.stop().await;
    let _serve = pipeline.serve().await;
    let gone = Load::new("gone", 25);
    pipeline.send(&gone.records).await;
    let _: String = pipeline.redis(&["FLUSHALL"]).await;
    let _work = pipeline.work();
    lost(&pipeline, gone.entries(), Some(gone.entries())).await;
}

#[tokio::test]
async fn an_append_of_which_nobody_knows_may_hide_a_loss_and_that_is_said() {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, mut serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    lost(&pipeline, 0, Some(0)).await;
    work.stop().await;
    let _: () = pipeline.redis(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    let sent = async { pipeline.put_in("/records", record("unknown", "d").to_string()).await };
    let broken = async {
        eventually("it is sent", async || {
            let info: String = pipeline.redis(&["INFO", "clients"]).await;
            info.contains("blocked_clients:1")
        })
        .await;
        let _: i64 = pipeline.redis(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        let _: () = pipeline.redis(&["CLIENT", "UNPAUSE"]).await;
    };
    join(sent, broken).await.0.refused(503, "outcome_unknown");
    let _work = pipeline.work();
    lost(&pipeline, 0, Some(1)).await;
    // Its final count is no other.
    serve.stop().await;
    let _serve = pipeline.serve().await;
    lost(&pipeline, 0, Some(1)).await;
    pipeline.send(&Load::new("after", 10).records).await;
    pipeline.applied().await;
    lost(&pipeline, 0, Some(1)).await;
}

#[tokio::test]
async fn a_serve_process_that_dies_of_its_first_append_is_known() {
    let servers = shared().await;
    let (pipeline, _serve, work) = one_shard(&servers.redis, &servers.postgres).await;
    let _dies = pipeline.serve_with(&[("MILLRACE_FAULT", "after_xadd:1")]).await;
    let known = async || pipeline.number("select count(*) from appends").await;
    eventually("it is known before it takes anything", async || known().await == 2).await;
    assert!(pipeline.request(Method::POST, "/records").json(&record("first", "d")).send().await.is_err());
    pipeline.applied().await;
    // A process that Postgres lost is told to it by Redis.
    pipeline.execute("delete from appends where acknowledged = 0").await;
    eventually("it is known again", async || {
        pipeline.number("select coalesce(sum(acknowledged), 0)::bigint from appends").await == 1
    })
    .await;
    let buried = work.says("process.appender.buried").await;
    assert_eq!(buried["entries"], 1);
}

#[tokio::test]
async fn of_a_serve_process_that_died_nobody_speaks_the_last_word_where_its_count_was_removed() {
    let servers = shared().await;
    let (pipeline, mut serve, work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    // What it noted is less than what it appended, and Redis, which knew, is emptied though it was never started again.
    serve.kill();
    pipeline.execute("update appends set acknowledged = 0").await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let buried = work.says("process.appender.buried").await;
    assert_eq!(buried["accounted"], Value::Bool(false));
    let _serve = pipeline.serve().await;
    lost(&pipeline, 0, None).await;
}

#[tokio::test]
async fn what_a_process_appended_that_died_uncounted_hides_no_later_loss() {
    let servers = shared().await;
    let (pipeline, mut serve, mut work) = one_shard(&servers.redis, &servers.postgres).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    serve.kill();
    pipeline.execute("update appends set acknowledged = 7").await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    work.says("process.appender.buried").await;
    let serve = pipeline.serve().await;
    let meanwhile = Load::new("meanwhile", 10);
    pipeline.send(&meanwhile.records).await;
    pipeline.applied().await;
    let noted = async || pipeline.number("select coalesce(sum(acknowledged), 0)::bigint from appends").await;
    eventually("they are noted", async || noted().await == 7 + meanwhile.entries()).await;
    serve.signal(Signal::SIGSTOP);
    pipeline.execute("update appends set acknowledged = 0 where not closed").await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let uncounted = async || pipeline.redis::<Option<i64>>(&["HGET", &pipeline.fence(0), "credit"]).await;
    eventually("neither is counted", async || uncounted().await == Some(before.entries() + meanwhile.entries() - 7))
        .await;
    serve.signal(Signal::SIGCONT);
    eventually("a process that lives counts its own", async || uncounted().await == Some(before.entries() - 7)).await;
    lost(&pipeline, 0, None).await;
    work.stop().await;
    let gone = Load::new("gone", 25);
    pipeline.send(&gone.records).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    let _work = pipeline.work();
    lost(&pipeline, gone.entries(), None).await;
}

#[tokio::test]
async fn processes_that_closed_long_ago_cost_a_count_nothing_and_hide_no_loss() {
    let servers = shared().await;
    let (pipeline, _serve, mut work) = one_shard(&servers.redis, &servers.postgres).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    // As many entries of theirs were applied as they appended.
    pipeline
        .execute(
            "with applied as (update shards set duplicates = duplicates + 6000)
             insert into appends (process, shard, acknowledged, unknown, closed, noted_at)
             select 'former-' || n, 0, 3, 0, true, now() - interval '2 days' from generate_series(1, 2000) as n",
        )
        .await;
    let bring_back = async || {
        for first in (1..=2000).step_by(500) {
            let fields: Vec<String> =
                (first..first + 500).flat_map(|n| [format!("by:former-{n}"), "3".to_owned()]).collect();
            let fence = pipeline.fence(0);
            let command: Vec<&str> = ["HSET", &fence].into_iter().chain(fields.iter().map(String::as_str)).collect();
            let _: i64 = pipeline.redis(&command).await;
        }
    };
    let folded = async || {
        let rows = pipeline.number("select count(*) from appends where not folded").await;
        let fields: i64 = pipeline.redis(&["HLEN", &pipeline.fence(0)]).await;
        rows < 10 && fields < 30 && pipeline.number("select folded_appends from shards").await == 6_000
    };
    bring_back().await;
    eventually("they are one sum", folded).await;
    lost(&pipeline, 0, Some(0)).await;
    // A Redis that was rewound has them again.
    bring_back().await;
    eventually("they are taken out of the sum", async || {
        pipeline.number("select count(*) from appends where not folded").await > 1_000
    })
    .await;
    eventually("they are one sum again", folded).await;
    lost(&pipeline, 0, Some(0)).await;
    work.stop().await;
    let gone = Load::new("gone", 25);
    pipeline.send(&gone.records).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    let _work = pipeline.work();
    lost(&pipeline, gone.entries(), Some(gone.entries())).await;
}
