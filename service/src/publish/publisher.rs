//! One publisher: a shard's outcomes of one kind to one sink, in order, from the sink's cursor on.
//!
//! Takes rows from recent commits when they are there, else from Postgres. Must never hold more than one
//! call's worth of entries, and must never skip a number: an unexpected position halts it, with a message.

use std::{sync::Arc, time::Duration};

use millrace_crds::status_api::PublisherState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ActiveSink, RecentCommits, render};
use crate::{
    domain::{OutcomeKind, Seq, SeqRange, ShardId, Watermarks},
    store::{self, Page, SinkState, Store},
    streams::{self, Notice, Published, Streams},
    telemetry::metrics as names,
};

/// Most entries of one append, and most bytes; one entry may be larger.
const PAGE: Page = Page { rows: 200, bytes: 128 << 10 };
/// Most numbers that one read of the log covers, for kinds that skip rows.
const WINDOW: usize = 10_000;
/// Pause before the next look at a cursor that is above the highest publishable number.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the cursor is moved over outcomes that the sink does not carry.
const IDLE: Duration = Duration::from_secs(1);
/// How often an idle publisher reads its cursor: the Redis that holds it may have been rewound and the shard's not, and
/// nothing else reports that. One read for each publisher: 64 shards and 16 sinks are some 200 a second.
const LOOK: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A publisher and what it needs.
#[derive(Debug)]
pub struct Publisher {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The shard.
    pub shard: ShardId,
    /// Fencing token of its owner.
    pub token: String,
    /// Recent commits of the shard.
    pub recent: Arc<RecentCommits>,
    /// The sink.
    pub sink: ActiveSink,
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
    /// Of the last pass; `None`: it succeeded.
    failure: Option<SinkState>,
    /// Whether log and metric have this failure, or its absence.
    is_reported: bool,
    /// Whether Postgres has it.
    is_stored: bool,
    /// Before the next pass after a failure.
    pause: Duration,
}

impl Progress {
    fn new() -> Self {
        Self { position: None, failure: None, is_reported: false, is_stored: false, pause: FIRST_PAUSE }
    }

    fn end_pass(&mut self, outcome: Result<(), Error>) {
        let failure = match outcome {
            Ok(()) => None,
            Err(Error::Halted(detail)) => Some(SinkState { state: PublisherState::Halted, detail }),
            Err(Error::Waiting(detail)) => Some(SinkState { state: PublisherState::Waiting, detail }),
            Err(error) => Some(SinkState { state: PublisherState::Failing, detail: error.to_string() }),
        };
        self.pause = if failure.is_some() { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        if self.failure != failure {
            (self.is_reported, self.is_stored) = (false, false);
        }
        self.failure = failure;
    }
}

impl Publisher {
    /// Publishes until `stop` is cancelled, then the committed rest, as long as `drain` is not cancelled.
    pub async fn run(self, stop: CancellationToken, drain: CancellationToken) {
        let mut numbers = self.recent.numbers();
        let mut resets = self.recent.resets();
        let mut progress = Progress::new();
        // Until the owner has read the numbers of the shard no position can be judged.
        tokio::select! {
            known = numbers.wait_for(Option::is_some) => if known.is_err() { return },
            () = stop.cancelled() => return,
        }
        loop {
            let highest = numbers.borrow_and_update().unwrap_or_default().of(self.sink.kind.sequence());
            if self.recent.resets() != resets {
                // Redis may have been rewound with stream and cursor, or Postgres with the publisher's state, and no new
                // record may come for long.
                resets = self.recent.resets();
                (progress.position, progress.is_stored) = (None, false);
            }
            let outcome = tokio::select! {
                outcome = store::within(self.pass(&mut progress.position, highest)) => outcome,
                () = drain.cancelled() => return,
            };
            progress.end_pass(outcome);
            self.report(&mut progress, highest).await;
            let has_failed = progress.failure.is_some();
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
        let position = progress.position.filter(|_| progress.failure.is_none());
        let Some(Position { cursor, seen }) = position else {
            progress.position = None;
            return tokio::time::sleep(progress.pause).await;
        };
        if seen < highest {
        } else if cursor < seen || !progress.is_stored {
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
            None => match self.streams.cursor(&self.sink.output, self.shard).await? {
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
        // With nothing to append, the cursor is moved when the publisher has been idle for a while.
        if next.notices.is_empty() && seen < highest {
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
        let stored = self.store.progress_of(self.shard).await?.watermarks.of(self.sink.kind.sequence());
        if cursor <= stored {
            return Ok(());
        }
        Err(Error::Halted(format!(
            "the cursor is {cursor}, above {stored}, the highest number of shard {}: Postgres was rewound, or the cursor \
             is another's; millrace sinks resume {} --from now|beginning",
            self.shard, self.sink.output.sink
        )))
    }

    async fn append(&self, at: &mut Option<Position>, cursor: Seq, next: &Next) -> Result<(), Error> {
        let output = &self.sink.output;
        crate::fault::point("before_publish");
        let kind = render::event_type(self.sink.kind);
        let range = SeqRange { after: cursor, upto: next.upto };
        let published = self.streams.publish(output, self.shard, kind, range, &next.notices).await?;
        crate::fault::point("after_publish");
        match published {
            Published::All { trimmed_unread } => {
                metrics::counter!(names::PUBLISHED, "sink" => output.sink.clone()).increment(next.notices.len() as u64);
                if trimmed_unread > 0 {
                    metrics::counter!(names::TRIMMED_UNREAD, "sink" => output.sink.clone())
                        .increment(trimmed_unread as u64);
                    tracing::warn!(
                        event = "publish.entries.trimmed_unread",
                        sink = output.sink,
                        shard = self.shard.get(),
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
        let output = &self.sink.output;
        Error::Halted(format!(
            "the cursor beside {} is gone or of another start; millrace sinks resume {} --from now|beginning",
            output.stream, output.sink
        ))
    }

    /// Outcomes above `seen`.
    async fn next(&self, seen: Seq, highest: Seq) -> Result<Next, Error> {
        if seen >= highest {
            return Ok(Next { notices: Vec::new(), upto: seen });
        }
        let range = SeqRange { after: seen, upto: highest };
        let refused = match self.sink.kind {
            OutcomeKind::Processed | OutcomeKind::Alert => return self.next_records(range).await,
            OutcomeKind::DeadLettered => self.store.dead_letter_rows(self.shard, range, PAGE).await?,
            OutcomeKind::Conflicted => self.store.conflict_rows(self.shard, range, PAGE).await?,
        };
        let notices = refused.rows.iter().map(|row| render::refused(self.shard, row, self.sink.kind));
        Ok(Next { notices: notices.collect(), upto: refused.upto })
    }

    async fn next_records(&self, range: SeqRange) -> Result<Next, Error> {
        let alert = self.sink.kind == OutcomeKind::Alert;
        if let Some(rows) = self.recent.after(range, if alert { WINDOW } else { PAGE.rows }) {
            let mut upto = range.after;
            let mut bytes = 0;
            let mut notices = Vec::new();
            for (batch, index) in &rows {
                let row = &batch[*index];
                if notices.len() == PAGE.rows || bytes >= PAGE.bytes {
                    break;
                }
                upto = row.seq;
                if !alert || row.threshold.is_some() {
                    let notice = render::record(self.shard, row, alert);
                    bytes += notice.data.len();
                    notices.push(notice);
                }
            }
            return Ok(Next { notices, upto });
        }
        let end = range.upto.min(range.after.plus(WINDOW));
        let log = self.store.log_rows(self.shard, SeqRange { upto: end, ..range }, alert, PAGE).await?;
        metrics::counter!(names::POSTGRES_READS, "sink" => self.sink.output.sink.clone()).increment(1);
        let notices = log.rows.iter().map(|row| render::record(self.shard, row, alert)).collect();
        Ok(Next { notices, upto: log.upto })
    }

    /// Reports a new failure, or its end, in the log, as a metric and to Postgres, and measures the lag.
    async fn report(&self, progress: &mut Progress, highest: Seq) {
        let (sink, shard) = (&self.sink.output.sink, self.shard);
        if !progress.is_reported {
            self.log(progress.failure.as_ref());
            progress.is_reported = true;
        }
        if !progress.is_stored {
            let stored = self.store.set_sink_state(sink, shard, Some(&self.token), progress.failure.as_ref());
            match store::within(stored).await {
                Ok(()) => progress.is_stored = true,
                Err(error) => tracing::debug!(
                    event = "publish.state.not_stored",
                    sink,
                    shard = shard.get(),
                    error = %error,
                    "the state of a publisher cannot be stored"
                ),
            }
        }
        if let Some(position) = progress.position {
            metrics::gauge!(names::SINK_LAG, "sink" => sink.clone(), "shard" => shard.to_string())
                .set(highest.above(position.seen) as f64);
        }
    }

    fn log(&self, failure: Option<&SinkState>) {
        let (sink, shard) = (&self.sink.output.sink, self.shard.get());
        match failure {
            Some(SinkState { state: PublisherState::Halted, detail }) => tracing::error!(
                event = "publisher.halted",
                sink,
                shard,
                detail,
                "a publisher is halted until the sink is resumed by hand"
            ),
            Some(SinkState { state, detail }) => tracing::warn!(
                event = "publisher.stopped",
                sink,
                shard,
                state = state.as_str(),
                detail,
                "a publisher cannot publish and is retried"
            ),
            None => tracing::debug!(event = "publisher.running", sink, shard, "a publisher publishes again"),
        }
        let halted = failure.is_some_and(|failure| failure.state == PublisherState::Halted);
        metrics::gauge!(names::SINK_HALTED, "sink" => sink.clone(), "shard" => shard.to_string())
            .set(f64::from(u8::from(halted)));
    }
}
