//! Properties of any bytes that are read as a record or as an amount.

use chrono::{Datelike as _, Timelike as _};
use serde_json::value::RawValue;

use super::{
    Amount, Attributes, Record, is_deep,
    json::{canonical, members},
    parse_time, render_time, total_in_bounds, total_nanos,
};

/// A record that is taken is written out as the same record, and holds what was sent: no digit, instant or byte is changed.
pub fn record(json: &[u8]) {
    let draft = Record::parse_draft(json);
    let record = match (Record::parse(json), &draft) {
        (Ok(record), Ok(draft)) => {
            assert_eq!(draft.record_id.as_ref(), Some(&record.record_id));
            record
        }
        (Err(invalid), Ok(draft)) => {
            // Only the id is missing, or the value of a reversal.
            let is_missing = if draft.record_id.is_none() { "/recordId" } else { "/value" };
            return assert_eq!(invalid.pointer, is_missing, "{invalid:?}");
        }
        (Err(invalid), Err(_)) => {
            assert!(!invalid.code.is_empty() && !invalid.detail.is_empty());
            return assert!(invalid.pointer.is_empty() || invalid.pointer.starts_with('/'), "{}", invalid.pointer);
        }
        (Ok(_), Err(invalid)) => panic!("a record that is no draft: {invalid}"),
    };
    assert!(!is_deep(json), "readers count on what is taken being shallow");
    let text = record.to_json();
    let again = Record::parse(text.as_bytes()).expect("what was written can be read");
    assert_eq!(again, record, "and is the same");
    assert_eq!(again.to_json(), text, "in its very bytes");
    let words = [
        record.record_id.as_str(),
        record.source_id.as_str(),
        record.destination_id.as_str(),
        record.unit.as_str(),
        record.reference.as_str(),
    ];
    for word in words {
        assert!((1..=200).contains(&word.chars().count()) && word.len() <= 400, "{word:?}");
        assert!(!word.chars().any(|c| c.is_control() || "\u{200b}\u{feff}\u{202e}".contains(c)), "{word:?}");
        assert_eq!(word, word.trim(), "no white space at either end");
    }
    let sent = members(json, "").expect("an object");
    let field = |name: &str| sent.iter().find(|(key, _)| key == name).map(|(_, raw)| raw.get()).expect("the field");
    let value = field("value");
    let value = serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_owned());
    assert_eq!(record.value.to_string(), without_leading_zeros(&value), "every digit of the value");
    let time: String = serde_json::from_str(field("time")).expect("a string");
    let instant = chrono::DateTime::parse_from_rfc3339(&time).expect("a time");
    assert_eq!(record.time, instant, "the same instant");
    assert!((1..=9999).contains(&record.time.year()), "{}", record.time);
    assert!(record.time.nanosecond().is_multiple_of(1_000), "whole microseconds: {}", record.time);
    assert_eq!(parse_time(&render_time(record.time)), Ok(record.time));
    if let Some(attributes) = &record.attributes {
        assert_eq!(attributes.as_str(), field("attributes"), "byte for byte");
        same_content(attributes);
    }
}

/// Attributes are the same whatever the order of their keys and the space between them.
fn same_content(attributes: &Attributes) {
    let raw: &RawValue = serde_json::from_str(attributes.as_str()).expect("JSON");
    let mut turned = members(attributes.as_str().as_bytes(), "").expect("an object");
    turned.reverse();
    let turned: Vec<String> =
        turned.iter().map(|(key, value)| format!(" {} :\n{}", serde_json::Value::from(&**key), value.get())).collect();
    let turned = Attributes::stored(format!("{{{}}}", turned.join("\t,"))).expect("JSON");
    assert_eq!(&turned, attributes);
    let text = canonical(raw, "").expect("checked when it was read");
    // A number at the bounds of both digits and exponent can come out with an exponent beyond them.
    if let Ok(again) = canonical(serde_json::from_str(&text).expect("JSON"), "") {
        assert_eq!(again, text);
    }
}

/// Exactly the decimals of 15 and 9 digits are taken, digit for digit, and sums of them are exact.
pub fn amount(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut sum = (rust_decimal::Decimal::ZERO, 0_i128);
    for text in text.split(',') {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |part: &str, most| (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let taken = Amount::parse(text);
        assert_eq!(taken.is_ok(), digits(integer, 15) && digits(fraction, 9), "{text:?}");
        let Ok(amount) = taken else { continue };
        assert_eq!(amount.to_string(), without_leading_zeros(text));
        assert!(total_in_bounds(amount.get()) && !amount.get().is_sign_negative());
        let nanos: i128 = format!("{integer}{fraction:0<9}").parse().expect("digits");
        assert_eq!(total_nanos(amount.get()), nanos);
        let sign = if text.len().is_multiple_of(2) { 1 } else { -1 };
        let next = sum.0.checked_add(amount.get() * rust_decimal::Decimal::from(sign)).expect("far from the bound");
        sum = (next, sum.1 + nanos * i128::from(sign));
        assert_eq!(total_nanos(sum.0), sum.1, "the sum is exact");
    }
}

fn without_leading_zeros(text: &str) -> &str {
    let integer = text.split('.').next().unwrap_or_default();
    let zeros = integer.len() - integer.trim_start_matches('0').len();
    &text[zeros.min(integer.len().saturating_sub(1))..]
}
