//! The answer to COMMIT is cut for a batch that has duplicates only: the worker must find that it is applied, or decide it
//! again where it is not, and no duplicate may count twice.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{
    Effect, Stage,
    process::{armed, has_reached},
};
use crate::{
    check::Wrong,
    plan::Act,
    world::{
        eventually,
        process::{Slot, Start},
        proxy::{Link, Proxies},
    },
};

/// Records that are sent again.
const AGAIN: usize = 200;
/// Longest wait for a worker to reach the commit.
const TO_COMMIT: Duration = Duration::from_secs(15);
/// Longest wait until the batch is acknowledged after the cut.
const RECOVERED: Duration = Duration::from_secs(40);
/// Duplicates that are noted.
const NOTED: &str = "select count(*) from duplicates";

impl Stage {
    pub(super) async fn cut_commit(&self) -> Effect {
        let Some(proxies) = &self.world.proxies else { return Ok((false, "there is no toxiproxy".to_owned())) };
        let Some(_held) = self.idle_load().await else { return Ok((false, "it was not idle".to_owned())) };
        let again = self.load.newest(AGAIN);
        let mut slots = self.wanted_workers().await;
        for slot in &mut slots {
            slot.stop().await;
        }
        let (noted, records) = (self.world.number(NOTED).await?, self.world.records().await?);
        let sent = again.len();
        self.load.send(again).await;
        let Some((slot, others)) = slots.split_first_mut() else { return Ok((false, "there is no worker".to_owned())) };
        // It is suspended when all is sent but COMMIT.
        slot.start(&self.world, &armed("before_commit", 1, Act::Stop))?;
        let link = Link::postgres("work");
        let cut = if eventually(TO_COMMIT, async || has_reached(slot, Act::Stop)).await {
            self.cut_answers(proxies, &link, slot, noted).await
        } else {
            Ok(0)
        };
        // After an error, too.
        proxies.remove_toxics(&link).await?;
        proxies.enable(&link, true).await?;
        slot.resume();
        let cut = cut?;
        if !self.world.drains(RECOVERED).await {
            self.world.wrong(Wrong::Stuck, format!("{sent} duplicates wait after the answer to COMMIT was cut"));
        }
        for slot in others {
            slot.start(&self.world, &Start::default())?;
        }
        let none_else = self.world.records().await? == records;
        let noted = self.world.number(NOTED).await? - noted;
        Ok((
            cut > 0 && none_else,
            format!("{cut} duplicates were committed without an answer, {noted} of {sent} noted"),
        ))
    }

    /// Resumes a worker that is about to commit, withholds the answers, and cuts the connections once Postgres has
    /// committed. Returns how many duplicates it committed.
    async fn cut_answers(&self, proxies: &Proxies, link: &Link, slot: &Slot, noted: i64) -> anyhow::Result<i64> {
        proxies.add_toxic(link, "timeout", "downstream", json!({"timeout": 0})).await?;
        slot.resume();
        let committed = async || self.world.number(NOTED).await.is_ok_and(|now| now > noted);
        eventually(Duration::from_millis(1_500), committed).await;
        proxies.enable(link, false).await?;
        // A commit that is under way ends.
        sleep(Duration::from_millis(100)).await;
        Ok(self.world.number(NOTED).await? - noted)
    }
}
