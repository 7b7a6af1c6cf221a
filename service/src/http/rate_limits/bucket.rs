//! A rate of requests or records by the generic cell rate algorithm (GCRA), in one atomic number.
//!
//! Must never refuse what fits, whatever its size: what is admitted whole is paid for by those that come later.

use std::sync::atomic::{AtomicU64, Ordering};

/// The time in which a bucket of its size fills, in nanoseconds. A bucket holds what is allowed in a second.
const WINDOW: u64 = 1_000_000_000;

/// How much of a rate is used. Times are nanoseconds from any origin.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When all that was admitted is paid for.
    paid_at: AtomicU64,
    /// The bits of the rate by which `paid_at` was computed; 0: none yet.
    rate: AtomicU64,
}

/// A rate is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedUp {
    /// Nanoseconds until there is something left again.
    pub(super) wait_ns: u64,
}

impl Bucket {
    /// Takes `cells`, all or none: they are admitted while one is left, also when they are more than what is left. A bucket
    /// of less than one cell has one when it is full.
    pub(super) fn take(&self, now: u64, cells: u64, per_second: f64) -> Result<(), UsedUp> {
        self.rescale(now, per_second);
        let (one, cost) = (cost(1, per_second), cost(cells, per_second));
        // The most that may be unpaid, so that a cell is left.
        let most = WINDOW.saturating_sub(one);
        let taken = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            (ahead(paid_at, now) <= most).then(|| paid_at.max(now).saturating_add(cost))
        });
        taken.map(|_| ()).map_err(|paid_at| UsedUp { wait_ns: ahead(paid_at, now) - most })
    }

    /// Whether a cell is left.
    pub(super) fn check(&self, now: u64, per_second: f64) -> Result<(), UsedUp> {
        self.take(now, 0, per_second)
    }

    /// Returns what was taken and is not used.
    pub(super) fn refund(&self, cells: u64, per_second: f64) {
        let cost = cost(cells, per_second);
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(at.saturating_sub(cost)));
    }

    /// How many cells are left, and the seconds in which no more than these can be used: until all are left or, where none
    /// is, until one is.
    pub(super) fn left(&self, now: u64, per_second: f64) -> (u64, u64) {
        let ahead = ahead(self.paid_at.load(Ordering::Relaxed), now);
        let left = WINDOW.saturating_sub(ahead) as f64 / WINDOW as f64 * per_second;
        // A cell less for an error of the computation would be wrong for the first one.
        let left = (left + 1e-6) as u64;
        let until = if left > 0 { ahead } else { ahead.saturating_sub(WINDOW.saturating_sub(cost(1, per_second))) };
        (left, until.div_ceil(WINDOW))
    }

    /// Keeps the number of cells that are not paid for, when the rate is another.
    fn rescale(&self, now: u64, per_second: f64) {
        let bits = per_second.to_bits();
        if self.rate.load(Ordering::Relaxed) == bits {
            return;
        }
        let before = f64::from_bits(self.rate.swap(bits, Ordering::Relaxed));
        if before > 0.0 {
            let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
                let ahead = ahead(paid_at, now) as f64 * (before / per_second);
                Some(now.saturating_add(ahead as u64))
            });
        }
    }
}

fn ahead(paid_at: u64, now: u64) -> u64 {
    paid_at.saturating_sub(now)
}

fn cost(cells: u64, per_second: f64) -> u64 {
    (cells as f64 / per_second * WINDOW as f64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = WINDOW;

    #[test]
    fn a_second_of_the_rate_fits_at_once_and_no_more() {
        let bucket = Bucket::default();
        for n in 0..100 {
            assert_eq!(bucket.left(SECOND, 100.0).0, 100 - n);
            assert_eq!(bucket.take(SECOND, 1, 100.0), Ok(()), "{n}");
        }
        let UsedUp { wait_ns } = bucket.take(SECOND, 1, 100.0).expect_err("used up");
        assert!(wait_ns <= SECOND / 100, "{wait_ns}");
        assert_eq!(bucket.left(SECOND, 100.0), (0, 1));
        assert_eq!(bucket.take(SECOND + wait_ns, 1, 100.0), Ok(()));
        assert_eq!(bucket.left(3 * SECOND, 100.0), (100, 0));
    }

    #[test]
    fn what_is_larger_than_the_rate_is_admitted_whole_and_paid_for_later() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(0, 250, 100.0), Ok(()));
        let UsedUp { wait_ns } = bucket.check(0, 100.0).expect_err("in debt");
        assert_eq!(bucket.left(0, 100.0), (0, wait_ns.div_ceil(SECOND)), "never later than Retry-After");
        assert_eq!(wait_ns, 3 * SECOND / 2 + SECOND / 100);
        assert!(bucket.take(wait_ns - 1, 1, 100.0).is_err());
        assert_eq!(bucket.take(wait_ns, 1, 100.0), Ok(()));
    }

    #[test]
    fn a_rate_below_one_a_second_admits_one_at_a_time() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(0, 1, 0.25), Ok(()));
        assert_eq!(bucket.take(3 * SECOND, 1, 0.25), Err(UsedUp { wait_ns: SECOND }));
        assert_eq!(bucket.take(4 * SECOND, 1, 0.25), Ok(()));
    }

    #[test]
    fn what_is_refunded_can_be_taken_again() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(SECOND, 10, 10.0), Ok(()));
        bucket.refund(1, 10.0);
        assert_eq!(bucket.take(SECOND, 1, 10.0), Ok(()));
        assert!(bucket.take(SECOND, 1, 10.0).is_err());
    }

    #[test]
    fn another_rate_keeps_the_number_of_unpaid_cells() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(0, 1_000, 10.0), Ok(()));
        assert_eq!(bucket.check(0, 1_000.0), Err(UsedUp { wait_ns: SECOND / 1_000 }));
        assert_eq!(bucket.check(SECOND / 1_000, 1_000.0), Ok(()));
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_the_rate_and_one_request_is_admitted(
            rate in 0.1..1_000.0_f64,
            requests in prop::collection::vec((0..2_000_000_000_u64, 1..500_u64), 1..100),
        ) {
            let (bucket, mut now, mut admitted, mut largest) = (Bucket::default(), 0, 0, 0);
            for (pause, cells) in requests {
                now += pause;
                if bucket.take(now, cells, rate).is_ok() {
                    admitted += cells;
                    largest = largest.max(cells);
                }
            }
            let most = rate * (now as f64 / SECOND as f64 + 1.0) + largest as f64;
            prop_assert!(admitted as f64 <= most + 1.0, "{} of {}", admitted, most);
        }
    }
}
