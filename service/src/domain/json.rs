//! Strict JSON on top of serde_json: repeated keys, U+0000 and unbounded numbers are refused, bytes are kept.
//!
//! Must never turn a number into a float.

use std::{borrow::Cow, collections::HashSet, fmt, fmt::Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON value as it was written.
pub type Raw = RawValue;

/// Stable codes of what can be wrong with a record.
pub mod code {
    /// Not JSON at all.
    pub const INVALID_JSON: &str = "invalid_json";
    /// A field that has to be there is not.
    pub const MISSING_FIELD: &str = "missing_field";
    /// A field that no record has.
    pub const UNKNOWN_FIELD: &str = "unknown_field";
    /// A key that stands twice in one object.
    pub const DUPLICATE_KEY: &str = "duplicate_key";
    /// A value of another JSON type than asked for.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// A value of the right type that breaks a rule.
    pub const INVALID_VALUE: &str = "invalid_value";
    /// Of a source or a destination that the caller may not reach.
    pub const OUTSIDE_LIMIT: &str = "outside_limit";
    /// Larger than allowed.
    pub const TOO_LARGE: &str = "too_large";
}

/// Deepest nesting of attributes.
const MAX_DEPTH: usize = 64;

/// Whether JSON is nested deeper than any record can be: attributes to their bound, within the record. Readers of ours
/// count on that, and many of them read JSON by recursion.
#[must_use]
pub fn is_deep(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH + 2 {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The first fault of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// One of [`code`].
    pub code: &'static str,
    /// JSON pointer to the field; empty for the record as a whole.
    pub pointer: String,
    /// A sentence with the remedy. Never the value itself.
    pub detail: String,
}

impl Invalid {
    /// Names the field and what to do.
    pub fn new(code: &'static str, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code, pointer: pointer.into(), detail: detail.into() }
    }

    /// The same fault, its pointer below another.
    fn below(self, pointer: &str) -> Self {
        Self { pointer: format!("{pointer}{}", self.pointer), ..self }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() { f.write_str(&self.detail) } else { write!(f, "{}: {}", self.pointer, self.detail) }
    }
}

struct Str<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Str<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Str<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::with_capacity(10);
                while let Some((key, value)) = map.next_entry::<Str<'de>, &'de RawValue>()? {
                    members.push((key.0, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

struct Elements<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Elements<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Elements<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Elements<'de>, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                }
                Ok(Elements(elements))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

/// The members of the object that `text` is, in order; keys are unique and hold no U+0000.
///
/// # Errors
/// [`Invalid`] when the text is not JSON, not an object, or repeats a key.
pub fn members<'a>(text: &'a [u8], pointer: &str) -> Result<Vec<(Cow<'a, str>, &'a Raw)>, Invalid> {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let Members(members) = serde_json::from_slice(text).map_err(|error| {
        if error.is_data() && first != Some(&b'{') {
            Invalid::new(code::WRONG_TYPE, pointer, "must be a JSON object")
        } else {
            Invalid::new(code::INVALID_JSON, pointer, format!("is not valid JSON: {error}"))
        }
    })?;
    let mut seen = HashSet::with_capacity(members.len());
    for (key, _) in &members {
        no_nul(key, pointer)?;
        if !seen.insert(key.as_ref()) {
            return Err(Invalid::new(code::DUPLICATE_KEY, child(pointer, key), "is given twice; give each key once"));
        }
    }
    Ok(members)
}

/// The elements of the array that `text` is.
///
/// # Errors
/// [`Invalid`] when the text is not a JSON array.
pub fn elements(text: &[u8]) -> Result<Vec<&Raw>, Invalid> {
    serde_json::from_slice::<Elements<'_>>(text)
        .map(|elements| elements.0)
        .map_err(|error| Invalid::new(code::INVALID_JSON, "", format!("is not a JSON array: {error}")))
}

/// The string that `raw` is.
///
/// # Errors
/// [`Invalid`] when it is not a string, or holds U+0000 or half a surrogate pair.
pub(super) fn string<'a>(raw: &'a Raw, pointer: &str) -> Result<Cow<'a, str>, Invalid> {
    if !raw.get().starts_with('"') {
        return Err(Invalid::new(code::WRONG_TYPE, pointer, "must be a string"));
    }
    let text = serde_json::from_str::<Str<'a>>(raw.get())
        .map_err(|error| Invalid::new(code::INVALID_JSON, pointer, format!("is not a valid string: {error}")))?;
    no_nul(&text.0, pointer)?;
    Ok(text.0)
}

fn no_nul(text: &str, pointer: &str) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::new(code::INVALID_VALUE, pointer, "holds U+0000, which cannot be stored"));
    }
    Ok(())
}

/// The pointer of a member.
pub(super) fn child(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Writes `raw` so that equal JSON gives equal text: keys sorted, numbers by value, strings in one spelling. Stored
/// digests are of this text (`docs/digest.md`), so it must never change.
///
/// # Errors
/// [`Invalid`] names the first thing in it that is refused: a repeated key, U+0000, a number of more than 40 digits
/// or an exponent beyond ±99, nesting deeper than 64.
pub(super) fn canonical(raw: &Raw, pointer: &str) -> Result<String, Invalid> {
    let mut out = String::with_capacity(raw.get().len());
    write_canonical(raw, 0, &mut out).map_err(|invalid| invalid.below(pointer))?;
    Ok(out)
}

/// Pointers of errors begin at `raw`.
fn write_canonical(raw: &Raw, depth: usize, out: &mut String) -> Result<(), Invalid> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(code::INVALID_VALUE, "", "is nested deeper than 64 levels"));
    }
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let mut members = members(text.as_bytes(), "")?;
            members.sort_by(|a, b| a.0.cmp(&b.0));
            out.push('{');
            for (index, (key, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(key, out);
                out.push(':');
                write_canonical(value, depth + 1, out).map_err(|invalid| invalid.below(&child("", key)))?;
            }
            out.push('}');
        }
        Some(b'[') => {
            out.push('[');
            for (index, value) in elements(text.as_bytes())?.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(value, depth + 1, out).map_err(|invalid| invalid.below(&format!("/{index}")))?;
            }
            out.push(']');
        }
        Some(b'"') => write_string(&string(raw, "")?, out),
        Some(b'-' | b'0'..=b'9') => write_number(text, out)?,
        _ => out.push_str(text),
    }
    Ok(())
}

/// A string with as few escapes as JSON allows, in one spelling.
fn write_string(text: &str, out: &mut String) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        let _ = write!(out, "{}", serde_json::Value::from(text));
    }
}

/// A number as sign, digits without zeros at either end, and a power of ten.
fn write_number(text: &str, out: &mut String) -> Result<(), Invalid> {
    let too_long = || {
        Invalid::new(code::INVALID_VALUE, "", "has more than 40 digits or an exponent beyond ±99; give it as a string")
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| too_long())?;
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if integer.len() + fraction.len() > 40 || exponent.abs() > 99 {
        return Err(too_long());
    }
    let digits = format!("{integer}{fraction}");
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        out.push('0');
        return Ok(());
    }
    let dropped = digits.len() - digits.trim_end_matches('0').len();
    let power = i64::from(exponent) - fraction.len() as i64 + dropped as i64;
    let _ = write!(out, "{}{significant}e{power}", if negative { "-" } else { "" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canon(text: &str) -> Result<String, Invalid> {
        canonical(serde_json::from_str(text).expect("JSON"), "/attributes")
    }

    #[test]
    fn equal_json_is_equal_text() {
        for (a, b) in [
            (r#"{"a":1,"b":2}"#, r#" {"b":2.0, "a":1e0}"#),
            (r#"["é"]"#, r#"["\u00e9"]"#),
            ("[100, -0, 0.10, 1200e-2]", "[1e2, 0, 1E-1, 12]"),
            (r#"{"n":null}"#, r#"{ "n" : null }"#),
        ] {
            assert_eq!(canon(a), canon(b));
        }
        for (a, b) in
            [("1", "2"), (r#""1""#, "1"), ("-1", "1"), ("[1,2]", "[2,1]"), (r#"{"a":null}"#, "{}"), ("10", "1")]
        {
            assert_ne!(canon(a), canon(b), "{a} {b}");
        }
    }

    #[test]
    fn what_a_record_can_hold_is_not_deep() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let record = |levels: usize| format!(r#"{{"attributes":{}}}"#, nested(levels));
        assert!(canon(&nested(65)).is_ok() && !is_deep(record(65).as_bytes()));
        assert!(canon(&nested(66)).is_err() && is_deep(record(66).as_bytes()));
        let text = format!(r#"["\\\"{}"]"#, "[".repeat(100));
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok() && !is_deep(text.as_bytes()), "{text}");
        assert!(!is_deep("[]".repeat(100).as_bytes()));
    }

    #[test]
    fn refusals_point_at_the_place() {
        let deep = format!("{}1{}", "[".repeat(80), "]".repeat(80));
        let long = "1".repeat(41);
        for (text, code, pointer) in [
            (r#"{"a":{"b":1,"b":2}}"#, code::DUPLICATE_KEY, "/attributes/a/b"),
            (r#"{"a/b":["x","\u0000"]}"#, code::INVALID_VALUE, "/attributes/a~1b/1"),
            (r#"{"x\u0000":1}"#, code::INVALID_VALUE, "/attributes"),
            (r#"{"n":1e100}"#, code::INVALID_VALUE, "/attributes/n"),
            (r#"{"n":1e99999999999}"#, code::INVALID_VALUE, "/attributes/n"),
            (&format!("[{long}]"), code::INVALID_VALUE, "/attributes/0"),
            (r#"["\ud800"]"#, code::INVALID_JSON, "/attributes/0"),
        ] {
            let error = canon(text).expect_err(text);
            assert_eq!((error.code, error.pointer.as_str()), (code, pointer), "{text}");
        }
        assert!(canon(&deep).is_err());
        assert!(canon(&format!("[{}]", "1".repeat(40))).is_ok());
    }
}
