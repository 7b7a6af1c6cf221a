//! Content of a sink's entries. One rendering for rows from memory and from the log; `verify` has its own, to compare.

use chrono::{DateTime, Utc};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeStruct as _},
};
use serde_json::value::RawValue;

use crate::{
    domain::{OutcomeKind, Record, RecordId, ShardId, is_deep, render_time},
    store::{LogRow, RefusedRow},
    streams::Notice,
};

/// The `type` field of a sink's entries.
#[must_use]
pub fn event_type(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Processed => "record.processed",
        OutcomeKind::Alert => "record.alert",
        OutcomeKind::DeadLettered => "record.dead_lettered",
        OutcomeKind::Conflicted => "record.conflicted",
    }
}

/// A processed record's notification, or its alert.
#[must_use]
pub fn record(shard: ShardId, row: &LogRow, alert: bool) -> Notice {
    let data = RecordData { row, alert };
    Notice {
        seq: row.seq,
        id: format!("{shard}-{}{}", row.seq, if alert { "-alert" } else { "" }),
        time: render_time(row.processed_at),
        traceparent: row.traceparent.clone(),
        data: serde_json::to_string(&data).unwrap_or_default(),
    }
}

/// A dead letter's or a conflict's notification.
#[must_use]
pub fn refused(shard: ShardId, row: &RefusedRow, kind: OutcomeKind) -> Notice {
    let mark = if kind == OutcomeKind::DeadLettered { 'd' } else { 'c' };
    let payload: Option<&RawValue> = serde_json::from_slice(&row.payload).ok().filter(|_| !is_deep(&row.payload));
    let data = RefusedData {
        record_id: row.record_id.as_ref().map(RecordId::as_str),
        reason: &row.reason,
        detail: &row.detail,
        payload,
        payload_text: payload.is_none().then(|| String::from_utf8_lossy(&row.payload).into_owned()),
    };
    Notice {
        seq: row.seq,
        id: format!("{shard}-{mark}{}", row.seq),
        time: render_time(row.noted_at),
        traceparent: row.traceparent.clone(),
        data: serde_json::to_string(&data).unwrap_or_default(),
    }
}

/// A record as it is given out: with `receivedAt` and `processedAt`.
#[derive(Debug)]
pub struct RecordOut<'a> {
    /// The content.
    pub record: &'a Record,
    /// When `serve` received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed.
    pub processed_at: DateTime<Utc>,
}

impl Serialize for RecordOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.record.serialize_fields(&mut map)?;
        map.serialize_entry("receivedAt", &render_time(self.received_at))?;
        map.serialize_entry("processedAt", &render_time(self.processed_at))?;
        map.end()
    }
}

struct RecordData<'a> {
    row: &'a LogRow,
    alert: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    previous_count: i64,
    previous_total: String,
    unit: &'a str,
}

impl Serialize for RecordData<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = self.row;
        let threshold = row.threshold.filter(|_| self.alert);
        let mut data = serializer.serialize_struct("data", 2 + usize::from(threshold.is_some()))?;
        let record = RecordOut { record: &row.record, received_at: row.received_at, processed_at: row.processed_at };
        data.serialize_field("record", &record)?;
        let summary = Summary {
            previous_count: row.previous.count,
            previous_total: row.previous.total.to_string(),
            unit: row.record.unit.as_str(),
        };
        data.serialize_field("summary", &summary)?;
        if let Some(threshold) = threshold {
            data.serialize_field("threshold", &threshold.to_string())?;
        }
        data.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusedData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    record_id: Option<&'a str>,
    reason: &'a str,
    detail: &'a str,
    /// The payload, where it is JSON that is not nested deeper than a record can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    /// Any other payload, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<String>,
}
