//! The sinks of the pipeline, and the manifest that names them and the rollups.

use std::{
    fs,
    sync::{
        PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use super::{IN_FLIGHT, NAME, SHARDS, World, eventually};
use crate::{endpoint::TIMEOUT_SECONDS, load::record};

/// The sinks: name and event.
pub(crate) const SINKS: [(&str, &str); 5] = [
    ("notifications", "Processed"),
    ("alerts", "Alert"),
    ("dead-letters", "DeadLettered"),
    ("conflicts", "Conflicted"),
    ("total-alerts", "TotalAlert"),
];

/// The place in `SINKS` that an added sink is like, and its event, which is a rare one.
pub(crate) const ADDED: (usize, &str) = (3, SINKS[3].1);

/// The thresholds on totals of the manifest.
fn total_thresholds() -> Vec<serde_json::Value> {
    let thresholds = record::TOTAL_THRESHOLDS.iter().map(|threshold| {
        let bound = if threshold.is_above { "above" } else { "below" };
        let record::TotalThreshold { name, unit, per, every, .. } = threshold;
        json!({"name": name, "unit": unit, "per": per, bound: threshold.bound, "every": every})
    });
    thresholds.collect()
}

/// A sink's stream.
pub(crate) fn stream(sink: &str) -> String {
    format!("{NAME}.{sink}")
}

/// Longest wait until a process has registered a manifest.
const REGISTERED: Duration = Duration::from_secs(8);

impl World {
    /// Changes the manifest by one of the flags that it is written from, until `is_registered`. Only a process that notices the
    /// change of the file registers it, so it changes again until one does. Returns false, with the flag set, if none does.
    pub(crate) async fn change_manifest(
        &self,
        flag: &AtomicBool,
        to: bool,
        mut is_registered: impl AsyncFnMut() -> bool,
    ) -> anyhow::Result<bool> {
        for _ in 0..5 {
            flag.store(to, Ordering::Relaxed);
            self.write_manifest(None)?;
            if eventually(REGISTERED, &mut is_registered).await {
                return Ok(true);
            }
            flag.store(!to, Ordering::Relaxed);
            self.write_manifest(None)?;
            sleep(Duration::from_secs(1)).await;
        }
        flag.store(true, Ordering::Relaxed);
        self.write_manifest(None)?;
        Ok(false)
    }

    /// Writes the manifest; `added` names one more sink, which starts from the beginning.
    pub(crate) fn write_manifest(&self, added: Option<&str>) -> anyhow::Result<()> {
        let sink =
            |name: &str, event: &str| json!({"name": name, "event": event, "redisStream": {"stream": stream(name)}});
        let mut sinks = SINKS.map(|(name, event)| sink(name, event)).to_vec();
        sinks.extend(added.map(|name| {
            let mut added = sink(name, ADDED.1);
            added["from"] = serde_json::json!({"position": "Beginning"});
            added
        }));
        let host = if self.has_name.load(Ordering::Relaxed) { "127.0.0.1" } else { "hook.invalid" };
        sinks.push(json!({"name": "hook", "event": "Processed", "webhook": {
            "url": format!("http://{host}:{}/", self.endpoint.port), "secretRef": {"name": "hook", "key": "signing"},
            "allowedCidrs": ["127.0.0.0/8"], "timeoutSeconds": TIMEOUT_SECONDS, "maxInFlight": IN_FLIGHT,
        }}));
        let mut rollups = vec![
            json!({"name": "hourly", "window": "1h", "groupBy": ["destinationId"]}),
            json!({"name": "daily", "window": "1d", "groupBy": ["reference"], "distinct": "sourceId"}),
        ];
        if !self.rollups.load(Ordering::Relaxed) {
            rollups.clear();
        }
        let manifest = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline",
            "metadata": {"name": NAME},
            "spec": {
                "shards": SHARDS,
                "backlogLimit": 1_000_000,
                "threshold": record::THRESHOLD,
                "thresholds": {"USD": record::THRESHOLD_USD},
                "totalThresholds": total_thresholds(),
                "policy": {"minimumTotal": record::MINIMUM_TOTAL},
                "sinks": sinks,
                "rollups": rollups,
                // Nothing gets so old. While the clock of Postgres is moved ahead, everything is.
                "retention": {
                    "records": "400d", "ids": "400d", "closedDeadLetters": "400d", "duplicates": "400d", "rollups": "400d",
                },
            },
        });
        // In one step: processes read it at any time.
        let new = self.manifest().with_extension("new");
        fs::write(&new, manifest.to_string())?;
        Ok(fs::rename(new, self.manifest())?)
    }

    /// Adds a sink with a new name; returns whether the manifest is registered. Only a process that notices the change
    /// of the file registers it.
    pub(crate) async fn add_sink(&self) -> anyhow::Result<bool> {
        let name = format!("added-{}", self.starts.load(Ordering::Relaxed));
        for _ in 0..5 {
            self.write_manifest(Some(&name))?;
            if eventually(Duration::from_secs(4), async || self.has_sink(&name).await.is_ok_and(|has| has)).await {
                *self.added_sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
                return Ok(true);
            }
            self.write_manifest(None)?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(false)
    }

    /// Removes an added sink, and its stream.
    pub(crate) async fn remove_sink(&self, name: &str) -> anyhow::Result<()> {
        self.write_manifest(None)?;
        let removed =
            eventually(Duration::from_secs(30), async || self.has_sink(name).await.is_ok_and(|has| !has)).await;
        ensure!(removed, "sink {name} was removed and is still in /stats");
        self.redis.lock().await.command::<i64>(&["DEL", &stream(name)]).await?;
        Ok(())
    }

    /// Whether `/stats` lists a sink.
    async fn has_sink(&self, name: &str) -> anyhow::Result<bool> {
        let stats = self.get("/stats").await?;
        Ok(stats["sinks"].as_array().into_iter().flatten().any(|sink| sink["name"] == name))
    }
}
