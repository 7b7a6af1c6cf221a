//! One record: append it, and wait for its outcome if that was asked for.

use std::time::Duration;

use poem::Request;
use poem_openapi::payload::Json;

use super::{
    Acceptor, Refusal,
    api::{Processed, Queued, Summary, Taken},
    append, body, count_rejected, idempotency, is_over_share, items, now,
    schema::OneRecord,
    traceparent,
};
use crate::{
    domain::{AccessLimit, DestinationId, Invalid, Record, RecordId, ShardId, SourceId, code},
    http::{App, auth::Caller, problem::Failure, rate_limits::Admission},
    store::{Applied, Awaited, Before, Outcome},
    streams::{Outgoing, SourceTag},
};

/// Longest wait for an outcome.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Who may take records back.
pub(super) const RIGHT_TO_REVERSE: &str =
    "needs the scope admin, or the scope ingest of an API key that is limited to the source of the record";

/// Takes one record.
pub(super) async fn send(
    app: &App,
    acceptor: &Acceptor,
    request: &Request,
    (caller, admission): (&Caller, &Admission),
    key: Option<&str>,
    body: OneRecord,
) -> Result<Taken, Failure> {
    let bytes = body::whole(body.0, body::RECORD_BYTES).await?;
    admission.read(bytes.len())?;
    let record = read(body::without_mark(&bytes), caller, key, 0).map_err(|invalid| {
        count_rejected(invalid.code, 1);
        Failure::from(invalid)
    })?;
    let json = record.to_json();
    let Record { record_id, source_id, destination_id, .. } = record;
    let ready = Ready { record_id, source_id, destination_id, json };
    take(app, acceptor, request, (caller.limit(), admission), ready).await
}

/// A record that can be appended.
pub(super) struct Ready {
    pub(super) record_id: RecordId,
    pub(super) source_id: SourceId,
    pub(super) destination_id: DestinationId,
    /// As the input stream has it.
    pub(super) json: String,
}

/// Appends a record, and waits for its outcome if that was asked for.
pub(super) async fn take(
    app: &App,
    acceptor: &Acceptor,
    request: &Request,
    (limit, admission): (&AccessLimit, &Admission),
    ready: Ready,
) -> Result<Taken, Failure> {
    let wait = wait_asked_for(request);
    let traceparent = traceparent(request);
    let Ready { record_id, source_id, destination_id, json } = ready;
    let shards = app.manifest.borrow().manifest.spec.shards;
    let shard = ShardId::of(&destination_id, shards);
    let refuse = |refusal: Refusal| {
        refusal.count(1);
        Failure::from(refusal)
    };
    let source = SourceTag::of(&source_id);
    if is_over_share(app, shard, source).await {
        return Err(refuse(Refusal::over_share()));
    }
    admission.records(1).map_err(|limited| refuse(limited.into()))?;
    let outgoing = Outgoing { record: json, received_at: now(), traceparent, replay_of: None, source: Some(source) };
    let positions = append(app, shard, vec![outgoing]).await.map_err(|error| refuse(Refusal::from(&error)))?;
    tracing::debug!(
        event = "accept.record.queued",
        record_id = record_id.as_str(),
        shard = shard.get(),
        "queued a record"
    );
    let (Some(wait), Some(position)) = (wait, positions.first()) else { return Ok(queued(record_id)) };
    let awaited = Awaited { shard, record_id: record_id.clone(), position: *position };
    match acceptor.0.waiters.wait(awaited, wait).await {
        Some(applied) if is_shown(&applied, limit) => answer(record_id, shard, limit, applied),
        // It was applied as a duplicate of a record that is gone since, and its id is taken by a record out of reach.
        Some(_) => Ok(queued(record_id)),
        None => Ok(queued(record_id)),
    }
}

/// Whether a caller may see an outcome: that of its own record, or of an original that it may reach.
fn is_shown(applied: &Applied, limit: &AccessLimit) -> bool {
    applied.original.as_ref().is_none_or(|original| limit.allows(&original.source_id, &original.destination_id))
}

/// Reads a record that the caller may send, as [`parse`] does.
pub(super) fn read(json: &[u8], caller: &Caller, key: Option<&str>, index: u64) -> Result<Record, Invalid> {
    let record = parse(json, key, index)?;
    if record.reverses.is_some() && !caller.may_reverse() {
        return Err(Invalid::new(code::OUTSIDE_LIMIT, "/reverses", RIGHT_TO_REVERSE));
    }
    match caller.limit().outside(&record.source_id, &record.destination_id) {
        None => Ok(record),
        Some(pointer) => {
            let detail = "is outside the limit of this API key; send the record with a key that may reach it";
            Err(Invalid::new(code::OUTSIDE_LIMIT, pointer, detail))
        }
    }
}

/// Reads a record; one without an id gets it from the request's key and the index in the request. An id and a key exclude
/// each other: a client that gives both expects the key to decide, and the key would decide nothing.
pub(super) fn parse(json: &[u8], key: Option<&str>, index: u64) -> Result<Record, Invalid> {
    let read = || {
        let Some(key) = key else { return Record::parse(json) };
        let draft = Record::parse_draft(json)?;
        if draft.has_id() {
            return Err(Invalid::new(
                code::INVALID_VALUE,
                "/recordId",
                "is given beside an Idempotency-Key header; leave one of the two out: the recordId alone makes the request \
                 safe to repeat, and the key is only for records without one",
            ));
        }
        let source_id = draft.source_id().clone();
        draft.with_id(|| idempotency::derive(&source_id, key, index))
    };
    read().map_err(|invalid| items::explained(json, invalid))
}

fn queued(record_id: RecordId) -> Taken {
    Taken::Queued(Json(Queued { record_id: record_id.to_string(), status: "queued".to_owned() }))
}

fn answer(record_id: RecordId, shard: ShardId, limit: &AccessLimit, applied: Applied) -> Result<Taken, Failure> {
    let duplicate = applied.duplicate.then_some(true);
    match applied.outcome {
        Outcome::Processed { seq, before } => Ok(Taken::Processed(Json(Processed {
            record_id: record_id.to_string(),
            status: "processed".to_owned(),
            shard: shard.get(),
            seq: seq.get(),
            // The records before it are of any source.
            summary: before.filter(|_| limit.sources().is_none()).map(|Before { count, total, unit }| Summary {
                previous_count: count,
                previous_total: total,
                unit,
            }),
            duplicate,
        }))),
        Outcome::Conflict { seq } => Err(Failure::new(
            409,
            "record_conflict",
            format!(
                "this recordId is taken by other content; the refused record is kept, see /conflicts ({shard}-c{seq})"
            ),
        )),
        Outcome::DeadLettered { dead_letter, reason, detail } => {
            Err(Failure::new(422, "dead_lettered", detail).with(|problem| {
                problem.dead_letter = Some(dead_letter.to_string());
                problem.reason = Some(reason.as_str().to_owned());
                problem.duplicate = duplicate;
            }))
        }
    }
}

/// The wait of `Prefer: wait=N`, at most [`LONGEST_WAIT`]. Preferences that are not understood are ignored, as
/// RFC 7240 asks.
fn wait_asked_for(request: &Request) -> Option<Duration> {
    let headers = request.headers().get_all("prefer");
    let mut preferences = headers.iter().filter_map(|header| header.to_str().ok()).flat_map(|text| text.split(','));
    preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("wait") {
            return None;
        }
        let seconds: u64 = value.trim().trim_matches('"').parse().ok()?;
        Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_read_among_other_preferences_and_bounded() {
        let asked = |prefer: &str| wait_asked_for(&Request::builder().header("Prefer", prefer).finish());
        assert_eq!(asked("wait=5"), Some(Duration::from_secs(5)));
        assert_eq!(asked("respond-async, Wait = 10; x=1"), Some(Duration::from_secs(10)));
        assert_eq!(asked("wait=100000"), Some(LONGEST_WAIT));
        for ignored in ["respond-async", "wait", "wait=", "wait=-1", "wait=soon", "wait=99999999999999999999999"] {
            assert_eq!(asked(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn the_outcome_of_an_original_out_of_reach_is_not_shown() {
        let limit = AccessLimit::new(&["exact=own".parse().expect("a pattern")], &[]).expect("a limit");
        let applied = |source: Option<&str>| Applied {
            outcome: Outcome::Processed { seq: crate::domain::Seq::new(7), before: None },
            duplicate: source.is_some(),
            original: source.map(|source| crate::store::Original {
                source_id: crate::domain::SourceId::stored(source),
                destination_id: crate::domain::DestinationId::stored("d"),
            }),
        };
        assert!(is_shown(&applied(None), &limit) && is_shown(&applied(Some("own")), &limit));
        assert!(!is_shown(&applied(Some("other")), &limit));
        assert!(is_shown(&applied(Some("other")), &AccessLimit::default()));
    }

    #[test]
    fn an_id_is_derived_from_key_and_index() {
        let without = r#"{"time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":1,"unit":"u","reference":"r"}"#;
        let derived = parse(without.as_bytes(), Some("k"), 3).expect("valid").record_id;
        assert!(derived.as_str().starts_with("ik-"));
        assert_ne!(derived, parse(without.as_bytes(), Some("k"), 4).expect("valid").record_id);
        assert_eq!(parse(without.as_bytes(), None, 0).expect_err("no id").pointer, "/recordId");
    }

    #[test]
    fn a_key_beside_an_id_is_refused() {
        let record = r#"{"recordId":"mine","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":1,"unit":"u","reference":"r"}"#;
        let refused = parse(record.as_bytes(), Some("k"), 0).expect_err("both");
        assert_eq!((refused.code, refused.pointer.as_str()), (code::INVALID_VALUE, "/recordId"));
        assert!(refused.detail.contains("Idempotency-Key"), "{refused}");
        assert!(parse(record.as_bytes(), None, 0).is_ok());
        let null = record.replace("\"mine\"", "null");
        assert!(parse(null.as_bytes(), Some("k"), 0).is_ok(), "null means absent");
        assert_eq!(parse(b"{", Some("k"), 0).expect_err("no JSON").code, code::INVALID_JSON);
    }
}
