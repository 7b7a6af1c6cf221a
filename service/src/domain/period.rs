//! Periods of processing: the partitions of the records.

use std::fmt;

use chrono::{DateTime, Datelike as _, Days, Months, NaiveDate, Utc};
use millrace_crds::Partition;

/// A period, by its first day in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period(NaiveDate);

impl Period {
    /// The period of a time.
    #[must_use]
    pub fn of(time: DateTime<Utc>, partition: Partition) -> Self {
        let day = time.date_naive();
        Self(match partition {
            Partition::Day => day,
            Partition::Week => day - Days::new(day.weekday().num_days_from_monday().into()),
            Partition::Month => day - Days::new(day.day0().into()),
        })
    }

    /// The period of a stored first day.
    #[must_use]
    pub fn stored(first: NaiveDate) -> Self {
        Self(first)
    }

    /// Its first day.
    #[must_use]
    pub fn first(self) -> NaiveDate {
        self.0
    }

    /// The next period.
    #[must_use]
    pub fn next(self, partition: Partition) -> Self {
        Self(match partition {
            Partition::Day => self.0 + Days::new(1),
            Partition::Week => self.0 + Days::new(7),
            // A period of a shorter kind can begin on any day.
            Partition::Month => self.0 - Days::new(self.0.day0().into()) + Months::new(1),
        })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_at_their_first_day_and_follow_each_other() {
        let time: DateTime<Utc> = "2026-12-30T23:59:59.999999Z".parse().expect("a time");
        for (partition, first, next) in [
            (Partition::Day, "2026-12-30", "2026-12-31"),
            (Partition::Week, "2026-12-28", "2027-01-04"),
            (Partition::Month, "2026-12-01", "2027-01-01"),
        ] {
            let period = Period::of(time, partition);
            assert_eq!(period.to_string(), first);
            assert_eq!(period.next(partition).to_string(), next);
        }
        assert_eq!(Period::of(time, Partition::Week).next(Partition::Month).to_string(), "2027-01-01");
    }
}
