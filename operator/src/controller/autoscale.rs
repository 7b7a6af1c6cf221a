//! The number of workers for a backlog: pure.
//!
//! It goes up at once and down slowly: the highest number that was wanted within a time counts. It must never change
//! without a known backlog, and never start from a number other than the live one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use millrace_crds::Autoscaling;

/// The numbers of workers that were wanted lately.
#[derive(Debug, Clone)]
pub(crate) struct Scaler {
    wanted: VecDeque<(Instant, i32)>,
    hold: Duration,
}

impl Scaler {
    /// A scaler that goes down only when fewer workers were wanted for `hold`.
    #[must_use]
    pub(crate) fn new(hold: Duration) -> Self {
        Self { wanted: VecDeque::new(), hold }
    }

    /// The number of workers to set: `live` is the Deployment's current number; `backlog` is `None` while it is
    /// unknown.
    pub(crate) fn workers(
        &mut self,
        scaling: &Autoscaling,
        live: Option<i32>,
        backlog: Option<u64>,
        now: Instant,
    ) -> i32 {
        let bounds = |workers: i64| {
            let (least, most) = (i64::from(scaling.min_replicas), i64::from(scaling.max_replicas));
            i32::try_from(workers.min(most).max(least)).unwrap_or(i32::MAX)
        };
        // A pipeline that was stopped starts with the least number.
        let live = live.filter(|live| *live > 0);
        let Some(backlog) = backlog else { return bounds(i64::from(live.unwrap_or(0))) };
        let wanted = bounds(i64::try_from(backlog.div_ceil(scaling.target_backlog.max(1))).unwrap_or(i64::MAX));
        if self.wanted.is_empty() {
            // The live number counts as wanted now: a restart of the operator scales nothing down at once.
            self.wanted.extend(live.map(|live| (now, live)));
        }
        self.wanted.push_back((now, wanted));
        while self.wanted.front().is_some_and(|(at, _)| now.duration_since(*at) > self.hold) {
            self.wanted.pop_front();
        }
        bounds(self.wanted.iter().map(|(_, workers)| i64::from(*workers)).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_go_up_at_once_and_down_after_a_time_within_bounds() {
        let scaling = Autoscaling { min_replicas: 1, max_replicas: 8, target_backlog: 100 };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut scaler = Scaler::new(Duration::from_secs(60));
        assert_eq!(scaler.workers(&scaling, Some(2), Some(0), at(0)), 2, "a restart scales nothing down at once");
        assert_eq!(scaler.workers(&scaling, Some(2), Some(301), at(1)), 4);
        assert_eq!(scaler.workers(&scaling, Some(4), Some(1_000_000), at(2)), 8);
        assert_eq!(scaler.workers(&scaling, Some(8), Some(0), at(60)), 8);
        assert_eq!(scaler.workers(&scaling, Some(8), None, at(61)), 8, "an unknown backlog changes nothing");
        assert_eq!(scaler.workers(&scaling, Some(8), Some(150), at(63)), 2);
        assert_eq!(scaler.workers(&scaling, Some(2), Some(0), at(124)), 1);
        assert_eq!(Scaler::new(Duration::ZERO).workers(&scaling, None, None, at(0)), 1);
        assert_eq!(Scaler::new(Duration::ZERO).workers(&scaling, Some(20), None, at(0)), 8);
    }
}
