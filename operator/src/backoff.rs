//! The back-off of everything that is retried.

use std::time::Duration;

/// `first`, doubled `times` times, at most `longest`.
#[must_use]
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(10)).min(longest)
}
