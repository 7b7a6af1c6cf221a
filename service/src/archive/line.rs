//! A record as a line of an archive: `{"record":…,"log":…}`. `record` is what `GET /records` returns, and what
//! `millrace send` sends; `log` is the rest of what is stored.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    domain::{RecordId, Seq, ShardId, render_time},
    store::ArchivedRecord,
};

#[derive(Serialize)]
struct Line<'a> {
    record: Record<'a>,
    log: Log<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    record_id: &'a str,
    time: String,
    source_id: &'a str,
    destination_id: &'a str,
    r#type: &'static str,
    value: &'a str,
    unit: &'a str,
    reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reverses: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<Box<RawValue>>,
    received_at: String,
    processed_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    shard: u16,
    seq: i64,
    epoch: i64,
    previous_count: i64,
    previous_total: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rest: Option<&'a str>,
    stream_id: String,
    stream_index: i16,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
}

/// Writes a record as a line. Line breaks between the values of attributes become spaces: no value changes.
///
/// # Errors
/// When stored attributes are no JSON.
pub(super) fn write(out: &mut Vec<u8>, shard: ShardId, record: &ArchivedRecord) -> Result<(), serde_json::Error> {
    let attributes = record.attributes.as_ref();
    let attributes = attributes.map(|text| RawValue::from_string(text.replace(['\n', '\r'], " "))).transpose()?;
    let line = Line {
        record: Record {
            record_id: record.record_id.as_str(),
            time: render_time(record.time),
            source_id: record.source_id.as_str(),
            destination_id: record.destination_id.as_str(),
            r#type: if record.positive { "positive" } else { "negative" },
            value: &record.value,
            unit: record.unit.as_str(),
            reference: record.reference.as_str(),
            reverses: record.reverses.as_ref().map(RecordId::as_str),
            attributes,
            received_at: render_time(record.received_at),
            processed_at: render_time(record.processed_at),
        },
        log: Log {
            shard: shard.get(),
            seq: record.seq.get(),
            epoch: record.epoch,
            previous_count: record.previous_count,
            previous_total: &record.previous_total,
            threshold: record.threshold.as_deref(),
            original_seq: record.original_seq.map(Seq::get),
            rest: record.rest.as_deref(),
            stream_id: record.stream_id.to_string(),
            stream_index: record.stream_index,
            traceparent: record.traceparent.as_deref(),
        },
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.push(b'\n');
    Ok(())
}
