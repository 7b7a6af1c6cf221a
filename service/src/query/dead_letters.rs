//! `/dead-letters`: list, replay and discard dead letters.
//!
//! A replay only appends the payload again with the dead letter's number. The worker's transaction decides it and
//! closes the dead letter. So a second request is harmless: its entry finds the dead letter closed and changes nothing.

use std::{sync::Arc, time::Instant};

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
};
use serde::Serialize;

use super::{
    Tags,
    answer::{Answer, Page, Paging, in_order},
    dead_letter_view::DeadLetter,
    types::{Time, Word},
};
use crate::{
    domain::{AccessLimit, DeadLetterId, DeadLetterReason, DeadLetterState, Seq, ShardId, ShardSeq},
    http::{
        App,
        auth::{Administrator, Reader},
        problem::Failure,
    },
    store::{Actor, DeadLetterFilter, StoredDeadLetter},
    streams::{AppendError, AppendSettings, Outgoing},
    telemetry::limits,
};

/// Dead letters that one script appends again.
const BATCH: usize = 100;

/// The action that was requested for one dead letter.
#[derive(Debug, Object, Serialize)]
pub(super) struct DeadLetterAction {
    /// The dead letter.
    pub id: String,
    /// `queued`: its replay is appended, and it stays open until a worker decides that; or `discarded`.
    pub status: String,
}

/// The dead letters that were replayed, or with `dryRun` would be.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct ReplayResult {
    /// Whether this was a dry run.
    pub dry_run: bool,
    /// Open dead letters that match the filters.
    pub matching: i64,
    /// Number of replays that this request appended.
    pub queued: i64,
    /// Number of dead letters that cannot be appended again because they are not text; discard them.
    pub unreadable: i64,
    /// Ids of the dead letters whose replay was appended, or with `dryRun` would be.
    pub ids: Vec<String>,
    /// Send it as `cursor`, with the same filters, for the next dead letters; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Dead letters.
#[derive(Debug, Clone, Default)]
pub struct DeadLettersApi;

#[OpenApi(tag = "Tags::DeadLetters")]
impl DeadLettersApi {
    /// List dead letters
    ///
    /// Ordered by (shard, number).
    #[oai(path = "/dead-letters", method = "get", operation_id = "listDeadLetters")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        reader: Reader,
        /// Only dead letters in this state; absent: all.
        state: Query<Option<DeadLetterState>>,
        /// Only dead letters with this reason.
        reason: Query<Option<DeadLetterReason>>,
        /// Only dead letters of this record.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only dead letters of this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only dead letters opened at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only dead letters opened before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<DeadLetter>>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = DeadLetterFilter {
            state: state.0,
            reason: reason.0,
            record_id: record_id.0.map(|id| id.0.into()),
            destination_id: destination_id.0.map(|id| id.0.into()),
            start: start_time.0.map(|time| time.0),
            end: end_time.0.map(|time| time.0),
            limit: reader.0.limit().clone(),
        };
        let paging = Paging::<ShardSeq>::new("/dead-letters", &filter, cursor.0, limit.0)?;
        let rows = app.store.list_dead_letters(&filter, paging.after.unwrap_or_default(), paging.rows()).await?;
        let page = paging.page(rows, |row| ShardSeq { shard: row.shard, seq: row.seq }, DeadLetter::from);
        Ok(Answer(page.kept_since(app.store.kept_since().await?.dead_letters, filter.start)))
    }

    /// Replay a dead letter
    ///
    /// Appends its payload to the input stream again. The dead letter stays open until a worker decides the replay. A
    /// worker decides it once, even after several requests. If the replay is refused too, the worker opens a new dead
    /// letter that names this one.
    #[oai(path = "/dead-letters/:id/replay", method = "post", operation_id = "replayDeadLetter")]
    async fn replay(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `<shard>-d<n>`.
        id: Path<String>,
    ) -> Result<Answer<DeadLetterAction, 202>, Failure> {
        let id = dead_letter_id(&id.0)?;
        let dead_letter = app.store.find_dead_letter(id).await?.ok_or_else(|| no_dead_letter(id))?;
        if dead_letter.state != DeadLetterState::Open {
            return Err(not_open(id, dead_letter.state));
        }
        let record = outgoing(id, dead_letter).ok_or_else(|| {
            let detail = "the payload is not text and cannot be appended again; discard the dead letter";
            Failure::new(409, "dead_letter_not_replayable", detail)
        })?;
        let replays = Replays { shard: id.shard, numbers: vec![id.seq], records: vec![record] };
        append(app.0, &replays, &caller.0).await?;
        Ok(Answer(DeadLetterAction { id: id.to_string(), status: "queued".to_owned() }))
    }

    /// Discard a dead letter
    ///
    /// Closes it for good. Its id is then free for a new record.
    #[oai(path = "/dead-letters/:id/discard", method = "post", operation_id = "discardDeadLetter")]
    async fn discard(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `<shard>-d<n>`.
        id: Path<String>,
    ) -> Result<Answer<DeadLetterAction>, Failure> {
        let id = dead_letter_id(&id.0)?;
        if !app.store.discard_dead_letter(id, &caller.0).await? {
            let dead_letter = app.store.find_dead_letter(id).await?.ok_or_else(|| no_dead_letter(id))?;
            return Err(not_open(id, dead_letter.state));
        }
        let actor = &caller.0.name;
        tracing::info!(event = "query.dead_letter.discarded", dead_letter = %id, %actor, "discarded a dead letter");
        Ok(Answer(DeadLetterAction { id: id.to_string(), status: "discarded".to_owned() }))
    }

    /// Replay dead letters by filter
    ///
    /// Appends the payloads of matching open dead letters again, at most `limit`, in the order of the list.
    /// `nextCursor` continues after them. With `dryRun=true` it appends nothing and only returns the dead letters that
    /// it would replay.
    #[oai(path = "/dead-letters/replay", method = "post", operation_id = "replayDeadLetters")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn replay_matching(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `true`: only return the dead letters that would be replayed.
        #[oai(name = "dryRun", default)]
        dry_run: Query<bool>,
        /// Only dead letters with this reason.
        reason: Query<Option<DeadLetterReason>>,
        /// Only dead letters of this record.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only dead letters of this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only dead letters opened at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only dead letters opened before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of dead letters for this request.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::max_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous request, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<ReplayResult, 202>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = DeadLetterFilter {
            state: Some(DeadLetterState::Open),
            reason: reason.0,
            record_id: record_id.0.map(|id| id.0.into()),
            destination_id: destination_id.0.map(|id| id.0.into()),
            start: start_time.0.map(|time| time.0),
            end: end_time.0.map(|time| time.0),
            limit: AccessLimit::default(),
        };
        let paging = Paging::<ShardSeq>::new("/dead-letters/replay", &filter, cursor.0, limit.0)?;
        let matching = app.store.count_dead_letters(&filter).await?;
        let mut after = paging.after.unwrap_or_default();
        let mut result =
            ReplayResult { dry_run: dry_run.0, matching, queued: 0, unreadable: 0, ids: Vec::new(), next_cursor: None };
        let mut left = paging.limit();
        loop {
            // One batch at a time bounds the memory for payloads.
            let dead_letters = app.store.list_dead_letters(&filter, after, BATCH.min(left) as i64).await?;
            let ended = dead_letters.len() < BATCH.min(left);
            left -= dead_letters.len();
            if let Some(last) = dead_letters.last() {
                after = ShardSeq { shard: last.shard, seq: last.seq };
            }
            for replays in by_shard(dead_letters, &mut result) {
                if !dry_run.0 {
                    append(app.0, &replays, &caller.0).await?;
                    result.queued += replays.numbers.len() as i64;
                }
            }
            if ended {
                break;
            }
            if left == 0 {
                result.next_cursor = paging.cursor(&after);
                break;
            }
        }
        Ok(Answer(result))
    }
}

fn dead_letter_id(text: &str) -> Result<DeadLetterId, Failure> {
    text.parse()
        .map_err(|()| Failure::new(404, "not_found", "there is no dead letter of this id; ids are <shard>-d<n>"))
}

fn no_dead_letter(id: DeadLetterId) -> Failure {
    Failure::new(404, "not_found", format!("there is no dead letter {id}"))
}

fn not_open(id: DeadLetterId, state: DeadLetterState) -> Failure {
    Failure::new(
        409,
        "dead_letter_not_open",
        format!("dead letter {id} is {}; only open dead letters can be changed", state.as_str()),
    )
}

/// The record that replays a dead letter; `None` if its payload is not text.
fn outgoing(id: DeadLetterId, dead_letter: StoredDeadLetter) -> Option<Outgoing> {
    Some(Outgoing {
        record: String::from_utf8(dead_letter.payload).ok()?,
        // A replay keeps the time at which the record was received.
        received_at: dead_letter.received_at,
        traceparent: dead_letter.traceparent.map(Arc::from),
        replay_of: Some(id),
        source: None,
    })
}

/// Replays of one shard: numbers and records are of the same dead letters.
struct Replays {
    shard: ShardId,
    numbers: Vec<Seq>,
    records: Vec<Outgoing>,
}

/// Groups consecutive dead letters of one shard, in the order of the list. Adds ids and unreadable ones to the result.
fn by_shard(dead_letters: Vec<StoredDeadLetter>, result: &mut ReplayResult) -> Vec<Replays> {
    let mut groups: Vec<Replays> = Vec::new();
    for dead_letter in dead_letters {
        let id = DeadLetterId { shard: dead_letter.shard, seq: dead_letter.seq };
        let Some(record) = outgoing(id, dead_letter) else {
            result.unreadable += 1;
            continue;
        };
        result.ids.push(id.to_string());
        match groups.last_mut() {
            Some(last) if last.shard == id.shard => {
                last.numbers.push(id.seq);
                last.records.push(record);
            }
            _ => groups.push(Replays { shard: id.shard, numbers: vec![id.seq], records: vec![record] }),
        }
    }
    groups
}

async fn append(app: &App, replays: &Replays, actor: &Actor) -> Result<(), Failure> {
    let Replays { shard, numbers, records } = replays;
    let shard = *shard;
    // The request is stored first: a worker may decide the replay before the append returns.
    app.store.note_replay(shard, numbers, actor).await?;
    let settings = {
        let active_manifest = app.manifest.borrow();
        AppendSettings {
            pipeline_id: Arc::clone(&active_manifest.pipeline_id),
            backlog_limit: active_manifest.manifest.spec.backlog_limit,
        }
    };
    app.producer.append(shard, settings, records.clone()).await.map_err(|error| {
        if limits::NOT_REPLAYED.allows(Instant::now()) {
            let dead_letters = numbers.len();
            tracing::warn!(
                event = "query.dead_letter.replay_failed", shard = shard.get(),
                dead_letters,
                %error,
                "dead letters cannot be replayed"
            );
        }
        match error {
            AppendError::Backlog { .. } => {
                Failure::new(429, "backlog_full", "the backlog of this shard is full; retry later")
            }
            AppendError::Full => Failure::new(503, "redis_full", "the memory of Redis is full; retry later"),
            AppendError::Unavailable(_) => Failure::new(503, "redis_unavailable", "Redis cannot be reached now; retry"),
            AppendError::Unknown(_) => {
                let detail = "the replay may have been appended or not; retry: a worker decides it once";
                Failure::new(503, "outcome_unknown", detail)
            }
            AppendError::Refused(_) => {
                let detail = "the input stream belongs to another pipeline; an operator has to resolve it";
                Failure::new(503, "stream_refused", detail)
            }
            AppendError::Exhausted(_) => {
                let detail = "the input stream of this shard has no ids left; an operator has to resolve it";
                Failure::new(503, "stream_exhausted", detail)
            }
        }
    })?;
    tracing::info!(
        event = "query.dead_letter.replayed",
        shard = shard.get(),
        dead_letters = numbers.len(),
        actor = &*actor.name,
        "replayed dead letters"
    );
    Ok(())
}
