//! How long to wait after something did not come out as it should.

use std::time::Duration;

/// `first`, doubled `times` times, and never above `longest`.
#[must_use]
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(10)).min(longest)
}
