//! Content of a sink's entries. One rendering for rows from memory and from the log; `verify` has its own, to compare.

use std::{borrow::Cow, fmt::Write as _, sync::Arc};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    domain::{OutcomeKind, RecordId, Seq, ShardId, TotalAlert, is_deep, notification_id, render_time},
    store::{LogRow, RefusedRow},
    streams::Notice,
};

/// The `type` field of a sink's entries.
#[must_use]
pub fn event_type(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Processed => "record.processed",
        OutcomeKind::Alert => "record.alert",
        OutcomeKind::TotalAlert => "record.total_alert",
        OutcomeKind::DeadLettered => "record.dead_lettered",
        OutcomeKind::Conflicted => "record.conflicted",
    }
}

/// A processed record's notification, or its alert.
#[must_use]
pub fn record(shard: ShardId, row: &LogRow, alert: bool) -> Notice {
    let kind = if alert { OutcomeKind::Alert } else { OutcomeKind::Processed };
    let threshold = row.threshold.filter(|_| alert).map(|threshold| format!(r#","threshold":"{threshold}""#));
    notice(row, notification_id(kind, shard, row.seq), &threshold.unwrap_or_default())
}

/// The alert of a total that a processed record changed.
#[must_use]
pub fn total_alert(shard: ShardId, row: &LogRow, alert: &TotalAlert) -> Notice {
    let id = format!("{}-{}", notification_id(OutcomeKind::TotalAlert, shard, row.seq), alert.name);
    // A list of texts and numbers is JSON.
    let alert = serde_json::to_string(alert).unwrap_or_default();
    notice(row, id, &format!(r#","totalAlert":{alert}"#))
}

fn notice(row: &LogRow, id: String, more: &str) -> Notice {
    let time = render_time(row.processed_at);
    Notice {
        seq: row.seq,
        id,
        data: record_data(row, &time, more),
        received_at: Some(row.received_at),
        time,
        traceparent: row.traceparent.clone(),
    }
}

/// The record with `receivedAt` and `processedAt`, the summary, and `more` fields. The bytes of the record are those of the
/// entry where they are known: each path gives the same.
fn record_data(row: &LogRow, processed_at: &str, more: &str) -> String {
    let record = match row.json.as_deref().and_then(|json| std::str::from_utf8(json).ok()) {
        Some(json) => Cow::Borrowed(json),
        None => Cow::Owned(row.record.to_json()),
    };
    let fields = record.strip_suffix('}').unwrap_or(&record);
    let received_at = render_time(row.received_at);
    let unit = serde_json::to_string(row.record.unit.as_str()).unwrap_or_default();
    let (count, total) = (row.previous.count, row.previous.total);
    // None of these texts but the unit has a character that JSON escapes.
    let mut data = String::with_capacity(fields.len() + more.len() + 200);
    let _ = write!(
        data,
        r#"{{"record":{fields},"receivedAt":"{received_at}","processedAt":"{processed_at}"}},"summary":{{"previousCount":{count},"previousTotal":"{total}","unit":{unit}}}{more}}}"#
    );
    data
}

/// The data of a sink with a filter: with the number of the outcome of its destination before it, or null.
#[must_use]
pub fn with_previous(data: &str, previous: Option<Seq>) -> String {
    let fields = data.strip_suffix('}').unwrap_or(data);
    format!(r#"{fields},"previousSeq":{}}}"#, number(previous))
}

/// A number in JSON, or null.
#[must_use]
pub fn number(seq: Option<Seq>) -> String {
    seq.map_or_else(|| "null".to_owned(), |seq| seq.to_string())
}

/// A dead letter's or a conflict's notification.
#[must_use]
pub fn refused(shard: ShardId, row: &RefusedRow, kind: OutcomeKind) -> Notice {
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
        id: notification_id(kind, shard, row.seq),
        received_at: None,
        time: render_time(row.noted_at),
        traceparent: row.traceparent.as_deref().map(Arc::from),
        data: serde_json::to_string(&data).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use millrace_crds::Partition;
    use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

    use super::*;
    use crate::{
        domain::{self, InputRecord, Item, NewRecord, Parsed, Policy, Record, Seq, SeqRange, StreamId, StreamPosition},
        store::{DecidedPart, Page, Part, Store, testing::TestPipeline},
    };

    fn received() -> impl Strategy<Value = (Record, i64, Option<Arc<str>>)> {
        let text = || "[^\\s\\p{C}\\p{Z}]{1,12}";
        let digits = (prop::bool::ANY, 0..1_000_000_u64, 0..10_u32);
        let attributes = prop::option::of(prop_oneof![
            Just("{}".to_owned()),
            Just(r#"{ "b" : 1.0e2,"a":"\u00e9 \" x" , "n":null }"#.to_owned()),
            text().prop_map(|text| serde_json::json!({ text: [1, true] }).to_string()),
        ]);
        let micros = -62_000_000_000_000_000..200_000_000_000_000_000_i64;
        let trace = prop::option::of(Just(Arc::from("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")));
        (text(), text(), text(), text(), digits, micros, attributes, 0..2_000_000_000_000_000_i64, trace).prop_filter_map(
            "a record",
            |(id, source, reference, unit, (positive, value, scale), micros, attributes, received, trace)| {
                let time = chrono::DateTime::from_timestamp_micros(micros)?.to_rfc3339();
                let value = rust_decimal::Decimal::new(i64::try_from(value).ok()?, scale.min(9));
                let mut json = serde_json::json!({
                    "recordId": id, "time": time, "sourceId": source, "destinationId": format!("d{source}"), "unit": unit,
                    "type": if positive { "positive" } else { "negative" }, "value": value.to_string(),
                    "reference": reference,
                })
                .to_string();
                if let Some(attributes) = attributes {
                    json.truncate(json.len() - 1);
                    json = format!(r#"{json},"attributes":{attributes}}}"#);
                }
                Some((Record::parse(json.as_bytes()).ok()?, received, trace))
            },
        )
    }

    /// Numbers of the records, read in pages that rows or bytes end.
    async fn in_pages(store: &Store, shard: ShardId, all: SeqRange) -> Vec<Seq> {
        let page = Page { rows: 5, bytes: 100 };
        let (mut read, mut after, mut cut_by_bytes) = (Vec::new(), all.after, false);
        while after < all.upto {
            let part = store.log_rows(shard, SeqRange { after, ..all }, OutcomeKind::Processed, page).await.unwrap();
            let bytes = |row: &LogRow| row.record.attributes.as_ref().map_or(0, |attributes| attributes.as_str().len());
            let before_last = part.rows.iter().rev().skip(1).map(bytes).sum::<usize>();
            assert!(part.upto > after && part.rows.len() <= page.rows && before_last < page.bytes);
            cut_by_bytes |= part.rows.len() < page.rows && part.upto < all.upto;
            after = part.upto;
            read.extend(part.rows.iter().map(|row| row.seq));
        }
        assert!(cut_by_bytes, "pages of fewer rows");
        read
    }

    /// Gives none, one and two of them to every three records.
    fn give_total_alerts(records: &mut [NewRecord]) {
        let alert = r#"{"name":"a","per":"Key","rollup":"r","windowStart":"2026-01-31T00:00:00Z","below":"0.0","every":"1","steps":7,"previousTotal":"1.50","total":"-7.00"}"#;
        let alert: TotalAlert = serde_json::from_str(alert).unwrap();
        for (n, new) in records.iter_mut().enumerate() {
            new.total_alerts = vec![alert.clone(); n % 3];
        }
    }

    fn render_the_same_total_alerts(shard: ShardId, decided: &LogRow, stored: &LogRow) {
        assert_eq!(decided.total_alerts.len(), stored.total_alerts.len());
        for (one, other) in decided.total_alerts.iter().zip(&stored.total_alerts) {
            let (one, other) = (total_alert(shard, decided, one), total_alert(shard, stored, other));
            assert_eq!(one, other);
            assert!(one.id.ends_with("-total-a"), "{}", one.id);
            let data: serde_json::Value = serde_json::from_str(&one.data).unwrap();
            assert_eq!(data["totalAlert"]["windowStart"], "2026-01-31T00:00:00Z");
        }
    }

    #[tokio::test]
    async fn rows_of_the_log_and_of_entries_render_the_same_bytes() {
        let pipeline = TestPipeline::new("shards: 1").await;
        let (store, shard) = (&pipeline.store, ShardId::new(0));
        let lease = store.take("one", shard, "token", 60_000).await.unwrap().unwrap();
        let records = prop::collection::vec(received(), 600..700);
        let records = records.new_tree(&mut TestRunner::deterministic()).unwrap().current();
        let batch: Vec<Item> = (0_u64..)
            .zip(records)
            .map(|(ms, (record, received, traceparent))| Item {
                input: InputRecord {
                    position: StreamPosition { entry: StreamId { ms, n: 0 }, index: 0 },
                    offsets: None,
                    payload: record.to_json().into(),
                    received_at: chrono::DateTime::from_timestamp_micros(received).unwrap(),
                    traceparent,
                    replay_of: None,
                    is_canonical: true,
                    corrupted: false,
                },
                record: Parsed::read(record.to_json().as_bytes()),
                isolated: None,
            })
            .collect();
        let policy = Policy::default();
        let left = store.progress_of(shard).await.unwrap();
        let mut commit = store.begin_group(&[shard], 1, true).await.unwrap();
        assert!(matches!(commit.compare(shard, &lease, &left, 1), Ok(())));
        commit.set_period(Partition::Month);
        let part = Part { shard, batch: &batch };
        let mut known = commit.known(&[part], &policy).await.unwrap();
        let (position, now) = (commit.shard(shard).position, commit.now);
        let of_shard = known.shards.remove(&shard).unwrap();
        let mut decision = domain::decide(&batch, of_shard, &mut known.ids, &policy, position);
        give_total_alerts(&mut decision.records);
        commit.write(&[DecidedPart { part, decision: &decision }], &known.ids, &policy).await.unwrap();
        commit.finish(1, 10_000).await.unwrap();
        let all = SeqRange { after: Seq::ZERO, upto: Seq::new(1000) };
        let page = Page { rows: 1000, bytes: usize::MAX >> 1 };
        let stored = store.log_rows(shard, all, OutcomeKind::Processed, page).await.unwrap().rows;
        assert!(stored.len() > 500 && stored.len() == decision.records.len(), "{} records", stored.len());
        assert_eq!(in_pages(store, shard, all).await, stored.iter().map(|row| row.seq).collect::<Vec<_>>());
        for (stored, new) in stored.into_iter().zip(decision.records) {
            let input = &batch[new.item].input;
            let row = LogRow {
                seq: new.seq,
                record: new.record,
                received_at: input.received_at,
                processed_at: now,
                previous: new.previous,
                threshold: Some(rust_decimal::Decimal::ONE),
                total_alerts: new.total_alerts,
                traceparent: input.traceparent.clone(),
                json: Some(input.payload.clone()),
            };
            for alert in [false, true] {
                let stored = LogRow { threshold: row.threshold, ..LogRow::clone(&stored) };
                let (one, other) = (record(shard, &row, alert), record(shard, &stored, alert));
                assert_eq!(one, other);
                let data: serde_json::Value = serde_json::from_str(&one.data).unwrap();
                assert_eq!(data["record"]["recordId"], row.record.record_id.as_str());
                assert_eq!(data["summary"]["unit"], row.record.unit.as_str());
                assert_eq!(data.get("threshold").is_some(), alert);
            }
            render_the_same_total_alerts(shard, &row, &stored);
        }
    }
}
