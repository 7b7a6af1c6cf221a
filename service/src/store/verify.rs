//! Deriving everything again from the records, in one snapshot, and comparing it with what is stored.
//!
//! Must never write, and must never hold more than a page of rows: the comparing is done by Postgres.

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use rust_decimal::Decimal;
use sqlx::{Postgres, Transaction};

use super::{Error, Store, pool::numeric};
use crate::domain::{Amount, Attributes, Kind, Record, Text, shard_of};

/// Differences that are kept; of the others only the number is known.
const KEPT: usize = 100;

/// Something that is stored or published differs from what the records say.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// What was compared, a stable word.
    pub check: &'static str,
    /// Where: a shard, a record, a key, a sink's entry.
    pub place: String,
    /// What the records say.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// The first differences, and the number of all.
#[derive(Debug, Default)]
pub struct Differences {
    /// At most 100.
    pub first: Vec<Difference>,
    /// All of them.
    pub count: u64,
}

impl Differences {
    /// Notes one.
    pub fn add(&mut self, check: &'static str, place: String, expected: impl Into<String>, found: impl Into<String>) {
        self.count += 1;
        if self.first.len() < KEPT {
            self.first.push(Difference { check, place, expected: expected.into(), found: found.into() });
        }
    }
}

/// What there is, as of the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Shards of the pipeline.
    pub shards: u16,
    /// Records that were processed.
    pub records: i64,
    /// Of which raised an alert.
    pub alerts: i64,
    /// Keys and units with a total.
    pub totals: i64,
}

/// A sink that was started.
#[derive(Debug, Clone)]
pub struct StartedSink {
    /// Its name.
    pub name: String,
    /// `Processed`, `Alert`, `DeadLettered` or `Conflicted`.
    pub kind: String,
    /// Its Redis stream.
    pub stream: String,
    /// Of its cursor.
    pub incarnation: String,
}

/// A processed record with all that a notification tells of it.
#[derive(Debug, Clone)]
pub struct LoggedRecord {
    /// Its number in the shard.
    pub seq: i64,
    /// Itself.
    pub record: Record,
    /// When serve took it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
    /// Records before it on the same key and unit.
    pub previous_count: i64,
    /// Their total.
    pub previous_total: Decimal,
    /// The threshold that it passed.
    pub threshold: Option<Decimal>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// One snapshot of a pipeline's schema.
pub struct Verification {
    snapshot: Transaction<'static, Postgres>,
}

impl Store {
    /// Opens a snapshot in which everything is compared.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn verification(&self) -> Result<Verification, Error> {
        let snapshot = self.pool.begin_with("begin isolation level repeatable read, read only").await?;
        Ok(Verification { snapshot })
    }
}

impl Verification {
    /// How much there is.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
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
        let shards =
            u16::try_from(row.shards).map_err(|_| Error::Refused("the number of shards is none".to_owned()))?;
        Ok(Extent { shards, records: row.records, alerts: row.alerts, totals: row.totals })
    }

    /// Count and total of what came before each record on its key, against the running ones over the records.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
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

    /// The stored total of every key and unit, against the sum of its records.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
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

    /// That the numbers of records, dead letters and conflicts follow one another in every shard, but for noted gaps.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
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

    /// Each shard's highest numbers and counts, against its rows.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
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
                           max(to_n) filter (where kind = 'dead_letters') as letters,
                           max(to_n) filter (where kind = 'conflicts') as conflicts
                       from gaps group by shard
                   ) g using (shard)
                   cross join lateral (values
                       ('processed', coalesce(r.n, 0), s.processed),
                       ('alerts', coalesce(r.alerts, 0), s.alerts),
                       ('duplicates', coalesce(d.n, 0), s.duplicates),
                       ('highest record', greatest(r.top, g.records, 0), s.records),
                       ('highest dead letter', greatest(l.top, g.letters, 0), s.dead_letters),
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

    /// An alert exactly for the records whose value is above the threshold of the policy in force at their number.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
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
                (None, _) => "a policy noted for it".to_owned(),
                (Some(version), None) => format!("no threshold in policy {version}"),
                (Some(version), Some(threshold)) => format!("judged by {threshold} of policy {version}"),
            };
            let found = row.threshold.map_or("no alert".to_owned(), |threshold| format!("alert at {threshold}"));
            differences.add("alert", place, expected, found);
        }
        Ok(())
    }

    /// That every duplicate and conflict has what it is one of.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn originals(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select kind as "kind!", record_id as "record_id!"
               from (
                   select 'duplicate' as kind, record_id from duplicates
                   union all select 'conflict', record_id from conflicts
               ) noted
               where not exists (select from records r where r.record_id = noted.record_id)
                   and not exists (select from dead_letters l where l.record_id = noted.record_id)"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of {}", row.kind, row.record_id);
            differences.add("original", place, "a record or dead letter of this id", "none");
        }
        Ok(())
    }

    /// That every destination's records are in its shard.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn shards(&mut self, shards: u16, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!("select distinct destination_id, shard from records").fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let expected = shard_of(&row.destination_id, shards);
            if row.shard != i32::from(expected) {
                let place = format!("destination {}", row.destination_id);
                differences.add("shard", place, expected.to_string(), row.shard.to_string());
            }
        }
        Ok(())
    }

    /// The Redis sinks that were started and not removed.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn started_sinks(&mut self) -> Result<Vec<StartedSink>, Error> {
        let sinks = sqlx::query_as!(
            StartedSink,
            r#"select name, kind, stream as "stream!", incarnation
               from sinks where stream is not null and started and not removed order by name"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(sinks)
    }

    /// The pipeline's name and id: the source of every notification.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn source(&mut self) -> Result<String, Error> {
        let row = sqlx::query!("select name, pipeline_id from pipeline").fetch_one(&mut *self.snapshot).await?;
        Ok(format!("{}/{}", row.name, row.pipeline_id))
    }

    /// Where each shard's part of a sink begins: the number after which outcomes are published.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn sink_starts(&mut self, sink: &str) -> Result<Vec<(u16, i64)>, Error> {
        let rows = sqlx::query!("select shard, after from sink_starts where sink = $1 order by shard", sink)
            .fetch_all(&mut *self.snapshot)
            .await?;
        Ok(rows.into_iter().filter_map(|row| Some((u16::try_from(row.shard).ok()?, row.after))).collect())
    }

    /// The highest number that a shard has given, of the kind that a sink carries.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn highest(&mut self, kind: &str, shard: u16) -> Result<i64, Error> {
        let highest = sqlx::query_scalar!(
            r#"select case $1::text when 'DeadLettered' then dead_letters when 'Conflicted' then conflicts
                   else records end as "highest!"
               from shards where shard = $2"#,
            kind,
            i32::from(shard)
        )
        .fetch_optional(&mut *self.snapshot)
        .await?;
        Ok(highest.unwrap_or_default())
    }

    /// Numbers of a shard that a sink of this kind publishes, above `after` and up to `until`, at most `limit`.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn published_numbers(
        &mut self,
        kind: &str,
        shard: u16,
        after: i64,
        until: i64,
        limit: i64,
    ) -> Result<Vec<i64>, Error> {
        let shard = i32::from(shard);
        let snapshot = &mut *self.snapshot;
        let numbers = match kind {
            "Processed" => {
                sqlx::query_scalar!(
                    "select seq from records where shard = $1 and seq > $2 and seq <= $3 order by seq limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            "Alert" => {
                sqlx::query_scalar!(
                    "select seq from records where shard = $1 and seq > $2 and seq <= $3 and threshold is not null
                     order by seq limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            "DeadLettered" => {
                sqlx::query_scalar!(
                    "select n from dead_letters where shard = $1 and n > $2 and n <= $3 order by n limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
            _ => {
                sqlx::query_scalar!(
                    "select n from conflicts where shard = $1 and n > $2 and n <= $3 order by n limit $4",
                    shard,
                    after,
                    until,
                    limit
                )
                .fetch_all(snapshot)
                .await?
            }
        };
        Ok(numbers)
    }

    /// Records of a shard by their numbers, in order.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn logged_records(&mut self, shard: u16, numbers: &[i64]) -> Result<Vec<LoggedRecord>, Error> {
        let rows = sqlx::query!(
            r#"select seq, received_at, processed_at, time, previous_count, positive, record_id, source_id, destination_id,
                 reference, unit, value::text as "value!", previous_total::text as "previous_total!",
                 threshold::text as threshold, attributes, traceparent
             from records where shard = $1 and seq = any($2) order by seq"#,
            i32::from(shard),
            numbers
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(LoggedRecord {
                    seq: row.seq,
                    record: Record {
                        record_id: Text::stored(row.record_id),
                        time: row.time,
                        source_id: Text::stored(row.source_id),
                        destination_id: Text::stored(row.destination_id),
                        kind: if row.positive { Kind::Positive } else { Kind::Negative },
                        value: Amount::stored(numeric(&row.value)?),
                        unit: Text::stored(row.unit),
                        reference: Text::stored(row.reference),
                        attributes: row.attributes.and_then(Attributes::stored),
                    },
                    received_at: row.received_at,
                    processed_at: row.processed_at,
                    previous_count: row.previous_count,
                    previous_total: numeric(&row.previous_total)?,
                    threshold: row.threshold.as_deref().map(numeric).transpose()?,
                    traceparent: row.traceparent,
                })
            })
            .collect()
    }

    /// When dead letters or conflicts were noted, and their trace contexts, by number, in order.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn refused(
        &mut self,
        kind: &str,
        shard: u16,
        numbers: &[i64],
    ) -> Result<Vec<(i64, DateTime<Utc>, Option<String>)>, Error> {
        let rows = sqlx::query!(
            r#"select n as "n!", at as "at!", traceparent
               from (
                   select 'DeadLettered' as kind, shard, n, opened_at as at, traceparent from dead_letters
                   union all select 'Conflicted', shard, n, noted_at, traceparent from conflicts
               ) refused
               where kind = $1 and shard = $2 and n = any($3) order by n"#,
            kind,
            i32::from(shard),
            numbers
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(rows.into_iter().map(|row| (row.n, row.at, row.traceparent)).collect())
    }

    /// Ends the snapshot.
    ///
    /// # Errors
    /// When Postgres went away.
    pub async fn end(self) -> Result<(), Error> {
        Ok(self.snapshot.rollback().await?)
    }
}

#[cfg(test)]
mod tests;
