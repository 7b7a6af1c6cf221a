//! Flags of `millrace send` for reading the input and for making records of its rows.

use std::str::FromStr;

use super::{input::Format, numbers::DecimalSign};

/// Shown below the flags by `--help`.
pub(super) const EXAMPLES: &str = "\
Fields of a record: recordId, time, sourceId, destinationId, type (positive or
negative), value, unit, reference, and attributes (optional). A column with the
name of a field gives that field; --map and --set give the others.

A bank's CSV: 5 lines before the header, semicolons, amounts such as -1.234,56,
dates such as 31.01.2026
  millrace send bank.csv --encoding windows-1252 --skip-lines 5 \\
    --delimiter ';' --signed Betrag --decimal , --map Buchungstag=time \\
    --time-format %d.%m.%Y --time-zone Europe/Berlin --map IBAN=sourceId \\
    --map Text=attributes.text --set destinationId=account-1 \\
    --set unit=EUR --set reference=bank --idempotency-key bank-2026-01

A shop's JSON, {\"orders\": [{\"id\": 1001, \"total\": 1999, ...}]}, amounts in
cents, ids as numbers
  millrace send orders.json --rows orders --map id=recordId \\
    --map total=value --scale 2 --map customer=sourceId \\
    --map created_at=time --set destinationId=shop --set type=positive \\
    --set unit=EUR --set reference=orders --ignore-unknown

A spreadsheet's CSV; refused rows go to a file
  millrace send sheet.csv --trim --errors refused.ndjson

NDJSON, packed with gzip or not; a pipe
  millrace send records.ndjson.gz
  zstd -dc records.csv.zst | millrace send -

docs/import.md shows each of these step by step.";

/// Form of the input.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input")]
pub(super) struct InputArgs {
    /// Format of the input; absent: by the file's extension (.json, .ndjson, .jsonl, .csv, .tsv, each also with .gz),
    /// else by its first bytes.
    #[arg(long, value_enum)]
    pub(super) format: Option<Format>,
    /// Encoding of the input, such as windows-1252 or utf-16le. Absent: UTF-8, or UTF-16 with a byte order mark.
    #[arg(long, value_name = "NAME", value_parser = encoding)]
    pub(super) encoding: Option<&'static encoding_rs::Encoding>,
    /// Character between the cells of a CSV: a comma unless given; `tab` for tabs.
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub(super) delimiter: Option<u8>,
    /// Leave out so many lines before the header of a CSV.
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    pub(super) skip_lines: u64,
    /// Where the records are in a JSON object: the keys on the way to their array, such as orders or data.orders.
    #[arg(long, value_name = "KEY.KEY")]
    pub(super) rows: Option<String>,
    /// Remove white space (also U+00A0), U+200B, U+FEFF and bidirectional controls at both ends of every cell or text.
    #[arg(long)]
    pub(super) trim: bool,
    /// Leave out, and count, rows in which this column is empty.
    #[arg(long, value_name = "COLUMN")]
    pub(super) skip_empty: Vec<String>,
    /// Text that stands for nothing, such as NA; the empty text always does.
    #[arg(long, value_name = "TEXT")]
    pub(super) null: Vec<String>,
}

/// Sources of the fields.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Fields")]
pub(super) struct FieldArgs {
    /// Take a field from a column (CSV) or key (JSON) of another name. `attributes.NAME` adds it to the attributes. A
    /// column may be given several times, to fill several fields.
    #[arg(long, value_name = "COLUMN=FIELD")]
    pub(super) map: Vec<Pair>,
    /// Give a field the same value in every record. A row that holds another value for it is refused.
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(super) set: Vec<Pair>,
    /// JSON: leave out keys that are no field, and name them once. (Columns of a CSV that are no field are always left
    /// out and named.)
    #[arg(long)]
    pub(super) ignore_unknown: bool,
}

/// Amounts and times as other programs write them.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Amounts and times")]
pub(super) struct AmountArgs {
    /// Column with a signed number: its sign becomes `type`, the rest `value`. Of several, one per row may be filled.
    #[arg(long, value_name = "COLUMN")]
    pub(super) signed: Vec<String>,
    /// Column with amounts that become negative records; with --credit: one of the two is filled in each row.
    #[arg(long, value_name = "COLUMN")]
    pub(super) debit: Option<String>,
    /// Column with amounts that become positive records.
    #[arg(long, value_name = "COLUMN")]
    pub(super) credit: Option<String>,
    /// Column whose text gives `type`: first the text of positive records, then that of negative ones, such as
    /// D/C=C,D or `S/H=H,S`.
    #[arg(long, value_name = "COLUMN=POSITIVE,NEGATIVE")]
    pub(super) sign: Option<SignColumn>,
    /// The decimal sign of amounts: `,` reads 1.234,56 and `.` reads 1,234.56. Absent: digits with at most one point.
    #[arg(long, value_name = "SIGN")]
    pub(super) decimal: Option<DecimalSign>,
    /// Amounts are whole numbers of minor units with so many decimal places: with 2, 1999 is 19.99.
    #[arg(long, value_name = "PLACES", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(super) scale: Option<u8>,
    /// Zone of times that are written without an offset, such as Europe/Berlin.
    #[arg(long, value_name = "ZONE")]
    pub(super) time_zone: Option<chrono_tz::Tz>,
    /// Column with the zone of the row's time, such as Europe/Berlin or +01:00, for times without an offset.
    #[arg(long, value_name = "COLUMN", conflicts_with = "time_zone")]
    pub(super) zone_column: Option<String>,
    /// How times are written, such as %d.%m.%Y or "%m/%d/%Y %H:%M" (strftime). Absent: 2026-01-31, with or without a
    /// time of day, and an offset as RFC 3339, psql and shops write it.
    #[arg(long, value_name = "FORMAT")]
    pub(super) time_format: Option<String>,
}

/// `left=right` on the command line.
#[derive(Debug, Clone)]
pub(super) struct Pair(pub(super) String, pub(super) String);

impl FromStr for Pair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.split_once('=') {
            Some((left, right)) if !left.is_empty() => Ok(Self(left.to_owned(), right.to_owned())),
            _ => Err("must be of the form NAME=TEXT"),
        }
    }
}

/// A column whose text gives the sign.
#[derive(Debug, Clone)]
pub(super) struct SignColumn {
    pub(super) column: String,
    pub(super) positive: String,
    pub(super) negative: String,
}

impl FromStr for SignColumn {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let parts = text.rsplit_once('=').and_then(|(column, texts)| Some((column, texts.split_once(',')?)));
        match parts {
            Some((column, (positive, negative)))
                if ![column, positive, negative].contains(&"") && positive != negative =>
            {
                let [column, positive, negative] = [column, positive, negative].map(str::to_owned);
                Ok(Self { column, positive, negative })
            }
            _ => Err("must be of the form COLUMN=POSITIVE,NEGATIVE, such as D/C=C,D"),
        }
    }
}

fn encoding(name: &str) -> Result<&'static encoding_rs::Encoding, String> {
    encoding_rs::Encoding::for_label(name.as_bytes())
        .ok_or_else(|| "is not known; some that are: utf-8, windows-1252, iso-8859-15, utf-16le, shift_jis".to_owned())
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii_punctuation() && *byte != b'"' || matches!(byte, b'\t' | b' ') => Ok(*byte),
        _ => Err("must be one character, such as ';' or '|', or tab".to_owned()),
    }
}
