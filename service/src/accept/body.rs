//! Reading request bodies: their format, their encoding, and never more of them than asked for.
//!
//! Must never hold more than one line, or one body within its limit and that of all bodies, in memory.

use std::{pin::Pin, sync::Arc};

use async_compression::tokio::bufread::GzipDecoder;
use poem::{
    Body, Request,
    http::header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::io::StreamReader;

use crate::http::{guard, problem::Failure, rate_limits::Admission};

/// Most bytes of one record.
pub(super) const RECORD_BYTES: usize = 16 * 1024;
/// Most bytes of a JSON batch, and of what is passed over in search of a line's end.
pub(super) const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Most bytes of JSON batches that are held at the same time, in units. Each byte costs six to eight while it is
/// appended: the largest there may be, beside small ones, is what a pod of 256 MiB bears.
const ROOM_BYTES: usize = BATCH_BYTES / 4 * 5;
const ROOM_UNIT: usize = 64 * 1024;

/// Most bytes, unpacked, that are read on for the sake of a client that still sends what was refused already.
const DRAINED_BYTES: usize = 16 * BATCH_BYTES;

/// A body to be read.
pub(super) type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// The declared form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/json`, or a type that ends in `+json`.
    Json,
    /// `application/x-ndjson`, or `application/jsonl`, and either with or without `x-`: one record a line.
    Ndjson,
}

/// The format by `Content-Type`.
///
/// # Errors
/// 415: `other` for a type that is not taken, or the charset where it is not that of JSON.
pub(super) fn format(request: &Request, other: &str) -> Result<Format, Failure> {
    let unsupported = |detail: &str| Failure::new(415, "unsupported_media_type", detail);
    let header = request.headers().get(CONTENT_TYPE).and_then(|header| header.to_str().ok());
    let header = header.unwrap_or_default().to_ascii_lowercase();
    let mut parts = header.split(';').map(str::trim);
    let format = match parts.next().unwrap_or_default() {
        "application/json" => Format::Json,
        "application/x-ndjson" | "application/ndjson" | "application/x-jsonl" | "application/jsonl" => Format::Ndjson,
        essence if essence.starts_with("application/") && essence.ends_with("+json") => Format::Json,
        _ => return Err(unsupported(other)),
    };
    // JSON is UTF-8; another charset would be read wrongly.
    if parts.any(|part| part.strip_prefix("charset=").is_some_and(|set| set.trim_matches('"') != "utf-8")) {
        return Err(unsupported("the charset is not taken: JSON is UTF-8; send it so, and leave the charset out"));
    }
    Ok(format)
}

/// The body, decoded as `Content-Encoding` says.
///
/// # Errors
/// 415 for an encoding other than gzip.
pub(super) fn reader(request: &Request, body: Body) -> Result<Reader, Failure> {
    let mut encodings: Vec<String> = Vec::new();
    for header in request.headers().get_all(CONTENT_ENCODING) {
        let text = header.to_str().unwrap_or("unreadable").to_ascii_lowercase();
        encodings.extend(text.split(',').map(|part| part.trim().to_owned()));
    }
    encodings.retain(|encoding| encoding != "identity" && !encoding.is_empty());
    let plain = StreamReader::new(Box::pin(body.into_bytes_stream()));
    match encodings.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Ok(Box::pin(plain)),
        ["gzip" | "x-gzip"] => {
            let mut decoder = GzipDecoder::new(plain);
            decoder.multiple_members(true);
            Ok(Box::pin(BufReader::with_capacity(32 * 1024, decoder)))
        }
        _ => Err(Failure::new(
            415,
            "unsupported_content_encoding",
            "the Content-Encoding is not taken; send the body as it is, or with gzip once",
        )),
    }
}

/// Refuses a body that the client has not sent yet, and that is longer than `limit`.
///
/// # Errors
/// 413 where the client waits for a word (`Expect: 100-continue`) and gives a length that is too long.
pub(super) fn refuse_unsent(request: &Request, limit: usize) -> Result<(), Failure> {
    if guard::waits_with_more_than(limit, request) {
        return Err(too_long(limit));
    }
    Ok(())
}

/// JSON without the byte order mark that some programs write before it.
pub(super) fn without_mark(json: &[u8]) -> &[u8] {
    json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json)
}

/// The answer to a body that could not be read to its end.
pub(super) fn unreadable(error: &std::io::Error) -> Failure {
    if let Some(failure) = guard::failure(error) {
        return failure;
    }
    Failure::new(
        400,
        "unreadable_body",
        "the body ended early, or is not of the encoding that Content-Encoding says; send it again",
    )
}

/// Reads a whole body of at most `limit` bytes.
///
/// # Errors
/// 413 when it is longer; else what stopped the reading.
pub(super) async fn whole(mut reader: Reader, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    (&mut reader).take(most).read_to_end(&mut bytes).await.map_err(|error| unreadable(&error))?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    drain(reader).await;
    Err(too_long(limit))
}

/// Room for bodies that are held whole, over all requests at the same time.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES / ROOM_UNIT)))
    }
}

/// Reads a whole batch; its room is taken as it grows, and held until what is answered beside it is dropped.
///
/// # Errors
/// 413 when it is longer than [`BATCH_BYTES`], 429 when a limit of bytes in flight is reached, 503 when others take the room; else what stopped the reading.
pub(super) async fn whole_batch(
    mut reader: Reader,
    room: &Room,
    admission: &Admission,
) -> Result<(Vec<u8>, Vec<OwnedSemaphorePermit>), Failure> {
    let (mut bytes, mut held, mut units) = (Vec::new(), Vec::new(), 0);
    let failure = loop {
        let chunk = reader.fill_buf().await.map_err(|error| unreadable(&error))?;
        let n = chunk.len();
        if n == 0 {
            return Ok((bytes, held));
        }
        if bytes.len() + n > BATCH_BYTES {
            break too_long(BATCH_BYTES);
        }
        if let Err(limited) = admission.read(bytes.len() + n) {
            break limited;
        }
        let more = (bytes.len() + n).div_ceil(ROOM_UNIT) - units;
        if more > 0 {
            let Ok(taken) = Arc::clone(&room.0).try_acquire_many_owned(more as u32) else {
                break Failure::new(
                    503,
                    "too_many_bytes_in_flight",
                    "other JSON batches take all the room there is; send again in a moment, or NDJSON, which needs none",
                );
            };
            held.push(taken);
            units += more;
        }
        bytes.extend_from_slice(chunk);
        reader.as_mut().consume(n);
    };
    drop((bytes, held));
    drain(reader).await;
    Err(failure)
}

fn too_long(limit: usize) -> Failure {
    Failure::new(413, "too_large", format!("the body is larger than {} KiB; send less at a time", limit / 1024))
}

/// Reads on for a little, because many clients only look for an answer once they have sent everything.
async fn drain(mut reader: Reader) {
    let mut left = DRAINED_BYTES;
    let reading = async {
        while let Ok(chunk) = reader.fill_buf().await {
            let n = chunk.len();
            if n == 0 || n > left {
                return;
            }
            left -= n;
            reader.as_mut().consume(n);
            // A small input unpacks to much without waiting: let other tasks run.
            tokio::task::consume_budget().await;
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), reading).await;
}

/// One line of NDJSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its bytes, without the newline and a byte order mark; never blank.
    Record(Vec<u8>),
    /// Longer than a record may be; its bytes were passed over.
    TooLong,
}

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// The body could not be read on.
    #[error("the body cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A line has no end within [`BATCH_BYTES`].
    #[error("a line is longer than a batch may be")]
    Endless,
}

/// The lines of a body. Blank ones are left out.
pub(super) struct Lines {
    reader: Reader,
}

impl Lines {
    /// The lines of `reader`.
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader }
    }

    /// Reads on for a little after the lines were given up, so that the client gets to see the answer.
    pub(super) async fn drain(self) {
        drain(self.reader).await;
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// [`LineError`]; there is nothing more to read then.
    pub(super) async fn next(&mut self) -> Result<Option<Line>, LineError> {
        let mut line = Vec::new();
        let (mut length, mut blank) = (0_usize, true);
        loop {
            let chunk = self.reader.fill_buf().await?;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            length += part.len();
            blank = blank && part.iter().all(u8::is_ascii_whitespace);
            if length <= RECORD_BYTES {
                line.extend_from_slice(part);
            }
            let at_end = chunk.is_empty();
            let used = part.len() + usize::from(end.is_some());
            self.reader.as_mut().consume(used);
            if end.is_some() || at_end {
                let marked = line.len() - without_mark(&line).len();
                if marked > 0 && length <= RECORD_BYTES {
                    line.drain(..marked);
                    blank = line.iter().all(u8::is_ascii_whitespace);
                }
                if blank && !at_end {
                    (length, line) = (0, Vec::new());
                    // A body of newlines, unpacked from little, must not keep others from running.
                    tokio::task::consume_budget().await;
                    continue;
                }
                return Ok(match (blank, length > RECORD_BYTES) {
                    (true, _) => None,
                    (false, true) => Some(Line::TooLong),
                    (false, false) => Some(Line::Record(line)),
                });
            }
            if length > BATCH_BYTES {
                return Err(LineError::Endless);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Lines {
        let chunks: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(chunk))).collect();
        Lines::new(Box::pin(StreamReader::new(futures::stream::iter(chunks))))
    }

    async fn all(mut lines: Lines) -> Vec<Line> {
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.expect("readable") {
            found.push(line);
        }
        found
    }

    #[test]
    fn every_name_of_ndjson_is_taken() {
        let of = |kind: &str| format(&Request::builder().header("content-type", kind).finish(), "other").ok();
        for kind in
            ["application/x-ndjson", "application/ndjson", "application/JSONL; charset=utf-8", "application/x-jsonl"]
        {
            assert_eq!(of(kind), Some(Format::Ndjson), "{kind}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/ndjson; charset=utf-16", ""] {
            assert_eq!(of(kind), None, "{kind}");
        }
    }

    #[tokio::test]
    async fn bodies_share_their_room_and_give_it_back() {
        let room = Room(Arc::new(Semaphore::new(3)));
        let read = async |bytes: usize| {
            let body: &'static [u8] = vec![b'x'; bytes].leak();
            whole_batch(Box::pin(body), &room, &Admission::default()).await
        };
        let first = read(2 * ROOM_UNIT).await.expect("there is room");
        assert_eq!(first.0.len(), 2 * ROOM_UNIT);
        let small = read(ROOM_UNIT).await.expect("there is still room");
        let refused = read(1).await.expect_err("there is none");
        assert_eq!((refused.problem().status, refused.problem().code.as_str()), (503, "too_many_bytes_in_flight"));
        drop((first, small));
        assert!(read(3 * ROOM_UNIT).await.is_ok());
        assert_eq!(room.0.available_permits(), 3);
        assert_eq!(read(BATCH_BYTES + 1).await.expect_err("too long").problem().status, 413);
    }

    #[tokio::test]
    async fn lines_are_found_whatever_the_chunks() {
        let text = b"{\"a\":1}\n\r\n  \n{\"b\":2}\r\n{\"c\":3}";
        let expected = ["{\"a\":1}", "{\"b\":2}\r", "{\"c\":3}"].map(|line| Line::Record(line.into()));
        for size in 1..text.len() {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(all(lines(&chunks)).await, expected, "chunks of {size}");
        }
    }

    #[tokio::test]
    async fn a_byte_order_mark_before_a_line_is_no_part_of_it() {
        let text = "\u{feff}{\"a\":1}\r\n\u{feff}{\"b\":\"\u{feff}\"}\n\u{feff} \n\u{feff}".as_bytes();
        let expected = ["{\"a\":1}\r", "{\"b\":\"\u{feff}\"}"].map(|line| Line::Record(line.into()));
        for size in 1..text.len() {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(all(lines(&chunks)).await, expected, "chunks of {size}");
        }
    }

    #[tokio::test]
    async fn a_long_line_is_passed_over_and_the_next_is_read() {
        let longest = vec![b'x'; RECORD_BYTES];
        let longer = vec![b'y'; RECORD_BYTES + 1];
        let found = all(lines(&[&longest, b"\n", &longer, b"\nz"])).await;
        assert_eq!(found, [Line::Record(longest), Line::TooLong, Line::Record(b"z".to_vec())]);
    }

    #[tokio::test]
    async fn a_line_without_an_end_stops_the_reading() {
        let part = vec![b'x'; 1024 * 1024];
        let parts: Vec<&[u8]> = (0..20).map(|_| part.as_slice()).collect();
        assert!(matches!(lines(&parts).next().await, Err(LineError::Endless)));
    }
}
