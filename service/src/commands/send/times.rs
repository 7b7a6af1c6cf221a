//! Times as psql, shops and spreadsheets write them, turned into RFC 3339.

use std::sync::LazyLock;

use chrono::{DateTime, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc, format::StrftimeItems};
use regex::Regex;

use crate::domain::{parse_time, render_time};

/// Date, time of day with or without seconds, and an offset in any of the usual forms.
static FORM: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?ix)^ (?<date>\d{4}-\d{2}-\d{2})
            (?: [T\ ] (?<minute>\d{2}:\d{2}) (?<second>:\d{2}(?:[.,]\d+)?)? )?
            \ ? (?: (?<zulu>Z|UTC|GMT) | (?<sign>[+-])(?<hours>\d{2})(?: :? (?<minutes>\d{2}))? )? $",
    )
    .ok()
});

/// Notation of times.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    zone: Option<chrono_tz::Tz>,
    format: Option<String>,
}

/// Zone of a time without an offset.
#[derive(Clone, Copy)]
enum Zone {
    Named(chrono_tz::Tz),
    Fixed(chrono::FixedOffset),
}

impl Times {
    /// Checks the format.
    ///
    /// # Errors
    /// That it is none.
    pub(super) fn new(zone: Option<chrono_tz::Tz>, format: Option<String>) -> anyhow::Result<Self> {
        if let Some(format) = &format
            && (StrftimeItems::new(format).any(|item| item == chrono::format::Item::Error) || !format.contains('%'))
        {
            anyhow::bail!("--time-format {format}: is no format of times; one is %d.%m.%Y or \"%m/%d/%Y %H:%M\"");
        }
        Ok(Self { zone, format })
    }

    /// A time in RFC 3339; `zone` is the text of the row's zone column.
    ///
    /// # Errors
    /// Why the text gives no instant, and the remedy.
    pub(super) fn read(&self, text: &str, zone: Option<&str>) -> Result<String, String> {
        let zone = match zone {
            Some(text) => Some(named(text)?),
            None => self.zone.map(Zone::Named),
        };
        if let Some(format) = &self.format {
            return formatted(text.trim(), format, zone);
        }
        // A time that the service reads is sent as it is written.
        if parse_time(text).is_ok() {
            return Ok(text.to_owned());
        }
        let text = text.trim();
        let Some(parts) = FORM.as_ref().and_then(|form| form.captures(text)) else {
            return Err("is no time such as 2026-01-31 12:00:00+01:00; give --time-format, such as %d.%m.%Y".to_owned());
        };
        let part = |name| parts.name(name).map(|part| part.as_str());
        let minute = part("minute").unwrap_or("00:00");
        let second = part("second").unwrap_or(":00").replace(',', ".");
        let local = format!("{}T{minute}{second}", &parts["date"]);
        match (part("zulu"), part("sign"), part("hours")) {
            (Some(_), ..) => Ok(format!("{local}Z")),
            (None, Some(sign), Some(hours)) => Ok(format!("{local}{sign}{hours}:{}", part("minutes").unwrap_or("00"))),
            _ => match NaiveDateTime::parse_from_str(&local, "%Y-%m-%dT%H:%M:%S%.f") {
                Ok(local) => in_zone(local, zone),
                Err(_) => Err("is no time that exists".to_owned()),
            },
        }
    }
}

fn formatted(text: &str, format: &str, zone: Option<Zone>) -> Result<String, String> {
    if let Ok(time) = DateTime::parse_from_str(text, format) {
        return Ok(render_time(time.with_timezone(&Utc)));
    }
    let local = NaiveDateTime::parse_from_str(text, format)
        .or_else(|_| NaiveDate::parse_from_str(text, format).map(|date| date.and_time(NaiveTime::MIN)))
        .map_err(|error| format!("is not of --time-format {format}: {error}"))?;
    in_zone(local, zone)
}

/// The zone that a cell names: of the time zone database, or an offset.
fn named(text: &str) -> Result<Zone, String> {
    let text = text.trim();
    if let Ok(zone) = text.parse::<chrono_tz::Tz>() {
        return Ok(Zone::Named(zone));
    }
    if text == "Z" {
        return Ok(Zone::Named(chrono_tz::UTC));
    }
    // Behind a date, an offset is read in all of its forms.
    let offset = Times::default().read(&format!("2000-01-01 00:00:00{text}"), None).ok();
    match offset.and_then(|time| DateTime::parse_from_rfc3339(&time).ok()) {
        Some(time) if !text.is_empty() => Ok(Zone::Fixed(*time.offset())),
        _ => Err(format!("has the zone \"{text}\", which is not known; a zone is Europe/Berlin or +01:00")),
    }
}

/// A local time as it is in UTC. One that comes twice, when clocks are rewound, is the earlier of the two.
fn in_zone(local: NaiveDateTime, zone: Option<Zone>) -> Result<String, String> {
    let found = match zone {
        Some(Zone::Named(zone)) => utc(&zone, local),
        Some(Zone::Fixed(offset)) => utc(&offset, local),
        None => {
            return Err(
                "has no offset from UTC; give --time-zone ZONE, or --zone-column COLUMN where a column holds it"
                    .to_owned(),
            );
        }
    };
    found.map(render_time).ok_or_else(|| "does not exist in its zone: clocks go forward over it".to_owned())
}

fn utc<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => Some(time.with_timezone(&Utc)),
        LocalResult::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, zone: Option<chrono_tz::Tz>, column: Option<&str>) -> Result<String, String> {
        Times::new(zone, None).expect("times").read(text, column)
    }

    #[test]
    fn times_of_psql_and_shops_become_rfc_3339() {
        for (text, time) in [
            ("2026-01-31 12:00:00+00", "2026-01-31T12:00:00+00:00"),
            ("2026-01-31 12:00:00.123456+01", "2026-01-31T12:00:00.123456+01:00"),
            ("2026-01-31 12:00:00 -0500", "2026-01-31T12:00:00-05:00"),
            ("2026-01-31T12:00:00+0100", "2026-01-31T12:00:00+01:00"),
            ("2026-01-31 12:00:00 UTC", "2026-01-31T12:00:00Z"),
            ("2026-01-31 12:00:00+05:30", "2026-01-31T12:00:00+05:30"),
            ("2026-01-31 12:00Z", "2026-01-31T12:00:00Z"),
            (" 2026-01-31T12:00:00Z ", "2026-01-31T12:00:00Z"),
            // Left to the service to refuse.
            ("2026-01-31T12:00:00.1234567Z", "2026-01-31T12:00:00.1234567Z"),
        ] {
            assert_eq!(read(text, None, None).as_deref(), Ok(time), "{text}");
        }
        for text in ["yesterday", "31.01.2026", "1769860800"] {
            assert!(read(text, None, None).expect_err(text).contains("--time-format"), "{text}");
        }
    }

    #[test]
    fn local_times_become_utc_by_a_zone_or_are_refused() {
        let berlin = Some(chrono_tz::Europe::Berlin);
        for (local, utc) in [
            ("2026-01-31T12:00:00", Some("2026-01-31T11:00:00Z")),
            ("2026-07-31 12:00:00.250", Some("2026-07-31T10:00:00.250Z")),
            ("2026-07-31", Some("2026-07-30T22:00:00Z")),
            // Clocks are rewound: the earlier one. Clocks go forward: there is no such time.
            ("2026-10-25T02:30", Some("2026-10-25T00:30:00Z")),
            ("2026-03-29T02:30", None),
            ("2026-02-30", None),
            ("2026-01-31T12:00:00+02:00", Some("2026-01-31T12:00:00+02:00")),
        ] {
            assert_eq!(read(local, berlin, None).ok().as_deref(), utc, "{local}");
        }
        for (zone, utc) in [
            ("America/New_York", Some("2026-01-31T17:00:00Z")),
            ("+01:00", Some("2026-01-31T11:00:00Z")),
            ("-0530", Some("2026-01-31T17:30:00Z")),
            ("Z", Some("2026-01-31T12:00:00Z")),
            ("Mars", None),
            ("", None),
        ] {
            assert_eq!(read("2026-01-31 12:00:00", None, Some(zone)).ok().as_deref(), utc, "{zone}");
        }
        assert!(read("2026-01-31 12:00:00", None, None).expect_err("no zone").contains("--time-zone"));
    }

    #[test]
    fn a_format_reads_dates_of_other_countries() {
        let read = |text: &str, format: &str| {
            Times::new(Some(chrono_tz::Europe::Berlin), Some(format.to_owned())).expect("times").read(text, None)
        };
        assert_eq!(read("31.01.2026", "%d.%m.%Y").as_deref(), Ok("2026-01-30T23:00:00Z"));
        assert_eq!(read("1/31/2026 9:05 PM", "%m/%d/%Y %I:%M %p").as_deref(), Ok("2026-01-31T20:05:00Z"));
        assert_eq!(read("31.01.2026 12:00 +0200", "%d.%m.%Y %H:%M %z").as_deref(), Ok("2026-01-31T10:00:00Z"));
        assert!(read("2026-01-31", "%d.%m.%Y").is_err());
        for format in ["%Q", "dd.mm.yyyy"] {
            assert!(Times::new(None, Some(format.to_owned())).is_err(), "{format}");
        }
    }
}
