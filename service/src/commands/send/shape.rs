//! From a row of the input to a record's JSON: renaming, constants, sign, times without an offset.
//!
//! Must never turn a number into a float: text stays text, JSON numbers are copied as they were written.

use std::borrow::Cow;

use anyhow::{Context as _, bail};
use chrono::{NaiveDate, NaiveDateTime, NaiveTime, TimeZone as _, Utc};
use serde_json::value::RawValue;

use super::{Args, Pair};
use crate::domain::{members, render_time};

const FIELDS: [&str; 9] =
    ["recordId", "time", "sourceId", "destinationId", "type", "value", "unit", "reference", "attributes"];

/// What is done to every row.
#[derive(Debug)]
pub(super) struct Shape {
    map: Vec<Pair>,
    set: Vec<Pair>,
    signed: Option<String>,
    skip_empty: Vec<String>,
    /// Texts that stand for nothing, beside the empty one.
    null: Vec<String>,
    zone: Option<chrono_tz::Tz>,
    /// Rows without a recordId are in order: their ids are derived.
    has_key: bool,
}

/// What became of a row.
#[derive(Debug)]
pub(super) enum Shaped {
    Line(Vec<u8>),
    Skipped,
}

/// A record under construction: fields with their JSON text.
#[derive(Debug, Default)]
struct Parts {
    fields: Vec<(String, String)>,
    attributes: Vec<(String, String)>,
}

impl Parts {
    fn put(&mut self, field: &str, json: String) {
        let (list, name) = match field.strip_prefix("attributes.") {
            Some(name) => (&mut self.attributes, name),
            None => (&mut self.fields, field),
        };
        match list.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => *value = json,
            None => list.push((name.to_owned(), json)),
        }
    }

    fn get(&self, field: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == field).map(|(_, json)| json.as_str())
    }

    fn line(mut self) -> Vec<u8> {
        if !self.attributes.is_empty() {
            let attributes = std::mem::take(&mut self.attributes);
            self.put("attributes", object(&attributes));
        }
        object(&self.fields).into_bytes()
    }
}

fn object(members: &[(String, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(name, json)| format!("{}:{json}", quoted(name))).collect();
    format!("{{{}}}", members.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Shape {
    /// Checks the flags that say how rows become records.
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        let targets = args.map.iter().map(|Pair(_, field)| field).chain(args.set.iter().map(|Pair(field, _)| field));
        for field in targets {
            if !FIELDS.contains(&field.as_str()) && !field.starts_with("attributes.") {
                bail!("{field} is not a field of a record; fields are {} and attributes.NAME", FIELDS.join(", "));
            }
        }
        let mut seen = Vec::new();
        for field in args.map.iter().map(|Pair(_, field)| field).chain(args.set.iter().map(|Pair(field, _)| field)) {
            if field == "attributes." {
                bail!("attributes. needs a name behind it: attributes.NAME");
            }
            if seen.contains(&field) {
                bail!("{field} is given twice by --map and --set; a field has one source");
            }
            seen.push(field);
        }
        if args.signed.is_some() && args.map.iter().any(|Pair(_, field)| field == "value" || field == "type") {
            bail!("--signed gives type and value; leave them out of --map");
        }
        if args.set.iter().any(|Pair(field, _)| field == "attributes") {
            bail!("set attributes one by one: --set attributes.NAME=VALUE");
        }
        if args.signed.is_some() && args.set.iter().any(|Pair(field, _)| field == "value" || field == "type") {
            bail!("--signed gives type and value; leave them out of --set");
        }
        Ok(Self {
            map: args.map.clone(),
            set: args.set.clone(),
            signed: args.signed.clone(),
            skip_empty: args.skip_empty.clone(),
            null: args.null.clone(),
            zone: args.time_zone,
            has_key: args.idempotency_key.is_some(),
        })
    }

    /// Columns that end up in no field, and columns that are asked for but are not there.
    pub(super) fn check_columns(&self, columns: &[&str]) -> anyhow::Result<Vec<String>> {
        let wanted = self.map.iter().map(|Pair(column, _)| column).chain(&self.signed).chain(&self.skip_empty);
        for column in wanted.clone() {
            if !columns.contains(&column.as_str()) {
                bail!("the input has no column {column}; its columns are {}", columns.join(", "));
            }
        }
        for (index, column) in columns.iter().enumerate() {
            let is_used = FIELDS.contains(column) || wanted.clone().any(|name| name == column);
            if is_used && columns[..index].contains(column) {
                bail!("the input has two columns {column}; which one counts?");
            }
            self.check_source(column)?;
        }
        let used = |column: &str| FIELDS.contains(&column) || wanted.clone().any(|name| name == column);
        Ok(columns.iter().filter(|column| !used(column)).map(|column| (*column).to_owned()).collect())
    }

    /// That no column or key gives a field which a flag gives as well: one of the two would be left out without a word.
    fn check_source(&self, column: &str) -> anyhow::Result<()> {
        let is_mapped = self.map.iter().any(|Pair(name, _)| name == column);
        let by_flag = self.map.iter().find(|Pair(_, field)| field == column).map(|Pair(name, _)| name);
        let by_sign = self.signed.as_ref().filter(|_| column == "value" || column == "type");
        match by_flag.or(by_sign) {
            Some(other) if !is_mapped && other != column => {
                bail!(
                    "{column} would come from two places: the input's own {column}, and {other} by a flag; take one away"
                )
            }
            _ => Ok(()),
        }
    }

    /// A record from a row of texts. An empty text is an absent field.
    pub(super) fn texts<'a>(
        &self,
        number: u64,
        row: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> anyhow::Result<Shaped> {
        let mut parts = Parts::default();
        for (column, text) in row {
            if text.is_empty() || self.null.iter().any(|null| null == text) {
                if self.skip_empty.iter().any(|name| name == column) {
                    return Ok(Shaped::Skipped);
                }
                continue;
            }
            if self.signed.as_deref() == Some(column) {
                put_signed(&mut parts, text);
            }
            let mut mapped = self.map.iter().filter(|Pair(name, _)| name == column).peekable();
            if mapped.peek().is_none() && FIELDS.contains(&column) {
                parts.put(column, if column == "attributes" { text.to_owned() } else { quoted(text) });
            }
            for Pair(_, field) in mapped {
                parts.put(field, quoted(text));
            }
        }
        self.finish(number, parts)
    }

    /// A record from a JSON value. What is not an object goes out as it is, for the service to judge.
    pub(super) fn json(&self, number: u64, line: Vec<u8>) -> anyhow::Result<Shaped> {
        let Ok(members) = members(&line, "") else { return Ok(Shaped::Line(line)) };
        let is_plain = self.map.is_empty() && self.set.is_empty() && self.signed.is_none() && self.zone.is_none();
        if is_plain && self.skip_empty.is_empty() {
            let has_id = members.iter().any(|(key, raw)| key == "recordId" && raw.get() != "null");
            self.check_id(number, has_id)?;
            return Ok(Shaped::Line(line));
        }
        let is_nothing = |text: &str| text.is_empty() || self.null.iter().any(|null| null == text);
        let is_empty = |raw: Option<&RawValue>| {
            raw.is_none_or(|raw| {
                raw.get() == "null" || serde_json::from_str(raw.get()).is_ok_and(|text: String| is_nothing(&text))
            })
        };
        for column in &self.skip_empty {
            if is_empty(members.iter().find(|(key, _)| key == column).map(|(_, raw)| *raw)) {
                return Ok(Shaped::Skipped);
            }
        }
        let mut parts = Parts::default();
        for (key, raw) in &members {
            self.check_source(key).with_context(|| format!("row {number}"))?;
            if self.signed.as_deref() == Some(key.as_ref()) {
                let text: Cow<'_, str> = serde_json::from_str(raw.get()).map_or(raw.get().into(), Cow::Owned);
                put_signed(&mut parts, &text);
                continue;
            }
            let field = self.map.iter().find(|Pair(name, _)| name == key).map_or(key.as_ref(), |Pair(_, field)| field);
            parts.put(field, raw.get().to_owned());
        }
        self.finish(number, parts)
    }

    fn finish(&self, number: u64, mut parts: Parts) -> anyhow::Result<Shaped> {
        for Pair(field, text) in &self.set {
            parts.put(field, quoted(text));
        }
        if let Some(zone) = self.zone
            && let Some(text) = parts.get("time").and_then(|json| serde_json::from_str::<String>(json).ok())
            && let Some(utc) = in_zone(&text, zone)
        {
            parts.put("time", quoted(&utc));
        }
        self.check_id(number, parts.get("recordId").is_some_and(|json| json != "null"))?;
        Ok(Shaped::Line(parts.line()))
    }

    fn check_id(&self, number: u64, has_id: bool) -> anyhow::Result<()> {
        if !has_id && !self.has_key {
            bail!(
                "row {number} has no recordId: give --idempotency-key KEY, from which ids are derived (the same key and \
                 file again give the same ids), or --map COLUMN=recordId"
            );
        }
        Ok(())
    }
}

/// The sign becomes `type`, the rest `value`; what is not a number is left to the service to refuse.
fn put_signed(parts: &mut Parts, text: &str) {
    let text = text.trim();
    let (kind, value) = match text.strip_prefix('-') {
        Some(value) => ("negative", value),
        None => ("positive", text.strip_prefix('+').unwrap_or(text)),
    };
    parts.put("type", quoted(kind));
    parts.put("value", quoted(value));
}

/// A time without an offset, as it is in UTC; `None`: it has an offset, or is no time, or is one that the zone skips.
/// A time that comes twice, when clocks go back, is the earlier of the two.
fn in_zone(text: &str, zone: chrono_tz::Tz) -> Option<String> {
    let text = text.trim();
    let local = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .or_else(|| Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_time(NaiveTime::MIN)))?;
    Some(render_time(zone.from_local_datetime(&local).earliest()?.with_timezone(&Utc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(flags: &[&str]) -> Shape {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let line = <Line as clap::Parser>::try_parse_from(std::iter::once("send").chain(flags.iter().copied()));
        Shape::new(&line.expect("flags").args).expect("shape")
    }

    fn line(shaped: anyhow::Result<Shaped>) -> String {
        match shaped.expect("shaped") {
            Shaped::Line(line) => String::from_utf8(line).expect("UTF-8"),
            Shaped::Skipped => "skipped".to_owned(),
        }
    }

    #[test]
    fn columns_become_fields_and_texts_stay_texts() {
        let shape = shape(&[
            "--map",
            "dest=destinationId",
            "--map",
            "tail=attributes.tail",
            "--signed",
            "delay",
            "--set",
            "unit=min",
            "--skip-empty",
            "delay",
            "--null",
            "NA",
            "--idempotency-key",
            "k",
        ]);
        let row =
            [("dest", "IAH"), ("tail", "N1\"4"), ("delay", "-12345678901234567.890"), ("reference", "UA"), ("x", "y")];
        assert_eq!(
            line(shape.texts(1, row.iter().copied())),
            r#"{"destinationId":"IAH","type":"negative","value":"12345678901234567.890","reference":"UA","unit":"min","attributes":{"tail":"N1\"4"}}"#
        );
        assert_eq!(line(shape.texts(2, [("dest", "IAH"), ("delay", "")].iter().copied())), "skipped");
        assert_eq!(line(shape.texts(3, [("dest", "IAH"), ("delay", "NA")].iter().copied())), "skipped");
        assert_eq!(line(shape.json(4, br#"{"delay":"NA"}"#.to_vec())), "skipped");
        assert_eq!(shape.check_columns(&["dest", "tail", "delay", "reference", "x"]).expect("columns"), ["x"]);
        let missing = shape.check_columns(&["dest", "tail"]).expect_err("delay is missing");
        assert!(missing.to_string().contains("no column delay"), "{missing}");
    }

    #[test]
    fn a_field_has_one_source() {
        let map = shape(&["--map", "id=recordId"]);
        assert!(map.check_columns(&["id", "value"]).is_ok());
        for columns in [&["id", "recordId"][..], &["id", "value", "value"], &["id", "id"]] {
            assert!(map.check_columns(columns).is_err(), "{columns:?}");
        }
        assert!(map.json(1, br#"{"id":"a","recordId":"b"}"#.to_vec()).is_err());
        let signed = shape(&["--signed", "delay"]);
        assert!(signed.check_columns(&["delay", "value"]).is_err());
        assert!(shape(&["--signed", "value"]).check_columns(&["value"]).is_ok());
    }

    #[test]
    fn json_numbers_are_copied_as_written() {
        let shape = shape(&["--map", "id=recordId", "--set", "unit=EUR"]);
        let row = br#"{"id":"a","value":12345678901234567.890,"unit":"x","attributes":{"n":1.10}}"#;
        assert_eq!(
            line(shape.json(1, row.to_vec())),
            r#"{"recordId":"a","value":12345678901234567.890,"unit":"EUR","attributes":{"n":1.10}}"#
        );
    }

    #[test]
    fn a_row_without_an_id_needs_the_key() {
        for flags in [&[][..], &["--set", "unit=EUR"][..]] {
            let error = shape(flags).json(17, br#"{"recordId":null,"value":1}"#.to_vec()).expect_err("no id");
            assert!(error.to_string().starts_with("row 17 has no recordId: give --idempotency-key"), "{error}");
        }
        assert_eq!(line(shape(&["--idempotency-key", "k"]).json(1, b"{}".to_vec())), "{}");
        assert_eq!(line(shape(&[]).json(1, b"nonsense".to_vec())), "nonsense");
    }

    #[test]
    fn local_times_become_utc_and_others_are_left_alone() {
        let berlin = chrono_tz::Europe::Berlin;
        for (local, utc) in [
            ("2026-01-31T12:00:00", Some("2026-01-31T11:00:00Z")),
            ("2026-07-31 12:00:00.250", Some("2026-07-31T10:00:00.250Z")),
            ("2026-07-31", Some("2026-07-30T22:00:00Z")),
            // Clocks go back: the earlier one. Clocks go forward: there is no such time.
            ("2026-10-25T02:30", Some("2026-10-25T00:30:00Z")),
            ("2026-03-29T02:30", None),
            ("2026-01-31T12:00:00Z", None),
            ("2026-01-31T12:00:00+02:00", None),
            ("yesterday", None),
        ] {
            assert_eq!(in_zone(local, berlin).as_deref(), utc, "{local}");
        }
    }
}
