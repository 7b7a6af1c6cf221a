//! Expected content of an entry of a sink's stream, from the row alone and not by the code that published it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::totals::Alert;
use crate::{
    domain::{Attributes, OutcomeKind, Record, RecordId, Seq, ShardId, ShardSeq, render_time},
    store::{Differences, LoggedRecord, RefusedOutcome},
    streams::SinkEntry,
};

/// The shard and number in an entry's id.
pub(super) fn number(kind: OutcomeKind, id: &str) -> Option<ShardSeq> {
    let (shard, rest) = id.split_once('-')?;
    let (number, name) = match kind {
        OutcomeKind::Processed => (rest, ""),
        OutcomeKind::Alert => (rest.strip_suffix("-alert")?, ""),
        OutcomeKind::TotalAlert => rest.split_once("-total-")?,
        OutcomeKind::DeadLettered => (rest.strip_prefix('d')?, ""),
        OutcomeKind::Conflicted => (rest.strip_prefix('c')?, ""),
    };
    let place = ShardSeq { shard: ShardId::new(shard.parse().ok()?), seq: Seq::new(number.parse().ok()?) };
    (place.seq > Seq::ZERO && render_id(kind, place, name) == id).then_some(place)
}

/// `name` is that of the threshold on a total.
fn render_id(kind: OutcomeKind, ShardSeq { shard, seq }: ShardSeq, name: &str) -> String {
    match kind {
        OutcomeKind::Processed => format!("{shard}-{seq}"),
        OutcomeKind::Alert => format!("{shard}-{seq}-alert"),
        OutcomeKind::TotalAlert => format!("{shard}-{seq}-total-{name}"),
        OutcomeKind::DeadLettered => format!("{shard}-d{seq}"),
        OutcomeKind::Conflicted => format!("{shard}-c{seq}"),
    }
}

/// An entry with the number in its id.
pub(super) struct NumberedEntry {
    pub(super) seq: Seq,
    pub(super) entry: SinkEntry,
}

/// The row behind an entry.
#[derive(Clone, Copy)]
pub(super) enum Row<'a> {
    Record(&'a LoggedRecord),
    TotalAlert(&'a LoggedRecord, &'a Alert),
    Refused(&'a RefusedOutcome),
}

/// The JSON in `data` of a processed record or an alert.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Data<'a> {
    #[serde(borrow)]
    record: Shown<'a>,
    #[serde(borrow)]
    summary: Summary<'a>,
    #[serde(borrow)]
    threshold: Option<Cow<'a, str>>,
    total_alert: Option<Alert>,
    /// Of a sink with a filter. It depends on the filters that the sink had.
    previous_seq: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Shown<'a> {
    #[serde(borrow)]
    record_id: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    source_id: Cow<'a, str>,
    #[serde(borrow)]
    destination_id: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow)]
    unit: Cow<'a, str>,
    #[serde(borrow)]
    reference: Cow<'a, str>,
    #[serde(borrow)]
    reverses: Option<Cow<'a, str>>,
    #[serde(borrow)]
    attributes: Option<&'a RawValue>,
    #[serde(borrow)]
    received_at: Cow<'a, str>,
    #[serde(borrow)]
    processed_at: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Summary<'a> {
    previous_count: i64,
    #[serde(borrow)]
    previous_total: Cow<'a, str>,
    #[serde(borrow)]
    unit: Cow<'a, str>,
}

impl Row<'_> {
    /// The number.
    pub(super) fn seq(self) -> Seq {
        match self {
            Self::Record(row) | Self::TotalAlert(row, _) => row.seq,
            Self::Refused(row) => row.seq,
        }
    }

    /// Compares an entry's fields with this row. `sink` is the sink's name.
    pub(super) fn compare(
        self,
        kind: OutcomeKind,
        source: &str,
        entry: &SinkEntry,
        sink: &str,
        differences: &mut Differences,
    ) {
        let (what, at, traceparent) = match self {
            Self::Record(row) => {
                let what = if kind == OutcomeKind::Alert { "record.alert" } else { "record.processed" };
                (what, row.processed_at, &row.traceparent)
            }
            Self::TotalAlert(row, _) => ("record.total_alert", row.processed_at, &row.traceparent),
            Self::Refused(row) => {
                let is_dead_letter = kind == OutcomeKind::DeadLettered;
                let what = if is_dead_letter { "record.dead_lettered" } else { "record.conflicted" };
                (what, row.noted_at, &row.traceparent)
            }
        };
        let at = render_time(at);
        let found = |field: &str| entry.field(field).unwrap_or_default();
        let place = |field: &str| format!("sink {sink}, {}, {field}", found("id"));
        for (field, expected) in [
            ("source", source),
            ("type", what),
            ("time", &at),
            ("version", "1"),
            ("traceparent", traceparent.as_deref().unwrap_or_default()),
        ] {
            if found(field) != expected {
                differences.add("entry", place(field), expected, found(field));
            }
        }
        let (row, alert) = match self {
            Self::Record(row) => (row, None),
            Self::TotalAlert(row, alert) => (row, Some(alert)),
            Self::Refused(_) => return,
        };
        if let Some(alert) = alert
            && !found("id").ends_with(&format!("-total-{}", alert.name))
        {
            differences.add("entry", place("id"), format!("an alert of {}", alert.name), found("id"));
        }
        if let Err(why) = row_is(row, kind, alert, &at, found("data")) {
            differences.add("entry", place("data"), why, found("data"));
        }
    }
}

/// Compares `data` with a row, whose `processedAt` is rendered. The error is the expected content.
fn row_is(
    row: &LoggedRecord,
    kind: OutcomeKind,
    alert: Option<&Alert>,
    processed_at: &str,
    data: &str,
) -> Result<(), String> {
    let Data { record: shown, summary, threshold, total_alert, previous_seq } =
        serde_json::from_str(data).map_err(|error| format!("data of the documented form ({error})"))?;
    if previous_seq.is_some_and(|previous| previous >= row.seq.get()) {
        return Err(format!("previousSeq below {}", row.seq));
    }
    let received_at = render_time(row.received_at);
    for (field, found, expected) in
        [("receivedAt", &shown.received_at, &*received_at), ("processedAt", &shown.processed_at, processed_at)]
    {
        if found != expected {
            return Err(format!("{field} \"{expected}\""));
        }
    }
    if !shown.is(&row.record) {
        return Err(format!("record {}", row.record.to_json()));
    }
    let (count, total, unit) = (row.previous_count, row.previous_total.to_string(), row.record.unit.as_str());
    if (summary.previous_count, &*summary.previous_total, &*summary.unit) != (count, &*total, unit) {
        return Err(format!("a summary of {count} previous records with a total of {total} {unit}"));
    }
    let expected = row.threshold.filter(|_| kind == OutcomeKind::Alert).map(|threshold| threshold.to_string());
    if threshold.as_deref() != expected.as_deref() {
        return Err(expected.map_or("no threshold".to_owned(), |expected| format!("threshold {expected}")));
    }
    if total_alert.as_ref() != alert {
        return Err(alert.map_or("no alert of a total".to_owned(), |alert| format!("{alert:?}")));
    }
    Ok(())
}

impl Shown<'_> {
    /// Whether this is the record: texts byte by byte, value and time as they are rendered, attributes as JSON.
    fn is(&self, record: &Record) -> bool {
        let attributes = match (self.attributes, &record.attributes) {
            (None, None) => true,
            (Some(found), Some(expected)) => {
                found.get() == expected.as_str()
                    || Attributes::stored(found.get().to_owned()).as_ref() == Some(expected)
            }
            _ => false,
        };
        attributes
            && self.record_id == record.record_id.as_str()
            && self.source_id == record.source_id.as_str()
            && self.destination_id == record.destination_id.as_str()
            && self.reference == record.reference.as_str()
            && self.unit == record.unit.as_str()
            && self.kind == record.kind.as_str()
            && self.reverses.as_deref() == record.reverses.as_ref().map(RecordId::as_str)
            && self.value == record.value.to_string()
            && self.time == render_time(record.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(shard: u16, seq: i64) -> ShardSeq {
        ShardSeq { shard: ShardId::new(shard), seq: Seq::new(seq) }
    }

    #[test]
    fn ids_are_read_in_one_spelling_only() {
        for (kind, id, expected) in [
            (OutcomeKind::Processed, "3-17", Some(place(3, 17))),
            (OutcomeKind::Alert, "3-17-alert", Some(place(3, 17))),
            (OutcomeKind::TotalAlert, "3-17-total-a-total-b", Some(place(3, 17))),
            (OutcomeKind::TotalAlert, "3-17-total", None),
            (OutcomeKind::DeadLettered, "0-d1", Some(place(0, 1))),
            (OutcomeKind::Conflicted, "0-c1", Some(place(0, 1))),
            (OutcomeKind::Processed, "3-17-alert", None),
            (OutcomeKind::Alert, "3-17", None),
            (OutcomeKind::Processed, "3-017", None),
            (OutcomeKind::Processed, "3-0", None),
            (OutcomeKind::Conflicted, "0-d1", None),
            (OutcomeKind::Processed, "", None),
        ] {
            assert_eq!(number(kind, id), expected, "{kind:?} {id}");
        }
    }

    fn row() -> LoggedRecord {
        let record =
            br#"{"recordId":"r","time":"2026-01-01T00:00:00Z","sourceId":"s","destinationId":"d","type":"positive",
            "value":"12.50","unit":"EUR","reference":"x","reverses":"o","attributes":{"a":1}}"#;
        let time = crate::domain::parse_time("2026-01-01T00:00:00Z").expect("time");
        LoggedRecord {
            seq: Seq::new(1),
            record: Record::parse(record).expect("record"),
            received_at: time,
            processed_at: time,
            previous_count: 2,
            previous_total: "7.25".parse().expect("decimal"),
            threshold: Some("10.00".parse().expect("decimal")),
            total_alerts: None,
            traceparent: None,
        }
    }

    #[test]
    fn every_changed_part_of_data_is_seen() {
        let good = r#"{"record":{"recordId":"r","time":"2026-01-01T00:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":"12.50","unit":"EUR","reference":"x","reverses":"o","attributes":{"a":1.0},"receivedAt":"2026-01-01T00:00:00Z","processedAt":"2026-01-01T00:00:00Z"},"summary":{"previousCount":2,"previousTotal":"7.25","unit":"EUR"},"threshold":"10.00"}"#;
        let row = row();
        let at = render_time(row.processed_at);
        let row_is = |data: &str| row_is(&row, OutcomeKind::Alert, None, &at, data);
        assert_eq!(row_is(good), Ok(()));
        for (part, other) in [
            (r#""12.50""#, r#""12.51""#),
            (r#""a":1.0"#, r#""a":2"#),
            (r#""sourceId":"s""#, r#""sourceId":"t""#),
            (r#""reverses":"o""#, r#""reverses":"p""#),
            (r#""reverses":"o","#, ""),
            (r#""receivedAt":"2026"#, r#""receivedAt":"2025"#),
            (r#""previousCount":2"#, r#""previousCount":3"#),
            (r#""7.25""#, r#""7.26""#),
            (r#""10.00""#, r#""11""#),
            (r#""processedAt":"2026"#, r#""processedAt":"2025"#),
            (r#""type":"positive""#, r#""type":"negative""#),
            (r#""time":"2026"#, r#""time":"2027"#),
            (r#""unit":"EUR""#, r#""unit":"USD""#),
            (r#""unit":"EUR"},"threshold""#, r#""unit":"USD"},"threshold""#),
            (r#","threshold":"10.00""#, ""),
            (r#"{"record":{"#, r#"{"record":{"more":1,"#),
            ("{\"record\"", "{\"recor\""),
        ] {
            let bad = good.replacen(part, other, 1);
            assert_ne!(bad, good, "{part}");
            assert!(row_is(&bad).is_err(), "{part}");
        }
    }
}
