//! A decimal written as a string: at most 15 integer and 9 fractional digits, unsigned.

use std::{borrow::Cow, fmt, str::FromStr};

use rust_decimal::Decimal;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// An unsigned decimal string, `^[0-9]{1,15}(\.[0-9]{1,9})?$`, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DecimalString(Decimal);

/// The text is not an unsigned decimal of at most 15 integer and 9 fractional digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be an unsigned decimal with 1 to 15 integer and at most 9 fractional digits, such as \"1000.00\"")]
pub struct InvalidDecimal;

impl DecimalString {
    /// The number itself; its scale is that of the text.
    #[must_use]
    pub fn get(&self) -> Decimal {
        self.0
    }
}

impl FromStr for DecimalString {
    type Err = InvalidDecimal;

    fn from_str(text: &str) -> Result<Self, InvalidDecimal> {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str, most: usize| {
            (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(integer, 15) || !digits(fraction, 9) {
            return Err(InvalidDecimal);
        }
        Decimal::from_str_exact(text).map(Self).map_err(|_| InvalidDecimal)
    }
}

impl TryFrom<String> for DecimalString {
    type Error = InvalidDecimal;

    fn try_from(text: String) -> Result<Self, InvalidDecimal> {
        text.parse()
    }
}

impl From<DecimalString> for String {
    fn from(value: DecimalString) -> Self {
        value.to_string()
    }
}

impl fmt::Display for DecimalString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for DecimalString {
    fn schema_name() -> Cow<'static, str> {
        "DecimalString".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The pattern is for readers and accepts a minus: the rule refuses it with a message.
        json_schema!({
            "type": "string",
            "maxLength": 26,
            "pattern": r"^-?[0-9]{1,15}(\.[0-9]{1,9})?$",
            "x-kubernetes-validations": [{
                "rule": r"self.matches('^[0-9]{1,15}([.][0-9]{1,9})?$')",
                "message": "must be 0 or more, with 1 to 15 integer and at most 9 fractional digits, such as \"1000.00\"",
            }],
        })
    }
}
