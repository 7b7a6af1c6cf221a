//! Whether the endpoint as a whole fails, or single destinations.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::retry;

/// An endpoint fails as a whole when this number of its last attempts failed.
const LAST: usize = 10;
/// And when they were for at least as many destinations.
const DESTINATIONS: usize = 2;

/// The last attempts, and whether the endpoint fails.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Destinations of the last attempts if all of these failed, the newest last.
    failed: VecDeque<Arc<str>>,
    failing: Option<Failing>,
}

/// An endpoint that fails.
#[derive(Debug, Clone, Copy)]
struct Failing {
    since: DateTime<Utc>,
    attempts: u32,
    next_attempt_at: DateTime<Utc>,
}

impl Health {
    /// The state that the last publisher stored.
    pub(super) fn stored(failing_since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Self {
        let failing = failing_since.map(|since| Failing { since, attempts: 0, next_attempt_at: now });
        Self { failed: VecDeque::new(), failing }
    }

    /// Since when the endpoint fails.
    pub(super) fn failing_since(&self) -> Option<DateTime<Utc>> {
        self.failing.map(|failing| failing.since)
    }

    /// When the endpoint that fails is tried again.
    pub(super) fn next_attempt_at(&self) -> Option<DateTime<Utc>> {
        self.failing.map(|failing| failing.next_attempt_at)
    }

    /// Number of attempts since the endpoint fails.
    pub(super) fn attempts(&self) -> u32 {
        self.failing.map_or(0, |failing| failing.attempts)
    }

    /// Notes a success. Returns whether the endpoint has recovered by it.
    pub(super) fn succeeded(&mut self) -> bool {
        self.failed.clear();
        self.failing.take().is_some()
    }

    /// Notes a failed attempt.
    pub(super) fn failed(&mut self, destination: &Arc<str>, asked: Option<Duration>, now: DateTime<Utc>) {
        if let Some(failing) = &mut self.failing {
            failing.attempts += 1;
            failing.next_attempt_at = now + retry::of_endpoint(failing.attempts, asked);
            return;
        }
        self.failed.push_back(Arc::clone(destination));
        if self.failed.len() > LAST {
            self.failed.pop_front();
        }
        let is_of_several = self.failed.iter().skip(1).any(|other| *other != self.failed[0]);
        const { assert!(DESTINATIONS == 2, "one other destination is looked for") };
        if self.failed.len() == LAST && is_of_several {
            let next_attempt_at = now + retry::of_endpoint(1, asked);
            self.failing = Some(Failing { since: now, attempts: 0, next_attempt_at });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(health: &mut Health, destinations: &[&str]) -> bool {
        for destination in destinations {
            health.failed(&Arc::from(*destination), None, DateTime::UNIX_EPOCH);
        }
        health.failing_since().is_some()
    }

    #[test]
    fn an_endpoint_fails_by_ten_attempts_over_two_destinations_and_recovers_by_one_success() {
        let mut health = Health::default();
        assert!(!failed(&mut health, &["a"; 30]), "one destination is not the endpoint");
        assert!(failed(&mut health, &["b"]), "the last ten are of two destinations");
        assert!(health.succeeded() && health.failing_since().is_none() && !health.succeeded());
        assert!(!failed(&mut health, &["a", "b", "a", "b", "a", "b", "a", "b", "a"]));
        health.succeeded();
        assert!(!failed(&mut health, &["a", "b", "a", "b", "a"]), "a success begins the count again");
        assert!(failed(&mut health, &["a", "b", "a", "b", "a"]));
    }

    #[test]
    fn an_endpoint_that_fails_is_tried_at_growing_pauses_and_as_it_asks() {
        let mut health = Health::stored(Some(DateTime::UNIX_EPOCH), DateTime::UNIX_EPOCH);
        assert_eq!(health.next_attempt_at(), Some(DateTime::UNIX_EPOCH));
        let mut last = 0;
        for _ in 0..5 {
            failed(&mut health, &["a"]);
            let pause = health.next_attempt_at().expect("it fails").timestamp_millis();
            assert!(pause > last, "{pause}");
            last = pause;
        }
        health.failed(&Arc::from("a"), Some(Duration::from_secs(500)), DateTime::UNIX_EPOCH);
        assert_eq!(health.next_attempt_at().map(|at| at.timestamp()), Some(500));
        assert_eq!(health.failing_since(), Some(DateTime::UNIX_EPOCH));
    }
}
