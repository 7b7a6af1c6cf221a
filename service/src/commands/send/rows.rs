//! Reading the input in constant memory and cutting it into requests at fixed row numbers.
//!
//! Must never hold more than one request's rows. A row that cannot be read costs that row: the others are sent, and keep
//! the numbers and ids that they have without it.

use std::{borrow::Cow, sync::Arc};

use anyhow::bail;
use tokio::sync::mpsc;

use super::{
    Args, Batch, Feed, Row,
    args::InputArgs,
    export::{self, Line},
    generate::Generator,
    header,
    input::{Format, Opened, Size},
    origin::{Locator, Origin, Refused},
    shape::{Cell, NamedCell, Position, Shape, Shaped},
    table::{self, Fault, Frame},
    trim,
    values::{Value, Values},
    window::{Ends, KEPT, Passed, Window},
};
use crate::domain::{Invalid, code};

/// Longest row, in bytes. The service takes 16 KiB; a row may hold columns that are not sent.
pub(super) const LONGEST: usize = 1024 * 1024;

/// Codes of rows that cannot be read, beside those of the service.
mod unread {
    pub(super) const NOT_TEXT: &str = "not_utf8";
    pub(super) const WRONG_COLUMNS: &str = "wrong_columns";
    pub(super) const BROKEN_QUOTES: &str = "broken_quotes";
}

/// An input that is to be read.
pub(super) struct Reader {
    input: Input,
    size: Size,
    plan: Plan,
}

/// Its form.
struct Plan {
    shape: Shape,
    batch_size: u64,
    skip_lines: u64,
    /// `--rows`
    path: Option<String>,
    /// Name of the encoding that was asked for.
    encoding: Option<&'static str>,
    has_delimiter: bool,
}

enum Input {
    Generated(Generator, u64),
    Text { window: Window, format: Format, delimiter: u8 },
}

impl Reader {
    /// Opens what the flags name.
    pub(super) fn open(args: &Args, seed: u64, batch_size: usize) -> anyhow::Result<Self> {
        let shape = Shape::new(args)?;
        let (input, size) = match args.generate {
            Some(rows) => {
                let InputArgs { format, encoding, delimiter, skip_lines, rows: path, .. } = &args.input;
                let is_read = format.is_some() || encoding.is_some() || delimiter.is_some() || path.is_some();
                if is_read || *skip_lines > 0 {
                    bail!(
                        "--format, --encoding, --delimiter, --skip-lines and --rows are for a file, not for --generate"
                    );
                }
                (Input::Generated(Generator::new(seed, args.keys, args.duplicates), rows), Size::Rows(rows))
            }
            None => {
                let Opened { window, format, size, delimiter } = Opened::open(args)?;
                if format != Format::Json && args.input.rows.is_some() {
                    bail!("--rows is for JSON; the input is not read as JSON: --format json");
                }
                if format != Format::Csv && (args.input.delimiter.is_some() || args.input.skip_lines > 0) {
                    bail!("--delimiter and --skip-lines are for CSV; the input is not read as CSV: --format csv");
                }
                (Input::Text { window, format, delimiter }, size)
            }
        };
        let plan = Plan {
            shape,
            batch_size: batch_size as u64,
            skip_lines: args.input.skip_lines,
            path: args.input.rows.clone(),
            encoding: args.input.encoding.map(encoding_rs::Encoding::name),
            has_delimiter: args.input.delimiter.is_some(),
        };
        Ok(Self { input, size, plan })
    }

    /// Size of the input.
    pub(super) fn size(&self) -> Size {
        self.size.clone()
    }

    /// Reads all of it; ends early, and in order, when nobody takes the batches any more. Rows that were read before the
    /// input broke are sent.
    pub(super) fn read(self, feed: &mpsc::Sender<Feed>) -> anyhow::Result<()> {
        let Self { input, plan, .. } = self;
        let mut cutter = Cutter {
            feed,
            plan: &plan,
            locator: Arc::new(Locator::of(&plan.shape)),
            first_row: 1,
            rows: Vec::new(),
            origins: Vec::new(),
        };
        let read = match input {
            Input::Generated(generator, rows) => cutter.generated(&generator, rows),
            Input::Text { window, format: Format::Csv, delimiter } => cutter.csv(window, delimiter),
            Input::Text { window, format: Format::Ndjson, .. } => cutter.ndjson(window),
            Input::Text { window, format: Format::Json, .. } => cutter.json(window),
        };
        match (read, cutter.flush()) {
            (Err(Stop::Failed(error)), _) | (Ok(()), Err(Stop::Failed(error))) => Err(error),
            (Ok(()) | Err(Stop::NobodyTakes), _) => Ok(()),
        }
    }
}

enum Stop {
    NobodyTakes,
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Cutter<'a> {
    feed: &'a mpsc::Sender<Feed>,
    plan: &'a Plan,
    locator: Arc<Locator>,
    first_row: u64,
    rows: Vec<Row>,
    origins: Vec<Origin>,
}

impl Cutter<'_> {
    fn say(&self, feed: Feed) -> Result<(), Stop> {
        self.feed.blocking_send(feed).map_err(|_| Stop::NobodyTakes)
    }

    fn origin(&self, number: u64, line: u64, passed: Passed) -> Origin {
        let Passed { text, is_cut } = passed;
        // Without the end of its line; blanks are a part of a cell.
        let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        Origin { number, line, text: text[..end].to_vec(), is_cut, locator: Arc::clone(&self.locator) }
    }

    fn take(&mut self, origin: Origin, shaped: Result<Shaped, Invalid>) -> Result<(), Stop> {
        match shaped {
            Ok(Shaped::Line(line)) => {
                self.rows.push(Row { number: origin.number, line });
                self.origins.push(origin);
                Ok(())
            }
            Ok(Shaped::Skipped) => self.say(Feed::Skipped(1)),
            Err(invalid) => self.say(Feed::Refused(Box::new(Refused { origin, invalid }))),
        }
    }

    /// Sends what belongs to requests before the one of row `number`. Which request a row belongs to depends on its
    /// number alone, so rows that are left out move no other.
    fn begin(&mut self, number: u64) -> Result<Position, Stop> {
        let batch_size = self.plan.batch_size;
        if number >= self.first_row + batch_size {
            self.flush()?;
            self.first_row = number - (number - 1) % batch_size;
        }
        Ok(Position { number, first_row: self.first_row })
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let (rows, origins) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.origins));
        if rows.is_empty() {
            return Ok(());
        }
        self.say(Feed::Batch(Batch { first_row: self.first_row, rows }, origins))
    }

    fn generated(&mut self, generator: &Generator, rows: u64) -> Result<(), Stop> {
        for index in 0..rows {
            let (fields, repeats) = generator.row(index);
            let position = self.begin(index + 1)?;
            let mut cells: Vec<_> = fields
                .iter()
                .map(|(name, text)| NamedCell {
                    name: Cow::Borrowed(*name),
                    cell: Cell::Text(Cow::Borrowed(text.as_str())),
                })
                .collect();
            let shaped = self.plan.shape.record(position, &mut cells);
            if repeats {
                self.say(Feed::Repeated(1))?;
            }
            let origin = self.origin(position.number, position.number, Passed::default());
            self.take(origin, shaped)?;
        }
        Ok(())
    }

    fn csv(&mut self, mut window: Window, delimiter: u8) -> Result<(), Stop> {
        for _ in 0..self.plan.skip_lines {
            window.pass_line(KEPT, Ends::Any)?;
        }
        let delimiter = self.delimiter(&mut window, delimiter)?;
        let names = loop {
            let line = window.line();
            match table::frame(&mut window, delimiter)? {
                None => return Ok(()),
                Some(Frame { length, cells: Ok(cells) }) => {
                    window.take(length)?;
                    if cells.iter().all(Vec::is_empty) {
                        continue;
                    }
                    let trims = self.plan.shape.trims;
                    let names = header::names(cells, line)?;
                    let names: Vec<_> =
                        names.iter().map(|name| if trims { trim::text(name) } else { name }.to_owned()).collect();
                    header::check(&self.plan.shape, &names, delimiter, line)?;
                    break names;
                }
                Some(Frame { cells: Err(fault), .. }) => {
                    let (_, detail) = about(fault);
                    return Err(anyhow::anyhow!("the header on line {line} {detail}").into());
                }
            }
        };
        self.locator = Arc::new(Locator::of(&self.plan.shape).with_table(names.clone(), delimiter));
        let mut number = 0;
        loop {
            let line = window.line();
            let Some(Frame { length, cells }) = table::frame(&mut window, delimiter)? else { return Ok(()) };
            let mut passed = Passed::default();
            let taken = window.take(length)?;
            passed.add(&taken, KEPT);
            if let Err(Fault::TooLong) = cells
                && !taken.ends_with(b"\n")
                && !taken.ends_with(b"\r")
            {
                window.pass_line(KEPT, Ends::Any)?;
            }
            if cells.as_ref().is_ok_and(|cells| matches!(&cells[..], [cell] if cell.is_empty())) {
                continue;
            }
            number += 1;
            let position = self.begin(number)?;
            let shaped = self.row(position, &names, cells);
            let origin = self.origin(number, line, passed);
            self.take(origin, shaped)?;
        }
    }

    /// The delimiter that Excel writes into a line of its own, `sep=;`, where no flag gives one.
    fn delimiter(&self, window: &mut Window, delimiter: u8) -> Result<u8, Stop> {
        let head = window.ahead(6)?;
        let is_line = head.len() >= 5 && head[..4].eq_ignore_ascii_case(b"sep=") && head[4].is_ascii_punctuation();
        if !is_line || !matches!(head.get(5), None | Some(b'\r' | b'\n')) {
            return Ok(delimiter);
        }
        let named = head[4];
        window.pass_line(KEPT, Ends::Any)?;
        Ok(if self.plan.has_delimiter { delimiter } else { named })
    }

    fn row(&self, position: Position, names: &[String], cells: Result<Vec<Vec<u8>>, Fault>) -> Result<Shaped, Invalid> {
        let cells = cells.map_err(|fault| {
            let (code, detail) = about(fault);
            Invalid::new(code, "", detail)
        })?;
        if cells.iter().all(Vec::is_empty) {
            return Ok(Shaped::Skipped);
        }
        if cells.len() != names.len() {
            let detail = format!("has {} cells, and the header has {}", cells.len(), names.len());
            return Err(Invalid::new(unread::WRONG_COLUMNS, "", detail));
        }
        let mut texts = Vec::with_capacity(cells.len());
        for (name, cell) in names.iter().zip(cells) {
            let text = String::from_utf8(cell).map_err(|_| self.not_text(Some(name)))?;
            texts.push(NamedCell { name: Cow::Borrowed(name.as_str()), cell: Cell::Text(Cow::Owned(text)) });
        }
        self.plan.shape.record(position, &mut texts)
    }

    fn not_text(&self, column: Option<&String>) -> Invalid {
        let place = column.map_or_else(String::new, |column| format!(" in column {column}"));
        let detail = match self.plan.encoding {
            Some(name) if name != "UTF-8" => {
                format!("holds bytes{place} that are not {name}; give the encoding of the file by --encoding")
            }
            _ => format!(
                "holds bytes{place} that are not UTF-8; where the whole file has another encoding, --encoding windows-1252 \
                 or the like reads it"
            ),
        };
        Invalid::new(unread::NOT_TEXT, column.map_or_else(String::new, |column| self.locator.pointer(column)), detail)
    }

    fn ndjson(&mut self, mut window: Window) -> Result<(), Stop> {
        let mut number = 0;
        let mut notes = export::Notes::new(&self.plan.shape);
        while window.at(0)?.is_some() {
            let line = window.line();
            let passed = window.pass_line(LONGEST, Ends::Newline)?;
            number += 1;
            let text = passed.text.trim_ascii();
            if text.is_empty() {
                continue;
            }
            if matches!(export::line(text), Line::Frame) {
                notes.frames();
                continue;
            }
            let position = self.begin(number)?;
            let shaped = if passed.is_cut {
                Err(Invalid::new(code::TOO_LARGE, "", "is longer than 1 MiB"))
            } else {
                self.json_row(position, text, &mut notes)
            };
            let mut kept = Passed { text: Vec::new(), is_cut: passed.is_cut };
            kept.add(text, KEPT);
            let origin = self.origin(number, line, kept);
            self.take(origin, shaped)?;
        }
        notes.end();
        Ok(())
    }

    fn json_row(&self, position: Position, json: &[u8], notes: &mut export::Notes) -> Result<Shaped, Invalid> {
        if std::str::from_utf8(json).is_err() {
            return Err(self.not_text(None));
        }
        self.plan.shape.json(position, json, notes)
    }

    fn json(&mut self, mut window: Window) -> Result<(), Stop> {
        let path = match &self.plan.path {
            Some(path) => path.as_str(),
            None => export::records_at(&window.first(export::HEAD)?),
        };
        let mut notes = export::Notes::new(&self.plan.shape);
        let mut values = Values::new(path.split('.').filter(|key| !key.is_empty()).map(str::to_owned).collect());
        let mut number = 0;
        while let Some(Value { line, raw, json }) = values.next(&mut window)? {
            number += 1;
            let position = self.begin(number)?;
            let shaped = match json {
                Ok(json) => self.json_row(position, &json, &mut notes),
                Err(why) => Err(Invalid::new(code::INVALID_JSON, "", why)),
            };
            let origin = self.origin(number, line, raw);
            self.take(origin, shaped)?;
        }
        notes.end();
        Ok(values.end()?)
    }
}

/// Code and words for a broken row.
fn about(fault: Fault) -> (&'static str, &'static str) {
    match fault {
        Fault::Unclosed => (unread::BROKEN_QUOTES, "holds a cell that begins with a quote and has no closing one"),
        Fault::AfterQuote => (
            unread::BROKEN_QUOTES,
            "holds text behind the quote that ends a cell; a quote within a cell is written twice, and --delimiter names \
             another character than a comma between cells",
        ),
        Fault::TooLong => (code::TOO_LARGE, "is longer than 1 MiB"),
    }
}
