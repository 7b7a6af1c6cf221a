//! Rows of a CSV: where each ends, its cells, and where to continue behind a broken one.
//!
//! Must never read a part of a cell as a row while the quotes are well-formed.

use std::io::Result;

use super::{rows::LONGEST, window::Window};

/// How far the end of a quoted cell is looked for. Above [`LONGEST`], so that a cell that is merely too long is refused
/// whole, and its lines are not read as rows.
const LOOKED: usize = 8 * LONGEST;

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Bytes up to its end, with the end of its line. Of a broken row: of its first line.
    pub(super) length: usize,
    pub(super) cells: std::result::Result<Vec<Vec<u8>>, Fault>,
}

/// Why a row is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A quoted cell has no end.
    Unclosed,
    /// Text comes behind the quote that ends a cell.
    AfterQuote,
    /// Longer than [`LONGEST`].
    TooLong,
}

/// Place in a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Plain,
    Quoted,
    /// Behind a quote in a quoted cell: its end, or the first of two that stand for one.
    Quote,
}

/// The next row, without taking it; `None` at the end.
pub(super) fn frame(window: &mut Window, delimiter: u8) -> Result<Option<Frame>> {
    let (mut cells, mut cell) = (Vec::new(), Vec::new());
    let (mut at, mut offset) = (At::Start, 0);
    loop {
        let Some(byte) = window.at(offset)? else {
            if offset == 0 {
                return Ok(None);
            }
            if at == At::Quoted {
                return broken(window, Fault::Unclosed).map(Some);
            }
            cells.push(cell);
            return Ok(Some(whole(offset, cells)));
        };
        offset += 1;
        if offset > LOOKED || (offset > LONGEST && at != At::Quoted && at != At::Quote) {
            let fault = if at == At::Quoted { Fault::Unclosed } else { Fault::TooLong };
            return broken(window, fault).map(Some);
        }
        at = match (at, byte) {
            (At::Quoted, b'"') => At::Quote,
            (At::Start, b'"') => At::Quoted,
            (At::Quote, b'"') => {
                cell.push(byte);
                At::Quoted
            }
            (At::Quoted, _) => {
                cell.push(byte);
                At::Quoted
            }
            (_, _) if byte == delimiter => {
                cells.push(std::mem::take(&mut cell));
                At::Start
            }
            (_, b'\n' | b'\r') => {
                if byte == b'\r' && window.at(offset)? == Some(b'\n') {
                    offset += 1;
                }
                cells.push(cell);
                return Ok(Some(whole(offset, cells)));
            }
            (At::Quote, _) => return broken(window, Fault::AfterQuote).map(Some),
            (At::Start | At::Plain, _) => {
                cell.push(byte);
                At::Plain
            }
        };
    }
}

fn whole(length: usize, cells: Vec<Vec<u8>>) -> Frame {
    Frame { length, cells: if length > LONGEST { Err(Fault::TooLong) } else { Ok(cells) } }
}

/// A broken row is its first line: what comes behind it may be good rows.
fn broken(window: &mut Window, fault: Fault) -> Result<Frame> {
    let mut length = 0;
    while let Some(byte) = window.at(length)? {
        length += 1;
        if byte == b'\n' || byte == b'\r' && window.at(length)? != Some(b'\n') {
            break;
        }
        if length > LOOKED {
            return Ok(Frame { length, cells: Err(Fault::TooLong) });
        }
    }
    let fault = if length > LONGEST { Fault::TooLong } else { fault };
    Ok(Frame { length, cells: Err(fault) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells, or the fault with the text that was passed.
    fn rows(text: &str, delimiter: u8) -> Vec<std::result::Result<Vec<String>, (Fault, String)>> {
        let mut window = Window::new(Box::new(std::io::Cursor::new(text.as_bytes().to_vec())));
        let mut found = Vec::new();
        while let Some(Frame { length, cells }) = frame(&mut window, delimiter).expect("readable") {
            let taken = window.take(length).expect("taken");
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            found.push(match cells {
                Ok(cells) => Ok(cells.into_iter().map(text).collect()),
                Err(fault) => Err((fault, text(taken))),
            });
        }
        found
    }

    fn good(cells: &[&str]) -> std::result::Result<Vec<String>, (Fault, String)> {
        Ok(cells.iter().map(|cell| (*cell).to_owned()).collect())
    }

    #[test]
    fn cells_hold_delimiters_quotes_and_line_breaks() {
        let text = "a,\"b,\"\"c\"\"\r\nd\",\r\n5\" pipe,\"1\"\"\"\n\nx\ry;z";
        let expected =
            [good(&["a", "b,\"c\"\r\nd", ""]), good(&["5\" pipe", "1\""]), good(&[""]), good(&["x"]), good(&["y;z"])];
        assert_eq!(rows(text, b','), expected);
        assert_eq!(rows("a;\"b;c\"\n", b';'), [good(&["a", "b;c"])]);
        assert_eq!(rows("a\tb,c\n", b'\t'), [good(&["a", "b,c"])]);
    }

    #[test]
    fn a_broken_quote_costs_its_own_line_only() {
        for (text, fault) in [
            ("1,\"a\n2,b\n3,c\n", Fault::Unclosed),
            ("1,\"a\n2,b\n3,\"c\"\n", Fault::AfterQuote),
            ("1,\"a\"b\n2,b\n3,c\n", Fault::AfterQuote),
            ("1,\"a\n2,b\n3,\"\"\n", Fault::Unclosed),
        ] {
            let found = rows(text, b',');
            assert_eq!(found.len(), 3, "{text}");
            let first = text.split_inclusive('\n').next().expect("a line").to_owned();
            assert_eq!(found[0], Err((fault, first)), "{text}");
            assert!(found[1..].iter().all(std::result::Result::is_ok), "{text}");
        }
    }

    #[test]
    fn a_long_quoted_cell_is_one_refused_row_and_none_of_its_lines_is_a_row() {
        let long = "evil,row\n".repeat(LONGEST / 8);
        let found = rows(&format!("1,\"{long}\"\n2,b\n"), b',');
        assert!(matches!(&found[..], [Err((Fault::TooLong, _)), Ok(_)]), "{}", found.len());
        let found = rows(&format!("1,{}\n2,b\n", "x".repeat(LONGEST)), b',');
        assert!(matches!(&found[..], [Err((Fault::TooLong, _)), Ok(_)]), "{}", found.len());
    }
}
