//! Workers run as a role without the right to create tables, and the clock of Postgres moves past the last period that has
//! a partition.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use tokio::{sync::MutexGuard, time::sleep};

use super::{Effect, Stage};
use crate::{
    check::Wrong,
    world::{
        eventually,
        process::{Slot, Start},
    },
};

/// The role: it reads and writes rows.
const ROLE: &str = "millrace_worker";
/// Its rights, as the owner of the tables grants them.
const GRANTS: &str = "
    do $$ begin
        if not exists (select from pg_roles where rolname = 'millrace_worker') then create role millrace_worker login; end if;
    end $$;
    grant usage on schema millrace_faults to millrace_worker;
    grant select, insert, update, delete on all tables in schema millrace_faults to millrace_worker;
    grant usage on all sequences in schema millrace_faults to millrace_worker;";
/// Drops the partition of the second period after the present one: no record is in it yet.
const DROP_AHEAD: &str = "
    do $$ declare name text := to_char(date_trunc('month', now() at time zone 'UTC') + interval '2 months', '\"records_\"YYYYMMDD');
    begin
        execute format('drop table millrace_faults.%I', name);
    end $$";
/// Days that the clock moves each time: three months and more, so that no partition was created for its period.
const DAYS: u64 = 100;
/// Longest wait for a report.
const REPORTED: Duration = Duration::from_secs(30);
/// Longest wait until records are applied again.
const RESUMED: Duration = Duration::from_secs(45);

impl Stage {
    /// Workers run as the role while a partition to come is missing, until the owner creates it.
    pub(super) async fn postgres_role(&self, lasts: Duration) -> Effect {
        let mut slots = self.wanted_workers().await;
        let observed = self.run_as_role(&mut slots, async |slots| {
            self.execute(DROP_AHEAD).await?;
            self.start_as_role(slots)?;
            let reported = self.all_report_partition(slots, true).await;
            if !reported {
                self.world.wrong(Wrong::Unreported, "no worker reports that it cannot create a partition".to_owned());
            }
            let applied = self.applies("while the partition of a period to come cannot be created").await;
            sleep(lasts).await;
            self.world.command(&["migrate"]).await?;
            if !self.all_report_partition(slots, false).await {
                self.world.wrong(Wrong::Unreported, "workers report a partition that exists".to_owned());
            }
            Ok((reported && applied, self.sessions_of_role().await?))
        });
        let (took, sessions) = observed.await?;
        Ok((took && sessions > 0, format!("{sessions} sessions of the role")))
    }

    /// The clock of Postgres moves into a period without a partition, which the workers may not create; the owner creates
    /// it; then the clock moves back.
    pub(super) async fn postgres_clock(&self) -> Effect {
        let mut slots = self.wanted_workers().await;
        let times = self.world.clock_moves.fetch_add(1, Ordering::Relaxed) + 1;
        let offset = format!("+{}d", DAYS * times);
        let observed = self.run_as_role(&mut slots, async |slots| {
            self.start_as_role(slots)?;
            self.applies("before the clock of Postgres moves").await;
            self.set_clock(Some(offset.clone())).await?;
            let stopped = self.commits_stop(slots).await?;
            self.world.command(&["migrate"]).await?;
            self.applies("when the missing partition was created").await;
            let ahead = self.periods().await?;
            self.set_clock(None).await?;
            self.applies("when the clock of Postgres was set back").await;
            let back = self.periods().await?;
            for (shard, period) in &ahead {
                if back.get(shard) < Some(period) {
                    let detail = format!("shard {shard} is in {:?}, after the period {period}", back.get(shard));
                    self.world.wrong(Wrong::Reordered, detail);
                }
            }
            let newest = ahead.into_values().max().unwrap_or_default();
            Ok((stopped, newest))
        });
        let observed = observed.await;
        // After an error, too.
        self.set_clock(None).await?;
        let (stopped, newest) = observed?;
        Ok((stopped, format!("{offset}: commits stopped: {stopped}; then period {newest}")))
    }

    /// Ends these workers, grants the role its rights, and starts the usual workers when `act` has ended.
    async fn run_as_role<'a, T>(
        &self,
        slots: &mut Vec<MutexGuard<'a, Slot>>,
        act: impl AsyncFnOnce(&mut Vec<MutexGuard<'a, Slot>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        for slot in slots.iter_mut() {
            slot.stop().await;
        }
        let acted = match self.execute(GRANTS).await {
            Ok(()) => act(slots).await,
            Err(error) => Err(error),
        };
        for slot in slots.iter_mut() {
            slot.stop().await;
            slot.start(&self.world, &Start::default())?;
        }
        acted
    }

    fn start_as_role(&self, slots: &mut [MutexGuard<'_, Slot>]) -> anyhow::Result<()> {
        slots.iter_mut().try_for_each(|slot| slot.start(&self.world, &Start { role: Some(ROLE), ..Start::default() }))
    }

    /// Restarts Postgres in order, with its clock moved; `None`: with the clock of this machine, unless it has that one.
    async fn set_clock(&self, offset: Option<String>) -> anyhow::Result<()> {
        let mut postgres = self.world.postgres.lock().await;
        if postgres.clock != offset {
            postgres.end().await;
            postgres.clock = offset;
            postgres.ensure().await?;
        }
        Ok(())
    }

    /// Whether commits stop, records wait, and a worker reports the missing partition.
    async fn commits_stop(&self, slots: &[MutexGuard<'_, Slot>]) -> anyhow::Result<bool> {
        let reported = eventually(REPORTED, async || {
            for slot in slots {
                if self.world.reports(slot, "PartitionMissing").await == Some(true) {
                    return true;
                }
            }
            false
        });
        if !reported.await {
            self.world.wrong(Wrong::Unreported, "no worker reports the missing partition".to_owned());
        }
        let before = self.world.records().await?;
        sleep(Duration::from_secs(2)).await;
        Ok(self.world.records().await? == before && self.world.waiting_entries().await? > 0)
    }

    /// Waits until more records are applied; without that the pipeline is stuck.
    async fn applies(&self, when: &str) -> bool {
        let mut before = None;
        let applied = eventually(RESUMED, async || {
            let Ok(now) = self.world.records().await else { return false };
            now > *before.get_or_insert(now)
        });
        let applied = applied.await;
        if !applied {
            self.world.wrong(Wrong::Stuck, format!("no record is applied {when}"));
        }
        applied
    }

    /// Waits until every worker reports a missing partition, or none does.
    async fn all_report_partition(&self, slots: &[MutexGuard<'_, Slot>], reported: bool) -> bool {
        eventually(REPORTED, async || {
            for slot in slots {
                if self.world.reports(slot, "PartitionMissing").await != Some(reported) {
                    return false;
                }
            }
            true
        })
        .await
    }

    /// The present period of each shard.
    async fn periods(&self) -> anyhow::Result<BTreeMap<i32, String>> {
        let mut sql = self.world.postgres.lock().await.connect().await?;
        let rows: Vec<(i32, String)> =
            sqlx::query_as("select shard, period::text from shards where period > '-infinity'")
                .fetch_all(&mut sql)
                .await?;
        Ok(rows.into_iter().collect())
    }

    async fn sessions_of_role(&self) -> anyhow::Result<i64> {
        self.world.number("select count(*) from pg_stat_activity where usename = 'millrace_worker'").await
    }

    async fn execute(&self, statements: &'static str) -> anyhow::Result<()> {
        let mut sql = self.world.postgres.lock().await.connect().await?;
        sqlx::raw_sql(statements).execute(&mut sql).await?;
        Ok(())
    }
}
