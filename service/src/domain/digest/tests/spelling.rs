//! Content of records as a model that compares by itself, and all its spellings.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike as _, FixedOffset, SecondsFormat};
use proptest::{prelude::*, sample::Index};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// A value of JSON. Equal values are equal here.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Zero,
    /// Digits without zeros at either end, and their power of ten.
    Number {
        negative: bool,
        digits: String,
        power: i32,
    },
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field {
    RecordId,
    Time,
    SourceId,
    DestinationId,
    Kind,
    Value,
    Unit,
    Reference,
    Attributes,
    Reverses,
}

impl Field {
    pub(super) const ALL: [Self; 10] = [
        Self::RecordId,
        Self::Time,
        Self::SourceId,
        Self::DestinationId,
        Self::Kind,
        Self::Value,
        Self::Unit,
        Self::Reference,
        Self::Attributes,
        Self::Reverses,
    ];
}

/// What a record holds. Equal content is equal here.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    record_id: String,
    micros: i64,
    source_id: String,
    destination_id: String,
    positive: bool,
    /// The value in billionths.
    nanos: u128,
    unit: String,
    reference: String,
    attributes: Option<BTreeMap<String, Json>>,
    reverses: Option<String>,
}

impl Content {
    pub(super) fn example() -> Self {
        Self {
            record_id: "r".into(),
            micros: 1_769_860_800_000_000,
            source_id: "s".into(),
            destination_id: "d".into(),
            positive: true,
            nanos: 125_500_000_000,
            unit: "EUR".into(),
            reference: "f".into(),
            attributes: None,
            reverses: None,
        }
    }

    pub(super) fn with_text(mut self, field: Field, text: &str) -> Self {
        let slot = match field {
            Field::RecordId => &mut self.record_id,
            Field::SourceId => &mut self.source_id,
            Field::DestinationId => &mut self.destination_id,
            Field::Unit => &mut self.unit,
            Field::Reference => &mut self.reference,
            _ => panic!("{field:?} is no text"),
        };
        text.clone_into(slot);
        self
    }

    pub(super) fn with_field_of(self, field: Field, other: &Self) -> Self {
        let other = other.clone();
        match field {
            Field::RecordId => Self { record_id: other.record_id, ..self },
            Field::Time => Self { micros: other.micros, ..self },
            Field::SourceId => Self { source_id: other.source_id, ..self },
            Field::DestinationId => Self { destination_id: other.destination_id, ..self },
            Field::Kind => Self { positive: other.positive, ..self },
            Field::Value => Self { nanos: other.nanos, ..self },
            Field::Unit => Self { unit: other.unit, ..self },
            Field::Reference => Self { reference: other.reference, ..self },
            Field::Attributes => Self { attributes: other.attributes, ..self },
            Field::Reverses => Self { reverses: other.reverses, ..self },
        }
    }

    /// With another value in the place of one within the attributes, at any depth.
    pub(super) fn with_value_within(mut self, at: Index, value: Json) -> Self {
        let mut object = Json::Object(self.attributes.unwrap_or_default());
        let inner = object.places() - 1;
        if inner > 0 {
            object.replace(&mut (1 + at.index(inner)), &value);
        }
        let Json::Object(mut members) = object else { unreachable!("only values within it are replaced") };
        if inner == 0 {
            members.insert("new".into(), value);
        }
        self.attributes = Some(members);
        self
    }

    /// The record as JSON, in a spelling that `seed` chooses.
    pub(super) fn spelt(&self, seed: u64) -> String {
        let mut pen = Pen(StdRng::seed_from_u64(seed));
        let kind = if self.positive { "positive" } else { "negative" };
        let mut members = vec![
            ("recordId", pen.text(&self.record_id)),
            ("time", pen.time(self.micros)),
            ("sourceId", pen.text(&self.source_id)),
            ("destinationId", pen.text(&self.destination_id)),
            ("type", pen.text(kind)),
            ("value", pen.amount(self.nanos)),
            ("unit", pen.text(&self.unit)),
            ("reference", pen.text(&self.reference)),
        ];
        match &self.attributes {
            Some(attributes) => members.push(("attributes", pen.object(attributes))),
            None if pen.flip() => members.push(("attributes", "null".into())),
            None => {}
        }
        members.extend(self.reverses.as_ref().map(|reverses| ("reverses", pen.text(reverses))));
        let members = members.into_iter().map(|(key, value)| (pen.text(key), value)).collect();
        pen.braces(members)
    }
}

impl Json {
    fn children(&mut self) -> Vec<&mut Self> {
        match self {
            Self::Array(elements) => elements.iter_mut().collect(),
            Self::Object(members) => members.values_mut().collect(),
            _ => Vec::new(),
        }
    }

    /// Number of values: itself and all within it.
    fn places(&mut self) -> usize {
        1 + self.children().into_iter().map(Self::places).sum::<usize>()
    }

    /// Replaces one of them, counted from itself; true once it is done.
    fn replace(&mut self, place: &mut usize, value: &Self) -> bool {
        if *place == 0 {
            *self = value.clone();
            return true;
        }
        *place -= 1;
        self.children().into_iter().any(|child| child.replace(place, value))
    }
}

/// Writes values in spellings that it draws.
struct Pen(StdRng);

impl Pen {
    fn flip(&mut self) -> bool {
        self.0.random()
    }

    fn up_to(&mut self, most: usize) -> usize {
        self.0.random_range(0..=most)
    }

    fn space(&mut self) -> &'static str {
        ["", "", "", " ", "\n", "\t", "\r\n  "][self.up_to(6)]
    }

    fn text(&mut self, text: &str) -> String {
        let mut out = String::from('"');
        for c in text.chars() {
            let short = match c {
                '"' => Some("\\\""),
                '\\' => Some("\\\\"),
                '/' => Some("\\/"),
                '\u{8}' => Some("\\b"),
                '\u{c}' => Some("\\f"),
                '\n' => Some("\\n"),
                '\r' => Some("\\r"),
                '\t' => Some("\\t"),
                _ => None,
            };
            let must_escape = c < ' ' || matches!(c, '"' | '\\');
            match (short, self.up_to(3)) {
                (_, 0 | 1) if !must_escape => out.push(c),
                (Some(short), 0..=2) => out.push_str(short),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let upper = self.flip();
                        out += &if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
                    }
                }
            }
        }
        out + "\""
    }

    fn time(&mut self, micros: i64) -> String {
        let utc = DateTime::from_timestamp_micros(micros).expect("in the years 1 to 9999");
        let minutes = self.0.random_range(-23 * 60 - 59..=23 * 60 + 59);
        let local = utc.with_timezone(&FixedOffset::east_opt(minutes * 60).expect("less than a day"));
        // RFC 3339 has four digits for the year.
        if self.flip() || !(1..=9999).contains(&local.year()) {
            return self.text(&utc.to_rfc3339_opts(SecondsFormat::AutoSi, true));
        }
        let digits = [SecondsFormat::AutoSi, SecondsFormat::Micros, SecondsFormat::Nanos][self.up_to(2)];
        self.text(&local.to_rfc3339_opts(digits, false))
    }

    fn amount(&mut self, nanos: u128) -> String {
        let (integer, fraction) = (nanos / 1_000_000_000, format!("{:09}", nanos % 1_000_000_000));
        let least = fraction.trim_end_matches('0').len();
        let fraction = &fraction[..least + self.up_to(9 - least)];
        let text = if fraction.is_empty() { integer.to_string() } else { format!("{integer}.{fraction}") };
        if self.flip() {
            return text;
        }
        // Only a string may begin with more zeros than one.
        let zeros = self.up_to(15 - integer.to_string().len());
        self.text(&format!("{}{text}", "0".repeat(zeros)))
    }

    fn zero(&mut self) -> String {
        let sign = if self.flip() { "-" } else { "" };
        let fraction = ["", ".0", ".000"][self.up_to(2)];
        let exponent = ["", "e0", "E+99", "e-07"][self.up_to(3)];
        format!("{sign}0{fraction}{exponent}")
    }

    fn number(&mut self, negative: bool, digits: &str, power: i32) -> String {
        let zeros = self.up_to(4);
        let digits = format!("{digits}{}", "0".repeat(zeros));
        let fraction = self.up_to(digits.len() + 3);
        let padded = format!("{digits:0>width$}", width = fraction + 1);
        let (integer, fraction) = padded.split_at(padded.len() - fraction);
        let exponent = power - zeros as i32 + fraction.len() as i32;
        let mut out = String::from(if negative { "-" } else { "" }) + integer;
        if !fraction.is_empty() {
            out += &format!(".{fraction}");
        }
        if exponent != 0 || self.flip() {
            let sign = if exponent < 0 { "-" } else { ["", "+"][self.up_to(1)] };
            let width = self.up_to(3);
            out += &format!("{}{sign}{:0width$}", ["e", "E"][self.up_to(1)], exponent.abs());
        }
        out
    }

    fn braces(&mut self, mut members: Vec<(String, String)>) -> String {
        members.shuffle(&mut self.0);
        let members: Vec<String> = members
            .into_iter()
            .map(|(key, value)| {
                format!("{}{key}{}:{}{value}{}", self.space(), self.space(), self.space(), self.space())
            })
            .collect();
        format!("{{{}{}}}", members.join(","), self.space())
    }

    fn object(&mut self, members: &BTreeMap<String, Json>) -> String {
        let members = members.iter().map(|(key, value)| (self.text(key), self.json(value))).collect();
        self.braces(members)
    }

    fn json(&mut self, value: &Json) -> String {
        match value {
            Json::Null => "null".into(),
            Json::Bool(value) => value.to_string(),
            Json::Zero => self.zero(),
            Json::Number { negative, digits, power } => self.number(*negative, digits, *power),
            Json::Text(text) => self.text(text),
            Json::Array(elements) => {
                let elements: Vec<String> = elements
                    .iter()
                    .map(|element| format!("{}{}{}", self.space(), self.json(element), self.space()))
                    .collect();
                format!("[{}{}]", elements.join(","), self.space())
            }
            Json::Object(members) => self.object(members),
        }
    }
}

/// Few characters, so that two draws are often equal or nearly so.
fn characters(all: &'static [char], most: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(all), 1..=most).prop_map(|all| all.into_iter().collect())
}

fn id() -> impl Strategy<Value = String> {
    characters(&['a', 'b', '1', '"', '\\', '/', ':', ',', 'é', 'e', '\u{301}', '🦀'], 3)
}

/// Also ids that look like attributes.
fn reversed_id() -> impl Strategy<Value = String> {
    prop_oneof![id(), Just("{}".to_owned()), Just("[]".to_owned())]
}

/// Characters of attributes: those that have escapes, and those whose order differs between UTF-8 and UTF-16.
fn any_text() -> impl Strategy<Value = String> {
    const ALL: &[char] =
        &['a', 'Z', '1', '"', '\\', '/', '\u{8}', '\u{c}', '\n', '\r', '\t', '\u{1f}', '\u{7f}', 'é', '\u{ff5e}', '🦀'];
    prop_oneof![Just(String::new()), characters(ALL, 3)]
}

fn number() -> impl Strategy<Value = Json> {
    let digits = prop_oneof![4 => "[1-9]", 1 => "[1-9][0-9]{0,1}[1-9]", 1 => "[1-9][0-9]{15,28}[1-9]"];
    let power = prop_oneof![4 => -2..=2, 1 => -50..=50];
    (any::<bool>(), digits, power).prop_map(|(negative, digits, power)| Json::Number { negative, digits, power })
}

pub(super) fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        Just(Json::Zero),
        number(),
        any_text().prop_map(Json::Text),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
            object(inner).prop_map(Json::Object),
        ]
    })
}

fn object(value: impl Strategy<Value = Json>) -> impl Strategy<Value = BTreeMap<String, Json>> {
    proptest::collection::btree_map(any_text(), value, 0..5)
}

pub(super) fn content() -> impl Strategy<Value = Content> {
    const FIRST: i64 = -62_135_596_800_000_000;
    const LAST: i64 = 253_402_300_799_999_999;
    let micros = prop_oneof![1_000_000 * 1_769_860_800..=1_000_000 * 1_769_860_800 + 2_i64, FIRST..=LAST];
    let most = 10_u128.pow(24) - 1;
    let nanos = prop_oneof![
        Just(0),
        (1..=12_u128, 0..=12_u32).prop_map(|(digits, power)| digits * 10_u128.pow(power)),
        Just(most),
        0..=most,
    ];
    let (attributes, reverses) = (proptest::option::of(object(json())), proptest::option::of(reversed_id()));
    (id(), micros, id(), id(), any::<bool>(), nanos, (id(), id()), (attributes, reverses)).prop_map(
        |(record_id, micros, source_id, destination_id, positive, nanos, (unit, reference), (attributes, reverses))| {
            Content {
                record_id,
                micros,
                source_id,
                destination_id,
                positive,
                nanos,
                unit,
                reference,
                attributes,
                reverses,
            }
        },
    )
}
