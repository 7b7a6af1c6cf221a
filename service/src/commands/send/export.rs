//! Answers of the API as input: their records are sent, and the rest is left out and named.

use std::{borrow::Cow, collections::BTreeSet};

use super::shape::{OUTPUT, Shape};
use crate::domain::{Raw, members};

/// A line of NDJSON.
pub(super) enum Line {
    /// A record, or what stands in its place.
    Record,
    /// `{"group":…}` or `{"end":…}` of GET /records/aggregations.
    Frame,
}

/// Which of the two a line is.
pub(super) fn line(text: &[u8]) -> Line {
    if !text.starts_with(b"{\"group\"") && !text.starts_with(b"{\"end\"") {
        return Line::Record;
    }
    match members(text, "").as_deref() {
        Ok([(key, raw)]) if (key == "group" || key == "end") && raw.get().starts_with('{') => Line::Frame,
        _ => Line::Record,
    }
}

/// The record of a line of an aggregation, `{"record":…}`, or of an archive, `{"record":…,"log":…}`.
pub(super) fn record<'a>(members: &[(Cow<'_, str>, &'a Raw)]) -> Option<&'a Raw> {
    let raw = match members {
        [(record, raw)] if record == "record" => raw,
        [(record, raw), (log, _)] if record == "record" && log == "log" => raw,
        _ => return None,
    };
    raw.get().starts_with('{').then_some(raw)
}

/// Messages about keys and lines that are left out, each printed once.
#[derive(Debug)]
pub(super) struct Notes {
    said: BTreeSet<String>,
    /// Keys that flags name and that no row has had.
    unseen: Vec<String>,
}

/// An answer of the API that holds records.
pub(super) struct Answer {
    /// Its path.
    pub(super) of: &'static str,
    /// Keys on the way to its records.
    pub(super) rows: &'static str,
}

/// Bytes without white space by which an answer is known.
pub(super) const HEAD: usize = 10;

/// The answer of the API that begins so, white space removed, if it is one.
pub(super) fn answer(head: &[u8]) -> Option<Answer> {
    if head.starts_with(b"{\"asOf\":\"") {
        Some(Answer { of: "GET /records/aggregations", rows: "groups.records" })
    } else if head.starts_with(b"{\"items\":[") {
        Some(Answer { of: "GET /records", rows: "items" })
    } else {
        None
    }
}

/// Where the records are in a JSON document that begins so, white space removed: at the top, unless it is an answer of the
/// API.
pub(super) fn records_at(head: &[u8]) -> &'static str {
    let Some(Answer { of, rows }) = answer(head) else { return "" };
    eprintln!("the input is an answer of {of}: its records are sent, the rest of it is left out (--rows {rows})");
    rows
}

impl Notes {
    /// For rows of this shape.
    pub(super) fn new(shape: &Shape) -> Self {
        Self { said: BTreeSet::new(), unseen: shape.wanted().map(str::to_owned).collect() }
    }

    /// A row has this key.
    pub(super) fn seen(&mut self, key: &str) {
        if !self.unseen.is_empty() {
            self.unseen.retain(|name| name != key);
        }
    }

    /// All rows were read.
    pub(super) fn end(&self) {
        if !self.unseen.is_empty() {
            eprintln!("keys that flags name and that no row has: {}", self.unseen.join(", "));
        }
    }

    /// Lines of an aggregation that hold no record.
    pub(super) fn frames(&mut self) {
        if self.said.insert(String::new()) {
            eprintln!("lines {{\"group\":…}} and {{\"end\":…}} of GET /records/aggregations are left out");
        }
    }

    /// A key that is no field.
    pub(super) fn left_out(&mut self, key: &str) {
        if self.said.len() < 100 && !self.said.contains(key) {
            self.said.insert(key.to_owned());
            let why = if OUTPUT.contains(&key) { " (the API adds it to its answers)" } else { "" };
            eprintln!("keys that are left out: {key}{why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_api_are_known_by_their_start() {
        assert_eq!(records_at(b"{\"asOf\":\"2026"), "groups.records");
        assert_eq!(records_at(b"{\"items\":["), "items");
        for head in ["[{\"items\":[", "{\"recordId\":\"a\"", "{\"items\":3", ""] {
            assert_eq!(records_at(head.as_bytes()), "", "{head}");
        }
        assert!(matches!(line(br#"{"group":{"destinationId":"a"}}"#), Line::Frame));
        assert!(matches!(line(br#"{"end":{"records":1}}"#), Line::Frame));
        for text in [r#"{"record":{"recordId":"a"}}"#, r#"{"end":"x"}"#, r#"{"group":{},"unit":"EUR"}"#, "{\"group\""] {
            assert!(matches!(line(text.as_bytes()), Line::Record), "{text}");
        }
    }
}
