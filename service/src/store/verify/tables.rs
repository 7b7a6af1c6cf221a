//! Checks that Postgres makes by itself, each in one statement: it returns the differences only.

use futures::TryStreamExt as _;

use super::{Differences, Scope, Verification};
use crate::store::Error;

impl Verification {
    /// All checks that Postgres makes by itself.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn tables(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        self.numbers(scope, differences).await?;
        self.counters(scope, differences).await?;
        self.outcomes(scope, differences).await?;
        self.shards(differences).await?;
        self.originals(scope, differences).await?;
        self.ids(scope, differences).await?;
        self.reversals(scope, differences).await?;
        self.rollups(scope, differences).await
    }

    /// Checks that the numbers of dead letters and conflicts have no gaps in any shard, except stored ones, above those that
    /// retention deleted. Below them only the count is compared.
    async fn numbers(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select kind as "kind!", shard as "shard!", before + 1 as "from!", n - 1 as "to!"
               from (
                   select kind, shard, n,
                          greatest(lag(n, 1, 0::bigint) over (partition by kind, shard order by n), e.upto) as before
                   from (
                       select 'dead_letters' as kind, shard, n from dead_letters
                       union all select 'conflicts', shard, n from conflicts
                   ) numbered
                   left join (select kind, shard, max(upto) as upto from expired_counts group by kind, shard) e
                       using (kind, shard)
                   where $1::int[] is null or shard = any($1)
               ) steps
               where n > before + 1 and n - before - 1 <> (
                   select coalesce(sum(least(g.to_n, n - 1) - greatest(g.from_n, before + 1) + 1), 0)
                   from gaps g
                   where g.shard = steps.shard and g.kind = steps.kind and g.to_n > before and g.from_n < n
               )"#,
            scope.numbers() as Option<Vec<i32>>
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of shard {}", row.kind, row.shard);
            differences.add("number", place, "numbers without gaps", format!("{} to {} missing", row.from, row.to));
        }
        Ok(())
    }

    /// Compares each shard's highest numbers and counts with its rows, except those of records.
    async fn counters(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select shard, name as "name!", derived as "derived!", stored as "stored!"
               from (
                   select s.shard, named.*
                   from shards s
                   left join (select shard, max(n) as top, count(*) as n from dead_letters group by shard) l using (shard)
                   left join (select shard, max(n) as top, count(*) as n from conflicts group by shard) c using (shard)
                   left join (select shard, count(*) as n from duplicates group by shard) d using (shard)
                   left join (
                       select shard, max(to_n) filter (where kind = 'dead_letters') as dead_letters,
                           max(to_n) filter (where kind = 'conflicts') as conflicts,
                           coalesce(sum(to_n - from_n + 1) filter (where kind = 'dead_letters'), 0)::bigint as dead_letters_n,
                           coalesce(sum(to_n - from_n + 1) filter (where kind = 'conflicts'), 0)::bigint as conflicts_n
                       from gaps group by shard
                   ) g using (shard)
                   left join (
                       select shard, max(upto) filter (where kind = 'dead_letters') as dead_letters,
                           max(upto) filter (where kind = 'conflicts') as conflicts,
                           sum(count) filter (where kind = 'dead_letters')::bigint as dead_letters_n,
                           sum(count) filter (where kind = 'conflicts')::bigint as conflicts_n,
                           sum(count) filter (where kind = 'duplicates')::bigint as duplicates_n
                       from expired_counts group by shard
                   ) e using (shard)
                   cross join lateral (values
                       ('duplicates', coalesce(d.n, 0) + coalesce(e.duplicates_n, 0), s.duplicates),
                       ('highest dead letter', greatest(l.top, g.dead_letters, e.dead_letters, 0), s.dead_letters),
                       ('highest conflict', greatest(c.top, g.conflicts, e.conflicts, 0), s.conflicts),
                       -- Where none was deleted, the numbers have no gaps.
                       ('dead letters', coalesce(l.n, 0) + e.dead_letters_n + coalesce(g.dead_letters_n, 0), s.dead_letters),
                       ('conflicts', coalesce(c.n, 0) + e.conflicts_n + coalesce(g.conflicts_n, 0), s.conflicts)
                   ) named (name, derived, stored)
               ) compared
               where derived <> stored and ($1::int[] is null or shard = any($1))"#,
            scope.numbers() as Option<Vec<i32>>
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of shard {}", row.name, row.shard);
            differences.add("counter", place, row.derived.to_string(), row.stored.to_string());
        }
        Ok(())
    }

    /// Compares the counts of each destination with its conflicts and dead letters; those of duplicates, which name no
    /// destination, over the shard.
    async fn outcomes(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"with derived as (
                   select shard, destination_id, name, sum(n)::bigint as n
                   from (
                       select shard, destination_id, 'conflicts' as name, count(*) as n from conflicts group by 1, 2
                       union all
                       select shard, coalesce(destination_id, ''), 'dead letters', count(*) from dead_letters group by 1, 2
                       union all
                       select shard, coalesce(destination_id, ''), 'replayed', count(*) from dead_letters
                       where state = 'replayed' group by 1, 2
                       union all
                       select shard, '', 'duplicates', count(*) from duplicates group by 1
                       union all
                       select shard, destination_id, replace(kind, '_', ' '), count from expired_counts where kind <> 'records'
                       union all
                       select shard, destination_id, 'replayed', replayed from expired_counts where kind = 'dead_letters'
                   ) parts
                   group by 1, 2, 3
               ), stored as (
                   select shard, destination_id, named.* from outcome_counts cross join lateral (values
                       ('conflicts', conflicts), ('dead letters', dead_letters), ('replayed', replayed)
                   ) named (name, n)
                   union all
                   select shard, '', 'duplicates', sum(duplicates)::bigint from outcome_counts group by 1
               )
               select shard as "shard!", destination_id as "destination_id!", name as "name!",
                      coalesce(d.n, 0) as "derived!", coalesce(s.n, 0) as "stored!"
               from derived d full join stored s using (shard, destination_id, name)
               where coalesce(d.n, 0) <> coalesce(s.n, 0) and ($1::int[] is null or shard = any($1))
               order by 1, 2, 3"#,
            scope.numbers() as Option<Vec<i32>>
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of {:?} in shard {}", row.name, row.destination_id, row.shard);
            differences.add("counter", place, row.derived.to_string(), row.stored.to_string());
        }
        Ok(())
    }

    /// Checks that no record is in a shard that the pipeline does not have.
    async fn shards(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select shard, count(*) as "records!" from records
               where shard < 0 or shard >= (select shards from pipeline) group by shard order by shard"#
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            differences.add("shard", format!("shard {}", row.shard), "no records", format!("{} records", row.records));
        }
        Ok(())
    }

    /// Checks that every duplicate and conflict has its record or dead letter, until retention has deleted ids or dead
    /// letters.
    async fn originals(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select kind as "kind!", record_id as "record_id!"
               from (
                   select 'duplicate' as kind, shard, noted_at, record_id from duplicates
                   union all select 'conflict', shard, noted_at, record_id from conflicts
               ) noted
               where ($1::int[] is null or shard = any($1)) and ($2::timestamptz is null or noted_at >= $2)
                   and not exists (select from record_ids i where i.record_id = noted.record_id)
                   and not exists (select from dead_letters l where l.record_id = noted.record_id)
                   and not exists (select from dropped_periods where ids_expired_at is not null)
                   and not exists (select from expired_counts where kind = 'dead_letters')"#,
            scope.numbers() as Option<Vec<i32>>,
            scope.since
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("{} of {}", row.kind, row.record_id);
            differences.add("original", place, "a record or dead letter of this id", "none");
        }
        Ok(())
    }

    /// Checks that the id ledger names each record and each open dead letter, and nothing else; since a time only that it
    /// names them. An id whose record was in a dropped partition stays, or is deleted later.
    async fn ids(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"with expired as (
                   select shard, upto from expired_counts where kind = 'records' and destination_id = ''
               ), held as (
                   select record_id, shard, seq as number, period from records r
                   where seq > coalesce((select upto from expired e where e.shard = r.shard), 0)
                     and ($1::int[] is null or shard = any($1)) and ($2::timestamptz is null or processed_at >= $2)
                   union all
                   select record_id, shard, n, null from dead_letters
                   where state = 'open' and record_id is not null
                     and ($1::int[] is null or shard = any($1)) and ($2::timestamptz is null or opened_at >= $2)
               ), kept as (
                   select period from partitions where not is_detaching
               )
               select record_id as "record_id!", h.shard as "shard?", h.number as "number?", h.period is not null as "is_record!",
                      i.shard as "id_shard?", i.number as "id_number?", i.period is not null as "id_is_record!"
               from held h full join record_ids i using (record_id)
               where (h.shard, h.number, h.period) is distinct from (i.shard, i.number, i.period)
                 and (h.shard is not null
                      or ($2::timestamptz is null and ($1::int[] is null or i.shard = any($1))
                          and (i.period is null
                               or (i.period in (select period from kept)
                                   and i.number > coalesce((select upto from expired e where e.shard = i.shard), 0)))))"#,
            scope.numbers() as Option<Vec<i32>>,
            scope.since
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
}
