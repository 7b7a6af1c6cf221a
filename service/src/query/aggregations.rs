//! `GET /records/aggregations`: totals per destination and unit, with all their records, from one snapshot.
//!
//! Two readers page through the snapshot side by side: totals by (destination, unit), records by (destination, seq).
//! Memory holds one page of each.

use std::collections::VecDeque;

use poem::http::HeaderMap;
use poem_openapi::{Object, param::Query, types::Example};
use serde::Serialize;
use serde_json::json;

use super::{
    Tags,
    answer::Streamed,
    format::{Format, csv_line},
    record_filter::filtered_operation,
    stream::{Cut, Out, Slots, body},
    types::{Time, Word},
    views::{RecordType, RecordView},
};
use crate::{
    domain::{DestinationId, DestinationUnit, Seq, Unit, render_time},
    http::{App, auth::Reader, problem::Failure},
    store::{DestinationSeq, RecordFilter, Snapshot, StoredRecord, UnitTotal},
};

/// Rows of a page.
const PAGE: i64 = 1_000;

/// Count and total of records in one unit.
#[derive(Debug, Clone, Object, Serialize)]
pub(super) struct Total {
    /// The unit.
    pub unit: String,
    /// Number of records.
    pub count: i64,
    /// Their signed sum, exact.
    pub total: String,
}

/// The records of one destination, with their totals.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct AggregationGroup {
    /// The destination.
    pub destination_id: String,
    /// Totals per unit, ordered by unit.
    pub totals: Vec<Total>,
    /// Number of matching records.
    pub count: i64,
    /// All matching records, in the order of processing; absent with `records=false`.
    pub records: Option<Vec<RecordView>>,
}

/// Totals per destination, with their records.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", example)]
#[serde(rename_all = "camelCase")]
pub(super) struct Aggregations {
    /// When the snapshot was taken from which the whole response is read.
    pub as_of: Time,
    /// One group per destination, ordered by destinationId.
    pub groups: Vec<AggregationGroup>,
}

impl Example for Aggregations {
    fn example() -> Self {
        let record = RecordView::example();
        let total = Total { unit: record.unit.clone(), count: 1, total: record.value.clone() };
        let group = AggregationGroup {
            destination_id: record.destination_id.clone(),
            totals: vec![total],
            count: 1,
            records: Some(vec![record]),
        };
        Self { as_of: Time::example(), groups: vec![group] }
    }
}

/// Sums over records.
#[derive(Debug, Clone, Default)]
pub struct AggregationsApi {
    pub(super) slots: Slots,
}

filtered_operation! {
    "Tags::Sums" AggregationsApi;
    /// Totals and records per destination
    ///
    /// Streams a response of any size from one snapshot (`asOf`). `Accept` selects JSON, NDJSON (`{"group":…}` and
    /// `{"record":…}` lines, then `{"end":…}`; line breaks between the values of `attributes` become spaces) or CSV
    /// (one row per record; with `records=false` one row per group and unit). On a failure the server closes the
    /// connection without the final chunk, so that a part never looks complete.
    ///
    /// For a day in a local time zone, send its two midnights with their offsets. They differ when the clocks change.
    /// The day of 2026-03-29 in Berlin: `startTime=2026-03-29T00:00:00%2B01:00&endTime=2026-03-30T00:00:00%2B02:00`.
    #[oai(path = "/records/aggregations", method = "get", operation_id = "aggregateRecords")]
    async fn aggregations(self, app, filter; [
        headers: &HeaderMap,
        /// `false`: only totals.
        #[oai(default = "default_true")]
        records: Query<bool>,
    ] [
    ]) -> Streamed<Aggregations> {
        let format = Format::of(headers)?;
        let slot = self.slots.take()?;
        let snapshot = app.store.snapshot().await?;
        let with_records = records.0;
        let body = body(slot, move |out| {
            let writer = AggregationWriter { out, format, with_records, first_total: true, groups: 0, records: 0 };
            aggregate(snapshot, filter, writer)
        });
        Ok(Streamed::new(format, body))
    }
}

fn default_true() -> bool {
    true
}

async fn aggregate(mut snapshot: Snapshot, filter: RecordFilter, mut writer: AggregationWriter) -> Result<Out, Cut> {
    let as_of = render_time(snapshot.as_of);
    writer.begin(&as_of);
    let mut records = Records::new(writer.with_records);
    let mut after = DestinationUnit { destination_id: DestinationId::stored(""), unit: Unit::stored("") };
    let mut group: Option<(DestinationId, i64)> = None;
    loop {
        let page = snapshot.totals(&filter, &after, PAGE).await?;
        let last = page.len() < PAGE as usize;
        if let Some(end) = page.last() {
            after = DestinationUnit { destination_id: end.destination_id.clone(), unit: end.unit.clone() };
        }
        for total in page {
            match &mut group {
                Some((destination, count)) if *destination == total.destination_id => *count += total.count,
                _ => {
                    if let Some((destination, count)) = group.take() {
                        writer.group(&mut snapshot, &filter, &mut records, &destination, count).await?;
                    }
                    writer.begin_group(&total)?;
                    group = Some((total.destination_id.clone(), total.count));
                }
            }
            writer.total(&total)?;
            writer.out.pass().await?;
        }
        if last {
            break;
        }
    }
    if let Some((destination, count)) = group {
        writer.group(&mut snapshot, &filter, &mut records, &destination, count).await?;
    }
    writer.end(&as_of)?;
    snapshot.finish().await?;
    Ok(writer.out)
}

/// Reads the matching records, page by page, in the order of the groups.
struct Records {
    page: VecDeque<StoredRecord>,
    after: DestinationSeq,
    ended: bool,
}

impl Records {
    fn new(wanted: bool) -> Self {
        let after = DestinationSeq { destination_id: DestinationId::stored(""), seq: Seq::ZERO };
        Self { page: VecDeque::new(), after, ended: !wanted }
    }

    /// Takes the next record if it belongs to the destination.
    async fn next_of(
        &mut self,
        snapshot: &mut Snapshot,
        filter: &RecordFilter,
        destination: &DestinationId,
    ) -> Result<Option<StoredRecord>, Cut> {
        if self.page.is_empty() && !self.ended {
            let page = snapshot.records(filter, &self.after, PAGE).await?;
            self.ended = page.len() < PAGE as usize;
            if let Some(last) = page.last() {
                self.after = DestinationSeq { destination_id: last.destination_id.clone(), seq: last.seq };
            }
            self.page = page.into();
        }
        Ok(self.page.pop_front_if(|record| record.destination_id == *destination))
    }
}

struct AggregationWriter {
    out: Out,
    format: Format,
    with_records: bool,
    first_total: bool,
    groups: u64,
    records: i64,
}

impl AggregationWriter {
    fn begin(&mut self, as_of: &str) {
        match self.format {
            Format::Json => self.out.text(&format!("{{\"asOf\":\"{as_of}\",\"groups\":[")),
            Format::Ndjson => {}
            Format::Csv if self.with_records => csv_line(&mut self.out.buffer, RECORD_COLUMNS),
            Format::Csv => csv_line(&mut self.out.buffer, ["destinationId", "unit", "count", "total"]),
        }
    }

    fn begin_group(&mut self, first: &UnitTotal) -> Result<(), Cut> {
        match self.format {
            Format::Json if self.groups > 0 => self.out.text(",{\"destinationId\":"),
            Format::Json => self.out.text("{\"destinationId\":"),
            Format::Ndjson => self.out.text("{\"group\":{\"destinationId\":"),
            Format::Csv => {}
        }
        if self.format != Format::Csv {
            self.out.json(&first.destination_id)?;
            self.out.text(",\"totals\":");
        }
        self.first_total = true;
        self.groups += 1;
        Ok(())
    }

    fn total(&mut self, total: &UnitTotal) -> Result<(), Cut> {
        let UnitTotal { destination_id, unit, count, total } = total;
        if self.format == Format::Csv {
            if !self.with_records {
                csv_line(&mut self.out.buffer, [destination_id.as_str(), unit.as_str(), &count.to_string(), total]);
            }
            return Ok(());
        }
        self.out.text(if std::mem::take(&mut self.first_total) { "[" } else { "," });
        self.out.json(&Total { unit: unit.to_string(), count: *count, total: total.clone() })
    }

    /// Ends the totals of a group and writes its records. Fails unless there are `count` of them.
    async fn group(
        &mut self,
        snapshot: &mut Snapshot,
        filter: &RecordFilter,
        records: &mut Records,
        destination: &DestinationId,
        count: i64,
    ) -> Result<(), Cut> {
        match self.format {
            Format::Json if self.with_records => self.out.text(&format!("],\"count\":{count},\"records\":[")),
            Format::Json => self.out.text(&format!("],\"count\":{count}}}")),
            Format::Ndjson => self.out.text(&format!("],\"count\":{count}}}}}\n")),
            Format::Csv => {}
        }
        self.records += count;
        if !self.with_records {
            return self.out.pass().await;
        }
        let mut read = 0;
        while let Some(record) = records.next_of(snapshot, filter, destination).await? {
            if read > 0 && self.format == Format::Json {
                self.out.text(",");
            }
            self.record(record.into())?;
            read += 1;
            self.out.pass().await?;
        }
        if read != count {
            return Err(Cut::Inconsistent(count, read));
        }
        if self.format == Format::Json {
            self.out.text("]}");
        }
        Ok(())
    }

    fn record(&mut self, record: RecordView) -> Result<(), Cut> {
        match self.format {
            Format::Json => self.out.json(&record)?,
            Format::Ndjson => self.out.line("{\"record\":", &record, "}")?,
            Format::Csv => {
                let at = |time: Option<Time>| time.map(|time| render_time(time.0)).unwrap_or_default();
                let fields = [
                    record.record_id.as_str(),
                    &render_time(record.time.0),
                    &record.source_id,
                    &record.destination_id,
                    record.r#type.as_str(),
                    &record.value,
                    &record.unit,
                    &record.reference,
                    record.attributes.as_ref().map(|raw| raw.0.get()).unwrap_or_default(),
                    &at(record.received_at),
                    &at(record.processed_at),
                ];
                csv_line(&mut self.out.buffer, fields);
            }
        }
        Ok(())
    }

    fn end(&mut self, as_of: &str) -> Result<(), Cut> {
        match self.format {
            Format::Json => self.out.text("]}"),
            Format::Ndjson => {
                let end = json!({"end": {"groups": self.groups, "records": self.records, "asOf": as_of}});
                self.out.line("", &end, "")?;
            }
            Format::Csv => {}
        }
        Ok(())
    }
}

const RECORD_COLUMNS: [&str; 11] = [
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
];
