//! From entries to a commit: parse, decide, write. A record with a data error is isolated by halving the batch.
//!
//! Must never take an error for a data error that the data did not cause: for all others the worker backs off, and counts no
//! attempt.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use super::{
    loss,
    shard::{Error, Shard, current},
};
use crate::{
    domain::{
        self, DeadLetterReason, Decision, Entry, InputRecord, Invalid, Item, Policy, Record, RecordId, Refusal, code,
    },
    fault,
    store::{self, LogRow},
    telemetry::{limits, metrics as names, trace},
};

/// Deliveries after which the records of an entry are decided alone, each noted before.
const POISON_CANDIDATE: u64 = 3;
/// Notes without an outcome after which a record becomes a dead letter.
const ATTEMPTS: i32 = 3;
/// Maximum number of requests that the span of a batch is linked to.
const LINKS: usize = 32;

/// Why a batch was not committed.
enum Failure {
    /// A data error.
    Data(Refusal),
    /// An error that the data did not cause.
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
    /// Applies entries in order. On an error some may be applied: they are recognised when they are delivered again.
    pub(super) async fn decide_and_commit(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let mut records: Vec<InputRecord> = Vec::new();
        for entry in entries {
            if entry.deliveries >= POISON_CANDIDATE {
                self.apply_records(std::mem::take(&mut records)).await?;
                self.apply_candidate(entry).await?;
            } else {
                records.extend(entry.records);
            }
            if records.len() >= context.options.batch {
                self.apply_records(std::mem::take(&mut records)).await?;
            }
        }
        self.apply_records(records).await
    }

    async fn apply_records(&mut self, mut records: Vec<InputRecord>) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(context.options.batch));
            let together = context.deciding.read().await;
            let items = std::mem::replace(&mut records, rest).into_iter().map(read).collect();
            drop(together);
            self.apply_batch(items, false).await?;
        }
        Ok(())
    }

    /// Applies an entry that was delivered often, record by record.
    async fn apply_candidate(&mut self, entry: Entry) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let noted = store::within(context.store.noted_index(self.shard, entry.id)).await?;
        if limits::POISON_CANDIDATE.allows(Instant::now()) {
            tracing::warn!(
                event = "worker.entry.poison_candidate",
                shard = self.shard.get(),
                stream_id = %entry.id,
                records = entry.records.len(),
                noted,
                "an entry was delivered several times; its records are decided one by one"
            );
        }
        let mut records = entry.records;
        // The records before the noted one were applied, or no note of it would stand.
        let rest = records.split_off(usize::from(noted.unwrap_or_default()).min(records.len()));
        self.apply_records(records).await?;
        for record in rest {
            self.apply_noted(record).await?;
        }
        store::within(context.store.delete_attempts(self.shard, entry.id)).await?;
        Ok(())
    }

    /// Applies a record of a poison candidate. It is noted first, so that the note remains if the worker crashes at it. This
    /// worker decides nothing else meanwhile, and withdraws the note while it waits for a server: the note must count no
    /// crash that the record did not cause.
    async fn apply_noted(&mut self, record: InputRecord) -> Result<(), Error> {
        let (context, position, digest) = (Arc::clone(&self.context), record.position, Sha256::digest(&record.payload));
        // Attempts of a note that could not be withdrawn.
        let mut noted = None;
        let mut pause = Duration::ZERO;
        loop {
            let alone = context.deciding.write().await;
            let attempts = match noted {
                Some(attempts) => attempts,
                None => store::within(context.store.note_attempt(self.shard, position, &digest)).await?,
            };
            let item = if attempts > ATTEMPTS {
                let detail = format!("a worker ended {ATTEMPTS} times while it decided this record");
                isolate(record.clone(), Refusal::new(DeadLetterReason::CrashedWorker, detail))
            } else {
                read(record.clone())
            };
            let Err(error) = self.apply_batch(vec![item], true).await else {
                drop(alone);
                self.recovered(&mut pause);
                return Ok(());
            };
            let withdrawn = store::within(context.store.withdraw_attempt(self.shard, position.entry)).await;
            drop(alone);
            noted = withdrawn.is_err().then_some(attempts);
            if !error.is_retried() {
                return Err(error);
            }
            self.retry(&mut pause, &error).await?;
        }
    }

    /// `alone`: this worker decides nothing else meanwhile; an error is returned and not retried here.
    async fn apply_batch(&mut self, items: Vec<Item>, alone: bool) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        // Batches still to be committed, in order.
        let mut rest = VecDeque::from([items]);
        let mut pause = Duration::ZERO;
        while let Some(mut batch) = rest.pop_front() {
            let together = if alone { None } else { Some(context.deciding.read().await) };
            let committed = store::within(self.commit(&batch)).await;
            drop(together);
            match committed {
                Ok(()) => {
                    self.recovered(&mut pause);
                    self.heartbeat.record();
                }
                Err(Failure::Data(refusal)) => {
                    if batch.len() > 1 {
                        let right = batch.split_off(batch.len() / 2);
                        rest.push_front(right);
                    } else if let Some(item) = batch.pop() {
                        let (shard, position) = (self.shard.get(), item.input.position);
                        if limits::ISOLATED.allows(Instant::now()) {
                            tracing::warn!(event = "worker.record.isolated", shard, %position, reason = refusal.reason.as_str(), detail = refusal.detail, "a record with a data error was isolated");
                        }
                        if item.isolated.is_some() && item.record.is_err() {
                            let error = store::Error::Refused(format!("a dead letter was refused: {}", refusal.detail));
                            return Err(error.into());
                        }
                        // Isolated once, it keeps its id. Isolated twice, it is stored as bytes.
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
                Err(Failure::Other(error)) if alone || !error.is_retried() => return Err(error),
                Err(Failure::Other(error)) => {
                    rest.push_front(batch);
                    self.retry(&mut pause, &error).await?;
                }
            }
        }
        Ok(())
    }

    /// Backs off and keeps the batch, unless the shard is to be returned.
    async fn retry(&self, pause: &mut Duration, error: &Error) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Returned);
        }
        self.back_off(pause, error).await;
        // A reconnect empties the recent commits.
        self.recent.clear();
        Ok(())
    }

    /// Decides and writes a batch in one transaction.
    async fn commit(&mut self, batch: &[Item]) -> Result<(), Failure> {
        let span = tracing::info_span!("process.batch.commit", shard = self.shard.get(), records = batch.len());
        trace::link(&span, batch.iter().filter_map(|item| item.input.traceparent.as_deref()).take(LINKS));
        self.try_commit(batch).instrument(span).await
    }

    async fn try_commit(&mut self, batch: &[Item]) -> Result<(), Failure> {
        let started = Instant::now();
        let active_manifest = self.context.active_manifest.borrow().clone();
        let (policy, shards) = (&active_manifest.policy, active_manifest.manifest.spec.shards);
        let lease = current(&self.lease);
        let mut exclusive = false;
        loop {
            let mut commit =
                self.context.store.begin_commit(self.shard, shards, &lease, policy.version, exclusive).await?;
            if !self.log.is_where(&commit) {
                return Err(Failure::Other(Error::LogChanged));
            }
            let known = commit.known(batch, policy).await?;
            let (position, now) = (commit.position, commit.now);
            let decide = || {
                let parsed = batch.iter().filter(|item| item.isolated.is_none());
                fault::deciding(parsed.filter_map(|item| Some(item.record.as_ref().ok()?.record_id.as_str())));
                domain::decide(batch, known, policy, position)
            };
            let decision = catch_unwind(AssertUnwindSafe(decide)).map_err(|_| {
                let detail = "deciding it panicked; the log shows where";
                Failure::Data(Refusal::new(DeadLetterReason::Panicked, detail))
            })?;
            if !exclusive && decision.dead_letters.iter().any(|dead_letter| dead_letter.record_id.is_some()) {
                exclusive = true;
                continue;
            }
            let written = commit.write(batch, &decision, policy.version).await?;
            (self.log.watermarks, self.log.accounted) = (written.watermarks, written.accounted);
            self.policy_version = policy.version;
            if written.lost > 0 {
                loss::report(self.shard, written.lost);
            }
            self.count(batch, &decision, started, now);
            self.log(&decision, policy);
            self.recent.push(rows(batch, decision, now));
            return Ok(());
        }
    }

    fn count(&self, batch: &[Item], decision: &Decision, started: Instant, now: DateTime<Utc>) {
        metrics::histogram!(names::BATCH_RECORDS).record(batch.len() as f64);
        metrics::histogram!(names::COMMIT_SECONDS).record(started.elapsed().as_secs_f64());
        for new in &decision.records {
            let took = (now - batch[new.item].input.received_at).to_std().unwrap_or_default();
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

    /// Logs outcomes that a person may have to look at. Any client can cause any number of them, so lines are limited.
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

/// Parses a record. Where that panics, or its entry is corrupted, it becomes a dead letter.
fn read(input: InputRecord) -> Item {
    if input.corrupted {
        let refusal = Refusal::new(
            DeadLetterReason::Corrupted,
            "the entry does not have the bytes that were appended: its checksum is wrong",
        );
        return Item { input, record: Err(unread()), isolated: Some(refusal) };
    }
    match catch_unwind(|| Record::parse(&input.payload)) {
        Ok(record) => Item { input, record: record.map(Arc::new), isolated: None },
        Err(_) => {
            let refusal = Refusal::new(DeadLetterReason::Panicked, "reading it panicked; the log shows where");
            Item { input, record: Err(unread()), isolated: Some(refusal) }
        }
    }
}

/// A record that becomes a dead letter whatever its content is. Its id is kept where it can be read.
fn isolate(input: InputRecord, refusal: Refusal) -> Item {
    let item = read(input);
    Item { isolated: Some(item.isolated.unwrap_or(refusal)), ..item }
}

fn unread() -> Invalid {
    Invalid::new(code::INVALID_VALUE, "", "was not read")
}

/// The committed rows for the publishers.
fn rows(batch: &[Item], decision: Decision, now: DateTime<Utc>) -> Vec<LogRow> {
    decision
        .records
        .into_iter()
        .map(|new| {
            let input = &batch[new.item].input;
            LogRow {
                seq: new.seq,
                record: new.record,
                received_at: input.received_at,
                processed_at: now,
                previous: new.previous,
                threshold: new.threshold,
                traceparent: input.traceparent.clone(),
                json: input.is_canonical.then(|| input.payload.clone()),
            }
        })
        .collect()
}
