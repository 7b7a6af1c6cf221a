//! Records in the order of processing, for a reader that follows them.
//!
//! Must never pass over a record that is committed later: the position is one number per shard, and within a shard
//! records become visible in the order of their numbers.

use super::{Error, RecordFilter, Store, StoredRecord, filter::filtered_records, slow::Watch};
use crate::domain::{DestinationId, RecordId, Reference, Seq, SeqRange, ShardId, ShardSeq, SourceId, Unit};

/// The part of a shard that a page reads.
#[derive(Debug, Clone, Copy)]
pub struct ShardPage {
    /// The shard.
    pub shard: ShardId,
    /// The numbers to read.
    pub range: SeqRange,
    /// Maximum number of its records.
    pub limit: i64,
}

impl Store {
    /// The highest number of each shard: every record up to it is visible.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn log_ends(&self) -> Result<Vec<ShardSeq>, Error> {
        let ends = sqlx::query_as!(
            ShardSeq,
            r#"select shard as "shard: ShardId", records as "seq: Seq" from shards order by shard"#
        );
        Ok(ends.fetch_all(&self.pool).await?)
    }

    /// Matching records of parts of shards, by the time of processing. Within a shard by number: where the clock of
    /// Postgres was set back, by the highest time so far.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_processed(&self, filter: &RecordFilter, pages: &[ShardPage]) -> Result<Vec<StoredRecord>, Error> {
        let _watch = Watch::start("records.processed");
        let shards: Vec<ShardId> = pages.iter().map(|page| page.shard).collect();
        let after: Vec<Seq> = pages.iter().map(|page| page.range.after).collect();
        let upto: Vec<Seq> = pages.iter().map(|page| page.range.upto).collect();
        let limits: Vec<i64> = pages.iter().map(|page| page.limit).collect();
        let records = filtered_records!(
            StoredRecord,
            r#"select shard as "shard: ShardId", seq as "seq: Seq", record_id as "record_id: RecordId", time,
                   source_id as "source_id: SourceId", destination_id as "destination_id: DestinationId", positive,
                   value::text as "value!", unit as "unit: Unit", reference as "reference: Reference", attributes,
                   reverses as "reverses: RecordId", received_at, processed_at
               from (select listed.*, max(listed.processed_at) over (partition by listed.shard order by listed.seq) as place
                     from unnest($15::int[], $16::bigint[], $17::bigint[], $18::bigint[]) as page (shard, after, upto, most)
                     cross join lateral (select * from records"#,
            "and shard = page.shard and seq > page.after and seq <= page.upto order by seq limit page.most) listed) placed
             order by place, shard, seq",
            filter,
            &shards as &[ShardId],
            &after as &[Seq],
            &upto as &[Seq],
            &limits,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(records)
    }
}
