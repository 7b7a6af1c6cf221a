//! The check after each round: compares requests and their answers with the outcomes, by code that shares none with
//! the product.
//!
//! Relies on the order of the log only: it adds totals and summaries up again, in whole billionths. Entries that a
//! fault destroys by its nature are counted and are no violation; their number must lie within the bounds that the
//! product reports.

mod counts;
mod log;
mod refused;
mod reversals;
mod rollups;
mod stored;
#[cfg(test)]
mod tests;
mod totals;
mod webhook;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use serde::Serialize;
use serde_json::Value;
use totals::TotalAlerts;

use crate::{
    endpoint::Delivery,
    load::{
        Load,
        history::{DEAD_LETTERED, Final, MANY, PROCESSED, PROMISED, UNORDERED, Varied},
        record::{Code, Content},
    },
    read::Entry,
    world::SHARDS,
};

/// Most details of a kind of violation in a round.
const DETAILS: usize = 5;

/// A kind of violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Wrong {
    /// An accepted entry without an outcome.
    Lost,
    /// More outcomes than entries, or a number given twice.
    Doubled,
    /// Not in the order of one client's sends, or a sink not in the order of the log.
    Reordered,
    /// An outcome of an entry that was never sent.
    Ghost,
    /// Wrong content, summary, total, alert or count.
    Miscounted,
    /// A pipeline does not become idle, or a process ended by itself.
    Stuck,
    /// Processes do not return memory.
    Memory,
    /// A problem is not reported, or reported where there is none.
    Unreported,
    /// A read that is older than the history of its client.
    Stale,
    /// A step of the protocol that the model does not allow.
    Rejected,
}

/// A violation, found in a round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Violation {
    pub(crate) round: u64,
    pub(crate) wrong: Wrong,
    pub(crate) detail: String,
}

/// The losses that the faults of a round may cause.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowed {
    /// Redis lost acknowledged writes.
    pub(crate) redis_lost: bool,
    /// And entries of the sinks' streams.
    pub(crate) sinks_lost: bool,
    /// Entries that faults took from Redis, where their number is known.
    pub(crate) at_most: Option<u64>,
    /// Postgres lost committed rows.
    pub(crate) postgres_lost: bool,
    /// Most malformed entries that the campaign itself appended.
    pub(crate) external: u64,
}

impl Allowed {
    /// Whether anything may be lost.
    fn loses(self) -> bool {
        self.redis_lost || self.postgres_lost
    }
}

/// A line of a shard's log: the record, a digest of its notification, and the number of its alerts of totals.
#[derive(Debug, Clone, Copy)]
struct Line {
    code: Code,
    digest: u32,
    total_alerts: u8,
}

impl Line {
    /// A line without a record, or with an unknown one.
    fn of_none(digest: u32) -> Self {
        Self { code: Code::NONE, digest, total_alerts: 0 }
    }
}

/// The outcomes of a shard.
#[derive(Debug, Default)]
struct Shard {
    /// By number, from 1.
    log: Vec<Line>,
    /// Numbers whose alert is still to come.
    alerts: VecDeque<i64>,
    /// The last number whose alert came.
    alerted: i64,
    total_alerts: TotalAlerts,
    /// Dead letters and conflicts, by number from 1; skipped numbers have lines without a record.
    dead_letters: Vec<Line>,
    conflicts: Vec<Line>,
    /// Length of the log that was compared with Postgres, and the period of its last record.
    compared: usize,
    period: String,
}

impl Shard {
    /// The lines of this kind of number.
    fn lines(&self, kind: &str) -> &Vec<Line> {
        match kind {
            "dead_letters" => &self.dead_letters,
            "conflicts" => &self.conflicts,
            _ => &self.log,
        }
    }
}

/// Count and sum of a key, in billionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    count: i64,
    total: i128,
}

/// Destination, reference, unit.
type Key = (String, String, String);

/// Outcomes so far, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) processed: i64,
    pub(crate) duplicates: i64,
    pub(crate) conflicts: i64,
    pub(crate) dead_letters: i64,
    pub(crate) alerts: i64,
    /// Those of the processed ones that are reversals.
    pub(crate) reversals: i64,
    pub(crate) total_alerts: i64,
    /// Dead letters of malformed entries that the campaign appended.
    pub(crate) external: i64,
}

/// The check and its state.
#[derive(Debug)]
pub(crate) struct Check {
    load: Arc<Load>,
    shards: Vec<Shard>,
    keys: HashMap<Key, Sum>,
    /// Sum by destination and unit: policy.minimumTotal bounds it.
    balances: HashMap<(String, &'static str), i128>,
    /// The lowest balance of each in this round, where it changed.
    lows: HashMap<(String, &'static str), i128>,
    /// Number of the last record of a client to a destination.
    order: HashMap<(u16, String), u32>,
    pub(crate) counts: Counts,
    /// The newest transaction whose duplicates were counted: the clock of Postgres can move back.
    counted_until: i64,
    /// Gaps of numbers that were applied to the state.
    gaps: HashMap<(usize, String, i64), i64>,
    delivered: webhook::Delivered,
    /// How many gaps Postgres has noted, of all kinds.
    noted_gaps: usize,
    /// Accepted entries that faults destroyed where they may.
    pub(crate) destroyed: u64,
    /// The upper bound of entries that faults may have destroyed, those with an unknown outcome included.
    may_be_lost: i64,
    pub(crate) violations: Vec<Violation>,
    /// How often each kind of violation was found.
    pub(crate) times: BTreeMap<Wrong, u64>,
    pub(crate) round: u64,
    allowed: Allowed,
    /// The number of lost records that the product reported last.
    pub(crate) reported_lost: i64,
    /// Whether it reports that more can be lost.
    pub(crate) is_loss_uncertain: bool,
}

impl Check {
    /// A check without any outcome.
    pub(crate) fn new(load: &Arc<Load>) -> Self {
        Self {
            load: Arc::clone(load),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            keys: HashMap::new(),
            balances: HashMap::new(),
            lows: HashMap::new(),
            order: HashMap::new(),
            counts: Counts::default(),
            counted_until: 0,
            gaps: HashMap::new(),
            delivered: webhook::Delivered::default(),
            noted_gaps: 0,
            destroyed: 0,
            may_be_lost: 0,
            violations: Vec::new(),
            times: BTreeMap::new(),
            round: 0,
            allowed: Allowed::default(),
            reported_lost: 0,
            is_loss_uncertain: false,
        }
    }

    /// Checks an idle pipeline after a round. `read`: the entries that each sink's reader read since the last round;
    /// `deliveries`: of the webhook, and whether their repetitions have a bound; `answers`: `/stats` and
    /// `/records/aggregations`.
    pub(crate) async fn round(
        &mut self,
        round: u64,
        allowed: Allowed,
        read: Vec<Vec<Entry>>,
        deliveries: (Vec<Delivery>, bool),
        answers: (&Value, &Value),
        sql: &mut sqlx::PgConnection,
    ) -> anyhow::Result<()> {
        (self.round, self.allowed) = (round, allowed);
        self.lows.clear();
        let gaps = self.new_gaps(sql).await?;
        let [records, alerts, dead_letters, conflicts, total_alerts]: [Vec<Entry>; 5] =
            read.try_into().unwrap_or_default();
        self.notifications(records, &gaps);
        self.alerts(&alerts, &gaps);
        self.total_alerts(&total_alerts, &gaps);
        self.dead_letters(&dead_letters, &gaps);
        self.conflicts(&conflicts, &gaps);
        let epochs: Vec<(i32, i64)> = sqlx::query_as("select shard, epoch from shards").fetch_all(&mut *sql).await?;
        self.deliveries(deliveries.0, &gaps, &epochs, deliveries.1);
        self.duplicates(sql).await?;
        if allowed.postgres_lost {
            self.recount(sql).await?;
        }
        self.stored(sql).await?;
        self.totals(sql).await?;
        self.rollups(sql).await?;
        self.reversals(sql).await?;
        self.promises();
        self.every_id();
        self.stats(answers.0);
        self.aggregations(answers.1);
        Ok(())
    }

    /// Notes a violation; of each kind only some in a round.
    pub(crate) fn wrong(&mut self, wrong: Wrong, detail: impl FnOnce() -> String) {
        *self.times.entry(wrong).or_default() += 1;
        let alike = self.violations.iter().rev().take_while(|other| other.round == self.round);
        let alike = alike.filter(|other| other.wrong == wrong).count();
        if alike < DETAILS {
            self.violations.push(Violation { round: self.round, wrong, detail: detail() });
        } else if let Some(last) = self.violations.iter_mut().rev().find(|other| other.wrong == wrong) {
            let text = last.detail.split(" (and more").next().unwrap_or_default().to_owned();
            last.detail = format!("{text} (and more of it)");
        }
    }

    /// Every touched id has as many outcomes as accepted entries.
    fn every_id(&mut self) {
        let load = Arc::clone(&self.load);
        let mut history = load.history();
        let touched = std::mem::take(&mut history.touched);
        let destroyed = self.destroyed;
        for code in touched {
            let Some(known) = history.known(code) else { continue };
            if known.is(MANY) {
                // Too many entries to count.
                self.may_be_lost += if self.allowed.loses() { i64::from(u8::MAX) } else { 0 };
                continue;
            }
            let (taken, unknown, applied) = (known.taken, known.unknown, known.applied);
            let counts = known.is(PROCESSED) || known.is(DEAD_LETTERED);
            if applied < taken {
                if self.allowed.loses() {
                    self.destroyed += u64::from(taken - applied);
                    known.taken = applied;
                    known.set(UNORDERED, true);
                    if known.is(PROMISED) && !counts && !self.allowed.postgres_lost {
                        self.wrong(Wrong::Lost, || format!("{} was answered with its outcome and is lost", code.id()));
                    }
                } else {
                    self.wrong(Wrong::Lost, || format!("{}: {taken} accepted, {applied} with an outcome", code.id()));
                    known.taken = applied;
                }
            }
            if self.allowed.loses() {
                let sent = i64::from(taken) + i64::from(unknown);
                self.may_be_lost += (sent - i64::from(applied)).max(0);
            }
            if u16::from(applied) > u16::from(taken) + u16::from(unknown) {
                self.wrong(Wrong::Doubled, || {
                    format!("{}: {taken} accepted and {unknown} unknown, {applied} with an outcome", code.id())
                });
                known.taken = applied;
            }
            if applied > 0 && !counts {
                self.wrong(Wrong::Lost, || format!("{}: {applied} with an outcome, none of them counts", code.id()));
            }
            if let Some(varied) = history.varied.get_mut(&code) {
                varied.ambiguous |= self.allowed.loses();
                let varied = varied.clone();
                self.conflicts_of(code, &varied);
            }
        }
        let destroyed = self.destroyed - destroyed;
        if let Some(at_most) = self.allowed.at_most.filter(|at_most| destroyed > *at_most) {
            self.wrong(Wrong::Lost, || format!("{destroyed} are lost, and faults took {at_most}"));
        }
    }

    /// Of the contents that were sent under an id one counts, and each entry of another is a conflict.
    fn conflicts_of(&mut self, code: Code, varied: &Varied) {
        let Some(first) = varied.first.filter(|_| !varied.ambiguous) else { return };
        let content = |code| Content::of(self.load.seed, code);
        let first = content(code.with_variant(first));
        let others = code.variants().filter(|variant| !content(*variant).has_same_content(&first));
        let (mut least, mut most) = (0, 0);
        for other in others.map(|variant| usize::from(variant.variant())) {
            least += varied.taken[other];
            most += varied.taken[other] + varied.unknown[other];
        }
        let came = varied.conflicts;
        let wrong = if came < least { Wrong::Lost } else { Wrong::Miscounted };
        if !(least..=most).contains(&came) {
            self.wrong(wrong, || {
                format!("{}: {came} conflicts, of {least} to {most} entries of other content", code.id())
            });
        }
    }

    /// Each outcome that an answer named still holds.
    fn promises(&mut self) {
        let load = Arc::clone(&self.load);
        let promises = std::mem::take(&mut load.history().promises);
        for promise in promises {
            let (code, content) = (promise.code.with_variant(0), Content::of(self.load.seed, promise.code));
            let kept = match promise.outcome {
                Final::Processed(place) => {
                    let (shard, seq) = place.unwrap_or_default();
                    let line = self.shards.get(shard).and_then(|shard| shard.log.get(usize::try_from(seq - 1).ok()?));
                    line.is_some_and(|line| {
                        line.code.with_variant(0) == code
                            && Content::of(self.load.seed, line.code).has_same_content(&content)
                    })
                }
                Final::Conflict => load.history().varied.get(&code).is_some_and(|varied| varied.conflicts > 0),
                Final::DeadLetter => load.history().known(code).is_some_and(|known| known.is(DEAD_LETTERED)),
            };
            if !kept && !self.allowed.postgres_lost {
                self.wrong(Wrong::Lost, || {
                    format!("{} was answered {:?}, which does not hold", promise.code.id(), promise.outcome)
                });
            }
        }
    }
}

/// A digest of a text, to recognise it; never 0.
pub(crate) fn digest(text: &str) -> u32 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    // 0 means none.
    (hasher.finish() as u32).max(1)
}
