//! Records as the API returns them, and their filters.

use poem_openapi::{Enum, Object, types::Example};
use serde::Serialize;

use super::types::{RawJson, Time};
use crate::{
    domain::{Kind, Record},
    store::StoredRecord,
};

/// The sign of a record's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub(super) enum RecordType {
    /// Adds to the total.
    Positive,
    /// Reduces the total.
    Negative,
}

impl RecordType {
    /// The type of a value that is positive or not.
    pub(super) fn of(positive: bool) -> Self {
        if positive { Self::Positive } else { Self::Negative }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Positive => Kind::Positive.as_str(),
            Self::Negative => Kind::Negative.as_str(),
        }
    }
}

/// A record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "Record", rename_all = "camelCase", skip_serializing_if_is_none, example)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordView {
    /// Its id, unique among stored records.
    pub record_id: String,
    /// When it happened.
    pub time: Time,
    /// Its source.
    pub source_id: String,
    /// The destination in whose totals it counts.
    pub destination_id: String,
    /// The sign of the value.
    pub r#type: RecordType,
    /// The amount: an unsigned, exact decimal with its scale as received.
    pub value: String,
    /// The unit of the value; values of different units are never added up.
    pub unit: String,
    /// Together with destinationId, the key of its totals.
    pub reference: String,
    /// The id of the record that it takes back; absent if it is no reversal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverses: Option<String>,
    /// An object, byte for byte as received; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<RawJson>,
    /// When it was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Time>,
    /// When it was processed; absent while it is queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_at: Option<Time>,
}

impl Example for RecordView {
    fn example() -> Self {
        let at = |micros| chrono::DateTime::from_timestamp_micros(micros).map(Time);
        Self {
            record_id: "order-1001".to_owned(),
            time: Time(chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1_769_860_800)),
            source_id: "shop-7".to_owned(),
            destination_id: "account-42".to_owned(),
            r#type: RecordType::Positive,
            value: "125.50".to_owned(),
            unit: "EUR".to_owned(),
            reference: "invoice-9".to_owned(),
            reverses: None,
            attributes: RawJson::parse(r#"{"channel":"web"}"#.to_owned()),
            received_at: at(1_769_860_801_250_000),
            processed_at: at(1_769_860_801_262_417),
        }
    }
}

impl From<StoredRecord> for RecordView {
    fn from(record: StoredRecord) -> Self {
        Self {
            record_id: record.record_id.into(),
            time: Time(record.time),
            source_id: record.source_id.into(),
            destination_id: record.destination_id.into(),
            r#type: RecordType::of(record.positive),
            value: record.value,
            unit: record.unit.into(),
            reference: record.reference.into(),
            reverses: record.reverses.map(String::from),
            attributes: record.attributes.and_then(RawJson::parse),
            received_at: Some(Time(record.received_at)),
            processed_at: Some(Time(record.processed_at)),
        }
    }
}

impl From<&Record> for RecordView {
    fn from(record: &Record) -> Self {
        Self {
            record_id: record.record_id.to_string(),
            time: Time(record.time),
            source_id: record.source_id.to_string(),
            destination_id: record.destination_id.to_string(),
            r#type: RecordType::of(record.kind == Kind::Positive),
            value: record.value.to_string(),
            unit: record.unit.to_string(),
            reference: record.reference.to_string(),
            reverses: record.reverses.as_ref().map(ToString::to_string),
            attributes: record.attributes.as_ref().and_then(|raw| RawJson::parse(raw.as_str().to_owned())),
            received_at: None,
            processed_at: None,
        }
    }
}
