//! Fairness: whether a source has its share of a shard's backlog already.
//!
//! Must cost no more than a look at a number while the backlog is at most half of its limit.

use std::{
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::Instant,
};

use super::{Producer, ShardShares};
use crate::{
    domain::ShardId,
    streams::{
        SourceTag,
        append::Ends,
        shares::{Run, Shares},
    },
};

impl Producer {
    /// Whether a shard's backlog is above half of `limit`: no source is over its share of any other.
    #[must_use]
    pub fn is_above_half(&self, shard: ShardId, limit: u64) -> bool {
        self.0.shares(shard).is_above_half(limit)
    }

    /// Whether a source has its share of a shard's backlog, which is above half of `limit`. Each of `processes` that serve
    /// divides its part of the limit among the sources that it has seen within a minute.
    pub async fn is_over_share(&self, shard: ShardId, limit: u64, processes: u32, source: SourceTag) -> bool {
        let of_shard = self.0.shares(shard);
        if !of_shard.is_above_half(limit) {
            return false;
        }
        let now = Instant::now();
        let has_to_read = {
            let mut shares = of_shard.lock();
            shares.seen(source, now);
            shares.has_to_read(now)
        };
        if has_to_read {
            // In a box: it is rare, and every request would have room for it.
            match Box::pin(self.0.streams.ends(shard)).await {
                Ok(ends) => of_shard.noted(ends),
                // The append returns what is wrong.
                Err(error) => {
                    tracing::debug!(event = "accept.share.unread", shard = shard.get(), %error, "the backlog cannot be read");
                    return false;
                }
            }
        }
        let room = limit / u64::from(processes.max(1));
        of_shard.is_above_half(limit) && of_shard.lock().is_used_up(source, room, processes <= 1, now)
    }
}

impl ShardShares {
    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_above_half(&self, limit: u64) -> bool {
        self.backlog.load(Ordering::Relaxed) > limit / 2
    }

    fn noted(&self, ends: Ends) {
        self.backlog.store(ends.backlog(), Ordering::Relaxed);
        self.lock().applied(ends.acknowledged, Instant::now());
    }

    /// Notes an append.
    pub(super) fn appended(&self, ends: Ends, runs: &[Run], limit: u64) {
        self.backlog.store(ends.backlog(), Ordering::Relaxed);
        let mut shares = self.lock();
        let now = Instant::now();
        shares.appended(ends.appended, runs, limit, now);
        shares.applied(ends.acknowledged, now);
    }
}
