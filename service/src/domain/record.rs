//! A business record: what it is made of, how it is read and written, and when two are the same.

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;

use super::{
    Amount, DestinationId, Invalid, RecordId, Reference, SourceId, Text, Unit,
    json::{canonical, child, code, members, string},
    time::{TimeText, parse_time},
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
    /// The record that it takes back, wholly or in part; `None`: it is no reversal.
    pub reverses: Option<RecordId>,
}

/// A record whose id may still have to be derived, and its value by the record that it reverses.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The id, if one was given.
    pub record_id: Option<RecordId>,
    /// Whether it reverses what remains of another record: it has no value before it is decided.
    takes_rest: bool,
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

    /// The record, which must have its id and its value.
    ///
    /// # Errors
    /// [`Invalid`] names the field that is missing.
    pub fn whole(self) -> Result<Record, Invalid> {
        match self.payload()? {
            (record, false) => Ok(record),
            (_, true) => Err(missing("/value")),
        }
    }

    /// The record, which must have its id, and whether it takes what remains of another: only under the id that is derived
    /// from that one.
    fn payload(self) -> Result<(Record, bool), Invalid> {
        let record_id = self.record_id.ok_or_else(|| missing("/recordId"))?;
        let record = Record { record_id, ..self.rest };
        if self.takes_rest && !record.is_whole_reversal() {
            return Err(missing("/value"));
        }
        Ok((record, self.takes_rest))
    }

    /// The record, which must have its value, under `derived` unless it has an id of its own.
    ///
    /// # Errors
    /// [`Invalid`] names the value that is missing.
    pub fn with_id(self, derived: impl FnOnce() -> RecordId) -> Result<Record, Invalid> {
        let record_id = self.record_id.unwrap_or_else(derived);
        Self { record_id: Some(record_id), ..self }.whole()
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
                "reverses" => &mut fields.reverses,
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
        let reverses = fields.reverses.map(|raw| text(raw, "/reverses").map(RecordId::from)).transpose()?;
        let takes_rest = reverses.is_some() && fields.value.is_none();
        let rest = Record {
            // Replaced in `with_id`; an id that nothing may ever be stored under.
            record_id: RecordId::stored(""),
            time: time(required(fields.time, "/time")?)?,
            source_id: text(required(fields.source_id, "/sourceId")?, "/sourceId")?.into(),
            destination_id: text(required(fields.destination_id, "/destinationId")?, "/destinationId")?.into(),
            kind: kind(required(fields.kind, "/type")?)?,
            value: if takes_rest { Amount::ZERO } else { amount(required(fields.value, "/value")?)? },
            unit: text(required(fields.unit, "/unit")?, "/unit")?.into(),
            reference: text(required(fields.reference, "/reference")?, "/reference")?.into(),
            attributes: fields.attributes.map(attributes).transpose()?,
            reverses,
        };
        Ok(Draft { record_id, takes_rest, rest })
    }

    /// Reads a record that must have its id and its value.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong and the remedy.
    pub fn parse(json: &[u8]) -> Result<Self, Invalid> {
        Self::parse_draft(json)?.whole()
    }

    /// Reads a record of the input stream, and whether it has no value, because it reverses what remains of another record:
    /// then the value of the returned record is zero.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong and the remedy.
    pub(super) fn parse_payload(json: &[u8]) -> Result<(Self, bool), Invalid> {
        Self::parse_draft(json)?.payload()
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
        self.serialize_with(map, true)
    }

    pub(super) fn serialize_with<M: SerializeMap>(&self, map: &mut M, has_value: bool) -> Result<(), M::Error> {
        map.serialize_entry("recordId", self.record_id.as_str())?;
        map.serialize_entry("time", TimeText::of(self.time).as_str())?;
        map.serialize_entry("sourceId", self.source_id.as_str())?;
        map.serialize_entry("destinationId", self.destination_id.as_str())?;
        map.serialize_entry("type", self.kind.as_str())?;
        if has_value {
            map.serialize_entry("value", &self.value.to_string())?;
        }
        map.serialize_entry("unit", self.unit.as_str())?;
        map.serialize_entry("reference", self.reference.as_str())?;
        if let Some(reverses) = &self.reverses {
            map.serialize_entry("reverses", reverses.as_str())?;
        }
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
    reverses: Option<&'a RawValue>,
}

fn missing(pointer: &str) -> Invalid {
    let remedy = if pointer == "/recordId" {
        "is missing; give it, or send an Idempotency-Key header from which it is derived"
    } else {
        "is missing"
    };
    Invalid::new(code::MISSING_FIELD, pointer, remedy)
}

pub(super) fn required<'a>(raw: Option<&'a RawValue>, pointer: &str) -> Result<&'a RawValue, Invalid> {
    raw.ok_or_else(|| missing(pointer))
}

pub(super) fn text(raw: &RawValue, pointer: &str) -> Result<Text, Invalid> {
    Text::parse(string(raw, pointer)?).map_err(|rule| Invalid::new(code::INVALID_VALUE, pointer, rule.to_string()))
}

fn kind(raw: &RawValue) -> Result<Kind, Invalid> {
    match string(raw, "/type")?.as_ref() {
        "positive" => Ok(Kind::Positive),
        "negative" => Ok(Kind::Negative),
        _ => Err(Invalid::new(code::INVALID_VALUE, "/type", "must be \"positive\" or \"negative\"")),
    }
}

pub(super) fn amount(raw: &RawValue) -> Result<Amount, Invalid> {
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
