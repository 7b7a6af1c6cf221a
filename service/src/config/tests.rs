//! The follower against a real Postgres: what is active after a file or the database changed.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use millrace_crds::{Reason, status_api::Problem};

use super::{ActiveManifest, Place, Setup, process_name};
use crate::{
    domain::ShardId,
    lifecycle::Lifecycle,
    store::testing::{self, TestPipeline},
};

struct Process {
    lifecycle: Lifecycle,
    setup: Setup,
}

impl Process {
    async fn start(place: &Place) -> Self {
        let lifecycle = Lifecycle::new();
        let setup = Setup::new(place, &process_name("test"), 3, &lifecycle).await.unwrap();
        Self { lifecycle, setup }
    }

    /// Waits until what is active is so, and gives how long it took.
    async fn until(&mut self, so: impl FnMut(&ActiveManifest) -> bool) -> Duration {
        let start = Instant::now();
        let waited = tokio::time::timeout(Duration::from_secs(5), self.setup.active_manifest.wait_for(so)).await;
        waited.expect("within five seconds").unwrap();
        start.elapsed()
    }

    fn version(&self) -> i64 {
        self.setup.active_manifest.borrow().policy.version
    }
}

fn place(dir: &tempfile::TempDir) -> Place {
    // Redis is not used here, and may be unavailable.
    Place::new(dir.path().join("pipeline.yaml"), "redis://127.0.0.1:1", testing::url().as_str())
}

/// Writes the manifest with a threshold; a metadata field can be put in.
fn write(test: &TestPipeline, dir: &tempfile::TempDir, metadata: &str, spec: &str) {
    let name = &test.manifest.metadata.name;
    let text = format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: RecordPipeline\nmetadata: {{ name: {name}{metadata} }}\nspec: {{ {spec} }}\n"
    );
    fs::write(dir.path().join("pipeline.yaml"), text).unwrap();
}

#[tokio::test]
async fn a_changed_file_is_active_within_two_seconds_in_every_process() {
    let (test, dir) = (TestPipeline::new("shards: 2").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 2, threshold: '10'");
    let place = place(&dir);
    let (mut a, mut b) = (Process::start(&place).await, Process::start(&place).await);
    assert_eq!((a.version(), b.version()), (1, 1));
    assert_ne!(a.setup.process, b.setup.process);
    write(&test, &dir, "", "shards: 2, threshold: '20'");
    let start = Instant::now();
    for process in [&mut a, &mut b] {
        process.until(|active_manifest| active_manifest.policy.version == 2).await;
        let threshold = process.setup.active_manifest.borrow().policy.threshold("EUR");
        assert_eq!(threshold.map(|value| value.to_string()).as_deref(), Some("20"));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_invalid_file_is_refused_and_the_old_one_stays_until_it_is_fixed() {
    let (test, dir) = (TestPipeline::new("shards: 2").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 2, threshold: '10'");
    let mut process = Process::start(&place(&dir)).await;
    for (spec, named) in [
        ("shards: 2, threshold: '-1'", "threshold"),
        ("shards: 2, treshold: '1'", "treshold"),
        ("shards: 3, threshold: '1'", "spec.shards is immutable"),
    ] {
        write(&test, &dir, "", spec);
        process
            .until(|active_manifest| active_manifest.refusal.as_deref().is_some_and(|why| why.contains(named)))
            .await;
        assert_eq!(process.version(), 1, "{spec}");
    }
    fs::remove_file(dir.path().join("pipeline.yaml")).unwrap();
    process
        .until(|active_manifest| active_manifest.refusal.as_deref().is_some_and(|why| why.contains("cannot be read")))
        .await;
    write(&test, &dir, "", "shards: 2, threshold: '10'");
    process.until(|active_manifest| active_manifest.refusal.is_none()).await;
    assert_eq!(process.version(), 1);
    write(&test, &dir, "", "shards: 2, threshold: '11'");
    process.until(|active_manifest| active_manifest.policy.version == 2).await;
}

#[tokio::test]
async fn a_pipeline_keeps_its_name() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1");
    let place = place(&dir);
    let mut process = Process::start(&place).await;
    let text = fs::read_to_string(&place.pipeline).unwrap().replace(&test.manifest.metadata.name, "another");
    fs::write(&place.pipeline, text).unwrap();
    process
        .until(|active_manifest| active_manifest.refusal.as_deref().is_some_and(|why| why.contains("keeps its name")))
        .await;
    assert_eq!(process.version(), 1);
}

#[tokio::test]
async fn a_config_map_that_swaps_its_link_is_followed() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1, threshold: '10'");
    let file = dir.path().join("pipeline.yaml");
    let old = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    for (version, text) in [("v1", old.clone()), ("v2", old.replace("'10'", "'20'"))] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("pipeline.yaml"), text).unwrap();
    }
    symlink("v1", dir.path().join("data")).unwrap();
    symlink("data/pipeline.yaml", &file).unwrap();
    let mut process = Process::start(&place(&dir)).await;
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), dir.path().join("data")).unwrap();
    process.until(|active_manifest| active_manifest.policy.version == 2).await;
}

#[tokio::test]
async fn a_lower_generation_is_refused_and_a_new_uid_waits_for_its_claim() {
    let (mut test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    test.manifest.metadata.uid = Some("u1".to_owned());
    test.store.claim(&test.manifest, "x").await.unwrap();
    write(&test, &dir, ", uid: u1, generation: 5", "shards: 1, threshold: '5'");
    let mut process = Process::start(&place(&dir)).await;
    write(&test, &dir, ", uid: u1, generation: 4", "shards: 1, threshold: '4'");
    process
        .until(|active_manifest| active_manifest.refusal.as_deref().is_some_and(|why| why.contains("lower than 5")))
        .await;
    assert_eq!(process.version(), 1);
    write(&test, &dir, ", uid: u2, generation: 1", "shards: 1, threshold: '7'");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(process.version(), 1);
    test.manifest.metadata.uid = Some("u2".to_owned());
    test.store.claim(&test.manifest, "x").await.unwrap();
    process.until(|active_manifest| active_manifest.policy.version == 2).await;
}

/// The operator counts a refusal for the generation that `/status` names beside it.
#[tokio::test]
async fn a_refusal_comes_with_the_generation_that_it_is_about() {
    let (mut test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    test.manifest.metadata.uid = Some("u1".to_owned());
    test.store.claim(&test.manifest, "x").await.unwrap();
    write(&test, &dir, ", uid: u1, generation: 1", "shards: 1, threshold: '1'");
    let process = Process::start(&place(&dir)).await;
    let content_of = async |generation: i64| {
        let board = &process.lifecycle.board;
        let reads =
            || Some(board.content()).filter(|one| one.manifest.as_ref().map(|one| one.generation) == Some(generation));
        until("the file is read", async || reads().is_some()).await;
        reads().unwrap().problems.into_iter().map(|problem| problem.reason).collect::<Vec<_>>()
    };
    for round in [2, 4] {
        write(&test, &dir, &format!(", uid: u1, generation: {round}"), "shards: 1, whatIsThis: 1");
        assert_eq!(content_of(round).await, [Reason::ManifestInvalid]);
        write(
            &test,
            &dir,
            &format!(", uid: u1, generation: {}", round + 1),
            &format!("shards: 1, threshold: '{round}'"),
        );
        assert_eq!(content_of(round + 1).await, []);
    }
}

#[tokio::test]
async fn a_missing_shard_row_is_recreated() {
    let (test, dir) = (TestPipeline::new("shards: 2").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 2");
    let _process = Process::start(&place(&dir)).await;
    test.store.lose_shard(ShardId::new(1)).await;
    let start = Instant::now();
    while test.store.shard_rows().await < 2 {
        assert!(start.elapsed() < Duration::from_secs(8));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_database_of_another_pipeline_ends_the_process() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1");
    let process = Process::start(&place(&dir)).await;
    test.store.become_another().await;
    let ended = process.lifecycle.run(Duration::from_secs(5)).await.unwrap_err().to_string();
    assert!(ended.contains("the database is now pipeline another's"), "{ended}");
}

#[tokio::test]
async fn a_changed_redis_url_is_turned_to_and_one_that_is_none_is_not() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1, redis: { urlSecretRef: { name: payments-redis, key: url } }");
    let mut place = place(&dir);
    let file = dir.path().join("redis");
    fs::write(&file, "redis://127.0.0.1:1").unwrap();
    (place.redis_url, place.redis_url_file) = (None, Some(file.clone()));
    let process = Process::start(&place).await;
    let streams = &process.setup.streams;
    assert!(streams.backlog(1).await.is_err(), "nobody listens there");
    fs::write(&file, crate::streams::testing::url()).unwrap();
    until("it is turned to", async || streams.backlog(1).await.is_ok()).await;
    fs::write(&file, "s3cret").unwrap();
    let board = &process.lifecycle.board;
    until("it is said", async || !board.of("secrets").is_empty()).await;
    let problem = board.of("secrets").remove(0);
    assert_eq!(problem.reason, Reason::SecretInvalid);
    assert!(problem.message.contains("payments-redis, key url"), "{problem:?}");
    assert!(!problem.message.contains("s3cret"), "{problem:?}");
    fs::remove_file(&file).unwrap();
    let gone = [Problem::new(Reason::SecretNotFound, "payments-redis, key url")];
    until("the missing secret is a problem", async || board.of("secrets") == gone).await;
    assert!(streams.backlog(1).await.is_ok(), "the previous connection continues");
    fs::write(&file, crate::streams::testing::url()).unwrap();
    until("all is well", async || board.of("secrets").is_empty()).await;
}

#[tokio::test]
async fn secrets_that_come_late_are_waited_for() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    let refs = "redis: { urlSecretRef: { name: r, key: url } }, postgres: { urlSecretRef: { name: p, key: dsn } }";
    write(&test, &dir, "", &format!("shards: 1, {refs}"));
    let mut place = place(&dir);
    let (redis, postgres) = (dir.path().join("redis"), dir.path().join("postgres"));
    (place.redis_url, place.redis_url_file) = (None, Some(redis.clone()));
    (place.postgres_url, place.postgres_url_file) = (None, Some(postgres.clone()));
    let lifecycle = Lifecycle::new();
    let (board, heartbeats, process) = (lifecycle.board.clone(), lifecycle.heartbeats.clone(), process_name("test"));
    let coming = async {
        let missing = |name: &str| Problem::new(Reason::SecretNotFound, name);
        until("both are missed", async || board.of("start") == [missing("r, key url"), missing("p, key dsn")]).await;
        assert_eq!(heartbeats.stalled(), ["waiting for the pipeline"]);
        fs::write(&redis, "\n").unwrap();
        fs::write(&postgres, "postgres:// s3cret").unwrap();
        until("one is empty, one is none", async || {
            board
                .of("start")
                .iter()
                .map(|problem| problem.reason.clone())
                .eq([Reason::SecretNotFound, Reason::SecretInvalid])
        })
        .await;
        assert!(!format!("{:?}", board.of("start")).contains("s3cret"));
        fs::write(&redis, "redis://127.0.0.1:1").unwrap();
        fs::write(&postgres, "postgres://nobody:s3cret@127.0.0.1:1/none").unwrap();
        until("nobody listens there", async || {
            board.of("start").iter().map(|problem| problem.reason.clone()).eq([Reason::PostgresUnreachable])
        })
        .await;
        assert!(board.of("start")[0].message.contains("refused"), "{:?}", board.of("start"));
        assert!(!format!("{:?}", board.of("start")).contains("s3cret"));
        fs::write(&postgres, testing::url()).unwrap();
    };
    let (setup, ()) = tokio::join!(Setup::new(&place, &process, 2, &lifecycle), coming);
    assert_eq!(setup.unwrap().active_manifest.borrow().policy.version, 1);
    assert!(board.of("start").is_empty());
}

#[tokio::test]
async fn a_manifest_that_breaks_rules_at_the_start_leaves_the_last_accepted_active() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1, threshold: '10'");
    let mut place = place(&dir);
    Process::start(&place).await.lifecycle.soft.cancel();
    write(&test, &dir, "", "shards: 1, threshold: '20', whatIsThis: 1");
    let (lifecycle, process) = (Lifecycle::new(), process_name("test"));
    let refused = Setup::new(&place, &process, 2, &lifecycle).await.unwrap_err();
    assert!(format!("{refused:#}").contains("whatIsThis"), "without a name it is an error: {refused:#}");

    place.pipeline_name = Some(test.manifest.metadata.name.clone());
    for text in [fs::read_to_string(&place.pipeline).unwrap(), "neither: [".to_owned()] {
        fs::write(&place.pipeline, text).unwrap();
        let mut process = Process::start(&place).await;
        let active_manifest = process.setup.active_manifest.borrow().clone();
        assert_eq!((active_manifest.policy.version, active_manifest.manifest.spec.shards), (1, 1));
        assert_eq!(active_manifest.policy.threshold("EUR").map(|value| value.to_string()).as_deref(), Some("10"));
        assert!(active_manifest.refusal.is_some());
        assert_eq!(process.lifecycle.board.of("manifest")[0].reason, Reason::ManifestInvalid);
        write(&test, &dir, "", "shards: 1, threshold: '10'");
        process.until(|active_manifest| active_manifest.refusal.is_none()).await;
        until("nothing is wrong", async || process.lifecycle.board.of("manifest").is_empty()).await;
    }

    // Another's file is no reason to work on this schema.
    write(&test, &dir, ", namespace: prod", "shards: 1, whatIsThis: 1");
    let lifecycle = Lifecycle::new();
    let (board, process) = (lifecycle.board.clone(), process_name("test"));
    let refused = until("it is refused", async || {
        board.of("start").iter().any(|problem| problem.reason == Reason::OtherPipeline)
    });
    tokio::select! {
        setup = Setup::new(&place, &process, 2, &lifecycle) => panic!("it works on another's schema: {setup:?}"),
        () = refused => {}
    }
}

#[tokio::test]
async fn a_process_waits_for_its_schema_and_is_not_ready_meanwhile() {
    let (manifest, dir) = (testing::manifest("shards: 1"), tempfile::tempdir().unwrap());
    let name = &manifest.metadata.name;
    fs::write(dir.path().join("pipeline.yaml"), serde_saphyr::to_string(&manifest).unwrap()).unwrap();
    let (place, lifecycle) = (place(&dir), Lifecycle::new());
    let process = process_name("test");
    let (waiting, heartbeats) = (Setup::new(&place, &process, 2, &lifecycle), lifecycle.heartbeats.clone());
    let migrating = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let still = heartbeats.stalled();
        crate::commands::migrate::migrate(&place).await.unwrap();
        still
    };
    let (setup, still) = tokio::join!(waiting, migrating);
    assert_eq!(setup.unwrap().active_manifest.borrow().policy.version, 1);
    assert_eq!(still, ["waiting for the pipeline"]);
    // From the first look at the manifest on it moves.
    while !lifecycle.heartbeats.stalled().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    testing::drop_schema(name);
}

#[tokio::test]
async fn a_process_of_another_namespace_is_refused_until_it_adopts() {
    let (mut test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, ", namespace: prod", "shards: 1");
    let (place, lifecycle, process) = (place(&dir), Lifecycle::new(), process_name("test"));
    let board = lifecycle.board.clone();
    let adopting = async {
        until("it is refused", async || !board.of("start").is_empty()).await;
        let problem = board.of("start").remove(0);
        assert_eq!(problem.reason, Reason::OtherPipeline);
        assert!(problem.message.contains("belongs to pipeline default/"), "{problem:?}");
        let id = test.pipeline.pipeline_id.clone();
        let annotated = format!(", namespace: prod, annotations: {{ millrace.dev/adopt: '{id}' }}");
        write(&test, &dir, &annotated, "shards: 1");
        until("it is not claimed yet", async || {
            board.of("start").iter().any(|problem| problem.reason == Reason::UidNotClaimed)
        })
        .await;
        test.manifest.metadata.namespace = Some("prod".to_owned());
        test.manifest.metadata.annotations.insert(millrace_crds::ADOPT.to_owned(), id);
        test.store.claim(&test.manifest, "x").await.unwrap();
    };
    let (setup, ()) = tokio::join!(Setup::new(&place, &process, 2, &lifecycle), adopting);
    assert_eq!(setup.unwrap().active_manifest.borrow().policy.version, 1);
}

#[tokio::test]
async fn an_added_annotation_reaches_running_processes() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1");
    let mut process = Process::start(&place(&dir)).await;
    write(&test, &dir, ", annotations: { millrace.dev/adopt: old }", "shards: 1");
    process.until(|active_manifest| active_manifest.manifest.annotation(millrace_crds::ADOPT) == "old").await;
    assert_eq!(process.version(), 1, "it makes no version");
}

#[tokio::test]
async fn a_version_that_a_newer_process_put_active_leaves_the_old_one_and_is_said() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1");
    let process = Process::start(&place(&dir)).await;
    test.store.register_later(2, r#"{"shards": 1, "whatIsThis": 1}"#).await;
    let board = &process.lifecycle.board;
    until("it is said", async || board.of("newest").iter().any(|problem| problem.reason == Reason::SchemaTooNew)).await;
    assert_eq!(process.version(), 1);
}

/// Waits for a condition.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(20), "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
