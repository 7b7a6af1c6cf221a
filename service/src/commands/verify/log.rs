//! The checks of a shard's log, record by record in order: numbers, summaries, totals, thresholds, shard. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use rust_decimal::Decimal;
use serde_json::Value;

use super::{
    keys::{Added, Keys},
    pass::Extent,
    totals::{Threshold, TotalChecks},
};
use crate::{
    domain::{Seq, SeqRange, ShardId},
    store::{Differences, LoggedRecord, PolicyStart, StoredPolicy},
};

/// The thresholds of a policy version.
#[derive(Debug, Default)]
struct Thresholds {
    default: Option<Decimal>,
    of: HashMap<String, Decimal>,
    totals: Vec<Threshold>,
}

/// A policy version from a record on; without thresholds where the version is not stored.
#[derive(Debug, Clone)]
struct Active {
    from: Seq,
    version: i64,
    thresholds: Option<Arc<Thresholds>>,
}

/// The active policy versions of every shard.
#[derive(Debug, Default)]
pub(super) struct Policies(BTreeMap<ShardId, Vec<Active>>);

impl Policies {
    /// # Errors
    /// When a stored spec is no JSON.
    pub(super) fn new(stored: Vec<StoredPolicy>, starts: Vec<PolicyStart>) -> anyhow::Result<Self> {
        let mut thresholds = HashMap::new();
        for StoredPolicy { version, spec } in stored {
            thresholds.insert(version, Arc::new(Thresholds::of_spec(&serde_json::from_str(&spec)?)));
        }
        let mut shards: BTreeMap<ShardId, Vec<Active>> = BTreeMap::new();
        for PolicyStart { shard, from, version } in starts {
            let active = Active { from, version, thresholds: thresholds.get(&version).cloned() };
            shards.entry(shard).or_default().push(active);
        }
        Ok(Self(shards))
    }

    /// Whether a version that a shard ran has a threshold on totals.
    pub(super) fn has_totals(&self, shard: ShardId) -> bool {
        self.0.get(&shard).is_some_and(|active| active.iter().any(|active| !active.totals().is_empty()))
    }
}

impl Active {
    fn totals(&self) -> &[Threshold] {
        self.thresholds.as_ref().map_or(&[], |thresholds| &thresholds.totals)
    }
}

impl Thresholds {
    /// Read from the JSON and not by the types of the manifest: a newer version may have written it.
    fn of_spec(spec: &Value) -> Self {
        let decimal = |value: &Value| match value {
            Value::String(text) => Decimal::from_str_exact(text).ok(),
            other => Decimal::from_str_exact(&other.to_string()).ok(),
        };
        let of = spec.get("thresholds").and_then(Value::as_object).into_iter().flatten();
        Self {
            default: spec.get("threshold").and_then(decimal),
            of: of.filter_map(|(unit, value)| Some((unit.clone(), decimal(value)?))).collect(),
            totals: Threshold::of_spec(spec),
        }
    }
}

/// The state of the checks of one shard.
pub(super) struct LogChecks {
    shard: ShardId,
    shards: u16,
    /// The last number that was checked.
    before: Seq,
    gaps: Vec<SeqRange>,
    active: Vec<Active>,
    /// Destinations that belong to another shard, each named once.
    misplaced: HashSet<String>,
    pub(super) keys: Keys,
    pub(super) totals: TotalChecks,
    /// Whether a version that the shard ran has a threshold on totals.
    has_totals: bool,
    pub(super) records: i64,
    pub(super) alerts: i64,
}

impl LogChecks {
    /// `gaps` are those of the shard's records.
    pub(super) fn new(extent: Extent, gaps: Vec<SeqRange>, policies: &Policies, mut totals: TotalChecks) -> Self {
        let Extent { shard, shards, before, .. } = extent;
        let active: Vec<Active> = policies.0.get(&shard).cloned().unwrap_or_default();
        for of_version in &active {
            of_version.totals().iter().for_each(|threshold| totals.watch(of_version.version, threshold));
        }
        Self {
            shard,
            shards,
            before,
            gaps,
            active,
            misplaced: HashSet::new(),
            keys: Keys::new(before == Seq::ZERO),
            totals,
            has_totals: policies.has_totals(shard),
            records: 0,
            alerts: 0,
        }
    }

    /// Checks the next record.
    pub(super) fn record(&mut self, row: &LoggedRecord, found: &mut Differences) {
        let (shard, seq) = (self.shard, row.seq);
        if seq != self.before.next() {
            self.number(seq, found);
        }
        self.before = seq;
        self.records += 1;
        self.alerts += i64::from(row.threshold.is_some());
        self.alert(row, found);
        let Added { is_new, before } = self.keys.add(row, || format!("record {shard}-{seq}"), found);
        self.total_alerts(row, before, found);
        if is_new {
            let destination = &row.record.destination_id;
            let expected = ShardId::of(destination, self.shards);
            if expected != shard && self.misplaced.insert(destination.as_str().to_owned()) {
                found.add("shard", format!("destination {destination}"), expected.to_string(), shard.to_string());
            }
        }
    }

    /// The numbers before `seq` are missing: the owner must have skipped as many.
    fn number(&self, seq: Seq, found: &mut Differences) {
        let (first, last) = (self.before.get() + 1, seq.get() - 1);
        let skipped = self.gaps.iter().filter(|gap| gap.upto.get() >= first && gap.after.get() < last);
        let skipped: i64 = skipped.map(|gap| gap.upto.get().min(last) - (gap.after.get() + 1).max(first) + 1).sum();
        if skipped != last - first + 1 {
            let place = format!("records of shard {}", self.shard);
            found.add("number", place, "numbers without gaps", format!("{first} to {last} missing"));
        }
    }

    /// A record has exactly the alerts of the totals that it takes over thresholds of the active policy version.
    fn total_alerts(&mut self, row: &LoggedRecord, before: i128, found: &mut Differences) {
        if !self.has_totals && row.total_alerts.is_none() {
            return;
        }
        let active = self.active.partition_point(|active| active.from <= row.seq).checked_sub(1);
        let active = active.and_then(|index| self.active.get(index)).filter(|active| active.thresholds.is_some());
        let active = active.map(|active| (active.version, active.totals()));
        self.totals.record(row, before, active, found);
    }

    /// A record has an alert exactly if its value exceeds the threshold of the policy version that was active.
    fn alert(&self, row: &LoggedRecord, found: &mut Differences) {
        let active = self.active.partition_point(|active| active.from <= row.seq).checked_sub(1);
        let active = active.and_then(|index| self.active.get(index));
        let thresholds = active.and_then(|active| active.thresholds.as_deref());
        let value = row.record.value.get();
        let expected = thresholds
            .and_then(|thresholds| thresholds.of.get(row.record.unit.as_str()).copied().or(thresholds.default))
            .filter(|threshold| value > *threshold);
        if thresholds.is_some() && expected == row.threshold {
            return;
        }
        let expected = match (active, thresholds, expected) {
            (Some(Active { version, .. }), Some(_), None) => format!("no threshold in policy {version}"),
            (Some(Active { version, .. }), Some(_), Some(threshold)) => {
                format!("judged by {threshold} of policy {version}")
            }
            _ => "a policy version that is stored for it".to_owned(),
        };
        let place = format!("record {}-{} of value {value}", self.shard, row.seq);
        let stored = row.threshold.map_or("no alert".to_owned(), |threshold| format!("alert at {threshold}"));
        found.add("alert", place, expected, stored);
    }
}
