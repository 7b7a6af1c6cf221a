//! The stored state of the ids, places and keys of a group, which a commit reads before it decides.

use std::collections::{HashMap, HashSet};

use super::{
    Error,
    columns::{index_column, stream_position},
    group::{GroupCommit, Part},
    pool::numeric,
};
use crate::domain::{
    ContentDigest, DeadLetterId, DestinationId, DestinationUnit, Holder, IdLedger, Item, Key, Known, KnownDeadLetter,
    Parsed, Policy, PositionOfRecord, Record, RecordId, Reference, Seq, ShardId, ShardSeq, StreamId, TakenId, Total,
    Unit,
};

/// The stored state that the decisions of a group depend on.
#[derive(Debug)]
pub struct GroupKnown {
    /// The ids, over all shards.
    pub ids: IdLedger,
    /// The rest, by shard.
    pub shards: HashMap<ShardId, Known>,
}

impl GroupCommit {
    /// Reads the stored state of the ids, places and keys of batches, each of another shard.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn known(&mut self, parts: &[Part<'_>], policy: &Policy) -> Result<GroupKnown, Error> {
        let mut shards: HashMap<ShardId, Known> = parts.iter().map(|part| (part.shard, Known::default())).collect();
        // Dead letters are locked before ids are read, as by a discard.
        self.known_replays(parts, &mut shards).await?;
        let mut ids = self.known_ids(parts).await?;
        self.known_places(parts, &mut shards, &mut ids).await?;
        self.known_totals(parts, &mut shards).await?;
        self.known_originals(parts, &mut shards).await?;
        if policy.needs_destinations() {
            self.known_destinations(parts, &mut shards).await?;
        }
        self.known_windows(parts, policy, &mut shards).await?;
        Ok(GroupKnown { ids: IdLedger::new(ids), shards })
    }

    /// Locks the dead letters whose replays came.
    async fn known_replays(&mut self, parts: &[Part<'_>], shards: &mut HashMap<ShardId, Known>) -> Result<(), Error> {
        let (mut of_shards, mut numbers) = (Vec::new(), Vec::new());
        for dead_letter in parts.iter().flat_map(|part| part.batch).filter_map(|item| item.input.replay_of) {
            of_shards.push(dead_letter.shard);
            numbers.push(dead_letter.seq);
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query!(
            r#"select shard as "shard: ShardId", n as "n: Seq", record_id as "record_id: RecordId",
                      stream_id as "stream_id: StreamId", stream_index, state = 'open' as "open!", payload
               from dead_letters where (shard, n) in (select * from unnest($1::int[], $2::bigint[]))
               order by shard, n for update"#,
            &of_shards as &[ShardId],
            &numbers as &[Seq],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        for row in rows {
            let dead_letter = KnownDeadLetter {
                id: DeadLetterId { shard: row.shard, seq: row.n },
                open: row.open,
                record_id: row.record_id,
                position: stream_position(row.stream_id, row.stream_index),
                payload: row.payload,
            };
            // A shard looks only for the replays in its own batch.
            shards.values_mut().for_each(|known| known.dead_letters.push(dead_letter.clone()));
        }
        Ok(())
    }

    async fn known_ids(&mut self, parts: &[Part<'_>]) -> Result<HashMap<RecordId, TakenId>, Error> {
        let ids: Vec<&str> =
            parts.iter().flat_map(|part| part.batch).filter_map(|item| Some(id_of(item)?.as_str())).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query!(
            r#"select record_id as "record_id: RecordId", shard as "shard: ShardId", number as "number: Seq",
                      period is not null as "is_record!", digest as "digest: ContentDigest"
               from record_ids where record_id = any($1)"#,
            &ids as &[&str],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let taken = rows.into_iter().map(|row| {
            let (shard, seq) = (row.shard, row.number);
            let holder = if row.is_record {
                Holder::Record(ShardSeq { shard, seq })
            } else {
                Holder::DeadLetter(DeadLetterId { shard, seq })
            };
            (row.record_id, TakenId { holder, digest: row.digest, position: None })
        });
        Ok(taken.collect())
    }

    /// Reads the outcomes that are stored with the places of entries which can have been applied before.
    #[expect(clippy::too_many_lines, reason = "one statement reads the stored outcomes of all places")]
    async fn known_places(
        &mut self,
        parts: &[Part<'_>],
        shards: &mut HashMap<ShardId, Known>,
        ids: &mut HashMap<RecordId, TakenId>,
    ) -> Result<(), Error> {
        let (mut of_shards, mut entries, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
        // Paired with the places. A record that cannot be read has no id.
        let mut record_ids: Vec<Option<&str>> = Vec::new();
        for part in parts {
            let position = self.shard(part.shard).position;
            for item in part.batch.iter().filter(|item| position.may_have_applied(item.input.position.entry)) {
                of_shards.push(part.shard);
                entries.push(item.input.position.entry);
                indexes.push(index_column(item.input.position));
                record_ids.push(id_of(item).map(RecordId::as_str));
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query!(
            r#"with k as (
                   select * from unnest($1::int[], $2::text[], $3::text[], $4::smallint[])
                       as k (shard, record_id, stream_id, stream_index)
               )
               select 'record' as "what!", k.shard as "shard!: ShardId", r.record_id, r.stream_id as "stream_id!: StreamId",
                      r.stream_index as "stream_index!", 0::bigint as "n!: Seq", false as "open!", null::bytea as payload,
                      null::uuid as "digest: ContentDigest"
               from k join record_ids i on i.record_id = k.record_id and i.shard = k.shard
               cross join lateral (
                   select * from records where shard = i.shard and seq = i.number and period = i.period offset 0
               ) as r
               union all
               select 'dead_letter', l.shard, l.record_id, l.stream_id, l.stream_index, l.n, l.state = 'open', l.payload, null
               from k cross join lateral (
                   select * from dead_letters where stream_id = k.stream_id and stream_index = k.stream_index
                       and shard = k.shard offset 0
               ) as l
               union all
               select 'duplicate', k.shard, d.record_id, d.stream_id, d.stream_index, 0, false, null, d.digest
               from k cross join lateral (
                   select * from duplicates where record_id = k.record_id and stream_id = k.stream_id
                       and stream_index = k.stream_index and shard = k.shard offset 0
               ) as d
               union all
               select 'conflict', k.shard, c.record_id, c.stream_id, c.stream_index, 0, false, c.payload, null
               from k cross join lateral (
                   select * from conflicts where record_id = k.record_id and stream_id = k.stream_id
                       and stream_index = k.stream_index and shard = k.shard offset 0
               ) as c"#,
            &of_shards as &[ShardId],
            &record_ids as &[Option<&str>],
            &entries as &[StreamId],
            &indexes,
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        for row in rows {
            let Some(known) = shards.get_mut(&row.shard) else { continue };
            let position = stream_position(row.stream_id, row.stream_index);
            let id = row.record_id.map(RecordId::stored);
            match (row.what.as_str(), id) {
                ("record", Some(id)) => {
                    if let Some(taken) = ids.get_mut(&id) {
                        taken.position = Some(position);
                    }
                }
                ("duplicate", Some(id)) => {
                    known
                        .duplicates
                        .entry(PositionOfRecord { record_id: id, position })
                        .or_default()
                        .extend(row.digest);
                }
                ("conflict", Some(id)) => {
                    let refused = row.payload.as_deref().and_then(|payload| Parsed::read(payload).ok());
                    let digest = refused.map(|refused| refused.digest);
                    known.conflicts.entry(PositionOfRecord { record_id: id, position }).or_default().extend(digest);
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
        Ok(())
    }

    async fn known_totals(&mut self, parts: &[Part<'_>], shards: &mut HashMap<ShardId, Known>) -> Result<(), Error> {
        let mut keys: HashSet<(ShardId, Key)> = HashSet::new();
        for part in parts {
            keys.extend(part.batch.iter().filter_map(|item| Some((part.shard, Key::of(record_of(item)?)))));
        }
        let (mut of_shards, mut destinations, mut references, mut units) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (shard, key) in keys {
            of_shards.push(shard);
            destinations.push(key.destination_id);
            references.push(key.reference);
            units.push(key.unit);
        }
        if of_shards.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query!(
            r#"select t.shard as "shard: ShardId", t.destination_id, t.reference, t.unit, count as "count!",
                      total::text as "total!"
             from unnest($1::int[], $2::text[], $3::text[], $4::text[]) as k (s, d, r, u)
             join totals t on t.destination_id = k.d and t.reference = k.r and t.unit = k.u and t.shard = k.s"#,
            &of_shards as &[ShardId],
            &destinations as &[DestinationId],
            &references as &[Reference],
            &units as &[Unit],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        for row in rows {
            let Some(known) = shards.get_mut(&row.shard) else { continue };
            let key = Key {
                destination_id: DestinationId::stored(row.destination_id),
                reference: Reference::stored(row.reference),
                unit: Unit::stored(row.unit),
            };
            known.totals.insert(key, Total { count: row.count, total: numeric(&row.total)? });
        }
        Ok(())
    }

    async fn known_destinations(
        &mut self,
        parts: &[Part<'_>],
        shards: &mut HashMap<ShardId, Known>,
    ) -> Result<(), Error> {
        let (mut of_shards, mut destinations) = (Vec::new(), Vec::new());
        for part in parts {
            let of_part: HashSet<&str> =
                part.batch.iter().filter_map(|item| Some(record_of(item)?.destination_id.as_str())).collect();
            of_shards.extend(of_part.iter().map(|_| part.shard));
            destinations.extend(of_part);
        }
        let rows = sqlx::query!(
            r#"select t.shard as "shard: ShardId", t.destination_id, t.unit,
                      (sum(t.total) * 1000000000)::numeric(60, 0)::text as "nanos!"
               from unnest($1::int[], $2::text[]) as k (s, d) join totals t on t.destination_id = k.d and t.shard = k.s
               group by t.shard, t.destination_id, t.unit"#,
            &of_shards as &[ShardId],
            &destinations as &[&str],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        for row in rows {
            let Some(known) = shards.get_mut(&row.shard) else { continue };
            let nanos = row.nanos.parse().map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))))?;
            let of_unit = DestinationUnit {
                destination_id: DestinationId::stored(row.destination_id),
                unit: Unit::stored(row.unit),
            };
            known.destinations.insert(of_unit, nanos);
        }
        Ok(())
    }
}

pub(super) fn record_of(item: &Item) -> Option<&Record> {
    item.record.as_ref().ok().map(|parsed| &*parsed.record)
}

fn id_of(item: &Item) -> Option<&RecordId> {
    Some(&record_of(item)?.record_id)
}

/// The record of a row, whose value is text: the conversion of the driver drops the scale of a zero.
macro_rules! stored_record {
    ($row:expr) => {
        crate::store::pool::numeric(&$row.value).map(|value| crate::domain::Record {
            record_id: $row.record_id,
            time: $row.time,
            source_id: crate::domain::SourceId::stored($row.source_id),
            destination_id: crate::domain::DestinationId::stored($row.destination_id),
            kind: if $row.positive { crate::domain::Kind::Positive } else { crate::domain::Kind::Negative },
            value: crate::domain::Amount::stored(value),
            unit: crate::domain::Unit::stored($row.unit),
            reference: crate::domain::Reference::stored($row.reference),
            attributes: $row.attributes.and_then(crate::domain::Attributes::stored),
            reverses: $row.reverses,
        })
    };
}
pub(super) use stored_record;
