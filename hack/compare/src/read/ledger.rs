//! Every notification that is expected, and how often it came.
//!
//! Pure. Must never take two notifications of a record for one, nor one of a record that was not sent.

use std::fmt;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::load::{
    beside,
    record::{Records, number, raises_alert},
};

/// The sinks of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    Notifications,
    Alerts,
}

impl Sink {
    /// Both, in the order of their discriminants.
    pub(crate) const ALL: [Self; 2] = [Self::Notifications, Self::Alerts];

    /// Its name in the manifest.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Notifications => "notifications",
            Self::Alerts => "alerts",
        }
    }
}

/// Notifications of each sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) notifications: usize,
    pub(crate) alerts: usize,
}

impl Counts {
    /// Those that the first `n` of these records have. Duplicates have none.
    pub(crate) fn of_first(n: usize, records: Records) -> Self {
        let notified = || (0..n).filter(|n| !records.is_duplicate(*n));
        Self { notifications: notified().count(), alerts: notified().filter(|n| raises_alert(*n)).count() }
    }

    /// Whether there are at least so many in each sink.
    pub(crate) fn reach(self, wanted: Self) -> bool {
        self.notifications >= wanted.notifications && self.alerts >= wanted.alerts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} notifications and {} alerts", self.notifications, self.alerts)
    }
}

/// Notifications of a round.
#[derive(Debug)]
pub(crate) struct Ledger {
    records: Records,
    notified: Vec<bool>,
    alerted: Vec<bool>,
    pub(crate) counts: Counts,
}

/// The part of a notification's data that identifies the record.
#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    record: Identified<'a>,
}

#[derive(Deserialize)]
struct Identified<'a> {
    #[serde(rename = "recordId")]
    record_id: &'a str,
}

impl Ledger {
    /// For these records, none of which was notified.
    pub(crate) fn new(records: Records) -> Self {
        let none = vec![false; records.total()];
        Self { records, notified: none.clone(), alerted: none, counts: Counts::default() }
    }

    /// Notes an entry's data; returns the record's number. `None`: it is of the client beside the load.
    ///
    /// # Errors
    /// When the entry is of an unknown record, comes twice, or is an alert of a record below the threshold.
    pub(crate) fn note(&mut self, sink: Sink, data: &[u8]) -> anyhow::Result<Option<usize>> {
        let shown = || format!("{}: {}", sink.name(), String::from_utf8_lossy(data));
        let id = serde_json::from_slice::<Data>(data).with_context(shown)?.record.record_id;
        if beside::is_of_it(id) {
            return Ok(None);
        }
        let n = number(id).filter(|n| *n < self.notified.len() && !self.records.is_duplicate(*n));
        let Some(n) = n else { bail!("a notification of a record that was not sent: {}", shown()) };
        ensure!(sink == Sink::Notifications || raises_alert(n), "an alert below the threshold: {}", shown());
        let (seen, count) = match sink {
            Sink::Notifications => (&mut self.notified[n], &mut self.counts.notifications),
            Sink::Alerts => (&mut self.alerted[n], &mut self.counts.alerts),
        };
        ensure!(!*seen, "a notification came twice: {}", shown());
        *seen = true;
        *count += 1;
        Ok(Some(n))
    }

    /// Fails unless every record was notified.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let wanted = Counts::of_first(self.notified.len(), self.records);
        if self.counts == wanted {
            return Ok(());
        }
        let mut notified = (0..self.notified.len()).filter(|n| !self.records.is_duplicate(*n));
        let missing = notified.find(|n| !self.notified[*n] || (raises_alert(*n) && !self.alerted[*n])).unwrap_or(0);
        bail!("{} of {wanted}; of record {missing} the first is missing", self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Ledger, Sink};
    use crate::load::record::{Records, raises_alert};

    const TOTAL: usize = 200;

    const RECORDS: Records =
        Records { keys: 10, zipf: false, primed: 0, measured: TOTAL, random_ids: true, duplicates: 0, attributes: 0 };

    fn data(n: usize) -> Vec<u8> {
        format!(r#"{{"record":{},"summary":{{"previousCount":3}}}}"#, RECORDS.json(n)).into_bytes()
    }

    fn full(records: usize) -> Ledger {
        let mut ledger = Ledger::new(RECORDS);
        for n in 0..records {
            assert_eq!(ledger.note(Sink::Notifications, &data(n)).unwrap(), Some(n));
            if raises_alert(n) {
                ledger.note(Sink::Alerts, &data(n)).unwrap();
            }
        }
        ledger
    }

    fn error(result: anyhow::Result<Option<usize>>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn every_notification_and_alert_once_is_complete() {
        let ledger = full(TOTAL);
        ledger.check().unwrap();
        assert_eq!(ledger.counts, Counts::of_first(TOTAL, RECORDS));
        assert!(ledger.counts.alerts > 0 && ledger.counts.alerts < TOTAL);
    }

    #[test]
    fn a_notification_that_comes_twice_is_an_error() {
        let mut ledger = full(TOTAL);
        assert!(error(ledger.note(Sink::Notifications, &data(7))).contains("twice"));
        let alerted = (0..TOTAL).find(|n| raises_alert(*n)).unwrap();
        assert!(error(ledger.note(Sink::Alerts, &data(alerted))).contains("twice"));
    }

    #[test]
    fn an_alert_below_the_threshold_is_an_error() {
        let below = (0..TOTAL).find(|n| !raises_alert(*n)).unwrap();
        assert!(error(Ledger::new(RECORDS).note(Sink::Alerts, &data(below))).contains("below the threshold"));
    }

    #[test]
    fn a_notification_of_a_record_that_was_not_sent_is_an_error() {
        let mut ledger = Ledger::new(Records { measured: 10, ..RECORDS });
        assert!(error(ledger.note(Sink::Notifications, &data(10))).contains("not sent"));
        assert!(ledger.note(Sink::Notifications, b"{}").is_err());
    }

    #[test]
    fn a_record_of_the_client_beside_the_load_is_not_counted() {
        let mut ledger = Ledger::new(RECORDS);
        assert_eq!(ledger.note(Sink::Notifications, br#"{"record":{"recordId":"beside.7"}}"#).unwrap(), None);
        assert_eq!(ledger.counts, Counts::default());
    }

    #[test]
    fn a_duplicate_needs_no_notification_and_has_none() {
        let records = Records { duplicates: 30, ..RECORDS };
        let mut ledger = Ledger::new(records);
        for n in 0..TOTAL {
            let noted = ledger.note(Sink::Notifications, &data(n));
            assert_eq!(noted.is_err(), records.is_duplicate(n));
            if noted.is_ok() && raises_alert(n) {
                ledger.note(Sink::Alerts, &data(n)).unwrap();
            }
        }
        ledger.check().unwrap();
        assert!(ledger.counts.notifications < TOTAL);
    }

    #[test]
    fn a_missing_notification_or_alert_is_named() {
        assert!(full(150).check().unwrap_err().to_string().contains("record 150 "));
        let mut ledger = Ledger::new(RECORDS);
        (0..TOTAL).for_each(|n| drop(ledger.note(Sink::Notifications, &data(n))));
        let first = (0..TOTAL).find(|n| raises_alert(*n)).unwrap();
        assert!(ledger.check().unwrap_err().to_string().contains(&format!("record {first} ")));
    }
}
