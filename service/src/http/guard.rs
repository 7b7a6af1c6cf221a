//! Bounds for request bodies: how long one may be, and how long its next part may take.
//!
//! Must never buffer: it only looks at what passes.

use std::{io, time::Duration};

use futures::StreamExt as _;
use poem::{Body, error::ReadBodyError};

use super::problem::Failure;

/// Longest wait for the next part of a body.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Why a body was not read on.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Cut {
    #[error("the next part of the body took too long")]
    Slow,
    #[error("the body is too large")]
    Large,
}

/// Passes a body on, until it is longer than `limit` bytes or its next part takes longer than `patience`.
#[must_use]
pub(crate) fn guard(body: Body, limit: Option<usize>, patience: Duration) -> Body {
    let parts = Box::pin(body.into_bytes_stream());
    let state = (parts, limit.unwrap_or(usize::MAX));
    Body::from_bytes_stream(futures::stream::unfold(Some(state), move |state| async move {
        let (mut parts, left) = state?;
        match tokio::time::timeout(patience, parts.next()).await {
            Err(_) => Some((Err(io::Error::other(Cut::Slow)), None)),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(Some(Ok(part))) if part.len() > left => Some((Err(io::Error::other(Cut::Large)), None)),
            Ok(Some(Ok(part))) => {
                let left = left - part.len();
                Some((Ok(part), Some((parts, left))))
            }
        }
    }))
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
                format!("no part of the body came for {} s; send it again", PATIENCE.as_secs()),
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
