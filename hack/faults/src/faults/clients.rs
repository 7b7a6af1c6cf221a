//! Faults of clients: they send other requests for a while, or the same ids to many destinations.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::Connection as _;
use tokio::{
    sync::MutexGuard,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Effect, Stage};
use crate::{
    check::Wrong,
    load::{
        Mode,
        record::{Code, HERD, HOT, VARIANTS},
    },
    world::{SHARDS, process::Slot},
};

/// Ids that are sent to many destinations.
const IDS: usize = 500;
/// Longest wait until all of them have their outcome, and until the load is held.
const DRAINED: Duration = Duration::from_secs(60);
/// Longest wait until commits of all workers wait.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Deadlocks that Postgres has found.
const DEADLOCKS: &str = "select deadlocks from pg_stat_database where datname = current_database()";

impl Stage {
    pub(super) async fn clients(&self, mode: Mode, lasts: Duration) -> Effect {
        let before = self.sent(mode);
        self.load.set(mode, true);
        sleep(lasts + Duration::from_secs(1)).await;
        self.load.set(mode, false);
        let sent = self.sent(mode) - before;
        Ok((sent > 0, format!("{sent} sent")))
    }

    /// How many such requests or entries clients have sent so far.
    fn sent(&self, mode: Mode) -> u64 {
        let history = self.load.history();
        match mode {
            Mode::HERD => history.count(HERD).into(),
            Mode::HOT => history.count(HOT).into(),
            Mode::CUT => history.answers.requests.get("upload cut").copied().unwrap_or(0),
            Mode::DUPLICATES => history.duplicates,
            Mode::POISON => history.placed,
            _ => 0,
        }
    }

    /// The same ids go to sixteen destinations at once, every second time in opposite order, and to two of them again.
    /// Workers are suspended meanwhile, and a lock delays the commits, so that all take the ids at the same time.
    pub(super) async fn collide(&self) -> Effect {
        let Some(_held) = self.load.hold(DRAINED).await else { return Ok((false, "the load was not held".to_owned())) };
        let slots = self.wanted_workers().await;
        for slot in &slots {
            slot.signal(Signal::SIGSTOP);
        }
        let deadlocks = self.world.number(DEADLOCKS).await?;
        let codes = self.load.begin_colliding(IDS);
        let mut requests = JoinSet::new();
        for request in 0..VARIANTS + 2 {
            let variant = codes.iter().map(|code| code.with_variant((request % VARIANTS) as u8));
            let mut ordered: Vec<Code> = variant.collect();
            if request % 2 == 1 {
                ordered.reverse();
            }
            let load = self.load.clone();
            requests.spawn_local(async move { load.send(ordered).await });
        }
        while requests.join_next().await.is_some() {}
        let at_once = self.resume_at_once(&slots).await?;
        if !self.world.drains(DRAINED).await {
            self.world.wrong(Wrong::Stuck, format!("{IDS} ids to {VARIANTS} destinations do not drain"));
        }
        // Sessions report deadlocks a second later.
        sleep(Duration::from_millis(1_500)).await;
        let deadlocks = self.world.number(DEADLOCKS).await? - deadlocks;
        if deadlocks > 0 {
            self.world.wrong(Wrong::Stuck, format!("{deadlocks} deadlocks of the same ids in opposite orders"));
        }
        let ids: Vec<String> = codes.iter().map(|code| code.id()).collect();
        let query = "
            select count(distinct shard), count(*) filter (where n is null), count(n)
            from (select shard, null::bigint as n, record_id from records
                  union all select shard, n, record_id from conflicts) as outcomes
            where record_id = any($1)";
        let mut sql = self.world.postgres.lock().await.connect().await?;
        let (shards, records, conflicts): (i64, i64, i64) = sqlx::query_as(query).bind(ids).fetch_one(&mut sql).await?;
        let took = shards == SHARDS as i64 && conflicts > 0 && at_once > 1;
        let note = format!("{records} records and {conflicts} conflicts in {shards} shards, {at_once} commits at once");
        Ok((took, format!("{note}, {deadlocks} deadlocks")))
    }

    /// Resumes workers, and holds their commits before they take ids, until several wait. Returns how many did.
    async fn resume_at_once(&self, slots: &[MutexGuard<'_, Slot>]) -> anyhow::Result<i64> {
        let mut sql = self.world.postgres.lock().await.connect().await?;
        let mut transaction = sql.begin().await?;
        // Commits may read the ledger, and not write it.
        sqlx::query("lock table record_ids in share mode").execute(&mut *transaction).await?;
        slots.iter().for_each(|slot| slot.resume());
        let (until, mut waiting) = (Instant::now() + AT_ONCE, 0);
        while waiting < slots.len() as i64 && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
            let query = "select count(*) from pg_locks where relation = 'record_ids'::regclass and not granted";
            waiting = sqlx::query_scalar(query).fetch_one(&mut *transaction).await?;
        }
        transaction.rollback().await?;
        Ok(waiting)
    }
}
