//! Reversals: records that take back another record of the same key, wholly or in part.
//!
//! Must never let the reversals of a record add up to more than it, in whatever order and batches they come. All of them
//! are in the shard of the record, because they have its destination: the lock of the shard's row makes the sum exact.

use std::{collections::HashMap, sync::Arc};

use rust_decimal::Decimal;
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use sha2::{Digest as _, Sha256};

use super::{
    Amount, Attributes, DeadLetterReason, Invalid, Kind, NewRecord, Parsed, Record, RecordId, Refusal, Seq, Text,
    json::{child, code, members},
    record::{amount, required, text},
};

/// A record that reversals of a batch take back.
#[derive(Debug, Clone)]
pub struct OriginalRecord {
    /// Its number in the shard.
    pub seq: Seq,
    /// Its content.
    pub record: Arc<Record>,
    /// Its value without the reversals so far.
    pub rest: Decimal,
}

/// What a new record takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reversal {
    /// The number of the record in the shard, which is also that of the reversal.
    pub original: Seq,
    /// What remains of the record.
    pub rest: Decimal,
}

/// The records that reversals of a batch take back, as the decision of the batch changes them.
#[derive(Debug)]
pub(crate) struct Reversals {
    originals: HashMap<RecordId, OriginalRecord>,
}

impl Reversals {
    /// `originals`: those that are stored.
    pub(super) fn new(originals: HashMap<RecordId, OriginalRecord>) -> Self {
        Self { originals }
    }

    /// The content of a record, and what it takes back if it is a reversal; or why it cannot take that back. `before`: the
    /// new records before it in its batch, which it can take back, too.
    pub(super) fn judge(
        &mut self,
        parsed: &Parsed,
        before: &[NewRecord],
    ) -> Result<(Arc<Record>, Option<Reversal>), Refusal> {
        let record = &parsed.record;
        let Some(reverses) = &record.reverses else { return Ok((Arc::clone(record), None)) };
        if !self.originals.contains_key(reverses)
            && let Some(NewRecord { seq, record, .. }) = before.iter().find(|new| new.record.record_id == *reverses)
        {
            let original = OriginalRecord { seq: *seq, record: Arc::clone(record), rest: record.value.get() };
            self.originals.insert(reverses.clone(), original);
        }
        let original = self.originals.get(reverses).ok_or_else(|| {
            let detail = "its destination has no processed record of the id that it reverses, or no longer keeps it";
            Refusal::new(DeadLetterReason::OriginalNotFound, detail)
        })?;
        original.record.check_reversal(record)?;
        let value = if parsed.takes_rest { original.rest } else { record.value.get() };
        let rest = original.rest - value;
        if rest < Decimal::ZERO || parsed.takes_rest && value.is_zero() {
            let (id, rest) = (&original.record.record_id, original.rest);
            let detail = format!("it would reverse more of {id} than the {rest} that remain");
            return Err(Refusal::new(DeadLetterReason::ReversalExceedsOriginal, detail));
        }
        let reversal = Some(Reversal { original: original.seq, rest });
        if !parsed.takes_rest {
            return Ok((Arc::clone(record), reversal));
        }
        Ok((Arc::new(Record { value: Amount::stored(value), ..Record::clone(record) }), reversal))
    }

    /// Notes a new record: what it takes back remains no more.
    pub(super) fn keep(&mut self, new: &NewRecord) {
        if let (Some(reverses), Some(Reversal { rest, .. })) = (&new.record.reverses, new.reversal)
            && let Some(original) = self.originals.get_mut(reverses)
        {
            original.rest = rest;
        }
    }
}

impl Record {
    /// Whether it reverses what remains of another record, by its id. Its value is no content: it follows from the others.
    pub(super) fn is_whole_reversal(&self) -> bool {
        self.reverses.as_ref().is_some_and(|reverses| reversal_id(reverses, None) == self.record_id)
    }

    /// Checks that a record can take this one back: both have all fields of the key, the source and the time in common, and
    /// the other type.
    ///
    /// # Errors
    /// Why it cannot.
    fn check_reversal(&self, reversal: &Self) -> Result<(), Refusal> {
        let id = &self.record_id;
        if self.reverses.is_some() {
            let detail = format!("{id} is a reversal itself, which cannot be reversed: send a new record");
            return Err(Refusal::new(DeadLetterReason::ReversalOfReversal, detail));
        }
        let fields = [
            ("destinationId", self.destination_id == reversal.destination_id),
            ("sourceId", self.source_id == reversal.source_id),
            ("reference", self.reference == reversal.reference),
            ("unit", self.unit == reversal.unit),
            ("time", self.time == reversal.time),
            ("type", self.kind != reversal.kind),
        ];
        match fields.into_iter().find(|(_, fits)| !fits) {
            None => Ok(()),
            Some((field, _)) => {
                let detail = format!("its {field} does not fit {id}, which it reverses");
                Err(Refusal::new(DeadLetterReason::ReversalMismatch, detail))
            }
        }
    }
}

/// The id of a reversal that came without: `rv-` and 40 hex digits. It is derived from the record and an idempotency key;
/// without a key, for what remains of the record, from the record alone.
#[must_use]
pub fn reversal_id(original: &RecordId, key: Option<&str>) -> RecordId {
    let mut hash = Sha256::new();
    // With its length before it, no part can be read as the end of another.
    for part in [Some(original.as_str()), key].into_iter().flatten() {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hex::encode(hash.finalize());
    RecordId::stored(format!("rv-{}", &digest[..40]))
}

/// A request for a reversal.
#[derive(Debug, Clone)]
pub struct ReversalRequest {
    /// The id of the reversal, if one was given.
    pub record_id: Option<RecordId>,
    /// How much of the record; `None`: what remains.
    pub value: Option<Amount>,
    /// Why.
    pub reason: Text,
}

impl ReversalRequest {
    /// Reads a request from JSON.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong and the remedy.
    pub fn parse(json: &[u8]) -> Result<Self, Invalid> {
        let (mut record_id, mut value, mut reason) = (None, None, None);
        for (key, raw) in members(json, "")? {
            let slot = match key.as_ref() {
                "recordId" => &mut record_id,
                "value" => &mut value,
                "reason" => &mut reason,
                _ => {
                    let detail = "is not a field of a reversal; it takes recordId, value and reason";
                    return Err(Invalid::new(code::UNKNOWN_FIELD, child("", &key), detail));
                }
            };
            // null means absent.
            *slot = (raw.get() != "null").then_some(raw);
        }
        let value = value.map(amount).transpose()?;
        if value.is_some_and(|value| value == Amount::ZERO) {
            let detail = "must be above zero; leave it out to reverse what remains";
            return Err(Invalid::new(code::INVALID_VALUE, "/value", detail));
        }
        Ok(Self {
            record_id: record_id.map(|raw| text(raw, "/recordId").map(RecordId::from)).transpose()?,
            value,
            reason: text(required(reason, "/reason")?, "/reason")?,
        })
    }
}

/// A reversal that is not decided yet.
#[derive(Debug, Clone)]
pub struct ReversalDraft {
    record: Record,
    takes_rest: bool,
}

impl ReversalDraft {
    /// The reversal of a record. `value`: how much of it; `None`: what remains when it is decided. It has the time of the
    /// record, so that the sums of a time range stay right.
    #[must_use]
    pub fn new(original: &Record, record_id: RecordId, value: Option<Amount>, reason: &Text) -> Self {
        let kind = match original.kind {
            Kind::Positive => Kind::Negative,
            Kind::Negative => Kind::Positive,
        };
        let attributes = Attributes::stored(serde_json::json!({ "reason": reason.as_str() }).to_string());
        let reverses = Some(original.record_id.clone());
        let takes_rest = value.is_none();
        let value = value.unwrap_or(Amount::ZERO);
        Self { record: Record { record_id, kind, value, attributes, reverses, ..original.clone() }, takes_rest }
    }

    /// The payload of the input stream.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for ReversalDraft {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.record.serialize_with(&mut map, !self.takes_rest)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Record {
        let json =
            br#"{"recordId":"o","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"negative",
            "value":"12.50","unit":"EUR","reference":"r","attributes":{"a":1}}"#;
        Record::parse(json).expect("a record")
    }

    #[test]
    fn each_record_and_key_has_an_id_of_its_own() {
        let of = |id: &str, key| reversal_id(&RecordId::stored(id), key);
        assert_eq!(of("a", None), of("a", None));
        assert_eq!(of("a", Some("k")).as_str().len(), 43);
        let all =
            [of("a", None), of("a", Some("k")), of("a", Some("l")), of("b", None), of("b", Some("k")), of("ak", None)];
        let distinct: std::collections::HashSet<&RecordId> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_draft_is_read_as_the_reversal_of_its_record() {
        let (original, reason) = (original(), Text::stored("say \"no\""));
        for value in [None, Some(Amount::parse("2.50").expect("an amount"))] {
            let id = value.map_or_else(|| reversal_id(&original.record_id, None), |_| RecordId::stored("x"));
            let draft = ReversalDraft::new(&original, id, value, &reason);
            let parsed = Parsed::read(draft.to_json().as_bytes()).expect("a record");
            assert_eq!((parsed.takes_rest, parsed.record.value), (value.is_none(), value.unwrap_or(Amount::ZERO)));
            assert_eq!(
                (parsed.record.kind, parsed.record.reverses.as_ref()),
                (Kind::Positive, Some(&original.record_id))
            );
            assert!(original.check_reversal(&parsed.record).is_ok());
            let attributes = parsed.record.attributes.as_ref().map(Attributes::as_str);
            assert_eq!(attributes, Some(r#"{"reason":"say \"no\""}"#));
            // The bytes of the entry are those of the record where it has a value: publishers pass them on.
            assert_eq!(draft.to_json() == parsed.record.to_json(), value.is_some());
        }
    }

    #[test]
    fn a_reversal_fits_a_record_whose_fields_it_has_but_for_the_type() {
        let original = original();
        let fits = ReversalDraft::new(&original, RecordId::stored("x"), None, &Text::stored("r")).record;
        let later = fits.time + chrono::TimeDelta::microseconds(1);
        for (other, field) in [
            (Record { destination_id: Text::stored("e").into(), ..fits.clone() }, "destinationId"),
            (Record { source_id: Text::stored("t").into(), ..fits.clone() }, "sourceId"),
            (Record { reference: Text::stored("q").into(), ..fits.clone() }, "reference"),
            (Record { unit: Text::stored("USD").into(), ..fits.clone() }, "unit"),
            (Record { time: later, ..fits.clone() }, "time"),
            (Record { kind: Kind::Negative, ..fits.clone() }, "type"),
        ] {
            let refusal = original.check_reversal(&other).expect_err(field);
            assert_eq!(refusal.reason, DeadLetterReason::ReversalMismatch);
            assert!(refusal.detail.contains(field), "{}", refusal.detail);
        }
        let refusal = fits.check_reversal(&original).expect_err("a reversal");
        assert_eq!(refusal.reason, DeadLetterReason::ReversalOfReversal);
    }
}
