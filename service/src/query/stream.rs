//! Responses of any size: a task writes into a bounded channel, so that memory stays constant however slow the reader
//! is.
//!
//! A part must never look complete: unless the task reported its end, the body ends with an error, and the server
//! closes the connection without the final chunk. A client that disconnects ends its task, and the end of the task ends
//! the query.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream};
use poem::Body;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::{domain::render_time, http::problem::Failure, store, telemetry::limits};

/// Bytes of a chunk.
const CHUNK: usize = 32 * 1024;
/// Time after which a response is cut when its reader takes none of the ready chunks. Slots are few: a stalled reader
/// must not hold one for long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum of concurrent streamed responses of one process. Each holds a connection to Postgres.
const AT_ONCE: usize = 4;

/// Why a response was cut.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("postgres: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("the reader disconnected or took too long")]
    Reader,
    #[error("the response could not be serialized: {0}")]
    Write(#[from] serde_json::Error),
    #[error("{0} records were counted and {1} were read in one snapshot")]
    Inconsistent(i64, i64),
}

/// Bounds the number of concurrent streamed responses.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Semaphore>);

impl Default for Slots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Slots {
    /// Takes a slot. Fails if all are taken.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let detail = "this process streams its maximum number of responses now; retry";
            Failure::new(503, "too_many_queries", detail)
        })
    }
}

/// The buffer and channel into which a task writes its response.
pub(super) struct Out {
    pub(super) buffer: Vec<u8>,
    chunks: mpsc::Sender<Option<Bytes>>,
}

/// The fields `asOf` and `completeSince` of a streamed answer.
pub(super) fn head(as_of: &str, since: Option<DateTime<Utc>>) -> String {
    let since = since.map(|since| format!(",\"completeSince\":\"{}\"", render_time(since)));
    format!("\"asOf\":\"{as_of}\"{}", since.unwrap_or_default())
}

impl Out {
    /// Writes text as it is.
    pub(super) fn text(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    /// Writes a value as JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Cut> {
        Ok(serde_json::to_writer(&mut self.buffer, value)?)
    }

    /// Sends the buffer when it is large enough for a chunk.
    pub(super) async fn pass(&mut self) -> Result<(), Cut> {
        if self.buffer.len() < CHUNK {
            return Ok(());
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Cut> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK + 1024));
        self.send(Some(full.into())).await
    }

    async fn send(&self, chunk: Option<Bytes>) -> Result<(), Cut> {
        match tokio::time::timeout(TIMEOUT, self.chunks.send(chunk)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Cut::Reader),
        }
    }
}

/// Runs a task that writes a body. The body owns the task: it ends when the body is dropped.
pub(super) fn body<F, W>(slot: OwnedSemaphorePermit, write: W) -> Body
where
    W: FnOnce(Out) -> F,
    F: Future<Output = Result<Out, Cut>> + Send + 'static,
{
    let (chunks, read) = mpsc::channel(4);
    let writing = write(Out { buffer: Vec::with_capacity(CHUNK + 1024), chunks });
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        let _slot = slot;
        let outcome = match writing.await {
            // `None` marks the complete end.
            Ok(mut out) => match out.flush().await {
                Ok(()) => out.send(None).await,
                Err(cut) => Err(cut),
            },
            Err(cut) => Err(cut),
        };
        match outcome {
            Ok(()) => {}
            Err(cut @ Cut::Reader) => {
                tracing::info!(event = "query.response.aborted", reason = %cut, "aborted a streamed response")
            }
            Err(cut) if limits::CUT.allows(Instant::now()) => {
                tracing::error!(event = "query.response.aborted", reason = %cut, "aborted a streamed response")
            }
            Err(_) => {}
        }
    }));
    let parts = stream::unfold((read, task, false), |(mut read, task, ended)| async move {
        if ended {
            return None;
        }
        match read.recv().await {
            Some(Some(chunk)) => Some((Ok(chunk), (read, task, false))),
            Some(None) => None,
            None => Some((Err(io::Error::other("the response was cut")), (read, task, true))),
        }
    });
    Body::from_bytes_stream(parts.boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(body: Body) -> Result<String, String> {
        body.into_string().await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_a_complete_response_ends_without_an_error() {
        let slots = Slots::default();
        let whole = body(slots.take().expect("a slot"), |mut out| async move {
            for _ in 0..CHUNK {
                out.text("0123456789");
                out.pass().await?;
            }
            Ok(out)
        });
        assert_eq!(read(whole).await.expect("whole").len(), CHUNK * 10);
        let cut = body(slots.take().expect("a slot"), |mut out| async move {
            out.text("a part");
            out.flush().await?;
            Err(Cut::Inconsistent(1, 2))
        });
        assert!(read(cut).await.is_err());
        let panicked = body(slots.take().expect("a slot"), |mut out| async move {
            out.text("a part");
            out.flush().await?;
            panic!("as a test");
        });
        assert!(read(panicked).await.is_err());
    }

    /// The clock is the runtime's: it advances by itself while all tasks wait.
    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_loses_its_slot_and_gets_an_error() {
        let slots = Slots::default();
        let endless = || {
            body(slots.take().expect("a slot"), |mut out| async move {
                loop {
                    out.text("for ever");
                    out.pass().await?;
                }
            })
        };
        let stalled: Vec<Body> = (0..AT_ONCE).map(|_| endless()).collect();
        assert!(slots.take().is_err());
        let began = tokio::time::Instant::now();
        let slot = loop {
            match slots.take() {
                Ok(slot) => break slot,
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        assert!((TIMEOUT..TIMEOUT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        drop(slot);
        for body in stalled {
            assert!(read(body).await.is_err(), "a cut response must not look complete");
        }
        // A slow reader that still reads keeps its slot.
        let mut slow = endless().into_bytes_stream();
        for _ in 0..20 {
            tokio::time::sleep(TIMEOUT / 2).await;
            slow.next().await.expect("more").expect("a chunk");
        }
    }

    #[tokio::test]
    async fn slots_are_bounded_and_freed_when_the_reader_disconnects() {
        let slots = Slots::default();
        let bodies: Vec<Body> = (0..AT_ONCE)
            .map(|_| {
                body(slots.take().expect("a slot"), |mut out| async move {
                    loop {
                        out.text("for ever");
                        out.pass().await?;
                    }
                })
            })
            .collect();
        assert!(slots.take().is_err());
        drop(bodies);
        for _ in 0..100 {
            if slots.take().is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a disconnected reader still holds its slot");
    }
}
