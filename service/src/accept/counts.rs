//! How many entries this process ever appended, and of how many it does not know: what a loss is found by.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    domain::ShardId,
    store::{Error, ShardAppends, Store},
    streams::Streams,
};

/// How often the counts are noted in Postgres.
pub(super) const FLUSH: Duration = Duration::from_secs(1);
/// Most shards that a pipeline can have.
const SHARDS: usize = 256;

#[derive(Debug, Default, Clone, Copy)]
struct Shard {
    /// Entries that were confirmed to this process.
    confirmed: i64,
    /// Entries that are on their way.
    under_way: i64,
    /// Entries whose outcome was unknown, and that Redis has counted nevertheless.
    resolved: i64,
    /// The most that Redis ever counted.
    counted: i64,
    /// Entries whose outcome was unknown.
    unknown: i64,
}

impl Shard {
    /// How many were appended, as far as is known. Redis alone does not tell: where it goes back between two appends that
    /// are under way at once, it counts both under the same number.
    fn appended(self) -> i64 {
        self.counted.max(self.confirmed + self.resolved)
    }

    /// Of how many it is still not known: any of them may have been appended, and applied.
    fn unresolved(self) -> i64 {
        (self.unknown - self.resolved).max(0)
    }
}

/// Counts per shard since this process started.
#[derive(Debug)]
pub(super) struct Counts(Vec<Mutex<Shard>>);

impl Default for Counts {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Counts {
    fn change(&self, shard: ShardId, change: impl FnOnce(&mut Shard)) -> Shard {
        let Some(counts) = self.0.get(usize::from(shard.get())) else { return Shard::default() };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        *counts
    }

    fn of(&self, shard: ShardId) -> Shard {
        self.change(shard, |_| {})
    }

    /// `n` entries are about to be appended; answers how many are known to have been.
    pub(super) fn begin(&self, shard: ShardId, n: usize) -> i64 {
        self.change(shard, |counts| counts.under_way += n as i64).appended()
    }

    /// `n` entries were confirmed, and Redis has counted `count` of this process, those among them whose answers never came.
    pub(super) fn confirmed(&self, shard: ShardId, n: usize, count: i64) {
        self.change(shard, |counts| {
            counts.under_way -= n as i64;
            counts.confirmed += n as i64;
            counts.counted = counts.counted.max(count);
            counts.resolved = counts.resolved.max(count - counts.confirmed - counts.under_way);
        });
    }

    /// `n` entries were not appended.
    pub(super) fn refused(&self, shard: ShardId, n: usize) {
        self.change(shard, |counts| counts.under_way -= n as i64);
    }

    /// Of `n` entries it is not known whether they were appended.
    pub(super) fn unknown(&self, shard: ShardId, n: usize) {
        self.change(shard, |counts| {
            counts.under_way -= n as i64;
            counts.unknown += n as i64;
        });
    }

    /// Asks Redis what it has counted where outcomes are unknown: no other append may come that would tell. What cannot
    /// be asked in time is asked again.
    pub(super) async fn resolve(&self, streams: &Streams, process: &str) {
        let asking = async {
            for shard in ShardId::all(SHARDS as u16).filter(|shard| self.of(*shard).unresolved() > 0) {
                match streams.appended_by(shard, process).await {
                    Ok(count) => self.confirmed(shard, 0, count),
                    Err(error) => {
                        tracing::debug!(event = "accept.counts.unresolved", shard = shard.get(), %error, "cannot tell how many entries Redis counted")
                    }
                }
            }
        };
        let _ = tokio::time::timeout(FLUSH / 2, asking).await;
    }

    /// Shard, appended and unknown, where there is anything.
    #[cfg(test)]
    pub(super) fn totals(&self) -> Vec<(u16, i64, i64)> {
        let all = (0_u16..).zip(&self.0).map(|(shard, _)| (shard, self.of(ShardId::new(shard))));
        let counts = all.map(|(shard, counts)| (shard, counts.appended(), counts.unresolved()));
        counts.filter(|(_, appended, unknown)| appended + unknown > 0).collect()
    }

    /// Notes all counts, changed or not: whoever reads them sees that this process lives, and a Postgres that went back
    /// is told anew. `closing`: as the last word of this process.
    pub(super) async fn flush(&self, store: &Store, process: &str, shards: u16, closing: bool) -> Result<(), Error> {
        let of = |shard| {
            let counts = self.of(shard);
            ShardAppends { shard, acknowledged: counts.appended(), unknown: counts.unresolved() }
        };
        store.note_appends(process, || ShardId::all(shards).map(of).collect(), closing).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_at_once_are_counted_each_though_redis_goes_back_between_them() {
        let counts = Counts::default();
        assert_eq!(counts.begin(ShardId::new(0), 5), 0);
        counts.confirmed(ShardId::new(0), 5, 5);
        // Two entries of unknown outcome were appended, as the next answer tells.
        counts.begin(ShardId::new(0), 2);
        counts.unknown(ShardId::new(0), 2);
        counts.begin(ShardId::new(0), 1);
        counts.confirmed(ShardId::new(0), 1, 8);
        assert_eq!(counts.totals(), [(0, 8, 0)]);
        // Two at once: Redis counts one, forgets it, and counts the other from what it was told.
        assert_eq!((counts.begin(ShardId::new(0), 1), counts.begin(ShardId::new(0), 1)), (8, 8));
        counts.confirmed(ShardId::new(0), 1, 9);
        assert_eq!(counts.totals(), [(0, 9, 0)], "the other may be the ninth");
        counts.confirmed(ShardId::new(0), 1, 9);
        assert_eq!(counts.totals(), [(0, 10, 0)]);
        // What is answered out of order is not taken for an unknown outcome.
        counts.begin(ShardId::new(0), 3);
        counts.begin(ShardId::new(0), 4);
        counts.confirmed(ShardId::new(0), 4, 17);
        counts.refused(ShardId::new(0), 3);
        assert_eq!(counts.totals(), [(0, 17, 0)]);
    }

    #[test]
    fn what_is_under_way_is_not_taken_for_what_was_never_answered() {
        let counts = Counts::default();
        counts.begin(ShardId::new(0), 3);
        counts.unknown(ShardId::new(0), 3);
        assert_eq!(counts.totals(), [(0, 0, 3)]);
        // Redis is asked while two more are under way: of the four that it has counted two may be these.
        counts.begin(ShardId::new(0), 2);
        counts.confirmed(ShardId::new(0), 0, 4);
        assert_eq!(counts.totals(), [(0, 4, 1)]);
        counts.confirmed(ShardId::new(0), 2, 4);
        assert_eq!(counts.totals(), [(0, 4, 1)]);
        counts.confirmed(ShardId::new(0), 0, 5);
        assert_eq!(counts.totals(), [(0, 5, 0)]);
    }
}
