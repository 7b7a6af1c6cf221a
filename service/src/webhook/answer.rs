//! The result of one request: a status, or the cause why there is none.

use std::time::Duration;

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderValue, RETRY_AFTER},
};

/// Longest pause that an endpoint can ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The pause that it asks for.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// `now` in seconds since 1970, for a pause that is given as a time.
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, now: u64) -> Self {
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| pause(value, now));
        Self { status: status.as_u16(), retry_after: retry_after.map(|pause| pause.min(LONGEST_RETRY_AFTER)) }
    }

    /// Whether the delivery succeeded.
    #[must_use]
    pub fn is_success(self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the endpoint is gone for good.
    #[must_use]
    pub fn is_gone(self) -> bool {
        self.status == StatusCode::GONE.as_u16()
    }
}

/// Why a request has no answer. A text names no more than what the manifest has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The name has no address.
    #[error("the name does not resolve")]
    Unresolved,
    /// All of its addresses are denied.
    #[error("the address {0} is private or of another special use; webhook.allowedCidrs can allow it")]
    Denied(String),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection ended, or what came is no HTTP.
    #[error("no answer: {0}")]
    Http(String),
    /// It takes too long.
    #[error("no answer within {0} s")]
    TimedOut(u64),
}

fn pause(value: &HeaderValue, now: u64) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(at.as_secs().saturating_sub(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_of_an_answer_is_read_in_both_forms_and_bounded() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(value).expect("a value"));
            Answer::new(StatusCode::SERVICE_UNAVAILABLE, &headers, 1_445_412_400)
                .retry_after
                .map(|pause| pause.as_secs())
        };
        assert_eq!(read("120"), Some(120));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(80));
        assert_eq!(read("Tue, 21 Oct 2014 07:28:00 GMT"), Some(0));
        assert_eq!(read("99999999999"), Some(86_400));
        assert_eq!((read("soon"), read("-1")), (None, None));
    }
}
