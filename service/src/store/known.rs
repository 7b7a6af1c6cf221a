//! The stored state of the ids and keys of a batch, which a commit reads before it decides.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::{
    Error,
    columns::{index_column, stream_position},
    commit::Commit,
    pool::numeric,
};
use crate::domain::{
    Amount, Attributes, DeadLetterId, DestinationId, DestinationUnit, Item, Key, Kind, Known, KnownDeadLetter,
    KnownRecord, Policy, PositionOfRecord, Record, RecordId, Reference, Seq, ShardId, SourceId, StreamId, Total, Unit,
};

impl Commit {
    /// Reads the stored state of the ids and keys of a batch.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn known(&mut self, batch: &[Item], policy: &Policy) -> Result<Known, Error> {
        let mut known = self.known_ids(batch).await?;
        known.totals = self.known_totals(batch).await?;
        if policy.minimum_total_nanos().is_some() {
            known.destinations = self.known_destinations(batch).await?;
        }
        Ok(known)
    }

    #[expect(clippy::too_many_lines, reason = "one statement reads the stored state of all ids of a batch")]
    async fn known_ids(&mut self, batch: &[Item]) -> Result<Known, Error> {
        let entries: Vec<StreamId> = batch.iter().map(|item| item.input.position.entry).collect();
        let indexes: Vec<i16> = batch.iter().map(|item| index_column(item.input.position)).collect();
        // Paired with the places. A record that cannot be read has no id.
        let ids: Vec<Option<String>> =
            batch.iter().map(|item| item.record.as_ref().ok().map(|record| record.record_id.to_string())).collect();
        let (mut replay_shards, mut replays) = (Vec::new(), Vec::new());
        for dead_letter in batch.iter().filter_map(|item| item.input.replay_of) {
            replay_shards.push(dead_letter.shard);
            replays.push(dead_letter.seq);
        }
        let rows = sqlx::query!(
            r#"select 'record' as "what!", record_id, stream_id as "stream_id!: StreamId",
                      stream_index as "stream_index!", 0 as "shard!: ShardId", 0::bigint as "n!: Seq",
                      false as "open!", null::bytea as payload, time, source_id, destination_id, reference, unit,
                      positive, value::text as value, attributes
               from records where record_id = any($1)
               union all
               select 'dead_letter', record_id, stream_id, stream_index, shard, n, state = 'open', payload,
                      null, null, null, null, null, null, null, null
               from dead_letters where record_id = any($1) and state = 'open'
               union all
               select 'dead_letter', record_id, stream_id, stream_index, shard, n, state = 'open', payload,
                      null, null, null, null, null, null, null, null
               from dead_letters where stream_id = any($2) and shard = $3
                   and (stream_id, stream_index) in (select * from unnest($2::text[], $6::smallint[]))
               union all
               select 'dead_letter', l.record_id, l.stream_id, l.stream_index, l.shard, l.n, l.state = 'open', l.payload,
                      null, null, null, null, null, null, null, null
               from unnest($4::int[], $5::bigint[]) as k (shard, n)
               cross join lateral (select * from dead_letters where shard = k.shard and n = k.n offset 0) as l
               union all
               select 'duplicate', d.record_id, d.stream_id, d.stream_index, 0, 0, false, null, null, null, null, null, null, null,
                      null, null
               from unnest($1::text[], $2::text[], $6::smallint[]) as k (id, stream_id, stream_index)
               cross join lateral (
                   select * from duplicates where record_id = k.id and stream_id = k.stream_id
                       and stream_index = k.stream_index and shard = $3 offset 0
               ) as d
               union all
               select 'conflict', c.record_id, c.stream_id, c.stream_index, 0, 0, false, c.payload, null, null, null, null, null,
                      null, null, null
               from unnest($1::text[], $2::text[], $6::smallint[]) as k (id, stream_id, stream_index)
               cross join lateral (
                   select * from conflicts where record_id = k.id and stream_id = k.stream_id
                       and stream_index = k.stream_index and shard = $3 offset 0
               ) as c"#,
            ids.as_slice() as &[Option<String>],
            &entries as &[StreamId],
            self.shard as ShardId,
            &replay_shards as &[ShardId],
            &replays as &[Seq],
            &indexes,
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let mut known = Known {
            records: HashMap::new(),
            dead_letters: Vec::new(),
            duplicates: HashSet::new(),
            conflicts: HashMap::new(),
            totals: HashMap::new(),
            destinations: HashMap::new(),
        };
        for row in rows {
            let position = stream_position(row.stream_id, row.stream_index);
            let id = row.record_id.clone().map(RecordId::stored);
            match (row.what.as_str(), id) {
                ("record", Some(id)) => {
                    let stored = RecordColumns {
                        record_id: id.clone(),
                        time: row.time,
                        source_id: row.source_id,
                        destination_id: row.destination_id,
                        reference: row.reference,
                        unit: row.unit,
                        positive: row.positive,
                        value: row.value,
                        attributes: row.attributes,
                    };
                    if let Some(record) = stored.into_record() {
                        known.records.insert(id, KnownRecord { record: Arc::new(record), position });
                    }
                }
                ("duplicate", Some(id)) => {
                    known.duplicates.insert(PositionOfRecord { record_id: id, position });
                }
                ("conflict", Some(id)) => {
                    let refused = row.payload.as_deref().and_then(|payload| Record::parse(payload).ok());
                    known.conflicts.entry(PositionOfRecord { record_id: id, position }).or_default().extend(refused);
                }
                (_, record_id) => known.dead_letters.push(KnownDeadLetter {
                    id: DeadLetterId { shard: row.shard, seq: row.n },
                    open: row.open,
                    record_id,
                    position,
                    payload: row.payload.unwrap_or_default(),
                }),
            }
        }
        Ok(known)
    }

    async fn known_totals(&mut self, batch: &[Item]) -> Result<HashMap<Key, Total>, Error> {
        let keys: HashSet<Key> =
            batch.iter().filter_map(|item| item.record.as_ref().ok()).map(|record| Key::of(record)).collect();
        let (mut destinations, mut references, mut units) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            destinations.push(key.destination_id);
            references.push(key.reference);
            units.push(key.unit);
        }
        let rows = sqlx::query!(
            r#"select totals.destination_id, totals.reference, totals.unit, count, total::text as "total!"
             from unnest($1::text[], $2::text[], $3::text[]) as k (d, r, u)
             join totals on totals.destination_id = k.d and totals.reference = k.r and totals.unit = k.u"#,
            &destinations as &[DestinationId],
            &references as &[Reference],
            &units as &[Unit],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        rows.into_iter()
            .map(|row| {
                let key = Key {
                    destination_id: DestinationId::stored(row.destination_id),
                    reference: Reference::stored(row.reference),
                    unit: Unit::stored(row.unit),
                };
                Ok((key, Total { count: row.count, total: numeric(&row.total)? }))
            })
            .collect()
    }

    async fn known_destinations(&mut self, batch: &[Item]) -> Result<HashMap<DestinationUnit, i128>, Error> {
        let destinations: Vec<String> = batch
            .iter()
            .filter_map(|item| item.record.as_ref().ok())
            .map(|record| record.destination_id.to_string())
            .collect();
        let rows = sqlx::query!(
            r#"select destination_id, unit, (sum(total) * 1000000000)::numeric(60, 0)::text as "nanos!"
               from totals where destination_id = any($1) group by destination_id, unit"#,
            &destinations,
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        rows.into_iter()
            .map(|row| {
                let nanos = row.nanos.parse().map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))))?;
                let of_unit = DestinationUnit {
                    destination_id: DestinationId::stored(row.destination_id),
                    unit: Unit::stored(row.unit),
                };
                Ok((of_unit, nanos))
            })
            .collect()
    }
}

/// A record's columns.
#[derive(Debug)]
pub(super) struct RecordColumns {
    pub(super) record_id: RecordId,
    pub(super) time: Option<DateTime<Utc>>,
    pub(super) source_id: Option<String>,
    pub(super) destination_id: Option<String>,
    pub(super) reference: Option<String>,
    pub(super) unit: Option<String>,
    pub(super) positive: Option<bool>,
    /// As text: the conversion of the driver drops the scale of a zero.
    pub(super) value: Option<String>,
    pub(super) attributes: Option<String>,
}

impl RecordColumns {
    /// The record; `None` only where a column is null, which no row of `records` has.
    pub(super) fn into_record(self) -> Option<Record> {
        Some(Record {
            record_id: self.record_id,
            time: self.time?,
            source_id: SourceId::stored(self.source_id?),
            destination_id: DestinationId::stored(self.destination_id?),
            kind: if self.positive? { Kind::Positive } else { Kind::Negative },
            value: Amount::stored(numeric(&self.value?).ok()?),
            unit: Unit::stored(self.unit?),
            reference: Reference::stored(self.reference?),
            attributes: self.attributes.and_then(Attributes::stored),
        })
    }
}
