//! Totals of a destination or a key, now or at a past instant by the time of processing.
//!
//! A total at an instant follows from one record of its key: the last before it, or the first after it, which hold the total
//! before them. It must never add up records.

use chrono::{DateTime, Utc};

use super::{Error, Snapshot, pool::numeric, retention::kept_since, slow::Watch};
use crate::domain::{DestinationId, Reference, Seq, ShardId, Unit, total_nanos};

/// Records that are read at a time to find the last ones of keys.
const PAGE: i64 = 1_000;

/// Totals of a destination.
#[derive(Debug, Clone)]
pub struct TotalFilter {
    /// The destination.
    pub destination_id: DestinationId,
    /// Its shard.
    pub shard: ShardId,
    /// Only records of this reference.
    pub reference: Option<Reference>,
    /// Only records of this unit.
    pub unit: Option<Unit>,
}

/// Count and total of the records of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTotal {
    /// The reference.
    pub reference: Reference,
    /// The unit.
    pub unit: Unit,
    /// Number of records.
    pub count: i64,
    /// Their signed sum in billionths.
    pub nanos: i128,
    /// Fractional digits of the sum.
    pub scale: u32,
}

/// A stored total of a key, and the first and the last of its records.
struct StoredKey {
    total: KeyTotal,
    first: Seq,
    last: Seq,
}

/// A total of a key that one of its records leads to.
struct FoundTotal {
    reference: Reference,
    unit: Unit,
    count: i64,
    total: String,
    seq: Seq,
}

impl FoundTotal {
    fn into_total(self) -> Result<KeyTotal, Error> {
        key_total(self.reference, self.unit, self.count, &self.total)
    }
}

fn key_total(reference: Reference, unit: Unit, count: i64, total: &str) -> Result<KeyTotal, Error> {
    let total = numeric(total)?;
    Ok(KeyTotal { reference, unit, count, nanos: total_nanos(total), scale: total.scale() })
}

impl Snapshot {
    /// The totals of keys that have records.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn key_totals(&mut self, filter: &TotalFilter) -> Result<Vec<KeyTotal>, Error> {
        Ok(self.stored_keys(filter).await?.into_iter().map(|key| key.total).collect())
    }

    /// From which time on the records of all commits are kept; `None`: from the beginning.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn processed_since(&mut self) -> Result<Option<DateTime<Utc>>, Error> {
        Ok(kept_since(self.connection()?).await?.processed)
    }

    /// The totals of keys at an instant, of the records that were processed before it. All records that were processed at or
    /// after it are kept.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn key_totals_at(&mut self, filter: &TotalFilter, at: DateTime<Utc>) -> Result<Vec<KeyTotal>, Error> {
        let _watch = Watch::start("totals.at");
        let bound = self.last_before(filter.shard, at).await?;
        let (mut totals, mut open) = (Vec::new(), Vec::new());
        for key in self.stored_keys(filter).await?.into_iter().filter(|key| key.first <= bound) {
            // A key without a later record is as it was.
            if key.last <= bound { totals.push(key.total) } else { open.push((key.total.reference, key.total.unit)) }
        }
        let mut from = bound;
        while !open.is_empty() {
            let found = self.last_records(filter, &open, from).await?;
            let Some(lowest) = found.iter().map(|found| found.seq).min() else { break };
            open.retain(|(reference, unit)| !found.iter().any(|of| (&of.reference, &of.unit) == (reference, unit)));
            from = Seq::new(lowest.get() - 1);
            totals.extend(found.into_iter().map(FoundTotal::into_total).collect::<Result<Vec<_>, _>>()?);
        }
        // The records of the others before it are no longer kept: the first one after it holds their total.
        for (reference, unit) in open {
            let found = self.first_record(filter, &reference, &unit, bound).await?;
            totals.extend(found.map(FoundTotal::into_total).transpose()?);
        }
        totals.sort_unstable_by(|one, other| (&one.reference, &one.unit).cmp(&(&other.reference, &other.unit)));
        Ok(totals)
    }

    async fn stored_keys(&mut self, filter: &TotalFilter) -> Result<Vec<StoredKey>, Error> {
        let rows = sqlx::query!(
            r#"select reference as "reference: Reference", unit as "unit: Unit", count as "count!", total::text as "total!",
                      first_seq as "first: Seq", last_seq as "last: Seq"
               from totals
               where destination_id = $1 and shard = $2 and ($3::text is null or reference = $3)
                 and ($4::text is null or unit = $4)
               order by reference, unit"#,
            &filter.destination_id as &DestinationId,
            filter.shard as ShardId,
            filter.reference.as_ref() as Option<&Reference>,
            filter.unit.as_ref() as Option<&Unit>,
        )
        .fetch_all(self.connection()?)
        .await?;
        rows.into_iter()
            .map(|row| {
                let total = key_total(row.reference, row.unit, row.count, &row.total)?;
                Ok(StoredKey { total, first: row.first, last: row.last })
            })
            .collect()
    }

    /// The last number of a shard that was committed before a time, by halving: a shard's times rise with its numbers. Where the
    /// clock of Postgres was set back, it is one after which a later time comes.
    async fn last_before(&mut self, shard: ShardId, at: DateTime<Utc>) -> Result<Seq, Error> {
        let last = sqlx::query_scalar!(
            r#"with recursive halves (low, high) as (
                   select 0::bigint, (select records from shards where shard = $1)
                   union all
                   select case when r.processed_at < $2 then r.seq else h.low end,
                          case when r.processed_at < $2 then h.high else (h.low + h.high + 1) / 2 - 1 end
                   from halves h
                   left join lateral (
                       select seq, processed_at from records
                       where shard = $1 and seq >= (h.low + h.high + 1) / 2 and seq <= h.high order by seq limit 1
                   ) r on true
                   where h.low < h.high
               )
               select low as "last!: Seq" from halves where low >= high"#,
            shard as ShardId,
            at,
        )
        .fetch_optional(self.connection()?)
        .await?;
        Ok(last.unwrap_or_default())
    }

    /// The totals after the last records of keys up to a number, of those keys that are among the last thousand of these
    /// records.
    async fn last_records(
        &mut self,
        filter: &TotalFilter,
        keys: &[(Reference, Unit)],
        upto: Seq,
    ) -> Result<Vec<FoundTotal>, Error> {
        let references: Vec<&str> = keys.iter().map(|(reference, _)| reference.as_str()).collect();
        let units: Vec<&str> = keys.iter().map(|(_, unit)| unit.as_str()).collect();
        // One key has one last record.
        let page = if keys.len() == 1 { 1 } else { PAGE };
        let found = sqlx::query_as!(
            FoundTotal,
            r#"select distinct on (reference, unit) reference as "reference!: Reference", unit as "unit!: Unit",
                      previous_count + 1 as "count!",
                      (previous_total + case when positive then value else -value end)::text as "total!", seq as "seq!: Seq"
               from (select reference, unit, previous_count, previous_total, positive, value, seq from records
                     where destination_id = $1 and seq <= $2
                       and (reference, unit) in (select * from unnest($3::text[], $4::text[]))
                     order by seq desc limit $5) page
               order by reference, unit, seq desc"#,
            &filter.destination_id as &DestinationId,
            upto as Seq,
            &references as &[&str],
            &units as &[&str],
            page,
        );
        Ok(found.fetch_all(self.connection()?).await?)
    }

    /// The total before the first record of a key above a number.
    async fn first_record(
        &mut self,
        filter: &TotalFilter,
        reference: &Reference,
        unit: &Unit,
        after: Seq,
    ) -> Result<Option<FoundTotal>, Error> {
        let found = sqlx::query_as!(
            FoundTotal,
            r#"select reference as "reference: Reference", unit as "unit: Unit", previous_count as count,
                      previous_total::text as "total!", seq as "seq: Seq"
               from records where destination_id = $1 and seq > $2 and reference = $3 and unit = $4 order by seq limit 1"#,
            &filter.destination_id as &DestinationId,
            after as Seq,
            reference as &Reference,
            unit as &Unit,
        );
        Ok(found.fetch_optional(self.connection()?).await?)
    }
}

#[cfg(test)]
mod tests;
