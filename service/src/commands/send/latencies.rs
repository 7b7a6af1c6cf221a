//! Times of requests, for percentiles of any number of them in bounded memory.

use std::{collections::BTreeMap, time::Duration};

/// Request times in buckets that are 1 % wide, so that any number of them takes the same room.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    buckets: BTreeMap<i32, u64>,
    count: u64,
}

impl Latencies {
    pub(super) fn add(&mut self, time: Duration) {
        let bucket = (time.as_micros().max(1) as f64).ln() / 1.01_f64.ln();
        *self.buckets.entry(bucket.floor() as i32).or_default() += 1;
        self.count += 1;
    }

    /// Milliseconds that a share of the requests (0 to 1) did not exceed; `None` without a request.
    pub(super) fn percentile(&self, share: f64) -> Option<f64> {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.buckets.iter().find_map(|(bucket, count)| {
            seen += count;
            (seen >= rank).then(|| (1.01_f64.powi(bucket + 1) / 10.0).round() / 100.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_one_percent() {
        let mut times = Latencies::default();
        assert_eq!(times.percentile(0.5), None);
        for ms in 1..=1000 {
            times.add(Duration::from_millis(ms));
        }
        for (share, expected) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let found = times.percentile(share).expect("some");
            assert!((found / expected - 1.0).abs() < 0.011, "{share}: {found}");
        }
    }
}
