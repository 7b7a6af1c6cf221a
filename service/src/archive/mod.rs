//! Archives: partitions of records as objects in a directory or a bucket of S3, written before they are dropped.
//!
//! The same records are the same bytes under the same names, whenever and by whichever worker they are written: a worker that
//! is killed leaves nothing that the next one does not write again. Must never report a period as written before each of its
//! objects and its manifest are, and must never show a credential.

mod http;
mod line;
mod manifest;
mod object;
mod place;

use std::{collections::BTreeMap, fmt};

use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};

use crate::{
    config::SecretError,
    domain::{Period, Seq, ShardId},
    store::{self, ArchiveObject, Store, within},
};

pub use place::{Archive, Owner};

/// Why a period is not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Postgres failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A Secret is missing or cannot be used.
    #[error("{0}")]
    Secret(#[from] SecretError),
    /// The archive failed; its place and the cause.
    #[error("{place}: {cause}")]
    Place {
        /// Its place.
        place: String,
        /// The cause.
        cause: String,
    },
}

/// A period that is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Number of its objects, without the manifest.
    pub objects: usize,
    /// Number of its records.
    pub records: i64,
    /// Size of its objects in bytes.
    pub bytes: i64,
}

impl Archive {
    /// Writes the objects of a period that are not written yet, looks whether all are there, and writes the manifest; nothing
    /// for a period without records. `None`: `continues` returned false between two objects.
    ///
    /// # Errors
    /// When Postgres or the archive fails: what was written stays and is not written again.
    pub async fn write(
        &self,
        store: &Store,
        period: Period,
        continues: impl Fn() -> bool,
    ) -> Result<Option<Written>, ArchiveError> {
        self.clean(period)?;
        let mut is_again = false;
        let objects = loop {
            let Some(objects) = self.write_missing(store, period, &continues).await? else { return Ok(None) };
            if self.remove_lost(store, period, &objects).await? == 0 {
                break objects;
            }
            if std::mem::replace(&mut is_again, true) {
                return Err(self.error("an object that was written is not there, or has another size"));
            }
        };
        if !objects.is_empty() {
            crate::fault::point("before_archive_manifest");
            let manifest = manifest::bytes(self, period, &objects);
            let written = self.objects.put(&self.path(period, manifest::NAME), manifest.into()).await;
            written.map_err(|error| self.failed(&error))?;
            crate::fault::point("after_archive_manifest");
        }
        let sum = |of: fn(&ArchiveObject) -> i64| objects.iter().map(of).sum::<i64>();
        Ok(Some(Written {
            objects: objects.len(),
            records: sum(|object| object.records),
            bytes: sum(|object| object.bytes),
        }))
    }

    /// Writes the objects that are not noted. Returns all objects of the period, by shard and number.
    async fn write_missing(
        &self,
        store: &Store,
        period: Period,
        continues: &impl Fn() -> bool,
    ) -> Result<Option<Vec<ArchiveObject>>, ArchiveError> {
        let noted = within(store.archive_objects(period, self.place())).await?;
        let mut last: BTreeMap<ShardId, ArchiveObject> = BTreeMap::new();
        for object in noted {
            last.insert(object.shard, object);
        }
        for end in within(store.period_ends(period)).await? {
            let mut last = last.remove(&end.shard);
            loop {
                let after = last.as_ref().map_or(Seq::default(), |object| object.last);
                let Some(next) = within(store.next_to_archive(period, end.shard, after)).await? else { break };
                if !continues() {
                    return Ok(None);
                }
                // Records that came after the object of their numbers was written: all of it again, under the same name.
                let first = match &last {
                    Some(object) if object.until >= next && !object.is_dropped => object.first,
                    _ => next,
                };
                let object = self.write_object(store, period, end.shard, first).await?;
                crate::fault::point("after_archive_object");
                within(store.note_archive_object(period, self.place(), &object)).await?;
                last = Some(object);
            }
        }
        Ok(Some(within(store.archive_objects(period, self.place())).await?))
    }

    /// Deletes the rows of objects that are not there in their size. Returns their number.
    async fn remove_lost(
        &self,
        store: &Store,
        period: Period,
        objects: &[ArchiveObject],
    ) -> Result<usize, ArchiveError> {
        let folder = self.path(period, "");
        let found = self.objects.list(Some(&folder)).map_ok(|object| (object.location, object.size));
        let found: BTreeMap<Path, u64> = found.try_collect().await.map_err(|error| self.failed(&error))?;
        let mut lost = 0;
        // Of one whose records are gone nothing can be written again.
        for object in objects.iter().filter(|object| !object.is_dropped) {
            let size = found.get(&self.path(period, &manifest::name(object)));
            if size.copied() != u64::try_from(object.bytes).ok() {
                within(store.remove_archive_object(period, object)).await?;
                lost += 1;
            }
        }
        Ok(lost)
    }

    fn failed(&self, error: &object_store::Error) -> ArchiveError {
        self.error(shown(&error.to_string()))
    }

    fn error(&self, cause: impl fmt::Display) -> ArchiveError {
        ArchiveError::Place { place: self.place().to_owned(), cause: cause.to_string() }
    }
}

/// An error without the document that the server answered, which repeats the id of the access key: of that only its code.
fn shown(error: &str) -> String {
    let Some((head, document)) = error.split_once("<") else { return error.to_owned() };
    let code = document.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map_or("an answer that is not shown", |(code, _)| code);
    format!("{}: {code}", head.trim_end_matches([' ', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_server_are_shown_by_their_code() {
        let answer = "PUT failed: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code>\
                      <AWSAccessKeyId>AKIA1</AWSAccessKeyId></Error>";
        assert_eq!(shown(answer), "PUT failed: 403 Forbidden: InvalidAccessKeyId");
        assert_eq!(shown("503: <html><body>key AKIA1"), "503: an answer that is not shown");
        assert_eq!(shown("connection refused"), "connection refused");
    }
}
