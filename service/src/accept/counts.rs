//! How many appends this process had confirmed, and of how many it does not know: what a loss is found by.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::store::{Error, ShardAppends, Store};

/// How often changed counts are noted in Postgres.
pub(super) const FLUSH: Duration = Duration::from_secs(1);
/// Most shards that a pipeline can have.
const SHARDS: usize = 256;

#[derive(Debug, Default)]
struct Shard {
    acknowledged: AtomicU64,
    unknown: AtomicU64,
    /// Sum of both at the last flush.
    noted: AtomicU64,
}

/// Counts per shard since this process started.
#[derive(Debug)]
pub(super) struct Counts(Vec<Shard>);

impl Default for Counts {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Shard::default()).collect())
    }
}

impl Counts {
    /// Redis confirmed `n` entries.
    pub(super) fn acknowledged(&self, shard: u16, n: usize) {
        if let Some(counts) = self.0.get(usize::from(shard)) {
            counts.acknowledged.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// Of `n` entries it is not known.
    pub(super) fn unknown(&self, shard: u16, n: usize) {
        if let Some(counts) = self.0.get(usize::from(shard)) {
            counts.unknown.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// Shard, acknowledged and unknown, where there is anything.
    #[cfg(test)]
    pub(super) fn totals(&self) -> Vec<(u16, u64, u64)> {
        let counts = (0_u16..).zip(&self.0).map(|(shard, counts)| {
            (shard, counts.acknowledged.load(Ordering::Relaxed), counts.unknown.load(Ordering::Relaxed))
        });
        counts.filter(|(_, acknowledged, unknown)| acknowledged + unknown > 0).collect()
    }

    /// Notes what changed since the last time. `closing`: everything, as the last word of this process.
    pub(super) async fn flush(&self, store: &Store, process: &str, closing: bool) -> Result<(), Error> {
        let mut changed = Vec::new();
        for (shard, counts) in (0_u16..).zip(&self.0) {
            let (acknowledged, unknown) =
                (counts.acknowledged.load(Ordering::Relaxed), counts.unknown.load(Ordering::Relaxed));
            let sum = acknowledged + unknown;
            if sum > 0 && (closing || sum != counts.noted.load(Ordering::Relaxed)) {
                let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
                changed.push(ShardAppends { shard, acknowledged: signed(acknowledged), unknown: signed(unknown) });
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        store.note_appends(process, &changed, closing).await?;
        for count in &changed {
            if let Some(counts) = self.0.get(usize::from(count.shard)) {
                counts.noted.store((count.acknowledged + count.unknown).unsigned_abs(), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
