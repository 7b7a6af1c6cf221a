//! `GET /records/{recordId}`: the history of one record, from the input stream to the sinks.

use std::time::Instant;

use millrace_crds::{Filter, Sink};
use poem::web::Data;
use poem_openapi::{OpenApi, param::Path, payload::Json};

use super::{
    Tags,
    answer::Answer,
    history_view::{History, PublishedState, SinkPublished, Status, Summary, dead_letter, reversals},
    total_alerts::TotalAlertView,
    types::{Time, Word},
    views::RecordView,
};
use crate::{
    domain::{
        AccessLimit, DeadLetterState, DeliveryState, Kind, OutcomeFilter, OutcomeKind, Parsed, RecordId, ShardSeq,
        StreamId,
    },
    http::{App, auth::Reader, problem::Failure},
    publish::webhook_cursor,
    store::{FoundRecord, RecordHistory, StoredDeadLetter, StoredRecord},
    streams::{Cursor, Search},
    telemetry::limits,
};

/// Most reversals of a record in its history.
const REVERSALS: i64 = 100;

/// The history of records.
#[derive(Debug, Clone, Default)]
pub struct HistoryApi;

#[OpenApi(tag = "Tags::Records")]
impl HistoryApi {
    /// The history of one record
    ///
    /// The service searches the input streams for a record that is still queued, newest entries first, up to 5,000
    /// entries per shard and 10,000 overall. If it reaches that bound, or cannot reach Redis, the response is 404
    /// `not_found_or_queued` with `retryable`. A record whose period is no longer kept is 410 `record_expired`; for a limited key it is a 404, as any record that
    /// the key may not reach. The ids `aggregations`, `rollups` and `batch` are names of other paths:
    /// use `GET /records?recordId=…` for such a record.
    #[oai(path = "/records/:recordId", method = "get", operation_id = "getRecord")]
    async fn record(
        &self,
        app: Data<&App>,
        reader: Reader,
        /// The id, percent-encoded as one segment.
        #[oai(name = "recordId")]
        record_id: Path<Word>,
    ) -> Result<Answer<History>, Failure> {
        let (app, id, limit) = (app.0, RecordId::from(record_id.0.0), reader.0.limit());
        if let Some(history) = applied(app, &id, limit, false).await? {
            return Ok(Answer(history));
        }
        if let Some(period) = app.store.expired_period(&id, limit).await? {
            return Err(Failure::record_expired(period));
        }
        let shards = app.manifest.borrow().manifest.spec.shards;
        let search = app.streams.search(&id, limit, shards).await;
        // A worker may have decided it during the search, and an acknowledged entry stays until it is trimmed.
        if let Some(history) = applied(app, &id, limit, false).await? {
            return Ok(Answer(history));
        }
        // It is a conflict with a record that this caller may not reach.
        let search = match search {
            Ok(Search::Found(found)) if app.store.is_conflict(&id, found.shard, found.input.position).await? => {
                Ok(Search::Absent)
            }
            search => search,
        };
        match search {
            Ok(Search::Found(queued)) => {
                let received_at = Some(Time(queued.input.received_at));
                let traces = app.store.traces(&id, limit).await?;
                let dead_letters = app.store.dead_letters_of(&id, limit).await?;
                let Parsed { record, takes_rest, .. } = &queued.parsed;
                let view = (!takes_rest).then(|| RecordView { received_at, ..RecordView::from(&**record) });
                Ok(Answer(History {
                    record_id: id.into(),
                    status: Status::Queued,
                    record: view,
                    id: None,
                    shard: queued.shard.get(),
                    seq: None,
                    received_at,
                    queued_at: time_of(queued.input.position.entry),
                    processed_at: None,
                    summary: None,
                    threshold: None,
                    reverses: record.reverses.as_ref().map(ToString::to_string),
                    reversals: None,
                    total_alerts: Vec::new(),
                    published: Vec::new(),
                    duplicates: traces.duplicates,
                    conflicts: traces.conflicts,
                    dead_letters: dead_letters.iter().map(dead_letter).collect(),
                }))
            }
            Ok(Search::Absent) => match applied(app, &id, limit, true).await? {
                Some(history) => Ok(Answer(history)),
                None => Err(Failure::new(404, "not_found", "there is no record of this id, and none is queued")),
            },
            Ok(Search::BoundReached) => {
                Err(perhaps_queued("it is not processed, and the backlog is longer than the search; retry"))
            }
            Err(error) => {
                if limits::SEARCH_FAILED.allows(Instant::now()) {
                    tracing::warn!(event = "query.search.failed", %error, "the search of an input stream failed");
                }
                Err(perhaps_queued("it is not processed, and its input stream cannot be read now; retry"))
            }
        }
    }
}

fn perhaps_queued(detail: &str) -> Failure {
    let mut failure = Failure::new(404, "not_found_or_queued", detail);
    if let Failure::NotFound(Json(problem)) = &mut failure {
        problem.retryable = true;
    }
    failure
}

/// The history in Postgres of an id that is taken, as far as the caller may reach it. With `free`, also of an id whose dead
/// letter was discarded.
async fn applied(app: &App, id: &RecordId, limit: &AccessLimit, free: bool) -> Result<Option<History>, Failure> {
    let found = app.store.find_record(id).await?;
    let found = found.filter(|found| limit.allows(&found.record.source_id, &found.record.destination_id));
    let dead_letters = app.store.dead_letters_of(id, limit).await?;
    if let Some(FoundRecord { record, mut history }) = found {
        if limit.sources().is_some() {
            // The totals are of records of any source.
            history.total_alerts.clear();
        }
        let published = published(app, &record, &history).await?;
        return Ok(Some(processed(app, record, history, limit, published, &dead_letters).await?));
    }
    let open = dead_letters.iter().rev().find(|dead_letter| dead_letter.state == DeadLetterState::Open);
    let Some(last) = open.or_else(|| dead_letters.last().filter(|_| free)) else { return Ok(None) };
    let parsed = Parsed::read(&last.payload).ok();
    let with_value = parsed.as_ref().filter(|parsed| !parsed.takes_rest);
    let traces = app.store.traces(id, limit).await?;
    Ok(Some(History {
        record_id: id.to_string(),
        status: if last.state == DeadLetterState::Open { Status::DeadLettered } else { Status::Discarded },
        record: with_value.map(|parsed| RecordView {
            received_at: Some(Time(last.received_at)),
            ..RecordView::from(&*parsed.record)
        }),
        id: None,
        shard: last.shard.get(),
        seq: None,
        received_at: Some(Time(last.received_at)),
        queued_at: None,
        processed_at: None,
        summary: None,
        threshold: None,
        reverses: parsed.and_then(|parsed| parsed.record.reverses.as_ref().map(ToString::to_string)),
        reversals: None,
        total_alerts: Vec::new(),
        published: Vec::new(),
        duplicates: traces.duplicates,
        conflicts: traces.conflicts,
        dead_letters: dead_letters.iter().map(dead_letter).collect(),
    }))
}

async fn processed(
    app: &App,
    record: StoredRecord,
    history: RecordHistory,
    limit: &AccessLimit,
    published: Vec<SinkPublished>,
    dead_letters: &[StoredDeadLetter],
) -> Result<History, Failure> {
    let traces = app.store.traces(&record.record_id, limit).await?;
    let reversed = app.store.reversals_of(ShardSeq { shard: record.shard, seq: record.seq }, REVERSALS).await?;
    Ok(History {
        record_id: record.record_id.to_string(),
        status: Status::Processed,
        id: Some(format!("{}-{}", record.shard, record.seq)),
        shard: record.shard.get(),
        seq: Some(record.seq.get()),
        received_at: Some(Time(record.received_at)),
        queued_at: time_of(history.position.entry),
        processed_at: Some(Time(record.processed_at)),
        // The records before it are of any source.
        summary: limit.sources().is_none().then(|| Summary {
            previous_count: history.previous_count,
            previous_total: history.previous_total,
            unit: record.unit.to_string(),
        }),
        threshold: history.threshold,
        reverses: record.reverses.as_ref().map(ToString::to_string),
        reversals: reversals(record.shard, reversed),
        total_alerts: history.total_alerts.into_iter().map(TotalAlertView::from).collect(),
        published,
        duplicates: traces.duplicates,
        conflicts: traces.conflicts,
        dead_letters: dead_letters.iter().map(dead_letter).collect(),
        record: Some(record.into()),
    })
}

/// Whether each sink of the manifest that carries a processed record has published it.
async fn published(app: &App, record: &StoredRecord, history: &RecordHistory) -> Result<Vec<SinkPublished>, Failure> {
    let manifest = app.manifest.borrow().manifest.clone();
    let carried = |kind: OutcomeKind| match kind {
        OutcomeKind::Processed => true,
        OutcomeKind::Alert => history.threshold.is_some(),
        OutcomeKind::TotalAlert => !history.total_alerts.is_empty(),
        OutcomeKind::DeadLettered | OutcomeKind::Conflicted => false,
    };
    let sinks: Vec<&Sink> = manifest
        .spec
        .sinks
        .iter()
        .filter(|sink| carried(sink.event.into()) && admits(sink.filter.as_ref(), record))
        .collect();
    if sinks.is_empty() {
        return Ok(Vec::new());
    }
    let started = app.store.sink_beginnings().await?;
    let streams: Vec<String> = sinks.iter().filter_map(|sink| sink.stream(&manifest.metadata.name)).collect();
    let cursors = app.streams.sink_cursors(&streams).await.inspect_err(|error| {
        if limits::CURSORS_FAILED.allows(Instant::now()) {
            tracing::warn!(event = "query.cursors.failed", %error, "the cursors of sinks cannot be read");
        }
    });
    let mut cursors = cursors.ok().map(Vec::into_iter);
    let (mut webhooks, mut undelivered) = (Vec::new(), Vec::new());
    if sinks.iter().any(|sink| sink.webhook.is_some()) {
        webhooks = app.store.webhook_cursors().await?;
        undelivered = app.store.undelivered(record.shard, record.seq, record.destination_id.as_str()).await?;
    }
    let state = |sink: &Sink, cursor: Option<Cursor>| {
        let begins =
            started.iter().find(|state| state.name == sink.name).and_then(|state| state.begins_after(record.shard));
        if begins.is_some_and(|after| record.seq <= after) {
            return PublishedState::BeforeStart;
        }
        match cursor {
            None => PublishedState::Unknown,
            Some(cursor) if cursor.numbers.get(&record.shard).is_some_and(|at| *at >= record.seq) => {
                let state = undelivered.iter().find(|(name, _)| *name == sink.name);
                match state {
                    None => PublishedState::Published,
                    Some((_, DeliveryState::Waiting)) => PublishedState::Waiting,
                    Some((_, DeliveryState::Failed)) => PublishedState::Failed,
                }
            }
            Some(_) => PublishedState::Waiting,
        }
    };
    let published = sinks.into_iter().map(|sink| {
        let cursor = match sink.webhook {
            Some(_) => Some(webhook_cursor(&webhooks, &sink.name, "")),
            None => cursors.as_mut().and_then(Iterator::next),
        };
        SinkPublished { state: state(sink, cursor), sink: sink.name.clone() }
    });
    Ok(published.collect())
}

fn admits(filter: Option<&Filter>, record: &StoredRecord) -> bool {
    let filter = OutcomeFilter::of(filter);
    let kind = if record.positive { Kind::Positive } else { Kind::Negative };
    let StoredRecord { unit, source_id, destination_id, .. } = record;
    let value = record.value.parse().unwrap_or_default();
    filter.admits_fields(unit, kind, value, source_id, destination_id)
}

/// The time in a stream id; `None` if the id is not from a clock.
fn time_of(id: StreamId) -> Option<Time> {
    let ms = i64::try_from(id.ms).ok().filter(|ms| *ms < 10_000_000_000_000)?;
    chrono::DateTime::from_timestamp_millis(ms).map(Time)
}
