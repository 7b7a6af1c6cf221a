//! Limits of log lines a second, for events that come with each record or each request.
//!
//! Lines beyond that are counted, and a line says how many they were: at the next event, or when the second is over.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Most lines of an event in a second.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Most names that [`Once`] keeps.
const NAMES: usize = 1_000;

/// A record is in conflict.
pub static CONFLICTED: Limit = Limit::new("worker.record.conflicted");
/// A record became a dead letter for what it is.
pub static DEAD_LETTERED: Limit = Limit::new("worker.record.dead_lettered");
/// A record became a dead letter for a fault of the service. They must not be hidden among the others.
pub static DEAD_LETTERED_BY_FAULT: Limit =
    Limit::new("worker.record.dead_lettered (panicked, refused_by_store, crashed_worker, corrupted)");
/// A batch was halved down to a record.
pub static ISOLATED: Limit = Limit::new("worker.record.isolated");
/// An entry was delivered often.
pub static POISON_CANDIDATE: Limit = Limit::new("worker.entry.poison_candidate");
/// A request met a fault of the service.
pub static FAILED: Limit = Limit::new("http.request.failed");
/// A request could not ask Postgres.
pub static POSTGRES_UNAVAILABLE: Limit = Limit::new("http.postgres.unavailable");
/// A request could not ask Redis.
pub static REDIS_UNAVAILABLE: Limit = Limit::new("http.redis.unavailable");
/// A streamed answer was cut.
pub static CUT: Limit = Limit::new("query.response.aborted");
/// A record could not be looked for in Redis.
pub static SEARCH_FAILED: Limit = Limit::new("query.search.failed");
/// Cursors of sinks could not be read.
pub static CURSORS_FAILED: Limit = Limit::new("query.cursors.failed");
/// The backlog could not be read.
pub static BACKLOG_FAILED: Limit = Limit::new("query.backlog.failed");
/// A replay could not be appended.
pub static NOT_REPLAYED: Limit = Limit::new("query.dead_letter.replay_failed");

/// Units of records that have no threshold while others have one.
pub static UNITS: Once = Once(Mutex::new(None));

const ALL: [&Limit; 13] = [
    &CONFLICTED,
    &DEAD_LETTERED,
    &DEAD_LETTERED_BY_FAULT,
    &ISOLATED,
    &POISON_CANDIDATE,
    &FAILED,
    &POSTGRES_UNAVAILABLE,
    &REDIS_UNAVAILABLE,
    &CUT,
    &SEARCH_FAILED,
    &CURSORS_FAILED,
    &BACKLOG_FAILED,
    &NOT_REPLAYED,
];

/// The limit of one event.
#[derive(Debug)]
pub struct Limit {
    event: &'static str,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl Window {
    const fn new() -> Self {
        Self { began: None, logged: 0, left_out: 0 }
    }

    /// Ends a window that is over; returns how many lines were left out in it.
    fn end(&mut self, now: Instant) -> u64 {
        if self.began.is_some_and(|began| now.saturating_duration_since(began) < SECOND) {
            return 0;
        }
        std::mem::replace(self, Self::new()).left_out
    }

    /// Whether one more line may be logged.
    fn take(&mut self, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let may = self.logged < LINES;
        self.logged += u32::from(may);
        self.left_out += u64::from(!may);
        may
    }
}

impl Limit {
    const fn new(event: &'static str) -> Self {
        Self { event, window: Mutex::new(Window::new()) }
    }

    /// Whether the event may log a line now; counts it where not.
    #[must_use]
    pub fn allows(&self, now: Instant) -> bool {
        let (left_out, may) = {
            let mut window = self.window();
            (window.end(now), window.take(now))
        };
        self.report(left_out);
        may
    }

    fn report(&self, left_out: u64) {
        if left_out > 0 {
            tracing::warn!(
                event = "telemetry.lines.left_out",
                of = self.event,
                left_out,
                "further lines of this event were left out"
            );
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports the lines that were left out in seconds that are over; all of them where `now` is `None`, at the end of a
/// process.
pub(super) fn report(now: Option<Instant>) {
    for limit in ALL {
        let left_out = match now {
            Some(now) => limit.window().end(now),
            None => std::mem::replace(&mut *limit.window(), Window::new()).left_out,
        };
        limit.report(left_out);
    }
}

/// Names that were seen in this process, at most 1,000.
#[derive(Debug)]
pub struct Once(Mutex<Option<HashSet<String>>>);

impl Once {
    /// Whether a name is seen for the first time; false for every name beyond the bound.
    #[must_use]
    pub fn is_first(&self, name: &str) -> bool {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = names.get_or_insert_default();
        !names.contains(name) && names.len() < NAMES && names.insert(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_are_allowed_and_the_rest_is_counted() {
        let (mut window, began) = (Window::new(), Instant::now());
        let mut logged = 0;
        for step in 0..100 {
            let now = began + Duration::from_millis(step * 5);
            assert_eq!(window.end(now), 0, "the second is not over");
            logged += u32::from(window.take(now));
        }
        assert_eq!((logged, window.left_out), (10, 90));
        // At the next event after it.
        let next = began + SECOND;
        assert_eq!(window.end(next), 90);
        assert!(window.take(next));
        assert_eq!(window.end(next + SECOND), 0, "reported once");
    }

    #[test]
    fn what_was_left_out_is_counted_when_no_event_follows() {
        let (limit, now) = (Limit::new("test"), Instant::now());
        let logged = (0..25).filter(|_| limit.allows(now)).count();
        assert_eq!(logged, 10);
        assert_eq!(limit.window().end(now + Duration::from_millis(999)), 0);
        assert_eq!(limit.window().end(now + SECOND), 15);
        assert_eq!(limit.window().end(now + SECOND * 2), 0);
    }

    #[test]
    fn a_name_is_new_once_and_names_are_bounded() {
        let once = Once(Mutex::new(None));
        assert!(once.is_first("eur") && !once.is_first("eur") && once.is_first("EUR"));
        let new = (0..2 * NAMES).filter(|n| once.is_first(&n.to_string())).count();
        assert_eq!(new, NAMES - 2);
    }
}
