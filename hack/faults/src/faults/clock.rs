//! A worker whose clock is minutes ahead or behind: only Postgres's clock decides, so it must have no effect.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use super::{Effect, Stage};
use crate::{
    plan::Fault,
    world::{LEASE, clock_environment, eventually, process::Start},
};

impl Stage {
    pub(super) async fn clock(&self, offset: &str, fault: Fault) -> Effect {
        let Some(mut slot) = self.victim("work", fault.pick) else {
            return Ok((false, "no worker was free".to_owned()));
        };
        slot.stop().await;
        slot.start(&self.world, &Start { environment: clock_environment(offset), ..Start::default() })?;
        let log = slot.log.clone();
        let took = eventually(Duration::from_secs(5), async || wrong_by_minutes(&log)).await;
        sleep(LEASE + Duration::from_millis(fault.for_ms)).await;
        slot.stop().await;
        slot.start(&self.world, &Start::default())?;
        Ok((took, format!("{} {offset}", slot.name)))
    }
}

/// Whether a log's times are some minutes off.
fn wrong_by_minutes(log: &Path) -> bool {
    let text = fs::read_to_string(log).unwrap_or_default();
    let Some(line) = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).next_back()
    else {
        return false;
    };
    let time = line["timestamp"].as_str().unwrap_or_default();
    let part = |range: std::ops::Range<usize>| time.get(range).and_then(|part| part.parse::<i64>().ok());
    let (Some(hour), Some(minute)) = (part(11..13), part(14..16)) else { return false };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = (now / 60 % 1_440).cast_signed();
    let off = (hour * 60 + minute - now).rem_euclid(1_440);
    (3..=1_437).contains(&off)
}
