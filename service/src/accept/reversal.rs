//! Reversals: a record that takes back another passes through the input stream like any record.
//!
//! What Postgres shows here only serves clear answers: the commit decides how much of the record remains. Must never refuse
//! a reversal whose id is taken: that is a duplicate or a conflict.

use poem::Request;

use super::{
    Acceptor,
    api::Taken,
    body, count_rejected,
    schema::OneReversal,
    single::{self, RIGHT_TO_REVERSE, Ready},
};
use crate::{
    domain::{Amount, Invalid, RecordId, ReversalDraft, ReversalRequest, ShardSeq, code, reversal_id},
    http::{App, auth::Caller, problem::Failure, rate_limits::Admission},
    store::StoredRecord,
};

/// Takes a reversal of a record.
pub(super) async fn send(
    app: &App,
    acceptor: &Acceptor,
    request: &Request,
    (caller, admission): (&Caller, &Admission),
    key: Option<&str>,
    original: &RecordId,
    body: OneReversal,
) -> Result<Taken, Failure> {
    if !caller.may_reverse() {
        let detail = format!("a reversal {RIGHT_TO_REVERSE}");
        return Err(Failure::new(403, "insufficient_scope", detail));
    }
    let bytes = body::whole(body.0, body::RECORD_BYTES).await?;
    admission.read(bytes.len())?;
    let read = || {
        let asked = ReversalRequest::parse(body::without_mark(&bytes))?;
        let record_id = id_of(&asked, original, key)?;
        Ok((asked, record_id))
    };
    let (asked, record_id) = read().map_err(|invalid: Invalid| {
        count_rejected(invalid.code, 1);
        Failure::from(invalid)
    })?;
    let found = find(app, caller, original).await?;
    let checked = check(app, &found, asked.value).await;
    // Asked after what remains: the commit of this very reversal takes both.
    if !app.store.is_taken(&record_id).await? {
        checked.inspect_err(|failure| count_rejected(&failure.problem().code, 1))?;
        if let Some(actor) = caller.administrator(request, app) {
            // Before the append: a worker may decide the reversal before that returns.
            app.store.note_reversal(original, &record_id, asked.reason.as_str(), &actor).await?;
        }
    }
    let draft = ReversalDraft::new(&found.content()?, record_id.clone(), asked.value, &asked.reason);
    let StoredRecord { source_id, destination_id, .. } = found;
    let ready = Ready { record_id, source_id, destination_id, json: draft.to_json() };
    single::take(app, acceptor, request, (caller.limit(), admission), ready).await
}

/// The id of a reversal: of what remains, derived from the record alone, so that there is one; of a value, given or derived
/// from the key.
fn id_of(asked: &ReversalRequest, original: &RecordId, key: Option<&str>) -> Result<RecordId, Invalid> {
    let refused = |detail| Err(Invalid::new(code::INVALID_VALUE, "/recordId", detail));
    match (asked.value, &asked.record_id, key) {
        (None, None, None) => Ok(reversal_id(original, None)),
        (None, ..) => refused(
            "and Idempotency-Key are not taken without a value: the id of a reversal of what remains is derived from the record",
        ),
        (Some(_), Some(_), Some(_)) => refused("is given beside an Idempotency-Key header; leave one of the two out"),
        (Some(_), Some(id), None) => Ok(id.clone()),
        (Some(_), None, Some(key)) => Ok(reversal_id(original, Some(key))),
        (Some(_), None, None) => {
            let detail = "is missing; with a value, give it or send an Idempotency-Key header from which it is derived";
            Err(Invalid::new(code::MISSING_FIELD, "/recordId", detail))
        }
    }
}

/// The processed record, as far as the caller may reach it.
async fn find(app: &App, caller: &Caller, original: &RecordId) -> Result<StoredRecord, Failure> {
    let limit = caller.limit();
    let found = app.store.find_record(original).await?.map(|found| found.record);
    if let Some(found) = found.filter(|found| limit.allows(&found.source_id, &found.destination_id)) {
        return Ok(found);
    }
    match app.store.expired_period(original, limit).await? {
        Some(period) => Err(Failure::record_expired(period)),
        None => {
            let detail =
                "there is no processed record of this id; one that is queued can be reversed once it is processed";
            Err(Failure::new(404, "not_found_or_queued", detail).with(|problem| problem.retryable = true))
        }
    }
}

/// Checks that a record can be reversed, as far as Postgres shows now.
async fn check(app: &App, original: &StoredRecord, value: Option<Amount>) -> Result<(), Failure> {
    if original.reverses.is_some() {
        let detail = "this record is a reversal itself, which cannot be reversed: send a new record";
        return Err(Failure::new(422, "original_is_reversal", detail));
    }
    let reversed = app.store.reversals_of(ShardSeq { shard: original.shard, seq: original.seq }, 1).await?;
    let rest = reversed.rest().unwrap_or(&original.value);
    let remains: rust_decimal::Decimal = rest.parse().unwrap_or_default();
    if remains.is_zero() {
        return Err(Failure::new(409, "already_reversed", "nothing of this record remains that could be reversed"));
    }
    if value.is_some_and(|value| value.get() > remains) {
        let detail = format!("is more than the {rest} that remain of the record; reverse at most that");
        return Err(Failure::at(422, "exceeds_original", Some("/value".to_owned()), detail));
    }
    Ok(())
}
