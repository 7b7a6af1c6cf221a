//! The rollups are removed from the manifest under load, and declared again while they are deleted.

use std::time::Duration;

use tokio::time::sleep;

use super::{Effect, Stage};

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

    /// Changes the manifest to one with or without rollups.
    async fn declare(&self, has: bool) -> anyhow::Result<bool> {
        let world = &self.world;
        let so = async || world.number(DECLARED).await.is_ok_and(|declared| (declared > 0) == has);
        world.change_manifest(&world.rollups, has, so).await
    }
}
