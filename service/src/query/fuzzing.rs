//! Invariants of cursors, for any text that a client sends as one.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Datelike as _;
use serde::{Serialize, de::DeserializeOwned};

use super::{answer::Paging, audit::Place, types::Word};
use crate::domain::{ShardSeq, Text};

/// Checks one input. Its first byte selects the list, and whether the rest is a cursor or the content of one.
pub fn cursor(bytes: &[u8]) {
    let Some((&how, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match how % 4 {
        0 => read(&text, how >= 128, ShardSeq::default(), |_| {}),
        1 => {
            let first: Place = serde_json::from_str(r#"["2026-01-31T12:00:00Z",0,0,0,0]"#).expect("a place");
            read(&text, how >= 128, first, |place| assert!((1..=9999).contains(&place.0.0.year())));
        }
        2 => read(&text, how >= 128, Word(Text::stored("a")), |Word(word)| {
            let word = word.as_str();
            assert!(!word.is_empty() && !word.chars().any(char::is_control), "Postgres refuses U+0000: {word:?}");
        }),
        _ => made(rest),
    }
}

/// A text that is accepted as a cursor equals the cursor of its position, so it is one that was issued.
fn read<P>(text: &str, as_cursor: bool, known: P, check: impl Fn(&P))
where
    P: Serialize + DeserializeOwned,
{
    let list = |cursor| Paging::<P>::new("/list", &"filters", cursor, 10);
    let first = list(None).expect("without a cursor").cursor(&known).expect("a cursor");
    let cursor = if as_cursor {
        text.to_owned()
    } else {
        let mut bytes = URL_SAFE_NO_PAD.decode(&first).expect("base64");
        bytes.truncate(8);
        bytes.extend_from_slice(text.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    };
    assert!(list(Some(first)).is_ok());
    let Ok(paging) = list(Some(cursor.clone())) else { return };
    let place = paging.after.as_ref().expect("a place");
    check(place);
    assert_eq!(paging.cursor(place), Some(cursor), "one spelling only");
}

/// An issued cursor leads to its position. With another list, other filters or a changed byte it is refused.
fn made(bytes: &[u8]) {
    let mut number = [0; 12];
    let n = bytes.len().min(12);
    number[..n].copy_from_slice(&bytes[..n]);
    let [a, b, c, d, rest @ ..] = number;
    let place = (i32::from_le_bytes([a, b, c, d]), i64::from_le_bytes(rest));
    let filters = String::from_utf8_lossy(&bytes[n..]);
    let list = |path: &str, filters: &str, cursor| Paging::<(i32, i64)>::new(path, &filters, cursor, 10);
    let paging = list("/list", &filters, None).expect("without a cursor");
    let cursor = paging.cursor(&place).expect("a cursor");
    assert_eq!(list("/list", &filters, Some(cursor.clone())).expect("taken").after, Some(place));
    assert!(list("/other", &filters, Some(cursor.clone())).is_err());
    assert!(list("/list", &format!("{filters}."), Some(cursor.clone())).is_err());
    let at = usize::from(a) % cursor.len();
    let changed: String = cursor
        .char_indices()
        .map(|(index, character)| if index == at { char::from(b % 128) } else { character })
        .collect();
    if let Ok(other) = list("/list", &filters, Some(changed.clone())) {
        assert_eq!(other.after == Some(place), changed == cursor);
    }
}
