//! Reads of the partitions that are archived, and the objects that hold them.
//!
//! An object is noted only after it is written. The rows are kept: they say which object holds a record that was dropped.

use chrono::{DateTime, Utc};

use super::{Error, Store, slow::Watch};
use crate::domain::{DestinationId, Period, RecordId, Reference, Seq, ShardId, SourceId, StreamId, Unit};

/// An object that holds records of a shard in a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveObject {
    /// The shard.
    pub shard: ShardId,
    /// The number of its first record.
    pub first: Seq,
    /// The number of its last record.
    pub last: Seq,
    /// The last number that it may hold.
    pub until: Seq,
    /// How many records it holds.
    pub records: i64,
    /// Its size in bytes.
    pub bytes: i64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Whether its records are no longer kept, so that it cannot be written again.
    pub is_dropped: bool,
}

/// A record with all that is stored of it.
#[derive(Debug, Clone)]
pub struct ArchivedRecord {
    /// Its number.
    pub seq: Seq,
    /// The epoch of the owner that committed it.
    pub epoch: i64,
    /// Its id.
    pub record_id: RecordId,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// Its source.
    pub source_id: SourceId,
    /// Its destination.
    pub destination_id: DestinationId,
    /// Whether its value is positive.
    pub positive: bool,
    /// Its value, unsigned.
    pub value: String,
    /// Its unit.
    pub unit: Unit,
    /// Together with the destination, the key of its total.
    pub reference: Reference,
    /// JSON, byte for byte as received.
    pub attributes: Option<String>,
    /// The record that it takes back.
    pub reverses: Option<RecordId>,
    /// The number of that record in the shard.
    pub original_seq: Option<Seq>,
    /// What remains of that record.
    pub rest: Option<String>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
    /// Number of records before it with the same key and unit.
    pub previous_count: i64,
    /// Their total.
    pub previous_total: String,
    /// The threshold that its value exceeds.
    pub threshold: Option<String>,
    /// The entry that it came in.
    pub stream_id: StreamId,
    /// Its index in the entry.
    pub stream_index: i16,
    /// W3C trace context of its request.
    pub traceparent: Option<String>,
}

/// A part of a shard's records in a period.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveRange {
    /// The period.
    pub period: Period,
    /// The shard.
    pub shard: ShardId,
    /// Records above this number.
    pub after: Seq,
    /// Records up to this number.
    pub until: Seq,
}

impl Store {
    /// The objects of a period at this place, by shard and number.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn archive_objects(&self, period: Period, place: &str) -> Result<Vec<ArchiveObject>, Error> {
        let objects = sqlx::query_as!(
            ArchiveObject,
            r#"select o.shard as "shard: ShardId", first_seq as "first: Seq", last_seq as "last: Seq", until_seq as "until: Seq",
                      records, bytes, sha256, last_seq <= coalesce(e.upto, 0) as "is_dropped!"
               from archive_objects o
               left join expired_counts e on e.shard = o.shard and e.kind = 'records' and e.destination_id = ''
               where period = $1 and place = $2
               order by o.shard, first_seq"#,
            period.first(),
            place
        );
        Ok(objects.fetch_all(&self.pool).await?)
    }

    /// Notes an object that is written. One that begins with the same record is replaced.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn note_archive_object(&self, period: Period, place: &str, object: &ArchiveObject) -> Result<(), Error> {
        sqlx::query!(
            "insert into archive_objects (period, shard, first_seq, last_seq, until_seq, records, bytes, sha256, place)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             on conflict (period, shard, first_seq) do update
             set last_seq = excluded.last_seq, until_seq = excluded.until_seq, records = excluded.records,
                 bytes = excluded.bytes, sha256 = excluded.sha256, place = excluded.place",
            period.first(),
            object.shard as ShardId,
            object.first as Seq,
            object.last as Seq,
            object.until as Seq,
            object.records,
            object.bytes,
            object.sha256,
            place
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes the row of an object that is missing at its place.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn remove_archive_object(&self, period: Period, object: &ArchiveObject) -> Result<(), Error> {
        sqlx::query!(
            "delete from archive_objects where period = $1 and shard = $2 and first_seq = $3",
            period.first(),
            object.shard as ShardId,
            object.first as Seq
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The first record of a shard in a period above a number.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn next_to_archive(&self, period: Period, shard: ShardId, after: Seq) -> Result<Option<Seq>, Error> {
        let next = sqlx::query_scalar!(
            r#"select seq as "seq: Seq" from records where period = $1 and shard = $2 and seq > $3 order by seq limit 1"#,
            period.first(),
            shard as ShardId,
            after as Seq
        );
        Ok(next.fetch_optional(&self.pool).await?)
    }

    /// The first records of a range, at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn records_to_archive(&self, range: ArchiveRange, limit: i64) -> Result<Vec<ArchivedRecord>, Error> {
        let _watch = Watch::start("archive.records");
        let rows = sqlx::query_as!(
            ArchivedRecord,
            r#"select r.seq as "seq: Seq", epoch, record_id as "record_id: RecordId", time, source_id as "source_id: SourceId",
                      destination_id as "destination_id: DestinationId", positive, value::text as "value!",
                      unit as "unit: Unit", reference as "reference: Reference", attributes,
                      reverses as "reverses: RecordId", r.original_seq as "original_seq: Seq", v.rest::text as rest,
                      received_at, processed_at,
                      previous_count, previous_total::text as "previous_total!", threshold::text as threshold,
                      stream_id as "stream_id: StreamId", stream_index, traceparent
               from records r
               left join reversals v on v.shard = r.shard and v.original_seq = r.original_seq and v.seq = r.seq
               where r.period = $1 and r.shard = $2 and r.seq > $3 and r.seq <= $4
               order by r.seq limit $5"#,
            range.period.first(),
            range.shard as ShardId,
            range.after as Seq,
            range.until as Seq,
            limit
        );
        Ok(rows.fetch_all(&self.pool).await?)
    }
}
