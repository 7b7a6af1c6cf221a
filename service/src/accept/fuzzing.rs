//! Properties of any bytes that are read as a batch: an array, lines, and lines in gzip.

use std::io::Write as _;

use futures::executor::block_on;
use poem::{Body, Request};

use super::{
    body::{self, Line, Lines, RECORD_BYTES},
    items, single,
};

/// The first byte says what the rest is, and in what parts it arrives.
pub fn framing(bytes: &[u8]) {
    let Some((&how, rest)) = bytes.split_first() else { return };
    let part = match usize::from(how / 4) {
        0 => usize::MAX,
        part => part,
    };
    match how % 4 {
        0 => array(rest),
        1 => assert_eq!(read(&long(rest), part, false).expect("readable"), split(&long(rest))),
        2 => {
            let text = long(rest);
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&text).expect("into memory");
            let packed = packed.finish().expect("into memory");
            assert_eq!(read(&packed, part, true).expect("readable"), split(&text));
            // Torn anywhere, it does not look whole.
            let torn = &packed[..packed.len() - 1 - part.min(packed.len() - 1)];
            assert!(torn.is_empty() || read(torn, part, true).is_none());
        }
        _ => {
            // Whatever it is, the reading ends.
            let _ = read(rest, part, true);
        }
    }
}

/// Makes lines longer than a record may be out of few bytes: each 0xFF is a quarter of that.
fn long(bytes: &[u8]) -> Vec<u8> {
    let quarter = [b'x'; RECORD_BYTES / 4];
    let parts = bytes.iter().map(|byte| if *byte == 0xFF { &quarter[..] } else { std::slice::from_ref(byte) });
    parts.collect::<Vec<_>>().concat()
}

/// The lines of a body that arrives in such parts; `None` where it cannot be read to its end.
fn read(bytes: &[u8], part: usize, packed: bool) -> Option<Vec<Line>> {
    let parts: Vec<_> =
        bytes.chunks(part).map(|part| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(part))).collect();
    let mut request = Request::builder();
    if packed {
        request = request.header("content-encoding", "gzip");
    }
    let body = Body::from_bytes_stream(futures::stream::iter(parts));
    let mut lines = Lines::new(body::reader(&request.finish(), body).ok()?);
    block_on(async {
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.ok()? {
            found.push(line);
        }
        Some(found)
    })
}

/// Plain definition of lines.
fn split(text: &[u8]) -> Vec<Line> {
    let lines =
        text.split(|byte| *byte == b'\n').filter(|line| !body::without_mark(line).iter().all(u8::is_ascii_whitespace));
    let read = |line: &[u8]| {
        if line.len() > RECORD_BYTES { Line::TooLong } else { Line::Record(body::without_mark(line).to_vec()) }
    };
    lines.map(read).collect()
}

/// The items of an array are its text between the commas: joined they are the same array, and each is read alone.
fn array(json: &[u8]) {
    let Ok(found) = items::of_array(json) else {
        return assert!(serde_json::from_slice::<Vec<serde_json::Value>>(json).is_err(), "an array that is refused");
    };
    let texts: Vec<&str> = found.iter().map(|item| item.get()).collect();
    let joined = format!("[{}]", texts.join(","));
    let again = items::of_array(joined.as_bytes()).expect("an array");
    assert!(again.iter().map(|item| item.get()).eq(texts.iter().copied()));
    for (index, text) in (0..).zip(texts) {
        let derived = single::parse(text.as_bytes(), Some("key"), index);
        assert_eq!(derived, single::parse(text.as_bytes(), Some("key"), index), "the same request, the same id");
        if let Ok(record) = single::parse(text.as_bytes(), None, index) {
            assert_eq!(items::id_of(text.as_bytes()).as_deref(), Some(record.record_id.as_str()));
            let refused = derived.expect_err("a key beside an id");
            assert_eq!(refused.pointer, "/recordId");
        }
    }
}
