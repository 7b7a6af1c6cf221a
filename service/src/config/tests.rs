//! The follower against a real Postgres: what is in force after a file or the database changed.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use super::{InForce, Place, Setup};
use crate::{
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
        let setup = Setup::new(place, "test", 3, &lifecycle).await.unwrap();
        Self { lifecycle, setup }
    }

    /// Waits until what is in force is so, and gives how long it took.
    async fn until(&mut self, so: impl FnMut(&InForce) -> bool) -> Duration {
        let start = Instant::now();
        let waited = tokio::time::timeout(Duration::from_secs(5), self.setup.in_force.wait_for(so)).await;
        waited.expect("within five seconds").unwrap();
        start.elapsed()
    }

    fn version(&self) -> i64 {
        self.setup.in_force.borrow().policy.version
    }
}

fn place(dir: &tempfile::TempDir) -> Place {
    // Redis is not used here, and may be away.
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
async fn a_changed_file_is_in_force_within_two_seconds_in_every_process() {
    let (test, dir) = (TestPipeline::new("shards: 2").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 2, threshold: '10'");
    let place = place(&dir);
    let (mut a, mut b) = (Process::start(&place).await, Process::start(&place).await);
    assert_eq!((a.version(), b.version()), (1, 1));
    assert_ne!(a.setup.process, b.setup.process);
    write(&test, &dir, "", "shards: 2, threshold: '20'");
    let start = Instant::now();
    for process in [&mut a, &mut b] {
        process.until(|in_force| in_force.policy.version == 2).await;
        let threshold = process.setup.in_force.borrow().policy.threshold("EUR");
        assert_eq!(threshold.map(|value| value.to_string()).as_deref(), Some("20"));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_invalid_file_is_refused_and_the_old_one_stays_until_it_is_mended() {
    let (test, dir) = (TestPipeline::new("shards: 2").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 2, threshold: '10'");
    let mut process = Process::start(&place(&dir)).await;
    for (spec, named) in [
        ("shards: 2, threshold: '-1'", "threshold"),
        ("shards: 2, treshold: '1'", "treshold"),
        ("shards: 3, threshold: '1'", "spec.shards is immutable"),
    ] {
        write(&test, &dir, "", spec);
        process.until(|in_force| in_force.refusal.as_deref().is_some_and(|why| why.contains(named))).await;
        assert_eq!(process.version(), 1, "{spec}");
    }
    fs::remove_file(dir.path().join("pipeline.yaml")).unwrap();
    process.until(|in_force| in_force.refusal.as_deref().is_some_and(|why| why.contains("cannot be read"))).await;
    write(&test, &dir, "", "shards: 2, threshold: '10'");
    process.until(|in_force| in_force.refusal.is_none()).await;
    assert_eq!(process.version(), 1);
    write(&test, &dir, "", "shards: 2, threshold: '11'");
    process.until(|in_force| in_force.policy.version == 2).await;
}

#[tokio::test]
async fn a_pipeline_keeps_its_name() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1");
    let place = place(&dir);
    let mut process = Process::start(&place).await;
    let text = fs::read_to_string(&place.pipeline).unwrap().replace(&test.manifest.metadata.name, "another");
    fs::write(&place.pipeline, text).unwrap();
    process.until(|in_force| in_force.refusal.as_deref().is_some_and(|why| why.contains("keeps its name"))).await;
    assert_eq!(process.version(), 1);
}

#[tokio::test]
async fn a_config_map_that_swaps_its_link_is_followed() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1, threshold: '10'");
    let file = dir.path().join("pipeline.yaml");
    let old = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    for (version, text) in [("v1", old.clone()), ("v2", old.replace("10", "20"))] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("pipeline.yaml"), text).unwrap();
    }
    symlink("v1", dir.path().join("data")).unwrap();
    symlink("data/pipeline.yaml", &file).unwrap();
    let mut process = Process::start(&place(&dir)).await;
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), dir.path().join("data")).unwrap();
    process.until(|in_force| in_force.policy.version == 2).await;
}

#[tokio::test]
async fn a_lower_generation_is_refused_and_a_new_uid_waits_for_its_claim() {
    let (mut test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    test.manifest.metadata.uid = Some("u1".to_owned());
    test.store.claim(&test.manifest, "x").await.unwrap();
    write(&test, &dir, ", uid: u1, generation: 5", "shards: 1, threshold: '5'");
    let mut process = Process::start(&place(&dir)).await;
    write(&test, &dir, ", uid: u1, generation: 4", "shards: 1, threshold: '4'");
    process.until(|in_force| in_force.refusal.as_deref().is_some_and(|why| why.contains("lower than 5"))).await;
    assert_eq!(process.version(), 1);
    write(&test, &dir, ", uid: u2, generation: 1", "shards: 1, threshold: '7'");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(process.version(), 1);
    test.manifest.metadata.uid = Some("u2".to_owned());
    test.store.claim(&test.manifest, "x").await.unwrap();
    process.until(|in_force| in_force.policy.version == 2).await;
}

#[tokio::test]
async fn a_shard_row_that_vanishes_is_made_again() {
    let (test, dir) = (TestPipeline::new("shards: 2").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 2");
    let _process = Process::start(&place(&dir)).await;
    test.store.lose_shard(1).await;
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
async fn a_changed_redis_url_ends_the_process_in_order() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, "", "shards: 1");
    let mut place = place(&dir);
    let file = dir.path().join("redis");
    fs::write(&file, "redis://127.0.0.1:1").unwrap();
    (place.redis_url, place.redis_url_file) = (None, Some(file.clone()));
    let process = Process::start(&place).await;
    fs::write(&file, "redis://127.0.0.1:2").unwrap();
    let ended = process.lifecycle.run(Duration::from_secs(5)).await.unwrap_err().to_string();
    assert!(ended.contains("URL of Redis changed"), "{ended}");
}

#[tokio::test]
async fn a_process_waits_for_its_schema_and_is_not_ready_meanwhile() {
    let (manifest, dir) = (testing::manifest("shards: 1"), tempfile::tempdir().unwrap());
    let name = &manifest.metadata.name;
    fs::write(dir.path().join("pipeline.yaml"), serde_saphyr::to_string(&manifest).unwrap()).unwrap();
    let (place, lifecycle) = (place(&dir), Lifecycle::new());
    let (waiting, vitals) = (Setup::new(&place, "test", 2, &lifecycle), lifecycle.vitals.clone());
    let migrating = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let still = vitals.still();
        crate::commands::migrate::migrate(&place).await.unwrap();
        still
    };
    let (setup, still) = tokio::join!(waiting, migrating);
    assert_eq!(setup.unwrap().in_force.borrow().policy.version, 1);
    assert_eq!(still, ["waiting for the pipeline"]);
    // From the first look at the manifest on it moves.
    while !lifecycle.vitals.still().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    testing::drop_schema(name);
}

#[tokio::test]
async fn a_process_of_another_namespace_is_refused_at_once() {
    let (test, dir) = (TestPipeline::new("shards: 1").await, tempfile::tempdir().unwrap());
    write(&test, &dir, ", namespace: prod", "shards: 1");
    let refused = Setup::new(&place(&dir), "test", 2, &Lifecycle::new()).await.unwrap_err().to_string();
    assert!(refused.contains("belongs to pipeline default/"), "{refused}");
}
