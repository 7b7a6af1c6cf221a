//! Derives all values again from the records, in one snapshot, and compares them with the stored ones. The reads about
//! sinks are in `sinks`.
//!
//! It must never write, and must never hold more than a page of rows: Postgres compares.

mod sinks;

use futures::TryStreamExt as _;
use sqlx::{Postgres, Transaction};

use super::{Error, Store};
use crate::domain::{DestinationId, ShardId};

pub use sinks::{LoggedRecord, RefusedOutcome, StartedSink};

/// Number of differences that are kept; further ones are only counted.
const KEPT: usize = 100;

/// A difference between a stored or published value and the value that the records imply.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The check that found it, a stable word.
    pub check: &'static str,
    /// The place: a shard, a record, a key, or an entry of a sink.
    pub place: String,
    /// The value that the records imply.
    pub expected: String,
    /// The stored or published value.
    pub found: String,
}

/// The first differences, and the number of all.
#[derive(Debug, Default)]
pub struct Differences {
    /// At most 100.
    pub first: Vec<Difference>,
    /// The number of all.
    pub count: u64,
}

impl Differences {
    /// Adds a difference.
    pub fn add(&mut self, check: &'static str, place: String, expected: impl Into<String>, found: impl Into<String>) {
        self.count += 1;
        if self.first.len() < KEPT {
            self.first.push(Difference { check, place, expected: expected.into(), found: found.into() });
        }
    }
}

/// The size of a pipeline in the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Number of shards.
    pub shards: u16,
    /// Number of processed records.
    pub records: i64,
    /// Number of records that raised an alert.
    pub alerts: i64,
    /// Number of keys and units with a total.
    pub totals: i64,
}

/// One snapshot of a pipeline's schema.
pub struct Verification {
    snapshot: Transaction<'static, Postgres>,
}

impl Store {
    /// Opens the snapshot for all checks.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn verification(&self) -> Result<Verification, Error> {
        let snapshot = self.pool.begin_with("begin isolation level repeatable read, read only").await?;
        Ok(Verification { snapshot })
    }
}

impl Verification {
    /// The size of the pipeline.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn extent(&mut self) -> Result<Extent, Error> {
        let row = sqlx::query!(
            r#"select p.shards, p.pipeline_id,
                   (select count(*) from records) as "records!",
                   (select count(*) from records where threshold is not null) as "alerts!",
                   (select count(*) from totals) as "totals!"
               from pipeline p"#
        )
        .fetch_one(&mut *self.snapshot)
        .await?;
        let shards = u16::try_from(row.shards)
            .map_err(|_| Error::Refused("the stored number of shards is not valid".to_owned()))?;
        Ok(Extent { shards, records: row.records, alerts: row.alerts, totals: row.totals })
    }

    /// Compares each record's previous count and total with the running ones over the records of its key and unit.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn summaries(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select shard, seq, previous_count, previous_total::text as "previous_total!", n as "n!",
                   s::text as "s!"
               from (
                   select shard, seq, previous_count, previous_total, row_number() over key - 1 as n,
                       coalesce(sum(case when positive then value else -value end)
                           over (key rows between unbounded preceding and 1 preceding), 0) as s
                   from records
                   window key as (partition by destination_id, reference, unit order by shard, seq)
               ) derived
               where previous_count <> n or previous_total <> s"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            differences.add(
                "summary",
                format!("record {}-{}", row.shard, row.seq),
                format!("{} records before it, total {}", row.n, row.s),
                format!("{}, total {}", row.previous_count, row.previous_total),
            );
        }
        Ok(())
    }

    /// Compares the stored total of every key and unit with the sum of its records.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn totals(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select destination_id as "destination_id!", reference as "reference!", unit as "unit!", r.n as "n?", r.s::text as "s?",
                   t.count as "count?", t.total::text as "total?"
               from (
                   select destination_id, reference, unit, count(*) as n, min(shard) as shard,
                       sum(case when positive then value else -value end) as s
                   from records group by destination_id, reference, unit
               ) r
               full join totals t using (destination_id, reference, unit)
               where r.n is distinct from t.count or r.s is distinct from t.total or r.shard is distinct from t.shard"#
        )
        .fetch(&mut *self.snapshot);
        let show = |count: Option<i64>, total: Option<String>| match count.zip(total) {
            Some((count, total)) => format!("{count} records, total {total}"),
            None => "nothing".to_owned(),
        };
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} / {} / {}", row.destination_id, row.reference, row.unit);
            differences.add("total", place, show(row.n, row.s), show(row.count, row.total));
        }
        Ok(())
    }

    /// Checks that the sequence numbers of records, dead letters and conflicts have no gaps in any shard, except stored
    /// ones.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn numbers(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select kind as "kind!", shard as "shard!", before + 1 as "from!", n - 1 as "to!"
               from (
                   select kind, shard, n, lag(n, 1, 0::bigint) over (partition by kind, shard order by n) as before
                   from (
                       select 'records' as kind, shard, seq as n from records
                       union all select 'dead_letters', shard, n from dead_letters
                       union all select 'conflicts', shard, n from conflicts
                   ) numbered
               ) steps
               where n <> before + 1 and n - before - 1 <> (
                   select coalesce(sum(least(g.to_n, n - 1) - greatest(g.from_n, before + 1) + 1), 0)
                   from gaps g
                   where g.shard = steps.shard and g.kind = steps.kind and g.to_n > before and g.from_n < n
               )"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of shard {}", row.kind, row.shard);
            differences.add("number", place, "numbers without gaps", format!("{} to {} missing", row.from, row.to));
        }
        Ok(())
    }

    /// Compares each shard's highest numbers and counts with its rows.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn counters(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select shard, name as "name!", derived as "derived!", stored as "stored!"
               from (
                   select s.shard, named.*
                   from shards s
                   left join (
                       select shard, count(*) as n, count(threshold) as alerts, max(seq) as top from records group by shard
                   ) r using (shard)
                   left join (select shard, max(n) as top from dead_letters group by shard) l using (shard)
                   left join (select shard, max(n) as top from conflicts group by shard) c using (shard)
                   left join (select shard, count(*) as n from duplicates group by shard) d using (shard)
                   left join (
                       select shard, max(to_n) filter (where kind = 'records') as records,
                           max(to_n) filter (where kind = 'dead_letters') as dead_letters,
                           max(to_n) filter (where kind = 'conflicts') as conflicts
                       from gaps group by shard
                   ) g using (shard)
                   cross join lateral (values
                       ('processed', coalesce(r.n, 0), s.processed),
                       ('alerts', coalesce(r.alerts, 0), s.alerts),
                       ('duplicates', coalesce(d.n, 0), s.duplicates),
                       ('highest record', greatest(r.top, g.records, 0), s.records),
                       ('highest dead letter', greatest(l.top, g.dead_letters, 0), s.dead_letters),
                       ('highest conflict', greatest(c.top, g.conflicts, 0), s.conflicts)
                   ) named (name, derived, stored)
               ) compared
               where derived <> stored"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of shard {}", row.name, row.shard);
            differences.add("counter", place, row.derived.to_string(), row.stored.to_string());
        }
        Ok(())
    }

    /// Checks that exactly the records have an alert whose value exceeds the threshold of the policy version that was
    /// active at their number.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn alerts(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"with specs as materialized (
                   select version, spec::jsonb as spec from policies
               ), periods as materialized (
                   select shard, from_seq, version,
                       lead(from_seq, 1, 9223372036854775807) over (partition by shard order by from_seq, version) as until
                   from shard_policies
               )
               select r.shard as "shard!", r.seq as "seq!", r.value::text as "value!", r.threshold::text as threshold, p.version as "version?",
                   x.threshold::text as "expected?"
               from records r
               left join periods p on p.shard = r.shard and r.seq >= p.from_seq and r.seq < p.until
               left join specs s on s.version = p.version
               cross join lateral (
                   select coalesce(s.spec -> 'thresholds' ->> r.unit, s.spec ->> 'threshold')::numeric as threshold
               ) x
               where s.version is null
                   or r.threshold is distinct from case when r.value > x.threshold then x.threshold end"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("record {}-{} of value {}", row.shard, row.seq, row.value);
            let expected = match (row.version, row.expected) {
                (None, _) => "a policy version that is stored for it".to_owned(),
                (Some(version), None) => format!("no threshold in policy {version}"),
                (Some(version), Some(threshold)) => format!("judged by {threshold} of policy {version}"),
            };
            let found = row.threshold.map_or("no alert".to_owned(), |threshold| format!("alert at {threshold}"));
            differences.add("alert", place, expected, found);
        }
        Ok(())
    }

    /// Checks that every duplicate and conflict has its record or dead letter.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn originals(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select kind as "kind!", record_id as "record_id!"
               from (
                   select 'duplicate' as kind, record_id from duplicates
                   union all select 'conflict', record_id from conflicts
               ) noted
               where not exists (select from record_ids i where i.record_id = noted.record_id)
                   and not exists (select from dead_letters l where l.record_id = noted.record_id)"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of {}", row.kind, row.record_id);
            differences.add("original", place, "a record or dead letter of this id", "none");
        }
        Ok(())
    }

    /// Checks that the id ledger names each record and each open dead letter, and nothing else. An id whose record is in a
    /// dropped partition stays.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn ids(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"with held as (
                   select record_id, shard, seq as number, period from records
                   union all
                   select record_id, shard, n, null from dead_letters where state = 'open' and record_id is not null
               ), kept as (
                   select distinct period from records
               )
               select record_id as "record_id!", h.shard as "shard?", h.number as "number?", h.period is not null as "is_record!",
                      i.shard as "id_shard?", i.number as "id_number?", i.period is not null as "id_is_record!"
               from held h full join record_ids i using (record_id)
               where (h.shard, h.number, h.period) is distinct from (i.shard, i.number, i.period)
                 and (h.shard is not null or i.period is null or exists (select from kept where kept.period = i.period))"#
        )
        .fetch(&mut *self.snapshot);
        let name = |shard: Option<i32>, number: Option<i64>, is_record: bool| match shard.zip(number) {
            None => "nothing".to_owned(),
            Some((shard, number)) if is_record => format!("record {shard}-{number}"),
            Some((shard, number)) => format!("open dead letter {shard}-d{number}"),
        };
        while let Some(row) = rows.try_next().await? {
            let expected = name(row.shard, row.number, row.is_record);
            let found = name(row.id_shard, row.id_number, row.id_is_record);
            differences.add("id", format!("id {}", row.record_id), expected, found);
        }
        Ok(())
    }

    /// Checks that every destination's records are in its shard.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn shards(&mut self, shards: u16, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select distinct destination_id as "destination_id: DestinationId", shard as "shard: ShardId" from records"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let expected = ShardId::of(&row.destination_id, shards);
            if row.shard != expected {
                let place = format!("destination {}", row.destination_id);
                differences.add("shard", place, expected.to_string(), row.shard.to_string());
            }
        }
        Ok(())
    }

    /// Ends the snapshot.
    ///
    /// # Errors
    /// When the connection to Postgres is lost.
    pub async fn end(self) -> Result<(), Error> {
        Ok(self.snapshot.rollback().await?)
    }
}

#[cfg(test)]
mod tests;
