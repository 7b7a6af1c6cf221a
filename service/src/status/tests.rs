//! The answer of `/status` against real servers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use millrace_crds::{Reason, status_api::Problem};

use super::Reporter;
use crate::{
    config::{Place, Setup, process_name},
    domain::ShardId,
    lifecycle::Lifecycle,
    store::testing::{self, TestPipeline},
};

struct Running {
    lifecycle: Lifecycle,
    reporter: Reporter,
    setup: Setup,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn start(test: &TestPipeline, redis: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pipeline.yaml");
        std::fs::write(&file, serde_saphyr::to_string(&test.manifest).unwrap()).unwrap();
        let place = Place::new(file, redis, testing::url().as_str());
        let (lifecycle, process) = (Lifecycle::new(), process_name("work"));
        let reporter = Reporter::new("work", &process, &lifecycle.board);
        let before = json!(reporter.answer().await);
        assert_eq!((&before["shards"], &before["ageMs"], &before["owned"]), (&Value::Null, &Value::Null, &json!([])));
        let setup = Setup::new(&place, &process, 3, &lifecycle).await.unwrap();
        reporter.found(&setup);
        Self { lifecycle, reporter, setup, _dir: dir }
    }

    async fn answer(&self) -> Value {
        json!(self.reporter.answer().await)
    }

    /// The answer as soon as it is so.
    async fn until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.answer().await;
            if so(&answer) {
                return answer;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "waited for: {what}: {answer:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn reasons(answer: &Value) -> Vec<&str> {
    answer["problems"].as_array().unwrap().iter().map(|problem| problem["reason"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn it_tells_where_the_pipeline_stands() {
    let mut test = TestPipeline::new("shards: 2").await;
    test.manifest.metadata.uid = Some("uid-1".to_owned());
    test.manifest.metadata.generation = Some(3);
    test.store.claim(&test.manifest, "x").await.unwrap();
    let running = Running::start(&test, &crate::streams::testing::url()).await;
    let fence = test.store.take(&running.setup.process, ShardId::new(1), "token", 60_000).await.unwrap().unwrap();
    test.store.apply_policy(ShardId::new(1), &fence, 1).await.unwrap();
    let answer = running.answer().await;
    assert!(answer["ageMs"].as_u64().is_some_and(|age| age < 5_000), "{answer}");
    let expected = json!({
        "role": "work",
        "software": env!("CARGO_PKG_VERSION"),
        "process": &*running.setup.process,
        "pipeline": test.manifest.metadata.name,
        "pipelineId": test.pipeline.pipeline_id,
        "manifest": {"uid": "uid-1", "generation": 3},
        "active": {"version": 1, "uid": "uid-1", "generation": 3},
        "refusal": null,
        "problems": [],
        "stalledTasks": [],
        "shards": [
            {"shard": 0, "leased": false, "owner": null, "version": 0, "uid": null, "generation": null},
            {"shard": 1, "leased": true, "owner": &*running.setup.process, "version": 1, "uid": "uid-1", "generation": 3},
        ],
        "owned": [1],
        "sinks": [],
        "counts": {"backlog": 0, "unpublished": 0, "processed": 0, "alerts": 0,
                   "deadLetters": 0, "lost": 0},
        "redisDurability": "Durable",
        "ageMs": answer["ageMs"],
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn facts_are_gathered_once_a_second_however_often_it_is_asked() {
    let test = TestPipeline::new("shards: 1").await;
    let running = Running::start(&test, &crate::streams::testing::url()).await;
    let asked = futures::future::join_all((0..50).map(|_| running.reporter.known(&running.setup))).await;
    let first = asked[0].clone().unwrap().0;
    assert!(asked.iter().all(|known| known.as_ref().is_some_and(|(at, _)| *at == first)), "one gathering for all");
    let mut gathered = vec![first];
    while first.elapsed() < Duration::from_millis(2_500) {
        let at = running.reporter.known(&running.setup).await.unwrap().0;
        if gathered.last() != Some(&at) {
            gathered.push(at);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let apart: Vec<Duration> = gathered.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(!apart.is_empty() && apart.iter().all(|apart| *apart >= super::FRESH), "{apart:?}");
}

#[tokio::test]
async fn what_is_wrong_with_the_servers_is_said() {
    let test = TestPipeline::new("shards: 1").await;
    let running = Running::start(&test, "redis://127.0.0.1:1").await;
    let answer = running.answer().await;
    assert_eq!(reasons(&answer), ["RedisUnreachable"]);
    assert_eq!((&answer["counts"], answer["shards"].as_array().map(Vec::len)), (&Value::Null, Some(1)));

    test.store.need_schema(999).await;
    running.until("a newer schema", |answer| reasons(answer).contains(&"SchemaTooNew")).await;
    test.store.need_schema(1).await;
    test.store.delete_migrations().await;
    let answer = running.until("an older schema", |answer| reasons(answer).contains(&"NotMigrated")).await;
    assert_eq!((&answer["shards"], &answer["sinks"]), (&Value::Null, &Value::Null), "nothing is known of it");
    testing::drop_schema(&test.manifest.metadata.name);
    running.until("no schema", |answer| reasons(answer).contains(&"NotMigrated")).await;
    running.setup.store.redirect("postgres://nobody:s3cret@127.0.0.1:1/x", &test.manifest.metadata.name).unwrap();
    running.setup.store.close().await;
    let answer = running.until("no Postgres", |answer| reasons(answer).contains(&"PostgresUnreachable")).await;
    assert!(!answer.to_string().contains("s3cret"), "{answer}");
    // Problems of the parts of the process are listed too, the worst first, each once.
    running.lifecycle.board.set("manifest", [Problem::new(Reason::ManifestInvalid, "x")]);
    running.lifecycle.board.set("secrets", [Problem::new(Reason::SecretInvalid, "x")]);
    running.lifecycle.board.set("keys", [Problem::new(Reason::SecretInvalid, "x")]);
    let answer = running.answer().await;
    assert_eq!(reasons(&answer), ["SecretInvalid", "PostgresUnreachable", "RedisUnreachable", "ManifestInvalid"]);
}

#[tokio::test]
async fn a_server_that_never_answers_holds_no_answer_up() {
    let test = TestPipeline::new("shards: 1").await;
    // Takes connections, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = Running::start(&test, &format!("redis://{}", silent.local_addr().unwrap())).await;
    let began = Instant::now();
    running.answer().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let answer = running.until("it is said", |answer| reasons(answer) == ["RedisUnreachable"]).await;
    assert_eq!((&answer["counts"], answer["shards"].as_array().map(Vec::len)), (&Value::Null, Some(1)));
}
