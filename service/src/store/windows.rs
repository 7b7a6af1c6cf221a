//! The totals of a rollup's windows, which thresholds on totals depend on.
//!
//! A window's total is exact in a shard once the shard's part of the rollup is built: the first number that is decided then is
//! stored, and thresholds are decided from there on. Must never return the total of a window that retention closed, or whose
//! records were dropped before they were built.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Error,
    group::{GroupCommit, Part},
    known::record_of,
    slow::Watch,
};
use crate::domain::{DeclaredRollup, Known, Policy, Seq, ShardId, WindowKey};

/// A shard's part of a rollup.
struct ShardPart {
    id: i32,
    /// Index of the rollup in the policy.
    rollup: usize,
    shard: ShardId,
    is_begun: bool,
    is_built: bool,
    is_decided: bool,
    closed_before: Option<DateTime<Utc>>,
    missing_before: Option<DateTime<Utc>>,
}

impl ShardPart {
    /// Whether it holds all records of a window.
    fn holds(&self, key: &WindowKey, rollups: &[DeclaredRollup]) -> bool {
        let missing = self.missing_before.zip(rollups.get(self.rollup));
        let missing = missing.map(|(before, rollup)| rollup.window_start(before - TimeDelta::microseconds(1)));
        self.is_decided
            && self.closed_before.is_none_or(|closed| key.window_start >= closed)
            && missing.is_none_or(|missing| key.window_start > missing)
    }
}

impl GroupCommit {
    /// Reads the totals of the windows of a group that the policy has thresholds on.
    pub(super) async fn known_windows(
        &mut self,
        parts: &[Part<'_>],
        policy: &Policy,
        shards: &mut HashMap<ShardId, Known>,
    ) -> Result<(), Error> {
        if policy.total_thresholds().iter().all(|threshold| threshold.total_of().is_some()) {
            return Ok(());
        }
        let rollups = policy.rollups();
        let mut keys: BTreeSet<(ShardId, WindowKey)> = BTreeSet::new();
        for part in parts {
            for record in part.batch.iter().filter_map(record_of) {
                let thresholds = policy.total_thresholds().iter().filter(|threshold| threshold.is_of(record));
                keys.extend(thresholds.filter_map(|threshold| Some((part.shard, threshold.window(record, rollups)?))));
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        let _watch = Watch::start("commit.windows");
        let used: BTreeSet<(ShardId, usize)> = keys.iter().map(|(shard, key)| (*shard, key.rollup)).collect();
        let mut builds = self.shard_parts(policy, &used).await?;
        if builds.iter().any(|build| !build.is_begun || build.is_built && !build.is_decided) {
            self.decide_from_here(&builds).await?;
            builds = self.shard_parts(policy, &used).await?;
        }
        let ids: HashMap<(ShardId, usize), &ShardPart> =
            builds.iter().map(|build| ((build.shard, build.rollup), build)).collect();
        let held: Vec<(i32, ShardId, WindowKey)> = keys
            .into_iter()
            .filter_map(|(shard, key)| {
                let build = ids.get(&(shard, key.rollup)).filter(|build| build.holds(&key, rollups))?;
                Some((build.id, shard, key))
            })
            .collect();
        for ((_, shard, key), nanos) in held.iter().zip(self.window_totals(&held).await?) {
            if let Some(known) = shards.get_mut(shard) {
                known.windows.insert(key.clone(), nanos);
            }
        }
        Ok(())
    }

    /// The state of rollups, by their index in the policy, in shards.
    async fn shard_parts(
        &mut self,
        policy: &Policy,
        used: &BTreeSet<(ShardId, usize)>,
    ) -> Result<Vec<ShardPart>, Error> {
        let (shards, rollups): (Vec<ShardId>, Vec<i64>) =
            used.iter().map(|(shard, rollup)| (*shard, *rollup as i64)).unzip();
        let names: Vec<&str> =
            used.iter().map(|(_, rollup)| policy.rollups().get(*rollup).map_or("", |of| of.name.as_str())).collect();
        // A version has one rollup of a name.
        let rows = sqlx::query!(
            r#"select k.rollup as "rollup!", k.shard as "shard!: ShardId", r.id, b.shard is not null as "is_begun!",
                      coalesce(b.next_seq >= b.until_seq, false) as "is_built!", b.decided_from is not null as "is_decided!",
                      r.closed_before, r.missing_before
               from unnest($1::int[], $2::bigint[], $3::text[]) as k (shard, rollup, name)
               join rollups r on r.name = k.name and r.version <= $4 and (r.removed is null or r.removed > $4)
               left join rollup_builds b on b.rollup_id = r.id and b.shard = k.shard"#,
            &shards as &[ShardId],
            &rollups,
            &names as &[&str],
            policy.version,
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let parts = rows.into_iter().map(|row| ShardPart {
            id: row.id,
            rollup: usize::try_from(row.rollup).unwrap_or_default(),
            shard: row.shard,
            is_begun: row.is_begun,
            is_built: row.is_built,
            is_decided: row.is_decided,
            closed_before: row.closed_before,
            missing_before: row.missing_before,
        });
        Ok(parts.collect())
    }

    /// Begins the builds that are not begun, as [`super::Store::build_rollup`] would, and notes for the complete ones that thresholds
    /// are decided from the next record on.
    async fn decide_from_here(&mut self, builds: &[ShardPart]) -> Result<(), Error> {
        let ids: Vec<i32> = builds.iter().map(|build| build.id).collect();
        let shards: Vec<ShardId> = builds.iter().map(|build| build.shard).collect();
        let first: Vec<Seq> = builds.iter().map(|build| self.shard(build.shard).first()).collect();
        let next: Vec<Seq> =
            builds.iter().map(|build| self.shard(build.shard).position.watermarks.records.next()).collect();
        sqlx::query!(
            "insert into rollup_builds (rollup_id, shard, until_seq, next_seq)
             select k.id, k.shard, coalesce(min(p.from_seq), k.first), 1
             from unnest($1::int[], $2::int[], $3::bigint[]) as k (id, shard, first)
             join rollups r on r.id = k.id
             left join shard_policies p on p.shard = k.shard and p.version >= r.version
             where not exists (select from rollup_builds b where b.rollup_id = k.id and b.shard = k.shard)
             group by k.id, k.shard, k.first
             on conflict do nothing",
            &ids,
            &shards as &[ShardId],
            &first as &[Seq],
        )
        .execute(&mut *self.transaction)
        .await?;
        sqlx::query!(
            "update rollup_builds b set decided_from = k.next
             from unnest($1::int[], $2::int[], $3::bigint[]) as k (id, shard, next)
             where b.rollup_id = k.id and b.shard = k.shard and b.next_seq >= b.until_seq and b.decided_from is null",
            &ids,
            &shards as &[ShardId],
            &next as &[Seq],
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// The totals of windows in billionths, in their order.
    async fn window_totals(&mut self, keys: &[(i32, ShardId, WindowKey)]) -> Result<Vec<i128>, Error> {
        let ids: Vec<i32> = keys.iter().map(|(id, ..)| *id).collect();
        let shards: Vec<ShardId> = keys.iter().map(|(_, shard, _)| *shard).collect();
        let column =
            |of: for<'k> fn(&'k WindowKey) -> &'k str| keys.iter().map(|(.., key)| of(key)).collect::<Vec<_>>();
        let references: Vec<Option<&str>> =
            keys.iter().map(|(.., key)| Some(key.reference.as_ref()?.as_str())).collect();
        let starts: Vec<DateTime<Utc>> = keys.iter().map(|(.., key)| key.window_start).collect();
        let totals = sqlx::query_scalar!(
            r#"select (coalesce(sum(case when t.positive then t.sum else -t.sum end), 0) * 1000000000)::numeric(60, 0)::text
                          as "nanos!"
               from unnest($1::int[], $2::int[], $3::text[], $4::timestamptz[], $5::text[], $6::text[]) with ordinality
                   as k (id, shard, destination_id, window_start, reference, unit, n)
               left join rollup_totals t on t.rollup_id = k.id and t.destination_id = k.destination_id
                   and t.window_start = k.window_start and t.shard = k.shard and t.unit = k.unit
                   and (k.reference is null or t.reference = k.reference)
               group by k.n order by k.n"#,
            &ids,
            &shards as &[ShardId],
            &column(|key| key.destination_id.as_str()) as &[&str],
            &starts,
            &references as &[Option<&str>],
            &column(|key| key.unit.as_str()) as &[&str],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let parse = |nanos: String| nanos.parse().map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))));
        totals.into_iter().map(parse).collect()
    }
}
