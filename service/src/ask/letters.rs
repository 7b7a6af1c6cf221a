//! Dead letters: looked at, replayed, discarded. And conflicts, which are only looked at.
//!
//! A replay only appends the payload again with the letter's number; the worker's transaction decides it and closes the
//! letter. So asking twice is harmless: the second entry finds the letter closed and changes nothing.

use std::time::Instant;

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
};
use serde::Serialize;

use super::{
    Tags,
    answer::{Answer, MAX_LIMIT, Page, Paging, in_order},
    letter_view::{DeadLetter, LetterReason, LetterState},
    types::{Time, Word},
};
use crate::{
    domain::LetterId,
    http::{
        App,
        auth::{Administrator, Reader},
        problem::Failure,
    },
    store::{LetterFilter, StoredLetter},
    streams::{AppendError, Outgoing},
    telemetry::limits,
};

/// Letters that are appended again by one script.
const BATCH: usize = 100;

/// What was asked for one dead letter.
#[derive(Debug, Object, Serialize)]
pub(super) struct LetterAction {
    /// The letter.
    pub id: String,
    /// `queued`: its replay is queued, and it stays open until that is decided; `discarded`.
    pub status: String,
}

/// What was, or with `dryRun` would be, replayed.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct ReplayedLetters {
    /// Whether it was only a question.
    pub dry_run: bool,
    /// Open letters that match the filters.
    pub matching: i64,
    /// How many of them were queued by this request.
    pub queued: i64,
    /// Of those that cannot be appended again because they are not text; discard them.
    pub unreadable: i64,
    /// The letters that were queued, or with `dryRun` would be.
    pub ids: Vec<String>,
    /// Ask again with `cursor` set to this, and the same filters, for the next letters; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Dead letters.
#[derive(Debug, Clone, Default)]
pub struct LettersApi;

#[OpenApi(tag = "Tags::DeadLetters")]
impl LettersApi {
    /// List dead letters
    ///
    /// Ordered by (shard, number).
    #[oai(path = "/dead-letters", method = "get", operation_id = "listDeadLetters")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        _reader: Reader,
        /// Only this state; absent: all.
        state: Query<Option<LetterState>>,
        /// Only this reason.
        reason: Query<Option<LetterReason>>,
        /// Only this id.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only letters opened at or after this.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only letters opened before this.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Most items of the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<DeadLetter>>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = LetterFilter {
            state: state.0.map(|state| state.as_str().to_owned()),
            reason: reason.0.map(|reason| reason.as_str().to_owned()),
            record_id: record_id.0.map(|id| id.0),
            destination_id: destination_id.0.map(|id| id.0),
            start: start_time.0.map(|time| time.0),
            end: end_time.0.map(|time| time.0),
        };
        let paging = Paging::<(i32, i64)>::new("/dead-letters", &filter, cursor.0, limit.0)?;
        let rows = app.store.list_letters(&filter, paging.after.unwrap_or((-1, 0)), paging.rows()).await?;
        Ok(Answer(paging.page(rows, |row| (row.shard, row.n), DeadLetter::from)))
    }

    /// Replay a dead letter
    ///
    /// Queues its payload again. The letter stays open until that is decided, and is decided once, however often this is
    /// asked for. If it is refused again, a new letter that names this one is opened.
    #[oai(path = "/dead-letters/:id/replay", method = "post", operation_id = "replayDeadLetter")]
    async fn replay(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `<shard>-d<n>`.
        id: Path<String>,
    ) -> Result<Answer<LetterAction, 202>, Failure> {
        let id = letter_id(&id.0)?;
        let letter = app.store.find_letter(id).await?.ok_or_else(|| no_letter(id))?;
        if letter.state != "open" {
            return Err(not_open(id, &letter.state));
        }
        let entry = outgoing(id, letter).ok_or_else(|| {
            let detail = "the payload is not text and cannot be queued again; discard the letter";
            Failure::new(409, "letter_not_replayable", detail)
        })?;
        append(app.0, id.shard, &[id.n], &[entry], &caller.0.name).await?;
        Ok(Answer(LetterAction { id: id.to_string(), status: "queued".to_owned() }))
    }

    /// Discard a dead letter
    ///
    /// Gives it up for good; its id is free for a new record.
    #[oai(path = "/dead-letters/:id/discard", method = "post", operation_id = "discardDeadLetter")]
    async fn discard(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `<shard>-d<n>`.
        id: Path<String>,
    ) -> Result<Answer<LetterAction>, Failure> {
        let id = letter_id(&id.0)?;
        if !app.store.discard_letter(id, &caller.0.name).await? {
            let letter = app.store.find_letter(id).await?.ok_or_else(|| no_letter(id))?;
            return Err(not_open(id, &letter.state));
        }
        tracing::info!(letter = %id, actor = %caller.0.name, "ask.letter.discarded");
        Ok(Answer(LetterAction { id: id.to_string(), status: "discarded".to_owned() }))
    }

    /// Replay dead letters by filter
    ///
    /// Queues the open letters that match, up to `limit` of them, in the order of the list; `nextCursor` goes on behind
    /// them. With `dryRun=true` nothing is queued: the answer says what would be.
    #[oai(path = "/dead-letters/replay", method = "post", operation_id = "replayDeadLetters")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn replay_matching(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// `true`: only say what would be replayed.
        #[oai(name = "dryRun", default)]
        dry_run: Query<bool>,
        /// Only this reason.
        reason: Query<Option<LetterReason>>,
        /// Only this id.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only letters opened at or after this.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only letters opened before this.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Most letters of this request.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "most")]
        limit: Query<u32>,
        /// `nextCursor` of the request before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<ReplayedLetters, 202>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = LetterFilter {
            state: Some("open".to_owned()),
            reason: reason.0.map(|reason| reason.as_str().to_owned()),
            record_id: record_id.0.map(|id| id.0),
            destination_id: destination_id.0.map(|id| id.0),
            start: start_time.0.map(|time| time.0),
            end: end_time.0.map(|time| time.0),
        };
        let paging = Paging::<(i32, i64)>::new("/dead-letters/replay", &filter, cursor.0, limit.0)?;
        let matching = app.store.count_letters(&filter).await?;
        let mut after = paging.after.unwrap_or((-1, 0));
        let mut answer = ReplayedLetters {
            dry_run: dry_run.0,
            matching,
            queued: 0,
            unreadable: 0,
            ids: Vec::new(),
            next_cursor: None,
        };
        let mut left = paging.limit();
        loop {
            // Payloads are held for one batch only.
            let letters = app.store.list_letters(&filter, after, BATCH.min(left) as i64).await?;
            let ended = letters.len() < BATCH.min(left);
            left -= letters.len();
            if let Some(last) = letters.last() {
                after = (last.shard, last.n);
            }
            for (shard, numbers, entries) in by_shard(letters, &mut answer) {
                if !dry_run.0 {
                    append(app.0, shard, &numbers, &entries, &caller.0.name).await?;
                    answer.queued += numbers.len() as i64;
                }
            }
            if ended {
                break;
            }
            if left == 0 {
                answer.next_cursor = paging.cursor(&after);
                break;
            }
        }
        Ok(Answer(answer))
    }
}

fn most() -> u32 {
    MAX_LIMIT
}

fn letter_id(text: &str) -> Result<LetterId, Failure> {
    text.parse()
        .map_err(|()| Failure::new(404, "not_found", "there is no dead letter of this id; ids are <shard>-d<n>"))
}

fn no_letter(id: LetterId) -> Failure {
    Failure::new(404, "not_found", format!("there is no dead letter {id}"))
}

fn not_open(id: LetterId, state: &str) -> Failure {
    Failure::new(409, "letter_not_open", format!("dead letter {id} is {state}; only open letters can be changed"))
}

/// The entry that replays a letter; `None` where its payload is not text.
fn outgoing(id: LetterId, letter: StoredLetter) -> Option<Outgoing> {
    Some(Outgoing {
        record: String::from_utf8(letter.payload).ok()?,
        // It was received once, and stays received then.
        received_at: letter.received_at,
        traceparent: letter.traceparent,
        serve: None,
        replay_of: Some(id),
    })
}

type Group = (u16, Vec<i64>, Vec<Outgoing>);

/// Letters in the order of the list, cut into runs of one shard.
fn by_shard(letters: Vec<StoredLetter>, answer: &mut ReplayedLetters) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for letter in letters {
        let Ok(shard) = u16::try_from(letter.shard) else { continue };
        let id = LetterId { shard, n: letter.n };
        let Some(entry) = outgoing(id, letter) else {
            answer.unreadable += 1;
            continue;
        };
        answer.ids.push(id.to_string());
        match groups.last_mut() {
            Some((last, numbers, entries)) if *last == shard => {
                numbers.push(id.n);
                entries.push(entry);
            }
            _ => groups.push((shard, vec![id.n], vec![entry])),
        }
    }
    groups
}

async fn append(app: &App, shard: u16, numbers: &[i64], entries: &[Outgoing], actor: &str) -> Result<(), Failure> {
    // Who asked is noted first: the replay may be decided before the append is answered.
    app.store.note_replay(shard, numbers, actor).await?;
    let (pipeline_id, limit) = {
        let in_force = app.manifest.borrow();
        (in_force.pipeline_id.clone(), in_force.manifest.spec.backlog_limit)
    };
    app.streams.append(shard, &pipeline_id, limit, None, entries).await.map_err(|error| {
        if limits::NOT_REPLAYED.allows(Instant::now()) {
            tracing::warn!(shard, letters = numbers.len(), %error, "ask.letter.not_replayed");
        }
        match error {
            AppendError::Backlog => {
                Failure::new(429, "backlog_full", "too much is queued for this shard; ask again later")
            }
            AppendError::Full => Failure::new(503, "redis_full", "the queue is full; ask again later"),
            AppendError::Away(_) => {
                Failure::new(503, "redis_unavailable", "the queue cannot be reached now; ask again")
            }
            AppendError::Unknown(_) => {
                let detail = "the replay may be queued or not; ask again: it is decided once";
                Failure::new(503, "outcome_unknown", detail)
            }
            AppendError::Refused(_) => {
                let detail = "the queue belongs to another pipeline; the operator of this service has to resolve it";
                Failure::new(503, "queue_refused", detail)
            }
            AppendError::Exhausted(_) => {
                let detail = "the shard's queue has no ids left; the operator of this service has to resolve it";
                Failure::new(503, "queue_exhausted", detail)
            }
        }
    })?;
    tracing::info!(shard, letters = numbers.len(), actor, "ask.letter.replayed");
    Ok(())
}
