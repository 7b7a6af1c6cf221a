//! A Redis Cluster and a Redis with sentinels: another server takes a primary's place while records come in.

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

use crate::harness::{Load, ManyRedis, Pipeline, check_stream, eventually, lost, obtain, record};

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    /// Ids that were taken: 202, or an outcome.
    taken: Mutex<HashSet<String>>,
    /// Ids whose outcome was told: 200.
    promised: Mutex<HashSet<String>>,
    /// Entries of which nobody knows whether they were taken.
    unknown: AtomicI64,
    stop: AtomicBool,
}

impl Told {
    /// Sends records of this name until it is told to stop, each until it is taken.
    async fn send(&self, pipeline: &Pipeline, name: &str, many: usize, waits: bool) {
        for part in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let ids: Vec<String> = (0..many).map(|n| format!("{name}-{part}-{n}")).collect();
            let records: Vec<Value> = ids.iter().map(|id| record(id, &format!("destination-{}", part % 40))).collect();
            eventually("it is taken", async || {
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
                let taken = status != 503 && (waits || answer["accepted"] == many);
                if status == 200 {
                    self.promised.lock().unwrap().extend(ids.iter().cloned());
                } else if !taken {
                    // Refused, maybe, of which `unknown` is an upper bound.
                    self.unknown.fetch_add(many as i64, Ordering::Relaxed);
                }
                taken
            })
            .await;
            self.taken.lock().unwrap().extend(ids);
        }
    }

    fn count(&self) -> usize {
        self.taken.lock().unwrap().len()
    }
}

/// Lets `strike` happen under load, and compares what clients were told with what there is then. Answers how many records
/// were taken and are gone.
async fn under_load(pipeline: &Pipeline, name: &str, strike: impl AsyncFnOnce(&str)) -> i64 {
    let told = Told::default();
    let before = pipeline.get("/stats").await;
    let key = pipeline.records(0);
    let striking = async {
        eventually("records come in", async || told.count() > 500).await;
        strike(&key).await;
        let struck = told.count();
        eventually("they come in again", async || told.count() > struck + 500).await;
        eventually("outcomes are waited for", async || told.promised.lock().unwrap().len() > 20).await;
        told.stop.store(true, Ordering::Relaxed);
    };
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|client| format!("{name}-{client}"));
    let batches = join(told.send(pipeline, &a, 20, false), told.send(pipeline, &b, 7, false));
    let waiting = join(told.send(pipeline, &c, 1, true), told.send(pipeline, &d, 1, true));
    join(striking, join(batches, waiting)).await;
    pipeline.applied().await;

    let stored: Vec<String> =
        sqlx::query_scalar("select record_id from records").fetch_all(&pipeline.sql).await.unwrap();
    let there: HashSet<&String> = stored.iter().collect();
    assert_eq!(there.len(), stored.len(), "none is there twice");
    let promised = std::mem::take(&mut *told.promised.lock().unwrap());
    let broken: Vec<_> = promised.iter().filter(|id| !there.contains(id)).collect();
    assert!(broken.is_empty(), "answered 200 and gone: {broken:?}");
    let gone = told.taken.lock().unwrap().iter().filter(|id| !there.contains(id)).count() as i64;
    let unknown = told.unknown.load(Ordering::Relaxed);
    // Counted once a second.
    eventually("what is lost is said", async || {
        let after = pipeline.get("/stats").await;
        let least = after["lost"].as_i64().unwrap() - before["lost"].as_i64().unwrap();
        let most = after["lostAtMost"].as_i64().zip(before["lost"].as_i64()).map(|(most, before)| most - before);
        least <= gone + unknown && most.is_some_and(|most| most >= gone)
    })
    .await;
    check_stream(&pipeline.sink_entries("notifications").await, &stored);
    pipeline.verify().await;
    println!("{name}: {} taken, {gone} gone, {unknown} unknown", told.count());
    gone
}

/// A server that dies comes back as a replica; one that was stalled wakes up as the primary that it is not any more.
async fn is_followed(redis: &mut ManyRedis) {
    let pipeline = Pipeline::on_many(redis, json!({"shards": 6})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    // Or the first would be followed by another before it was found.
    work.ready().await;
    under_load(&pipeline, "ordered", async |key| redis.change_over(key).await).await;
    let stood = redis.primary_of(&pipeline.records(0)).await;
    under_load(&pipeline, "stood", async |key| {
        redis.signal(stood, Signal::SIGSTOP);
        redis.moved_from(key, stood).await;
    })
    .await;
    redis.signal(stood, Signal::SIGCONT);
    redis.is_whole().await;
    let died = redis.primary_of(&pipeline.records(0)).await;
    under_load(&pipeline, "died", async |key| {
        redis.signal(died, Signal::SIGKILL);
        redis.moved_from(key, died).await;
    })
    .await;
    redis.start_again(died).await;
    assert!(work.said("streams.servers.found").len() >= 4, "it turned to another server each time");
}

/// Replicas that are behind take the place of their primary: what they never had is gone, and said.
async fn loses_what_is_counted(redis: &ManyRedis) {
    let pipeline = Pipeline::on_many(redis, json!({"shards": 1})).await;
    let (_serve, mut work) = (pipeline.serve().await, pipeline.work());
    pipeline.send(&Load::new("before", 40).records).await;
    pipeline.applied().await;
    let primary = redis.primary_of(&pipeline.records(0)).await;
    let replicas = redis.replicas_of(primary).await;
    eventually("replicas have it all", async || redis.is_behind(primary).await == 0).await;
    redis.cut_off(primary, &replicas).await;
    for n in 0..10 {
        pipeline.apply(&record(&format!("told-{n}"), "d")).await.expect(200);
    }
    work.stop().await;
    let gone = Load::from("gone", 40, 25);
    pipeline.send(&gone.records).await;
    redis.signal(primary, Signal::SIGKILL);
    replicas.iter().for_each(|port| redis.signal(*port, Signal::SIGCONT));
    redis.moved_from(&pipeline.records(0), primary).await;
    let work = pipeline.work();
    let line = work.says("worker.records.lost").await;
    assert_eq!((&line["at_least"], &line["at_most"]), (&json!(gone.entries()), &json!(gone.entries())), "{line}");
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["lost"], &stats["processed"]), (&json!(gone.entries()), &json!(50)), "{stats}");
    // It continues, also with what was lost, and no number was given twice.
    pipeline.send_through(&gone.records).await;
    pipeline.applied().await;
    let stored: Vec<String> =
        sqlx::query_scalar("select record_id from records").fetch_all(&pipeline.sql).await.unwrap();
    assert_eq!(stored.len(), 75);
    check_stream(&pipeline.sink_entries("notifications").await, &stored);
    pipeline.verify().await;
}

/// What a serve process appended that died is known where its server has replicas, until one of them took its place.
async fn knows_what_the_dead_appended(redis: &ManyRedis) {
    let pipeline = Pipeline::on_many(redis, json!({"shards": 1})).await;
    let (mut serve, work) = (pipeline.serve().await, pipeline.work());
    for (dead, accounted) in [true, false].into_iter().enumerate() {
        pipeline.send(&Load::new(&format!("of-{dead}"), 40).records).await;
        pipeline.applied().await;
        pipeline.stood_for_long(0).await;
        serve.kill();
        if !accounted {
            redis.change_over(&pipeline.records(0)).await;
        }
        let buried =
            obtain("its last word is spoken", async || work.said("process.appender.buried").get(dead).cloned());
        assert_eq!(buried.await["accounted"], accounted);
        serve = pipeline.serve().await;
        lost(&pipeline, 0, accounted.then_some(0)).await;
    }
}

#[tokio::test]
async fn what_the_dead_appended_is_known_unless_a_cluster_failed_over() {
    knows_what_the_dead_appended(&ManyRedis::cluster().await).await;
}

#[tokio::test]
async fn what_the_dead_appended_is_known_unless_sentinels_failed_over() {
    knows_what_the_dead_appended(&ManyRedis::sentinels().await).await;
}

#[tokio::test]
async fn what_a_failover_of_a_cluster_loses_is_counted_and_no_outcome_is_lost() {
    loses_what_is_counted(&ManyRedis::cluster().await).await;
}

#[tokio::test]
async fn what_a_failover_by_sentinels_loses_is_counted_and_no_outcome_is_lost() {
    loses_what_is_counted(&ManyRedis::sentinels().await).await;
}

#[tokio::test]
async fn primaries_of_a_cluster_are_followed() {
    is_followed(&mut ManyRedis::cluster().await).await;
}

#[tokio::test]
async fn the_primary_that_sentinels_name_is_followed() {
    is_followed(&mut ManyRedis::sentinels().await).await;
}
