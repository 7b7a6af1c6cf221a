//! The pace of commits: how long ready records of a worker wait for others, by the rate at which they come.
//!
//! Pure. Must never hold records back at a low rate, nor a group that is full enough.

use std::time::Duration;

use tokio::time::Instant;

/// Longest time between the beginnings of two groups while records wait.
const LONGEST: Duration = Duration::from_millis(20);
/// Records per second from which on groups are the longest time apart. Below it the time falls with the rate.
const FULL_RATE: f64 = 4_000.0;
/// Time over which the rate is a mean.
const MEMORY: Duration = Duration::from_millis(200);

/// The groups so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the last group was taken.
    last: Option<Instant>,
    /// Records per second.
    rate: f64,
}

impl Pace {
    /// When the next group may be taken.
    pub(super) fn next(&self) -> Option<Instant> {
        Some(self.last? + LONGEST.mul_f64((self.rate / FULL_RATE).min(1.0)))
    }

    /// Notes a group of so many records.
    pub(super) fn taken(&mut self, records: usize, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        let since = (now - last).as_secs_f64();
        // The mean of a rate that was `records / since` for so long.
        let kept = (-since / MEMORY.as_secs_f64()).exp();
        let of_group = records as f64 / since.max(0.000_1);
        self.rate = self.rate * kept + of_group * (1.0 - kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time between two groups after records came at a rate for a second.
    fn interval(rate: f64) -> Duration {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        pace.taken(1, now);
        let since = Duration::from_secs_f64((1.0 / rate).max(0.005));
        for _ in 0..(1.0 / since.as_secs_f64()) as u32 {
            now += since;
            pace.taken((rate * since.as_secs_f64()).round() as usize, now);
        }
        pace.next().expect("a group was taken") - now
    }

    #[test]
    fn groups_are_further_apart_at_a_higher_rate_up_to_a_bound() {
        let near = |time: Duration, ms: f64| {
            let apart = (time.as_secs_f64() * 1_000.0 - ms).abs();
            assert!(apart < ms * 0.05, "{time:?}, expected {ms} ms");
        };
        near(interval(10.0), 0.05);
        near(interval(1_000.0), 5.0);
        near(interval(2_000.0), 10.0);
        near(interval(4_000.0), 20.0);
        assert_eq!(interval(100_000.0), LONGEST);
    }

    #[test]
    fn the_first_records_after_a_pause_do_not_wait() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.next(), None);
        pace.taken(1_000, now);
        pace.taken(1_000, now + LONGEST);
        let idle = now + LONGEST * 2;
        assert!(pace.next().is_some_and(|next| next <= idle), "{pace:?}");
    }
}
