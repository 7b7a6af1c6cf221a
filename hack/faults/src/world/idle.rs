//! Whether a pipeline is idle: it holds no work, and its readers have read all.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{SHARDS, SINKS, World, eventually, records, stream};
use crate::load::KEY;

impl World {
    /// Waits until the pipeline is idle; false: it was not in time. No slot may be locked.
    pub(crate) async fn becomes_idle(&self, timeout: Duration) -> bool {
        eventually(timeout, async || self.idle_stats().await.is_ok()).await
    }

    /// Waits until no entry is left in an input stream; false: one was. Slots may be locked.
    pub(crate) async fn drains(&self, timeout: Duration) -> bool {
        eventually(timeout, async || self.waiting_entries().await.is_ok_and(|left| left == 0)).await
    }

    /// Number of entries in the input streams.
    pub(crate) async fn waiting_entries(&self) -> anyhow::Result<u64> {
        let redis = self.redis.lock().await;
        let mut left = 0;
        for shard in 0..SHARDS {
            left += redis.command::<u64>(&["XLEN", &records(shard)]).await?;
        }
        Ok(left)
    }

    /// `/stats`; an error names the part that is not idle.
    pub(crate) async fn idle_stats(&self) -> anyhow::Result<Value> {
        let stats = self.get("/stats").await?;
        ensure!(stats["backlog"] == 0, "/stats: {stats}");
        for sink in stats["sinks"].as_array().into_iter().flatten() {
            let states = sink["states"].as_array().is_some_and(|states| !states.is_empty());
            ensure!(sink["lag"] == 0 && sink["started"] == true && !states, "/stats: {stats}");
        }
        let waiting = self.number("select count(*) from deliveries").await?;
        ensure!(waiting == 0, "{waiting} deliveries wait");
        self.all_are_ready().await?;
        let redis = self.redis.lock().await;
        for shard in 0..SHARDS {
            let left: u64 = redis.command(&["XLEN", &records(shard)]).await?;
            ensure!(left == 0, "{left} entries are left in shard {shard}; /stats: {stats}");
        }
        for (sink, _) in SINKS {
            let newest: Vec<redis::Value> =
                redis.command(&["XREVRANGE", &stream(sink), "+", "-", "COUNT", "1"]).await?;
            let Some(redis::Value::Array(newest)) = newest.first() else { continue };
            let newest: String = redis::from_redis_value_ref(&newest[0])?;
            let groups: Vec<HashMap<String, redis::Value>> = redis.command(&["XINFO", "GROUPS", &stream(sink)]).await?;
            let read = groups.first().is_some_and(|group| {
                let text = |field| group.get(field).and_then(|value| redis::from_redis_value_ref::<String>(value).ok());
                text("last-delivered-id").as_deref() == Some(&newest) && text("pending").as_deref() == Some("0")
            });
            ensure!(read, "the reader of {sink} is behind");
        }
        Ok(stats)
    }

    /// Fails unless every wanted process is ready, and every serve process answers.
    async fn all_are_ready(&self) -> anyhow::Result<()> {
        for slot in self.serves.iter().chain(&self.workers) {
            let (name, wanted, health, port) = {
                let slot = slot.lock().await;
                (slot.name.clone(), slot.is_wanted(), slot.health, slot.port)
            };
            let stats = (port > 0).then(|| format!("http://127.0.0.1:{port}/stats"));
            for url in [format!("http://127.0.0.1:{health}/ready")].into_iter().chain(stats).filter(|_| wanted) {
                let answer = self.http.get(&url).bearer_auth(KEY).timeout(Duration::from_secs(5)).send().await;
                let status = answer.with_context(|| format!("{name} does not answer"))?.status();
                ensure!(status.is_success(), "{name}: {url}: {status}");
            }
        }
        Ok(())
    }
}
