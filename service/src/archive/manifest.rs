//! The manifest of a period, which is written last: a period without one is not complete.
//!
//! Must hold nothing that differs between two writes of the same records.

use serde::Serialize;

use super::Archive;
use crate::{domain::Period, store::ArchiveObject};

/// Its name in the folder of the period.
pub(super) const NAME: &str = "manifest.json";

/// The version of the form of objects and manifest.
const VERSION: u32 = 1;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    version: u32,
    pipeline: &'a str,
    pipeline_id: &'a str,
    period: String,
    records: i64,
    objects: Vec<Object<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    name: String,
    shard: u16,
    first_seq: i64,
    last_seq: i64,
    records: i64,
    bytes: i64,
    sha256: &'a str,
}

/// The name of an object in the folder of its period: its shard, its first number and the last one that it may hold.
pub(super) fn name(object: &ArchiveObject) -> String {
    let ArchiveObject { shard, first, until, .. } = object;
    format!("shard-{:03}/{:015}-{:015}.ndjson.zst", shard.get(), first.get(), until.get())
}

/// The manifest of a period.
pub(super) fn bytes(archive: &Archive, period: Period, objects: &[ArchiveObject]) -> Vec<u8> {
    let manifest = Manifest {
        version: VERSION,
        pipeline: archive.pipeline(),
        pipeline_id: archive.pipeline_id(),
        period: period.to_string(),
        records: objects.iter().map(|object| object.records).sum(),
        objects: objects
            .iter()
            .map(|object| Object {
                name: name(object),
                shard: object.shard.get(),
                first_seq: object.first.get(),
                last_seq: object.last.get(),
                records: object.records,
                bytes: object.bytes,
                sha256: &object.sha256,
            })
            .collect(),
    };
    // Strings and numbers: always JSON.
    let mut bytes = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
