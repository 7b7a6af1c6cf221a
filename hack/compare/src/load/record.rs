//! Records: each follows from its number, so that both builds get the same ones and a notification leads back to it.
//!
//! Pure.

use bytes::Bytes;

use crate::build::THRESHOLD;

/// Whole parts of values: those from the threshold on, about nine in a hundred, raise an alert.
const VALUES: u64 = 1_100;
const SOURCES: u64 = 97;

/// The records of a round. The first ones, `primed`, go ahead of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Records {
    /// How many destinations they have.
    pub(crate) keys: usize,
    /// Whether destinations come by Zipf's law, not equally often.
    pub(crate) zipf: bool,
    /// One for each of the first keys, in their order; zero where nothing goes ahead.
    pub(crate) primed: usize,
    /// How many are measured.
    pub(crate) measured: usize,
    /// Whether ids are in no order, as UUIDs are.
    pub(crate) random_ids: bool,
    /// Percentage of the measured records that repeat an earlier one.
    pub(crate) duplicates: u8,
    /// Characters of attributes.
    pub(crate) attributes: usize,
}

impl Records {
    /// How many there are in all.
    pub(crate) fn total(self) -> usize {
        self.primed + self.measured
    }

    /// Whether a record repeats an earlier one: it has the same id and content, and no notification.
    pub(crate) fn is_duplicate(self, n: usize) -> bool {
        n > self.primed && mix(n, 5) % 100 < u64::from(self.duplicates)
    }

    /// The first record with this content: the record itself, unless it is a duplicate.
    fn original(self, n: usize) -> usize {
        if !self.is_duplicate(n) {
            return n;
        }
        let mut earlier = self.primed + (mix(n, 6) % (n - self.primed) as u64) as usize;
        while self.is_duplicate(earlier) {
            earlier -= 1;
        }
        earlier
    }

    fn key(self, n: usize) -> usize {
        if n < self.primed {
            n % self.keys
        } else if self.zipf {
            // The k-th key then has the share ln((k + 1) / k) / ln(keys + 1), nearly 1 / k of the first one's.
            let uniform = mix(n, 1) as f64 / u64::MAX as f64;
            ((self.keys as f64 + 1.0).powf(uniform) as usize).clamp(1, self.keys) - 1
        } else {
            (mix(n, 1) % self.keys as u64) as usize
        }
    }

    /// A member of the record, with a comma before it; nothing without attributes.
    fn attributes_member(self, n: usize) -> String {
        if self.attributes == 0 {
            return String::new();
        }
        // Postgres would compress a text that repeats.
        let mut text: String =
            (0..self.attributes.div_ceil(16) as u64).map(|at| format!("{:016x}", mix(n, at + 16))).collect();
        text.truncate(self.attributes);
        format!(",\"attributes\":{{\"note\":\"{text}\"}}")
    }

    /// A record as JSON.
    pub(crate) fn json(self, n: usize) -> String {
        let n = self.original(n);
        // As many totals as keys: a key has one reference.
        let key = self.key(n);
        format!(
            "{{\"recordId\":\"{}\",\"time\":\"2026-01-31T12:00:00Z\",\"sourceId\":\"source-{}\",\
             \"destinationId\":\"destination-{key}\",\"type\":\"positive\",\"value\":\"{}.25\",\"unit\":\"EUR\",\
             \"reference\":\"reference-{}\"{}}}",
            self.id(n),
            mix(n, 2) % SOURCES,
            whole(n),
            key % 7,
            self.attributes_member(n),
        )
    }

    /// Records as bodies of single requests.
    pub(crate) fn singles(self, numbers: std::ops::Range<usize>) -> Vec<Bytes> {
        numbers.map(|n| Bytes::from(self.json(n))).collect()
    }

    /// Records as NDJSON, so many to a body.
    pub(crate) fn batches(self, numbers: std::ops::Range<usize>, size: usize) -> Vec<Bytes> {
        let end = numbers.end;
        let lines = |first: usize| (first..end.min(first + size)).map(|n| self.json(n)).collect::<Vec<_>>();
        numbers.step_by(size).map(|first| Bytes::from(lines(first).join("\n"))).collect()
    }

    fn id(self, n: usize) -> String {
        if self.random_ids { format!("{:016x}-{n}", mix(n, 3)) } else { format!("record-{n}") }
    }
}

/// The number of a record, by its id.
pub(crate) fn number(id: &str) -> Option<usize> {
    id.rsplit_once('-')?.1.parse().ok()
}

/// Whether a record raises an alert.
pub(crate) fn raises_alert(n: usize) -> bool {
    whole(n) >= THRESHOLD
}

fn whole(n: usize) -> u64 {
    mix(n, 4) % VALUES
}

/// A number that looks random and follows from these: splitmix64.
fn mix(n: usize, salt: u64) -> u64 {
    let mut z = (n as u64).wrapping_add(salt << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::{Records, number, raises_alert};

    const RECORDS: Records =
        Records { keys: 50, zipf: false, primed: 50, measured: 5_000, random_ids: false, duplicates: 0, attributes: 0 };

    fn parsed(records: Records, n: usize) -> Value {
        serde_json::from_str(&records.json(n)).unwrap()
    }

    #[test]
    fn an_id_leads_back_to_the_number() {
        for random_ids in [false, true] {
            let records = Records { random_ids, ..RECORDS };
            assert_eq!(number(parsed(records, 1_234)["recordId"].as_str().unwrap()), Some(1_234));
        }
        assert_eq!(number("another"), None);
    }

    #[test]
    fn an_alert_is_raised_above_the_threshold_and_by_about_nine_in_a_hundred() {
        for n in 0..RECORDS.total() {
            let value: f64 = parsed(RECORDS, n)["value"].as_str().unwrap().parse().unwrap();
            assert_eq!(raises_alert(n), value > 1_000.0);
        }
        let alerts = (0..100_000).filter(|n| raises_alert(*n)).count();
        assert!((8_000..10_000).contains(&alerts), "{alerts}");
    }

    #[test]
    fn the_primed_records_have_every_key_and_the_others_no_more() {
        let keys = |numbers: std::ops::Range<usize>| -> HashSet<String> {
            numbers.map(|n| parsed(RECORDS, n)["destinationId"].to_string()).collect()
        };
        assert_eq!(keys(0..RECORDS.primed).len(), 50);
        assert_eq!(keys(0..RECORDS.total()).len(), 50);
    }

    #[test]
    fn a_duplicate_repeats_an_earlier_record_with_all_its_content() {
        let records = Records { duplicates: 50, attributes: 40, ..RECORDS };
        let mut seen = HashSet::new();
        for n in 0..records.total() {
            assert_eq!(records.is_duplicate(n), !seen.insert(records.json(n)), "record {n}");
        }
        assert!((2_400..2_600).contains(&(records.total() - seen.len())), "{}", seen.len());
    }

    #[test]
    fn by_zipfs_law_the_first_of_a_thousand_keys_has_every_tenth_record() {
        let records = Records { keys: 1_000, zipf: true, primed: 0, measured: 100_000, ..RECORDS };
        let first = (0..records.total()).filter(|n| records.key(*n) == 0).count();
        assert!((9_500..10_500).contains(&first), "{first}");
        assert!((0..records.total()).any(|n| records.key(n) > 990));
    }

    #[test]
    fn attributes_have_the_wanted_length() {
        let attributes = parsed(Records { attributes: 100, ..RECORDS }, 77)["attributes"]["note"].clone();
        assert_eq!(attributes.as_str().unwrap().len(), 100);
        assert_eq!(parsed(RECORDS, 77).get("attributes"), None);
    }

    #[test]
    fn batches_hold_every_record_once() {
        let bodies = RECORDS.batches(50..1_300, 500);
        let lines: Vec<String> = bodies
            .iter()
            .flat_map(|body| String::from_utf8_lossy(body).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        assert_eq!(bodies.len(), 3);
        assert_eq!(lines, (50..1_300).map(|n| RECORDS.json(n)).collect::<Vec<_>>());
    }
}
