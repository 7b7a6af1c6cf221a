//! When a delivery is tried again.

use std::time::Duration;

/// First pause before a retry; each next one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause of a destination.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest pause of an endpoint: once it works again, its deliveries continue soon.
const LONGEST_OF_ENDPOINT: Duration = Duration::from_secs(60);
/// For how long a delivery is retried.
pub(super) const GIVE_UP: chrono::TimeDelta = chrono::TimeDelta::hours(72);

/// The pause after a number of attempts that failed, at least 1. `asked` is the pause that the endpoint asked for.
pub(super) fn of_destination(attempts: u32, asked: Option<Duration>) -> Duration {
    pause(attempts, LONGEST, asked)
}

/// The same for an endpoint that fails as a whole.
pub(super) fn of_endpoint(attempts: u32, asked: Option<Duration>) -> Duration {
    pause(attempts, LONGEST_OF_ENDPOINT, asked)
}

/// Between three quarters and all of the pause, so that destinations that failed together are not retried together.
fn pause(attempts: u32, longest: Duration, asked: Option<Duration>) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1).min(20))).min(longest);
    let share = 1.0 - rand::random::<f64>() / 4.0;
    doubled.mul_f64(share).max(asked.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_their_bound_and_what_is_asked_for_is_kept() {
        let mut all = Vec::new();
        for (attempts, most) in [(1, 1.0), (2, 2.0), (5, 16.0), (13, 3_600.0), (u32::MAX, 3_600.0)] {
            for _ in 0..100 {
                let pause = of_destination(attempts, None).as_secs_f64();
                assert!(pause <= most && pause > most * 0.75 - 0.001, "{attempts}: {pause}");
                all.push(pause.to_bits());
            }
        }
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 400, "each pause differs");
        assert!(of_endpoint(30, None).as_secs_f64() <= 60.0);
        assert_eq!(of_destination(1, Some(Duration::from_secs(7_200))).as_secs(), 7_200);
    }
}
