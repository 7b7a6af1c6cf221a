//! Lists of conflicts, with the content that has their id.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    Error, Store, StoredRecord,
    filter::{LimitArguments, is_unlimited},
    slow::Watch,
};
use crate::domain::{AccessLimit, DestinationId, RecordId, Reference, Seq, ShardId, ShardSeq, SourceId, Unit};

/// An entry that was refused because other content has its id.
#[derive(Debug, Clone)]
pub struct StoredConflict {
    /// Its shard.
    pub shard: ShardId,
    /// Its number in the shard, among conflicts.
    pub seq: Seq,
    /// The id.
    pub record_id: RecordId,
    /// When it was refused.
    pub noted_at: DateTime<Utc>,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// The refused payload.
    pub payload: Vec<u8>,
    /// The content that has the id: a processed record …
    pub record: Option<StoredRecord>,
    /// … or the payload of the newest dead letter of that id.
    pub dead_letter: Option<Vec<u8>>,
}

/// Filters of conflicts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConflictFilter {
    /// Their id.
    pub record_id: Option<RecordId>,
    /// Their destination.
    pub destination_id: Option<DestinationId>,
    /// Stored at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Stored before this.
    pub end: Option<DateTime<Utc>>,
    /// What the caller may reach, of the refused content and of the content that has the id.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub limit: AccessLimit,
}

impl Store {
    /// Conflicts above a number, by (shard, n), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_conflicts(
        &self,
        filter: &ConflictFilter,
        after: ShardSeq,
        limit: i64,
    ) -> Result<Vec<StoredConflict>, Error> {
        let access = LimitArguments::from(&filter.limit);
        let _watch = Watch::start("conflicts.list");
        let rows = sqlx::query_as!(
            ConflictColumns,
            r#"select c.shard as "shard: ShardId", c.n as "seq: Seq", c.record_id as "record_id: RecordId", c.noted_at, c.received_at, c.payload,
                      r.shard as "record_shard?: ShardId", r.seq as "record_seq?: Seq", r.time as "time?",
                      r.source_id as "source_id?: SourceId",
                      r.destination_id as "destination_id?: DestinationId", r.positive as "positive?", r.value::text as value,
                      r.unit as "unit?: Unit", r.reference as "reference?: Reference", r.attributes as "attributes?",
                      r.reverses as "reverses?: RecordId",
                      r.received_at as "record_received_at?", r.processed_at as "record_processed_at?",
                      (select d.payload from dead_letters d
                       where d.record_id = c.record_id and is_in_ranges(d.source_id, $8, $9)
                         and is_in_ranges(d.destination_id, $10, $11)
                       order by d.opened_at desc limit 1) as dead_letter
               from conflicts c
               left join (record_ids i join records r on r.shard = i.shard and r.seq = i.number and r.period = i.period)
                   on i.record_id = c.record_id and is_in_ranges(r.source_id, $8, $9)
                      and is_in_ranges(r.destination_id, $10, $11)
               where (c.shard, c.n) > ($1, $2)
                 and ($3::text is null or c.record_id = $3)
                 and ($4::text is null or c.destination_id = $4)
                 and ($5::timestamptz is null or c.noted_at >= $5)
                 and ($6::timestamptz is null or c.noted_at < $6)
                 and is_in_ranges(c.source_id, $8, $9) and is_in_ranges(c.destination_id, $10, $11)
               order by c.shard, c.n
               limit $7"#,
            after.shard as ShardId,
            after.seq as Seq,
            filter.record_id.as_ref() as Option<&RecordId>,
            filter.destination_id.as_ref() as Option<&DestinationId>,
            filter.start,
            filter.end,
            limit,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(ConflictColumns::into_conflict).collect())
    }
}

/// The columns of a conflict, and of the record that has its id.
struct ConflictColumns {
    shard: ShardId,
    seq: Seq,
    record_id: RecordId,
    noted_at: DateTime<Utc>,
    received_at: DateTime<Utc>,
    payload: Vec<u8>,
    record_shard: Option<ShardId>,
    record_seq: Option<Seq>,
    time: Option<DateTime<Utc>>,
    source_id: Option<SourceId>,
    destination_id: Option<DestinationId>,
    positive: Option<bool>,
    value: Option<String>,
    unit: Option<Unit>,
    reference: Option<Reference>,
    attributes: Option<String>,
    reverses: Option<RecordId>,
    record_received_at: Option<DateTime<Utc>>,
    record_processed_at: Option<DateTime<Utc>>,
    dead_letter: Option<Vec<u8>>,
}

impl ConflictColumns {
    fn into_conflict(self) -> StoredConflict {
        let record_id = self.record_id.clone();
        let record = (|| {
            Some(StoredRecord {
                shard: self.record_shard?,
                seq: self.record_seq?,
                record_id: self.record_id,
                time: self.time?,
                source_id: self.source_id?,
                destination_id: self.destination_id?,
                positive: self.positive?,
                value: self.value?,
                unit: self.unit?,
                reference: self.reference?,
                attributes: self.attributes,
                reverses: self.reverses,
                received_at: self.record_received_at?,
                processed_at: self.record_processed_at?,
            })
        })();
        StoredConflict {
            shard: self.shard,
            seq: self.seq,
            record_id,
            noted_at: self.noted_at,
            received_at: self.received_at,
            payload: self.payload,
            dead_letter: if record.is_none() { self.dead_letter } else { None },
            record,
        }
    }
}
