//! Opening the input: a file or a pipe, packed or not, in any encoding, and which format it has.

use std::{
    fs::File,
    io::{Cursor, Read, Result},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8};

use super::{Args, export, window::Window};

/// Bytes by which a format is recognised.
const LOOK: usize = 64 * 1024;

/// Starts of files that hold no text, and what to do.
const PACKED: [(&[u8], &str); 7] = [
    (b"PK\x03\x04", "is a zip file, such as an xlsx: save the sheet as CSV, or unzip it"),
    (b"\xd0\xcf\x11\xe0", "is an xls file: save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd: zstd -dc FILE | millrace send -"),
    (b"BZh", "is packed with bzip2: bzip2 -dc FILE | millrace send -"),
    (b"\xfd7zXZ\0", "is packed with xz: xz -dc FILE | millrace send -"),
    (b"PAR1", "is a Parquet file: write it as CSV or NDJSON first"),
    (b"%PDF", "is a PDF file: get the data as CSV or JSON"),
];

/// Format of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// An array of records, records one after another, or an object that holds the array (--rows).
    Json,
    /// A record a line.
    Ndjson,
    /// A header line with column names, then a record a line.
    Csv,
}

/// Size of the input, for the progress bar.
#[derive(Debug, Clone)]
pub(super) enum Size {
    /// So many rows.
    Rows(u64),
    /// So many bytes, of which so many are read.
    Bytes { total: u64, read: Arc<AtomicU64> },
    /// Not known: a pipe.
    Unknown,
}

/// An input that was opened.
pub(super) struct Opened {
    pub(super) window: Window,
    pub(super) format: Format,
    pub(super) size: Size,
    /// Between the cells of a CSV.
    pub(super) delimiter: u8,
}

struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Opened {
    /// Opens what the flags name.
    pub(super) fn open(args: &Args) -> anyhow::Result<Self> {
        let path = args.file.as_deref().filter(|path| path.as_os_str() != "-");
        let name = path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
        let (input, size): (Box<dyn Read + Send>, Size) = match path {
            None => (Box::new(std::io::stdin()), Size::Unknown),
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
                let about = file.metadata().with_context(|| format!("cannot open {name}"))?;
                if about.is_dir() {
                    bail!("{name} is a directory: give one file, or cat DIRECTORY/*.ndjson | millrace send -");
                }
                let read = Arc::new(AtomicU64::new(0));
                let counted = Counted(file, Arc::clone(&read));
                let size = if about.is_file() { Size::Bytes { total: about.len(), read } } else { Size::Unknown };
                (Box::new(counted), size)
            }
        };
        let input = unpacked(input, &name)?;
        let mut window = Window::new(decoded(input, args.input.encoding)?);
        let by_name = path.and_then(by_extension);
        // A flag that is for one format says which one it is.
        let is_table = args.input.delimiter.is_some() || args.input.skip_lines > 0;
        let by_flag = if is_table { Some(Format::Csv) } else { args.input.rows.as_ref().map(|_| Format::Json) };
        let format = match args.input.format.or(by_name.map(|(format, _)| format)).or(by_flag) {
            Some(format) => format,
            None => recognised(&mut window).with_context(|| format!("cannot read {name}"))?,
        };
        let delimiter = args.input.delimiter.or(by_name.and_then(|(_, delimiter)| delimiter)).unwrap_or(b',');
        Ok(Self { window, format, size, delimiter })
    }
}

/// Format and delimiter that the name of a file stands for, with or without `.gz`.
fn by_extension(path: &Path) -> Option<(Format, Option<u8>)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    match name.strip_suffix(".gz").unwrap_or(&name).rsplit_once('.')?.1 {
        "json" => Some((Format::Json, None)),
        "ndjson" | "jsonl" => Some((Format::Ndjson, None)),
        "csv" => Some((Format::Csv, None)),
        "tsv" => Some((Format::Csv, Some(b'\t'))),
        _ => None,
    }
}

/// The format that a text without a name seems to have. Reads no more than it needs: a pipe may stay open.
fn recognised(window: &mut Window) -> Result<Format> {
    match window.first(1)?.first() {
        Some(b'[') => return Ok(Format::Json),
        Some(b'{') => {}
        Some(_) => return Ok(Format::Csv),
        None => return Ok(Format::Ndjson),
    }
    if export::answer(&window.first(export::HEAD)?).is_some() {
        return Ok(Format::Json);
    }
    let (mut start, mut end) = (0, 0);
    while window.at(start)?.is_some_and(|byte| byte.is_ascii_whitespace()) {
        start += 1;
    }
    while end < LOOK && window.at(start + end)?.is_some_and(|byte| byte != b'\n') {
        end += 1;
    }
    let line = &window.ahead(start + end)?[start..];
    if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok() {
        return Ok(Format::Ndjson);
    }
    // A broken first line does not make all of it another format.
    let mut next = start + end;
    while window.at(next)?.is_some_and(|byte| byte.is_ascii_whitespace()) {
        next += 1;
    }
    Ok(if window.at(next)? == Some(b'{') { Format::Ndjson } else { Format::Json })
}

/// The first bytes, and the input with them.
fn peeked(mut input: Box<dyn Read + Send>, length: u64) -> Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut head = Vec::new();
    (&mut input).take(length).read_to_end(&mut head)?;
    let whole = Cursor::new(head.clone()).chain(input);
    Ok((head, Box::new(whole)))
}

/// The input without the packing of gzip, which is known by its first bytes.
fn unpacked(input: Box<dyn Read + Send>, name: &str) -> anyhow::Result<Box<dyn Read + Send>> {
    let (head, input) = peeked(input, 6).with_context(|| format!("cannot read {name}"))?;
    if head.starts_with(b"\x1f\x8b") {
        return Ok(Box::new(flate2::read::MultiGzDecoder::new(input)));
    }
    match PACKED.iter().find(|(start, _)| head.starts_with(start)) {
        Some((_, remedy)) => bail!("{name} {remedy}"),
        None => Ok(input),
    }
}

/// The input as UTF-8, without a byte order mark.
fn decoded(input: Box<dyn Read + Send>, named: Option<&'static Encoding>) -> anyhow::Result<Box<dyn Read + Send>> {
    let (head, mut input) = peeked(input, 3).context("cannot read the input")?;
    let by_mark = Encoding::for_bom(&head);
    match (named, by_mark) {
        (None | Some(_), Some((encoding, length))) if encoding == UTF_8 => {
            input.read_exact(&mut vec![0; length])?;
            Ok(input)
        }
        (None, None) => Ok(input),
        (Some(encoding), None) if encoding == UTF_8 => Ok(input),
        (Some(encoding), _) | (None, Some((encoding, _))) => Ok(Box::new(Decoded::new(input, encoding))),
    }
}

/// Turns an encoding into UTF-8. Bytes that it does not know become one that no UTF-8 holds, so that their row is
/// refused: a replacement character would pass for a part of an id.
struct Decoded {
    input: Box<dyn Read + Send>,
    decoder: Decoder,
    raw: Vec<u8>,
    text: Cursor<Vec<u8>>,
    has_ended: bool,
}

impl Decoded {
    fn new(input: Box<dyn Read + Send>, encoding: &'static Encoding) -> Self {
        let decoder = encoding.new_decoder_with_bom_removal();
        Self { input, decoder, raw: vec![0; 32 * 1024], text: Cursor::default(), has_ended: false }
    }

    fn fill(&mut self) -> Result<()> {
        let read = self.input.read(&mut self.raw)?;
        self.has_ended = read == 0;
        let mut raw = &self.raw[..read];
        let mut text = Vec::new();
        loop {
            let start = text.len();
            text.resize(start + raw.len() * 3 + 16, 0);
            let (result, used, written) =
                self.decoder.decode_to_utf8_without_replacement(raw, &mut text[start..], self.has_ended);
            text.truncate(start + written);
            raw = &raw[used..];
            match result {
                DecoderResult::InputEmpty => break,
                DecoderResult::Malformed(..) => text.push(0xff),
                DecoderResult::OutputFull => {}
            }
        }
        self.text = Cursor::new(text);
        Ok(())
    }
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let read = self.text.read(buffer)?;
            if read > 0 || self.has_ended {
                return Ok(read);
            }
            self.fill()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use encoding_rs::{UTF_16LE, WINDOWS_1252};

    use super::*;
    use crate::commands::send::{table, window::Ends};

    fn text(bytes: &[u8], encoding: Option<&'static Encoding>) -> Vec<u8> {
        let mut text = Vec::new();
        let input = decoded(Box::new(Cursor::new(bytes.to_vec())), encoding).expect("decoded");
        { input }.read_to_end(&mut text).expect("readable");
        text
    }

    #[test]
    fn encodings_become_utf_8_and_marks_are_removed() {
        assert_eq!(text("\u{feff}ä".as_bytes(), None), "ä".as_bytes());
        assert_eq!(text("\u{feff}ä".as_bytes(), Some(WINDOWS_1252)), "ä".as_bytes());
        assert_eq!(text(b"caf\xe9 \x80", Some(WINDOWS_1252)), "café €".as_bytes());
        let utf_16: Vec<u8> = "\u{feff}é😀".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(text(&utf_16, None), "é😀".as_bytes());
        assert_eq!(text(&utf_16[2..], Some(UTF_16LE)), "é😀".as_bytes());
        // Half a surrogate pair: no replacement, which would pass for text.
        assert_eq!(text(&[0x61, 0, 0, 0xd8, 0x62, 0], Some(UTF_16LE)), b"a\xffb");
        assert_eq!(text(b"\xff", None), b"\xff");
        assert_eq!(text(b"", None), b"");
    }

    #[test]
    fn a_gzip_file_of_several_members_is_read_whole_and_other_packing_named() {
        let packed = |text: &str| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(text.as_bytes()).expect("packed");
            packer.finish().expect("packed")
        };
        let both = [packed("one\n"), packed("two\n")].concat();
        let mut text = String::new();
        unpacked(Box::new(Cursor::new(both)), "f").expect("gzip").read_to_string(&mut text).expect("text");
        assert_eq!(text, "one\ntwo\n");
        let refused = unpacked(Box::new(&b"PK\x03\x04rest"[..]), "f.xlsx").err().expect("refused");
        assert!(refused.to_string().contains("save the sheet as CSV"), "{refused}");
    }

    #[test]
    fn the_format_is_known_by_the_name_or_by_the_first_bytes() {
        let by_name = |name: &str| by_extension(Path::new(name)).map(|(format, _)| format);
        assert_eq!(by_name("a/b.CSV.gz"), Some(Format::Csv));
        assert_eq!(by_name("b.jsonl"), Some(Format::Ndjson));
        assert_eq!(by_extension(Path::new("b.tsv")), Some((Format::Csv, Some(b'\t'))));
        assert_eq!(by_name("/dev/fd/63"), None);
        for (head, format) in [
            (" [{\"a\":1}]", Format::Json),
            ("{\"a\":1}", Format::Ndjson),
            ("{\"a\":1}\r\n{\"a\":2}\r\n", Format::Ndjson),
            ("{\"a\":}\n{\"a\":2}\n", Format::Ndjson),
            ("{\n \"a\": 1\n}", Format::Json),
            ("{\"asOf\":\"2026-01-31T12:00:00Z\",\"groups\":[]}", Format::Json),
            ("recordId,time\n", Format::Csv),
            ("\"recordId\"\n", Format::Csv),
            ("", Format::Ndjson),
        ] {
            let mut window = Window::new(Box::new(Cursor::new(head.as_bytes().to_vec())));
            assert_eq!(recognised(&mut window).expect("readable"), format, "{head}");
        }
    }

    #[test]
    fn a_pipe_that_stays_open_is_read_line_by_line() {
        struct Open(Option<&'static [u8]>);
        impl Read for Open {
            fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
                let Some(bytes) = self.0.take() else {
                    return Err(std::io::Error::other("more than the line was read"));
                };
                buffer[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }
        }
        let line = b"{\"recordId\":\"a\",\"value\":1}\n";
        let mut window = Window::new(Box::new(Open(Some(line))));
        assert_eq!(recognised(&mut window).expect("one line is enough"), Format::Ndjson);
        assert_eq!(window.pass_line(100, Ends::Newline).expect("the line").text, line);
        let mut window = Window::new(Box::new(Open(Some(b"recordId,time\n"))));
        assert_eq!(recognised(&mut window).expect("one line is enough"), Format::Csv);
        assert!(table::frame(&mut window, b',').expect("the line").is_some());
        assert_eq!(window.take(14).expect("the line"), b"recordId,time\n");
    }
}
