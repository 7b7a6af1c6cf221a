//! Counts of appends by serve processes: with them lost records are counted after a process died, an append had no answer,
//! or Redis lost its own counts.

use futures::future::join;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Load, PrivateRedis, eventually, lost, record, shared},
    rewinds::one_shard,
};

#[tokio::test]
async fn final_counts_of_a_dead_serve_process_are_known_unless_redis_was_rewound() {
    let mut redis = PrivateRedis::start(&[]).await;
    let (pipeline, mut serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.backdate_fence(0).await;
    serve.kill();
    let counts = work.logs("worker.producer.dead").await;
    assert_eq!(counts["uncertain"], Value::Bool(false));
    let mut serve = pipeline.serve().await;
    pipeline.applied().await;
    lost(&pipeline, 0, false).await;
    // Stopped, not paused: Redis would still deliver entries to the read of a paused worker.
    work.stop().await;
    pipeline.send(&Load::new("lost", 20).records).await;
    serve.kill();
    redis.kill();
    redis.truncate_log(2_000);
    redis.restart().await;
    let work = pipeline.work();
    let counts = work.logs("worker.producer.dead").await;
    assert_eq!(counts["uncertain"], Value::Bool(true));
    let metrics = work.text("/metrics").await;
    assert!(metrics.contains("millrace_uncertain_losses_total{shard=\"0\"} 1\n"), "{metrics}");
    let _serve = pipeline.serve().await;
    lost(&pipeline, pipeline.number("select lost from shards").await, true).await;
    let acknowledged = pipeline.act("/losses/acknowledge?reason=the+senders+sent+again").await.expect(200);
    assert_eq!(acknowledged, json!({"shards": [0]}));
    lost(&pipeline, pipeline.number("select lost from shards").await, false).await;
    let audit = pipeline.list("/audit?action=ADMIN").await;
    assert!(audit.iter().any(|fact| fact["reason"].as_str().unwrap().ends_with("the senders sent again")), "{audit:?}");
}

#[tokio::test]
async fn an_append_whose_answer_never_came_is_counted_and_hides_no_loss() {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, mut serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    // A connection in use is not probed before the next request: the append is sent.
    pipeline.send(&[record("just-before", "d")]).await;
    // Redis runs the append after serve has timed out.
    redis.signal(Signal::SIGSTOP);
    pipeline.post_json("/records", record("unanswered", "d").to_string()).await.refused(503, "outcome_unknown");
    redis.signal(Signal::SIGCONT);
    eventually("the record is applied", async || {
        pipeline.number("select count(*) from records where record_id = 'unanswered'").await == 1
    })
    .await;
    lost(&pipeline, 0, false).await;
    // Stopped, not paused: Redis would still deliver entries to the read of a paused worker.
    work.stop().await;
    serve.stop().await;
    let _serve = pipeline.serve().await;
    let gone = Load::new("lost", 25);
    pipeline.send(&gone.records).await;
    let _: String = pipeline.redis(&["FLUSHALL"]).await;
    let _work = pipeline.work();
    lost(&pipeline, gone.entries(), false).await;
}

#[tokio::test]
async fn an_append_that_redis_never_ran_is_no_loss() {
    let redis = PrivateRedis::start(&[]).await;
    let (pipeline, mut serve, mut work) = one_shard(&redis.url(), &shared().await.postgres).await;
    work.ready().await;
    work.stop().await;
    let _: () = pipeline.redis(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    let send = async { pipeline.post_json("/records", record("unknown", "d").to_string()).await };
    let break_connection = async {
        eventually("the append is sent", async || {
            let info: String = pipeline.redis(&["INFO", "clients"]).await;
            info.contains("blocked_clients:1")
        })
        .await;
        let _: i64 = pipeline.redis(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        let _: () = pipeline.redis(&["CLIENT", "UNPAUSE"]).await;
    };
    join(send, break_connection).await.0.refused(503, "outcome_unknown");
    let _work = pipeline.work();
    lost(&pipeline, 0, false).await;
    // The final counts of serve are the same.
    serve.stop().await;
    let _serve = pipeline.serve().await;
    lost(&pipeline, 0, false).await;
    pipeline.send(&Load::new("after", 10).records).await;
    pipeline.applied().await;
    lost(&pipeline, 0, false).await;
}

#[tokio::test]
async fn a_serve_process_that_dies_at_its_first_append_is_registered() {
    let servers = shared().await;
    let (pipeline, _serve, work) = one_shard(&servers.redis, &servers.postgres).await;
    let _crashing = pipeline.serve_with(&[("MILLRACE_FAULT", "after_append:1")]).await;
    let processes = async || pipeline.number("select count(*) from producers").await;
    eventually("the process is noted before its first append", async || processes().await == 2).await;
    assert!(pipeline.request(Method::POST, "/records").json(&record("first", "d")).send().await.is_err());
    pipeline.applied().await;
    // The worker takes a process that Postgres lost from the counts in Redis.
    pipeline.execute("delete from producers where appended = 0").await;
    eventually("the process is noted again", async || {
        pipeline.number("select coalesce(sum(appended), 0)::bigint from producers").await == 1
    })
    .await;
    let counts = work.logs("worker.producer.dead").await;
    assert_eq!(counts["records"], 1);
}

#[tokio::test]
async fn final_counts_of_a_dead_serve_process_are_unknown_after_redis_lost_them() {
    let servers = shared().await;
    let (pipeline, mut serve, work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    // The process noted less than it appended, and Redis loses its counts without a restart.
    serve.kill();
    pipeline.execute("update producers set appended = 0").await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    let counts = work.logs("worker.producer.dead").await;
    assert_eq!(counts["uncertain"], Value::Bool(true));
    let _serve = pipeline.serve().await;
    lost(&pipeline, 0, true).await;
}

#[tokio::test]
async fn appends_of_a_process_that_died_uncounted_hide_no_later_loss() {
    let servers = shared().await;
    let (pipeline, mut serve, mut work) = one_shard(&servers.redis, &servers.postgres).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    serve.kill();
    pipeline.execute("update producers set appended = 7").await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    work.logs("worker.producer.dead").await;
    let _serve = pipeline.serve().await;
    let meanwhile = Load::new("meanwhile", 10);
    pipeline.send(&meanwhile.records).await;
    pipeline.applied().await;
    let appended = async || pipeline.redis::<Option<i64>>(&["HGET", &pipeline.fence(0), "appended"]).await;
    eventually("Redis counts every record again", async || {
        appended().await == Some(before.entries() + meanwhile.entries())
    })
    .await;
    lost(&pipeline, 0, true).await;
    work.stop().await;
    let gone = Load::new("lost", 25);
    pipeline.send(&gone.records).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    let _work = pipeline.work();
    lost(&pipeline, gone.entries(), true).await;
}

#[tokio::test]
async fn a_hash_that_was_deleted_alone_loses_no_record_and_blocks_no_shard() {
    let servers = shared().await;
    let (pipeline, _serve, mut work) = one_shard(&servers.redis, &servers.postgres).await;
    let loads = [0, 100, 200, 300].map(|start| Load::from("r", start, 30));
    pipeline.send(&loads[0].records).await;
    pipeline.applied().await;
    work.stop().await;
    pipeline.send(&loads[1].records).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.fence(0)]).await;
    pipeline.send(&loads[2].records).await;
    let _work = pipeline.work();
    pipeline.applied().await;
    pipeline.send(&loads[3].records).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&loads.map(|load| load.ids).concat()).await;
    lost(&pipeline, 0, false).await;
}

#[tokio::test]
async fn two_thousand_restarts_of_serve_cost_nothing_at_rest_and_hide_no_loss() {
    let servers = shared().await;
    let (pipeline, _serve, mut work) = one_shard(&servers.redis, &servers.postgres).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    work.stop().await;
    pipeline
        .execute(
            "with applied as (update shards set accounted = accounted + 6000)
             insert into producers (producer, shard, appended, closed)
             select 'former-' || n, 0, 3, true from generate_series(1, 2000) as n",
        )
        .await;
    let restore_counts = async || {
        for first in (1..=2000).step_by(500) {
            let fields: Vec<String> =
                (first..first + 500).flat_map(|n| [format!("by:former-{n}"), "3".to_owned()]).collect();
            let fence = pipeline.fence(0);
            let command: Vec<&str> = ["HSET", &fence].into_iter().chain(fields.iter().map(String::as_str)).collect();
            let _: i64 = pipeline.redis(&command).await;
        }
    };
    let _: i64 = pipeline.redis(&["HINCRBY", &pipeline.fence(0), "appended", "6000"]).await;
    restore_counts().await;
    let mut work = pipeline.work();
    let folded = async || {
        let rows = pipeline.number("select count(*) from producers where not folded").await;
        let fields: i64 = pipeline.redis(&["HLEN", &pipeline.fence(0)]).await;
        rows < 10 && fields < 30 && pipeline.number("select folded from shards").await == 6_000
    };
    eventually("the processes are folded into one sum", folded).await;
    // A Redis that was rewound to before that has their counts again.
    restore_counts().await;
    eventually("their counts are removed again", folded).await;
    lost(&pipeline, 0, false).await;
    work.stop().await;
    let gone = Load::new("lost", 25);
    pipeline.send(&gone.records).await;
    let _: i64 = pipeline.redis(&["DEL", &pipeline.records(0)]).await;
    let _work = pipeline.work();
    lost(&pipeline, gone.entries(), false).await;
}

#[tokio::test]
async fn a_serve_process_that_continues_after_it_was_taken_for_dead_raises_no_loss() {
    let servers = shared().await;
    let (pipeline, serve, _work) = one_shard(&servers.redis, &servers.postgres).await;
    pipeline.backdate_fence(0).await;
    let before = Load::new("before", 40);
    pipeline.send(&before.records).await;
    pipeline.applied().await;
    serve.pause();
    eventually("the process is closed as dead", async || {
        pipeline.number("select count(*) from producers where died and closed").await == 1
    })
    .await;
    let late = [record("late", "d")];
    let resume = async { serve.resume() };
    let ((), ()) = join(pipeline.send(&late), resume).await;
    pipeline.applied().await;
    pipeline.counted(0).await;
    lost(&pipeline, 0, false).await;
    eventually("it lives again", async || {
        pipeline.number("select count(*) from producers where died or closed").await == 0
    })
    .await;
}
