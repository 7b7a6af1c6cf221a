//! The two paths that take records, as the OpenAPI document shows them.

use poem::{Request, web::Data};
use poem_openapi::{
    ApiResponse, Object, OpenApi, Tags,
    param::{Header, Path},
    payload::Json,
};

use super::{
    Acceptor, batch,
    body::{self, Format},
    idempotency, reversal,
    schema::{ManyRecords, OneRecord, OneReversal},
    single,
};
use crate::{
    domain::Text,
    http::{
        App,
        auth::Ingester,
        problem::{Failure, ItemError},
        rate_limits::Admission,
    },
};

#[derive(Tags)]
enum Tag {
    /// Records in.
    Records,
}

/// The paths that take records.
#[derive(Debug, Clone, Copy)]
pub struct RecordsApi;

/// A record that was taken.
#[derive(Debug, Object)]
#[oai(rename_all = "camelCase")]
pub struct Queued {
    /// The record's id, given or derived.
    pub record_id: String,
    /// Always `queued`: it is on disk and will be processed.
    pub status: String,
}

/// Records before this one on the same destination, reference and unit.
#[derive(Debug, Object)]
#[oai(rename = "PreviousSummary", rename_all = "camelCase")]
pub struct Summary {
    /// Number of records.
    pub previous_count: i64,
    /// Their signed sum, a decimal; `0` for the first.
    pub previous_total: String,
    /// The unit.
    pub unit: String,
}

/// A record that was processed.
#[derive(Debug, Object)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
pub struct Processed {
    /// The record's id, given or derived.
    pub record_id: String,
    /// Always `processed`.
    pub status: String,
    /// The shard that it is in.
    pub shard: u16,
    /// Its number in the shard: the notification's id is `<shard>-<seq>`.
    pub seq: i64,
    /// Records before it. Absent of a duplicate whose original is no longer kept, and for a key that is limited to some
    /// sources: it would count records of others.
    pub summary: Option<Summary>,
    /// True when the id was taken by the same content before: this is how the original stands.
    pub duplicate: Option<bool>,
}

/// The outcome of one record.
#[derive(Debug, ApiResponse)]
pub enum Taken {
    /// It is processed; only with `Prefer: wait`.
    #[oai(status = 200)]
    Processed(Json<Processed>),
    /// It is on disk and will be processed.
    #[oai(status = 202)]
    Queued(Json<Queued>),
}

/// The outcome of a batch that was accepted in part or whole, or was empty.
#[derive(Debug, Object)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
pub struct BatchReport {
    /// Items that are on disk and will be processed.
    pub accepted: u64,
    /// Items that were not taken, or whose outcome is unknown.
    pub rejected: u64,
    /// The error of each item that was not accepted, by index.
    pub errors: Vec<ItemError>,
    /// Present when reading stopped early: index of the first item that was not looked at.
    pub next_index: Option<u64>,
}

/// The answer to a batch.
#[derive(Debug, ApiResponse)]
pub enum BatchTaken {
    /// Something was taken, or there was nothing.
    #[oai(status = 202)]
    Report(Json<BatchReport>),
}

/// Admits a request before its body is read. `bytes`: the most that it holds, and whether it passes on what it reads.
fn admit(app: &App, caller: &Ingester, request: &Request, bytes: (usize, bool)) -> Result<Admission, Failure> {
    let limits = app.manifest.borrow().manifest.spec.limits;
    app.limiter.admit(limits, caller.0.rate_limits(), request, bytes)
}

#[OpenApi(tag = "Tag::Records")]
impl RecordsApi {
    /// Send one record
    ///
    /// Answers 202 when the record is on disk. A record sent again with the same id and content counts once. With
    /// `Prefer: wait=5` the answer is how the record was applied, if that happens within so many seconds (at most 60):
    /// 200 processed, 409 `record_conflict` when its id is taken by other content, 422 `dead_lettered` when it could not
    /// be applied.
    ///
    /// A record that is outside the limit of the key is a 403 `outside_limit`. Where limits apply to what is sent, the answer
    /// has `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), and over a limit it is a 429
    /// `rate_limited`.
    #[oai(path = "/records", method = "post", operation_id = "sendRecord")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn send_record(
        &self,
        caller: Ingester,
        app: Data<&App>,
        acceptor: Data<&Acceptor>,
        request: &Request,
        /// A record without a recordId gets an id derived from this key, the sourceId and its index in the request. Beside a
        /// recordId it is a 422. `X-Idempotency-Key` is a 400.
        #[oai(name = "Idempotency-Key", validator(min_length = 1, max_length = 200, pattern = "^[!-~]+$"))]
        _key: Header<Option<String>>,
        /// `wait=N`: wait up to N seconds for the outcome. Other preferences are ignored.
        #[oai(name = "Prefer")]
        _prefer: Header<Option<String>>,
        /// W3C trace context; continues to the notification. Ignored when it is not well-formed.
        #[oai(name = "traceparent")]
        _traceparent: Header<Option<String>>,
        body: OneRecord,
    ) -> Result<Taken, Failure> {
        let key = idempotency::key(request)?;
        let admission = admit(app.0, &caller, request, (body::RECORD_BYTES, false))?;
        single::send(app.0, acceptor.0, request, (&caller.0, &admission), key.as_deref(), body).await
    }

    /// Reverse a record
    ///
    /// Takes back a processed record, wholly or in part, by another record with `reverses`: of the other type, with the time,
    /// source, destination, unit and reference of the record. It is queued, processed and published as any record, and counts
    /// as one. Without a value it takes what remains, and its id is derived from the record: sent again, it is a duplicate.
    /// The reversals of a record never add up to more than the record.
    ///
    /// The caller has the scope `admin`, or the scope `ingest` and a key that is limited to the source of the record. 404
    /// `not_found_or_queued` when the record is not processed, 410 `record_expired` when it is no longer kept, 409
    /// `already_reversed` when nothing remains, 422 `original_is_reversal`, or `exceeds_original` when the value is
    /// more than remains. A worker decides: where less remains by then, the reversal becomes a dead letter.
    #[oai(path = "/records/:recordId/reversal", method = "post", operation_id = "reverseRecord")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn reverse_record(
        &self,
        caller: Ingester,
        app: Data<&App>,
        acceptor: Data<&Acceptor>,
        request: &Request,
        /// The id of the record, percent-encoded as one segment.
        #[oai(name = "recordId")]
        record_id: Path<String>,
        /// A reversal of a value without a recordId gets an id derived from this key and the record. Without a value it is a 422.
        #[oai(name = "Idempotency-Key", validator(min_length = 1, max_length = 200, pattern = "^[!-~]+$"))]
        _key: Header<Option<String>>,
        /// `wait=N`: wait up to N seconds for the outcome. Other preferences are ignored.
        #[oai(name = "Prefer")]
        _prefer: Header<Option<String>>,
        /// W3C trace context; continues to the notification. Ignored when it is not well-formed.
        #[oai(name = "traceparent")]
        _traceparent: Header<Option<String>>,
        body: OneReversal,
    ) -> Result<Taken, Failure> {
        let key = idempotency::key(request)?;
        let original = Text::parse(record_id.0)
            .map_err(|rule| Failure::new(400, "invalid_parameter", format!("recordId in the path {rule}")))?;
        let admission = admit(app.0, &caller, request, (body::RECORD_BYTES, false))?;
        reversal::send(app.0, acceptor.0, request, (&caller.0, &admission), key.as_deref(), &original.into(), body)
            .await
    }

    /// Send many records
    ///
    /// A JSON array, or NDJSON of any length, which is answered at its end. Good items are taken whatever their
    /// neighbours are: 202 lists those that were not, each with a code. After 1,000 errors reading of NDJSON stops, and
    /// `nextIndex` says where. Nothing taken: 503 or 429 if any item may succeed later, else 422, with the same list.
    /// Items of one shard in a JSON array are taken all or none, in order, but for those of a source that has its share of a
    /// backlog (`source_over_share`). NDJSON waits for its turn at a limit of records. Lines end with U+000A. `Prefer` is not taken
    /// here. An item that is outside the limit of the key is an error `outside_limit`; when all are, the answer is 403.
    #[oai(path = "/records/batch", method = "post", operation_id = "sendRecords")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn send_records(
        &self,
        caller: Ingester,
        app: Data<&App>,
        acceptor: Data<&Acceptor>,
        request: &Request,
        /// Items without a recordId get ids derived from this key, their sourceId and their index. With it, repeat a
        /// request whole. Beside the key, an item that has a recordId is an error. `X-Idempotency-Key` is a 400.
        #[oai(name = "Idempotency-Key", validator(min_length = 1, max_length = 200, pattern = "^[!-~]+$"))]
        _key: Header<Option<String>>,
        /// W3C trace context; continues to the notifications. Ignored when it is not well-formed.
        #[oai(name = "traceparent")]
        _traceparent: Header<Option<String>>,
        body: ManyRecords,
    ) -> Result<BatchTaken, Failure> {
        let key = idempotency::key(request)?;
        let most = if body.format == Format::Json { body::BATCH_BYTES } else { batch::STREAM_BYTES };
        let admission = admit(app.0, &caller, request, (most, body.format == Format::Ndjson))?;
        batch::send(app.0, acceptor.0, request, (&caller.0, &admission), key.as_deref(), body).await
    }
}
