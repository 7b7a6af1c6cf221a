//! The rollups are removed from the manifest under load, and declared again while they are deleted.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use super::{Effect, Stage};
use crate::world::eventually;

/// Longest wait until a process has registered a manifest.
const REGISTERED: Duration = Duration::from_secs(8);
const DECLARED: &str = "select count(*) from rollups where removed is null";
const NEWEST: &str = "select coalesce(max(id), 0)::bigint from rollups";

impl Stage {
    pub(super) async fn rollups_again(&self, lasts: Duration) -> Effect {
        let before = self.world.number(NEWEST).await?;
        let removed = self.declare(false).await?;
        sleep(lasts / 2).await;
        let declared = self.declare(true).await?;
        let newest = self.world.number(NEWEST).await?;
        Ok((removed && declared && newest > before, format!("id {before}, then {newest}")))
    }

    /// Changes the manifest to one with or without rollups. Only a process that notices the change of the file registers
    /// it, so it changes again until one does.
    async fn declare(&self, has: bool) -> anyhow::Result<bool> {
        let world = &self.world;
        for _ in 0..5 {
            world.rollups.store(has, Ordering::Relaxed);
            world.write_manifest(None)?;
            let so = async || world.number(DECLARED).await.is_ok_and(|declared| (declared > 0) == has);
            if eventually(REGISTERED, so).await {
                return Ok(true);
            }
            world.rollups.store(!has, Ordering::Relaxed);
            world.write_manifest(None)?;
            sleep(Duration::from_secs(1)).await;
        }
        world.rollups.store(true, Ordering::Relaxed);
        world.write_manifest(None)?;
        Ok(false)
    }
}
