//! One publisher: a shard's outcomes of one kind to one sink, in order, from where the sink's cursor stands.
//!
//! Takes rows from memory when it is close behind, from the log when it is far behind. Must never hold more than one
//! call's worth of entries, and must never skip a number: what it cannot place halts it, and it says so.

use std::{sync::Arc, time::Duration};

use millrace_crds::SinkEvent;
use tokio_util::sync::CancellationToken;

use super::{ActiveSink, RecentCommits, render};
use crate::{
    store::{self, SinkState, Store},
    streams::{self, Notice, Published, Streams},
    telemetry::metrics as names,
};

/// Most entries of one append.
const ENTRIES: usize = 200;
/// How far one look into the log goes, for kinds that skip rows.
const WINDOW: i64 = 10_000;
/// How soon a cursor is looked at again that is above what may be published.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the cursor is moved over rows that the sink does not carry.
const IDLE: Duration = Duration::from_secs(1);
/// How often an idle publisher looks where its cursor stands: the Redis that holds it may have been rewound and the shard's not, so
/// that nothing else tells of it. One read for each publisher: 64 shards and 16 sinks are some 200 a second.
const LOOK: Duration = Duration::from_secs(5);

/// A publisher and what it needs.
#[derive(Debug)]
pub struct Publisher {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The shard.
    pub shard: u16,
    /// What its owner holds it by.
    pub token: String,
    /// What was committed last.
    pub recent: Arc<RecentCommits>,
    /// Where to.
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

/// What to append next, and up to which number the log was looked through.
struct Next {
    notices: Vec<Notice>,
    upto: i64,
}

impl Publisher {
    /// Publishes until `stop` is cancelled, then up to what is committed, as long as `drain` lasts.
    pub async fn run(self, stop: CancellationToken, drain: CancellationToken) {
        let mut numbers = self.recent.numbers();
        // What was said last of its state, and whether Postgres has it.
        let (mut told, mut noted) = (None, false);
        let mut pause = Duration::from_millis(50);
        // The cursor in Redis, and up to where this publisher has looked through the log.
        let mut at: Option<(i64, i64)> = None;
        let mut resets = self.recent.resets();
        // Before its owner knows where the log stands nothing fits and nothing is wrong.
        tokio::select! {
            known = numbers.wait_for(Option::is_some) => if known.is_err() { return },
            () = stop.cancelled() => return,
        }
        loop {
            let highest = Store::number_of(self.sink.event, numbers.borrow_and_update().unwrap_or_default());
            if self.recent.resets() != resets {
                // Redis may have been rewound with stream and cursor, or Postgres with the publisher's state, and nothing new may
                // come for long.
                resets = self.recent.resets();
                (at, noted) = (None, false);
            }
            let outcome = tokio::select! {
                outcome = store::within(self.pass(&mut at, highest)) => outcome,
                () = drain.cancelled() => return,
            };
            let state = match outcome {
                Ok(()) => {
                    pause = Duration::from_millis(50);
                    None
                }
                Err(Error::Halted(detail)) => Some(SinkState { state: "halted", detail }),
                Err(Error::Waiting(detail)) => Some(SinkState { state: "waiting", detail }),
                Err(error) => Some(SinkState { state: "failing", detail: error.to_string() }),
            };
            if told.as_ref() != Some(&state) {
                self.tell(state.as_ref());
                (told, noted) = (Some(state.clone()), false);
            }
            if !noted {
                noted = self.note(state.as_ref()).await;
            }
            let (cursor, seen) = at.unwrap_or((-1, -1));
            if let Some((_, seen)) = at {
                metrics::gauge!(
                    names::SINK_LAG, "sink" => self.sink.output.sink.clone(), "shard" => self.shard.to_string()
                )
                .set((highest - seen).max(0) as f64);
            }
            if state.is_some() {
                pause = (pause * 2).min(Duration::from_secs(1));
                at = None;
                if stop.is_cancelled() {
                    return;
                }
            } else if seen >= highest && stop.is_cancelled() {
                return;
            }
            let wait = async {
                if state.is_some() {
                    tokio::time::sleep(pause).await;
                } else if seen < highest {
                } else if cursor < seen || !noted {
                    tokio::time::timeout(IDLE, numbers.changed()).await.ok();
                } else if cursor > highest {
                    // It is not where this publisher left it: whether that can be is to be found out.
                    tokio::time::timeout(AGAIN, numbers.changed()).await.ok();
                } else if tokio::time::timeout(LOOK, numbers.changed()).await.is_err() {
                    at = None;
                }
            };
            tokio::select! {
                () = wait => {}
                () = stop.cancelled(), if seen >= highest || state.is_some() => {}
                () = drain.cancelled() => return,
            }
        }
    }

    /// One append, at most; leaves `at` where the publisher stands after it.
    async fn pass(&self, at: &mut Option<(i64, i64)>, highest: i64) -> Result<(), Error> {
        let (cursor, seen) = match *at {
            Some(at) => at,
            None => {
                let Some(cursor) = self.streams.cursor(&self.sink.output, self.shard).await? else {
                    return Err(self.gone());
                };
                (cursor, cursor)
            }
        };
        if cursor > highest {
            let stored = Store::number_of(self.sink.event, self.store.progress_of(self.shard).await?.numbers);
            if cursor > stored {
                return Err(Error::Halted(format!(
                    "the cursor stands at {cursor}, above {stored}, the highest number of shard {}: Postgres went back, or \
                     the cursor is another's; millrace sinks resume {} --from now|beginning",
                    self.shard, self.sink.output.sink
                )));
            }
            *at = Some((cursor, cursor));
            return Ok(());
        }
        let next = self.next(seen, highest).await?;
        // With nothing to append, the cursor is moved when the publisher has been idle for a while.
        if next.notices.is_empty() && seen < highest {
            *at = Some((cursor, next.upto));
            return Ok(());
        }
        if next.upto == cursor {
            *at = Some((cursor, cursor));
            return Ok(());
        }
        let kind = render::event_type(self.sink.event);
        crate::fault::point("before_publish");
        let expected = if crate::fault::planted("append_uncompared") {
            self.streams.cursor(&self.sink.output, self.shard).await?.unwrap_or(cursor)
        } else {
            cursor
        };
        let published =
            self.streams.publish(&self.sink.output, self.shard, kind, (expected, next.upto), &next.notices).await?;
        crate::fault::point("after_publish");
        let sink = self.sink.output.sink.clone();
        match published {
            Published::All { unread_lost } => {
                metrics::counter!(names::PUBLISHED, "sink" => sink.clone()).increment(next.notices.len() as u64);
                if unread_lost > 0 {
                    metrics::counter!(names::UNREAD_LOST, "sink" => sink).increment(unread_lost as u64);
                    tracing::warn!(
                        event = "publish.entries.trimmed_unread",
                        sink = self.sink.output.sink,
                        shard = self.shard,
                        unread_lost,
                        "entries were trimmed from a sink's stream before a consumer group read them"
                    );
                }
                *at = Some((next.upto, next.upto));
            }
            Published::Full { cursor, group } => {
                *at = Some((cursor, cursor));
                let output = &self.sink.output;
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
            Published::Moved(cursor) => {
                // A retry of what took effect, another worker, or a Redis that was rewound: the cursor is right.
                *at = Some((cursor, cursor));
            }
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

    /// What comes behind `seen`.
    async fn next(&self, seen: i64, highest: i64) -> Result<Next, Error> {
        if seen >= highest {
            return Ok(Next { notices: Vec::new(), upto: seen });
        }
        let refused = match self.sink.event {
            SinkEvent::Processed | SinkEvent::Alert => return self.next_records(seen, highest).await,
            SinkEvent::DeadLettered => self.store.dead_letter_rows(self.shard, (seen, highest), ENTRIES as i64).await?,
            SinkEvent::Conflicted => self.store.conflict_rows(self.shard, (seen, highest), ENTRIES as i64).await?,
        };
        let notices: Vec<Notice> =
            refused.iter().map(|row| render::refused(self.shard, row, self.sink.event)).collect();
        let upto = if refused.len() < ENTRIES { highest } else { notices.last().map_or(seen, |notice| notice.number) };
        Ok(Next { notices, upto })
    }

    async fn next_records(&self, seen: i64, highest: i64) -> Result<Next, Error> {
        let alert = self.sink.event == SinkEvent::Alert;
        if let Some(rows) = self.recent.after((seen, highest), if alert { WINDOW as usize } else { ENTRIES }) {
            let mut upto = seen;
            let mut notices = Vec::new();
            for (batch, index) in &rows {
                let row = &batch[*index];
                if notices.len() == ENTRIES {
                    break;
                }
                upto = row.seq;
                if !alert || row.threshold.is_some() {
                    notices.push(render::record(self.shard, row, alert));
                }
            }
            return Ok(Next { notices, upto });
        }
        let end = highest.min(seen + WINDOW);
        let rows = self.store.log_rows(self.shard, (seen, end), alert, ENTRIES as i64).await?;
        metrics::counter!(names::LOG_READS, "sink" => self.sink.output.sink.clone()).increment(1);
        let upto = if rows.len() < ENTRIES { end } else { rows.last().map_or(end, |row| row.seq) };
        Ok(Next { notices: rows.iter().map(|row| render::record(self.shard, row, alert)).collect(), upto })
    }

    /// Says that the publisher's state changed: in the log, and as a metric.
    fn tell(&self, state: Option<&SinkState>) {
        let (sink, shard) = (&self.sink.output.sink, self.shard);
        match state {
            Some(SinkState { state: "halted", detail }) => tracing::error!(
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
                state,
                detail,
                "a publisher cannot publish and is retried"
            ),
            None => tracing::debug!(event = "publisher.running", sink, shard, "a publisher publishes again"),
        }
        let halted = state.is_some_and(|state| state.state == "halted");
        metrics::gauge!(names::SINK_HALTED, "sink" => sink.clone(), "shard" => shard.to_string()).set(if halted {
            1.0
        } else {
            0.0
        });
    }

    /// Notes the publisher's state in Postgres for `/stats`; true: it is there.
    async fn note(&self, state: Option<&SinkState>) -> bool {
        let (sink, shard) = (&self.sink.output.sink, self.shard);
        let noted = store::within(self.store.set_sink_state(sink, shard, Some(&self.token), state)).await;
        if let Err(error) = &noted {
            tracing::debug!(event = "publish.state.not_stored", sink, shard, error = %error, "the state of a publisher cannot be stored");
        }
        noted.is_ok()
    }
}
