//! One transaction for batches of several shards: lock the shards' rows, compare, read, write, commit.
//!
//! Must never read an id before the rows are locked, and must never write for a shard whose row it has not locked and
//! whose lease it has not compared.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use millrace_crds::Partition;
use sqlx::{Postgres, Transaction};

use super::{Error, ShardProgress, Store, newest::Server, session::BEGIN};
use crate::{
    domain::{
        Account, Decision, IdLedger, Item, Lease, Offset, Period, Policy, Position, Seq, ShardId, StreamId, Watermarks,
    },
    protocol_trace,
};

/// A transaction over the rows of some shards.
#[derive(Debug)]
pub struct GroupCommit {
    pub(super) transaction: Transaction<'static, Postgres>,
    /// Its shards: those that were locked, without those that left.
    shards: BTreeMap<ShardId, LockedShard>,
    /// The time of this server's clock.
    pub now: DateTime<Utc>,
    server: Server,
}

/// The row of a shard, locked.
#[derive(Debug, Clone)]
pub struct LockedShard {
    /// The state of the shard, with the decisions of this transaction.
    pub position: Position,
    before: Position,
    lease: Lease,
    is_owned: bool,
    policy_version: i64,
    period_before: Period,
    pub(super) period: Period,
    counts: Counts,
    /// Its entries that are decided, for the protocol trace.
    entries: Vec<StreamId>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    processed: usize,
    duplicates: usize,
    alerts: i64,
    total_alerts: i64,
    without_threshold: i64,
    late_after_retention: i64,
}

/// A batch of a shard, to be decided.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The shard.
    pub shard: ShardId,
    /// Its records, in order.
    pub batch: &'a [Item],
}

/// A decided batch.
#[derive(Debug, Clone, Copy)]
pub struct DecidedPart<'a> {
    /// The batch.
    pub part: Part<'a>,
    /// Its decision.
    pub decision: &'a Decision,
}

/// Why a shard cannot take part in a transaction.
#[derive(Debug)]
pub enum LeftOut {
    /// Its row is locked by another transaction.
    Locked,
    /// Another worker owns it.
    Fenced,
    /// It runs a newer policy version.
    OldPolicy(i64),
    /// Its log is not where the owner has left it.
    Changed,
}

/// A shard after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AfterCommit {
    /// Its log.
    pub progress: ShardProgress,
    /// Number of records that this commit found to be lost.
    pub lost: i64,
}

impl Store {
    /// Begins: locks the rows of these shards. `waits`: for each row; else the rows that another transaction has locked
    /// are left out.
    ///
    /// # Errors
    /// When Postgres does not answer, or a row stays locked.
    pub async fn begin_group(&self, shards: &[ShardId], of: u16, waits: bool) -> Result<GroupCommit, Error> {
        let mut transaction = self.commits.begin_with(BEGIN).await?;
        if waits {
            // An applier that waits serves no other shard.
            sqlx::query!("select set_config('lock_timeout', '1000', true)").fetch_one(&mut *transaction).await?;
        }
        // An earlier statement than the one that looks for ids: under READ COMMITTED a statement that waited for a lock
        // continues with the snapshot from before the wait.
        macro_rules! lock {
            ($how:literal) => {{
                let rows = sqlx::query!(
                    r#"select shard as "shard: ShardId", epoch, token, owner is not null as "is_owned!", policy_version,
                              records as "records: Seq", dead_letters as "dead_letters: Seq", conflicts as "conflicts: Seq",
                              coalesce(accounted, 0) as "accounted!: Offset", lost, applied_entry as "applied: StreamId",
                              nullif(period, '-infinity') as "period: NaiveDate",
                              clock_timestamp() as "now!",
                              (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "server!"
                       from shards where shard = any($1) order by shard for update of shards "#
                        + $how,
                    shards as &[ShardId],
                );
                let rows = rows.fetch_all(&mut *transaction).await?;
                let first = rows.first().map(|row| (row.now + crate::fault::clock_shift(), Server(row.server)));
                let locked = rows.into_iter().map(|row| {
                    let watermarks =
                        Watermarks { records: row.records, dead_letters: row.dead_letters, conflicts: row.conflicts };
                    let account = Account { accounted: row.accounted, lost: row.lost };
                    let position = Position { shard: row.shard, shards: of, watermarks, account, applied: row.applied };
                    let period = Period::stored(row.period.unwrap_or(NaiveDate::MIN));
                    let locked = LockedShard {
                        position,
                        before: position,
                        lease: Lease { epoch: row.epoch, token: row.token },
                        is_owned: row.is_owned,
                        policy_version: row.policy_version,
                        period_before: period,
                        period,
                        counts: Counts::default(),
                        entries: Vec::new(),
                    };
                    (row.shard, locked)
                });
                (locked.collect::<BTreeMap<_, _>>(), first)
            }};
        }
        let (shards, first) = if waits { lock!("") } else { lock!("skip locked") };
        let (now, server) = first.unwrap_or_default();
        Ok(GroupCommit { transaction, shards, now, server })
    }
}

impl GroupCommit {
    /// Whether a shard can take part: its row is locked, and is as its owner has left it. A shard that cannot leaves.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn compare(
        &mut self,
        shard: ShardId,
        lease: &Lease,
        left: &ShardProgress,
        version: i64,
    ) -> Result<(), LeftOut> {
        let locked = self.shards.get(&shard).ok_or(LeftOut::Locked)?;
        let why = if locked.lease != *lease || !locked.is_owned {
            LeftOut::Fenced
        } else if locked.policy_version > version {
            LeftOut::OldPolicy(locked.policy_version)
        } else if locked.progress(self.server) != *left {
            LeftOut::Changed
        } else {
            return Ok(());
        };
        let facts = || format!("{},\"version\":{version},{}", lease.facts(), left.facts());
        match why {
            LeftOut::Fenced => protocol_trace::begin(shard.get(), "left", facts).is("fenced"),
            LeftOut::Changed => protocol_trace::begin(shard.get(), "left", facts).is("changed"),
            LeftOut::OldPolicy(_) => protocol_trace::begin(shard.get(), "left", facts).is("old_policy"),
            LeftOut::Locked => {}
        }
        self.shards.remove(&shard);
        Err(why)
    }

    /// The state of a shard that takes part.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> &LockedShard {
        &self.shards[&shard]
    }

    /// Sets the period of the records that are about to be written, which never falls.
    pub fn set_period(&mut self, partition: Partition) {
        let period = Period::of(self.now, partition);
        for locked in self.shards.values_mut() {
            locked.period = locked.period.max(period);
        }
    }

    /// Sets the savepoint. There is one at a time: each that is kept costs memory in the server.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_savepoint(&mut self) -> Result<(), Error> {
        sqlx::raw_sql("savepoint piece").execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Rolls back to the savepoint, or releases it.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn end_savepoint(&mut self, is_kept: bool) -> Result<(), Error> {
        let release = "release savepoint piece";
        let statement = if is_kept { release } else { "rollback to savepoint piece; release savepoint piece" };
        sqlx::raw_sql(statement).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Writes decisions by a policy, all or none: after an error the transaction, or the savepoint, has to be rolled back.
    ///
    /// # Errors
    /// [`Error::Raced`] when an id or a dead letter was taken meanwhile.
    pub async fn write(&mut self, parts: &[DecidedPart<'_>], ids: &IdLedger, policy: &Policy) -> Result<(), Error> {
        self.write_rows(parts, ids).await?;
        for (shard, late) in self.add_to_rollups(parts, policy).await? {
            if let Some(locked) = self.shards.get_mut(&shard) {
                locked.counts.late_after_retention += late;
            }
        }
        for DecidedPart { part, decision } in parts {
            let Some(locked) = self.shards.get_mut(&part.shard) else { continue };
            let Position { watermarks, account, applied, .. } = &mut locked.position;
            watermarks.records = watermarks.records.plus(decision.records.len());
            watermarks.dead_letters = watermarks.dead_letters.plus(decision.dead_letters.len());
            watermarks.conflicts = watermarks.conflicts.plus(decision.conflicts.len());
            (*account, *applied) = (decision.account, decision.applied);
            let counts = &mut locked.counts;
            counts.processed += decision.records.len();
            counts.duplicates += decision.duplicates.len();
            counts.alerts += decision.alerts;
            counts.total_alerts += decision.total_alerts;
            counts.without_threshold += decision.without_threshold;
            if protocol_trace::IS_BUILT {
                // A piece that was rolled back to its savepoint is decided again, with the same entries.
                locked.entries.extend(part.batch.iter().map(|item| item.input.position.entry));
            }
        }
        Ok(())
    }

    /// Stores the shards' positions under a policy version, extends their leases, and commits.
    ///
    /// # Errors
    /// On every error nothing is written, except that the outcome of a commit is unknown when the connection fails: the
    /// batches are decided again, and are found or not.
    #[expect(clippy::too_many_lines, reason = "one statement with an argument per column")]
    pub async fn finish(mut self, version: i64, lease_ms: i64) -> Result<BTreeMap<ShardId, AfterCommit>, Error> {
        macro_rules! columns { ($($name:ident: $type:ty),+ $(,)?) => { $(let mut $name: Vec<$type> = Vec::with_capacity(self.shards.len());)+ } }
        columns!(
            shards: ShardId, records: Seq, dead_letters: Seq, conflicts: Seq, processed: i64, duplicates: i64, alerts: i64,
            total_alerts: i64, without_threshold: i64, late: i64, accounted: Option<Offset>, lost: i64, applied: Option<StreamId>,
            periods: Option<NaiveDate>, first: Seq, is_new_version: bool, is_new_period: bool,
        );
        for (shard, locked) in &self.shards {
            let Position { watermarks, account, applied: entry, .. } = locked.position;
            let has_records = locked.counts.processed > 0;
            shards.push(*shard);
            records.push(watermarks.records);
            dead_letters.push(watermarks.dead_letters);
            conflicts.push(watermarks.conflicts);
            processed.push(locked.counts.processed as i64);
            duplicates.push(locked.counts.duplicates as i64);
            alerts.push(locked.counts.alerts);
            total_alerts.push(locked.counts.total_alerts);
            without_threshold.push(locked.counts.without_threshold);
            late.push(locked.counts.late_after_retention);
            accounted.push((account.accounted > Offset::ZERO).then_some(account.accounted));
            lost.push(account.lost);
            applied.push(entry);
            periods.push(has_records.then_some(locked.period.first()));
            first.push(locked.first());
            is_new_version.push(locked.policy_version < version);
            is_new_period.push(has_records && locked.period > locked.period_before);
        }
        let written = sqlx::query_scalar!(
            r#"with new as (
                 select * from unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                     $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::date[], $13::bigint[],
                     $14::boolean[], $15::boolean[], $18::bigint[], $19::bigint[])
                 as n (shard, records, dead_letters, conflicts, processed, duplicates, alerts, without_threshold, accounted,
                       lost, applied, period, first, is_new_version, is_new_period, late, total_alerts)
             ), written as (
                 update shards s set records = n.records, dead_letters = n.dead_letters, conflicts = n.conflicts,
                        processed = s.processed + n.processed, duplicates = s.duplicates + n.duplicates,
                        alerts = s.alerts + n.alerts, total_alerts = s.total_alerts + n.total_alerts, without_threshold = s.without_threshold + n.without_threshold,
                        late_after_retention = s.late_after_retention + n.late,
                        accounted = coalesce(n.accounted, s.accounted), lost = n.lost, applied_entry = n.applied,
                        period = coalesce(n.period, s.period), policy_version = $16,
                        lease_until = clock_timestamp() + $17::bigint * interval '1 ms'
                 from new n where s.shard = n.shard
                 returning 1
             ), versions as (
                 insert into shard_policies (shard, from_seq, version)
                 select shard, first, $16 from new where is_new_version on conflict do nothing
             ), first_records as (
                 insert into shard_periods (shard, period, from_seq)
                 select shard, period, first from new where is_new_period on conflict do nothing
             )
             select count(*) as "count!" from written"#,
            &shards as &[ShardId],
            &records as &[Seq],
            &dead_letters as &[Seq],
            &conflicts as &[Seq],
            &processed,
            &duplicates,
            &alerts,
            &without_threshold,
            &accounted as &[Option<Offset>],
            &lost,
            &applied as &[Option<StreamId>],
            &periods as &[Option<NaiveDate>],
            &first as &[Seq],
            &is_new_version,
            &is_new_period,
            version,
            lease_ms,
            &late,
            &total_alerts,
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        assert_eq!(written, self.shards.len() as i64, "the shards' rows are locked by this transaction");
        crate::fault::point("before_commit");
        let facts = |locked: &LockedShard| locked.facts(self.server, version);
        let steps = protocol_trace::begin_group(self.shards.iter().map(|(shard, locked)| (shard.get(), facts(locked))));
        self.transaction.commit().await?;
        crate::fault::point("after_commit");
        steps.into_iter().for_each(|step| step.is("done"));
        let after = self.shards.into_iter().map(|(shard, locked)| {
            let lost = locked.position.account.lost - locked.before.account.lost;
            (shard, AfterCommit { progress: locked.progress(self.server), lost })
        });
        Ok(after.collect())
    }
}

impl LockedShard {
    fn progress(&self, server: Server) -> ShardProgress {
        let Position { watermarks, account, applied, .. } = self.position;
        ShardProgress { watermarks, accounted: account.accounted, applied, server }
    }

    /// The commit as facts of the protocol trace: the row before it and after it.
    fn facts(&self, server: Server, version: i64) -> String {
        let before = LockedShard { position: self.before, ..self.clone() };
        let [before, after] = [&before, self].map(|locked| locked.progress(server).facts());
        let mut entries = self.entries.clone();
        entries.dedup();
        format!(
            "{},\"version\":[{},{version}],\"before\":{{{before}}},\"after\":{{{after}}},\"entries\":[{}]",
            self.lease.facts(),
            self.policy_version,
            protocol_trace::list(entries)
        )
    }

    /// The number of the first record that this transaction can write.
    pub(super) fn first(&self) -> Seq {
        self.before.watermarks.records.next()
    }

    /// The epoch of its owner.
    pub(super) fn epoch(&self) -> i64 {
        self.lease.epoch
    }
}
