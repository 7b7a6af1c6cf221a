//! The rows of duplicates and conflicts, and how many outcomes other than records each destination has.

use std::collections::BTreeMap;

use super::{
    Error, Store,
    columns::index_column,
    group::{DecidedPart, GroupCommit, Part},
};
use crate::domain::{
    ContentDigest, DeadLetterId, Decision, DestinationId, RecordId, Seq, ShardId, StreamId, StreamPosition,
};

/// Outcomes of the records of a destination in a shard.
#[derive(Debug, Clone, Copy, Default)]
struct Outcomes {
    duplicates: i64,
    conflicts: i64,
    dead_letters: i64,
}

impl Store {
    /// Whether the record at a place of the input stream was refused as a conflict.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn is_conflict(
        &self,
        record_id: &RecordId,
        shard: ShardId,
        position: StreamPosition,
    ) -> Result<bool, Error> {
        let conflict = sqlx::query_scalar!(
            r#"select exists (select from conflicts
                              where record_id = $1 and stream_id = $2 and stream_index = $3 and shard = $4) as "conflict!""#,
            record_id as &RecordId,
            position.entry as StreamId,
            index_column(position),
            shard as ShardId,
        );
        Ok(conflict.fetch_one(&self.pool).await?)
    }
}

impl GroupCommit {
    pub(super) async fn insert_duplicates(&mut self, parts: &[DecidedPart<'_>]) -> Result<(), Error> {
        let (mut shards, mut epochs, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        let (mut ids, mut stream_ids, mut indexes, mut received) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for DecidedPart { part, decision } in parts {
            for duplicate in &decision.duplicates {
                let input = &part.batch[duplicate.item].input;
                shards.push(part.shard);
                epochs.push(self.shard(part.shard).epoch());
                ids.push(duplicate.record_id.as_str());
                stream_ids.push(input.position.entry);
                indexes.push(index_column(input.position));
                received.push(input.received_at);
                digests.push(duplicate.digest);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "insert into duplicates (shard, epoch, record_id, stream_id, received_at, stream_index, digest, noted_at)
             select n.*, $8 from unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[], $6::smallint[],
                 $7::uuid[]) n",
            &shards as &[ShardId],
            &epochs,
            &ids as &[&str],
            &stream_ids as &[StreamId],
            &received,
            &indexes,
            &digests as &[ContentDigest],
            self.now,
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    pub(super) async fn insert_conflicts(&mut self, part: &Part<'_>, decision: &Decision) -> Result<(), Error> {
        let epoch = self.shard(part.shard).epoch();
        for conflict in &decision.conflicts {
            let (input, record) = (&part.batch[conflict.item].input, &conflict.record);
            sqlx::query!(
                "insert into conflicts (shard, n, epoch, noted_at, received_at, record_id, destination_id, stream_id,
                     payload, traceparent, stream_index, source_id)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                part.shard as ShardId,
                conflict.seq as Seq,
                epoch,
                self.now,
                input.received_at,
                record.record_id.as_str(),
                record.destination_id.as_str(),
                input.position.entry as StreamId,
                &input.payload[..],
                input.traceparent.as_deref(),
                index_column(input.position),
                record.source_id.as_str(),
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(())
    }

    /// Adds to the counts of destinations. Only transactions that have locked the shard change its counts.
    pub(super) async fn count_outcomes(&mut self, parts: &[DecidedPart<'_>]) -> Result<(), Error> {
        let mut counts: BTreeMap<(&str, ShardId), Outcomes> = BTreeMap::new();
        let mut closed: Vec<DeadLetterId> = Vec::new();
        for DecidedPart { part, decision } in parts {
            for duplicate in &decision.duplicates {
                let record = part.batch[duplicate.item].record.as_ref();
                let destination = record.map_or("", |parsed| parsed.record.destination_id.as_str());
                counts.entry((destination, part.shard)).or_default().duplicates += 1;
            }
            for conflict in &decision.conflicts {
                counts.entry((conflict.record.destination_id.as_str(), part.shard)).or_default().conflicts += 1;
            }
            for dead_letter in &decision.dead_letters {
                let destination = dead_letter.destination_id.as_ref().map_or("", DestinationId::as_str);
                counts.entry((destination, part.shard)).or_default().dead_letters += 1;
            }
            closed.extend(&decision.closed);
        }
        if counts.is_empty() && closed.is_empty() {
            return Ok(());
        }
        let (destinations, shards): (Vec<&str>, Vec<ShardId>) = counts.keys().copied().unzip();
        let count = |of: fn(&Outcomes) -> i64| counts.values().map(of).collect::<Vec<i64>>();
        let (closed_shards, closed_numbers): (Vec<ShardId>, Vec<Seq>) =
            closed.iter().map(|dead_letter| (dead_letter.shard, dead_letter.seq)).unzip();
        sqlx::query!(
            "insert into outcome_counts as c (destination_id, shard, duplicates, conflicts, dead_letters, replayed)
             select destination_id, shard, sum(duplicates), sum(conflicts), sum(dead_letters), sum(replayed)
             from (select *, 0 as replayed from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[])
                       as n (destination_id, shard, duplicates, conflicts, dead_letters)
                   union all
                   select coalesce(destination_id, ''), shard, 0, 0, 0, 1 from dead_letters
                   where (shard, n) in (select * from unnest($6::int[], $7::bigint[]))) n
             group by destination_id, shard
             on conflict (destination_id, shard) do update
             set duplicates = c.duplicates + excluded.duplicates, conflicts = c.conflicts + excluded.conflicts,
                 dead_letters = c.dead_letters + excluded.dead_letters, replayed = c.replayed + excluded.replayed",
            &destinations as &[&str],
            &shards as &[ShardId],
            &count(|counts| counts.duplicates),
            &count(|counts| counts.conflicts),
            &count(|counts| counts.dead_letters),
            &closed_shards as &[ShardId],
            &closed_numbers as &[Seq],
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }
}
