//! A business record: what it is made of, how it is read and written, and when two are the same.

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;

use super::{
    Amount, DestinationId, Invalid, RecordId, Reference, SourceId, Text, Unit,
    json::{canonical, child, code, members, string},
};

/// Most bytes of attributes.
const ATTRIBUTES_BYTES: usize = 8 * 1024;

/// Carries the sign of a record's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Adds to the total.
    Positive,
    /// Takes from the total.
    Negative,
}

impl Kind {
    /// `positive` or `negative`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        }
    }
}

/// A JSON object, kept as the bytes received.
#[derive(Debug, Clone)]
pub struct Attributes(Box<RawValue>);

impl Attributes {
    /// Attributes that were stored, so are known to be a checked JSON object.
    #[must_use]
    pub fn stored(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    /// The bytes received.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The same text for attributes that are equal as JSON: key order and white space ignored, numbers by value.
    pub(super) fn canonical(&self) -> String {
        // Stored under rules that took more than those of today: equal to the same bytes only.
        canonical(&self.0, "").unwrap_or_else(|_| self.as_str().to_owned())
    }
}

impl PartialEq for Attributes {
    /// Equal as JSON.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str() || self.canonical() == other.canonical()
    }
}

/// One business record. `PartialEq` is *same content and same id*: values by number, times by instant, attributes as JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Unique as long as the record is kept.
    pub record_id: RecordId,
    /// When it happened, with at most microseconds.
    pub time: DateTime<Utc>,
    /// Its source.
    pub source_id: SourceId,
    /// The destination whose totals it counts in; decides the shard.
    pub destination_id: DestinationId,
    /// The sign.
    pub kind: Kind,
    /// Its amount.
    pub value: Amount,
    /// Of what; amounts of different units are never added up.
    pub unit: Unit,
    /// With the destination, the key under which totals are kept.
    pub reference: Reference,
    /// Anything else, returned as received.
    pub attributes: Option<Attributes>,
}

/// A record whose id may still have to be derived.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The id, if one was given.
    pub record_id: Option<RecordId>,
    rest: Record,
}

impl Draft {
    /// Its source.
    #[must_use]
    pub fn source_id(&self) -> &SourceId {
        &self.rest.source_id
    }

    /// Whether it has an id of its own.
    #[must_use]
    pub fn has_id(&self) -> bool {
        self.record_id.is_some()
    }

    /// The record, under `derived` unless it has an id of its own.
    #[must_use]
    pub fn with_id(self, derived: impl FnOnce() -> RecordId) -> Record {
        Record { record_id: self.record_id.unwrap_or_else(derived), ..self.rest }
    }
}

impl Record {
    /// Reads a record from JSON.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong and the remedy.
    pub fn parse_draft(json: &[u8]) -> Result<Draft, Invalid> {
        let mut fields = Fields::default();
        for (key, raw) in members(json, "")? {
            let slot = match key.as_ref() {
                "recordId" => &mut fields.record_id,
                "time" => &mut fields.time,
                "sourceId" => &mut fields.source_id,
                "destinationId" => &mut fields.destination_id,
                "type" => &mut fields.kind,
                "value" => &mut fields.value,
                "unit" => &mut fields.unit,
                "reference" => &mut fields.reference,
                "attributes" => &mut fields.attributes,
                _ => {
                    let pointer = child("", &key);
                    return Err(Invalid::new(
                        code::UNKNOWN_FIELD,
                        pointer,
                        "is not a field of a record; put it into attributes",
                    ));
                }
            };
            // null means absent.
            *slot = (raw.get() != "null").then_some(raw);
        }
        let record_id = fields.record_id.map(|raw| text(raw, "/recordId").map(RecordId::from)).transpose()?;
        let rest = Record {
            // Replaced in `with_id`; an id that nothing may ever be stored under.
            record_id: RecordId::stored(""),
            time: time(required(fields.time, "/time")?)?,
            source_id: text(required(fields.source_id, "/sourceId")?, "/sourceId")?.into(),
            destination_id: text(required(fields.destination_id, "/destinationId")?, "/destinationId")?.into(),
            kind: kind(required(fields.kind, "/type")?)?,
            value: amount(required(fields.value, "/value")?)?,
            unit: text(required(fields.unit, "/unit")?, "/unit")?.into(),
            reference: text(required(fields.reference, "/reference")?, "/reference")?.into(),
            attributes: fields.attributes.map(attributes).transpose()?,
        };
        Ok(Draft { record_id, rest })
    }

    /// Reads a record that must have its id.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong and the remedy.
    pub fn parse(json: &[u8]) -> Result<Self, Invalid> {
        let draft = Self::parse_draft(json)?;
        if draft.record_id.is_none() {
            return Err(missing("/recordId"));
        }
        Ok(draft.with_id(|| unreachable!("the id was checked above")))
    }

    /// The record as JSON, fields in the design's order, attributes as received.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The value with its sign.
    #[must_use]
    pub fn signed(&self) -> rust_decimal::Decimal {
        match self.kind {
            Kind::Positive => self.value.get(),
            // A zero has no sign: rust_decimal would carry one on into totals, and Postgres would lose it.
            Kind::Negative if self.value.get().is_zero() => self.value.get(),
            Kind::Negative => -self.value.get(),
        }
    }

    /// The record's fields, for answers that add some of their own.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize_fields<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("recordId", self.record_id.as_str())?;
        map.serialize_entry("time", &render_time(self.time))?;
        map.serialize_entry("sourceId", self.source_id.as_str())?;
        map.serialize_entry("destinationId", self.destination_id.as_str())?;
        map.serialize_entry("type", self.kind.as_str())?;
        map.serialize_entry("value", &self.value.to_string())?;
        map.serialize_entry("unit", self.unit.as_str())?;
        map.serialize_entry("reference", self.reference.as_str())?;
        if let Some(attributes) = &self.attributes {
            map.serialize_entry("attributes", &attributes.0)?;
        }
        Ok(())
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.serialize_fields(&mut map)?;
        map.end()
    }
}

#[derive(Default)]
struct Fields<'a> {
    record_id: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    source_id: Option<&'a RawValue>,
    destination_id: Option<&'a RawValue>,
    kind: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
    unit: Option<&'a RawValue>,
    reference: Option<&'a RawValue>,
    attributes: Option<&'a RawValue>,
}

fn missing(pointer: &str) -> Invalid {
    let remedy = if pointer == "/recordId" {
        "is missing; give it, or send an Idempotency-Key header from which it is derived"
    } else {
        "is missing"
    };
    Invalid::new(code::MISSING_FIELD, pointer, remedy)
}

fn required<'a>(raw: Option<&'a RawValue>, pointer: &str) -> Result<&'a RawValue, Invalid> {
    raw.ok_or_else(|| missing(pointer))
}

fn text(raw: &RawValue, pointer: &str) -> Result<Text, Invalid> {
    Text::parse(string(raw, pointer)?).map_err(|rule| Invalid::new(code::INVALID_VALUE, pointer, rule.to_string()))
}

fn kind(raw: &RawValue) -> Result<Kind, Invalid> {
    match string(raw, "/type")?.as_ref() {
        "positive" => Ok(Kind::Positive),
        "negative" => Ok(Kind::Negative),
        _ => Err(Invalid::new(code::INVALID_VALUE, "/type", "must be \"positive\" or \"negative\"")),
    }
}

fn amount(raw: &RawValue) -> Result<Amount, Invalid> {
    let invalid = |rule| Invalid::new(code::INVALID_VALUE, "/value", rule);
    match raw.get().as_bytes().first() {
        Some(b'"') => Amount::parse(&string(raw, "/value")?).map_err(invalid),
        Some(b'-' | b'0'..=b'9') => Amount::parse(raw.get()).map_err(invalid),
        _ => Err(Invalid::new(code::WRONG_TYPE, "/value", "must be a decimal string such as \"125.50\", or a number")),
    }
}

fn time(raw: &RawValue) -> Result<DateTime<Utc>, Invalid> {
    parse_time(&string(raw, "/time")?).map_err(|rule| Invalid::new(code::INVALID_VALUE, "/time", rule))
}

fn attributes(raw: &RawValue) -> Result<Attributes, Invalid> {
    if !raw.get().starts_with('{') {
        return Err(Invalid::new(code::WRONG_TYPE, "/attributes", "must be a JSON object"));
    }
    if raw.get().len() > ATTRIBUTES_BYTES {
        return Err(Invalid::new(code::TOO_LARGE, "/attributes", "is larger than 8 KiB"));
    }
    canonical(raw, "/attributes")?;
    Ok(Attributes(raw.to_owned()))
}

/// Reads RFC 3339 with any offset and at most 6 fractional digits, zeros behind them not counted.
///
/// # Errors
/// A sentence with the rule that the text breaks.
pub fn parse_time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    const FORM: &str = "must be an RFC 3339 time with an offset, such as \"2026-01-31T12:00:00Z\"";
    if !text.is_ascii() || !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
        return Err(FORM);
    }
    if let Some((_, rest)) = text.split_once('.')
        && rest.bytes().take_while(u8::is_ascii_digit).skip(6).any(|digit| digit != b'0')
    {
        return Err("has more than 6 fractional digits of a second; round it to microseconds");
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| FORM)?;
    // chrono spells a leap second as more than 999,999,999 nanoseconds.
    if time.nanosecond() > 999_999_999 {
        return Err("is a leap second, which cannot be stored; give the second before or after it");
    }
    let utc = time.with_timezone(&Utc);
    if (1..=9999).contains(&utc.year()) { Ok(utc) } else { Err("must lie in the years 0001 to 9999 in UTC") }
}

/// RFC 3339 in UTC with `Z`, as many fractional digits as needed (0, 3 or 6).
#[must_use]
pub fn render_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_behind_six_fractional_digits_of_a_time_are_taken() {
        let time = parse_time("2026-01-31T12:00:00.123456Z").expect("a time");
        for zeros in ["0", "000", "000000", &"0".repeat(40)] {
            assert_eq!(parse_time(&format!("2026-01-31T12:00:00.123456{zeros}Z")), Ok(time), "{zeros}");
            assert_eq!(parse_time(&format!("2026-01-31T13:00:00.123456{zeros}+01:00")), Ok(time), "{zeros}");
        }
        for digits in ["1234561", "1234560000001", "0000000001"] {
            let refused = parse_time(&format!("2026-01-31T12:00:00.{digits}Z")).expect_err(digits);
            assert!(refused.starts_with("has more than 6 fractional digits"), "{refused}");
        }
    }
}
