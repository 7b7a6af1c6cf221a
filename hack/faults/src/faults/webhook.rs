//! Faults of the endpoint of the webhook: it is down, slow, cuts connections, takes deliveries and denies it, or its name does
//! not resolve.

use std::time::Duration;

use tokio::time::sleep;

use super::{Effect, Stage};
use crate::{endpoint::Behaviour, world::eventually};

/// Longest wait for a delivery that fails.
const FAILS: Duration = Duration::from_secs(5);
const NAMED: &str = "select count(*) from policies where spec like '%//hook.invalid:%' and version = (select max(version) from policies)";
const DOWN: &str = "select count(*) from deliveries where log like '%no connection%'";
const UNRESOLVED: &str = "select count(*) from deliveries where log like '%does not resolve%'";

impl Stage {
    pub(super) async fn webhook_down(&self, lasts: Duration) -> Effect {
        let world = &self.world;
        world.endpoint.down();
        let took = eventually(FAILS, async || world.number(DOWN).await.is_ok_and(|failed| failed > 0)).await;
        sleep(lasts).await;
        world.endpoint.up().await?;
        Ok((took, "the endpoint".to_owned()))
    }

    pub(super) async fn webhook_spoils(&self, behaviour: Behaviour, lasts: Duration) -> Effect {
        let before = self.world.endpoint.behave(behaviour);
        sleep(lasts).await;
        let spoilt = self.world.endpoint.behave(Behaviour::Answers) - before;
        Ok((spoilt > 0, format!("{spoilt} requests")))
    }

    pub(super) async fn webhook_name(&self, lasts: Duration) -> Effect {
        let world = &self.world;
        let renamed = self.name_endpoint(false).await?;
        let took = eventually(FAILS, async || world.number(UNRESOLVED).await.is_ok_and(|failed| failed > 0)).await;
        sleep(lasts).await;
        let restored = self.name_endpoint(true).await?;
        Ok((renamed && took && restored, "the name".to_owned()))
    }

    /// Changes the manifest to one with the address of the endpoint, or with a name without one.
    async fn name_endpoint(&self, resolves: bool) -> anyhow::Result<bool> {
        let world = &self.world;
        let so = async || world.number(NAMED).await.is_ok_and(|named| (named == 0) == resolves);
        world.change_manifest(&world.has_name, resolves, so).await
    }
}
