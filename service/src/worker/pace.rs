//! The pace of commits: how long records of a worker wait for others, by the rate at which they come.
//!
//! Shards wait before they read, so that those that read for one group do so in one step of Redis, and a group holds all
//! that came until it is due. Pure. Must never hold records back at a low rate, nor a group that is full enough.

use std::time::Duration;

use tokio::time::Instant;

/// Longest time between the beginnings of two groups while records wait.
const LONGEST: Duration = Duration::from_millis(20);
/// Records per second from which on groups are the longest time apart. Below it the time falls with the rate.
const FULL_RATE: f64 = 12_000.0;
/// How long a group that is due waits for shards that read for it.
const READS: Duration = Duration::from_millis(3);
/// Time over which the rate is a mean.
const MEMORY: Duration = Duration::from_millis(200);

/// The groups so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the last group was taken.
    last: Option<Instant>,
    /// Records per second.
    rate: f64,
    /// Whether the last group was half full, so that the next one need not wait to be.
    was_full: bool,
}

impl Pace {
    /// When the next group is due.
    fn next(&self) -> Option<Instant> {
        Some(self.last? + LONGEST.mul_f64((self.rate / FULL_RATE).min(1.0)))
    }

    /// Until when a shard waits before it reads; `None`: not at all.
    pub(super) fn reads_at(&self, now: Instant) -> Option<Instant> {
        self.next().filter(|next| *next > now && !self.was_full)
    }

    /// Until when a group that is not half full waits, while shards read for it or none do; `None`: not at all.
    pub(super) fn taken_at(&self, is_read_for: bool, now: Instant) -> Option<Instant> {
        let due = self.next()?;
        Some(if is_read_for { due + READS } else { due }).filter(|until| *until > now)
    }

    /// Notes a group of so many records, which is half full or is not.
    pub(super) fn taken(&mut self, records: usize, is_full: bool, now: Instant) {
        self.was_full = is_full;
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
        pace.taken(1, false, now);
        let since = Duration::from_secs_f64((1.0 / rate).max(0.005));
        for _ in 0..(1.0 / since.as_secs_f64()) as u32 {
            now += since;
            pace.taken((rate * since.as_secs_f64()).round() as usize, false, now);
        }
        pace.next().expect("a group was taken") - now
    }

    #[test]
    fn groups_are_further_apart_at_a_higher_rate_up_to_a_bound() {
        let near = |time: Duration, ms: f64| {
            let apart = (time.as_secs_f64() * 1_000.0 - ms).abs();
            assert!(apart < ms * 0.05, "{time:?}, expected {ms} ms");
        };
        near(interval(10.0), 0.0167);
        near(interval(1_200.0), 2.0);
        near(interval(6_000.0), 10.0);
        near(interval(12_000.0), 20.0);
        assert_eq!(interval(100_000.0), LONGEST);
    }

    #[test]
    fn the_first_records_after_a_pause_do_not_wait() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.next(), None);
        pace.taken(1_000, false, now);
        pace.taken(1_000, false, now + LONGEST);
        let idle = now + LONGEST * 2 + READS;
        assert_eq!((pace.reads_at(idle), pace.taken_at(true, idle)), (None, None), "{pace:?}");
    }

    #[test]
    fn a_group_waits_for_shards_that_read_for_it_and_after_a_full_one_none_waits() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.taken(10_000, false, now);
        pace.taken(10_000, false, now + LONGEST);
        let due = now + LONGEST * 2;
        let before = due - LONGEST / 2;
        assert_eq!((pace.reads_at(before), pace.taken_at(false, before)), (Some(due), Some(due)));
        assert_eq!((pace.reads_at(due), pace.taken_at(false, due)), (None, None));
        assert_eq!(pace.taken_at(true, due), Some(due + READS));
        pace.taken(10_000, true, due);
        assert_eq!(pace.reads_at(due), None);
    }
}
