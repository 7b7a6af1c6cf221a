//! Scalar types of responses and parameters: each has its schema in the OpenAPI document and refuses invalid values.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef},
    types::{Example, ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, value::RawValue};

use crate::domain::{Text, parse_time, render_time};

/// A point in time: RFC 3339, rendered in UTC with `Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub DateTime<Utc>);

/// An id, a unit or a reference, as a filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Word(pub Text);

/// JSON that keeps its bytes. A parsed tree of values would round big numbers.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(super) struct RawJson(pub Box<RawValue>);

macro_rules! scalar {
    ($type:ty, $name:literal, $schema:expr) => {
        impl Type for $type {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> Cow<'static, str> {
                $name.into()
            }

            fn schema_ref() -> MetaSchemaRef {
                MetaSchemaRef::Inline(Box::new($schema))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(std::iter::once(self))
            }
        }

        impl ParseFromJSON for $type {
            fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
                Self::from_json(value.unwrap_or_default()).ok_or_else(|| ParseError::custom("is of another type"))
            }
        }
    };
}

scalar!(Time, "Time", MetaSchema::new_with_format("string", "date-time"));
scalar!(Word, "Word", MetaSchema { min_length: Some(1), max_length: Some(200), ..MetaSchema::new("string") });
scalar!(RawJson, "RawJson", MetaSchema::ANY);

impl Time {
    fn from_json(value: Value) -> Option<Self> {
        parse_time(value.as_str()?).ok().map(Self)
    }
}

impl ParseFromParameter for Time {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        parse_time(value).map(Self).map_err(|rule| {
            ParseError::custom(if lost_its_plus(value) {
                "a + in a URL means a space: write the + of the offset as %2B, such as 2026-01-31T12:00:00%2B01:00"
            } else {
                rule
            })
        })
    }
}

/// Whether a text is a time in whose offset a `+` was read as a space.
fn lost_its_plus(value: &str) -> bool {
    value.rsplit_once(' ').is_some_and(|(time, offset)| parse_time(&format!("{time}+{offset}")).is_ok())
}

impl ToJSON for Time {
    fn to_json(&self) -> Option<Value> {
        Some(render_time(self.0).into())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&render_time(self.0))
    }
}

/// For cursors, which a client can make up: refuses times that Postgres cannot compare.
impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_time(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

impl Example for Time {
    fn example() -> Self {
        Self(DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1_769_860_860))
    }
}

impl Word {
    fn from_json(value: Value) -> Option<Self> {
        Self::parse_from_parameter(value.as_str()?).ok()
    }
}

impl ParseFromParameter for Word {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        // A text that no record can hold is a mistake of the client, and Postgres cannot compare some of these.
        Text::parse(value).map(Self).map_err(ParseError::custom)
    }
}

/// For cursors, like [`Time`].
impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::parse(String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

impl ToJSON for Word {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.as_str().into())
    }
}

impl RawJson {
    /// Parses JSON; `None` if the text is not JSON.
    pub(super) fn parse(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    fn from_json(value: Value) -> Option<Self> {
        Self::parse(value.to_string())
    }
}

impl ToJSON for RawJson {
    /// Only for examples in the OpenAPI document; [`Serialize`] writes the responses.
    fn to_json(&self) -> Option<Value> {
        serde_json::from_str(self.0.get()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_json_keeps_its_bytes() {
        let text = r#"{"n": 12345678901234567890.10, "e":1E2}"#;
        let raw = RawJson::parse(text.to_owned()).expect("JSON");
        assert_eq!(serde_json::to_string(&[raw]).expect("written"), format!("[{text}]"));
        assert!(RawJson::parse("{".to_owned()).is_none());
    }

    #[test]
    fn words_and_times_refuse_values_that_no_record_holds() {
        for word in ["", "a\0b", &"x".repeat(201), "EUR ", "\u{feff}EUR", "E\u{200b}UR"] {
            assert!(Word::parse_from_parameter(word).is_err(), "{word:?}");
        }
        assert!(Time::parse_from_parameter("2026-01-01").is_err());
        let time = Time::parse_from_parameter("2026-01-01T01:00:00+01:00").expect("a time");
        assert_eq!(time.to_json(), Some("2026-01-01T00:00:00Z".into()));
    }

    #[test]
    fn the_error_names_a_plus_that_was_read_as_a_space() {
        let refusal = |text| Time::parse_from_parameter(text).expect_err(text).into_message();
        assert!(refusal("2026-01-01T01:00:00 01:00").contains("%2B"));
        assert!(refusal("2026-01-01T01:00:00.5 05:30").contains("%2B"));
        for other in ["2026-01-01 01:00:00+01:00", "2026-01-01T01:00:00 UTC", "2026-01-01T01:00:00 99:00", "a b"] {
            assert!(!refusal(other).contains("%2B"), "{other}");
        }
    }
}
