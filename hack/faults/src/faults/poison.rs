//! Records at which workers die or panic while they decide them: each must become a dead letter, and its neighbours must be
//! applied.

use std::time::Duration;

use tokio::{
    sync::MutexGuard,
    time::{Instant, sleep},
};

use super::{Effect, Stage};
use crate::{
    load::record::{CLIENTS, Code},
    world::{
        postgres,
        process::{Slot, Start},
    },
};

/// Longest wait until the record is a dead letter.
const ISOLATED: Duration = Duration::from_secs(75);
/// Records of a large batch, and the place of the poisoned one in it.
const BATCH: usize = 1_000;
const PLACE: usize = 500;

/// The end of a poisoned record.
struct Isolated {
    /// The reason of its dead letter, if it has one.
    reason: Option<String>,
    /// How often a worker died.
    deaths: u64,
}

impl Stage {
    /// A future record at which every worker dies, or panics, while it decides it.
    pub(super) async fn poisoned_record(&self, pick: u64) -> Effect {
        let slots = self.world.all_workers().await;
        let author = (pick % u64::from(CLIENTS)) as u16;
        let code = Code::new(author, self.load.history().count(author) + 150);
        let act = ["kill", "panic"][(pick >> 8) as usize % 2];
        let Isolated { reason, deaths } = self.decide_poison(slots, code, act, async || ()).await?;
        let took = matches!(reason.as_deref(), Some("crashed_worker" | "panicked"));
        Ok((took, format!("{} {act}: {reason:?} after {deaths} deaths", code.id())))
    }

    /// Record 500 of a batch of 1,000, at which every worker dies while it decides it.
    pub(super) async fn poisoned_batch(&self) -> Effect {
        let slots = self.world.all_workers().await;
        let codes = self.load.begin_large(BATCH);
        let code = codes[PLACE - 1];
        // No worker runs while the batch is sent, so that the first one reads it whole.
        let send = async || self.load.send(codes.clone()).await;
        let Isolated { reason, deaths } = self.decide_poison(slots, code, "kill", send).await?;
        let took = reason.as_deref() == Some("crashed_worker");
        Ok((took, format!("{}: {reason:?} after {deaths} deaths", code.id())))
    }

    /// Poisons a record, and starts workers that die or panic at it until it is a dead letter. `send` is called while none
    /// runs.
    async fn decide_poison(
        &self,
        mut slots: Vec<MutexGuard<'_, Slot>>,
        code: Code,
        act: &str,
        send: impl AsyncFn(),
    ) -> anyhow::Result<Isolated> {
        self.load.history().poisoned.insert(code);
        slots.retain(|slot| slot.is_wanted());
        for slot in &mut slots {
            slot.kill().await;
        }
        send().await;
        let start = || Start {
            environment: vec![("MILLRACE_FAULT_POISON", format!("{}:{act}", code.id()))],
            ..Start::default()
        };
        for slot in &mut slots {
            slot.start(&self.world, &start())?;
        }
        let mut isolated = Isolated { reason: None, deaths: 0 };
        let until = Instant::now() + ISOLATED;
        while isolated.reason.is_none() && Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
            for slot in &mut slots {
                if !slot.runs() {
                    isolated.deaths += 1;
                    slot.start(&self.world, &start())?;
                }
            }
            isolated.reason = self.reason_of(code).await;
        }
        for slot in &mut slots {
            slot.kill().await;
            slot.start(&self.world, &Start::default())?;
        }
        Ok(isolated)
    }

    /// The reason of a record's dead letter, if it has one.
    async fn reason_of(&self, code: Code) -> Option<String> {
        let port = self.world.postgres.lock().await.port;
        let mut sql = postgres::connect(port).await.ok()?;
        // The dead letter of a panic has no record id.
        let query = "select reason from dead_letters where record_id = $1 or position($2 in payload) > 0";
        let inside = format!("\"{}\"", code.id()).into_bytes();
        sqlx::query_scalar(query).bind(code.id()).bind(inside).fetch_optional(&mut sql).await.ok().flatten()
    }
}
