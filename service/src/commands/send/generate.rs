//! Generated rows: a pure function of the seed and the row's number, so any run can be repeated.
//!
//! Must never keep what it generated: a repeated row is generated again.

use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::render_time;

/// Parts per million: shares are kept as integers so that the number of repeated rows is exact.
const MILLION: u64 = 1_000_000;

/// Rows of a seed.
#[derive(Debug, Clone)]
pub(super) struct Generator {
    seed: u64,
    keys: u64,
    repeated_ppm: u64,
}

/// SplitMix64's output function: well mixed, and the same on every machine and in every version.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Generator {
    /// Rows of `seed` over `keys` destinations, of which the share `repeated` repeat an earlier one.
    pub(super) fn new(seed: u64, keys: u64, repeated: f64) -> Self {
        Self { seed, keys, repeated_ppm: (repeated * MILLION as f64).round() as u64 }
    }

    /// Number of the first `rows` rows that repeat an earlier one.
    fn repeated_before(&self, rows: u64) -> u64 {
        (u128::from(rows) * u128::from(self.repeated_ppm) / u128::from(MILLION)) as u64
    }

    /// Row `index`, from 0, as fields in order, and whether it repeats an earlier one.
    pub(super) fn row(&self, index: u64) -> (Vec<(&'static str, String)>, bool) {
        let before = self.repeated_before(index);
        let repeats = self.repeated_before(index + 1) > before;
        let uniques = index - before;
        let unique = if repeats { mix(self.seed ^ mix(index)) % uniques } else { uniques };
        (self.record(unique), repeats)
    }

    fn record(&self, unique: u64) -> Vec<(&'static str, String)> {
        let mut state = mix(self.seed) ^ mix(unique.wrapping_mul(2).wrapping_add(1));
        let mut draw = |below: u64| {
            state = mix(state);
            state % below
        };
        let key = draw(self.keys);
        // Ten records a second from the start of 2026.
        let time = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::milliseconds(1_767_225_600_000 + unique as i64 * 100);
        let mut value = String::new();
        let cents = 1 + draw(120_000);
        let _ = write!(value, "{}.{:02}", cents / 100, cents % 100);
        vec![
            ("recordId", format!("g{:x}-{unique}", self.seed)),
            ("time", render_time(time)),
            ("sourceId", format!("source-{}", draw(100))),
            ("destinationId", format!("key-{key}")),
            ("type", if draw(5) == 0 { "negative" } else { "positive" }.to_owned()),
            ("value", value),
            ("unit", "EUR".to_owned()),
            ("reference", format!("ref-{}", key % 10)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_share_of_repeated_rows_is_exact_and_they_equal_their_originals() {
        let generator = Generator::new(7, 50, 0.3);
        let mut seen: HashMap<String, Vec<(&str, String)>> = HashMap::new();
        let mut repeated = 0;
        for index in 0..20_000 {
            let (row, repeats) = generator.row(index);
            let id = row[0].1.clone();
            match seen.get(&id) {
                Some(original) => assert!(repeats && *original == row, "row {index}"),
                None => assert!(!repeats, "row {index}"),
            }
            repeated += u64::from(repeats);
            seen.insert(id, row);
        }
        assert_eq!((repeated, seen.len()), (6_000, 14_000));
        let keys: std::collections::HashSet<_> = seen.values().map(|row| row[3].1.clone()).collect();
        assert_eq!(keys.len(), 50);
    }

    #[test]
    fn the_same_seed_gives_the_same_rows_and_another_others() {
        let rows = |seed| (0..100).map(|index| Generator::new(seed, 10, 0.1).row(index)).collect::<Vec<_>>();
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
    }
}
