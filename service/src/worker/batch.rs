//! From entries to what is committed: parse, decide, write; the culprit of a failing batch is isolated by halving.
//!
//! Only the data may be blamed for what the data did: everything else waits with back-off and counts no attempt.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use super::shard::{Error, Shard, current};
use crate::{
    domain::{
        self, DeadLetterReason, Decision, Entry, Invalid, Item, Policy, Record, RecordId, Refusal, Watermarks, code,
    },
    fault,
    store::{self, LogRow},
    telemetry::{limits, metrics as names, trace},
};

/// Deliveries after which an entry is taken alone and noted before it is decided.
const POISON_CANDIDATE: u64 = 3;
/// Notes without an outcome after which an entry becomes a dead letter.
const ATTEMPTS: i32 = 3;
/// Most requests that a batch's span is linked to.
const LINKS: usize = 32;

/// Why a batch was not committed.
enum Failure {
    /// A data error.
    Data(Refusal),
    /// Something that the data can do nothing for.
    Other(Error),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match &error {
            store::Error::Sql(sqlx::Error::Database(database)) if error.is_data_error() => {
                let state = database.code().unwrap_or_default().into_owned();
                let detail = format!("Postgres refuses it with SQLSTATE {state}");
                Self::Data(Refusal::new(DeadLetterReason::RefusedByStore, detail))
            }
            _ => Self::Other(error.into()),
        }
    }
}

impl Shard {
    /// Applies entries in order; answers the shard's highest numbers. On an error some may be applied: they are found so
    /// when they are delivered again.
    pub(super) async fn decide_and_commit(&mut self, entries: Vec<Entry>) -> Result<Watermarks, Error> {
        let mut numbers = Watermarks::default();
        let mut rest: VecDeque<Entry> = entries.into();
        while let Some(first) = rest.front() {
            let poison_candidate = first.deliveries >= POISON_CANDIDATE;
            let together = if poison_candidate {
                1
            } else {
                rest.iter().take_while(|entry| entry.deliveries < POISON_CANDIDATE).count()
            };
            let batch: Vec<Entry> = rest.drain(..together).collect();
            numbers = if poison_candidate {
                self.settle_noted(batch).await?
            } else {
                let context = Arc::clone(&self.context);
                let together = context.deciding.read().await;
                let items = read(batch);
                drop(together);
                self.settle_batch(items, false).await?
            };
        }
        Ok(numbers)
    }

    /// Applies an entry that was delivered often: noted first, so that a worker that dies of it leaves its note. Nothing
    /// else is decided here meanwhile, and the note does not stand while a server is waited for: it would be blamed for
    /// what it did not do.
    async fn settle_noted(&mut self, batch: Vec<Entry>) -> Result<Watermarks, Error> {
        let Some(entry) = batch.first() else { return Ok(Watermarks::default()) };
        let (context, stream_id, digest) =
            (Arc::clone(&self.context), entry.id.to_string(), Sha256::digest(&entry.payload));
        // Of the note that stands.
        let mut noted = None;
        let mut pause = Duration::ZERO;
        loop {
            let alone = context.deciding.write().await;
            let attempts = match noted {
                Some(attempts) => attempts,
                None => store::within(context.store.note_attempt(self.shard, &stream_id, &digest)).await?,
            };
            if limits::POISON_CANDIDATE.allows(Instant::now()) {
                tracing::warn!(
                    event = "worker.entry.poison_candidate",
                    shard = self.shard.get(),
                    stream_id,
                    attempts,
                    "an entry is taken alone, because it was delivered several times"
                );
            }
            let items = if attempts > ATTEMPTS {
                let detail = format!("a worker ended {ATTEMPTS} times while it decided this entry");
                batch
                    .iter()
                    .map(|entry| isolate(entry.clone(), Refusal::new(DeadLetterReason::CrashedWorker, detail.clone())))
                    .collect()
            } else {
                read(batch.clone())
            };
            let outcome = self.settle_batch(items, true).await;
            let withdrawn =
                store::within(context.store.withdraw_attempt(self.shard, &stream_id, outcome.is_ok())).await;
            drop(alone);
            noted = withdrawn.is_err().then_some(attempts);
            if outcome.is_ok() {
                self.waited(&mut pause);
            }
            match outcome {
                Ok(numbers) => return withdrawn.map(|()| numbers).map_err(Error::from),
                Err(error) if error.is_waited_for() => self.retry(&mut pause, &error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// `alone`: nothing else is decided here meanwhile, and nothing is waited for.
    async fn settle_batch(&mut self, items: Vec<Item>, alone: bool) -> Result<Watermarks, Error> {
        let context = Arc::clone(&self.context);
        let mut numbers = Watermarks::default();
        // Batches still to be committed, in order.
        let mut rest = VecDeque::from([items]);
        let mut pause = Duration::ZERO;
        while let Some(mut batch) = rest.pop_front() {
            let together = if alone { None } else { Some(context.deciding.read().await) };
            let committed = store::within(self.commit(&batch)).await;
            drop(together);
            match committed {
                Ok(after) => {
                    numbers = after;
                    self.waited(&mut pause);
                    self.beat.record();
                }
                Err(Failure::Data(refusal)) => {
                    if batch.len() > 1 {
                        let right = batch.split_off(batch.len() / 2);
                        rest.push_front(right);
                    } else if let Some(item) = batch.pop() {
                        let (shard, stream_id) = (self.shard.get(), item.entry.id);
                        if limits::ISOLATED.allows(Instant::now()) {
                            tracing::warn!(event = "worker.entry.isolated", shard, %stream_id, reason = refusal.reason.as_str(), detail = refusal.detail, "an entry with a data error was isolated");
                        }
                        if item.isolated.is_some() && item.record.is_err() {
                            let error = store::Error::Refused(format!("a dead letter was refused: {}", refusal.detail));
                            return Err(error.into());
                        }
                        // Isolated once, it keeps its id; twice, nothing of it is looked at any more.
                        let again = item.isolated.is_some();
                        let mut item = Item { isolated: Some(refusal), ..item };
                        if again {
                            item.record = Err(unread());
                        }
                        batch.push(item);
                    }
                    rest.push_front(batch);
                }
                Err(Failure::Other(Error::Store(store::Error::Raced))) => {
                    tracing::debug!(
                        event = "worker.batch.raced",
                        shard = self.shard.get(),
                        "another shard took an id first; the batch is decided again"
                    );
                    rest.push_front(batch);
                }
                // What is in hand is pending, and is taken over again once it is known where everything stands.
                Err(Failure::Other(error)) if alone || !error.is_waited_for() => return Err(error),
                Err(Failure::Other(error)) => {
                    rest.push_front(batch);
                    self.retry(&mut pause, &error).await?;
                }
            }
        }
        Ok(numbers)
    }

    /// Keeps what is in hand while something is waited for, unless the shard is to be given back.
    async fn retry(&self, pause: &mut Duration, error: &Error) -> Result<(), Error> {
        if self.give_back.is_cancelled() {
            return Err(Error::GivenBack);
        }
        self.say_and_wait(pause, error).await;
        // A reconnect empties the lanes' memory.
        self.recent.clear();
        Ok(())
    }

    /// Decides and writes a batch in one transaction.
    async fn commit(&mut self, batch: &[Item]) -> Result<Watermarks, Failure> {
        let span = tracing::info_span!("process.batch.commit", shard = self.shard.get(), entries = batch.len());
        trace::link(&span, batch.iter().filter_map(|item| item.entry.traceparent.as_deref()).take(LINKS));
        self.try_commit(batch).instrument(span).await
    }

    async fn try_commit(&mut self, batch: &[Item]) -> Result<Watermarks, Failure> {
        let started = Instant::now();
        let active_manifest = self.context.active_manifest.borrow().clone();
        let (policy, shards) = (&active_manifest.policy, active_manifest.manifest.spec.shards);
        let fence = current(&self.fence);
        let mut exclusive = false;
        loop {
            let mut commit =
                self.context.store.begin_commit(self.shard, shards, &fence, policy.version, exclusive).await?;
            if !self.log.is_where(&commit) {
                return Err(Failure::Other(Error::Elsewhere));
            }
            let mut known = commit.known(batch, policy).await?;
            if fault::planted("redelivery_counted") {
                known.lose_entries();
            }
            let (position, now) = (commit.position, commit.now);
            let decide = || {
                let at_stake = batch.iter().filter(|item| item.isolated.is_none());
                fault::deciding(at_stake.filter_map(|item| Some(item.record.as_ref().ok()?.record_id.as_str())));
                domain::decide(batch, known, policy, position)
            };
            let decision = catch_unwind(AssertUnwindSafe(decide)).map_err(|_| {
                let detail = "deciding it panicked; the log says where";
                Failure::Data(Refusal::new(DeadLetterReason::Panicked, detail))
            })?;
            if !exclusive && decision.dead_letters.iter().any(|dead_letter| dead_letter.record_id.is_some()) {
                exclusive = true;
                continue;
            }
            let written = commit.write(batch, &decision, policy.version).await?;
            (self.log.watermarks, self.log.duplicates) = (written.watermarks, written.duplicates);
            self.policy_version = policy.version;
            self.repeats = decision.ends_in_redelivery;
            self.count(batch, &decision, started, now);
            self.log(&decision, policy);
            self.recent.push(rows(batch, decision, now));
            return Ok(written.watermarks);
        }
    }

    fn count(&self, batch: &[Item], decision: &Decision, started: Instant, now: DateTime<Utc>) {
        metrics::histogram!(names::BATCH_ENTRIES).record(batch.len() as f64);
        metrics::histogram!(names::COMMIT_SECONDS).record(started.elapsed().as_secs_f64());
        for new in &decision.records {
            let took = (now - batch[new.entry].entry.received_at).to_std().unwrap_or_default();
            metrics::histogram!(names::PROCESS_SECONDS).record(took.as_secs_f64());
        }
        for (name, n) in [
            (names::PROCESSED, decision.records.len()),
            (names::DUPLICATES, decision.duplicates.len()),
            (names::CONFLICTS, decision.conflicts.len()),
            (names::ALERTS, decision.alerts as usize),
            (names::REDELIVERED, decision.redelivered),
        ] {
            metrics::counter!(name).increment(n as u64);
        }
        for dead_letter in &decision.dead_letters {
            metrics::counter!(names::DEAD_LETTERS, "reason" => dead_letter.reason.as_str()).increment(1);
        }
    }

    /// Logs what a person may have to look at: any sender can cause any number of it, so lines are limited.
    fn log(&self, decision: &Decision, policy: &Policy) {
        let (shard, now) = (self.shard.get(), Instant::now());
        for dead_letter in &decision.dead_letters {
            let limit =
                if dead_letter.reason.is_fault() { &limits::DEAD_LETTERED_BY_FAULT } else { &limits::DEAD_LETTERED };
            if limit.allows(now) {
                let record_id = dead_letter.record_id.as_ref().map(RecordId::as_str);
                tracing::warn!(
                    event = "worker.record.dead_lettered",
                    shard,
                    n = dead_letter.seq.get(),
                    record_id,
                    reason = dead_letter.reason.as_str(),
                    "a record became a dead letter"
                );
            }
        }
        for conflict in &decision.conflicts {
            if limits::CONFLICTED.allows(now) {
                let record_id = conflict.record.record_id.as_str();
                tracing::warn!(
                    event = "worker.record.conflicted",
                    shard,
                    n = conflict.seq.get(),
                    record_id,
                    "a record conflicts with another of the same id"
                );
            }
        }
        if decision.without_threshold == 0 {
            return;
        }
        for new in &decision.records {
            let unit = new.record.unit.as_str();
            if policy.lacks_threshold(unit) && limits::UNITS.is_first(unit) {
                tracing::warn!(
                    event = "worker.unit.without_threshold",
                    shard,
                    seq = new.seq.get(),
                    unit,
                    "a record's unit has no threshold, other units have one"
                );
            }
        }
    }
}

/// Parses entries; one whose parsing panics is condemned at once.
fn read(entries: Vec<Entry>) -> Vec<Item> {
    entries
        .into_iter()
        .map(|entry| match catch_unwind(|| Record::parse(&entry.payload)) {
            Ok(record) => Item { entry, record: record.map(Arc::new), isolated: None },
            Err(_) => {
                let refusal = Refusal::new(DeadLetterReason::Panicked, "reading it panicked; the log says where");
                Item { entry, record: Err(unread()), isolated: Some(refusal) }
            }
        })
        .collect()
}

/// An entry that becomes a dead letter whatever it says; its id is kept where it can be read.
fn isolate(entry: Entry, refusal: Refusal) -> Item {
    let record = catch_unwind(|| Record::parse(&entry.payload)).unwrap_or_else(|_| Err(unread())).map(Arc::new);
    Item { entry, record, isolated: Some(refusal) }
}

fn unread() -> Invalid {
    Invalid::new(code::INVALID_VALUE, "", "was not read")
}

/// What the lanes get.
fn rows(batch: &[Item], decision: Decision, now: DateTime<Utc>) -> Vec<LogRow> {
    decision
        .records
        .into_iter()
        .map(|new| {
            let entry = &batch[new.entry].entry;
            LogRow {
                seq: new.seq,
                record: new.record,
                received_at: entry.received_at,
                processed_at: now,
                previous: new.previous,
                threshold: new.threshold,
                traceparent: entry.traceparent.clone(),
            }
        })
        .collect()
}
