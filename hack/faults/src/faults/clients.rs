//! Faults of clients: they send other requests for a while, or the same ids to many destinations.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::{task::JoinSet, time::sleep};

use super::{Effect, Stage};
use crate::{
    check::Wrong,
    load::{
        Mode,
        record::{Code, HERD, HOT, VARIANTS},
    },
    world::{SHARDS, postgres},
};

/// Ids that are sent to many destinations.
const IDS: usize = 500;
/// Longest wait until all of them have their outcome, and until the load is held.
const DRAINED: Duration = Duration::from_secs(60);
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
    /// Workers are suspended meanwhile, so that each decides all of its shards at the same time as the others.
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
        slots.iter().for_each(|slot| slot.resume());
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
        let mut sql = postgres::connect(self.world.postgres.lock().await.port).await?;
        let (shards, records, conflicts): (i64, i64, i64) = sqlx::query_as(query).bind(ids).fetch_one(&mut sql).await?;
        let took = shards == SHARDS as i64 && conflicts > 0;
        Ok((took, format!("{records} records and {conflicts} conflicts in {shards} shards, {deadlocks} deadlocks")))
    }
}
