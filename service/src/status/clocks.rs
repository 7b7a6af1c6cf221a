//! The difference between the clock of this host and those of the servers.
//!
//! No guarantee depends on the clock of a host, but times in logs, traces and answers do. It must never count the time that
//! a server takes to answer as a difference.

use std::time::{Duration, SystemTime};

use millrace_crds::{Reason, status_api::Problem};

use crate::config::Setup;

/// Largest difference that is no problem.
const LARGEST: Duration = Duration::from_secs(5);

/// A problem for each server whose clock differs. A server that does not answer is the problem of others.
pub(super) async fn problems(setup: &Setup) -> Vec<Problem> {
    let redis = async {
        let before = SystemTime::now();
        let clocks = setup.streams.clocks().await.unwrap_or_default();
        let after = SystemTime::now();
        clocks.into_iter().find_map(|clock| difference(before, clock, after)).map(|by| problem("Redis", by))
    };
    let postgres = async {
        let before = SystemTime::now();
        let clock = setup.store.clock().await.ok()?;
        difference(before, clock, SystemTime::now()).map(|by| problem("Postgres", by))
    };
    let (redis, postgres) = tokio::join!(redis, postgres);
    redis.into_iter().chain(postgres).collect()
}

/// How far a clock that was read between two times is outside of them, if that is too far: ahead of this host, or behind.
fn difference(before: SystemTime, clock: SystemTime, after: SystemTime) -> Option<(Duration, &'static str)> {
    let ahead = clock.duration_since(after).ok().map(|by| (by, "ahead of"));
    let behind = before.duration_since(clock).ok().map(|by| (by, "behind"));
    ahead.or(behind).filter(|(by, _)| *by > LARGEST)
}

fn problem(server: &str, (by, direction): (Duration, &str)) -> Problem {
    let message = format!(
        "the clock of {server} is {} s {direction} the clock of this host: synchronise both with the same time servers",
        by.as_secs()
    );
    Problem::new(Reason::ClockDifference, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_differs_by_what_the_answer_cannot_explain() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        // The answer took a minute.
        for clock in [95, 100, 130, 160, 165] {
            assert_eq!(difference(at(100), at(clock), at(160)), None, "{clock}");
        }
        assert_eq!(difference(at(100), at(166), at(160)), Some((Duration::from_secs(6), "ahead of")));
        assert_eq!(difference(at(100), at(90), at(160)), Some((Duration::from_secs(10), "behind")));
    }
}
