//! Compares `/stats` and sums of the API with the outcomes; the reported loss is the loss.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Check, Sum, Wrong};
use crate::decimal;

impl Check {
    /// Compares counts, and the number of lost records.
    pub(super) fn stats(&mut self, stats: &Value) {
        let number = |path: &str| stats.pointer(path).and_then(Value::as_i64);
        let dead_letters =
            ["open", "discarded", "replayed"].map(|state| number(&format!("/deadLetters/{state}")).unwrap_or(-1));
        let counts = self.counts.clone();
        let lost = number("/lost").unwrap_or(0);
        let is_uncertain = stats["lossUncertain"] == true;
        let received =
            counts.processed + counts.duplicates + counts.conflicts + dead_letters[0] + dead_letters[1] + lost;
        for (name, reported, due) in [
            ("processed", number("/processed"), counts.processed),
            ("duplicates", number("/duplicates"), counts.duplicates),
            ("conflicts", number("/conflicts"), counts.conflicts),
            ("deadLetters", Some(dead_letters.iter().sum()), counts.dead_letters),
            ("alerts", number("/alerts"), counts.alerts),
            ("totalAlerts", number("/totalAlerts"), counts.total_alerts),
            ("received", number("/received"), received),
        ] {
            if reported != Some(due) {
                self.wrong(Wrong::Miscounted, || format!("/stats: {name} is {reported:?}, not {due}"));
            }
        }
        self.losses(lost, is_uncertain);
    }

    /// Compares the sums of the API per destination and unit.
    pub(super) fn aggregations(&mut self, answer: &Value) {
        let mut due: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
        for ((destination, _, unit), sum) in &self.keys {
            let all = due.entry((destination, unit)).or_default();
            *all = Sum { count: all.count + sum.count, total: all.total + sum.total };
        }
        due.retain(|_, sum| sum.count > 0);
        let mut reported = BTreeMap::new();
        for group in answer["groups"].as_array().into_iter().flatten() {
            for total in group["totals"].as_array().into_iter().flatten() {
                let key =
                    (group["destinationId"].as_str().unwrap_or_default(), total["unit"].as_str().unwrap_or_default());
                let sum = total["total"].as_str().and_then(decimal::parse).unwrap_or(i128::MAX);
                reported.insert(key, Sum { count: total["count"].as_i64().unwrap_or(-1), total: sum });
            }
        }
        if reported != due {
            let differs = due.iter().find(|(key, sum)| reported.get(*key) != Some(*sum));
            let detail =
                format!("/records/aggregations: {} sums for {}; due is {differs:?}", reported.len(), due.len());
            self.wrong(Wrong::Miscounted, || detail);
        }
    }

    /// Compares the number of lost records over the whole run. Records of unknown outcome count where Redis had appended
    /// them: so it is between those that were acknowledged and lost, and all that can be lost. `is_uncertain`: the product
    /// reports that more can be lost.
    fn losses(&mut self, lost: i64, is_uncertain: bool) {
        let before = std::mem::replace(&mut self.reported_lost, lost);
        self.is_loss_uncertain = is_uncertain;
        let upper = self.may_be_lost;
        if lost > upper {
            self.wrong(Wrong::Miscounted, || format!("/stats: lost is {lost}, and at most {upper} can be lost"));
        }
        if lost != before && !self.allowed.loses() {
            self.wrong(Wrong::Miscounted, || {
                format!("/stats: lost is {lost} and was {before}; no fault of this round loses anything")
            });
        }
        if lost < self.destroyed as i64 && !is_uncertain {
            let destroyed = self.destroyed;
            self.wrong(Wrong::Miscounted, || format!("/stats: lost is {lost}, and {destroyed} were lost"));
        }
    }
}
