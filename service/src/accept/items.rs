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
        Invalid::new(code::INVALID_JSON, "", format!("the body is not a JSON array of records: {error}")).into()
    })
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
    fn an_id_is_named_where_it_can_be_read() {
        assert_eq!(id_of(br#"{"recordId":"a","x":1}"#), Some("a".to_owned()));
        for json in [&b"1"[..], b"{}", b"{\"recordId\":1}", b"{\"recordId\":\"a\""] {
            assert_eq!(id_of(json), None);
        }
    }
}
