//! The running count and total of every key and unit of a shard, derived from its records in order: pure.
//!
//! It is the only part of a comparison whose memory grows with the pipeline.

use std::{collections::HashMap, fmt::Write as _};

use rust_decimal::Decimal;

use crate::{
    domain::{Kind, Seq},
    store::{Differences, LoggedRecord, StoredTotal},
};

/// Joins destination, reference and unit: none of them has this character.
const SEPARATOR: char = '\0';

/// Count and total of the records of a key and unit, in billionths. Those without a sign are what the pass itself saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Running {
    count: i64,
    total: i128,
    positive_count: i64,
    positive_sum: i128,
    alerts: i64,
    first: Seq,
    last: Seq,
}

/// The key of a record that was added.
#[derive(Debug, Clone, Copy)]
pub(super) struct Added {
    /// Whether it is its first one in the pass.
    pub(super) is_new: bool,
    /// Its total before the record, in billionths.
    pub(super) before: i128,
}

/// Running totals of a shard.
#[derive(Debug)]
pub(super) struct Keys {
    of: HashMap<Box<str>, Running>,
    /// Whether the pass begins at the first record; else each key begins at the previous total of its first record.
    is_whole: bool,
    /// The key of a record, in one text that is used again.
    key: String,
}

impl Keys {
    pub(super) fn new(is_whole: bool) -> Self {
        Self { of: HashMap::new(), is_whole, key: String::new() }
    }

    /// Number of keys and units.
    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Compares a record's summary with the records before it, and adds the record.
    pub(super) fn add(&mut self, row: &LoggedRecord, place: impl FnOnce() -> String, found: &mut Differences) -> Added {
        let record = &row.record;
        self.key.clear();
        let (destination_id, reference) = (record.destination_id.as_str(), record.reference.as_str());
        let _ = write!(self.key, "{destination_id}{SEPARATOR}{reference}{SEPARATOR}{}", record.unit.as_str());
        let (count, total) = (row.previous_count, billionths(row.previous_total));
        let is_new = !self.of.contains_key(&*self.key);
        if is_new {
            let begin = if self.is_whole {
                Running::default()
            } else {
                Running { count, total: total.unwrap_or_default(), ..Running::default() }
            };
            self.of.insert(self.key.as_str().into(), begin);
        }
        let Some(running) = self.of.get_mut(&*self.key) else { return Added { is_new, before: 0 } };
        let before = running.total;
        if (count, total) != (running.count, Some(running.total)) {
            found.add(
                "summary",
                place(),
                format!("{} records before it, total {}", running.count, decimal(running.total)),
                format!("{count}, total {}", row.previous_total),
            );
        }
        let value = billionths(record.value.get()).unwrap_or_default();
        running.count += 1;
        if running.first == Seq::ZERO {
            running.first = row.seq;
        }
        running.last = row.seq;
        running.alerts += i64::from(row.threshold.is_some());
        match record.kind {
            Kind::Positive => {
                running.total += value;
                running.positive_count += 1;
                running.positive_sum += value;
            }
            Kind::Negative => running.total -= value,
        }
        Added { is_new, before }
    }

    /// Compares a stored total with the records of its key, and takes the key out.
    pub(super) fn compare(&mut self, stored: &StoredTotal, found: &mut Differences) {
        let StoredTotal { destination_id, reference, unit, positive_count, negative_count, alerts, .. } = stored;
        self.key.clear();
        let _ = write!(self.key, "{destination_id}{SEPARATOR}{reference}{SEPARATOR}{unit}");
        let running = self.of.remove(&*self.key);
        if running.is_none() && !self.is_whole {
            // None of its records is in the scope.
            return;
        }
        let (positive_sum, negative_sum) = (stored.positive_sum, stored.negative_sum);
        let total = positive_sum.zip(negative_sum).map(|(positive, negative)| positive - negative);
        let is_equal = running.is_some_and(|running| {
            (running.count, Some(running.total), running.last) == (positive_count + negative_count, total, stored.last)
                && (!self.is_whole
                    || (running.positive_count, Some(running.positive_sum), running.alerts, running.first)
                        == (*positive_count, positive_sum, *alerts, stored.first))
        });
        if !is_equal {
            let shown = |sum: Option<i128>| sum.map_or("no such decimal".to_owned(), decimal);
            let stored = format!(
                "{} records ({positive_count} positive, {alerts} alerts, {} to {}), total {} ({} positive)",
                positive_count + negative_count,
                stored.first,
                stored.last,
                shown(total),
                shown(positive_sum)
            );
            found.add("total", place(&self.key), self.shown(running), stored);
        }
    }

    /// The keys that no stored total has.
    pub(super) fn finish(self, found: &mut Differences) {
        let mut missing: Vec<_> = self.of.iter().collect();
        missing.sort_unstable_by_key(|(key, _)| *key);
        for (key, running) in missing {
            found.add("total", place(key), self.shown(Some(*running)), "nothing");
        }
    }

    fn shown(&self, running: Option<Running>) -> String {
        let Some(Running { count, total, positive_count, positive_sum, alerts, first, last }) = running else {
            return "nothing".to_owned();
        };
        let total = decimal(total);
        if self.is_whole {
            let positive_sum = decimal(positive_sum);
            format!(
                "{count} records ({positive_count} positive, {alerts} alerts, {first} to {last}), total {total} ({positive_sum} positive)"
            )
        } else {
            format!("{count} records up to {last}, total {total}")
        }
    }
}

fn place(key: &str) -> String {
    key.replace(SEPARATOR, " / ")
}

/// A decimal in billionths; `None` where it is no multiple of one.
pub(super) fn billionths(decimal: Decimal) -> Option<i128> {
    let decimal = if decimal.scale() > 9 { decimal.normalize() } else { decimal };
    let factor = 10_i128.pow(9_u32.checked_sub(decimal.scale())?);
    decimal.mantissa().checked_mul(factor)
}

fn decimal(billionths: i128) -> String {
    Decimal::try_from_i128_with_scale(billionths, 9)
        .map_or_else(|_| format!("{billionths} billionths"), |decimal| decimal.normalize().to_string())
}
