//! Reversals by chance, and the part of the model that judges them: it adds up all reversals of a record each time.

use super::*;
use crate::domain::reversal_id;

/// The reversal of a payload; of one that is no record, the reversal of a record that does not come.
pub(super) fn reversal(of: &[u8], id: u8, value: Option<&str>, fits: bool) -> String {
    let none = || serde_json::from_str(&record(9, 0, "1", true, "EUR", "{}")).expect("JSON");
    let mut payload: serde_json::Value = serde_json::from_slice(of).unwrap_or_else(|_| none());
    payload["reverses"] = payload["recordId"].take();
    payload["type"] = if payload["type"] == "positive" { "negative" } else { "positive" }.into();
    if !fits {
        payload["reference"] = "other".into();
    }
    // Of what remains: with the derived id, and at times with a value, as a restored record has one.
    let original = RecordId::stored(payload["reverses"].as_str().unwrap_or_default());
    let derived = reversal_id(&original, None);
    payload["recordId"] = value.map_or(derived.to_string(), |_| format!("rv-{id}")).into();
    match value {
        Some(value) => payload["value"] = value.into(),
        None if id == 0 => payload["value"] = "1".into(),
        None => drop(payload.as_object_mut().expect("an object").remove("value")),
    }
    payload.to_string()
}

impl Model {
    /// All processed records, in order.
    pub(super) fn records(&self) -> Vec<Record> {
        self.kept.iter().filter_map(Kept::processed).collect()
    }

    /// What the reversals of a record have taken back.
    pub(super) fn taken_back(&self, id: &RecordId) -> Decimal {
        self.records().iter().filter(|other| other.reverses.as_ref() == Some(id)).map(|other| other.value.get()).sum()
    }

    /// A record with its value, and what remains of the record that it reverses.
    pub(super) fn reversed(&self, parsed: &Parsed) -> Result<(Record, Option<Decimal>), DeadLetterReason> {
        let mut record = Record::clone(&parsed.record);
        let Some(id) = &record.reverses else { return Ok((record, None)) };
        let originals = self.records();
        let original = originals.iter().find(|other| other.record_id == *id);
        let original = original.filter(|other| ShardId::of(&other.destination_id, 2) == SHARD);
        let original = original.ok_or(DeadLetterReason::OriginalNotFound)?;
        if original.reverses.is_some() {
            return Err(DeadLetterReason::ReversalOfReversal);
        }
        if Key::of(original) != Key::of(&record)
            || (original.time, &original.source_id) != (record.time, &record.source_id)
            || original.kind == record.kind
        {
            return Err(DeadLetterReason::ReversalMismatch);
        }
        let remained = original.value.get() - self.taken_back(id);
        if parsed.takes_rest {
            record.value = Amount::stored(remained);
        }
        let rest = remained - record.value.get();
        if rest < Decimal::ZERO || parsed.takes_rest && remained == Decimal::ZERO {
            return Err(DeadLetterReason::ReversalExceedsOriginal);
        }
        Ok((record, Some(rest)))
    }

    /// The reversals of no record add up to more than it.
    pub(in super::super) fn assert_reversals(&self) {
        for record in self.records() {
            assert!(self.taken_back(&record.record_id) <= record.value.get(), "{record:?}");
        }
    }
}
