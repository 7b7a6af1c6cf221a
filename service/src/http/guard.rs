//! Bounds for request bodies: how long one may be, and how slowly it may come.
//!
//! Must never buffer: it only looks at what passes.

use std::{io, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use poem::{
    Body, Request,
    error::ReadBodyError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT},
};
use tokio::time::Instant;

use super::problem::Failure;

/// For how long a body is waited for, over all its parts, until it has to have brought [`LEAST`] more.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that come within [`TIMEOUT`], unless the body ends: who sends a byte a second wants something else.
const LEAST: usize = 1024;

/// Why a body was not read on.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Cut {
    #[error("the body came too slowly")]
    Slow,
    #[error("the body is too large")]
    Large,
}

/// Whether the client waits for a word before it sends a body that is longer than `limit` bytes: what is not asked for, it
/// does not send.
#[must_use]
pub(crate) fn waits_with_more_than(limit: usize, request: &Request) -> bool {
    let headers = request.headers();
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let waits = headers.get(EXPECT).is_some_and(|word| word.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    waits && !headers.contains_key(CONTENT_ENCODING) && length.is_some_and(|length| length > limit)
}

/// Passes a body on, until it is longer than `limit` bytes, or less than [`LEAST`] of it came in a wait of `timeout`. Time
/// in which nobody asks for its next part is not the client's.
#[must_use]
pub(crate) fn guard(body: Body, limit: Option<usize>, timeout: Duration) -> Body {
    let parts = Box::pin(body.into_bytes_stream());
    let state = (parts, limit.unwrap_or(usize::MAX), Wait { left: timeout, came: 0 });
    Body::from_bytes_stream(futures::stream::unfold(Some(state), move |state| async move {
        let (mut parts, left, mut wait) = state?;
        // Most parts are there already, and need no clock.
        let next = match parts.next().now_or_never() {
            Some(next) => Ok(next),
            None => {
                let began = Instant::now();
                let next = tokio::time::timeout(wait.left, parts.next()).await;
                wait.left = wait.left.saturating_sub(began.elapsed());
                next
            }
        };
        match next {
            Err(_) => Some((Err(io::Error::other(Cut::Slow)), None)),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(Some(Ok(part))) if part.len() > left => Some((Err(io::Error::other(Cut::Large)), None)),
            Ok(Some(Ok(part))) => {
                wait.came += part.len();
                if wait.came >= LEAST {
                    wait = Wait { left: timeout, came: 0 };
                }
                let left = left - part.len();
                Some((Ok(part), Some((parts, left, wait))))
            }
        }
    }))
}

/// The rest of the wait for the next [`LEAST`] bytes, and the number of received ones.
struct Wait {
    left: Duration,
    came: usize,
}

/// The answer when it was the guard that stopped the reading.
#[must_use]
pub(crate) fn failure(error: &io::Error) -> Option<Failure> {
    // Readers wrap errors of what they read from in errors of their own.
    let mut inner: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(error) = inner.downcast_ref::<io::Error>()
            && let Some(source) = error.get_ref()
        {
            inner = source;
            continue;
        }
        return match inner.downcast_ref::<Cut>() {
            Some(Cut::Slow) => Some(Failure::new(
                408,
                "request_timeout",
                format!("less than {LEAST} bytes of the body came in {} s; send it again", TIMEOUT.as_secs()),
            )),
            Some(Cut::Large) => Some(Failure::new(413, "too_large", "the body is larger than this path takes")),
            None => inner.source().and_then(|source| source.downcast_ref::<io::Error>()).and_then(failure),
        };
    }
}

/// The answer to a framework's error in reading a body.
#[must_use]
pub(crate) fn read_failure(error: &ReadBodyError) -> Failure {
    match error {
        ReadBodyError::Io(error) => failure(error)
            .unwrap_or_else(|| Failure::new(400, "unreadable_body", "the body ended early; send it again")),
        ReadBodyError::PayloadTooLarge => Failure::new(413, "too_large", "the body is larger than this path takes"),
        ReadBodyError::Utf8(_) => Failure::new(400, "invalid_json", "the body is not UTF-8"),
        ReadBodyError::BodyHasBeenTaken => Failure::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A body whose parts come so long after one another.
    fn body(parts: usize, bytes: usize, pause: Duration) -> Body {
        let parts = futures::stream::iter(0..parts).then(move |_| async move {
            tokio::time::sleep(pause).await;
            io::Result::Ok(Bytes::from(vec![b'x'; bytes]))
        });
        Body::from_bytes_stream(parts)
    }

    async fn cut(body: Body) -> Option<(u16, usize)> {
        let mut parts = Box::pin(guard(body, Some(100_000), TIMEOUT).into_bytes_stream());
        let mut came = 0;
        while let Some(part) = parts.next().await {
            match part {
                Ok(part) => came += part.len(),
                Err(error) => return Some((failure(&error).expect("of the guard").problem().status, came)),
            }
        }
        None
    }

    /// The clock is the runtime's: it continues by itself while all tasks wait.
    #[tokio::test(start_paused = true)]
    async fn a_body_has_to_keep_coming_and_may_be_slow() {
        let second = Duration::from_secs(1);
        assert_eq!(cut(body(10_000, 1, second)).await, Some((408, 30)), "a byte a second");
        assert_eq!(cut(body(25, 1, second)).await, None, "it ended in time");
        assert_eq!(cut(body(2, 1, TIMEOUT * 2)).await, Some((408, 0)), "silence");
        assert_eq!(cut(body(90, 1_000, second * 10)).await, None, "a hundred bytes a second, for a quarter of an hour");
        assert_eq!(cut(body(11, 10_000, second)).await, Some((413, 100_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_reads_is_not_the_clients() {
        let mut parts = Box::pin(guard(body(100, 1, Duration::from_millis(100)), None, TIMEOUT).into_bytes_stream());
        let mut came = 0;
        while let Some(part) = parts.next().await {
            came += part.expect("the client is quick").len();
            tokio::time::sleep(TIMEOUT).await;
        }
        assert_eq!(came, 100);
    }
}
