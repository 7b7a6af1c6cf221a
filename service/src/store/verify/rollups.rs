//! The check of declared rollups, in one statement: it returns the differences only.

use futures::TryStreamExt as _;

use super::{Differences, Scope, Verification};
use crate::{domain::Zone, store::Error};

/// The zones of declared rollups, as columns: their names, and their rules as literals of arrays.
#[derive(Default)]
struct Zones {
    names: Vec<String>,
    transitions: Vec<String>,
    offsets: Vec<String>,
}

impl Verification {
    /// Compares the rows of each declared rollup with the records that they count: in the built part those that the build
    /// has reached, in the other part those of the commits. Rows that belong to no rollup are differences, too. Not since
    /// a time, because a row can hold records from before it. A window with the time of a record that retention deleted, or
    /// an earlier one, can count more records than are kept; closed windows are not compared.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    #[expect(clippy::too_many_lines, reason = "one statement")]
    pub(super) async fn rollups(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        // Without any, the statement must not read the records.
        let has_any = sqlx::query_scalar!(
            r#"select exists (select from rollups) or exists (select from rollup_totals) as "has_any!""#
        );
        if scope.since.is_some() || !has_any.fetch_one(&mut *self.snapshot).await? {
            return Ok(());
        }
        let zones = self.zones_of_rollups().await?;
        let mut rows = sqlx::query!(
            r#"with zones as (
                   select name, transitions::timestamptz[] as transitions, offsets::int[] as offsets
                   from unnest($2::text[], $3::text[], $4::text[]) as z (name, transitions, offsets)
               ), parts as (
                   select r.*, z.transitions, z.offsets, s.shard, coalesce(b.next_seq, 0) as next_seq, live.from_seq,
                          'destinationId' = any(group_by) as by_destination, 'reference' = any(group_by) as by_reference,
                          'sourceId' = any(group_by) or distinct_source as by_source
                   from rollups r join zones z on z.name = r.time_zone cross join shards s
                   left join rollup_builds b on b.rollup_id = r.id and b.shard = s.shard
                   cross join lateral (
                       select min(from_seq) as from_seq from shard_policies p
                       where p.shard = s.shard and p.version >= r.version
                   ) live
                   where r.removed is null and ($1::int[] is null or s.shard = any($1))
               ), derived as (
                   select p.id as rollup_id, p.shard, c.seq < p.from_seq as built, c.positive,
                          date_bin(make_interval(secs => p.window_seconds), local_time(c.time, p.transitions, p.offsets),
                              timestamptz '1970-01-01 00:00:00+00') as window_start,
                          case when p.by_destination then c.destination_id else '' end as destination_id,
                          case when p.by_reference then c.reference else '' end as reference,
                          case when p.by_source then c.source_id else '' end as source_id,
                          c.unit, count(*) as count, sum(c.value) as sum
                   from parts p
                   join records c on c.shard = p.shard and (c.seq < least(p.next_seq, p.from_seq) or c.seq >= p.from_seq)
                   left join expired_counts e on e.shard = p.shard and e.kind = 'records' and e.destination_id = ''
                   where c.seq > coalesce(e.upto, 0)
                   group by 1, 2, 3, 4, 5, 6, 7, 8, 9
               ), stored as (
                   select t.* from rollup_totals t left join rollups r on r.id = t.rollup_id
                   where r.removed is null and ($1::int[] is null or t.shard = any($1))
               )
               select coalesce(r.name, 'of id ' || rollup_id) as "name!", shard as "shard!", built as "built!",
                      positive as "positive!", window_start as "window_start!", destination_id as "destination_id!",
                      reference as "reference!", source_id as "source_id!", unit as "unit!",
                      d.count as "derived?", trim_scale(d.sum)::text as "derived_sum?", t.count as "stored?",
                      trim_scale(t.sum)::text as "stored_sum?"
               from derived d
               full join stored t using (rollup_id, shard, built, positive, window_start, destination_id, reference, source_id, unit)
               left join rollups r on r.id = rollup_id
               left join zones z on z.name = r.time_zone
               where (d.count, d.sum) is distinct from (t.count, t.sum)
                 and (r.closed_before is null or window_start >= r.closed_before)
                 and not (coalesce(t.count, 0) >= coalesce(d.count, 0)
                          and coalesce(window_start <= local_time((select max(last_time) from dropped_periods),
                                                                  z.transitions, z.offsets), false))"#,
            scope.numbers() as Option<Vec<i32>>,
            &zones.names,
            &zones.transitions,
            &zones.offsets,
        )
        .fetch(&mut *self.snapshot);
        let shown = |count: Option<i64>, sum: Option<String>| match count.zip(sum) {
            Some((count, sum)) => format!("{count} records, sum {sum}"),
            None => "nothing".to_owned(),
        };
        while let Some(row) = rows.try_next().await? {
            let part = if row.built { "built" } else { "live" };
            let sign = if row.positive { "positive" } else { "negative" };
            let start = crate::domain::render_time(row.window_start);
            let place = format!(
                "rollup {}, shard {}, {part}, window {start}: {:?} / {:?} / {:?} / {}, {sign}",
                row.name, row.shard, row.destination_id, row.reference, row.source_id, row.unit
            );
            differences.add("rollup", place, shown(row.derived, row.derived_sum), shown(row.stored, row.stored_sum));
        }
        Ok(())
    }

    async fn zones_of_rollups(&mut self) -> Result<Zones, Error> {
        let names =
            sqlx::query_scalar!("select distinct time_zone from rollups").fetch_all(&mut *self.snapshot).await?;
        let mut zones = Zones::default();
        for name in names {
            let rules = Zone::named(&name).map_err(|unknown| Error::Refused(unknown.to_string()))?.arguments();
            let transitions: Vec<String> = rules.transitions.iter().map(|at| crate::domain::render_time(*at)).collect();
            let offsets: Vec<String> = rules.offsets.iter().map(i32::to_string).collect();
            zones.names.push(name);
            zones.transitions.push(format!("{{{}}}", transitions.join(",")));
            zones.offsets.push(format!("{{{}}}", offsets.join(",")));
        }
        Ok(zones)
    }
}
