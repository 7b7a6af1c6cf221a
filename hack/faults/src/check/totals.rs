//! Alerts of totals: exactly those that follow from the log, each once, in its order.

use std::collections::VecDeque;

use serde_json::Value;

use super::{Check, Line, Wrong, stored::Gaps};
use crate::{
    decimal,
    load::record::{Code, Content, TOTAL_THRESHOLDS, TotalThreshold},
    read::Entry,
    world::SHARDS,
};

/// A total before a record and with it, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) before: i128,
    pub(super) after: i128,
}

/// An alert that is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    seq: i64,
    /// Its place in `TOTAL_THRESHOLDS`.
    threshold: usize,
    steps: i64,
    total: Step,
}

/// The alerts of a shard.
#[derive(Debug, Default)]
pub(super) struct TotalAlerts {
    due: VecDeque<Due>,
    /// Number and threshold of the last one that came.
    last: (i64, usize),
}

impl TotalAlerts {
    /// A record that Postgres lost raises none.
    pub(super) fn drop_of(&mut self, seq: i64) {
        self.due.retain(|due| due.seq != seq);
    }
}

/// How many steps a total goes over.
fn steps(threshold: &TotalThreshold, Step { before, after }: Step) -> i64 {
    let number = |text: &str| decimal::parse(text).unwrap_or_default();
    let (bound, every) = (number(threshold.bound), number(threshold.every));
    let over = |total: i128| if threshold.is_above { total - bound } else { bound - total };
    let (mut steps, mut at) = (0, 0);
    while over(after) > at {
        steps += i64::from(over(before) <= at);
        at += every;
    }
    steps
}

impl Check {
    /// Notes the alerts of a record that changes the totals of its key and of its destination.
    pub(super) fn total_alerts_due(&mut self, shard: usize, seq: i64, unit: &str, key: Step, destination: Step) {
        for (place, threshold) in TOTAL_THRESHOLDS.iter().enumerate().filter(|(_, threshold)| threshold.unit == unit) {
            let total = if threshold.per == "Key" { key } else { destination };
            let steps = steps(threshold, total);
            if steps > 0 {
                self.shards[shard].total_alerts.due.push_back(Due { seq, threshold: place, steps, total });
                self.counts.total_alerts += 1;
                let line = self.shards[shard].log.get_mut((seq - 1) as usize);
                line.into_iter().for_each(|line| line.total_alerts += 1);
            }
        }
    }

    /// Checks the alerts of totals.
    pub(super) fn total_alerts(&mut self, entries: &[Entry], gaps: &Gaps) {
        for entry in entries {
            let place = entry.place().filter(|(shard, _)| *shard < SHARDS);
            let named = |threshold: &TotalThreshold| entry.id.ends_with(&format!("-total-{}", threshold.name));
            let Some(((shard, seq), threshold)) = place.zip(TOTAL_THRESHOLDS.iter().position(named)) else {
                self.wrong(Wrong::Ghost, || format!("an alert of a total with id {:?}", entry.id));
                continue;
            };
            self.check_envelope(entry, "record.total_alert", TOTAL_THRESHOLDS[threshold].name);
            let alerts = &mut self.shards[shard].total_alerts;
            if (seq, threshold) <= alerts.last {
                if !self.allowed.sinks_lost {
                    self.wrong(Wrong::Doubled, || format!("alert {} came again", entry.id));
                }
                continue;
            }
            alerts.last = (seq, threshold);
            let is_due = alerts.due.front().is_some_and(|due| (due.seq, due.threshold) == (seq, threshold));
            // A record that Postgres lost may have raised an alert before it was a notification.
            if !is_due && gaps.have(shard, "records", seq) && self.allowed.postgres_lost {
                continue;
            }
            let due = if is_due { alerts.due.pop_front() } else { None };
            let Some(due) = due else {
                let first = self.shards[shard].total_alerts.due.front().copied();
                self.wrong(Wrong::Miscounted, || format!("alert {} came where {first:?} was due", entry.id));
                continue;
            };
            self.total_alert_content(shard, entry, due);
        }
        for shard in 0..SHARDS {
            let missing = std::mem::take(&mut self.shards[shard].total_alerts.due);
            if let Some(first) = missing.front() {
                self.wrong(Wrong::Lost, || {
                    format!("{} alerts of totals of shard {shard} did not come, from {first:?}", missing.len())
                });
            }
        }
    }

    fn total_alert_content(&mut self, shard: usize, entry: &Entry, due: Due) {
        let data: Value = serde_json::from_str(&entry.data).unwrap_or_default();
        let code = self.shards[shard].log.get((due.seq - 1) as usize).map_or(Code::NONE, |line| line.code);
        let (alert, threshold) = (&data["totalAlert"], &TOTAL_THRESHOLDS[due.threshold]);
        let number = |field: &str| alert[field].as_str().and_then(decimal::parse);
        let bound = if threshold.is_above { "above" } else { "below" };
        let is_right = code != Code::NONE
            && Content::of(self.load.seed, code).matches(&data["record"])
            && alert["name"] == threshold.name
            && alert["per"] == threshold.per
            && alert["steps"] == due.steps
            && number(bound) == decimal::parse(threshold.bound)
            && number("every") == decimal::parse(threshold.every)
            && (number("previousTotal"), number("total")) == (Some(due.total.before), Some(due.total.after));
        if !is_right {
            self.wrong(Wrong::Miscounted, || format!("alert {} has {data}, and {due:?} was due", entry.id));
        }
    }
}

impl Line {
    /// Whether a sink of alerts of totals has it.
    pub(super) fn has_total_alerts(&self) -> bool {
        self.code != Code::NONE && self.total_alerts > 0
    }
}
