//! Digests against a model of content, spelt in every way that means the same, and against the test vectors.

mod spelling;

use std::collections::HashMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::domain::{Amount, Attributes, Parsed};
use spelling::{Content, Field, content, json};

/// One content of `vectors.json`: records that spell it, its canonical form and its digest.
#[derive(Deserialize)]
struct Vector {
    content: String,
    records: Vec<String>,
    form: String,
    digest: String,
}

fn parsed(json: &str) -> Record {
    Record::parse(json.as_bytes()).unwrap_or_else(|invalid| panic!("{invalid} in {json}"))
}

#[test]
fn test_vectors_have_their_forms_and_digests() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let mut firsts: Vec<(Parsed, String)> = Vec::new();
    for vector in vectors {
        let read =
            |json: &String| Parsed::read(json.as_bytes()).unwrap_or_else(|invalid| panic!("{invalid} in {json}"));
        let records: Vec<Parsed> = vector.records.iter().map(read).collect();
        // The value of a reversal of what remains is no content.
        let value = |one: &Parsed| if one.record.is_whole_reversal() { Amount::ZERO } else { one.record.value };
        let content = |one: &Parsed| Record { value: value(one), ..Record::clone(&one.record) };
        let is_same = |one: &Parsed| content(one) == content(&records[0]);
        for parsed in &records {
            let form = canonical_form(&parsed.record);
            assert_eq!(hex::encode(form), vector.form, "{}", vector.content);
            assert_eq!(parsed.digest.to_string(), vector.digest, "{}", vector.content);
            assert!(is_same(parsed), "{}", vector.content);
        }
        for (parsed, digest) in &firsts {
            assert!(!is_same(parsed) && *digest != vector.digest, "{}", vector.content);
        }
        firsts.push((records.into_iter().next().expect("a record"), vector.digest));
    }
    assert!(firsts.len() >= 35);
}

#[test]
fn a_digest_is_a_version_and_the_first_120_bits_of_the_hash() {
    let record = parsed(&Content::example().spelt(0));
    let digest = ContentDigest::of(&record);
    assert_eq!(digest.as_bytes()[0], 1);
    assert_eq!(digest.as_bytes()[1..], Sha256::digest(canonical_form(&record))[..15]);
    assert_eq!(ContentDigest::stored(*digest.as_bytes()), digest);
    assert_eq!((digest.to_string().len(), digest.to_string()), (32, hex::encode(digest.as_bytes())));
}

#[test]
fn no_character_passes_from_one_field_to_another() {
    let texts = [Field::RecordId, Field::SourceId, Field::DestinationId, Field::Unit, Field::Reference];
    let mut seen = HashMap::new();
    for first in texts {
        for second in texts.into_iter().filter(|second| *second != first) {
            for (one, other) in [("abc", "d"), ("ab", "cd"), ("a", "bcd")] {
                let content = Content::example().with_text(first, one).with_text(second, other);
                let digest = ContentDigest::of(&parsed(&content.spelt(0)));
                assert!(seen.insert(digest, content.clone()).is_none_or(|earlier| earlier == content), "{content:?}");
            }
        }
    }
    assert_eq!(seen.len(), 5 * 4 * 3);
}

#[test]
fn attributes_that_are_no_longer_taken_are_equal_to_themselves_only() {
    let long = |digit: &str| format!(r#"{{"n":{}}}"#, digit.repeat(41));
    let stored = |text: String| {
        let attributes = Attributes::stored(text).expect("JSON");
        Record { attributes: Some(attributes), ..parsed(&Content::example().spelt(0)) }
    };
    let (one, same, other) = (stored(long("1")), stored(long("1")), stored(long("2")));
    assert!(one == same && ContentDigest::of(&one) == ContentDigest::of(&same));
    assert!(one != other && ContentDigest::of(&one) != ContentDigest::of(&other));
}

#[test]
fn stored_values_of_any_scale_and_sign_of_zero_are_compared_by_number() {
    let stored = |value: &str| {
        let value = crate::domain::Amount::stored(value.parse().expect("a decimal"));
        Record { value, ..parsed(&Content::example().spelt(0)) }
    };
    for (one, other) in [("0", "-0.000"), ("100", "100.000"), ("0.0000000000010", "0.000000000001"), ("-5", "-5.0")] {
        assert_eq!(stored(one), stored(other));
        assert_eq!(ContentDigest::of(&stored(one)), ContentDigest::of(&stored(other)), "{one} {other}");
    }
    for (one, other) in [("10", "1"), ("-5", "5"), ("0.1", "0.01"), ("79228162514264337593543950335", "0")] {
        assert_ne!(stored(one), stored(other));
        assert_ne!(ContentDigest::of(&stored(one)), ContentDigest::of(&stored(other)), "{one} {other}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn equal_content_has_one_digest_however_it_is_spelt(content in content(), one: u64, other: u64) {
        let (one, other) = (parsed(&content.spelt(one)), parsed(&content.spelt(other)));
        prop_assert_eq!(ContentDigest::of(&one), ContentDigest::of(&other));
        prop_assert_eq!(ContentDigest::of(&one), ContentDigest::of(&parsed(&one.to_json())));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn digests_differ_when_one_field_differs(
        content in content(), donor in content(), field: prop::sample::Index, one: u64, other: u64,
    ) {
        let field = *field.get(&Field::ALL);
        let changed = content.clone().with_field_of(field, &donor);
        let (left, right) = (parsed(&content.spelt(one)), parsed(&changed.spelt(other)));
        prop_assert_eq!(ContentDigest::of(&left) == ContentDigest::of(&right), content == changed);
        prop_assert_eq!(left == right, content == changed);
    }

    #[test]
    fn digests_differ_when_one_value_within_attributes_differs(
        content in content(), at: prop::sample::Index, value in json(), one: u64, other: u64,
    ) {
        let changed = content.clone().with_value_within(at, value);
        let (left, right) = (parsed(&content.spelt(one)), parsed(&changed.spelt(other)));
        prop_assert_eq!(ContentDigest::of(&left) == ContentDigest::of(&right), content == changed);
        prop_assert_eq!(left == right, content == changed);
    }
}
