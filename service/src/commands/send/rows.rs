//! Reading the input in constant memory and cutting it into requests at fixed row numbers.
//!
//! Must never hold more than one request's rows.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;

use super::{
    Args, Batch, Feed, Row, Shape,
    generate::Generator,
    shape::Shaped,
    text::{Quotes, Values, without_mark},
};

/// Longest row, in bytes. The service takes 16 KiB; what is longer still is surely not a file of records.
pub(super) const LONGEST: usize = 1024 * 1024;

/// Format of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// An array of records, or records one after another.
    Json,
    /// A record a line.
    Ndjson,
    /// A header line with column names, then a record a line.
    Csv,
}

/// How much there is to do, for the progress bar.
#[derive(Debug, Clone)]
pub(super) enum Size {
    /// So many rows.
    Rows(u64),
    /// So many bytes, of which so many are read.
    Bytes { total: u64, read: Arc<AtomicU64> },
    /// Not known: standard input.
    Unknown,
}

/// An input that is to be read.
pub(super) struct Reader {
    input: Input,
    shape: Shape,
    size: Size,
    batch_size: u64,
}

enum Input {
    Generated(Generator, u64),
    Text(Box<dyn BufRead + Send>, Format),
}

struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Reader {
    /// Opens what the flags name.
    pub(super) fn open(args: &Args, seed: u64, batch_size: usize) -> anyhow::Result<Self> {
        let shape = Shape::new(args)?;
        let batch_size = batch_size as u64;
        if let Some(rows) = args.generate {
            let generator = Generator::new(seed, args.keys, args.duplicates);
            return Ok(Self { input: Input::Generated(generator, rows), shape, size: Size::Rows(rows), batch_size });
        }
        let Some(path) = args.file.as_deref().filter(|path| path.as_os_str() != "-") else {
            let format = args.format.unwrap_or(Format::Ndjson);
            let input = Input::Text(Box::new(BufReader::new(std::io::stdin())), format);
            return Ok(Self { input, shape, size: Size::Unknown, batch_size });
        };
        let format = match (args.format, path.extension().and_then(|extension| extension.to_str())) {
            (Some(format), _) => format,
            (None, Some("json")) => Format::Json,
            (None, Some("ndjson" | "jsonl")) => Format::Ndjson,
            (None, Some("csv")) => Format::Csv,
            _ => bail!("{}: say --format json, ndjson or csv", path.display()),
        };
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let read = Arc::new(AtomicU64::new(0));
        let total = file.metadata().map(|about| about.len()).unwrap_or_default();
        let size = Size::Bytes { total, read: Arc::clone(&read) };
        let input = Input::Text(Box::new(BufReader::with_capacity(256 * 1024, Counted(file, read))), format);
        Ok(Self { input, shape, size, batch_size })
    }

    /// How much there is to do.
    pub(super) fn size(&self) -> Size {
        self.size.clone()
    }

    /// Reads all of it; ends early, and in order, when nobody takes the batches any more.
    pub(super) fn read(self, feed: &mpsc::Sender<Feed>) -> anyhow::Result<()> {
        let Self { input, shape, batch_size, .. } = self;
        let mut cutter = Cutter { feed, batch_size, shape: &shape, first_row: 1, rows: Vec::new() };
        let read = match input {
            Input::Generated(generator, rows) => cutter.generated(&generator, rows),
            Input::Text(input, format) => cutter.text(input, format),
        };
        match read {
            Ok(()) | Err(Stop::NobodyTakes) => {}
            Err(Stop::Failed(error)) => return Err(error),
        }
        Ok(())
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
    batch_size: u64,
    shape: &'a Shape,
    first_row: u64,
    rows: Vec<Row>,
}

impl Cutter<'_> {
    fn say(&self, feed: Feed) -> Result<(), Stop> {
        self.feed.blocking_send(feed).map_err(|_| Stop::NobodyTakes)
    }

    fn take(&mut self, number: u64, shaped: Shaped) -> Result<(), Stop> {
        self.cut_before(number)?;
        match shaped {
            Shaped::Line(line) => self.rows.push(Row { number, line }),
            Shaped::Skipped => self.say(Feed::Skipped(1))?,
        }
        Ok(())
    }

    /// Sends what belongs to requests before the one of row `number`. Which request a row belongs to hangs on its
    /// number alone, so rows that are left out move no other.
    fn cut_before(&mut self, number: u64) -> Result<(), Stop> {
        let first_row = number - (number - 1) % self.batch_size;
        if first_row != self.first_row {
            self.flush()?;
            self.first_row = first_row;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() { Ok(()) } else { self.say(Feed::Batch(Batch { first_row: self.first_row, rows })) }
    }

    fn generated(&mut self, generator: &Generator, rows: u64) -> Result<(), Stop> {
        for index in 0..rows {
            let (fields, repeats) = generator.row(index);
            let shaped = self.shape.texts(index + 1, fields.iter().map(|(field, text)| (*field, text.as_str())))?;
            self.take(index + 1, shaped)?;
            if repeats {
                self.say(Feed::Repeated(1))?;
            }
        }
        self.flush()
    }

    fn text(&mut self, input: Box<dyn BufRead + Send>, format: Format) -> Result<(), Stop> {
        let input = without_mark(input)?;
        match format {
            Format::Csv => self.csv(input),
            Format::Ndjson => self.ndjson(input),
            Format::Json => self.json(input),
        }
    }

    fn csv(&mut self, input: impl BufRead) -> Result<(), Stop> {
        let mut reader = csv::ReaderBuilder::new().from_reader(Quotes::new(input));
        let headers = reader.headers().context("cannot read the header line")?.clone();
        let columns: Vec<&str> = headers.iter().collect();
        let unused = self.shape.check_columns(&columns)?;
        if !unused.is_empty() {
            eprintln!("columns that are left out: {}", unused.join(", "));
        }
        let mut record = csv::StringRecord::new();
        let mut number = 0;
        while reader.read_record(&mut record).with_context(|| format!("row {}", number + 1))? {
            number += 1;
            let shaped = self.shape.texts(number, columns.iter().copied().zip(record.iter()))?;
            self.take(number, shaped)?;
        }
        self.flush()
    }

    fn ndjson(&mut self, mut input: impl BufRead) -> Result<(), Stop> {
        let mut number = 0;
        loop {
            let mut line = Vec::new();
            if (&mut input).take(LONGEST as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                return self.flush();
            }
            number += 1;
            if line.len() > LONGEST {
                return Err(anyhow::anyhow!("row {number} is longer than 1 MiB").into());
            }
            let line = line.trim_ascii().to_vec();
            if !line.is_empty() {
                let shaped = self.shape.json(number, line)?;
                self.take(number, shaped)?;
            }
        }
    }

    fn json(&mut self, mut input: impl BufRead) -> Result<(), Stop> {
        let mut values = Values::default();
        let mut number = 0;
        loop {
            let buffer = input.fill_buf()?;
            let taken = buffer.len();
            if taken == 0 {
                values.end()?;
                return self.flush();
            }
            let found = values.push(buffer)?;
            input.consume(taken);
            for value in found {
                number += 1;
                let shaped = self.shape.json(number, value)?;
                self.take(number, shaped)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First row and row numbers of each request, and how reading ended.
    fn cut(text: &'static str, flags: &[&str], format: Format) -> (Vec<(u64, Vec<u64>)>, anyhow::Result<()>) {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let line = <Line as clap::Parser>::try_parse_from(std::iter::once("send").chain(flags.iter().copied()));
        let shape = Shape::new(&line.expect("flags").args).expect("shape");
        let input = Input::Text(Box::new(text.as_bytes()), format);
        let (feed, mut fed) = mpsc::channel(100);
        let read = Reader { input, shape, size: Size::Unknown, batch_size: 2 }.read(&feed);
        drop(feed);
        let mut found = Vec::new();
        while let Some(next) = fed.blocking_recv() {
            if let Feed::Batch(batch) = next {
                found.push((batch.first_row, batch.rows.iter().map(|row| row.number).collect()));
            }
        }
        (found, read)
    }

    fn batches(text: &'static str, flags: &[&str], format: Format) -> Vec<(u64, Vec<u64>)> {
        let (found, read) = cut(text, flags, format);
        read.expect("read");
        found
    }

    #[test]
    fn a_mark_of_utf_8_at_the_start_is_no_part_of_the_input() {
        let flags = ["--idempotency-key", "k"];
        let one = [(1, vec![1])];
        assert_eq!(batches("\u{feff}{\"unit\":\"a\"}\n", &flags, Format::Ndjson), one);
        assert_eq!(batches("\u{feff} [{\"unit\":\"a\"}]", &flags, Format::Json), one);
        assert_eq!(
            batches("\u{feff}\"unit\"\na\n", &["--skip-empty", "unit", "--idempotency-key", "k"], Format::Csv),
            one
        );
        assert_eq!(batches("", &flags, Format::Ndjson), []);
    }

    #[test]
    fn what_is_cut_off_or_written_wrong_is_said_with_its_row() {
        let flags = ["--idempotency-key", "k"];
        for (format, text, said) in [
            (Format::Csv, "unit,value\na,1\nb,\"2\nc,3\n", "row 2"),
            (Format::Csv, "unit,value\na,1\nb,\"2", "row 2"),
            (Format::Csv, "unit,\"value", "header"),
            (Format::Json, "[{\"unit\":\"a\"},]", "after row 1"),
            (Format::Json, "[{\"unit\":\"a\"},,{}]", "after row 1"),
            (Format::Json, "[{\"unit\":\"a\"} {}]", "after row 1"),
            (Format::Json, "[{\"unit\":\"a\"},", "after row 1"),
        ] {
            let (_, read) = cut(text, &flags, format);
            let error = format!("{:#}", read.expect_err(text));
            assert!(error.contains(said), "{text}: {error}");
        }
        // A quote within a field that does not begin with one is a character like others.
        assert_eq!(batches("unit,value\n5\" pipe,\"1\"\"\"\n", &flags, Format::Csv), [(1, vec![1])]);
    }

    #[test]
    fn requests_are_cut_by_row_number_whatever_is_left_out() {
        let flags = ["--skip-empty", "v", "--idempotency-key", "k"];
        let csv = "v,unit\n1,a\n,a\n,a\n,a\n5,a\n6,a\n7,a\n";
        assert_eq!(batches(csv, &flags, Format::Csv), [(1, vec![1]), (5, vec![5, 6]), (7, vec![7])]);
        let ndjson = "{\"v\":1}\n\n{\"v\":null}\n{\"v\":4}\n{\"v\":5}";
        assert_eq!(batches(ndjson, &flags, Format::Ndjson), [(1, vec![1]), (3, vec![4]), (5, vec![5])]);
    }
}
