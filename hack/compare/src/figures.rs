//! The figures of a round: their names, units and form.
//!
//! Pure. A figure that could not be measured is absent, never zero.

use std::collections::BTreeMap;

use serde::Serialize;

/// A figure. The order is that of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Records from the first POST to the last notification.
    RecordsPerSecond,
    /// Records from the first POST to the last answer.
    AcceptedPerSecond,
    /// Seconds from the start of `work` to the first notification.
    StartSeconds,
    /// Milliseconds from a record's planned POST to the read of its notification, or to its answer.
    LatencyP50Ms,
    LatencyP95Ms,
    LatencyP99Ms,
    LatencyMaxMs,
    /// Microseconds of processor time for a record, in user and kernel mode.
    RedisCpuMicros,
    PostgresCpuMicros,
    ServeCpuMicros,
    WorkCpuMicros,
    LoadCpuMicros,
    /// Processes that take no part in the measurement, and interrupts.
    OtherCpuMicros,
    MachineCpuMicros,
    /// The kernel's share of the machine's time.
    KernelCpuMicros,
    WalBytes,
    AofBytes,
    /// Reads from clients' sockets, without those that carry the tool's own requests.
    RedisRoundTrips,
    /// Commands, those of scripts included, without the tool's own.
    RedisCommands,
    RedisFsyncs,
    PostgresFsyncs,
    ServePeakMib,
    WorkPeakMib,
}

impl Figure {
    /// All of them, in the order of the table.
    pub(crate) const ALL: [Self; 23] = [
        Self::RecordsPerSecond,
        Self::AcceptedPerSecond,
        Self::StartSeconds,
        Self::LatencyP50Ms,
        Self::LatencyP95Ms,
        Self::LatencyP99Ms,
        Self::LatencyMaxMs,
        Self::RedisCpuMicros,
        Self::PostgresCpuMicros,
        Self::ServeCpuMicros,
        Self::WorkCpuMicros,
        Self::LoadCpuMicros,
        Self::OtherCpuMicros,
        Self::MachineCpuMicros,
        Self::KernelCpuMicros,
        Self::WalBytes,
        Self::AofBytes,
        Self::RedisRoundTrips,
        Self::RedisCommands,
        Self::RedisFsyncs,
        Self::PostgresFsyncs,
        Self::ServePeakMib,
        Self::WorkPeakMib,
    ];

    /// Its name and unit, as the table has them.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::RecordsPerSecond => "records/s",
            Self::AcceptedPerSecond => "accepted, records/s",
            Self::StartSeconds => "start of work, s",
            Self::LatencyP50Ms => "latency p50, ms",
            Self::LatencyP95Ms => "latency p95, ms",
            Self::LatencyP99Ms => "latency p99, ms",
            Self::LatencyMaxMs => "latency max, ms",
            Self::RedisCpuMicros => "CPU of Redis, µs/record",
            Self::PostgresCpuMicros => "CPU of Postgres, µs/record",
            Self::ServeCpuMicros => "CPU of serve, µs/record",
            Self::WorkCpuMicros => "CPU of work, µs/record",
            Self::LoadCpuMicros => "CPU of the load, µs/record",
            Self::OtherCpuMicros => "CPU of others, µs/record",
            Self::MachineCpuMicros => "CPU of all, µs/record",
            Self::KernelCpuMicros => "CPU in the kernel, µs/record",
            Self::WalBytes => "WAL, B/record",
            Self::AofBytes => "AOF, B/record",
            Self::RedisRoundTrips => "Redis round trips/record",
            Self::RedisCommands => "Redis commands/record",
            Self::RedisFsyncs => "fsyncs of Redis/record",
            Self::PostgresFsyncs => "fsyncs of Postgres/record",
            Self::ServePeakMib => "peak memory of serve, MiB",
            Self::WorkPeakMib => "peak memory of work, MiB",
        }
    }

    /// A value in the form of the table.
    pub(crate) fn format(self, value: f64) -> String {
        match self {
            Self::RecordsPerSecond | Self::AcceptedPerSecond | Self::WalBytes | Self::AofBytes => thousands(value),
            Self::RedisRoundTrips | Self::RedisFsyncs | Self::PostgresFsyncs => format!("{value:.4}"),
            Self::StartSeconds | Self::RedisCommands => format!("{value:.2}"),
            _ => format!("{value:.1}"),
        }
    }
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The figures of one round of one build.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Figures(BTreeMap<Figure, f64>);

impl Figures {
    /// Adds a figure.
    pub(crate) fn set(&mut self, figure: Figure, value: f64) {
        self.0.insert(figure, value);
    }

    /// Adds all of another measurement.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// A figure, where it was measured.
    pub(crate) fn get(&self, figure: Figure) -> Option<f64> {
        self.0.get(&figure).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Figures};

    #[test]
    fn large_numbers_have_commas() {
        assert_eq!(Figure::WalBytes.format(999.4), "999");
        assert_eq!(Figure::WalBytes.format(14_977.3), "14,977");
        assert_eq!(Figure::RecordsPerSecond.format(1_234_567.0), "1,234,567");
    }

    #[test]
    fn small_numbers_keep_digits() {
        assert_eq!(Figure::RedisFsyncs.format(0.012_34), "0.0123");
        assert_eq!(Figure::LatencyP99Ms.format(47.25), "47.2");
    }

    #[test]
    fn every_figure_is_in_the_table_once_and_in_order() {
        assert!(Figure::ALL.is_sorted_by(|a, b| a < b));
        // Serde has each as a key.
        let mut figures = Figures::default();
        Figure::ALL.iter().for_each(|figure| figures.set(*figure, 1.0));
        assert_eq!(serde_json::to_value(figures).unwrap().as_object().unwrap().len(), Figure::ALL.len());
    }
}
