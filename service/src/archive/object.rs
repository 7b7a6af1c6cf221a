//! One object: consecutive records of a shard in a period, as NDJSON packed with zstd, in constant memory.

use std::{io::Write as _, sync::Arc, time::Instant};

use bytes::Bytes;
use object_store::{buffered::BufWriter, path::Path};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use zstd::stream::write::Encoder;

use super::{Archive, ArchiveError, line, manifest};
use crate::{
    domain::{Period, Seq, ShardId},
    store::{ArchiveObject, ArchiveRange, Store, within},
    telemetry::metrics as names,
};

/// Numbers of a shard whose records are one object, from a multiple of it on. Another value is other names: never change it.
const NUMBERS: i64 = 100_000;
/// Records of one read.
const PAGE: i64 = 1_000;
/// The level of zstd. Another level is other bytes: never change it.
const LEVEL: i32 = 3;
/// Bytes of a part of a large object. S3 takes no smaller ones than 5 MiB.
const PART: usize = 8 << 20;
/// Packed bytes that are handed over at once.
const CHUNK: usize = 1 << 20;

/// The upload of an object, and what is known of its bytes.
struct Upload {
    writer: BufWriter,
    sha256: Sha256,
    bytes: i64,
}

impl Upload {
    async fn put(&mut self, packed: Vec<u8>) -> object_store::Result<()> {
        self.sha256.update(&packed);
        self.bytes += i64::try_from(packed.len()).unwrap_or(i64::MAX);
        self.writer.put(Bytes::from(packed)).await?;
        crate::fault::point("after_archive_chunk");
        Ok(())
    }
}

impl Archive {
    /// Writes the object that begins with a record.
    pub(super) async fn write_object(
        &self,
        store: &Store,
        period: Period,
        shard: ShardId,
        first: Seq,
    ) -> Result<ArchiveObject, ArchiveError> {
        let numbers = crate::fault::archive_numbers(NUMBERS);
        let until = Seq::new((first.get() / numbers + 1) * numbers - 1);
        let mut object = ArchiveObject {
            shard,
            first,
            last: first,
            until,
            records: 0,
            bytes: 0,
            sha256: String::new(),
            is_dropped: false,
        };
        let path = self.path(period, &manifest::name(&object));
        let mut upload = self.begin(path);
        match self.fill(store, period, &mut object, &mut upload).await {
            Ok(()) => {
                upload.writer.shutdown().await.map_err(|error| self.error(super::shown(&error.to_string())))?;
                object.bytes = upload.bytes;
                object.sha256 = hex::encode(upload.sha256.finalize());
                metrics::counter!(names::ARCHIVED_RECORDS).increment(object.records.unsigned_abs());
                metrics::counter!(names::ARCHIVED_BYTES).increment(object.bytes.unsigned_abs());
                Ok(object)
            }
            Err(error) => {
                // The parts of it cost room until they are removed; where that fails, a rule of the bucket does it.
                let _ = upload.writer.abort().await;
                Err(error)
            }
        }
    }

    fn begin(&self, path: Path) -> Upload {
        let writer = BufWriter::with_capacity(Arc::clone(&self.objects), path, PART).with_max_concurrency(1);
        Upload { writer, sha256: Sha256::new(), bytes: 0 }
    }

    async fn fill(
        &self,
        store: &Store,
        period: Period,
        object: &mut ArchiveObject,
        upload: &mut Upload,
    ) -> Result<(), ArchiveError> {
        let packing = |error: &dyn std::fmt::Display| self.error(format!("records cannot be packed: {error}"));
        let mut encoder = Encoder::new(Vec::new(), LEVEL).map_err(|error| packing(&error))?;
        encoder.include_checksum(true).map_err(|error| packing(&error))?;
        let mut line = Vec::new();
        let mut after = Seq::new(object.first.get() - 1);
        loop {
            let began = Instant::now();
            let range = ArchiveRange { period, shard: object.shard, after, until: object.until };
            let page = within(store.records_to_archive(range, PAGE)).await?;
            let Some(last) = page.last() else { break };
            (after, object.last) = (last.seq, last.seq);
            object.records += i64::try_from(page.len()).unwrap_or(PAGE);
            for record in &page {
                line.clear();
                line::write(&mut line, object.shard, record).map_err(|error| packing(&error))?;
                encoder.write_all(&line).map_err(|error| packing(&error))?;
                if encoder.get_ref().len() >= CHUNK {
                    let packed = std::mem::take(encoder.get_mut());
                    upload.put(packed).await.map_err(|error| self.failed(&error))?;
                }
            }
            if page.len() < PAGE as usize {
                break;
            }
            // Half of the time is left to commits and queries.
            tokio::time::sleep(began.elapsed()).await;
        }
        let packed = encoder.finish().map_err(|error| packing(&error))?;
        upload.put(packed).await.map_err(|error| self.failed(&error))
    }
}
