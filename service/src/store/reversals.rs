//! Reversals: the records that a batch reverses, which a commit reads before it decides, the rows of the reversals that it writes, and
//! the reversals of one record.
//!
//! It must never read anything for a batch without a reversal.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, NaiveDate, Utc};

use super::{
    Actor, Error, Store,
    admin::note_action,
    group::{DecidedPart, GroupCommit, Part},
    known::{record_of, stored_record},
    pool::numeric,
    slow::Watch,
};
use crate::domain::{Known, OriginalRecord, RecordId, Seq, ShardId, ShardSeq};

/// A reversal of a record.
#[derive(Debug, Clone)]
pub struct ReversalOf {
    /// Its number in the shard of the record.
    pub seq: Seq,
    /// Its id.
    pub record_id: RecordId,
    /// Its value, unsigned.
    pub value: String,
    /// What remained of the record after it.
    pub rest: String,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
}

/// The reversals of a record.
#[derive(Debug, Clone, Default)]
pub struct Reversed {
    /// Their number.
    pub count: i64,
    /// The newest ones, newest first.
    pub newest: Vec<ReversalOf>,
}

impl Reversed {
    /// What remains of the record; `None`: it has no reversals.
    #[must_use]
    pub fn rest(&self) -> Option<&str> {
        self.newest.first().map(|newest| newest.rest.as_str())
    }
}

impl GroupCommit {
    /// Reads the records that reversals of the batches take back. The lock on the shards' rows keeps what remains of them.
    pub(super) async fn known_originals(
        &mut self,
        parts: &[Part<'_>],
        shards: &mut HashMap<ShardId, Known>,
    ) -> Result<(), Error> {
        let reversals = parts.iter().flat_map(|part| {
            part.batch.iter().filter_map(|item| Some((part.shard, record_of(item)?.reverses.as_ref()?.as_str())))
        });
        let (of_shards, ids): (Vec<ShardId>, Vec<&str>) = reversals.collect::<HashSet<_>>().into_iter().unzip();
        if ids.is_empty() {
            return Ok(());
        }
        let _watch = Watch::start("commit.originals");
        let rows = sqlx::query!(
            r#"select r.shard as "shard: ShardId", r.seq as "seq: Seq", r.record_id as "record_id: RecordId", r.time,
                      r.source_id, r.destination_id, r.reference, r.unit, r.positive, r.value::text as "value!", r.attributes,
                      r.reverses as "reverses: RecordId", coalesce(last.rest, r.value)::text as "rest!"
               from unnest($1::int[], $2::text[]) as k (shard, record_id)
               join record_ids i on i.record_id = k.record_id and i.shard = k.shard
               join records r on r.shard = i.shard and r.seq = i.number and r.period = i.period
               left join lateral (
                   select rest from reversals x where x.shard = r.shard and x.original_seq = r.seq
                   order by x.seq desc limit 1
               ) last on true"#,
            &of_shards as &[ShardId],
            &ids as &[&str],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        for row in rows {
            let Some(known) = shards.get_mut(&row.shard) else { continue };
            let (id, rest) = (row.record_id.clone(), numeric(&row.rest)?);
            known.originals.insert(id, OriginalRecord { seq: row.seq, record: stored_record!(row)?.into(), rest });
        }
        Ok(())
    }
}

/// Rows of reversals, as columns.
#[derive(Default)]
struct ReversalColumns {
    shards: Vec<ShardId>,
    originals: Vec<Seq>,
    seqs: Vec<Seq>,
    periods: Vec<NaiveDate>,
    rests: Vec<String>,
}

impl GroupCommit {
    /// Writes which records the reversals of the batches take back, and what remains of those.
    pub(super) async fn insert_reversals(&mut self, parts: &[DecidedPart<'_>]) -> Result<(), Error> {
        let mut columns = ReversalColumns::default();
        for DecidedPart { part, decision } in parts {
            for new in &decision.records {
                let Some(reversal) = new.reversal else { continue };
                columns.shards.push(part.shard);
                columns.originals.push(reversal.original);
                columns.seqs.push(new.seq);
                columns.periods.push(self.shard(part.shard).period.first());
                columns.rests.push(reversal.rest.to_string());
            }
        }
        if columns.seqs.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "insert into reversals (shard, original_seq, seq, period, rest)
             select shard, original_seq, seq, period, rest::numeric
             from unnest($1::int[], $2::bigint[], $3::bigint[], $4::date[], $5::text[])
                 as n (shard, original_seq, seq, period, rest)",
            &columns.shards as &[ShardId],
            &columns.originals as &[Seq],
            &columns.seqs as &[Seq],
            &columns.periods,
            &columns.rests,
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }
}

impl Store {
    /// Notes in the audit trail that an administrator asked for a reversal.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn note_reversal(
        &self,
        original: &RecordId,
        reversal: &RecordId,
        reason: &str,
        actor: &Actor,
    ) -> Result<(), Error> {
        let reason = format!("{original} by {reversal}: {reason}");
        note_action(&mut *self.pool.acquire().await?, actor, "records.reverse", &reason).await
    }

    /// The reversals of a record, the newest `most` of them.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn reversals_of(&self, original: ShardSeq, most: i64) -> Result<Reversed, Error> {
        let _watch = Watch::start("records.reversals");
        let places = sqlx::query!(
            r#"select seq as "seq: Seq", period, rest::text as "rest!", count(*) over () as "count!" from reversals
               where shard = $1 and original_seq = $2 order by seq desc limit $3"#,
            original.shard as ShardId,
            original.seq as Seq,
            most,
        )
        .fetch_all(&self.pool)
        .await?;
        let Some(count) = places.first().map(|place| place.count) else { return Ok(Reversed::default()) };
        // Not a join: a plan that knows the periods opens only those.
        let seqs: Vec<Seq> = places.iter().map(|place| place.seq).collect();
        let periods: Vec<NaiveDate> = places.iter().map(|place| place.period).collect();
        let rows = sqlx::query!(
            r#"select seq as "seq: Seq", record_id as "record_id: RecordId", value::text as "value!", processed_at
               from records where shard = $1 and seq = any($2) and period = any($3) order by seq desc"#,
            original.shard as ShardId,
            &seqs as &[Seq],
            &periods,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut rests: HashMap<Seq, String> = places.into_iter().map(|place| (place.seq, place.rest)).collect();
        let newest = rows.into_iter().filter_map(|row| {
            Some(ReversalOf {
                rest: rests.remove(&row.seq)?,
                seq: row.seq,
                record_id: row.record_id,
                value: row.value,
                processed_at: row.processed_at,
            })
        });
        Ok(Reversed { count, newest: newest.collect() })
    }
}
