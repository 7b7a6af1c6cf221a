//! Follows the manifest's file and its newest version in Postgres while the process runs.
//!
//! Files are followed by their content, which also holds for the symbolic links that a mounted ConfigMap swaps. Must never
//! put anything in force that Postgres does not have as its newest version, and never drop what is in force because a server
//! or the file is away.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use millrace_crds::RecordPipeline;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    InForce, Place,
    setup::{offer, other_uid, refusal, say},
};
use crate::{
    lifecycle::Beat,
    store::{Error, Registered, Store},
    telemetry::metrics::{MANIFEST_REFUSED, POLICY_VERSION},
};

/// Between two looks. A change is in force after two of them at the most: one for the file, one for another process's.
const LOOK: Duration = Duration::from_millis(300);
/// Between two checks that every shard has its row.
const CHECK_SHARDS: u32 = 10;

/// The URLs that the connections were made with.
pub(super) struct Urls {
    pub(super) redis: String,
    pub(super) postgres: String,
}

pub(super) struct Follower {
    place: Place,
    /// The last content of the file that was read, valid or not.
    content: Option<String>,
    /// While the file cannot be read: what was refused before.
    unreadable: Option<Option<Arc<str>>>,
    /// The file as it was last accepted; of its spec only `shards`, which never changes, counts.
    frame: RecordPipeline,
    /// A change that Postgres has not judged yet.
    pending: Option<RecordPipeline>,
    urls: Urls,
    store: Store,
    in_force: watch::Sender<InForce>,
    /// What was last said of Postgres; said again only when it changes.
    trouble: String,
}

impl Follower {
    pub(super) fn new(
        place: Place,
        frame: RecordPipeline,
        urls: Urls,
        store: Store,
        in_force: watch::Sender<InForce>,
    ) -> Self {
        Self {
            place,
            content: None,
            unreadable: None,
            frame,
            pending: None,
            urls,
            store,
            in_force,
            trouble: String::new(),
        }
    }

    pub(super) async fn run(mut self, beat: Arc<Beat>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = 0_u32;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            self.look_at_file().await;
            self.look_at_urls()?;
            let outcome = tokio::select! {
                outcome = self.look_at_postgres(look.is_multiple_of(CHECK_SHARDS)) => outcome,
                () = stop.cancelled() => return Ok(()),
            };
            match outcome {
                Ok(()) if self.trouble.is_empty() => {}
                Ok(()) => {
                    tracing::info!("config.postgres.back");
                    self.trouble.clear();
                }
                Err(Trouble::Passing(error)) => {
                    let error = error.to_string();
                    if error != self.trouble {
                        tracing::warn!(error, "config.postgres.away: what is in force stays");
                        self.trouble = error;
                    }
                }
                Err(Trouble::OtherPipeline(id)) => bail!(
                    "the database is now pipeline {id}'s: its id differs from the one that this process started with; start again"
                ),
            }
            self.measure();
            beat.beat();
            look = look.wrapping_add(1);
        }
    }

    fn measure(&self) {
        let in_force = self.in_force.borrow();
        // Versions count from 1, far below what a float holds exactly.
        metrics::gauge!(POLICY_VERSION).set(in_force.policy.version as f64);
        metrics::gauge!(MANIFEST_REFUSED).set(if in_force.refusal.is_some() { 1.0 } else { 0.0 });
    }

    /// Reads the file; a content that was not seen yet becomes pending, or is refused with one line.
    async fn look_at_file(&mut self) {
        let read = tokio::fs::read_to_string(&self.place.pipeline).await;
        let content = match read {
            Ok(content) => content,
            // Not remembered as content, so that the same content coming back is no change.
            Err(error) => {
                if self.unreadable.is_none() {
                    self.unreadable = Some(self.in_force.borrow().refusal.clone());
                    self.refuse(&format!("cannot be read: {error}"));
                }
                return;
            }
        };
        if let Some(before) = self.unreadable.take() {
            self.in_force.send_modify(|in_force| in_force.refusal = before);
        }
        if self.content.as_ref() == Some(&content) {
            return;
        }
        let parsed = RecordPipeline::from_yaml(&content);
        let first = self.content.replace(content).is_none();
        match parsed {
            Ok(manifest) if first && manifest == self.frame => {}
            Ok(manifest) if manifest.metadata.name != self.frame.metadata.name => {
                let (was, is) = (&self.frame.metadata.name, &manifest.metadata.name);
                self.refuse(&format!(
                    "metadata.name changed from {was} to {is}: a pipeline keeps its name; start another one"
                ));
            }
            Ok(manifest) => self.pending = Some(manifest),
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    /// A changed URL of Postgres holds for new connections; one of Redis ends the process in order, to be started again.
    fn look_at_urls(&mut self) -> anyhow::Result<()> {
        if self.place.postgres_url_file.is_some()
            && let Some(url) = changed(self.place.postgres_url(), &self.urls.postgres)
        {
            match self.store.redirect(&url, &self.frame.metadata.name) {
                Ok(()) => tracing::info!("config.postgres_url.changed"),
                Err(_) => tracing::warn!("config.postgres_url.refused: it is no URL of Postgres; the old one stays"),
            }
            self.urls.postgres = url;
        }
        if self.place.redis_url_file.is_some() && changed(self.place.redis_url(), &self.urls.redis).is_some() {
            bail!("the URL of Redis changed in its file: start again to use it");
        }
        Ok(())
    }

    async fn look_at_postgres(&mut self, check_shards: bool) -> Result<(), Trouble> {
        if let Some(manifest) = self.pending.take() {
            match self.offer(&manifest).await {
                Ok(()) => {}
                Err(error) => {
                    self.pending = Some(manifest);
                    return Err(error.into());
                }
            }
        }
        if check_shards {
            self.store.ensure_shards(self.frame.spec.shards).await?;
        }
        let Some(newest) = self.store.newest().await? else { return Ok(()) };
        let now = self.in_force.borrow().clone();
        if *newest.pipeline_id != *now.pipeline_id {
            return Err(Trouble::OtherPipeline(newest.pipeline_id));
        }
        if newest.version != now.policy.version {
            let mut next = InForce::new(&self.frame, newest.spec, newest.version, now.pipeline_id);
            next.refusal = now.refusal;
            tracing::info!(version = newest.version, was = now.policy.version, "config.manifest.in_force");
            self.in_force.send_replace(next);
        }
        Ok(())
    }

    async fn offer(&mut self, manifest: &RecordPipeline) -> Result<(), Error> {
        let Some(pipeline) = self.store.pipeline().await? else {
            return Err(Error::Refused(
                "the schema is not there, or older than this millrace: run `millrace migrate`".to_owned(),
            ));
        };
        if let Err(Error::Refused(why)) = pipeline.admits(manifest) {
            self.refuse(&why);
            return Ok(());
        }
        if let Some(why) = other_uid(&pipeline, manifest) {
            // Stays pending: it is judged once the schema was claimed for it.
            return Err(Error::Refused(why));
        }
        let registered = self.store.register(&offer(manifest, true)).await?;
        match refusal(&registered) {
            Some(why) => self.refuse(&why),
            None => {
                say(&registered);
                self.in_force.send_if_modified(|in_force| in_force.refusal.take().is_some());
            }
        }
        if matches!(registered, Registered::AsNew(_) | Registered::Same(_)) {
            self.frame = manifest.clone();
        }
        Ok(())
    }

    /// Says why the file's content is not in force, and keeps it for `/status`. Called once for each content.
    fn refuse(&self, why: &str) {
        let (file, version) = (self.place.pipeline.display(), self.in_force.borrow().policy.version);
        tracing::warn!(%file, why, version, "config.manifest.refused: the version in force stays");
        self.in_force.send_modify(|in_force| in_force.refusal = Some(why.into()));
    }
}

/// The URL that a file holds now, when it is another one. A file that is away for a moment changes nothing.
fn changed(read: anyhow::Result<String>, was: &str) -> Option<String> {
    read.ok().filter(|url| !url.is_empty() && url != was)
}

enum Trouble {
    /// Waited for.
    Passing(Error),
    /// Ends the process: what it holds belongs to another pipeline.
    OtherPipeline(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Passing(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, time::Instant};

    use super::*;
    use crate::{
        config::Setup,
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
}
