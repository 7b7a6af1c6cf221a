//! The forms of the input's text: where JSON values end, whether quotes are closed, and the mark at the start.
//!
//! Must never let a form that is broken pass for one that is whole: a part of a file must not look like all of it.

use std::io::{BufRead, Chain, Cursor, Error, ErrorKind, Read, Result};

use anyhow::bail;

use super::rows::LONGEST;

/// What some programs write at the start of UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// The input without the byte order mark at its start, if there is one.
pub(super) fn without_mark<R: BufRead>(mut input: R) -> Result<Chain<Cursor<Vec<u8>>, R>> {
    let mut start = Vec::new();
    (&mut input).take(MARK.len() as u64).read_to_end(&mut start)?;
    if start == MARK {
        start.clear();
    }
    Ok(Cursor::new(start).chain(input))
}

/// Passes CSV on, and fails where it ends within a quoted field or a row is too long: a reader of CSV takes the end of the
/// input for the end of the quotes, and would hold all that comes behind an open one.
pub(super) struct Quotes<R> {
    input: R,
    at: At,
    row_bytes: usize,
}

/// Where in a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: its end, or the first of two that stand for one.
    Quote,
}

impl<R: Read> Quotes<R> {
    /// CSV as it is read.
    pub(super) fn new(input: R) -> Self {
        Self { input, at: At::Start, row_bytes: 0 }
    }

    fn step(&mut self, byte: u8) {
        self.row_bytes += 1;
        self.at = match (self.at, byte) {
            (At::Start | At::Quote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) => At::Quoted,
            (_, b'\n' | b'\r') => {
                self.row_bytes = 0;
                At::Start
            }
            (_, b',') => At::Start,
            _ => At::Plain,
        };
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.input.read(buffer)?;
        if read == 0 && !buffer.is_empty() && self.at == At::Quoted {
            return Err(Error::new(ErrorKind::InvalidData, "a quoted field is not closed"));
        }
        for byte in &buffer[..read] {
            self.step(*byte);
            if self.row_bytes > LONGEST {
                return Err(Error::new(ErrorKind::InvalidData, "longer than 1 MiB: is a quoted field not closed?"));
            }
        }
        Ok(read)
    }
}

/// Cuts a JSON array, or JSON objects one after another, into its values, without white space outside strings.
#[derive(Default)]
pub(super) struct Values {
    value: Vec<u8>,
    depth: usize,
    is_array: bool,
    in_string: bool,
    is_escaped: bool,
    found: u64,
    /// A comma stands behind the last value.
    has_comma: bool,
    closed: bool,
}

impl Values {
    /// Takes what comes next; answers the values that end in it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        for &byte in bytes {
            if self.in_string {
                self.value.push(byte);
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else {
                self.step(byte, &mut found)?;
            }
            if self.value.len() > LONGEST {
                bail!("row {} is longer than 1 MiB", self.found + 1);
            }
        }
        Ok(found)
    }

    fn step(&mut self, byte: u8, found: &mut Vec<Vec<u8>>) -> anyhow::Result<()> {
        if byte.is_ascii_whitespace() {
            return Ok(());
        }
        if self.closed {
            bail!("there is more after the end of the JSON array");
        }
        if self.depth == 0 && self.value.is_empty() {
            match byte {
                b'[' if !self.is_array && self.found == 0 => {
                    self.is_array = true;
                    return Ok(());
                }
                b']' if self.is_array && !self.has_comma => {
                    self.closed = true;
                    return Ok(());
                }
                b',' if self.is_array && self.found > 0 && !self.has_comma => {
                    self.has_comma = true;
                    return Ok(());
                }
                b'{' if self.is_array && self.found > 0 && !self.has_comma => {
                    bail!("after row {} a comma is missing", self.found)
                }
                b'{' => self.has_comma = false,
                b']' | b',' if self.has_comma => bail!("after row {} comes a comma and no record", self.found),
                _ => bail!("after row {} comes something that is not a JSON object", self.found),
            }
        }
        self.value.push(byte);
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.found += 1;
                    found.push(std::mem::take(&mut self.value));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The input ends here.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        if !self.value.is_empty() || (self.is_array && !self.closed) {
            bail!("the JSON ends in the middle, after row {}", self.found);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str, chunk: usize) -> anyhow::Result<Vec<String>> {
        let mut values = Values::default();
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(chunk) {
            found.extend(values.push(bytes)?);
        }
        values.end()?;
        Ok(found.into_iter().map(|value| String::from_utf8(value).expect("UTF-8")).collect())
    }

    #[test]
    fn values_are_cut_wherever_the_buffer_ends() {
        let text = "[ {\"a\": \"] } \\\" \\\\\", \"b\":\n[1, {\"c\": 2.50}]} ,\n {} ]\n";
        for chunk in 1..text.len() {
            let found = values(text, chunk).expect("JSON");
            assert_eq!(found, [r#"{"a":"] } \" \\","b":[1,{"c":2.50}]}"#, "{}"], "{chunk}");
        }
        assert_eq!(values("{\"a\":1}\n{\"a\":2}", 3).expect("JSON"), [r#"{"a":1}"#, r#"{"a":2}"#]);
        assert_eq!(values(" [] ", 1).expect("JSON"), Vec::<String>::new());
        for text in [
            "[{}",
            "[{\"a\":\"",
            "[1]",
            "[{}] x",
            "nonsense",
            "{\"a\":[}",
            "[{},]",
            "[{},,{}]",
            "[{}{}]",
            "[,{}]",
            "{},{}",
        ] {
            assert!(values(text, 2).is_err(), "{text}");
        }
    }
}
