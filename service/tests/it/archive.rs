//! Archives: partitions are written to a directory or a bucket before they are dropped, and whatever is killed, they end with
//! the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::harness::{Load, Pipeline, S3, eventually, record, sink};

/// Few numbers in an object, so that a shard has several.
const NUMBERS: (&str, &str) = ("MILLRACE_FAULT_ARCHIVE_NUMBERS", "100");

fn spec(archive: Value) -> Value {
    json!({
        "shards": 2, "sinks": [sink("notifications", "Processed")],
        "retention": {"partition": "Day", "records": "3d"}, "archive": archive,
    })
}

fn directory(path: &Path) -> Value {
    json!({"directory": {"path": path}})
}

/// Files below a folder, by their names in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

impl Pipeline {
    /// The folder of its archive in a directory or a bucket.
    async fn folder(&self) -> String {
        let id: String = sqlx::query_scalar("select pipeline_id from pipeline").fetch_one(&self.sql).await.unwrap();
        format!("{}/{id}", self.name)
    }

    async fn archived_periods(&self) -> i64 {
        // Empty partitions beside them are dropped, too.
        let archived = "select count(*) from dropped_periods
                        where archive is not null and dropped_at is not null and last_time is not null";
        self.number(archived).await
    }

    /// Changes the manifest, and waits until it is active.
    async fn changed(&self, change: impl FnOnce(&mut Value)) {
        let version = "select max(version) from policies";
        let before = self.number(version).await;
        self.change(change);
        eventually("the manifest is registered", async || self.number(version).await > before).await;
    }
}

/// The lines of an archive, each of a record. All objects are listed in the manifest of their period, as they are.
fn lines(archive: &BTreeMap<String, Vec<u8>>) -> Vec<Value> {
    let mut lines = Vec::new();
    let manifests = archive.iter().filter(|(name, _)| name.ends_with("/manifest.json"));
    let mut listed = BTreeSet::new();
    for (name, manifest) in manifests {
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        let period = name.strip_suffix("/manifest.json").unwrap();
        assert_eq!((&manifest["version"], manifest["period"].as_str().unwrap()), (&json!(1), period));
        let mut records = 0;
        for object in manifest["objects"].as_array().unwrap() {
            let name = format!("{period}/{}", object["name"].as_str().unwrap());
            let bytes = &archive[&name];
            assert_eq!(object["bytes"], bytes.len(), "{name}");
            assert_eq!(object["sha256"], hex::encode(Sha256::digest(bytes)), "{name}");
            let text = String::from_utf8(zstd::decode_all(&bytes[..]).unwrap()).unwrap();
            let of: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(object["records"], of.len(), "{name}");
            let seq = |line: &Value| line["log"]["seq"].as_i64().unwrap();
            let (first, last) = (seq(&of[0]), seq(of.last().unwrap()));
            assert_eq!((&object["firstSeq"], &object["lastSeq"]), (&json!(first), &json!(last)), "{name}");
            assert!(of.windows(2).all(|two| seq(&two[0]) < seq(&two[1])), "{name}");
            assert!(of.iter().all(|line| line["log"]["shard"] == object["shard"]), "{name}");
            records += of.len();
            lines.extend(of);
            listed.insert(name);
        }
        assert_eq!(manifest["records"], records, "{period}");
    }
    let objects = archive.keys().filter(|name| !name.ends_with("/manifest.json")).cloned();
    assert_eq!(objects.collect::<BTreeSet<_>>(), listed, "all objects are listed");
    lines
}

fn ids(lines: &[Value]) -> Vec<&str> {
    let mut ids: Vec<&str> = lines.iter().map(|line| line["record"]["recordId"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids
}

fn sorted(ids: &[String]) -> Vec<&str> {
    let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn partitions_are_archived_and_dropped_under_load() {
    let dir = TempDir::new().unwrap();
    let mut given = spec(directory(dir.path()));
    given["retention"]["records"] = "30d".into();
    let pipeline = Pipeline::new(given).await;
    let _serve = pipeline.serve().await;
    let mut sent = Vec::new();
    for (n, ago) in [6, 5, 4].into_iter().enumerate() {
        let load = Load::from("r", 300 * n, 300);
        pipeline.applied_days_ago(ago, &load.records).await;
        sent.extend(load.ids);
    }
    let before: Vec<Value> = pipeline.list("/records").await;

    let mut work = pipeline.work_with(&[NUMBERS]);
    work.ready().await;
    pipeline.change(|spec| spec["retention"]["records"] = "3d".into());
    let load = Load::from("r", 900, 1_500);
    let dropping =
        eventually("three periods are archived and dropped", async || pipeline.archived_periods().await == 3);
    tokio::join!(pipeline.send_through(&load.records), dropping);
    pipeline.applied().await;
    assert_eq!(pipeline.number("select count(*) from records").await, 1_500, "only new records are kept");

    let archive = files(&dir.path().join(pipeline.folder().await));
    let lines = lines(&archive);
    assert_eq!(ids(&lines), sorted(&sent), "each record once");
    assert!(archive.len() > 3 * (2 + 1), "several objects of a shard: {:?}", archive.keys());
    // A line has the record as the API returned it.
    let by_id: BTreeMap<&str, &Value> =
        lines.iter().map(|line| (line["record"]["recordId"].as_str().unwrap(), &line["record"])).collect();
    for record in &before {
        assert_eq!(by_id[record["recordId"].as_str().unwrap()], record);
    }
    assert_eq!(work.metric("millrace_archived_records_total").await, 900.0);
    let event = &work.logged("worker.archive.written")[0];
    assert_eq!(event["records"], 300, "{event}");
    pipeline.verify().await;
    work.stop().await;

    // Another pipeline takes the lines as they are.
    let copy = Pipeline::new(json!({ "shards": 3 })).await;
    let (_serve, _work) = (copy.serve().await, copy.work());
    for (name, bytes) in archive.iter().filter(|(name, _)| name.ends_with(".zst")) {
        let file = dir.path().join("unpacked.ndjson");
        fs::write(&file, zstd::decode_all(&bytes[..]).unwrap()).unwrap();
        let sent = copy.send_file(file.to_str().unwrap()).await;
        assert!(sent.status.success(), "{name}: {}", String::from_utf8_lossy(&sent.stderr));
    }
    eventually("all are applied", async || copy.number("select count(*) from records").await == 900).await;
}

impl Pipeline {
    async fn send_file(&self, file: &str) -> std::process::Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(["send", file, "--url", &self.url(), "--key", crate::harness::KEY]);
        command.output().await.unwrap()
    }
}

#[tokio::test]
async fn an_archive_that_is_cut_short_ends_with_the_same_bytes() {
    let (reference, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let missing = dir.path().join("missing");
    let pipeline = Pipeline::new(spec(directory(&missing))).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("old", 500);
    pipeline.applied_days_ago(5, &load.records).await;

    // A directory that is not there is not made: the partition stays, and it is said why.
    let mut work = pipeline.work_with(&[NUMBERS]);
    let status = work.has_problems(&["ArchiveFailing"]).await;
    let message = status["problems"][0]["message"].as_str().unwrap();
    assert!(message.contains("the directory is not there"), "{message}");
    work.logs("worker.archive.failed").await;
    assert!(!missing.exists());
    assert_eq!(pipeline.number("select count(*) from records").await, 500);
    work.stop().await;

    // All of it, and the end before the period is noted.
    pipeline.changed(|spec| spec["archive"] = directory(reference.path())).await;
    let mut work = pipeline.work_with(&[NUMBERS, ("MILLRACE_FAULT", "after_archive_manifest:1")]);
    work.died_at_its_fault().await;
    let folder = pipeline.folder().await;
    let expected = files(&reference.path().join(&folder));
    assert_eq!(ids(&lines(&expected)), sorted(&load.ids));

    pipeline.changed(|spec| spec["archive"] = directory(dir.path())).await;
    for fault in [
        "after_archive_chunk:1",
        "after_archive_object:2",
        "after_archive_chunk:2",
        "before_archive_manifest:1",
        "after_archive_manifest:1",
        "after_period_noted:1",
    ] {
        let mut work = pipeline.work_with(&[NUMBERS, ("MILLRACE_FAULT", fault)]);
        work.died_at_its_fault().await;
        assert_eq!(pipeline.number("select count(*) from records").await, 500, "{fault}");
    }
    let mut work = pipeline.work_with(&[NUMBERS]);
    eventually("the period is dropped", async || pipeline.archived_periods().await == 1).await;
    let found = files(&dir.path().join(&folder));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "the same bytes");
    pipeline.verify().await;
    work.stop().await;
}

#[tokio::test]
async fn records_that_come_after_the_archive_was_written_are_archived_before_the_drop() {
    let dir = TempDir::new().unwrap();
    let pipeline = Pipeline::new(spec(directory(dir.path()))).await;
    let _serve = pipeline.serve().await;
    let first = Load::new("first", 150);
    pipeline.applied_days_ago(5, &first.records).await;

    let mut work = pipeline.work_with(&[NUMBERS, ("MILLRACE_FAULT", "after_archive_manifest:1:stop")]);
    let folder = dir.path().join(pipeline.folder().await);
    let is_written = async || folder.exists() && files(&folder).keys().any(|name| name.ends_with("manifest.json"));
    eventually("the archive is written", is_written).await;
    // One that was lost meanwhile is written again, too.
    let lost = files(&folder).into_keys().find(|name| name.ends_with(".zst")).unwrap();
    // A worker whose clock is wrong applies more records in the same period.
    let late = Load::new("late", 150);
    pipeline.applied_days_ago(5, &late.records).await;
    fs::remove_file(folder.join(&lost)).unwrap();
    work.resume();
    eventually("the period is dropped", async || pipeline.archived_periods().await == 1).await;
    let archive = files(&folder);
    let all: Vec<String> = [first.ids, late.ids].concat();
    assert_eq!(ids(&lines(&archive)), sorted(&all), "each record once");
    assert_eq!(pipeline.number("select count(*) from records").await, 0);
    pipeline.verify().await;
    work.stop().await;
}

#[tokio::test]
async fn a_bucket_has_the_same_bytes_after_a_kill_in_the_middle_of_an_upload() {
    let (s3, reference) = (S3::start().await, TempDir::new().unwrap());
    let mut given = spec(directory(reference.path()));
    given["shards"] = 1.into();
    let pipeline = Pipeline::new(given).await;
    let _serve = pipeline.serve().await;
    // Attributes that cannot be packed: one object of several parts.
    let records: Vec<Value> = (0..2_600).map(incompressible).collect();
    pipeline.applied_days_ago(5, &records).await;
    let mut work = pipeline.work_with(&[("MILLRACE_FAULT", "after_archive_manifest:1")]);
    work.died_at_its_fault().await;
    let folder = pipeline.folder().await;
    let expected = files(&reference.path().join(&folder));
    assert!(expected.values().any(|bytes| bytes.len() > 9 << 20), "an object of several parts");

    // The kill comes when the first part is on its way.
    let secrets = s3.secrets();
    let secrets = ("MILLRACE_ARCHIVE_SECRETS_DIR", secrets.to_str().unwrap());
    pipeline.changed(|spec| spec["archive"] = s3.spec("records")).await;
    let mut work = pipeline.work_with(&[secrets, ("MILLRACE_FAULT", "after_archive_chunk:9")]);
    work.died_at_its_fault().await;
    assert_eq!(pipeline.number("select count(*) from records").await, 2_600);

    // A secret that is not the right one: it is said, and not shown. The right one is followed.
    s3.set_secret("not-this-one");
    let mut work = pipeline.work_with(&[secrets]);
    let status = work.has_problems(&["ArchiveFailing"]).await;
    let message = status["problems"][0]["message"].as_str().unwrap();
    assert!(message.contains("s3://records/some/place/") && message.contains("SignatureDoesNotMatch"), "{message}");
    s3.set_secret("archive-secret");
    eventually("the period is dropped", async || pipeline.archived_periods().await == 1).await;
    let log = fs::read_to_string(work.log()).unwrap();
    for hidden in ["not-this-one", "archive-key", "archive-secret"] {
        assert!(!log.contains(hidden) && !status.to_string().contains(hidden), "{hidden}");
    }
    let found = s3.objects(&format!("records/some/place/{folder}")).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "the same bytes");
    work.has_problems(&[]).await;
    work.stop().await;
}

/// A record with attributes of random digits.
fn incompressible(n: usize) -> Value {
    let mut record = record(&format!("r-{n}"), "d");
    let digits: String = (0..480).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    record["attributes"] = json!({ "digits": digits });
    record
}
