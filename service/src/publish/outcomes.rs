//! Reads of a shard's outcomes for one sink: from recent commits when they are there, else from Postgres.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use chrono::{DateTime, Utc};

use super::{RecentCommits, render};
use crate::{
    domain::{OutcomeFilter, OutcomeKind, Record, Seq, SeqRange, ShardId, Watermarks},
    store::{self, LogRow, Page, RefusedRow, Store},
    streams::Notice,
    telemetry::metrics as names,
};

/// Most outcomes of one read, and most bytes; one outcome may be larger.
pub(super) const PAGE: Page = Page { rows: 200, bytes: 128 << 10 };
/// Most numbers that one read of the log covers, for sinks that skip rows.
const WINDOW: usize = 10_000;
/// Most destinations whose last number is held.
const MOST_DESTINATIONS: usize = 10_000;

/// An outcome, as a sink publishes it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) notice: Notice,
    /// Further ones of the same number, in order: a record can take several totals over a threshold.
    pub(super) more: Vec<Notice>,
    of: Of,
}

#[derive(Debug)]
enum Of {
    Record(Arc<Record>),
    Refused(String),
}

impl Outcome {
    #[cfg(test)]
    pub(super) fn of_test(seq: Seq, destination: &str) -> Self {
        let notice = Notice {
            seq,
            id: format!("0-{seq}"),
            received_at: None,
            time: String::new(),
            traceparent: None,
            data: "{}".to_owned(),
        };
        Self { notice, more: Vec::new(), of: Of::Refused(destination.to_owned()) }
    }

    /// Bytes of its content.
    fn bytes(&self) -> usize {
        self.notice.data.len() + self.more.iter().map(|notice| notice.data.len()).sum::<usize>()
    }

    /// Its destination; empty where none is known.
    pub(super) fn destination(&self) -> &str {
        match &self.of {
            Of::Record(record) => record.destination_id.as_str(),
            Of::Refused(destination) => destination,
        }
    }
}

/// Outcomes in order, and the number up to which outcomes were read for them.
pub(super) struct NextOutcomes {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) upto: Seq,
}

/// The outcomes of one shard that a sink publishes.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub(super) store: Store,
    pub(super) shard: ShardId,
    pub(super) recent: Arc<RecentCommits>,
    pub(super) sink: String,
    pub(super) kind: OutcomeKind,
    pub(super) filter: OutcomeFilter,
    /// Before the first outcome that was committed at or after it the sink ends.
    pub(super) until: Option<DateTime<Utc>>,
    /// The last number before the end, once the first one behind it was read.
    pub(super) end: OnceLock<Seq>,
}

impl Outcomes {
    /// The highest number that may be published.
    pub(super) fn highest(&self, numbers: Watermarks) -> Seq {
        self.up_to_end(numbers.of(self.kind.sequence()))
    }

    /// Whether the sink ends before an outcome; then the number before it is the last one.
    fn ends_before(&self, seq: Seq, committed_at: DateTime<Utc>) -> bool {
        let ends = self.until.is_some_and(|until| committed_at >= until);
        if ends {
            let _ = self.end.set(Seq::new(seq.get() - 1));
        }
        ends
    }

    /// Outcomes above `seen`, up to `highest`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn above(&self, seen: Seq, highest: Seq) -> Result<NextOutcomes, store::Error> {
        if seen >= highest {
            return Ok(NextOutcomes { outcomes: Vec::new(), upto: seen });
        }
        let range = SeqRange { after: seen, upto: highest };
        match self.kind {
            OutcomeKind::Processed | OutcomeKind::Alert | OutcomeKind::TotalAlert => self.records(range).await,
            OutcomeKind::DeadLettered | OutcomeKind::Conflicted => {
                let refused = self.refused(range).await?;
                let rows = refused.rows.iter().take_while(|row| !self.ends_before(row.seq, row.noted_at));
                let rows = rows.filter(|row| self.filter.admits_destination(&row.destination_id));
                let outcomes = rows.map(|row| self.of_refused(row)).collect();
                Ok(NextOutcomes { outcomes, upto: self.up_to_end(refused.upto) })
            }
        }
    }

    /// The outcome of one number, admitted by the filter or not; `None`: the log no longer holds it.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn at(&self, seq: Seq) -> Result<Option<Outcome>, store::Error> {
        let range = SeqRange { after: Seq::new(seq.get() - 1), upto: seq };
        match self.kind {
            OutcomeKind::Processed | OutcomeKind::Alert | OutcomeKind::TotalAlert => {
                let log = self.store.log_rows(self.shard, range, self.kind, PAGE).await?;
                Ok(log.rows.first().and_then(|row| self.of_record(row)))
            }
            OutcomeKind::DeadLettered | OutcomeKind::Conflicted => {
                Ok(self.refused(range).await?.rows.first().map(|row| self.of_refused(row)))
            }
        }
    }

    async fn refused(&self, range: SeqRange) -> Result<store::LogPage<RefusedRow>, store::Error> {
        match self.kind {
            OutcomeKind::Conflicted => self.store.conflict_rows(self.shard, range, PAGE).await,
            _ => self.store.dead_letter_rows(self.shard, range, PAGE).await,
        }
    }

    async fn records(&self, range: SeqRange) -> Result<NextOutcomes, store::Error> {
        let is_sparse = self.kind != OutcomeKind::Processed || self.filter.is_some();
        let admitted = |row: &LogRow| self.of_record(row).filter(|_| self.filter.admits(&row.record));
        if let Some(rows) = self.recent.after(range, if is_sparse { WINDOW } else { PAGE.rows }) {
            let (mut upto, mut bytes, mut outcomes) = (range.after, 0, Vec::new());
            for (batch, index) in &rows {
                let row = &batch[*index];
                if outcomes.len() == PAGE.rows || bytes >= PAGE.bytes {
                    break;
                }
                if self.ends_before(row.seq, row.processed_at) {
                    break;
                }
                upto = row.seq;
                if let Some(outcome) = admitted(row) {
                    bytes += outcome.bytes();
                    outcomes.push(outcome);
                }
            }
            return Ok(NextOutcomes { outcomes, upto });
        }
        let end = range.upto.min(range.after.plus(WINDOW));
        let log = self.store.log_rows(self.shard, SeqRange { upto: end, ..range }, self.kind, PAGE).await?;
        metrics::counter!(names::POSTGRES_READS, "sink" => self.sink.clone()).increment(1);
        let rows = log.rows.iter().take_while(|row| !self.ends_before(row.seq, row.processed_at));
        let outcomes = rows.filter_map(admitted).collect();
        Ok(NextOutcomes { outcomes, upto: self.up_to_end(log.upto) })
    }

    fn up_to_end(&self, upto: Seq) -> Seq {
        self.end.get().map_or(upto, |end| upto.min(*end))
    }

    /// The outcome of a record; `None`: it has none of this kind.
    fn of_record(&self, row: &LogRow) -> Option<Outcome> {
        let alert = self.kind == OutcomeKind::Alert;
        let (notice, more) = if self.kind == OutcomeKind::TotalAlert {
            let mut notices = row.total_alerts.iter().map(|alert| render::total_alert(self.shard, row, alert));
            (notices.next()?, notices.collect())
        } else if alert && row.threshold.is_none() {
            return None;
        } else {
            (render::record(self.shard, row, alert), Vec::new())
        };
        Some(Outcome { notice, more, of: Of::Record(Arc::clone(&row.record)) })
    }

    fn of_refused(&self, row: &RefusedRow) -> Outcome {
        let notice = render::refused(self.shard, row, self.kind);
        Outcome { notice, more: Vec::new(), of: Of::Refused(row.destination_id.clone()) }
    }
}

/// The last number of each destination that was read lately.
#[derive(Debug)]
pub(super) struct Previous {
    /// No number up to it is a previous one: the sink began, or had another filter.
    after: Seq,
    last: HashMap<Arc<str>, Seq>,
}

impl Previous {
    pub(super) fn above(after: Seq) -> Self {
        Self { after, last: HashMap::new() }
    }

    /// For each outcome, which follow what was read, its destination with the number of the one before. One statement reads
    /// those that are not held.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn of(
        &mut self,
        of: &Outcomes,
        outcomes: &[Outcome],
    ) -> Result<Vec<(Arc<str>, Option<Seq>)>, store::Error> {
        if self.last.len() > MOST_DESTINATIONS {
            self.last.clear();
        }
        let mut unknown: Vec<(&str, Seq)> = Vec::new();
        for outcome in outcomes {
            let destination = outcome.destination();
            if !self.last.contains_key(destination) && !unknown.iter().any(|(other, _)| *other == destination) {
                unknown.push((destination, outcome.notice.seq));
            }
        }
        let found = match unknown.is_empty() {
            true => Vec::new(),
            false => of.store.outcomes_before(of.shard, of.kind, &of.filter, self.after, &unknown).await?,
        };
        let mut found: HashMap<&str, Option<Seq>> =
            unknown.into_iter().map(|(destination, _)| destination).zip(found).collect();
        let with_previous = outcomes.iter().map(|outcome| {
            let seq = outcome.notice.seq;
            let (destination, before) = match self.last.get_key_value(outcome.destination()) {
                Some((destination, last)) => (Arc::clone(destination), Some(*last)),
                None => (Arc::from(outcome.destination()), found.remove(outcome.destination()).flatten()),
            };
            self.last.insert(Arc::clone(&destination), seq);
            (destination, before.filter(|before| *before > self.after))
        });
        Ok(with_previous.collect())
    }

    /// The number before one outcome that was read before.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn of_one(of: &Outcomes, after: Seq, outcome: &Outcome) -> Result<Option<Seq>, store::Error> {
        let place = (outcome.destination(), outcome.notice.seq);
        Ok(of.store.outcomes_before(of.shard, of.kind, &of.filter, after, &[place]).await?.into_iter().next().flatten())
    }
}
