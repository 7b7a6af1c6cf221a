//! `GET /records/aggregations`: totals per destination and unit, with all their records, from one snapshot.
//!
//! One statement reads both in the order of the response. Memory holds one row.

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use poem::http::HeaderMap;
use poem_openapi::{Object, param::Query, types::Example};
use serde::Serialize;

use super::{
    Tags,
    answer::Streamed,
    format::{Format, csv_line},
    record_filter::filtered_operation,
    record_text::{self, LineBreaks},
    stream::{Cut, Out, Slots, body, head},
    types::{Time, Word},
    views::{RecordType, RecordView},
};
use crate::{
    domain::{DestinationId, render_time},
    http::{App, auth::Reader, problem::Failure},
    store::{AggregatedRecord, AggregationRow, RecordFilter, ReversedRecords, Snapshot, UnitTotal},
};

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
    /// Records with an earlier `time` can be missing: they are no longer kept. Absent where none is. Also the header
    /// `Millrace-Complete-Since` of every format.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_since: Option<Time>,
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
        Self { as_of: Time::example(), complete_since: None, groups: vec![group] }
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
    /// Streams a response of any size from one snapshot (`asOf`), in one pass over the matching records. With
    /// `records=false`, and no filter but destinationId, reference, type and unit, it reads the stored totals instead; with
    /// further filters a declared rollup, where one fits. Both also count records that are no longer kept. `Accept` selects JSON, NDJSON (`{"group":…}` and
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
        /// `exclude`: without records that are wholly reversed, and without their reversals. Records that are reversed in part
        /// stay, with their reversals. The sums are the same, unless a filter selects only some of them.
        reversed: Query<Option<ReversedRecords>>,
    ]) -> Streamed<Aggregations> {
        let format = Format::of(headers)?;
        let slot = self.slots.take()?;
        let mut snapshot = app.store.snapshot().await?;
        let with_records = records.0;
        let reversed = reversed.0.unwrap_or_default();
        let since = match with_records {
            true => snapshot.complete_since(&filter, None).await?,
            false => snapshot.totals_complete_since(&filter, reversed).await?,
        };
        let body = body(slot, move |out| {
            let writer = AggregationWriter { out, format, with_records, since, group: None, groups: 0, records: 0 };
            aggregate(snapshot, filter, reversed, writer)
        });
        Ok(Streamed::new(format, body).complete_since(since))
    }
}

fn default_true() -> bool {
    true
}

async fn aggregate(
    mut snapshot: Snapshot,
    filter: RecordFilter,
    reversed: ReversedRecords,
    mut writer: AggregationWriter,
) -> Result<Out, Cut> {
    let as_of = render_time(snapshot.as_of);
    writer.begin(&as_of);
    if writer.with_records {
        let mut rows = snapshot.aggregation(&filter, reversed)?;
        while let Some(row) = rows.try_next().await? {
            match row {
                AggregationRow::Total(total) => writer.total(&total)?,
                AggregationRow::Record(record) => writer.record(&record)?,
            }
            writer.out.pass().await?;
        }
    } else {
        let mut totals = snapshot.totals(&filter, reversed).await?;
        while let Some(total) = totals.try_next().await? {
            writer.total(&total)?;
            writer.out.pass().await?;
        }
    }
    writer.end(&as_of)?;
    snapshot.finish().await?;
    Ok(writer.out)
}

struct AggregationWriter {
    out: Out,
    format: Format,
    with_records: bool,
    /// The time from which it is complete.
    since: Option<DateTime<Utc>>,
    /// The open group.
    group: Option<Group>,
    groups: u64,
    records: i64,
}

/// A group whose totals, and then records, are being written.
struct Group {
    destination_id: DestinationId,
    /// Number of its records by its totals so far.
    count: i64,
    /// Number of its records that were written.
    written: i64,
}

impl AggregationWriter {
    fn begin(&mut self, as_of: &str) {
        match self.format {
            Format::Json => self.out.text(&format!("{{{},\"groups\":[", head(as_of, self.since))),
            Format::Ndjson => {}
            Format::Csv if self.with_records => csv_line(&mut self.out.buffer, record_text::COLUMNS),
            Format::Csv => csv_line(&mut self.out.buffer, ["destinationId", "unit", "count", "total"]),
        }
    }

    /// Writes a total; the first one of a destination begins its group.
    fn total(&mut self, total: &UnitTotal) -> Result<(), Cut> {
        let UnitTotal { destination_id, unit, count, total } = total;
        self.records += count;
        if self.format == Format::Csv && !self.with_records {
            csv_line(&mut self.out.buffer, [destination_id.as_str(), unit.as_str(), &count.to_string(), total]);
        }
        let next = match &mut self.group {
            Some(group) if group.destination_id == *destination_id => {
                group.count += count;
                ","
            }
            _ => {
                self.end_group()?;
                self.begin_group(destination_id, *count)?;
                "["
            }
        };
        if self.format == Format::Csv {
            return Ok(());
        }
        self.out.text(next);
        self.out.json(&Total { unit: unit.to_string(), count: *count, total: total.clone() })
    }

    fn begin_group(&mut self, destination_id: &DestinationId, count: i64) -> Result<(), Cut> {
        let begin = match self.format {
            Format::Json if self.groups > 0 => ",{\"destinationId\":",
            Format::Json => "{\"destinationId\":",
            Format::Ndjson => "{\"group\":{\"destinationId\":",
            Format::Csv => "",
        };
        self.groups += 1;
        self.group = Some(Group { destination_id: destination_id.clone(), count, written: 0 });
        if self.format != Format::Csv {
            self.out.text(begin);
            self.out.json(destination_id)?;
            self.out.text(",\"totals\":");
        }
        Ok(())
    }

    /// Ends the totals of the open group.
    fn end_totals(&mut self, count: i64) {
        match self.format {
            Format::Json if self.with_records => self.out.text(&format!("],\"count\":{count},\"records\":[")),
            Format::Json => self.out.text(&format!("],\"count\":{count}")),
            Format::Ndjson => self.out.text(&format!("],\"count\":{count}}}}}\n")),
            Format::Csv => {}
        }
    }

    /// Writes a record of the open group. Fails for one of another destination.
    fn record(&mut self, record: &AggregatedRecord) -> Result<(), Cut> {
        let (count, written) = match &mut self.group {
            Some(group) if group.destination_id == record.destination_id => {
                group.written += 1;
                (group.count, group.written)
            }
            _ => return Err(Cut::Inconsistent(0, 1)),
        };
        if written == 1 {
            self.end_totals(count);
        }
        let out = &mut self.out;
        match self.format {
            Format::Json => {
                out.text(if written > 1 { "," } else { "" });
                record_text::json(&mut out.buffer, record, LineBreaks::Kept);
            }
            Format::Ndjson => {
                out.text("{\"record\":");
                record_text::json(&mut out.buffer, record, LineBreaks::Spaces);
                out.text("}\n");
            }
            Format::Csv => record_text::csv(&mut out.buffer, record),
        }
        Ok(())
    }

    /// Ends the open group. Fails unless it has as many records as its totals count.
    fn end_group(&mut self) -> Result<(), Cut> {
        let Some(group) = self.group.take() else { return Ok(()) };
        if self.with_records && group.written != group.count {
            return Err(Cut::Inconsistent(group.count, group.written));
        }
        if !self.with_records {
            self.end_totals(group.count);
        }
        if self.format == Format::Json {
            self.out.text(if self.with_records { "]}" } else { "}" });
        }
        Ok(())
    }

    fn end(&mut self, as_of: &str) -> Result<(), Cut> {
        self.end_group()?;
        match self.format {
            Format::Json => self.out.text("]}"),
            Format::Ndjson => {
                let (groups, records, head) = (self.groups, self.records, head(as_of, self.since));
                self.out.text(&format!("{{\"end\":{{\"groups\":{groups},\"records\":{records},{head}}}}}\n"));
            }
            Format::Csv => {}
        }
        Ok(())
    }
}
