//! Records in JSON: an array, objects one after another, or an array within an object. One at a time, in constant memory.
//!
//! Must never read a part of a record as a record, nor let a form that is broken pass for one that is whole: a part of a
//! file must not look like all of it.

use std::io::Result as Read;

use anyhow::bail;

use super::{
    rows::LONGEST,
    tokens::{object_end, pass_value, string_end, without_space},
    window::{Ends, KEPT, Passed, Window},
};

/// A record, or another value in the place of one.
#[derive(Debug)]
pub(super) struct Value {
    /// The line on which it begins.
    pub(super) line: u64,
    /// As the file has it.
    pub(super) raw: Passed,
    /// Its JSON on one line, or why it is none.
    pub(super) json: std::result::Result<Vec<u8>, String>,
}

/// Reads the values of an input.
pub(super) struct Values {
    /// Keys on the way to the records.
    path: Vec<String>,
    levels: Vec<Level>,
    found: u64,
    /// Keys of the objects on the way, for the message that one is missing.
    keys: Vec<String>,
    has_reached: bool,
    /// White space before the value, where nothing else stands on its line.
    indent: Option<usize>,
    /// The first thing that is wrong with the form around the records.
    fault: Option<String>,
    has_ended: bool,
}

/// An array or object that is open.
#[derive(Debug, Clone, Copy)]
struct Level {
    is_array: bool,
    /// Keys of the path that lead to it.
    depth: usize,
    after: After,
}

/// The last token on a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Opening,
    Value,
    Comma,
}

impl Values {
    /// Records at `path`: empty for an array or objects at the top.
    pub(super) fn new(path: Vec<String>) -> Self {
        let has_reached = path.is_empty();
        Self {
            path,
            levels: Vec::new(),
            found: 0,
            keys: Vec::new(),
            has_reached,
            indent: Some(0),
            fault: None,
            has_ended: false,
        }
    }

    /// The next value; `None` at the end.
    pub(super) fn next(&mut self, window: &mut Window) -> anyhow::Result<Option<Value>> {
        loop {
            self.pass_space(window)?;
            let Some(byte) = window.at(0)? else { return Ok(None) };
            let found = match self.levels.last().copied() {
                None => self.at_top(window, byte)?,
                Some(level) if level.is_array => self.in_array(window, byte, level.depth)?,
                Some(level) => self.in_object(window, byte, level.depth)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Whether the form was whole, once there is no further value.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let Self { path, found, fault, levels, keys, has_reached, .. } = self;
        if let Some(fault) = fault {
            bail!("the JSON is broken: {fault}");
        }
        if !levels.is_empty() {
            bail!("the JSON ends in the middle, after row {found}");
        }
        if !has_reached {
            bail!("the input has no array at {}; its keys are {}", path.join("."), keys.join(", "));
        }
        Ok(())
    }

    fn at_top(&mut self, window: &mut Window, byte: u8) -> anyhow::Result<Option<Value>> {
        if self.has_ended {
            bail!("there is more after the end of the JSON, on line {}", window.line());
        }
        match byte {
            b'[' if self.path.is_empty() && self.found == 0 => self.open(window, true, 0)?,
            b'{' if self.path.is_empty() => return self.record(window).map(Some),
            b'{' => self.open(window, false, 0)?,
            _ if self.path.is_empty() => return self.junk(window).map(Some),
            _ => bail!("--rows {} asks for an object at the top, and the input has none", self.path.join(".")),
        }
        Ok(None)
    }

    fn in_array(&mut self, window: &mut Window, byte: u8, depth: usize) -> anyhow::Result<Option<Value>> {
        match byte {
            b']' => self.close(window)?,
            b',' => self.comma(window)?,
            b'{' if depth < self.path.len() => {
                self.value_begins();
                self.open(window, false, depth)?;
            }
            _ if depth < self.path.len() => bail!("{} holds what is no object", self.path[..depth].join(".")),
            b'{' => {
                self.value_begins();
                return self.record(window).map(Some);
            }
            _ => {
                self.value_begins();
                return self.junk(window).map(Some);
            }
        }
        Ok(None)
    }

    fn in_object(&mut self, window: &mut Window, byte: u8, depth: usize) -> anyhow::Result<Option<Value>> {
        match byte {
            b'}' => self.close(window)?,
            b',' => self.comma(window)?,
            b'"' => {
                self.value_begins();
                let key = self.key(window)?;
                let is_wanted = self.path[depth] == key;
                if depth == 0 && !self.keys.contains(&key) && self.keys.len() < 20 {
                    self.keys.push(key);
                }
                let is_last = depth + 1 == self.path.len();
                match window.at(0)? {
                    Some(b'[') if is_wanted => {
                        self.has_reached |= is_last;
                        self.open(window, true, depth + 1)?;
                    }
                    Some(b'{') if is_wanted && !is_last => self.open(window, false, depth + 1)?,
                    _ => pass_value(window)?,
                }
            }
            _ => bail!("the JSON is broken on line {}: a key must come here", window.line()),
        }
        Ok(None)
    }

    /// The key of a member, with its colon.
    fn key(&mut self, window: &mut Window) -> anyhow::Result<String> {
        let line = window.line();
        let length = string_end(window, 0)?;
        let raw = window.take(length)?;
        let Ok(key) = serde_json::from_slice(&raw) else {
            bail!("the JSON is broken on line {line}: a key has no end")
        };
        self.pass_space(window)?;
        if window.at(0)? != Some(b':') {
            bail!("the JSON is broken on line {line}: behind the key \"{key}\" a colon is missing");
        }
        window.take(1)?;
        self.pass_space(window)?;
        Ok(key)
    }

    fn pass_space(&mut self, window: &mut Window) -> Read<()> {
        while let Some(byte) = window.at(0)?.filter(u8::is_ascii_whitespace) {
            self.indent = if matches!(byte, b'\n' | b'\r') { Some(0) } else { self.indent.map(|indent| indent + 1) };
            window.take(1)?;
        }
        Ok(())
    }

    fn open(&mut self, window: &mut Window, is_array: bool, depth: usize) -> Read<()> {
        self.has_reached |= is_array && depth == self.path.len();
        self.levels.push(Level { is_array, depth, after: After::Opening });
        self.indent = None;
        window.take(1).map(drop)
    }

    fn close(&mut self, window: &mut Window) -> Read<()> {
        if self.levels.pop().is_some_and(|level| level.after == After::Comma) {
            self.note("comes a comma and no record");
        }
        self.has_ended = self.levels.is_empty();
        self.indent = None;
        window.take(1).map(drop)
    }

    fn comma(&mut self, window: &mut Window) -> Read<()> {
        let before = self.levels.last_mut().map(|level| std::mem::replace(&mut level.after, After::Comma));
        if before != Some(After::Value) {
            self.note("comes a comma and no record");
        }
        self.indent = None;
        window.take(1).map(drop)
    }

    fn value_begins(&mut self) {
        let before = self.levels.last_mut().map(|level| std::mem::replace(&mut level.after, After::Value));
        if before == Some(After::Value) {
            self.note("a comma is missing");
        }
    }

    fn note(&mut self, what: &str) {
        let found = self.found;
        self.fault.get_or_insert_with(|| format!("after row {found} {what}"));
    }

    fn record(&mut self, window: &mut Window) -> anyhow::Result<Value> {
        self.found += 1;
        let line = window.line();
        let (length, why) = match object_end(window)? {
            Ok(length) if length > LONGEST => (Some(length), "is longer than 1 MiB"),
            Ok(length) => {
                let raw = window.take(length)?;
                self.indent = None;
                let json = Ok(without_space(&raw));
                let mut passed = Passed::default();
                passed.add(&raw, KEPT);
                return Ok(Value { line, raw: passed, json });
            }
            Err(why) => (None, why),
        };
        let mut raw = Passed::default();
        match length {
            Some(length) => raw.add(&window.take(length)?, KEPT),
            None => self.pass_broken(window, &mut raw)?,
        }
        Ok(Value { line, raw, json: Err(why.to_owned()) })
    }

    /// Passes a record whose end cannot be known: up to the next line that begins as the record's own does.
    fn pass_broken(&mut self, window: &mut Window, raw: &mut Passed) -> anyhow::Result<()> {
        let line = window.line();
        let indent = self.indent;
        loop {
            raw.add(&window.pass_line(KEPT, Ends::Any)?.text, KEPT);
            if window.at(0)?.is_none() {
                let found = self.found;
                self.fault.get_or_insert_with(|| {
                    format!(
                        "where row {found} ends, which begins on line {line}, cannot be known, so nothing behind it was \
                             read; repair it, or give one record a line (NDJSON)"
                    )
                });
                self.levels.clear();
                return Ok(());
            }
            let Some(indent) = indent else { continue };
            let head = window.ahead(indent + 1)?;
            let begins = head.len() == indent + 1
                && head[..indent].iter().all(|byte| matches!(byte, b' ' | b'\t'))
                && head[indent] == b'{';
            if begins {
                self.indent = Some(0);
                if let Some(level) = self.levels.last_mut() {
                    level.after = After::Comma;
                }
                return Ok(());
            }
        }
    }

    /// Something in the place of a record that is no object: up to the next comma, bracket or line.
    fn junk(&mut self, window: &mut Window) -> anyhow::Result<Value> {
        self.found += 1;
        let line = window.line();
        let mut length = 0;
        while let Some(byte) = window.at(length)? {
            if length > 0 && matches!(byte, b',' | b']' | b'{' | b'\n' | b'\r') || length > LONGEST {
                break;
            }
            length = if byte == b'"' { string_end(window, length)? } else { length + 1 };
        }
        let mut raw = Passed::default();
        raw.add(window.take(length)?.trim_ascii(), KEPT);
        self.indent = None;
        Ok(Value { line, raw, json: Err("is no JSON object".to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line on which a value begins, and its JSON.
    type Found = (u64, Result<String, String>);

    /// Values, and how the input ended.
    fn values(text: &str, path: &str) -> (Vec<Found>, anyhow::Result<()>) {
        let path = path.split('.').filter(|key| !key.is_empty()).map(str::to_owned).collect();
        let (mut values, mut found) = (Values::new(path), Vec::new());
        let mut window = Window::new(Box::new(std::io::Cursor::new(text.as_bytes().to_vec())));
        loop {
            match values.next(&mut window) {
                Ok(Some(Value { line, json, .. })) => {
                    found.push((line, json.map(|json| String::from_utf8(json).expect("UTF-8"))));
                }
                Ok(None) => return (found, values.end()),
                Err(error) => return (found, Err(error)),
            }
        }
    }

    fn good(text: &str, path: &str) -> Vec<String> {
        let (found, end) = values(text, path);
        end.expect(text);
        found.into_iter().map(|(_, json)| json.expect(text)).collect()
    }

    #[test]
    fn values_are_found_in_arrays_in_objects_and_one_after_another() {
        let text = "[ {\"a\": \"] } \\\" \\\\\", \"b\":\n[1, {\"c\": 2.50}]} ,\n {} ]\n";
        assert_eq!(good(text, ""), [r#"{"a":"] } \" \\","b":[1,{"c":2.50}]}"#, "{}"]);
        assert_eq!(good("{\"a\":1}\n{\"a\":2}", ""), [r#"{"a":1}"#, r#"{"a":2}"#]);
        assert_eq!(good(" [] ", ""), Vec::<String>::new());
        let nested = r#"{"n":[{"x":[1]}],"data":{"s":"[","orders":[{"a":1},{"a":2}],"t":null},"end":1}"#;
        assert_eq!(good(nested, "data.orders"), [r#"{"a":1}"#, r#"{"a":2}"#]);
        let groups = r#"{"asOf":"x","groups":[{"totals":[{"u":1}],"records":[{"a":1}]},{"records":[{"a":2}]}]}"#;
        assert_eq!(good(groups, "groups.records"), [r#"{"a":1}"#, r#"{"a":2}"#]);
    }

    #[test]
    fn a_form_that_is_broken_is_an_error_and_its_records_are_read() {
        for (text, read) in [
            ("[{}", 1),
            ("[{},]", 1),
            ("[{},,{}]", 2),
            ("[{}{}]", 2),
            ("[,{}]", 1),
            ("[{}] x", 1),
            ("[{},", 1),
            ("{\"a\":1}]", 2),
        ] {
            let (found, end) = values(text, "");
            assert!(end.is_err() || found.iter().any(|(_, json)| json.is_err()), "{text}");
            assert_eq!(found.len(), read, "{text}");
        }
        let error = values(r#"{"order":[{}],"more":1}"#, "orders").1.expect_err("no orders").to_string();
        assert!(error.contains("no array at orders; its keys are order, more"), "{error}");
        assert!(values("[{}]", "orders").1.is_err());
    }

    #[test]
    fn a_broken_record_costs_one_row_where_records_begin_a_line() {
        for broken in ["{\"a\": \"x}", "{\"a\": 1", "{\"a\": [1}", "{\"a\": {\n   \"b\": 1\n"] {
            let text = format!("[\n  {{\"a\": 1}},\n  {broken},\n  {{\"a\": 3}},\n  {{\"a\": 4}}\n]\n");
            let (found, end) = values(&text, "");
            end.expect(broken);
            let read: Vec<bool> = found.iter().map(|(_, json)| json.is_ok()).collect();
            assert_eq!(read, [true, false, true, true], "{broken}");
            assert_eq!((found[1].0, found[0].0), (3, 2), "{broken}");
        }
        for junk in ["[1,{\"a\":2}]", "[null, {\"a\":2}]", "[\"{},\",{\"a\":2}]"] {
            let (found, end) = values(junk, "");
            end.expect(junk);
            assert!(matches!(&found[..], [(_, Err(_)), (_, Ok(_))]), "{junk}: {found:?}");
        }
        // On one line nothing shows where the next record begins: that is said, and nothing is guessed.
        let (found, end) = values("[{\"a\":1},{\"a\":,{\"a\":3}]", "");
        assert_eq!(found.len(), 2);
        assert!(end.expect_err("broken").to_string().contains("cannot be known"), "{found:?}");
    }
}
