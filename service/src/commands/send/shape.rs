//! From a row of the input to a record's JSON: renaming, constants, signs, amounts, times, derived ids.
//!
//! Must never turn a number into a float: text stays text, JSON numbers are copied as they were written. Must never leave
//! out a column, key or flag without a message.

use std::borrow::Cow;

use anyhow::bail;
use serde_json::value::RawValue;

use super::{
    Args,
    amounts::Amounts,
    args::Pair,
    export::{self, Notes},
    parts::{Parts, quoted},
    times::Times,
    trim,
};
use crate::{
    accept,
    domain::{Invalid, SourceId, Text, code, members},
};

pub(super) const FIELDS: [&str; 10] =
    ["recordId", "time", "sourceId", "destinationId", "type", "value", "unit", "reference", "reverses", "attributes"];
/// Fields that are texts: a number in their place is sent as the text that it is.
const TEXTS: [&str; 6] = ["recordId", "sourceId", "destinationId", "unit", "reference", "reverses"];
/// Fields that the API adds to a record in its answers. An exported record holds them, and they are no part of it.
pub(super) const OUTPUT: [&str; 2] = ["receivedAt", "processedAt"];
/// Largest record that the service takes.
const LARGEST: usize = 16 * 1024;

/// Steps for every row.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) map: Vec<Pair>,
    pub(super) set: Vec<Pair>,
    /// Whether `--set` replaces the row's own value: only of generated rows, which nobody wrote.
    replaces: bool,
    pub(super) amounts: Amounts,
    pub(super) times: Times,
    pub(super) zone_column: Option<String>,
    pub(super) skip_empty: Vec<String>,
    /// Texts that stand for nothing, beside the empty one.
    null: Vec<String>,
    pub(super) trims: bool,
    ignores_unknown: bool,
    /// Ids of rows without a recordId are derived from this.
    pub(super) key: Option<String>,
}

/// The result for a row.
#[derive(Debug)]
pub(super) enum Shaped {
    Line(Vec<u8>),
    Skipped,
}

/// A row's number, and that of the first row of its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) number: u64,
    pub(super) first_row: u64,
}

/// A cell of a CSV, or a member of a JSON object.
#[derive(Debug, Clone)]
pub(super) enum Cell<'a> {
    Text(Cow<'a, str>),
    /// A JSON value that is no string.
    Json(&'a RawValue),
}

impl Cell<'_> {
    fn is_null(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Json(raw) => raw.get() == "null",
        }
    }

    /// The text, or the JSON as it is written.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Json(raw) => raw.get(),
        }
    }

    fn json(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Json(raw) => raw.get().to_owned(),
        }
    }
}

/// A cell of a row.
pub(super) struct NamedCell<'a> {
    /// The column, or the key in JSON.
    pub(super) name: Cow<'a, str>,
    pub(super) cell: Cell<'a>,
}

impl Shape {
    /// Checks the flags that say how rows become records.
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        let (map, set) = (&args.fields.map, &args.fields.set);
        let mut seen = Vec::new();
        for field in map.iter().map(|Pair(_, field)| field).chain(set.iter().map(|Pair(field, _)| field)) {
            if !FIELDS.contains(&field.as_str()) && !field.starts_with("attributes.") {
                bail!("{field} is not a field of a record; fields are {} and attributes.NAME", FIELDS.join(", "));
            }
            if field == "attributes." {
                bail!("attributes. needs a name behind it: attributes.NAME");
            }
            if seen.contains(&field) {
                bail!("{field} is given twice by --map and --set; a field has one source");
            }
            seen.push(field);
        }
        if set.iter().any(|Pair(field, _)| field == "attributes") {
            bail!("set attributes one by one: --set attributes.NAME=VALUE");
        }
        let amounts = Amounts::new(&args.amounts)?;
        for field in amounts.gives() {
            if seen.iter().any(|known| known == field) {
                bail!("{} gives {field}; leave it out of --map and --set", amounts.flag());
            }
        }
        if args.idempotency_key.as_deref() == Some("") {
            bail!("--idempotency-key must not be empty");
        }
        Ok(Self {
            map: map.clone(),
            set: set.clone(),
            replaces: args.generate.is_some(),
            amounts,
            times: Times::new(args.amounts.time_zone, args.amounts.time_format.clone())?,
            zone_column: args.amounts.zone_column.clone(),
            skip_empty: args.input.skip_empty.clone(),
            null: args.input.null.clone(),
            trims: args.input.trim,
            ignores_unknown: args.fields.ignore_unknown,
            key: args.idempotency_key.clone(),
        })
    }

    /// A record from a JSON object.
    ///
    /// # Errors
    /// Faults of the row, by field.
    pub(super) fn json(&self, position: Position, json: &[u8], notes: &mut Notes) -> Result<Shaped, Invalid> {
        let mut members = members(json, "")?;
        if let Some(raw) = export::record(&members) {
            members = crate::domain::members(raw.get().as_bytes(), "")?;
        }
        let cells = members.into_iter().map(|(key, raw)| {
            let cell = if raw.get().starts_with('"') {
                let text = serde_json::from_str(raw.get()).map_err(|error| {
                    Invalid::new(code::INVALID_JSON, pointer(&key), format!("is not a valid string: {error}"))
                })?;
                Cell::Text(Cow::Owned(text))
            } else {
                Cell::Json(raw)
            };
            Ok(NamedCell { name: key, cell })
        });
        let mut cells: Vec<_> = cells.collect::<Result<_, Invalid>>()?;
        for NamedCell { name: key, .. } in &cells {
            notes.seen(key);
            self.check_source(key).map_err(|rule| Invalid::new(code::INVALID_VALUE, pointer(key), rule))?;
        }
        self.check_keys(&cells)?;
        cells.retain(|NamedCell { name: key, .. }| {
            let is_used = self.uses(key);
            if !is_used {
                notes.left_out(key);
            }
            is_used
        });
        self.record(position, &mut cells)
    }

    /// That each key is used, or left out because a flag or the API says so.
    fn check_keys(&self, cells: &[NamedCell<'_>]) -> Result<(), Invalid> {
        let mut unused = cells.iter().filter(|named| !self.uses(&named.name) && !OUTPUT.contains(&named.name.as_ref()));
        let holds_rows = |cell: &Cell<'_>| matches!(cell, Cell::Json(raw) if raw.get().starts_with("[{"));
        let is_around = !cells.iter().any(|named| self.uses(&named.name));
        if is_around && let Some(NamedCell { name: key, .. }) = unused.clone().find(|named| holds_rows(&named.cell)) {
            let detail = format!("holds no field of a record; if the elements of {key} are the records, --rows {key}");
            return Err(Invalid::new(code::UNKNOWN_FIELD, pointer(key), detail));
        }
        match unused.next() {
            Some(NamedCell { name: key, .. }) if !self.ignores_unknown => {
                let detail = format!(
                    "is not a field of a record; --map {key}=attributes.{key} keeps it, --ignore-unknown leaves such keys out"
                );
                Err(Invalid::new(code::UNKNOWN_FIELD, pointer(key), detail))
            }
            _ => Ok(()),
        }
    }

    /// Whether a column or key is a field, or a flag names it.
    pub(super) fn uses(&self, column: &str) -> bool {
        FIELDS.contains(&column) || self.wanted().any(|name| name == column)
    }

    /// Columns that flags name.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &str> {
        let mapped = self.map.iter().map(|Pair(column, _)| column.as_str());
        let others = self.skip_empty.iter().chain(&self.zone_column).map(String::as_str);
        mapped.chain(self.amounts.columns()).chain(others)
    }

    /// That no column or key gives a field which a flag gives as well: one of the two would be left out without a word.
    pub(super) fn check_source(&self, column: &str) -> Result<(), String> {
        if self.map.iter().any(|Pair(name, _)| name == column) || self.amounts.columns().any(|name| name == column) {
            return Ok(());
        }
        let by_map = self.map.iter().find(|Pair(_, field)| field == column).map(|Pair(name, _)| name.as_str());
        let by_amount = self.amounts.gives().contains(&column).then(|| self.amounts.flag());
        match by_map.or(by_amount) {
            Some(other) => Err(format!(
                "{column} would come from two places: the input's own {column}, and {other} by a flag; take one away, or \
                 keep the input's own with --map {column}=attributes.{column}"
            )),
            None => Ok(()),
        }
    }

    fn is_nothing(&self, cell: &Cell<'_>) -> bool {
        cell.is_null() || matches!(cell, Cell::Text(text) if self.null.iter().any(|null| null == text))
    }

    /// A record from a row. An empty text is an absent field.
    ///
    /// # Errors
    /// Faults of the row, by field.
    pub(super) fn record<'a>(&self, position: Position, cells: &mut [NamedCell<'a>]) -> Result<Shaped, Invalid> {
        if self.trims {
            trim::cells(cells);
        }
        let cells = &*cells;
        let is_empty = |column: &str| cells.iter().all(|named| named.name != column || self.is_nothing(&named.cell));
        if self.skip_empty.iter().any(|column| is_empty(column)) {
            return Ok(Shaped::Skipped);
        }
        let mut parts = Parts::default();
        for NamedCell { name: column, cell } in cells {
            let is_mapped = self.map.iter().any(|Pair(name, _)| name == column);
            // A null in JSON is kept where it goes into the attributes.
            if self.is_nothing(cell) && !(is_mapped && matches!(cell, Cell::Json(_))) {
                continue;
            }
            for Pair(_, field) in self.map.iter().filter(|Pair(name, _)| name == column) {
                if let Cell::Json(raw) = cell
                    && raw.get().starts_with(['{', '['])
                    && !field.starts_with("attributes")
                {
                    let rule = format!(
                        "cannot be taken from {column}, which holds other values; jq takes one out: see docs/import.md"
                    );
                    return Err(Invalid::new(code::WRONG_TYPE, format!("/{field}"), rule));
                }
                put(&mut parts, field, cell);
            }
            let is_amount = self.amounts.columns().any(|name| name == column);
            if !is_mapped && !is_amount && FIELDS.contains(&column.as_ref()) {
                put(&mut parts, column, cell);
            }
        }
        self.amounts.put(&mut parts, |column| {
            let cell = cells.iter().find(|named| named.name == column).map(|named| &named.cell)?;
            (!self.is_nothing(cell)).then(|| cell.as_str())
        })?;
        self.time(&mut parts, cells)?;
        self.constants(&mut parts)?;
        self.id(&mut parts, position)?;
        let line = parts.line()?;
        if line.len() > LARGEST {
            return Err(Invalid::new(code::TOO_LARGE, "", "is larger than 16 KiB as a record"));
        }
        Ok(Shaped::Line(line))
    }

    fn time(&self, parts: &mut Parts, cells: &[NamedCell<'_>]) -> Result<(), Invalid> {
        let Some(text) = parts.get("time").and_then(|json| serde_json::from_str::<String>(json).ok()) else {
            return Ok(());
        };
        let zone = self.zone_column.as_ref().and_then(|column| cells.iter().find(|named| named.name == *column));
        let zone = zone.map(|named| &named.cell).filter(|cell| !self.is_nothing(cell)).map(Cell::as_str);
        let time = self.times.read(&text, zone).map_err(|rule| Invalid::new(code::INVALID_VALUE, "/time", rule))?;
        parts.put("time", quoted(&time), "");
        Ok(())
    }

    fn constants(&self, parts: &mut Parts) -> Result<(), Invalid> {
        for Pair(field, text) in &self.set {
            let json = quoted(text);
            match parts.get(field) {
                Some(own) if own != json && !self.replaces => {
                    let detail = format!(
                        "comes from two places: the row's own {own}, and --set {field}={text}; take one away, or keep the \
                         row's own with --map {field}=attributes.{field}"
                    );
                    return Err(Invalid::new(code::INVALID_VALUE, format!("/{field}"), detail));
                }
                _ => parts.put(field, json, "--set"),
            }
        }
        Ok(())
    }

    /// Derives the id of a row without one, as the service does from the header `Idempotency-Key`. It depends on the
    /// row's number, so that rows that are refused or left out change no other's id, and a request can be sent in parts.
    fn id(&self, parts: &mut Parts, position: Position) -> Result<(), Invalid> {
        if parts.get("recordId").is_some() {
            return Ok(());
        }
        let Some(key) = &self.key else {
            return Err(Invalid::new(
                code::MISSING_FIELD,
                "/recordId",
                "is missing; give it, or --map COLUMN=recordId, or --idempotency-key KEY, from which ids are derived (the \
                 same key and file again give the same ids)",
            ));
        };
        // Without a source there is no id: the service names what is wrong with the source.
        let source = parts.get("sourceId").and_then(|json| serde_json::from_str::<String>(json).ok());
        parts.remove("recordId");
        if let Some(source) = source.and_then(|source| Text::parse(source).ok()) {
            let key = format!("{key}-{}", position.first_row);
            let id = accept::derived_id(&SourceId::from(source), &key, position.number - position.first_row);
            parts.put("recordId", quoted(id.as_str()), "");
        }
        Ok(())
    }
}

/// Gives a field the content of a cell.
fn put(parts: &mut Parts, field: &str, cell: &Cell<'_>) {
    let json = match cell {
        // A cell of a CSV, or a string in JSON, that holds the attributes.
        Cell::Text(text) if field == "attributes" => text.clone().into_owned(),
        Cell::Json(raw) if TEXTS.contains(&field) && is_integer(raw.get()) => quoted(raw.get()),
        _ => cell.json(),
    };
    parts.put(field, json, "--map");
}

/// The JSON pointer to a key.
fn pointer(key: &str) -> String {
    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn is_integer(json: &str) -> bool {
    let digits = json.strip_prefix('-').unwrap_or(json);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
