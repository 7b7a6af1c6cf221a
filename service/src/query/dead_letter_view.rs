//! A dead letter as the API returns it, and payloads of any kind.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use poem_openapi::{Object, types::Example};
use serde::Serialize;

use super::types::{RawJson, Time};
use crate::{
    domain::{DeadLetterState, is_deep},
    store::StoredDeadLetter,
};

/// A payload in the one form in which the API can show it.
#[derive(Debug)]
pub(super) enum Shown {
    Json(RawJson),
    /// JSON that is nested too deep for common readers.
    Text(String),
    Base64(String),
}

impl Shown {
    /// Selects the form of a payload.
    pub(super) fn of(payload: Vec<u8>) -> Self {
        match String::from_utf8(payload) {
            Ok(text) => match RawJson::parse(text.clone()) {
                Some(_) if is_deep(text.as_bytes()) => Self::Text(text),
                Some(json) => Self::Json(json),
                None => Self::Base64(STANDARD.encode(text)),
            },
            Err(error) => Self::Base64(STANDARD.encode(error.into_bytes())),
        }
    }

    /// Returns the fields JSON, text and base64, of which one is present.
    pub(super) fn fields(self) -> (Option<RawJson>, Option<String>, Option<String>) {
        match self {
            Self::Json(json) => (Some(json), None, None),
            Self::Text(text) => (None, Some(text), None),
            Self::Base64(text) => (None, None, Some(text)),
        }
    }
}

/// An entry that could not be applied.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none, example)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeadLetter {
    /// `<shard>-d<n>`.
    pub id: String,
    /// Its state.
    pub state: DeadLetterState,
    /// A stable code.
    pub reason: String,
    /// The reason as a sentence.
    pub detail: String,
    /// Absent when the payload could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_id: Option<String>,
    /// Absent when the payload could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_id: Option<String>,
    /// When it was opened.
    pub opened_at: Time,
    /// When the entry was received.
    pub received_at: Time,
    /// When it was replayed or discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Time>,
    /// The administrator who discarded it, or whose replay closed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_by: Option<String>,
    /// The administrator who requested its latest replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// The dead letter whose replay failed with this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<String>,
    /// The payload byte for byte, when it is JSON that is not nested deeper than a record can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<RawJson>,
    /// The payload, when it is JSON that is nested deeper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_text: Option<String>,
    /// The payload, when it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

impl Example for DeadLetter {
    fn example() -> Self {
        Self {
            id: "3-d17".to_owned(),
            state: DeadLetterState::Open,
            reason: "below_minimum_total".to_owned(),
            detail: "its destination's total in this unit would be below policy.minimumTotal".to_owned(),
            record_id: Some("order-1001".to_owned()),
            destination_id: Some("account-42".to_owned()),
            opened_at: Time::example(),
            received_at: Time::example(),
            closed_at: None,
            closed_by: None,
            requested_by: None,
            replay_of: None,
            payload: RawJson::parse(r#"{"recordId":"order-1001"}"#.to_owned()),
            payload_text: None,
            payload_base64: None,
        }
    }
}

impl From<StoredDeadLetter> for DeadLetter {
    fn from(dead_letter: StoredDeadLetter) -> Self {
        let (payload, payload_text, payload_base64) = Shown::of(dead_letter.payload).fields();
        Self {
            id: format!("{}-d{}", dead_letter.shard, dead_letter.seq),
            state: dead_letter.state,
            reason: dead_letter.reason.as_str().to_owned(),
            detail: dead_letter.detail,
            record_id: dead_letter.record_id.map(String::from),
            destination_id: dead_letter.destination_id.map(String::from),
            opened_at: Time(dead_letter.opened_at),
            received_at: Time(dead_letter.received_at),
            closed_at: dead_letter.closed_at.map(Time),
            closed_by: dead_letter.closed_by,
            requested_by: dead_letter.requested_by,
            replay_of: dead_letter.replay_of,
            payload,
            payload_text,
            payload_base64,
        }
    }
}
