//! Offsets: the numbers that records get when they are appended. By them waiting and lost records
//! are counted.
//!
//! Must never count a record twice, and must never take a record for lost that is applied or waits.

use std::fmt;

use super::ShardId;

/// The number of a record among all that were appended to its shard, from 1. A rewound Redis can give one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(i64);

impl Offset {
    /// Before the first record.
    pub const ZERO: Self = Self(0);

    /// The offset of a number.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Number of records above `self`, up to `upto`; 0 where there are none.
    #[must_use]
    pub fn until(self, upto: Self) -> i64 {
        (upto.0 - self.0).max(0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Consecutive offsets, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetRange {
    first: Offset,
    last: Offset,
}

impl OffsetRange {
    /// The range from `first` to `last`; `None` where that is no range of offsets.
    #[must_use]
    pub fn new(first: i64, last: i64) -> Option<Self> {
        let is_range = first > 0 && last >= first;
        is_range.then_some(Self { first: Offset(first), last: Offset(last) })
    }

    /// The first.
    #[must_use]
    pub fn first(self) -> Offset {
        self.first
    }

    /// The last.
    #[must_use]
    pub fn last(self) -> Offset {
        self.last
    }

    /// Number of offsets.
    #[must_use]
    pub fn count(self) -> i64 {
        self.last.0 - self.first.0 + 1
    }

    /// The range of one of its offsets, by its index; `None` above the last.
    #[must_use]
    pub fn at(self, index: u16) -> Option<Self> {
        let offset = Offset(self.first.0 + i64::from(index));
        (offset <= self.last).then_some(Self { first: offset, last: offset })
    }
}

/// How many records a producer has appended to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendCount {
    /// The shard.
    pub shard: ShardId,
    /// Number of records since the producer started.
    pub appended: i64,
}

/// The account of a shard: all records up to an offset are applied or lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Number of records that are applied or lost.
    pub accounted: Offset,
    /// Number of those that are lost.
    pub lost: i64,
}

impl Account {
    /// Accounts for records of the stream, in the order of the stream. `is_new`: their outcome was decided now; else they
    /// were applied before.
    ///
    /// Offsets that are missing before them are lost records: the stream has all records in order. A rewound Redis gives
    /// offsets again until it is raised above them; new records with such an offset count as the next ones.
    pub fn count(&mut self, offsets: OffsetRange, is_new: bool) {
        if offsets.first > self.accounted {
            self.lost += offsets.first.0 - self.accounted.0 - 1;
            self.accounted = offsets.last;
        } else if is_new {
            self.accounted.0 += offsets.count();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64) -> OffsetRange {
        OffsetRange::new(first, last).expect("a range")
    }

    #[test]
    fn a_jump_in_the_offsets_is_the_number_of_lost_records() {
        let mut account = Account::default();
        account.count(range(1, 10), true);
        assert_eq!(account, Account { accounted: Offset(10), lost: 0 });
        account.count(range(14, 14), true);
        assert_eq!(account, Account { accounted: Offset(14), lost: 3 });
        account.count(range(11, 13), false);
        assert_eq!(account, Account { accounted: Offset(14), lost: 3 }, "a redelivery");
        account.count(range(16, 16), false);
        assert_eq!(account, Account { accounted: Offset(16), lost: 4 }, "the second replay of a dead letter");
    }

    #[test]
    fn new_records_whose_offsets_were_given_before_count_once() {
        // 1,000 are applied. Redis is rewound to 950, and gives 951 to 955 again before the count of a process raises it.
        let mut account = Account { accounted: Offset(1_000), lost: 0 };
        account.count(range(951, 955), true);
        account.count(range(951, 955), false);
        // 150 records above 950 are gone from Redis, 50 of them are applied.
        account.count(range(955 + 150 + 1, 955 + 150 + 1), true);
        assert_eq!(account, Account { accounted: Offset(1_106), lost: 100 });
    }

    #[test]
    fn ranges_have_at_least_one_offset() {
        assert!(OffsetRange::new(0, 4).is_none() && OffsetRange::new(5, 4).is_none());
        assert_eq!((range(5, 7).count(), range(5, 7).at(2), range(5, 7).at(3)), (3, Some(range(7, 7)), None));
        assert_eq!((Offset(7).until(Offset(9)), Offset(9).until(Offset(7))), (2, 0));
    }
}
