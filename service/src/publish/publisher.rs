//! One publisher of a Redis sink: a shard's outcomes of one kind, in order, from the sink's cursor on.
//!
//! Must never hold more than one
//! call's worth of entries, and must never skip a number: an unexpected position halts it, with a message.

use std::{iter, sync::Arc, time::Duration};

use millrace_crds::status_api::PublisherState;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::{
    RecentCommits,
    outcomes::{Outcomes, Previous},
    render,
    state::{Reported, lag},
};
use crate::{
    domain::{Seq, SeqRange, Watermarks},
    store::{self, SinkState},
    streams::{self, Notice, Output, Published, Streams},
    telemetry::{metrics as names, trace},
};

/// Pause before the next look at a cursor that is above the highest publishable number.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the cursor is moved over outcomes that the sink does not carry.
const IDLE: Duration = Duration::from_secs(1);
/// How often an idle publisher reads its cursor: the Redis that holds it may have been rewound and the shard's not, and
/// nothing else reports that. One read for each publisher: 64 shards and 16 sinks are some 200 a second.
const LOOK: Duration = Duration::from_secs(5);
/// Numbers after which the cursor is moved over outcomes that the sink does not carry, also while others come.
const LEAP: i64 = 100_000;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A publisher of a Redis sink and what it needs.
#[derive(Debug)]
pub(super) struct Publisher {
    /// The outcomes to publish.
    pub(super) outcomes: Outcomes,
    /// Redis.
    pub(super) streams: Streams,
    /// Fencing token of the shard's owner.
    pub(super) token: String,
    /// Recent commits of the shard.
    pub(super) recent: Arc<RecentCommits>,
    /// The sink's stream and cursor.
    pub(super) output: Output,
    /// The number after which the sink begins, once it was read.
    pub(super) begins_after: OnceCell<Seq>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Streams(#[from] streams::Error),
    #[error("{0}")]
    Halted(String),
    #[error("{0}")]
    Waiting(String),
}

/// Position of a publisher in the sequence numbers of its kind.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// The cursor in Redis.
    cursor: Seq,
    /// Up to where the publisher has read outcomes; at least the cursor.
    seen: Seq,
}

impl Position {
    fn at(cursor: Seq) -> Self {
        Self { cursor, seen: cursor }
    }
}

/// Entries to append next, and the number up to which outcomes were read for them.
struct Next {
    notices: Vec<Notice>,
    upto: Seq,
}

/// State of a publisher between two passes.
struct Progress {
    /// `None`: to be read from Redis.
    position: Option<Position>,
    /// Of the last pass.
    state: Reported,
    /// Before the next pass after a failure.
    pause: Duration,
}

impl Progress {
    fn new() -> Self {
        Self { position: None, state: Reported::default(), pause: FIRST_PAUSE }
    }

    fn end_pass(&mut self, outcome: Result<(), Error>) {
        let failure = match outcome {
            Ok(()) => None,
            Err(Error::Halted(detail)) => Some(SinkState { state: PublisherState::Halted, detail }),
            Err(Error::Waiting(detail)) => Some(SinkState { state: PublisherState::Waiting, detail }),
            Err(error) => Some(SinkState { state: PublisherState::Failing, detail: error.to_string() }),
        };
        self.pause = if failure.is_some() { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        self.state.set(failure);
    }
}

/// Measures how old records are whose outcomes were published.
#[expect(clippy::disallowed_methods, reason = "a measure of people's time; nothing is decided by it")]
fn measure(sink: &str, notices: &[Notice]) {
    let (seconds, now) = (metrics::histogram!(names::PUBLISH_SECONDS, "sink" => sink.to_owned()), chrono::Utc::now());
    for received_at in notices.iter().filter_map(|notice| notice.received_at) {
        seconds.record((now - received_at).to_std().unwrap_or_default().as_secs_f64());
    }
}

impl Publisher {
    /// Publishes until `stop` is cancelled, then the committed rest, as long as `drain` is not cancelled.
    pub(super) async fn run(self, stop: CancellationToken, drain: CancellationToken) {
        let mut numbers = self.recent.numbers();
        let mut resets = self.recent.resets();
        let mut progress = Progress::new();
        // Until the owner has read the numbers of the shard no position can be judged.
        tokio::select! {
            known = numbers.wait_for(Option::is_some) => if known.is_err() { return },
            () = stop.cancelled() => return,
        }
        let lag = lag(&self.output.sink, self.outcomes.shard);
        loop {
            let highest = self.outcomes.highest(numbers.borrow_and_update().unwrap_or_default());
            if self.recent.resets() != resets {
                // Redis may have been rewound with stream and cursor, or Postgres with the publisher's state, and no new
                // record may come for long.
                resets = self.recent.resets();
                progress.position = None;
                progress.state.store_again();
            }
            let outcome = tokio::select! {
                outcome = store::within(self.pass(&mut progress.position, highest)) => outcome,
                () = drain.cancelled() => return,
            };
            progress.end_pass(outcome);
            let (store, sink, shard) = (&self.outcomes.store, &self.output.sink, self.outcomes.shard);
            progress.state.report(store, sink, shard, &self.token).await;
            if let Some(position) = progress.position {
                lag.set(highest.above(position.seen) as f64);
            }
            let has_failed = progress.state.failure.is_some();
            let may_stop = has_failed || progress.position.is_some_and(|position| position.seen >= highest);
            if may_stop && stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = self.wait(&mut progress, highest, &mut numbers) => {}
                () = stop.cancelled(), if may_stop => {}
                () = drain.cancelled() => return,
            }
        }
    }

    /// Waits until there is a reason for the next pass.
    async fn wait(&self, progress: &mut Progress, highest: Seq, numbers: &mut watch::Receiver<Option<Watermarks>>) {
        let position = progress.position.filter(|_| progress.state.failure.is_none());
        let Some(Position { cursor, seen }) = position else {
            progress.position = None;
            return tokio::time::sleep(progress.pause).await;
        };
        if seen < highest {
        } else if cursor < seen || !progress.state.is_stored() {
            tokio::time::timeout(IDLE, numbers.changed()).await.ok();
        } else if cursor > highest {
            // Not the position that this publisher left: the next pass compares it with Postgres.
            tokio::time::timeout(AGAIN, numbers.changed()).await.ok();
        } else if tokio::time::timeout(LOOK, numbers.changed()).await.is_err() {
            progress.position = None;
        }
    }

    /// One append, at most; leaves `at` at the position after it.
    async fn pass(&self, at: &mut Option<Position>, highest: Seq) -> Result<(), Error> {
        let position = match *at {
            Some(position) => position,
            None => match self.streams.cursor(&self.output, self.outcomes.shard).await? {
                Some(cursor) => Position::at(cursor),
                None => return Err(self.gone()),
            },
        };
        let Position { cursor, seen } = position;
        if cursor > highest {
            self.check_stored(cursor).await?;
            *at = Some(Position::at(cursor));
            return Ok(());
        }
        let next = self.next(seen, highest).await?;
        // With nothing to append, the cursor is moved when the publisher has been idle for a while, or is far behind: what
        // is above it is not deleted.
        if next.notices.is_empty() && seen < highest && next.upto.above(cursor) < LEAP {
            *at = Some(Position { cursor, seen: next.upto });
        } else if next.upto == cursor {
            *at = Some(Position::at(cursor));
        } else {
            assert!(
                cursor <= next.upto && next.upto <= highest,
                "only committed outcomes above the cursor are published"
            );
            self.append(at, cursor, &next).await?;
        }
        Ok(())
    }

    /// Compares a cursor that is above the recent commits with the numbers in Postgres.
    async fn check_stored(&self, cursor: Seq) -> Result<(), Error> {
        let stored =
            self.outcomes.store.progress_of(self.outcomes.shard).await?.watermarks.of(self.outcomes.kind.sequence());
        if cursor <= stored {
            return Ok(());
        }
        Err(Error::Halted(format!(
            "the cursor is {cursor}, above {stored}, the highest number of shard {}: Postgres was rewound, or the cursor \
             is another's; millrace sinks resume {} --from now|beginning",
            self.outcomes.shard, self.output.sink
        )))
    }

    async fn append(&self, at: &mut Option<Position>, cursor: Seq, next: &Next) -> Result<(), Error> {
        let traceparents = next.notices.iter().filter_map(|notice| notice.traceparent.as_deref());
        let _traced =
            trace::children(|| tracing::info_span!("publish.record.append", sink = self.output.sink), traceparents);
        let output = &self.output;
        crate::fault::point("before_publish");
        let kind = render::event_type(self.outcomes.kind);
        let range = SeqRange { after: cursor, upto: next.upto };
        let published = self.streams.publish(output, self.outcomes.shard, kind, range, &next.notices).await?;
        crate::fault::point("after_publish");
        match published {
            Published::All { trimmed_unread } => {
                metrics::counter!(names::PUBLISHED, "sink" => output.sink.clone()).increment(next.notices.len() as u64);
                measure(&output.sink, &next.notices);
                if trimmed_unread > 0 {
                    metrics::counter!(names::TRIMMED_UNREAD, "sink" => output.sink.clone())
                        .increment(trimmed_unread as u64);
                    tracing::warn!(
                        event = "publish.entries.trimmed_unread",
                        sink = output.sink,
                        shard = self.outcomes.shard.get(),
                        trimmed_unread,
                        "entries were trimmed from a sink's stream before a consumer group read them"
                    );
                }
                *at = Some(Position::at(next.upto));
            }
            Published::Full { cursor, group } => {
                *at = Some(Position::at(cursor));
                return Err(Error::Waiting(match group {
                    Some(group) => format!(
                        "{} is at its maxLength of {}: group {group} has not acknowledged",
                        output.stream, output.max_length
                    ),
                    None => format!(
                        "NoConsumerGroup: {} is at its maxLength of {} and has no consumer group: make one, or set overflow: Trim",
                        output.stream, output.max_length
                    ),
                }));
            }
            // A retry of an append that took effect, another worker, or a rewound Redis: the cursor is right.
            Published::Moved(cursor) => *at = Some(Position::at(cursor)),
            Published::Gone => return Err(self.gone()),
        }
        Ok(())
    }

    fn gone(&self) -> Error {
        let output = &self.output;
        Error::Halted(format!(
            "the cursor beside {} is gone or of another start; millrace sinks resume {} --from now|beginning",
            output.stream, output.sink
        ))
    }

    /// Outcomes above `seen`. With a filter each names the one of its destination before it.
    async fn next(&self, seen: Seq, highest: Seq) -> Result<Next, Error> {
        let next = self.outcomes.above(seen, highest).await?;
        let mut notices: Vec<Notice> = Vec::with_capacity(next.outcomes.len());
        if self.outcomes.filter.is_some() && !next.outcomes.is_empty() {
            let begins = self.begins_after().await?;
            let previous = Previous::above(begins).of(&self.outcomes, &next.outcomes).await?;
            let previous = previous.into_iter().map(|(_, previous)| previous);
            for (outcome, previous) in next.outcomes.into_iter().zip(previous) {
                let all = iter::once(outcome.notice).chain(outcome.more);
                notices.extend(all.map(|notice| {
                    let data = render::with_previous(&notice.data, previous);
                    Notice { data, ..notice }
                }));
            }
        } else {
            let all = next.outcomes.into_iter().flat_map(|outcome| iter::once(outcome.notice).chain(outcome.more));
            notices.extend(all);
        }
        Ok(Next { notices, upto: next.upto })
    }

    /// The number after which the sink begins. Another start is another cursor, with a publisher of its own.
    async fn begins_after(&self) -> Result<Seq, Error> {
        let read = async || {
            let starts = self.outcomes.store.sink_starts(&self.output.sink).await?;
            let start = starts.into_iter().find(|start| start.shard == self.outcomes.shard);
            Ok::<Seq, Error>(start.map(|start| start.seq).unwrap_or_default())
        };
        self.begins_after.get_or_try_init(read).await.copied()
    }
}
