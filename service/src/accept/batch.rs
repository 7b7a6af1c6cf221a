//! Many records: good items are taken whatever their neighbours are.
//!
//! Must never hold more of NDJSON than one chunk of lines, nor more of JSON than there is room for.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use poem::Request;
use poem_openapi::payload::Json;

use super::{
    Acceptor, Refusal,
    api::{BatchReport, BatchTaken},
    append,
    body::{self, Format, Line, LineError, Lines},
    count_rejected, is_over_share, items, now,
    schema::ManyRecords,
    single, traceparent,
};
use crate::{
    domain::{Invalid, ShardId, code},
    http::{
        App,
        auth::Caller,
        problem::{Failure, ItemError},
        rate_limits::Admission,
    },
    streams::{Outgoing, SourceTag},
};

/// Lines that are appended together.
const CHUNK_LINES: u64 = 1_000;
/// Bytes of lines that are appended together.
const CHUNK_BYTES: usize = 256 * 1024;
/// Most bytes of NDJSON that are held at once.
pub(super) const STREAM_BYTES: usize = CHUNK_BYTES + body::RECORD_BYTES;
/// Errors after which reading of NDJSON stops.
const MOST_ERRORS: usize = 1_000;

/// An item that is to be appended.
struct Item {
    index: u64,
    record_id: String,
    record: Outgoing,
}

/// A request under way.
struct Batch<'a> {
    app: &'a App,
    caller: &'a Caller,
    admission: &'a Admission,
    key: Option<&'a str>,
    traceparent: Option<Arc<str>>,
    received_at: DateTime<Utc>,
    shards: u16,
    by_shard: BTreeMap<ShardId, Vec<Item>>,
    accepted: u64,
    errors: Vec<ItemError>,
    /// The gravest retryable failure, for the status of an answer that accepts nothing.
    retryable: Option<Refusal>,
}

/// Takes many records.
pub(super) async fn send(
    app: &App,
    acceptor: &Acceptor,
    request: &Request,
    (caller, admission): (&Caller, &Admission),
    key: Option<&str>,
    body: ManyRecords,
) -> Result<BatchTaken, Failure> {
    let shards = app.manifest.borrow().manifest.spec.shards;
    let mut batch = Batch {
        app,
        caller,
        admission,
        key,
        traceparent: traceparent(request),
        received_at: now(),
        shards,
        by_shard: BTreeMap::new(),
        accepted: 0,
        errors: Vec::new(),
        retryable: None,
    };
    match body.format {
        Format::Json => {
            let (bytes, _room) = body::whole_batch(body.reader, &acceptor.0.room, admission).await?;
            for (index, item) in (0..).zip(items::of_array(body::without_mark(&bytes))?) {
                batch.take(index, item.get().as_bytes());
            }
            drop(bytes);
            batch.append_held(false).await;
            batch.answer(None)
        }
        Format::Ndjson => batch.read_lines(Lines::new(body.reader)).await,
    }
}

impl Batch<'_> {
    async fn read_lines(mut self, mut lines: Lines) -> Result<BatchTaken, Failure> {
        let (mut index, mut held_lines, mut held_bytes) = (0_u64, 0_u64, 0_usize);
        let most_lines = self.admission.step(CHUNK_LINES);
        loop {
            let line = lines.next().await;
            let stopped = match line {
                Ok(Some(Line::Record(line))) => {
                    self.take(index, &line);
                    held_bytes += line.len();
                    None
                }
                Ok(Some(Line::TooLong)) => {
                    let detail = "is larger than 16 KiB; if it has more than one record, end each with a line feed (curl's -d \
                                  removes line feeds, --data-binary keeps them)";
                    self.reject(index, None, &Invalid::new(code::TOO_LARGE, "", detail));
                    None
                }
                Ok(None) => {
                    self.append_held(true).await;
                    return self.answer(None);
                }
                Err(LineError::Read(error)) => Some(body::unreadable(&error)),
                Err(LineError::Endless) => {
                    let detail = "a line is longer than 16 MiB; end each record with a line feed (curl's -d removes line feeds, \
                                  --data-binary keeps them)";
                    Some(Failure::new(413, "too_large", detail))
                }
            };
            if let Some(failure) = stopped {
                self.append_held(true).await;
                lines.drain().await;
                return self.stop(index, failure);
            }
            index += 1;
            held_lines += 1;
            if held_lines >= most_lines || held_bytes >= CHUNK_BYTES || self.errors.len() >= MOST_ERRORS {
                self.append_held(true).await;
                (held_lines, held_bytes) = (0, 0);
                self.received_at = now();
                if self.errors.len() >= MOST_ERRORS {
                    lines.drain().await;
                    return self.answer(Some(index));
                }
            }
        }
    }

    /// Checks an item, and holds it for its shard.
    fn take(&mut self, index: u64, json: &[u8]) {
        if json.len() > body::RECORD_BYTES {
            return self.reject(index, items::id_of(json), &too_large());
        }
        match single::read(json, self.caller, self.key, index) {
            Ok(record) => {
                let shard = ShardId::of(&record.destination_id, self.shards);
                let outgoing = Outgoing {
                    record: record.to_json(),
                    received_at: self.received_at,
                    traceparent: self.traceparent.clone(),
                    replay_of: None,
                    source: Some(SourceTag::of(&record.source_id)),
                };
                let item = Item { index, record_id: record.record_id.to_string(), record: outgoing };
                self.by_shard.entry(shard).or_default().push(item);
            }
            Err(invalid) => self.reject(index, items::id_of(json), &invalid),
        }
    }

    fn reject(&mut self, index: u64, record_id: Option<String>, invalid: &Invalid) {
        count_rejected(invalid.code, 1);
        self.errors.push(ItemError {
            index,
            record_id,
            code: invalid.code.to_owned(),
            retryable: false,
            pointer: (!invalid.pointer.is_empty()).then(|| invalid.pointer.clone()),
            detail: invalid.detail.clone(),
        });
    }

    /// Appends what is held: one script a shard, the shards beside each other. `in_turn`: waits while the limit of records
    /// is reached.
    async fn append_held(&mut self, in_turn: bool) {
        self.refuse_over_share().await;
        let held = std::mem::take(&mut self.by_shard);
        let records = held.values().map(|items| items.len() as u64).sum();
        if records == 0 {
            return;
        }
        let admitted = match in_turn {
            true => self.admission.records_in_turn(records).await,
            false => self.admission.records(records),
        };
        if let Err(limited) = admitted {
            let names = held.into_values().flatten().map(|item| (item.index, item.record_id)).collect();
            return self.refuse(limited.into(), names);
        }
        let app = self.app;
        let appends = held.into_iter().map(async |(shard, items)| {
            let (names, records): (Vec<_>, Vec<_>) =
                items.into_iter().map(|item| ((item.index, item.record_id), item.record)).unzip();
            (names, append(app, shard, records).await)
        });
        for (names, appended) in join_all(appends).await {
            let Err(error) = appended else {
                self.accepted += names.len() as u64;
                continue;
            };
            self.refuse(Refusal::from(&error), names);
        }
    }

    /// Refuses the held items of sources that have their share of a shard's backlog.
    async fn refuse_over_share(&mut self) {
        let mut over = Vec::new();
        let limit = self.app.manifest.borrow().manifest.spec.backlog_limit;
        let above_half = self.by_shard.iter_mut().filter(|(shard, _)| self.app.producer.is_above_half(**shard, limit));
        for (shard, items) in above_half {
            let mut judged: HashMap<SourceTag, bool> = HashMap::new();
            for source in items.iter().filter_map(|item| item.record.source) {
                if let Entry::Vacant(place) = judged.entry(source) {
                    place.insert(is_over_share(self.app, *shard, source).await);
                }
            }
            if judged.values().any(|is_over| *is_over) {
                let is_over = |item: &mut Item| item.record.source.is_some_and(|source| judged[&source]);
                over.extend(items.extract_if(.., is_over).map(|item| (item.index, item.record_id)));
            }
        }
        if !over.is_empty() {
            self.by_shard.retain(|_, items| !items.is_empty());
            self.refuse(Refusal::over_share(), over);
        }
    }

    /// Refuses items that may be taken later, by index and id.
    fn refuse(&mut self, refusal: Refusal, items: Vec<(u64, String)>) {
        refusal.count(items.len() as u64);
        self.errors.extend(items.into_iter().map(|(index, record_id)| ItemError {
            index,
            record_id: Some(record_id),
            code: refusal.code.to_owned(),
            retryable: true,
            pointer: None,
            detail: refusal.detail.clone().into_owned(),
        }));
        // Of two reasons to send again later, 503 is the graver, and then the longer wait.
        let gravity = |refusal: &Refusal| (refusal.status, refusal.retry_after);
        if self.retryable.as_ref().is_none_or(|held| gravity(held) < gravity(&refusal)) {
            self.retryable = Some(refusal);
        }
    }

    /// The answer when reading stopped at `index`: the failure itself, unless something was applied before it.
    fn stop(mut self, index: u64, failure: Failure) -> Result<BatchTaken, Failure> {
        if self.accepted == 0 && self.errors.is_empty() {
            return Err(failure);
        }
        let problem = failure.problem();
        self.errors.push(ItemError {
            index,
            record_id: None,
            code: problem.code.clone(),
            retryable: problem.retryable,
            pointer: None,
            detail: problem.detail.clone(),
        });
        self.answer(Some(index))
    }

    fn answer(mut self, next_index: Option<u64>) -> Result<BatchTaken, Failure> {
        self.errors.sort_by_key(|error| error.index);
        let (accepted, rejected) = (self.accepted, self.errors.len() as u64);
        tracing::debug!(event = "accept.batch.accepted", accepted, rejected, "accepted a batch");
        if accepted > 0 || rejected == 0 {
            let report = BatchReport { accepted, rejected, errors: self.errors, next_index };
            return Ok(BatchTaken::Report(Json(report)));
        }
        let failure = match self.retryable {
            Some(Refusal { status, code, detail, retry_after }) => {
                Failure::new(status, code, format!("no item was confirmed: {detail}")).retry_after(retry_after)
            }
            None if self.errors.iter().all(|error| error.code == code::OUTSIDE_LIMIT) => {
                let detail = "nothing was taken: each item is outside the limit of this API key";
                Failure::new(403, code::OUTSIDE_LIMIT, detail)
            }
            None => Failure::new(422, "batch_refused", "nothing was taken; errors says what is wrong with each item"),
        };
        Err(failure.with(|problem| {
            problem.errors = Some(self.errors);
            problem.next_index = next_index;
        }))
    }
}

fn too_large() -> Invalid {
    Invalid::new(code::TOO_LARGE, "", "is larger than 16 KiB")
}
