//! The items of a JSON array, bounded in number.

use std::fmt;

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    domain::{Invalid, code, members},
    http::problem::Failure,
};

/// Most items of an array: a body of 16 MiB holds no more real records, but could hold millions of empty ones.
const MOST_ITEMS: usize = 100_000;

/// The items of an array.
///
/// # Errors
/// 400 when the body is not a JSON array, 413 when it has too many items.
pub(super) fn of_array(json: &[u8]) -> Result<Vec<&RawValue>, Failure> {
    struct Items<'a>(&'a mut bool);
    impl<'de> Visitor<'de> for Items<'_> {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of records")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == MOST_ITEMS {
                    *self.0 = true;
                    return Err(serde::de::Error::custom("too many items"));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    let mut too_many = false;
    let mut reader = serde_json::Deserializer::from_slice(json);
    let items = reader.deserialize_seq(Items(&mut too_many)).and_then(|items| reader.end().map(|()| items));
    items.map_err(|error| {
        if too_many {
            return Failure::new(413, code::TOO_LARGE, "the array has more than 100,000 items; send less at a time");
        }
        let detail = match json.trim_ascii_start() {
            _ if is_utf16(json) => format!("the body {UTF_16}"),
            [b'{', ..] => {
                "the body is not a JSON array of records; send lines of JSON as Content-Type: application/x-ndjson, \
                           one record to /records, and many in JSON between [ and ]"
                    .to_owned()
            }
            _ => format!("the body is not a JSON array of records: {error}"),
        };
        Invalid::new(code::INVALID_JSON, "", detail).into()
    })
}

/// The refusal of an item that is no JSON, with the cause where its bytes show it.
pub(super) fn explained(json: &[u8], invalid: Invalid) -> Invalid {
    let is_array = json.trim_ascii_start().starts_with(b"[");
    let detail = match invalid.code {
        code::INVALID_JSON if !invalid.pointer.is_empty() => return invalid,
        code::INVALID_JSON if is_utf16(json) => UTF_16,
        code::INVALID_JSON if has_several(json) => {
            "has more than one JSON object; end each record with a line feed, and send many to /records/batch. curl's -d \
             removes line feeds, --data-binary keeps them"
        }
        code::WRONG_TYPE if invalid.pointer.is_empty() && is_array => {
            "is a JSON array where one record is expected; send an array to /records/batch as Content-Type: application/json"
        }
        _ => return invalid,
    };
    Invalid::new(invalid.code, "", detail)
}

const UTF_16: &str = "is UTF-16, not UTF-8; save the file as UTF-8 and send it again";

/// Whether bytes begin as UTF-16 does: with its byte order mark, or with one byte of two that is zero.
fn is_utf16(json: &[u8]) -> bool {
    matches!(json, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..])
}

/// Whether an object is followed by the beginning of another.
fn has_several(json: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(json).into_iter::<&RawValue>();
    let is_object = matches!(values.next(), Some(Ok(value)) if value.get().starts_with('{'));
    is_object && json[values.byte_offset()..].trim_ascii_start().starts_with(b"{")
}

/// The id in an item that is not a record, for the client to know it by.
pub(super) fn id_of(json: &[u8]) -> Option<String> {
    let members = members(json, "").ok()?;
    let (_, raw) = members.iter().find(|(key, _)| key == "recordId")?;
    let id: String = serde_json::from_str(raw.get()).ok()?;
    (id.chars().count() <= 200).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Record;

    #[test]
    fn only_whole_arrays_of_bounded_length_are_taken() {
        assert_eq!(of_array(b" [ {} , 1 ] ").expect("an array").len(), 2);
        assert!(of_array(b"[]").expect("an array").is_empty());
        let status = |json: &[u8]| of_array(json).expect_err("refused").problem().status;
        for json in [&b""[..], b"{}", b"[", b"[1,]", b"[] []", b"[\"\xff\"]", b"null", b"[NaN]"] {
            assert_eq!(status(json), 400, "{}", String::from_utf8_lossy(json));
        }
        let most = format!("[{}1]", "1,".repeat(MOST_ITEMS - 1));
        assert_eq!(of_array(most.as_bytes()).expect("at the bound").len(), MOST_ITEMS);
        let more = format!("[{}1]", "1,".repeat(MOST_ITEMS));
        assert_eq!(status(more.as_bytes()), 413);
    }

    #[test]
    fn bytes_that_show_why_they_are_no_record_are_explained() {
        let refusal = |json: &[u8]| {
            let invalid = Record::parse(json).expect_err("no record");
            explained(json, invalid).detail
        };
        let utf16 = |mark: &[u8], text: &str| {
            [mark, &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()].concat()
        };
        for (json, part) in [
            (br#"{"recordId":"a"}{"recordId":"b"}"#.to_vec(), "--data-binary"),
            (br#" {"recordId":"a"} {"recordId":"#.to_vec(), "--data-binary"),
            (b" [{}]".to_vec(), "/records/batch"),
            (utf16(b"\xff\xfe", "{}"), "UTF-16"),
            (utf16(b"", "{\"a\":1}"), "UTF-16"),
        ] {
            assert!(refusal(&json).contains(part), "{json:?}: {}", refusal(&json));
        }
        for json in [&b"{} x"[..], b"{},{}", b"{", b"", b"\xff"] {
            assert!(refusal(json).starts_with("is not valid JSON: "), "{}", refusal(json));
        }
        let whole = |json: &[u8]| of_array(json).expect_err("no array").problem().detail.clone();
        assert!(whole(b"{}\n{}\n").contains("application/x-ndjson"));
        assert!(whole(&utf16(b"\xff\xfe", "[]")).contains("UTF-16"));
        assert!(whole(b"[1,").contains("EOF"));
    }

    #[test]
    fn an_id_is_named_where_it_can_be_read() {
        assert_eq!(id_of(br#"{"recordId":"a","x":1}"#), Some("a".to_owned()));
        for json in [&b"1"[..], b"{}", b"{\"recordId\":1}", b"{\"recordId\":\"a\""] {
            assert_eq!(id_of(json), None);
        }
    }
}
