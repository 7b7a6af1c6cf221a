//! Random records and filters.

use std::fmt::Write as _;

use chrono_tz::Tz;
use proptest::{collection::vec, option, prelude::*, sample::select};
use rust_decimal::Decimal;

use super::super::{
    declared::{Declared, HOURLY},
    *,
};

/// Random combinations of filters.
pub(super) const CASES: usize = 500;
/// Records that are stored before the first request, and those that arrive later.
pub(super) const BEFORE: usize = 200;
const ARRIVING: usize = CASES;
pub(super) const RECORDS: usize = BEFORE + ARRIVING;
const DESTINATIONS: [&str; 5] = ["a", "b c", "d/é", "e", "f"];
const UNITS: [&str; 3] = ["EUR", "USD", "min"];
const WINDOWS: [Window; 8] = [
    Window { name: "1m", seconds: 60, zone: None },
    Window { name: "5m", seconds: 300, zone: None },
    Window { name: "15m", seconds: 900, zone: None },
    Window { name: "1h", seconds: 3_600, zone: None },
    Window { name: "1d", seconds: 86_400, zone: None },
    Window { name: "1d", seconds: 86_400, zone: Some(Tz::Europe__Berlin) },
    Window { name: "1d", seconds: 86_400, zone: Some(Tz::America__New_York) },
    Window { name: "1d", seconds: 86_400, zone: Some(Tz::Asia__Kathmandu) },
];
pub(super) const GROUPS: [&str; 5] = ["destinationId", "reference", "sourceId", "type", "unit"];

/// Declared rollups, of which a random part is complete. The records that are stored before are built in part.
pub(super) const DECLARED: [Declared; 8] = [
    Declared { name: "daily", seconds: 86_400, group_by: &[], ..HOURLY },
    Declared { name: "berlin", seconds: 86_400, zone: "Europe/Berlin", ..HOURLY },
    Declared { name: "nepal", seconds: 86_400, group_by: &[], zone: "Asia/Kathmandu", distinct: true },
    HOURLY,
    Declared { name: "minutes", seconds: 60, group_by: &["destinationId", "reference"], ..HOURLY },
    Declared { name: "users", distinct: true, ..HOURLY },
    Declared { name: "sources", seconds: 86_400, group_by: &["reference", "sourceId"], ..HOURLY },
    Declared {
        name: "all",
        seconds: 60,
        group_by: &["destinationId", "reference", "sourceId"],
        distinct: true,
        ..HOURLY
    },
];

/// A window of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) name: &'static str,
    seconds: i64,
    /// The zone of its days: by another library than the product uses.
    pub(super) zone: Option<Tz>,
}

impl Window {
    fn start(&self, at: DateTime<Utc>) -> DateTime<Utc> {
        let Some(zone) = self.zone else {
            let start = at.timestamp().div_euclid(self.seconds) * self.seconds;
            return DateTime::from_timestamp(start, 0).expect("a time");
        };
        let midnight = at.with_timezone(&zone).date_naive().and_time(chrono::NaiveTime::MIN);
        midnight.and_local_timezone(zone).single().expect("one midnight").to_utc()
    }
}

/// A record that will be stored.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) id: String,
    pub(super) destination: &'static str,
    reference: String,
    pub(super) source: String,
    pub(super) unit: &'static str,
    negative: bool,
    value: Decimal,
    time: DateTime<Utc>,
    alerted: bool,
}

impl Planned {
    pub(super) fn signed(&self) -> Decimal {
        if self.negative { -self.value } else { self.value }
    }

    fn field(&self, name: &str) -> &str {
        match name {
            "destinationId" => self.destination,
            "reference" => &self.reference,
            "sourceId" => &self.source,
            "type" => {
                if self.negative {
                    "negative"
                } else {
                    "positive"
                }
            }
            _ => self.unit,
        }
    }

    pub(super) async fn store(&self, n: usize, seq: i64, connection: &mut sqlx::PgConnection) {
        let row = Row {
            id: &self.id,
            destination: self.destination,
            reference: &self.reference,
            source: &self.source,
            unit: self.unit,
            value: &format!("{}{}", if self.negative { "-" } else { "" }, self.value),
            time: &crate::domain::render_time(self.time),
            threshold: self.alerted.then_some("0.5"),
            period: if n < RECORDS / 2 { "2026-11-01" } else { "2026-12-01" },
            processed_at: &crate::domain::render_time(
                time("2026-02-01T00:00:00Z") + chrono::TimeDelta::seconds(n as i64),
            ),
            ..ROW
        };
        row.store(seq, connection).await;
    }
}

/// A minute of two days, at its edges: just before, at, just after it, or between. Also the edges of the two days on which
/// clocks change in Berlin.
fn instants() -> impl Strategy<Value = DateTime<Utc>> {
    let minutes = select(vec![0_i64, 1, 4, 5, 15, 59, 60, 61, 1_439, 1_440, 1_441]);
    let of_days = (Just("2026-01-31T00:00:00Z"), minutes);
    let of_changes = (
        select(vec!["2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"]),
        select(vec![-60_i64, 0, 60]),
    );
    let micros = select(vec![-1_i64, 0, 1, 30_000_000]);
    (prop_oneof![of_days, of_changes], micros).prop_map(|((from, minutes), micros)| {
        time(from) + chrono::TimeDelta::minutes(minutes) + chrono::TimeDelta::microseconds(micros)
    })
}

pub(super) fn records() -> impl Strategy<Value = Vec<Planned>> {
    let record = (
        (select(&DESTINATIONS[..]), 0..3_u8, 0..4_u8, select(&UNITS[..])),
        (any::<bool>(), 0..2_000_000_i64, 0..4_u32, instants(), prop::bool::weighted(0.2)),
    );
    vec(record, RECORDS).prop_map(|records| {
        let plan =
            |(n, ((destination, reference, source, unit), (negative, mantissa, scale, time, alerted)))| Planned {
                id: format!("id {n}"),
                destination,
                reference: format!("r{reference}"),
                source: format!("s{source}"),
                unit,
                negative,
                value: Decimal::new(mantissa, scale),
                time,
                alerted,
            };
        records.into_iter().enumerate().map(plan).collect()
    })
}

/// Parameters of a request.
#[derive(Debug, Clone)]
pub(super) struct Filters {
    ids: Option<Vec<usize>>,
    destination: Option<&'static str>,
    reference: Option<u8>,
    source: Option<u8>,
    negative: Option<bool>,
    unit: Option<&'static str>,
    pub(super) start: Option<DateTime<Utc>>,
    pub(super) end: Option<DateTime<Utc>>,
    alerted: Option<bool>,
    pub(super) distinct: bool,
    /// The names of the complete rollups.
    pub(super) declared: Vec<&'static str>,
    pub(super) window: Option<Window>,
    pub(super) groups: Vec<&'static str>,
    pub(super) limit: u32,
}

pub(super) fn filters() -> impl Strategy<Value = Filters> {
    let some = |weight| option::weighted(weight, Just(()));
    (
        (
            option::weighted(0.1, vec(0..RECORDS, 1..5)),
            option::weighted(0.3, select(&DESTINATIONS[..])),
            some(0.2),
            0..4_u8,
        ),
        (
            option::weighted(0.2, 0..5_u8),
            option::weighted(0.3, any::<bool>()),
            option::weighted(0.3, select(&UNITS[..])),
        ),
        (option::weighted(0.4, instants()), option::weighted(0.4, instants()), option::weighted(0.2, any::<bool>())),
        (option::of(select(&WINDOWS[..])), prop::sample::subsequence(GROUPS.to_vec(), 0..=3), 1..120_u32),
        (any::<bool>(), prop::sample::subsequence(DECLARED.map(|declared| declared.name).to_vec(), 0..=DECLARED.len())),
    )
        .prop_map(|(of_key, (source, negative, unit), (one, other, alerted), shape, (distinct, declared))| {
            let (ids, destination, by_reference, reference) = of_key;
            let (start, end) = match (one, other) {
                (Some(one), Some(other)) => (Some(one.min(other)), Some(one.max(other))),
                either => either,
            };
            let (window, groups, limit) = shape;
            let reference = by_reference.map(|()| reference);
            Filters {
                ids,
                destination,
                reference,
                source,
                negative,
                unit,
                start,
                end,
                alerted,
                distinct,
                declared,
                window,
                groups,
                limit,
            }
        })
}

impl Default for Filters {
    fn default() -> Self {
        Self {
            ids: None,
            destination: None,
            reference: None,
            source: None,
            negative: None,
            unit: None,
            start: None,
            end: None,
            alerted: None,
            distinct: false,
            declared: Vec::new(),
            window: None,
            groups: Vec::new(),
            limit: 100,
        }
    }
}

impl Filters {
    pub(super) fn query(&self) -> String {
        let mut query = String::new();
        let mut push = |name: &str, value: &str| {
            let encoded = value.bytes().fold(String::new(), |mut all, byte| {
                let _ = write!(all, "%{byte:02X}");
                all
            });
            let _ = write!(query, "&{name}={encoded}");
        };
        self.ids.iter().flatten().for_each(|n| push("recordId", &format!("id {n}")));
        self.destination.iter().for_each(|id| push("destinationId", id));
        self.reference.iter().for_each(|n| push("reference", &format!("r{n}")));
        self.source.iter().for_each(|n| push("sourceId", &format!("s{n}")));
        self.negative.iter().for_each(|negative| push("type", if *negative { "negative" } else { "positive" }));
        self.unit.iter().for_each(|unit| push("unit", unit));
        self.start.iter().for_each(|time| push("startTime", &crate::domain::render_time(*time)));
        self.end.iter().for_each(|time| push("endTime", &crate::domain::render_time(*time)));
        self.alerted.iter().for_each(|alerted| push("alerted", &alerted.to_string()));
        query
    }

    pub(super) fn lets(&self, record: &Planned) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.iter().any(|n| record.id == format!("id {n}")))
            && self.destination.is_none_or(|id| id == record.destination)
            && self.reference.is_none_or(|n| record.reference == format!("r{n}"))
            && self.source.is_none_or(|n| record.source == format!("s{n}"))
            && self.negative.is_none_or(|negative| negative == record.negative)
            && self.unit.is_none_or(|unit| unit == record.unit)
            && self.start.is_none_or(|start| record.time >= start)
            && self.end.is_none_or(|end| record.time < end)
            && self.alerted.is_none_or(|alerted| alerted == record.alerted)
    }

    /// The window and the group of a record in a rollup.
    pub(super) fn group(&self, record: &Planned) -> Vec<String> {
        let window = self.window.map(|window| crate::domain::render_time(window.start(record.time)));
        window
            .into_iter()
            .chain(GROUPS.iter().filter(|name| self.groups.contains(name)).map(|name| record.field(name).to_owned()))
            .collect()
    }
}
