//! Expected content of an entry of a sink's stream, from the row alone and not by the code that published it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    domain::{OutcomeKind, Record, Seq, ShardId, ShardSeq, render_time},
    store::{Differences, LoggedRecord, Verification},
    streams::SinkEntry,
};

/// The shard and number in an entry's id.
pub(super) fn number(kind: OutcomeKind, id: &str) -> Option<ShardSeq> {
    let (shard, rest) = id.split_once('-')?;
    let number = match kind {
        OutcomeKind::Processed => rest,
        OutcomeKind::Alert => rest.strip_suffix("-alert")?,
        OutcomeKind::DeadLettered => rest.strip_prefix('d')?,
        OutcomeKind::Conflicted => rest.strip_prefix('c')?,
    };
    let place = ShardSeq { shard: ShardId::new(shard.parse().ok()?), seq: Seq::new(number.parse().ok()?) };
    (place.seq > Seq::ZERO && render_id(kind, place) == id).then_some(place)
}

fn render_id(kind: OutcomeKind, ShardSeq { shard, seq }: ShardSeq) -> String {
    match kind {
        OutcomeKind::Processed => format!("{shard}-{seq}"),
        OutcomeKind::Alert => format!("{shard}-{seq}-alert"),
        OutcomeKind::DeadLettered => format!("{shard}-d{seq}"),
        OutcomeKind::Conflicted => format!("{shard}-c{seq}"),
    }
}

/// An entry with the number in its id.
pub(super) struct NumberedEntry {
    pub(super) seq: Seq,
    pub(super) entry: SinkEntry,
}

/// Rows of the log, by number.
pub(super) struct Expected(BTreeMap<Seq, Row>);

/// The row behind an entry.
pub(super) enum Row {
    Record(Box<LoggedRecord>),
    Refused { at: DateTime<Utc>, traceparent: Option<String> },
}

/// The JSON in `data` of a processed record or an alert.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    #[serde(borrow)]
    record: BTreeMap<String, &'a RawValue>,
    summary: Summary,
    threshold: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    previous_count: i64,
    previous_total: String,
    unit: String,
}

impl Expected {
    /// Reads what is behind entries of one shard.
    pub(super) async fn read(
        snapshot: &mut Verification,
        kind: OutcomeKind,
        shard: ShardId,
        entries: &[NumberedEntry],
    ) -> anyhow::Result<Self> {
        let numbers: Vec<Seq> = entries.iter().map(|numbered| numbered.seq).collect();
        let rows = match kind {
            OutcomeKind::Processed | OutcomeKind::Alert => {
                let rows = snapshot.logged_records(shard, &numbers).await?.into_iter();
                rows.filter(|row| kind == OutcomeKind::Processed || row.threshold.is_some())
                    .map(|row| (row.seq, Row::Record(Box::new(row))))
                    .collect()
            }
            OutcomeKind::DeadLettered | OutcomeKind::Conflicted => {
                let rows = snapshot.refused(kind, shard, &numbers).await?.into_iter();
                rows.map(|row| (row.seq, Row::Refused { at: row.noted_at, traceparent: row.traceparent })).collect()
            }
        };
        Ok(Self(rows))
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Row> {
        self.0.get(&seq)
    }
}

impl Row {
    /// Compares an entry's fields with this row.
    pub(super) fn compare(
        &self,
        kind: OutcomeKind,
        source: &str,
        entry: &SinkEntry,
        place: &str,
        differences: &mut Differences,
    ) {
        let (what, at, traceparent) = match self {
            Self::Record(row) => {
                (if kind == OutcomeKind::Alert { "alert" } else { "processed" }, row.processed_at, &row.traceparent)
            }
            Self::Refused { at, traceparent } if kind == OutcomeKind::DeadLettered => {
                ("dead_lettered", *at, traceparent)
            }
            Self::Refused { at, traceparent } => ("conflicted", *at, traceparent),
        };
        let found = |field: &str| entry.fields.get(field).cloned().unwrap_or_default();
        let expected = [
            ("source", source.to_owned()),
            ("type", format!("record.{what}")),
            ("time", render_time(at)),
            ("version", "1".to_owned()),
            ("traceparent", traceparent.clone().unwrap_or_default()),
        ];
        for (field, expected) in expected {
            if found(field) != expected {
                differences.add("entry", format!("{place}, {field}"), expected, found(field));
            }
        }
        if let Self::Record(row) = self
            && let Err(why) = row_is(row, &found("data"))
        {
            differences.add("entry", format!("{place}, data"), why, found("data"));
        }
    }
}

/// Whether `data` tells of this row; else what it should say.
fn row_is(row: &LoggedRecord, data: &str) -> Result<(), String> {
    let Data { mut record, summary, threshold } =
        serde_json::from_str(data).map_err(|error| format!("data of the documented form ({error})"))?;
    for (field, time) in [("receivedAt", row.received_at), ("processedAt", row.processed_at)] {
        let expected = format!("\"{}\"", render_time(time));
        if record.remove(field).is_none_or(|raw| raw.get() != expected) {
            return Err(format!("{field} {expected}"));
        }
    }
    let rest = serde_json::to_string(&record).map_err(|error| error.to_string())?;
    if Record::parse(rest.as_bytes()).as_ref() != Ok(&row.record) {
        return Err(format!("record {}", row.record.to_json()));
    }
    let (count, total, unit) = (row.previous_count, row.previous_total.to_string(), row.record.unit.as_str());
    if (summary.previous_count, summary.previous_total.as_str(), summary.unit.as_str()) != (count, &total, unit) {
        return Err(format!("a summary of {count} previous records with a total of {total} {unit}"));
    }
    match (threshold, row.threshold) {
        (Some(found), Some(expected)) if found != expected.to_string() => Err(format!("threshold {expected}")),
        _ => Ok(()),
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
            "value":"12.50","unit":"EUR","reference":"x","attributes":{"a":1}}"#;
        let time = crate::domain::parse_time("2026-01-01T00:00:00Z").expect("time");
        LoggedRecord {
            seq: Seq::new(1),
            record: Record::parse(record).expect("record"),
            received_at: time,
            processed_at: time,
            previous_count: 2,
            previous_total: "7.25".parse().expect("decimal"),
            threshold: Some("10.00".parse().expect("decimal")),
            traceparent: None,
        }
    }

    #[test]
    fn every_changed_part_of_data_is_seen() {
        let good = r#"{"record":{"recordId":"r","time":"2026-01-01T00:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":"12.50","unit":"EUR","reference":"x","attributes":{"a":1.0},"receivedAt":"2026-01-01T00:00:00Z","processedAt":"2026-01-01T00:00:00Z"},"summary":{"previousCount":2,"previousTotal":"7.25","unit":"EUR"},"threshold":"10.00"}"#;
        assert_eq!(row_is(&row(), good), Ok(()));
        for (part, other) in [
            (r#""12.50""#, r#""12.51""#),
            (r#""a":1.0"#, r#""a":2"#),
            (r#""sourceId":"s""#, r#""sourceId":"t""#),
            (r#""receivedAt":"2026"#, r#""receivedAt":"2025"#),
            (r#""previousCount":2"#, r#""previousCount":3"#),
            (r#""7.25""#, r#""7.26""#),
            (r#""10.00""#, r#""11""#),
            ("{\"record\"", "{\"recor\""),
        ] {
            let bad = good.replacen(part, other, 1);
            assert_ne!(bad, good, "{part}");
            assert!(row_is(&row(), &bad).is_err(), "{part}");
        }
    }
}
