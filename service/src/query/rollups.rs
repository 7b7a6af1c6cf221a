//! `GET /records/rollups`: totals per time window and group, streamed from one sorted pass over one snapshot.

use std::{fmt::Write as _, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use poem::http::HeaderMap;
use poem_openapi::{Enum, Object, param::Query, types::Example};
use serde::Serialize;

use super::{
    Tags,
    aggregations::Total,
    answer::{Streamed, invalid_parameter},
    format::{Format, csv_line},
    record_filter::filtered_operation,
    stream::{Cut, Out, Slots, body, head},
    types::{Time, Word},
    views::RecordType,
};
use crate::{
    domain::{DestinationId, Reference, SourceId, Unit, Zone, render_time},
    http::{App, auth::Reader, problem::Failure},
    store::{RecordFilter, RollupBy, RollupPart, Snapshot},
};

/// The length of a window.
#[derive(Debug, Clone, Copy, Enum)]
pub(super) enum Window {
    /// A minute.
    #[oai(rename = "1m")]
    Minute,
    /// Five minutes.
    #[oai(rename = "5m")]
    FiveMinutes,
    /// A quarter of an hour.
    #[oai(rename = "15m")]
    QuarterHour,
    /// An hour.
    #[oai(rename = "1h")]
    Hour,
    /// A day, in UTC or in `timeZone`.
    #[oai(rename = "1d")]
    Day,
}

impl Window {
    fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Minute => 60,
            Self::FiveMinutes => 300,
            Self::QuarterHour => 900,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        })
    }
}

/// Values that are counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum Distinct {
    /// Sources.
    #[oai(rename = "sourceId")]
    SourceId,
}

/// One window of one group.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct RollupRow {
    /// Start of the window, included; absent without `window`.
    pub window_start: Option<Time>,
    /// End of the window, not included; absent without `window`.
    pub window_end: Option<Time>,
    /// Present when rows are grouped by it.
    pub destination_id: Option<String>,
    /// Present when rows are grouped by it.
    pub reference: Option<String>,
    /// Present when rows are grouped by it.
    pub source_id: Option<String>,
    /// Present when rows are grouped by it.
    pub r#type: Option<RecordType>,
    /// Present when rows are grouped by it.
    pub unit: Option<String>,
    /// Number of records.
    pub count: i64,
    /// Exact number of their distinct sources; present with `distinct=sourceId`.
    pub distinct_source_ids: Option<i64>,
    /// Totals per unit, ordered by unit.
    pub totals: Vec<Total>,
}

/// Totals per window and group.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", example)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rollups {
    /// When the snapshot was taken from which the whole response is read.
    pub as_of: Time,
    /// Records with an earlier `time` can be missing: they are no longer kept. Absent where none is. Also the header
    /// `Millrace-Complete-Since` of every format.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_since: Option<Time>,
    /// Ordered by window, destinationId, reference, sourceId, type (negative first), unit. Empty windows are omitted.
    pub items: Vec<RollupRow>,
}

impl Example for Rollups {
    fn example() -> Self {
        let start = Time::example();
        let row = RollupRow {
            window_start: Some(start),
            window_end: Some(Time(start.0 + TimeDelta::minutes(1))),
            destination_id: Some("account-42".to_owned()),
            reference: None,
            source_id: None,
            r#type: None,
            unit: None,
            count: 2,
            distinct_source_ids: Some(1),
            totals: vec![Total { unit: "EUR".to_owned(), count: 2, total: "125.40".to_owned() }],
        };
        Self { as_of: start, complete_since: None, items: vec![row] }
    }
}

/// Sums per window.
#[derive(Debug, Clone, Default)]
pub struct RollupsApi {
    pub(super) slots: Slots,
}

filtered_operation! {
    "Tags::Sums" RollupsApi;
    /// Totals per time window and group
    ///
    /// A window covers the record's `time`, aligned to UTC, or with `timeZone` to the days of that zone. Empty windows are
    /// omitted. Streams a response of any size from one snapshot (`asOf`) as JSON, NDJSON (`{"row":…}` lines, then `{"end":…}`) or CSV
    /// (one line per row and unit).
    ///
    /// Reads a rollup that the manifest declares where one fits and is complete, with records only for the ends of the time
    /// range that are no whole windows of it: filters and groupBy use only its fields, type and unit, and `window` is a
    /// multiple of its window, or absent. With `timeZone` that rollup has the same zone, or windows that begin with each day of it. It also counts records that are no longer kept.
    #[oai(path = "/records/rollups", method = "get", operation_id = "rollUpRecords")]
    async fn rollups(self, app, filter; [
        headers: &HeaderMap,
        /// Length of a window; absent: one row per group.
        window: Query<Option<Window>>,
        /// An IANA time zone such as `Europe/Berlin`, for `window=1d`: days from its midnight to the next. Absent: UTC.
        #[oai(name = "timeZone")]
        time_zone: Query<Option<String>>,
        /// Any of destinationId, reference, sourceId, type, unit; repeated, or separated by commas.
        #[oai(name = "groupBy", default)]
        group_by: Query<Vec<String>>,
        /// `sourceId`: each row has the number of its distinct sources.
        distinct: Query<Option<Distinct>>,
    ] [
    ]) -> Streamed<Rollups> {
        let format = Format::of(headers)?;
        let zone = zone(window.0, time_zone.0.as_deref())?;
        let by = rollup_by(window.0, zone, &group_by.0, distinct.0)?;
        let slot = self.slots.take()?;
        let mut snapshot = app.store.snapshot().await?;
        let since = snapshot.complete_since(&filter, Some(&by)).await?;
        let body = body(slot, move |out| {
            let writer = RollupWriter { out, format, since, by: by.clone(), rows: 0, first_total: true, row: None };
            roll_up(snapshot, filter, by, writer)
        });
        Ok(Streamed::new(format, body).complete_since(since))
    }
}

fn zone(window: Option<Window>, name: Option<&str>) -> Result<Zone, Failure> {
    let Some(name) = name else { return Ok(Zone::default()) };
    if !matches!(window, Some(Window::Day)) {
        return Err(invalid_parameter("timeZone", "goes with window=1d"));
    }
    Zone::named(name)
        .map_err(|_| invalid_parameter("timeZone", "must be a time zone of the IANA database, such as Europe/Berlin"))
}

fn rollup_by(
    window: Option<Window>,
    zone: Zone,
    group_by: &[String],
    distinct: Option<Distinct>,
) -> Result<RollupBy, Failure> {
    let distinct_source_ids = distinct == Some(Distinct::SourceId);
    let mut by = RollupBy { window: window.map(Window::length), zone, distinct_source_ids, ..RollupBy::default() };
    for field in group_by.iter().flat_map(|fields| fields.split(',')) {
        let chosen = match field.trim() {
            "destinationId" => &mut by.destination_id,
            "reference" => &mut by.reference,
            "sourceId" => &mut by.source_id,
            "type" => &mut by.kind,
            "unit" => &mut by.unit,
            _ => return Err(invalid_parameter("groupBy", "may name destinationId, reference, sourceId, type, unit")),
        };
        *chosen = true;
    }
    Ok(by)
}

async fn roll_up(
    mut snapshot: Snapshot,
    filter: RecordFilter,
    by: RollupBy,
    mut writer: RollupWriter,
) -> Result<Out, Cut> {
    let as_of = render_time(snapshot.as_of);
    writer.begin(&as_of);
    {
        let mut parts = snapshot.rollup(&filter, by).await?;
        while let Some(part) = parts.try_next().await? {
            writer.part(part)?;
            writer.out.pass().await?;
        }
    }
    writer.end(&as_of)?;
    snapshot.finish().await?;
    Ok(writer.out)
}

struct RollupWriter {
    out: Out,
    format: Format,
    /// The time from which it is complete.
    since: Option<DateTime<Utc>>,
    by: RollupBy,
    rows: u64,
    first_total: bool,
    /// The open row, whose units follow. CSV repeats its fields on each line.
    row: Option<RollupPart>,
}

impl RollupWriter {
    fn begin(&mut self, as_of: &str) {
        match self.format {
            Format::Json => self.out.text(&format!("{{{},\"items\":[", head(as_of, self.since))),
            Format::Ndjson => {}
            Format::Csv => {
                let mut columns = Vec::new();
                if self.by.window.is_some() {
                    columns.extend(["windowStart", "windowEnd"]);
                }
                columns.extend(self.groups().into_iter().filter_map(|(by, name)| by.then_some(name)));
                columns.push("count");
                columns.extend(self.by.distinct_source_ids.then_some("distinctSourceIds"));
                columns.extend(["totalUnit", "totalCount", "total"]);
                csv_line(&mut self.out.buffer, columns);
            }
        }
    }

    fn groups(&self) -> [(bool, &'static str); 5] {
        let RollupBy { window: _, zone: _, distinct_source_ids: _, destination_id, reference, source_id, kind, unit } =
            self.by;
        [
            (destination_id, "destinationId"),
            (reference, "reference"),
            (source_id, "sourceId"),
            (kind, "type"),
            (unit, "unit"),
        ]
    }

    fn part(&mut self, part: RollupPart) -> Result<(), Cut> {
        if part.unit_total {
            self.total(&part)
        } else {
            // Without records Postgres still returns one part: the empty grand total.
            if part.count > 0 {
                self.close_row();
                self.open_row(&part)?;
                self.row = Some(part);
            }
            Ok(())
        }
    }

    fn open_row(&mut self, part: &RollupPart) -> Result<(), Cut> {
        match self.format {
            Format::Csv => return Ok(()),
            Format::Ndjson => self.out.text("{\"row\":{"),
            Format::Json => self.out.text(if self.rows == 0 { "{" } else { ",{" }),
        }
        (self.rows, self.first_total) = (self.rows + 1, true);
        if let Some((start, end)) = self.window(part) {
            let mut text = String::new();
            let _ = write!(text, "\"windowStart\":\"{start}\",\"windowEnd\":\"{end}\",");
            self.out.text(&text);
        }
        let fields = self.fields(part);
        for (name, value) in fields {
            self.out.text(&format!("\"{name}\":"));
            self.out.json(&value)?;
            self.out.text(",");
        }
        self.out.text(&format!("\"count\":{},", part.count));
        if let Some(sources) = part.distinct_source_ids {
            self.out.text(&format!("\"distinctSourceIds\":{sources},"));
        }
        self.out.text("\"totals\":");
        Ok(())
    }

    /// The fields that the row is grouped by.
    fn fields<'a>(&self, part: &'a RollupPart) -> Vec<(&'static str, &'a str)> {
        let values = [
            part.destination_id.as_ref().map(DestinationId::as_str),
            part.reference.as_ref().map(Reference::as_str),
            part.source_id.as_ref().map(SourceId::as_str),
            part.positive.map(|positive| RecordType::of(positive).as_str()),
            part.group_unit.as_ref().map(Unit::as_str),
        ];
        let named = self.groups().into_iter().zip(values);
        named.filter_map(|((by, name), value)| Some((name, value.filter(|_| by)?))).collect()
    }

    fn window(&self, part: &RollupPart) -> Option<(String, String)> {
        let (start, length) = (part.window_start?, self.by.window?);
        let end: DateTime<Utc> = start + TimeDelta::from_std(length).ok()?;
        let begins = |window| render_time(self.by.zone.window_begins(window));
        Some((begins(start), begins(end)))
    }

    fn total(&mut self, part: &RollupPart) -> Result<(), Cut> {
        let unit = part.unit.as_ref().map(Unit::to_string).unwrap_or_default();
        if self.format != Format::Csv {
            self.out.text(if std::mem::take(&mut self.first_total) { "[" } else { "," });
            return self.out.json(&Total { unit, count: part.count, total: part.total.clone() });
        }
        let Some(row) = &self.row else { return Ok(()) };
        let mut fields: Vec<String> = Vec::with_capacity(12);
        if let Some((start, end)) = self.window(row) {
            fields.extend([start, end]);
        }
        fields.extend(self.fields(row).into_iter().map(|(_, value)| value.to_owned()));
        fields.push(row.count.to_string());
        fields.extend(row.distinct_source_ids.map(|sources| sources.to_string()));
        fields.extend([unit, part.count.to_string(), part.total.clone()]);
        csv_line(&mut self.out.buffer, fields.iter().map(String::as_str));
        Ok(())
    }

    fn close_row(&mut self) {
        if self.row.take().is_some() {
            match self.format {
                Format::Json => self.out.text("]}"),
                Format::Ndjson => self.out.text("]}}\n"),
                Format::Csv => {}
            }
        }
    }

    fn end(&mut self, as_of: &str) -> Result<(), Cut> {
        self.close_row();
        match self.format {
            Format::Json => self.out.text("]}"),
            Format::Ndjson => {
                let (rows, head) = (self.rows, head(as_of, self.since));
                self.out.text(&format!("{{\"end\":{{\"rows\":{rows},{head}}}}}\n"));
            }
            Format::Csv => {}
        }
        Ok(())
    }
}
