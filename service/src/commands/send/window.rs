//! The part of the input that reading has reached. A row is looked at before it is taken, so a broken one can be read again.

use std::io::{Read, Result};

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// Most bytes of a refused row that are kept for the report.
pub(super) const KEPT: usize = 64 * 1024;

/// Bytes of the input from where reading is.
pub(super) struct Window {
    input: Box<dyn Read + Send>,
    bytes: Vec<u8>,
    start: usize,
    line: u64,
    has_ended: bool,
}

/// Characters that end a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// A newline, a carriage return, or both.
    Any,
    Newline,
}

/// Bytes that were taken, or only their head.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) text: Vec<u8>,
    pub(super) is_cut: bool,
}

impl Passed {
    /// Adds bytes, as far as there is room below `limit`.
    pub(super) fn add(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.text.len());
        self.is_cut |= bytes.len() > room;
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Window {
    /// At the start of `input`.
    pub(super) fn new(input: Box<dyn Read + Send>) -> Self {
        Self { input, bytes: Vec::new(), start: 0, line: 1, has_ended: false }
    }

    /// Number of the line in which reading is, from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The byte at `offset` from where reading is; `None` behind the end.
    pub(super) fn at(&mut self, offset: usize) -> Result<Option<u8>> {
        while self.start + offset >= self.bytes.len() {
            if self.has_ended {
                return Ok(None);
            }
            self.fill()?;
        }
        Ok(Some(self.bytes[self.start + offset]))
    }

    fn fill(&mut self) -> Result<()> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let held = self.bytes.len();
        self.bytes.resize(held + CHUNK, 0);
        let read = loop {
            match self.input.read(&mut self.bytes[held..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.bytes.truncate(held + read.as_ref().map_or(0, |read| *read));
        self.has_ended = read? == 0;
        Ok(())
    }

    /// Up to `limit` bytes from where reading is, without taking them.
    pub(super) fn ahead(&mut self, limit: usize) -> Result<&[u8]> {
        while self.bytes.len() - self.start < limit && !self.has_ended {
            self.fill()?;
        }
        let end = self.bytes.len().min(self.start + limit);
        Ok(&self.bytes[self.start..end])
    }

    /// The first `count` bytes from where reading is that are no white space, or fewer where there are no more.
    pub(super) fn first(&mut self, count: usize) -> Result<Vec<u8>> {
        let (mut found, mut offset) = (Vec::new(), 0);
        while found.len() < count
            && let Some(byte) = self.at(offset)?
        {
            offset += 1;
            if !byte.is_ascii_whitespace() {
                found.push(byte);
            }
        }
        Ok(found)
    }

    /// Takes `length` bytes, which were looked at before.
    pub(super) fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        // A line that ends with a carriage return alone counts, too. Only then more is read: a pipe may have no more yet.
        let ends_with_return = length > 0 && self.at(length - 1)? == Some(b'\r');
        let next = if ends_with_return { self.at(length)? } else { None };
        let taken = self.bytes[self.start..self.start + length].to_vec();
        self.start += length;
        let ends = taken.iter().enumerate().filter(|(index, byte)| match byte {
            b'\n' => true,
            b'\r' => taken.get(index + 1).copied().or(next) != Some(b'\n'),
            _ => false,
        });
        self.line += ends.count() as u64;
        Ok(taken)
    }

    /// Takes the rest of the line, however long it is, and holds at most `limit` bytes of it.
    pub(super) fn pass_line(&mut self, limit: usize, ends: Ends) -> Result<Passed> {
        let mut passed = Passed::default();
        loop {
            let mut length = 0;
            let mut is_end = false;
            while length < CHUNK && !is_end {
                match self.at(length)? {
                    None => break,
                    Some(byte) => {
                        length += 1;
                        is_end = byte == b'\n' || byte == b'\r' && ends == Ends::Any && self.at(length)? != Some(b'\n');
                    }
                }
            }
            passed.add(&self.take(length)?, limit);
            if is_end || length == 0 {
                return Ok(passed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_whatever_ends_them() {
        let mut window = Window::new(Box::new(&b"a\r\nb\nc\rd"[..]));
        let mut found = Vec::new();
        while window.at(0).expect("readable").is_some() {
            let line = window.line();
            found.push((
                line,
                String::from_utf8(window.pass_line(KEPT, Ends::Any).expect("readable").text).expect("UTF-8"),
            ));
        }
        assert_eq!(found, [(1, "a\r\n".into()), (2, "b\n".into()), (3, "c\r".into()), (4, "d".into())]);
    }

    #[test]
    fn a_line_of_any_length_is_passed_and_only_its_head_is_kept() {
        let text = format!("{}\nnext", "x".repeat(3 * CHUNK));
        let mut window = Window::new(Box::new(std::io::Cursor::new(text)));
        let passed = window.pass_line(KEPT, Ends::Any).expect("readable");
        assert_eq!((passed.text.len(), passed.is_cut, window.line()), (KEPT, true, 2));
        assert_eq!(window.ahead(10).expect("readable"), b"next");
    }
}
