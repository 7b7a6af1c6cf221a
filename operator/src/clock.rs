//! The clock. One function reads it; everything else gets the time from its caller.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

/// The current time by two clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// For durations within this process.
    pub(crate) instant: Instant,
    /// For times that the API server holds.
    pub(crate) time: Timestamp,
}

/// Reads the clock.
pub(crate) type Clock = fn() -> Now;

impl Now {
    /// The current time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    pub(crate) fn read() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }

    /// The time since an instant.
    #[must_use]
    pub(crate) fn since(&self, instant: Instant) -> Duration {
        self.instant.saturating_duration_since(instant)
    }
}
