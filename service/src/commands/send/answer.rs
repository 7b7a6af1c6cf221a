//! Answers to a batch: of the service, or of a proxy on the way to it.
//!
//! Must never take a foreign answer for one of the service: a proxy's page says nothing about any row.

use std::{fmt, time::Duration};

use hyper::{
    StatusCode,
    header::{self, HeaderMap},
};
use serde::Deserialize;

/// Characters of a foreign answer that a message shows.
const SHOWN: usize = 200;

/// An answer to one request.
#[derive(Debug)]
pub(in crate::commands) enum Answer {
    /// The service's report: each row without an error is accepted.
    Report(Report),
    /// The service's problem: no row is accepted.
    Problem(Problem),
    /// Anything else.
    External(External),
}

/// The body of a 202 of `POST /records/batch`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Report {
    accepted: usize,
    rejected: usize,
    pub(super) errors: Vec<ItemError>,
    /// Index of the first line that was not read; absent: all were.
    pub(super) next_index: Option<usize>,
}

/// A problem document of the service.
#[derive(Debug, Deserialize)]
pub(in crate::commands) struct Problem {
    code: String,
    #[serde(default)]
    detail: String,
    /// Whether the same request may succeed later.
    pub(in crate::commands) retryable: bool,
    /// Errors of single lines, where the problem is theirs.
    #[serde(default)]
    pub(super) errors: Vec<ItemError>,
}

/// An error of one line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ItemError {
    /// The line, from 0.
    pub(super) index: usize,
    pub(super) record_id: Option<String>,
    pub(super) code: String,
    pub(super) retryable: bool,
    pub(super) pointer: Option<String>,
    #[serde(default)]
    pub(super) detail: String,
}

/// An answer that the service did not write.
#[derive(Debug)]
pub(in crate::commands) struct External {
    status: StatusCode,
    /// Target of a redirect.
    location: Option<String>,
    /// The first characters of the body.
    start: String,
}

/// The status and headers of a response, and its whole body.
#[derive(Debug)]
pub(in crate::commands) struct Response {
    pub(in crate::commands) status: StatusCode,
    pub(in crate::commands) headers: HeaderMap,
    pub(in crate::commands) body: Vec<u8>,
}

impl Response {
    /// `Retry-After`; only in seconds.
    pub(in crate::commands) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(header::RETRY_AFTER)?;
        value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
    }

    /// Reads the answer to a request of so many lines. The media type, the form of the body and the number of rows all
    /// have to be those of the service.
    pub(super) fn read(&self, lines: usize) -> Answer {
        if self.media_type() == "application/json"
            && self.status == StatusCode::ACCEPTED
            && let Some(report) = serde_json::from_slice(&self.body).ok().filter(|report: &Report| report.fits(lines))
        {
            return Answer::Report(report);
        }
        self.failure()
    }

    /// Reads an answer that is not the wanted one.
    pub(in crate::commands) fn failure(&self) -> Answer {
        if self.media_type() == "application/problem+json"
            && (self.status.is_client_error() || self.status.is_server_error())
            && let Ok(problem) = serde_json::from_slice(&self.body)
        {
            return Answer::Problem(problem);
        }
        let text = String::from_utf8_lossy(&self.body);
        let location = self.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        Answer::External(External {
            status: self.status,
            location: location.filter(|_| self.status.is_redirection()).map(str::to_owned),
            start: text.trim().chars().take(SHOWN).flat_map(char::escape_debug).collect(),
        })
    }

    /// Its media type, without parameters.
    pub(in crate::commands) fn media_type(&self) -> String {
        let value = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }
}

impl Report {
    /// Whether it accounts for each line of the request.
    fn fits(&self, lines: usize) -> bool {
        let read = self.accepted + self.rejected;
        self.rejected == self.errors.len()
            && self.errors.iter().all(|error| error.index < lines)
            && match self.next_index {
                None => read == lines,
                Some(next) => read >= next && read <= lines,
            }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl External {
    /// Whether a proxy may answer otherwise in a moment: it limits requests, or does not reach the service.
    pub(in crate::commands) fn may_pass(&self) -> bool {
        matches!(self.status.as_u16(), 408 | 429 | 502 | 503 | 504)
    }

    /// Whether a proxy refuses the request for its size.
    pub(super) fn is_too_large(&self) -> bool {
        self.status == StatusCode::PAYLOAD_TOO_LARGE
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, location, start } = self;
        write!(f, "{status}, which is no answer of Millrace")?;
        match (location, start.is_empty()) {
            (Some(location), _) => write!(f, " but a redirect to {location}"),
            (None, true) => f.write_str(" (no body)"),
            (None, false) => write!(f, ": {start}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, media_type: &str, body: &str) -> Answer {
        let headers = [(header::CONTENT_TYPE, media_type.parse().expect("a value"))].into_iter().collect();
        let status = StatusCode::from_u16(status).expect("a status");
        Response { status, headers, body: body.as_bytes().to_vec() }.read(3)
    }

    #[test]
    fn only_a_report_that_counts_every_line_is_the_services() {
        for body in [
            r#"{"accepted":3,"rejected":0,"errors":[]}"#,
            r#"{"accepted":2,"rejected":1,"errors":[{"index":2,"code":"x","retryable":false}],"more":1}"#,
            r#"{"accepted":1,"rejected":1,"errors":[{"index":1,"code":"x","retryable":true}],"nextIndex":1}"#,
        ] {
            assert!(matches!(read(202, "application/json; charset=utf-8", body), Answer::Report(_)), "{body}");
        }
        for (status, media_type, body) in [
            (202, "application/json", "{}"),
            (202, "application/json", "[]"),
            (202, "application/json", ""),
            (202, "application/json", r#"{"status":"ok"}"#),
            (202, "application/json", r#"{"accepted":2,"rejected":0,"errors":[]}"#),
            (202, "application/json", r#"{"accepted":3,"rejected":1,"errors":[]}"#),
            (
                202,
                "application/json",
                r#"{"accepted":2,"rejected":1,"errors":[{"index":3,"code":"x","retryable":true}]}"#,
            ),
            (202, "text/html", r#"{"accepted":3,"rejected":0,"errors":[]}"#),
            (200, "application/json", r#"{"accepted":3,"rejected":0,"errors":[]}"#),
            (404, "application/json", r#"{"message":"no route"}"#),
            (403, "application/problem+json", r#"{"title":"Forbidden"}"#),
            (302, "application/problem+json", r#"{"code":"x","retryable":false}"#),
        ] {
            assert!(matches!(read(status, media_type, body), Answer::External(_)), "{status} {media_type} {body}");
        }
        let problem = read(429, "application/problem+json", r#"{"code":"backlog_full","detail":"d","retryable":true}"#);
        assert!(
            matches!(problem, Answer::Problem(problem) if problem.retryable && problem.to_string() == "backlog_full: d")
        );
    }

    #[test]
    fn a_foreign_answer_is_shown_by_status_and_first_characters() {
        let text = |status, body: &str| match read(status, "text/html", body) {
            Answer::External(external) => external.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(text(425, ""), "425 Too Early, which is no answer of Millrace (no body)");
        let long = text(520, &format!("\n<html>\u{1b}{}", "x".repeat(1000)));
        assert!(long.contains(r"Millrace: <html>\u{1b}xxx") && long.len() < 280, "{long}");
    }
}
