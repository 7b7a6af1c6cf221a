//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! Internal errors are logged here once, with an id, and never shown.

use std::time::Instant;

use poem_openapi::{ApiResponse, Object, payload::Json, types::ToJSON as _};

use crate::{
    domain, store, streams,
    telemetry::{limits, trace},
};

/// An error, in a form that programs can read.
#[derive(Debug, Clone, Object)]
#[oai(skip_serializing_if_is_none, rename_all = "camelCase")]
pub struct Problem {
    /// Always `about:blank`: `code` tells the kind.
    pub r#type: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable code; docs/errors.md lists all.
    pub code: String,
    /// Fault and remedy.
    pub detail: String,
    /// JSON pointer to the field of the request body that is wrong.
    pub pointer: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Of `dead_lettered`: the dead letter, `<shard>-d<n>`.
    pub dead_letter: Option<String>,
    /// Of `dead_lettered`: why, as a stable code.
    pub reason: Option<String>,
    /// Of an outcome that was waited for: whether the id was taken by the same content, whose state this is.
    pub duplicate: Option<bool>,
    /// Of a batch of which nothing was taken: what is wrong with each item.
    pub errors: Option<Vec<ItemError>>,
    /// Of a batch that was not read to its end: index of the first item that was not looked at.
    pub next_index: Option<u64>,
}

/// The error of one item of a batch.
#[derive(Debug, Clone, Object)]
#[oai(skip_serializing_if_is_none, rename_all = "camelCase")]
pub struct ItemError {
    /// Index in the request, from 0; blank lines are not counted.
    pub index: u64,
    /// The record's id, where it could be read.
    pub record_id: Option<String>,
    /// A stable code; docs/errors.md lists all.
    pub code: String,
    /// Whether the same item may succeed later.
    pub retryable: bool,
    /// JSON pointer to the field of the item that is wrong.
    pub pointer: Option<String>,
    /// Fault and remedy.
    pub detail: String,
}

/// Every answer that is not a success. Boxed inside, for every result carries the place for it.
#[derive(Debug, ApiResponse)]
pub enum Failure {
    /// The request is not understood: wrong JSON, an unknown or repeated parameter, a cursor of another request.
    #[oai(status = 400, content_type = "application/problem+json")]
    BadRequest(Json<Box<Problem>>),
    /// No API key, or one that is not known, expired or revoked.
    #[oai(status = 401, content_type = "application/problem+json")]
    Unauthorized(Json<Box<Problem>>, #[oai(header = "WWW-Authenticate")] String),
    /// The API key lacks the scope, or its limit excludes the record or the path.
    #[oai(status = 403, content_type = "application/problem+json")]
    Forbidden(Json<Box<Problem>>, #[oai(header = "WWW-Authenticate")] String),
    /// There is nothing by that name.
    #[oai(status = 404, content_type = "application/problem+json")]
    NotFound(Json<Box<Problem>>),
    /// This path does not take this method.
    #[oai(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(Json<Box<Problem>>),
    /// None of the formats in Accept can be given.
    #[oai(status = 406, content_type = "application/problem+json")]
    NotAcceptable(Json<Box<Problem>>),
    /// The request took too long to arrive.
    #[oai(status = 408, content_type = "application/problem+json")]
    Timeout(Json<Box<Problem>>),
    /// The state of things does not allow it.
    #[oai(status = 409, content_type = "application/problem+json")]
    Conflict(Json<Box<Problem>>),
    /// The record is no longer kept.
    #[oai(status = 410, content_type = "application/problem+json")]
    Gone(Json<Box<Problem>>),
    /// The body is larger than allowed.
    #[oai(status = 413, content_type = "application/problem+json")]
    TooLarge(Json<Box<Problem>>),
    /// The body's content type or encoding is not taken here.
    #[oai(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(Json<Box<Problem>>),
    /// The content breaks a rule.
    #[oai(status = 422, content_type = "application/problem+json")]
    Unprocessable(Json<Box<Problem>>),
    /// A limit is reached, or too much is queued; send again after the given seconds.
    #[oai(status = 429, content_type = "application/problem+json")]
    TooManyRequests(Json<Box<Problem>>, #[oai(header = "Retry-After")] u64),
    /// A fault of ours.
    #[oai(status = 500, content_type = "application/problem+json")]
    Internal(Json<Box<Problem>>),
    /// A server behind this one is unavailable, or the outcome is unknown; send again with the same id.
    #[oai(status = 503, content_type = "application/problem+json")]
    Unavailable(Json<Box<Problem>>, #[oai(header = "Retry-After")] u64),
}

impl Failure {
    /// A failure of a status, with a stable code and a sentence with the remedy.
    #[must_use]
    pub fn new(status: u16, code: &str, detail: impl Into<String>) -> Self {
        Self::at(status, code, None, detail)
    }

    /// A failure that points at a field of the body.
    #[must_use]
    pub fn at(status: u16, code: &str, pointer: Option<String>, detail: impl Into<String>) -> Self {
        let title = poem::http::StatusCode::from_u16(status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Error");
        let problem = Json(Box::new(Problem {
            r#type: "about:blank".to_owned(),
            title: title.to_owned(),
            status,
            code: code.to_owned(),
            detail: detail.into(),
            pointer,
            retryable: matches!(status, 408 | 429 | 503),
            dead_letter: None,
            reason: None,
            duplicate: None,
            errors: None,
            next_index: None,
        }));
        let challenge = |error: &str| format!("Bearer realm=\"millrace\"{error}");
        match status {
            400 => Self::BadRequest(problem),
            401 if code == "missing_key" => Self::Unauthorized(problem, challenge("")),
            401 => Self::Unauthorized(problem, challenge(", error=\"invalid_token\"")),
            403 => Self::Forbidden(problem, challenge(", error=\"insufficient_scope\"")),
            404 => Self::NotFound(problem),
            405 => Self::MethodNotAllowed(problem),
            406 => Self::NotAcceptable(problem),
            408 => Self::Timeout(problem),
            409 => Self::Conflict(problem),
            410 => Self::Gone(problem),
            413 => Self::TooLarge(problem),
            415 => Self::UnsupportedMediaType(problem),
            422 => Self::Unprocessable(problem),
            429 => Self::TooManyRequests(problem, 1),
            503 => Self::Unavailable(problem, 1),
            _ => Self::Internal(problem),
        }
    }

    /// The refusal of a record whose period is no longer kept.
    #[must_use]
    pub fn record_expired(period: domain::Period) -> Self {
        let detail = format!("the record was processed in the period that began on {period}, which is no longer kept");
        Self::new(410, "record_expired", detail)
    }

    /// The same with another number of seconds after which the request may succeed.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        if let Self::TooManyRequests(_, after) | Self::Unavailable(_, after) = &mut self {
            *after = seconds.max(1);
        }
        self
    }

    /// Its body.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        match self {
            Self::BadRequest(Json(problem))
            | Self::Unauthorized(Json(problem), _)
            | Self::Forbidden(Json(problem), _)
            | Self::NotFound(Json(problem))
            | Self::MethodNotAllowed(Json(problem))
            | Self::NotAcceptable(Json(problem))
            | Self::Timeout(Json(problem))
            | Self::Conflict(Json(problem))
            | Self::Gone(Json(problem))
            | Self::TooLarge(Json(problem))
            | Self::UnsupportedMediaType(Json(problem))
            | Self::Unprocessable(Json(problem))
            | Self::TooManyRequests(Json(problem), _)
            | Self::Internal(Json(problem))
            | Self::Unavailable(Json(problem), _) => problem,
        }
    }

    /// The same with more said.
    #[must_use]
    pub fn with(mut self, say: impl FnOnce(&mut Problem)) -> Self {
        match &mut self {
            Self::BadRequest(Json(problem))
            | Self::Unauthorized(Json(problem), _)
            | Self::Forbidden(Json(problem), _)
            | Self::NotFound(Json(problem))
            | Self::MethodNotAllowed(Json(problem))
            | Self::NotAcceptable(Json(problem))
            | Self::Timeout(Json(problem))
            | Self::Conflict(Json(problem))
            | Self::Gone(Json(problem))
            | Self::TooLarge(Json(problem))
            | Self::UnsupportedMediaType(Json(problem))
            | Self::Unprocessable(Json(problem))
            | Self::TooManyRequests(Json(problem), _)
            | Self::Internal(Json(problem))
            | Self::Unavailable(Json(problem), _) => say(problem),
        }
        self
    }

    /// An error of ours: logged with its cause, shown without.
    #[must_use]
    pub fn internal(error: &dyn std::error::Error) -> Self {
        if limits::FAILED.allows(Instant::now()) {
            tracing::error!(event = "http.request.failed", trace_id = trace::current_id(), error = %error, "a request failed with an internal error");
        }
        Self::new(500, "internal", "the service failed; the log says why")
    }
}

impl From<domain::Invalid> for Failure {
    fn from(invalid: domain::Invalid) -> Self {
        let status = match invalid.code {
            domain::code::INVALID_JSON if invalid.pointer.is_empty() => 400,
            domain::code::OUTSIDE_LIMIT => 403,
            _ => 422,
        };
        let pointer = (!invalid.pointer.is_empty()).then_some(invalid.pointer);
        Self::at(status, invalid.code, pointer, invalid.detail)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match &error {
            store::Error::Sql(sqlx::Error::Database(database)) if error_is_ours(database.code().as_deref()) => {
                Self::internal(&error)
            }
            store::Error::Sql(sqlx::Error::ColumnDecode { .. } | sqlx::Error::Encode(_) | sqlx::Error::Decode(_)) => {
                Self::internal(&error)
            }
            _ => {
                if limits::POSTGRES_UNAVAILABLE.allows(Instant::now()) {
                    tracing::warn!(event = "http.postgres.unavailable", trace_id = trace::current_id(), error = %error, "a request failed because Postgres is unavailable");
                }
                Self::new(503, "postgres_unavailable", "the database cannot be asked now; ask again")
            }
        }
    }
}

/// An answer in its very bytes, for where no request could be read and the connection ends.
#[must_use]
pub(super) fn bare(status: u16, code: &str, detail: &str) -> Vec<u8> {
    let failure = Failure::new(status, code, detail);
    let problem = failure.problem();
    let body = problem.to_json_string();
    let again = if status == 503 { "retry-after: 1\r\n" } else { "" };
    let (title, length) = (&problem.title, body.len());
    format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\ncontent-length: {length}\r\n{again}\
         connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Whether an SQLSTATE is about our statement rather than the server's state.
fn error_is_ours(code: Option<&str>) -> bool {
    code.is_some_and(|code| ["22", "23", "42", "0A"].iter().any(|class| code.starts_with(class)))
}

impl From<streams::Error> for Failure {
    fn from(error: streams::Error) -> Self {
        if limits::REDIS_UNAVAILABLE.allows(Instant::now()) {
            tracing::warn!(event = "http.redis.unavailable", trace_id = trace::current_id(), error = %error, "a request failed because Redis is unavailable");
        }
        Self::new(503, "redis_unavailable", "Redis cannot be reached now; send again with the same recordId")
    }
}
