//! Declared rollups: their declarations, the rows that a commit adds, the background build of older records, and the
//! deletion of removed ones.
//!
//! A record counts in one part of a rollup: in the built part below the first number that its shard gave under the
//! declaring policy version, in the other part from there on. The build must never add records without moving `next_seq`
//! in the same transaction, under the lock of its row. A worker that has the lock adds the next records, so no lease is
//! needed. No row may be added to a rollup whose row is deleted.

#[cfg(test)]
mod tests;

use millrace_crds::GroupField;
use sqlx::{PgConnection, Postgres, Transaction};

use super::{DecidedPart, Error, GroupCommit, Store, session::BEGIN, slow::Watch};
use crate::domain::{DeclaredRollup, Policy, RollupKey, Seq, ShardId, UnknownZone, Zone, rollup_changes};

/// The work of one transaction on declared rollups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollupStep {
    /// Records were added to the built part.
    Built {
        /// The rollup's id.
        id: i32,
        /// Its name.
        name: String,
        /// Number of records.
        records: i64,
        /// Whether the shard's part of the build is complete.
        ended: bool,
    },
    /// Rows of a removed rollup were deleted.
    Deleting,
    /// A removed rollup is deleted.
    Deleted {
        /// The rollup's id.
        id: i32,
        /// Its name.
        name: String,
    },
    /// There is nothing to do.
    Nothing,
}

/// The state of a declared rollup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollupState {
    /// Its id.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Whether queries may use it.
    pub complete: bool,
    /// Most records that are still to be built; 0 while no shard runs the version that declared it.
    pub unbuilt: i64,
}

/// A part of a rollup's build, locked.
struct Part {
    id: i32,
    name: String,
    shard: ShardId,
    next: Seq,
    until: Seq,
    window_seconds: i32,
    keeps: [bool; 3],
    zone: Zone,
}

/// The fields of a group as their column.
fn group_column(rollup: &DeclaredRollup) -> Vec<String> {
    rollup.group_by.iter().map(|field| field.as_str().to_owned()).collect()
}

/// Declares the rollups of a policy version that is being registered, and stores that others were removed. An unchanged
/// one keeps its id.
///
/// The caller holds the lock on the pipeline's row.
pub(super) async fn declare(
    connection: &mut PgConnection,
    version: i64,
    rollups: impl Iterator<Item = DeclaredRollup>,
) -> Result<(), Error> {
    let mut kept = Vec::new();
    for rollup in rollups {
        let zone = rollup.zone.as_ref().map_err(refused)?;
        let id = sqlx::query_scalar!(
            r#"with found as (
                   select id from rollups
                   where removed is null and name = $1 and window_seconds = $2 and group_by = $3 and distinct_source = $4
                         and time_zone = $6
               ), declared as (
                   insert into rollups (name, window_seconds, group_by, distinct_source, version, time_zone, missing_before)
                   select $1, $2, $3, $4, $5, $6, (select max(last_time) + interval '1 microsecond' from dropped_periods)
                   where not exists (select from found)
                   returning id
               )
               select id as "id!" from found union all select id from declared"#,
            rollup.name,
            rollup.window_seconds,
            &group_column(&rollup),
            rollup.distinct_source,
            version,
            zone.name(),
        )
        .fetch_one(&mut *connection)
        .await?;
        kept.push(id);
    }
    sqlx::query!("update rollups set removed = $1 where removed is null and not id = any($2)", version, &kept)
        .execute(connection)
        .await?;
    Ok(())
}

impl GroupCommit {
    /// Adds the records of decisions to the rollups of the policy version that decided them. Rows belong to a shard, whose
    /// row this transaction has locked, so they are locked by no other commit. Returns how many records of each shard came
    /// after their window was closed.
    pub(super) async fn add_to_rollups(
        &mut self,
        parts: &[DecidedPart<'_>],
        policy: &Policy,
    ) -> Result<Vec<(ShardId, i64)>, Error> {
        let rollups = policy.rollups();
        let records = parts
            .iter()
            .flat_map(|DecidedPart { part, decision }| decision.records.iter().map(|new| (part.shard, &*new.record)));
        let changes = rollup_changes(rollups, records);
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let zones = rollups.iter().map(|rollup| rollup.zone.as_ref().map(Zone::name));
        let zones = zones.collect::<Result<Vec<&str>, &UnknownZone>>().map_err(refused)?;
        let _watch = Watch::start("commit.rollups");
        let names: Vec<&str> = rollups.iter().map(|rollup| rollup.name.as_str()).collect();
        let windows: Vec<i32> = rollups.iter().map(|rollup| rollup.window_seconds).collect();
        let groups: Vec<String> = rollups.iter().map(|rollup| group_column(rollup).join(",")).collect();
        let distinct: Vec<bool> = rollups.iter().map(|rollup| rollup.distinct_source).collect();
        let keys = || changes.keys();
        let column = |of: for<'k> fn(&RollupKey<'k>) -> &'k str| keys().map(of).collect::<Vec<&str>>();
        // The ids belong to the policy version: a removed rollup is kept as long as a shard runs a version that has it.
        let added = sqlx::query!(
            r#"with declared as materialized (
                   select d.n, r.id, r.closed_before
                   from unnest($1::text[], $2::int[], $3::text[], $4::boolean[], $16::text[]) with ordinality
                       as d (name, window_seconds, group_by, distinct_source, time_zone, n)
                   join rollups r on r.name = d.name and r.window_seconds = d.window_seconds
                       and r.time_zone = d.time_zone and array_to_string(r.group_by, ',') = d.group_by and r.distinct_source = d.distinct_source
                       and r.version <= $5 and (r.removed is null or r.removed > $5)
               ), changes as materialized (
                   select d.id, k.*, coalesce(k.window_start < d.closed_before, false) as is_late
                   from unnest($6::bigint[], $7::int[], $8::boolean[], $9::timestamptz[], $10::bigint[], $11::text[],
                           $12::text[], $13::text[], $14::text[], $15::text[])
                       as k (n, shard, positive, window_start, count, destination_id, reference, source_id, unit, sum)
                   join declared d using (n)
               ), added as (
                   insert into rollup_totals as t (rollup_id, shard, built, positive, window_start, count, destination_id,
                       reference, source_id, unit, sum)
                   select id, shard, false, positive, window_start, count, destination_id, reference, source_id, unit,
                       sum::numeric
                   from changes where not is_late
                   on conflict (rollup_id, destination_id, window_start, reference, source_id, unit, positive, shard, built)
                   do update set count = t.count + excluded.count, sum = t.sum + excluded.sum
               )
               select shard as "shard!: ShardId", count(*) as "changes!",
                      coalesce(sum(count) filter (where is_late), 0)::bigint as "late!"
               from changes group by shard"#,
            &names as &[&str],
            &windows,
            &groups,
            &distinct,
            policy.version,
            &keys().map(|key| key.rollup as i64 + 1).collect::<Vec<i64>>(),
            &keys().map(|key| key.shard).collect::<Vec<ShardId>>() as &[ShardId],
            &keys().map(|key| key.positive).collect::<Vec<bool>>(),
            &keys().map(|key| key.window_start).collect::<Vec<_>>(),
            &changes.values().map(|change| change.count).collect::<Vec<i64>>(),
            &column(|key| key.destination_id) as &[&str],
            &column(|key| key.reference) as &[&str],
            &column(|key| key.source_id) as &[&str],
            &column(|key| key.unit) as &[&str],
            &changes.values().map(|change| change.sum.to_string()).collect::<Vec<String>>(),
            &zones as &[&str],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        if added.iter().map(|of| of.changes).sum::<i64>() == changes.len() as i64 {
            return Ok(added.into_iter().filter(|of| of.late > 0).map(|of| (of.shard, of.late)).collect());
        }
        let version = policy.version;
        Err(Error::Refused(format!("the rollups of version {version} of the manifest are missing in Postgres")))
    }
}

impl Store {
    /// Begins a transaction of the background work. One that is paused must not lock a row for long.
    async fn begin_background(&self) -> Result<Transaction<'static, Postgres>, Error> {
        let mut transaction = self.pool.begin_with(BEGIN).await?;
        sqlx::query!("select set_config('idle_in_transaction_session_timeout', '5000', true)")
            .fetch_one(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// Adds up to `most` stored records of a shard to the built part of a rollup.
    ///
    /// # Errors
    /// When Postgres does not answer: nothing was added, or all was.
    pub async fn build_rollup(&self, most: i64) -> Result<RollupStep, Error> {
        self.begin_builds().await?;
        let mut transaction = self.begin_background().await?;
        let Some(part) = lock_part(&mut transaction).await? else { return Ok(RollupStep::Nothing) };
        let [by_destination, by_reference, by_source] = part.keeps;
        let zone = part.zone.arguments();
        let _watch = Watch::start("rollup.build");
        // A later statement than the lock: it sees what the previous holder has added.
        let row = sqlx::query!(
            r#"with part as materialized (
                   select seq, time, positive, value, destination_id, reference, source_id, unit from records
                   where shard = $2 and seq >= $3 and seq < $4 order by seq limit $5
               ), added as (
                   insert into rollup_totals as t (rollup_id, shard, built, positive, window_start, count, destination_id,
                       reference, source_id, unit, sum)
                   select $1, $2, true, positive,
                       date_bin(make_interval(secs => $6::int), local_time(time, $10, $11), timestamptz '1970-01-01 00:00:00+00'),
                       count(*),
                       case when $7 then destination_id else '' end, case when $8 then reference else '' end,
                       case when $9 then source_id else '' end, unit, sum(value)
                   from part group by 4, 5, 7, 8, 9, 10
                   on conflict (rollup_id, destination_id, window_start, reference, source_id, unit, positive, shard, built)
                   do update set count = t.count + excluded.count, sum = t.sum + excluded.sum
               ), moved as (
                   update rollup_builds set next_seq = coalesce((select max(seq) + 1 from part having count(*) = $5), until_seq)
                   where rollup_id = $1 and shard = $2
                   returning next_seq = until_seq as ended
               )
               select (select count(*) from part) as "records!", ended as "ended!" from moved"#,
            part.id,
            part.shard as ShardId,
            part.next as Seq,
            part.until as Seq,
            most,
            part.window_seconds,
            by_destination,
            by_reference,
            by_source,
            &zone.transitions,
            &zone.offsets,
        )
        .fetch_one(&mut *transaction)
        .await?;
        crate::fault::point("before_rollup_commit");
        transaction.commit().await?;
        Ok(RollupStep::Built { id: part.id, name: part.name, records: row.records, ended: row.ended })
    }

    /// Begins the build of each declared rollup in each shard that runs the version that declared it, or a later one.
    async fn begin_builds(&self) -> Result<(), Error> {
        sqlx::query!(
            "with declared as (
                 select id, version from rollups r
                 where removed is null and exists (
                     select from shards s
                     where s.policy_version >= r.version
                       and not exists (select from rollup_builds b where b.rollup_id = r.id and b.shard = s.shard))
                 for key share
             )
             insert into rollup_builds (rollup_id, shard, until_seq, next_seq)
             select d.id, p.shard, min(p.from_seq), 1 from declared d join shard_policies p on p.version >= d.version
             group by d.id, p.shard
             on conflict do nothing"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes up to `most` rows of a removed rollup that no shard adds to any more, or the rollup once it has none.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_rollup(&self, most: i64) -> Result<RollupStep, Error> {
        let mut transaction = self.begin_background().await?;
        let removed = sqlx::query!(
            "select id, name from rollups where removed <= (select min(policy_version) from shards)
             order by id limit 1 for update skip locked"
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(removed) = removed else { return Ok(RollupStep::Nothing) };
        let _watch = Watch::start("rollup.delete");
        let deleted = sqlx::query!(
            "delete from rollup_totals where ctid = any(array(select ctid from rollup_totals where rollup_id = $1 limit $2))",
            removed.id,
            most,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        if deleted == 0 {
            sqlx::query!("delete from rollup_builds where rollup_id = $1", removed.id)
                .execute(&mut *transaction)
                .await?;
            sqlx::query!("delete from rollups where id = $1", removed.id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        let (id, name) = (removed.id, removed.name);
        Ok(if deleted == 0 { RollupStep::Deleted { id, name } } else { RollupStep::Deleting })
    }

    /// The declared rollups, in the order of their names.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn rollup_states(&self) -> Result<Vec<RollupState>, Error> {
        Ok(sqlx::query_as!(
            RollupState,
            r#"select r.id, r.name,
                      bool_and(coalesce(s.policy_version >= r.version and b.next_seq >= b.until_seq, false)) as "complete!",
                      coalesce(sum(greatest(b.until_seq - b.next_seq, 0)), 0)::bigint as "unbuilt!"
               from rollups r cross join shards s
               left join rollup_builds b on b.rollup_id = r.id and b.shard = s.shard
               where r.removed is null
               group by r.id order by r.name"#
        )
        .fetch_all(&self.pool)
        .await?)
    }
}

/// Locks the first part of a build that is not complete and that nobody works on. The row of the rollup stays until the
/// transaction ends.
async fn lock_part(connection: &mut PgConnection) -> Result<Option<Part>, Error> {
    let row = sqlx::query!(
        r#"select r.id, r.name, b.shard as "shard: ShardId", b.next_seq as "next: Seq", b.until_seq as "until: Seq",
                  r.window_seconds, r.group_by, r.distinct_source, r.time_zone
           from rollup_builds b join rollups r on r.id = b.rollup_id
           where b.next_seq < b.until_seq and r.removed is null
           order by b.rollup_id, b.shard limit 1
           for update of b skip locked for key share of r skip locked"#
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        let by = |field: GroupField| row.group_by.iter().any(|name| name == field.as_str());
        let zone = Zone::named(&row.time_zone).map_err(|unknown| refused(&unknown))?;
        Ok(Part {
            id: row.id,
            name: row.name,
            shard: row.shard,
            next: row.next,
            until: row.until,
            window_seconds: row.window_seconds,
            keeps: [
                by(GroupField::DestinationId),
                by(GroupField::Reference),
                by(GroupField::SourceId) || row.distinct_source,
            ],
            zone,
        })
    })
    .transpose()
}

fn refused(unknown: &UnknownZone) -> Error {
    Error::Refused(format!("a declared rollup: {unknown}; a newer version registered the manifest"))
}
