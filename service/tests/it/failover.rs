//! A Redis Cluster and a Redis with sentinels fail over while clients send records.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::join;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Load, ManyRedis, Pipeline, check_stream, eventually, obtain, record};

/// The answers that clients got.
#[derive(Debug, Default)]
struct Answers {
    /// Ids that were answered with 202 or 200.
    accepted: Mutex<HashSet<String>>,
    /// Ids that were answered with their outcome, 200.
    applied: Mutex<HashSet<String>>,
    /// An upper bound of the entries that were appended without a positive answer.
    unknown: AtomicI64,
    stop: AtomicBool,
}

impl Answers {
    /// Sends records with ids of this prefix until `stop`, `many` in a request, and repeats each request until it is
    /// accepted. With `waits`, a request is one record with `Prefer: wait`.
    async fn send(&self, pipeline: &Pipeline, name: &str, many: usize, waits: bool) {
        for part in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let ids: Vec<String> = (0..many).map(|n| format!("{name}-{part}-{n}")).collect();
            let records: Vec<Value> = ids.iter().map(|id| record(id, &format!("destination-{}", part % 40))).collect();
            eventually("the request is accepted", async || {
                let request = match waits {
                    true => pipeline.request(Method::POST, "/records").header("prefer", "wait=5").json(&records[0]),
                    false => pipeline.request(Method::POST, "/records/batch").json(&records),
                };
                let Ok(answer) = request.timeout(Duration::from_secs(20)).send().await else {
                    self.unknown.fetch_add(many as i64, Ordering::Relaxed);
                    return false;
                };
                let status = answer.status().as_u16();
                let answer: Value = answer.json().await.unwrap_or_default();
                assert!([200, 202, 503].contains(&status), "{status}: {answer}");
                let accepted = status != 503 && (waits || answer["accepted"] == many);
                if status == 200 {
                    self.applied.lock().unwrap().extend(ids.iter().cloned());
                } else if !accepted {
                    // Part of it may have been appended.
                    self.unknown.fetch_add(many as i64, Ordering::Relaxed);
                }
                accepted
            })
            .await;
            self.accepted.lock().unwrap().extend(ids);
        }
    }

    fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }
}

/// Injects a fault under load, and compares the answers of clients with the stored records. `inject` gets the input
/// stream of shard 0. Returns how many accepted records are lost.
async fn under_load(pipeline: &Pipeline, name: &str, inject: impl AsyncFnOnce(&str)) -> i64 {
    let answers = Answers::default();
    let before = pipeline.get("/stats").await;
    let key = pipeline.records(0);
    let injecting = async {
        eventually("clients send", async || answers.count() > 500).await;
        inject(&key).await;
        let before = answers.count();
        eventually("clients send again", async || answers.count() > before + 500).await;
        eventually("clients get outcomes", async || answers.applied.lock().unwrap().len() > 20).await;
        answers.stop.store(true, Ordering::Relaxed);
    };
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|client| format!("{name}-{client}"));
    let batches = join(answers.send(pipeline, &a, 20, false), answers.send(pipeline, &b, 7, false));
    let waiting = join(answers.send(pipeline, &c, 1, true), answers.send(pipeline, &d, 1, true));
    join(injecting, join(batches, waiting)).await;
    pipeline.applied().await;

    let stored: Vec<String> =
        sqlx::query_scalar("select record_id from records").fetch_all(&pipeline.sql).await.unwrap();
    let unique: HashSet<&String> = stored.iter().collect();
    assert_eq!(unique.len(), stored.len(), "no record is stored twice");
    let applied = std::mem::take(&mut *answers.applied.lock().unwrap());
    let broken: Vec<_> = applied.iter().filter(|id| !unique.contains(id)).collect();
    assert!(broken.is_empty(), "answered with 200 and not stored: {broken:?}");
    let lost = answers.accepted.lock().unwrap().iter().filter(|id| !unique.contains(id)).count() as i64;
    let unknown = answers.unknown.load(Ordering::Relaxed);
    // Workers reconcile the counts once a second. Records of unknown outcome can have been appended and lost.
    eventually("losses are reported", async || {
        let after = pipeline.get("/stats").await;
        let reported = after["lost"].as_i64().unwrap() - before["lost"].as_i64().unwrap();
        (lost..=lost + unknown).contains(&reported)
    })
    .await;
    check_stream(&pipeline.sink_entries("notifications").await, &stored);
    pipeline.verify().await;
    println!("{name}: {} accepted, {lost} lost, {unknown} unknown", answers.count());
    lost
}

/// Fails over in three ways: in order, by a primary that is paused, and by one that is killed. A paused primary resumes
/// as the primary that it no longer is; a killed one restarts as a replica.
async fn follow_primaries(redis: &mut ManyRedis) {
    let pipeline = Pipeline::on_many(redis, json!({"shards": 6})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    // Otherwise the first failover could end before the worker has found the first primary.
    work.ready().await;
    under_load(&pipeline, "ordered", async |key| redis.fail_over(key).await).await;
    let paused = redis.primary_of(&pipeline.records(0)).await;
    under_load(&pipeline, "paused", async |key| {
        redis.signal(paused, Signal::SIGSTOP);
        redis.moved_from(key, paused).await;
    })
    .await;
    redis.signal(paused, Signal::SIGCONT);
    redis.is_replicated().await;
    let killed = redis.primary_of(&pipeline.records(0)).await;
    under_load(&pipeline, "killed", async |key| {
        redis.signal(killed, Signal::SIGKILL);
        redis.moved_from(key, killed).await;
    })
    .await;
    redis.restart(killed).await;
    assert!(work.logged("streams.servers.found").len() >= 4, "it found each new primary");
}

/// A replica that is behind is promoted: the records that it lacks are lost, and the pipeline counts them.
async fn promote_a_replica_that_is_behind(redis: &ManyRedis) {
    let pipeline = Pipeline::on_many(redis, json!({"shards": 1})).await;
    let (_serve, mut work) = (pipeline.serve().await, pipeline.work());
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    let primary = redis.primary_of(&pipeline.records(0)).await;
    let replicas = redis.replicas_of(primary).await;
    eventually("replicas have all of it", async || redis.replica_lag(primary).await == 0).await;
    redis.disconnect_replicas(primary, &replicas).await;
    for n in 0..10 {
        pipeline.apply(&record(&format!("applied-{n}"), "d")).await.expect(200);
    }
    work.stop().await;
    let lost = Load::from("lost", 40, 25);
    pipeline.send(&lost.records).await;
    redis.signal(primary, Signal::SIGKILL);
    replicas.iter().for_each(|port| redis.signal(*port, Signal::SIGCONT));
    redis.moved_from(&pipeline.records(0), primary).await;
    let work = pipeline.work();
    work.logs("worker.records.lost").await;
    crate::harness::lost(&pipeline, lost.entries(), false).await;
    assert_eq!(pipeline.get("/stats").await["processed"], 50);
    // The pipeline continues, accepts the lost records again, and gives no number twice.
    pipeline.send_through(&lost.records).await;
    pipeline.applied().await;
    let stored: Vec<String> =
        sqlx::query_scalar("select record_id from records").fetch_all(&pipeline.sql).await.unwrap();
    assert_eq!(stored.len(), 75);
    check_stream(&pipeline.sink_entries("notifications").await, &stored);
    pipeline.verify().await;
}

/// Kills serve processes: their final counts are known on the same primary, and unknown after a failover.
async fn count_appends_of_dead_processes(redis: &ManyRedis) {
    let pipeline = Pipeline::on_many(redis, json!({"shards": 1})).await;
    let (mut serve, work) = (pipeline.serve().await, pipeline.work());
    for (earlier, uncertain) in [false, true].into_iter().enumerate() {
        pipeline.send(&Load::new(&format!("of-{earlier}"), 40).records).await;
        pipeline.applied().await;
        pipeline.backdate_fence(0).await;
        serve.kill();
        if uncertain {
            redis.fail_over(&pipeline.records(0)).await;
        }
        let counts = obtain("the final counts", async || work.logged("worker.producer.dead").get(earlier).cloned());
        assert_eq!(counts.await["uncertain"], uncertain);
        serve = pipeline.serve().await;
        crate::harness::lost(&pipeline, 0, uncertain).await;
    }
}

#[tokio::test]
async fn appends_of_a_dead_process_are_known_unless_a_cluster_failed_over() {
    count_appends_of_dead_processes(&ManyRedis::cluster().await).await;
}

#[tokio::test]
async fn appends_of_a_dead_process_are_known_unless_sentinels_failed_over() {
    count_appends_of_dead_processes(&ManyRedis::sentinels().await).await;
}

#[tokio::test]
async fn a_failover_of_a_cluster_loses_counted_records_and_no_outcome() {
    promote_a_replica_that_is_behind(&ManyRedis::cluster().await).await;
}

#[tokio::test]
async fn a_failover_by_sentinels_loses_counted_records_and_no_outcome() {
    promote_a_replica_that_is_behind(&ManyRedis::sentinels().await).await;
}

#[tokio::test]
async fn primaries_of_a_cluster_are_followed() {
    follow_primaries(&mut ManyRedis::cluster().await).await;
}

#[tokio::test]
async fn the_primary_that_sentinels_name_is_followed() {
    follow_primaries(&mut ManyRedis::sentinels().await).await;
}
