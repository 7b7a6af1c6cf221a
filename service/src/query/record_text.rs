//! Records of a streamed response as text, written from the stored columns without a copy in between.
//!
//! Must have the fields of [`RecordView`](super::views::RecordView), in its order.

use super::{
    format::csv_line,
    views::{RecordType, RecordView},
};
use crate::{
    domain::{RecordId, TimeText},
    store::AggregatedRecord,
};

/// The columns of a record in CSV.
pub(super) const COLUMNS: [&str; 12] = [
    "recordId",
    "time",
    "sourceId",
    "destinationId",
    "type",
    "value",
    "unit",
    "reference",
    "attributes",
    "receivedAt",
    "processedAt",
    "reverses",
];

/// Whether line breaks between the values of attributes stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineBreaks {
    /// The bytes are those that were received.
    Kept,
    /// They become spaces: there they can only be white space between values, so no value changes.
    Spaces,
}

/// Writes a record as JSON.
pub(super) fn json(out: &mut Vec<u8>, record: &AggregatedRecord, breaks: LineBreaks) {
    text(out, "{\"recordId\":", record.record_id.as_str());
    plain(out, ",\"time\":", TimeText::of(record.time).as_str());
    text(out, ",\"sourceId\":", record.source_id.as_str());
    text(out, ",\"destinationId\":", record.destination_id.as_str());
    plain(out, ",\"type\":", RecordType::of(record.positive).as_str());
    plain(out, ",\"value\":", &record.value);
    text(out, ",\"unit\":", record.unit.as_str());
    text(out, ",\"reference\":", record.reference.as_str());
    if let Some(reverses) = &record.reverses {
        text(out, ",\"reverses\":", reverses.as_str());
    }
    if let Some(attributes) = &record.attributes {
        out.extend_from_slice(b",\"attributes\":");
        let from = out.len();
        out.extend_from_slice(attributes.as_bytes());
        if breaks == LineBreaks::Spaces {
            on_one_line(&mut out[from..]);
        }
    }
    plain(out, ",\"receivedAt\":", TimeText::of(record.received_at).as_str());
    plain(out, ",\"processedAt\":", TimeText::of(record.processed_at).as_str());
    out.push(b'}');
}

/// Writes a record as a line of CSV.
pub(super) fn csv(out: &mut Vec<u8>, record: &AggregatedRecord) {
    let (time, received_at) = (TimeText::of(record.time), TimeText::of(record.received_at));
    let processed_at = TimeText::of(record.processed_at);
    let fields = [
        record.record_id.as_str(),
        time.as_str(),
        record.source_id.as_str(),
        record.destination_id.as_str(),
        RecordType::of(record.positive).as_str(),
        &record.value,
        record.unit.as_str(),
        record.reference.as_str(),
        record.attributes.as_deref().unwrap_or_default(),
        received_at.as_str(),
        processed_at.as_str(),
        record.reverses.as_ref().map(RecordId::as_str).unwrap_or_default(),
    ];
    csv_line(out, fields);
}

/// Writes a record of a page as a line of CSV.
pub(super) fn csv_view(out: &mut Vec<u8>, record: &RecordView) {
    let (time, received_at) = (TimeText::of(record.time.0), record.received_at.map(|at| TimeText::of(at.0)));
    let processed_at = record.processed_at.map(|at| TimeText::of(at.0));
    let fields = [
        record.record_id.as_str(),
        time.as_str(),
        &record.source_id,
        &record.destination_id,
        record.r#type.as_str(),
        &record.value,
        &record.unit,
        &record.reference,
        record.attributes.as_ref().map_or("", |attributes| attributes.0.get()),
        received_at.as_ref().map_or("", TimeText::as_str),
        processed_at.as_ref().map_or("", TimeText::as_str),
        record.reverses.as_deref().unwrap_or_default(),
    ];
    csv_line(out, fields);
}

/// Replaces line breaks in JSON by spaces. They are between values: in a string they are escaped.
pub(super) fn on_one_line(json: &mut [u8]) {
    json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
}

/// Writes a key and a text that needs no escape.
fn plain(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'"');
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

/// Writes a key and a text.
fn text(out: &mut Vec<u8>, key: &str, value: &str) {
    if value.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(key.as_bytes());
        // A text without a number or a map in it is always written.
        let _ = serde_json::to_writer(out, value);
    } else {
        plain(out, key, value);
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        domain::{DestinationId, Reference, Seq, ShardId, SourceId, Unit},
        store::StoredRecord,
    };

    #[test]
    fn json_is_that_of_the_view_in_every_byte() {
        let at = |micros| DateTime::from_timestamp_micros(micros).expect("a time");
        let words = ["plain", "say \"hi\"", "back\\slash", "é\u{2028}👧", "tab\t"];
        for (word, attributes) in words.into_iter().zip([None, Some("{}"), Some("{\r\n \"a\": 1.0}"), None, None]) {
            let stored = StoredRecord {
                shard: ShardId::new(0),
                seq: Seq::new(1),
                record_id: RecordId::stored(word),
                time: at(1_769_860_800_000_000),
                source_id: SourceId::stored(word),
                destination_id: DestinationId::stored(word),
                positive: attributes.is_none(),
                value: "125.50".to_owned(),
                unit: Unit::stored(word),
                reference: Reference::stored(word),
                attributes: attributes.map(str::to_owned),
                reverses: attributes.map(|_| RecordId::stored(word)),
                received_at: at(1_769_860_801_250_000),
                processed_at: at(1_769_860_801_262_417),
            };
            let record = AggregatedRecord {
                destination_id: stored.destination_id.clone(),
                unit: stored.unit.clone(),
                value: stored.value.clone(),
                record_id: stored.record_id.clone(),
                source_id: stored.source_id.clone(),
                reference: stored.reference.clone(),
                positive: stored.positive,
                attributes: stored.attributes.clone(),
                reverses: stored.reverses.clone(),
                time: stored.time,
                received_at: stored.received_at,
                processed_at: stored.processed_at,
            };
            let view = RecordView::from(stored);
            let (mut line, mut same) = (Vec::new(), Vec::new());
            csv(&mut line, &record);
            csv_view(&mut same, &view);
            assert_eq!(line, same, "CSV of an aggregation and of a page");
            let view = serde_json::to_string(&view).expect("JSON");
            let mut out = Vec::new();
            json(&mut out, &record, LineBreaks::Kept);
            assert_eq!(String::from_utf8(out).expect("UTF-8"), view);
            let mut out = Vec::new();
            json(&mut out, &record, LineBreaks::Spaces);
            assert_eq!(String::from_utf8(out).expect("UTF-8"), view.replace(['\n', '\r'], " "));
        }
    }
}
