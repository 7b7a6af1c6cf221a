//! How many entries this process ever appended, and of how many it does not know: what a loss is found by.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use crate::store::{Error, ShardAppends, Store};

/// How often the counts are noted in Postgres.
pub(super) const FLUSH: Duration = Duration::from_secs(1);
/// Most shards that a pipeline can have.
const SHARDS: usize = 256;

#[derive(Debug, Default)]
struct Shard {
    appended: AtomicI64,
    unknown: AtomicI64,
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
    /// How many entries are known to have been appended to a shard.
    pub(super) fn appended(&self, shard: u16) -> i64 {
        self.0.get(usize::from(shard)).map_or(0, |counts| counts.appended.load(Ordering::Relaxed))
    }

    /// Redis has counted `count` entries of this process, those among them whose answers never came.
    pub(super) fn counted(&self, shard: u16, count: i64) {
        if let Some(counts) = self.0.get(usize::from(shard)) {
            counts.appended.fetch_max(count, Ordering::Relaxed);
        }
    }

    /// Of `n` entries it is not known whether they were appended.
    pub(super) fn unknown(&self, shard: u16, n: usize) {
        if let Some(counts) = self.0.get(usize::from(shard)) {
            counts.unknown.fetch_add(n as i64, Ordering::Relaxed);
        }
    }

    /// Shard, appended and unknown, where there is anything.
    #[cfg(test)]
    pub(super) fn totals(&self) -> Vec<(u16, i64, i64)> {
        let counts = (0_u16..).zip(&self.0).map(|(shard, counts)| {
            (shard, counts.appended.load(Ordering::Relaxed), counts.unknown.load(Ordering::Relaxed))
        });
        counts.filter(|(_, appended, unknown)| appended + unknown > 0).collect()
    }

    /// Notes all counts, changed or not: whoever reads them sees that this process lives, and a Postgres that went back
    /// is told anew. `closing`: as the last word of this process.
    pub(super) async fn flush(&self, store: &Store, process: &str, shards: u16, closing: bool) -> Result<(), Error> {
        let counts = (0..shards).zip(&self.0).map(|(shard, counts)| ShardAppends {
            shard,
            acknowledged: counts.appended.load(Ordering::Relaxed),
            unknown: counts.unknown.load(Ordering::Relaxed),
        });
        store.note_appends(process, &counts.collect::<Vec<_>>(), closing).await
    }
}
