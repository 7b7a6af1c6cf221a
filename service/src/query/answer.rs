//! Response bodies with the schema of their type in the OpenAPI document, and pages with their cursors.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use poem::{Body, IntoResponse, Response};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
    types::{ParseFromJSON, ToJSON, Type},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{format::Format, types::Time};
use crate::{domain::render_time, http::problem::Failure, store::complete_since};

/// The header of a streamed answer whose range starts before the records that are kept.
pub(super) const COMPLETE_SINCE: &str = "Millrace-Complete-Since";
/// Items of a page when the client sends no limit.
pub(super) const DEFAULT_LIMIT: u32 = 100;
/// Maximum number of items of a page.
pub(super) const MAX_LIMIT: u32 = 1_000;

/// A JSON body written by serde, which keeps the bytes of raw JSON.
#[derive(Debug)]
pub(super) struct Answer<T, const STATUS: u16 = 200>(pub T);

impl<T: Serialize + Send, const STATUS: u16> IntoResponse for Answer<T, STATUS> {
    fn into_response(self) -> Response {
        let status = poem::http::StatusCode::from_u16(STATUS).unwrap_or(poem::http::StatusCode::OK);
        match serde_json::to_vec(&self.0) {
            Ok(body) => Response::builder().status(status).content_type("application/json").body(body),
            Err(error) => Failure::internal(&error).into_response(),
        }
    }
}

impl<T: Type, const STATUS: u16> ApiResponse for Answer<T, STATUS> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }];
        MetaResponses { responses: vec![response("The result.", STATUS, content)] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// A body of any size in the requested format. `T` is its type in JSON.
#[derive(Debug)]
pub(super) struct Streamed<T> {
    format: Format,
    body: Body,
    complete_since: Option<DateTime<Utc>>,
    json: std::marker::PhantomData<fn() -> T>,
}

impl<T> Streamed<T> {
    pub(super) fn new(format: Format, body: Body) -> Self {
        Self { format, body, complete_since: None, json: std::marker::PhantomData }
    }

    /// The same body, with the header that names the time from which it is complete.
    pub(super) fn complete_since(self, complete_since: Option<DateTime<Utc>>) -> Self {
        Self { complete_since, ..self }
    }
}

impl<T> IntoResponse for Streamed<T> {
    fn into_response(self) -> Response {
        let mut response =
            Response::builder().content_type(self.format.content_type()).header(poem::http::header::VARY, "Accept");
        if let Some(since) = self.complete_since {
            response = response.header(COMPLETE_SINCE, render_time(since));
        }
        response.body(self.body)
    }
}

impl<T: Type> ApiResponse for Streamed<T> {
    fn meta() -> MetaResponses {
        let text = |description| {
            let schema = MetaSchema { description: Some(description), ..MetaSchema::new("string") };
            MetaSchemaRef::Inline(Box::new(schema))
        };
        let content = vec![
            MetaMediaType { content_type: Format::Json.media_type(), schema: T::schema_ref() },
            MetaMediaType {
                content_type: Format::Ndjson.media_type(),
                schema: text(
                    "One JSON object per line. The last line is `end`; without it the response is not complete. Only \
                     U+000A ends a line: a line may contain U+0085, U+2028 and U+2029, so split at U+000A and not with \
                     Python's `str.splitlines`.",
                ),
            },
            MetaMediaType {
                content_type: Format::Csv.media_type(),
                schema: text("RFC 4180, with a header line. A response that was cut lacks its final HTTP chunk."),
            },
        ];
        MetaResponses { responses: vec![response("The result, in the format that `Accept` selects.", 200, content)] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// An entry of the document.
pub(super) fn response(description: &'static str, status: u16, content: Vec<MetaMediaType>) -> MetaResponse {
    MetaResponse { description, status: Some(status), status_range: None, content, headers: Vec::new() }
}

/// One page of a list.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<T: ParseFromJSON + ToJSON + Send + Sync> {
    /// The items, in the order that the path documents.
    pub items: Vec<T>,
    /// Send it as `cursor`, with the same filters, for the next page; absent on the last page, except
    /// with `order=processed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Items from before this time can be missing: they are no longer kept. Absent where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_since: Option<Time>,
}

impl<T: ParseFromJSON + ToJSON + Send + Sync> Page<T> {
    /// The same page, with the time before which items were deleted, if its range starts before it.
    pub(super) fn kept_since(self, kept: Option<DateTime<Utc>>, start: Option<DateTime<Utc>>) -> Self {
        Self { complete_since: complete_since(kept, start).map(Time), ..self }
    }
}

/// The pages of a list: their size, and the position after which the requested page begins.
pub(super) struct Paging<P> {
    /// The position after which to continue; `None`: from the beginning.
    pub(super) after: Option<P>,
    limit: usize,
    digest: [u8; 8],
}

impl<P: Serialize + DeserializeOwned> Paging<P> {
    /// Parses a cursor. It is valid only for the path and filters for which it was issued.
    pub(super) fn new(
        path: &str,
        filters: &impl Serialize,
        cursor: Option<String>,
        limit: u32,
    ) -> Result<Self, Failure> {
        let filters = serde_json::to_vec(&(path, filters)).map_err(|error| Failure::internal(&error))?;
        let full = Sha256::digest(&filters);
        let digest = std::array::from_fn(|index| full[index]);
        let mut this = Self { after: None, limit: limit.clamp(1, MAX_LIMIT) as usize, digest };
        this.after = cursor.map(|cursor| this.place(&cursor)).transpose()?;
        Ok(this)
    }

    /// Number of rows to read: one more than a page has, which shows whether another page follows.
    pub(super) fn rows(&self) -> i64 {
        self.limit as i64 + 1
    }

    /// Maximum number of items to return.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Makes a page of the rows that were read.
    pub(super) fn page<R, T>(&self, mut rows: Vec<R>, place: impl Fn(&R) -> P, item: impl Fn(R) -> T) -> Page<T>
    where
        T: ParseFromJSON + ToJSON + Send + Sync,
    {
        let more = rows.len() > self.limit;
        rows.truncate(self.limit);
        let next_cursor = rows.last().filter(|_| more).and_then(|last| self.cursor(&place(last)));
        Page { items: rows.into_iter().map(item).collect(), next_cursor, complete_since: None }
    }

    /// The cursor of a position.
    pub(super) fn cursor(&self, place: &P) -> Option<String> {
        let mut bytes = self.digest.to_vec();
        serde_json::to_writer(&mut bytes, place).ok()?;
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The position of a cursor. A client can make one up, so the type `P` must refuse values that no list contains.
    fn place(&self, cursor: &str) -> Result<P, Failure> {
        URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| serde_json::from_slice(bytes.strip_prefix(&self.digest)?).ok())
            // Base64 and JSON allow several spellings of one position; only the issued one is valid.
            .filter(|place| self.cursor(place).as_deref() == Some(cursor))
            .ok_or_else(invalid_cursor)
    }
}

/// The failure for a cursor that was not issued for the request.
pub(super) fn invalid_cursor() -> Failure {
    let detail = "cursor: was not issued by this path for these filters; begin again without it";
    Failure::new(400, "invalid_cursor", detail)
}

/// The failure for an invalid parameter.
pub(super) fn invalid_parameter(name: &str, rule: &str) -> Failure {
    Failure::new(400, "invalid_parameter", format!("{name}: {rule}"))
}

/// Refuses a time range that ends before it starts. An empty range is valid, because programs compute such ranges.
pub(super) fn in_order(start: Option<Time>, end: Option<Time>) -> Result<(), Failure> {
    match (start, end) {
        (Some(start), Some(end)) if start.0 > end.0 => {
            Err(invalid_parameter("startTime", "is after endTime, so nothing can match; exchange the two"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Seq, ShardId, ShardSeq};

    fn place(seq: &i64) -> ShardSeq {
        ShardSeq { shard: ShardId::new(0), seq: Seq::new(*seq) }
    }

    #[test]
    fn a_cursor_is_valid_only_for_its_path_and_filters() {
        let paging = Paging::<ShardSeq>::new("/records", &"a", None, 2).expect("paging");
        let page = paging.page(vec![1, 2, 3], place, |n| n);
        assert_eq!(page.items, [1, 2]);
        let cursor = page.next_cursor.expect("there is more");
        let again = Paging::<ShardSeq>::new("/records", &"a", Some(cursor.clone()), 100).expect("paging");
        assert_eq!(again.after, Some(place(&2)));
        for (path, filter) in [("/records", "b"), ("/conflicts", "a")] {
            assert!(Paging::<ShardSeq>::new(path, &filter, Some(cursor.clone()), 100).is_err());
        }
        for broken in ["", "x", "!!", &cursor[1..]] {
            assert!(Paging::<ShardSeq>::new("/records", &"a", Some(broken.to_owned()), 100).is_err());
        }
        assert!(paging.page(vec![1, 2], place, |n| n).next_cursor.is_none());
    }
}
