//! Slow statements: one log event each, with its name and its duration.
//!
//! Must never show the text of a statement, which the log of the driver would, nor count the time of a slow reader.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::Stream;

/// From this duration on a statement is slow.
const SLOW: Duration = Duration::from_secs(1);

/// The time that a statement takes. It is reported when this is dropped, so that an abandoned statement is, too.
#[derive(Debug)]
pub(super) struct Watch {
    statement: &'static str,
    waited: Duration,
    since: Option<Instant>,
}

impl Watch {
    /// Begins to measure the statement of this name.
    pub(super) fn start(statement: &'static str) -> Self {
        Self { statement, waited: Duration::ZERO, since: Some(Instant::now()) }
    }

    fn pause(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.pause();
        if self.waited >= SLOW {
            let seconds = self.waited.as_secs_f64();
            tracing::warn!(event = "store.statement.slow", statement = self.statement, seconds, "slow statement");
        }
    }
}

/// Rows of a statement. Only the time in which a reader waits for a row counts.
#[derive(Debug)]
pub(super) struct Watched<S> {
    rows: S,
    watch: Watch,
}

impl<S> Watched<S> {
    /// The rows of the statement of this name, which has not begun.
    pub(super) fn new(statement: &'static str, rows: S) -> Self {
        Self { rows, watch: Watch { statement, waited: Duration::ZERO, since: None } }
    }
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let row = Pin::new(&mut self.rows).poll_next(context);
        if row.is_ready() {
            self.watch.pause();
        } else if self.watch.since.is_none() {
            self.watch.since = Some(Instant::now());
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};

    use super::*;
    use crate::store::testing::Log;

    #[test]
    fn a_slow_statement_is_one_event_with_its_name_and_duration() {
        let log = Log::start();
        let slow = Watch { statement: "records.list", waited: Duration::from_millis(1_500), since: None };
        let quick = Watch { statement: "records.find", waited: Duration::from_millis(900), since: None };
        drop((slow, quick));
        let lines = log.lines();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        let event: serde_json::Value = serde_json::from_str(&lines).unwrap();
        let fields = &event["fields"];
        assert_eq!((&fields["event"], &fields["statement"]), (&"store.statement.slow".into(), &"records.list".into()));
        assert_eq!((&event["level"], &fields["seconds"]), (&"WARN".into(), &1.5.into()));
    }

    #[tokio::test]
    async fn the_time_of_a_reader_between_rows_does_not_count() {
        let mut rows = Watched::new("rows", stream::iter([1, 2]));
        assert_eq!(rows.next().await, Some(1));
        assert!(rows.watch.since.is_none(), "nobody waits for a row");
        let mut rows = Watched::new("rows", stream::pending::<()>());
        assert!(futures::poll!(rows.next()).is_pending());
        assert!(rows.watch.since.is_some(), "a reader waits for a row");
    }
}
