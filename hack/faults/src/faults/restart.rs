//! An idle pipeline is restarted three times, with its servers: nothing that it counts may change.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::{Effect, Stage};
use crate::{check::Wrong, world::process::Start};

/// How often it is restarted.
const TIMES: usize = 3;
/// Counts of `/stats` that a restart may not change.
const COUNTS: [&str; 4] = ["processed", "duplicates", "conflicts", "lost"];
/// Longest wait until the pipeline is idle again.
const IDLE: Duration = Duration::from_secs(60);

impl Stage {
    pub(super) async fn restart_idle(&self, lasts: Duration) -> Effect {
        let Some(held) = self.idle_load().await else { return Ok((false, "it was not idle".to_owned())) };
        let counts = async || {
            anyhow::Ok(COUNTS.map({
                let stats = self.world.get("/stats").await?;
                move |name| stats[name].clone()
            }))
        };
        let before: [Value; 4] = counts().await?;
        let mut in_order = 0;
        for n in 1..=TIMES {
            in_order += usize::from(self.restart_all().await?);
            if !self.world.becomes_idle(IDLE).await {
                self.world.wrong(Wrong::Stuck, format!("it does not become idle after restart {n}"));
                break;
            }
            let after = counts().await?;
            if after != before {
                let detail = format!("{COUNTS:?} of /stats were {before:?}, and are {after:?} after restart {n}");
                self.world.wrong(Wrong::Miscounted, detail);
            }
        }
        // Then load.
        let records = self.world.records().await?;
        drop(held);
        sleep(lasts + Duration::from_secs(2)).await;
        let more = self.world.records().await? - records;
        Ok((in_order == TIMES, format!("{in_order} restarts in order, then {more} records")))
    }

    /// Ends all processes and both servers in order, and starts them. Returns whether all ended in order.
    async fn restart_all(&self) -> anyhow::Result<bool> {
        let mut slots = Vec::new();
        for slot in self.world.serves.iter().chain(&self.world.workers) {
            slots.push(slot.lock().await);
        }
        slots.retain(|slot| slot.is_wanted());
        let mut in_order = true;
        for slot in &mut slots {
            in_order &= slot.stop().await;
        }
        {
            let mut redis = self.world.redis.lock().await;
            in_order &= redis.stop().await;
            redis.ensure().await?;
        }
        {
            let mut postgres = self.world.postgres.lock().await;
            postgres.end().await;
            postgres.ensure().await?;
        }
        for slot in &mut slots {
            slot.start(&self.world, &Start::default())?;
        }
        Ok(in_order)
    }
}
