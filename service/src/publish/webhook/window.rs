//! Which delivery comes next, and what is stored of those that ended: pure, without a server and a clock.
//!
//! It must never start a delivery whose destination waits for an earlier one, and must never move the cursor over an outcome
//! that is neither delivered nor held by a row that waits. It holds a bounded number of outcomes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use millrace_crds::Ordering;

use super::{
    health::Health,
    waiting::{After, Followed, Waiting},
};
use crate::{
    domain::{Attempt, Seq},
    publish::outcomes::Outcome,
    store::{DeliveryRow, WebhookPosition},
};

/// Most numbers above the cursor whose outcome is stored.
const MOST_DONE: usize = 1_024;
/// Most deliveries of a shard that wait.
pub(super) const MOST_WAITING: usize = 1_000;

/// An outcome to deliver.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) outcome: Outcome,
    pub(super) destination: Arc<str>,
    /// The number of the one before of the same destination.
    pub(super) previous: Option<Seq>,
}

impl Delivery {
    pub(super) fn seq(&self) -> Seq {
        self.outcome.notice.seq
    }
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Deliver an outcome that was read.
    Send(Arc<Delivery>),
    /// Read the outcome of this number again, and deliver it.
    Retry(Seq),
}

/// What comes after a delivery that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing.
    Nothing,
    /// Look for the first outcome of the destination of `seq` above it and up to `upto`; [`Window::followed`] takes it.
    Follow { seq: Seq, upto: Seq },
}

/// What Postgres has to hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Changes {
    pub(super) cursor: Seq,
    pub(super) done: Vec<Seq>,
    pub(super) failing_since: Option<DateTime<Utc>>,
    pub(super) rows: Vec<DeliveryRow>,
    pub(super) removed: Vec<Seq>,
    /// Deliveries that are no longer in flight once this is stored.
    ended: usize,
}

/// The outcomes of one shard and sink that are being delivered.
#[derive(Debug)]
pub(super) struct Window {
    ordering: Ordering,
    most_in_flight: usize,
    /// All outcomes up to it were read.
    seen: Seq,
    /// Read, and neither delivered nor waiting.
    open: BTreeMap<Seq, Arc<Delivery>>,
    /// The open ones by destination, in order; only with an order. The first may be under way.
    destinations: HashMap<Arc<str>, VecDeque<Seq>>,
    /// The open ones that may start.
    ready: BTreeSet<Seq>,
    /// Above the cursor: delivered, or held by a row that waits.
    done: BTreeSet<Seq>,
    waiting: Waiting,
    health: Health,
    /// Under way.
    under_way: usize,
    /// Delivered, and not stored.
    unstored: usize,
    /// Of those, in the changes that come next.
    ended: usize,
    /// What was stored last.
    stored: (Seq, Option<DateTime<Utc>>),
}

impl Window {
    /// Continues where Postgres stands; `rows` are those that wait.
    pub(super) fn new(
        ordering: Ordering,
        most_in_flight: usize,
        position: &WebhookPosition,
        rows: Vec<DeliveryRow>,
        now: DateTime<Utc>,
    ) -> Self {
        let done: BTreeSet<Seq> = position.done.iter().copied().collect();
        let passed = done.last().copied().unwrap_or_default().max(position.cursor);
        Self {
            ordering,
            most_in_flight,
            seen: position.cursor,
            open: BTreeMap::new(),
            destinations: HashMap::new(),
            ready: BTreeSet::new(),
            done,
            waiting: Waiting::stored(rows, passed),
            health: Health::stored(position.failing_since, now),
            under_way: 0,
            unstored: 0,
            ended: 0,
            stored: (position.cursor, position.failing_since),
        }
    }

    /// All outcomes up to it were read.
    pub(super) fn seen(&self) -> Seq {
        self.seen
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether so many deliveries wait that nothing more is read.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST_WAITING
    }

    /// Whether the next page can be read.
    pub(super) fn takes_more(&self) -> bool {
        let room = if self.health.failing_since().is_some() { 1 } else { self.most_in_flight * 2 };
        self.open.len() < room && self.done.len() < MOST_DONE && !self.is_full()
    }

    /// All numbers of the shard up to it are delivered, failed for good, or not of the sink.
    pub(super) fn delivered_through(&self) -> Seq {
        let lowest = self.open.keys().next().copied().into_iter().chain(self.waiting.first()).min();
        lowest.map_or(self.seen, before).min(self.seen)
    }

    fn cursor(&self) -> Seq {
        self.open.keys().next().map_or(self.seen, |first| before(*first))
    }

    /// Adds the outcomes that follow `seen`.
    pub(super) fn add(&mut self, deliveries: Vec<Delivery>, upto: Seq) {
        for delivery in deliveries {
            let seq = delivery.seq();
            assert!(self.seen < seq && seq <= upto, "outcomes are read once, in order");
            self.seen = seq;
            if self.done.contains(&seq) || self.waiting.get(seq).is_some() {
                continue;
            }
            if self.waiting.pass_over(&delivery.destination, seq) {
                self.done.insert(seq);
                continue;
            }
            if self.ordering == Ordering::Destination {
                let numbers = self.destinations.entry(Arc::clone(&delivery.destination)).or_default();
                numbers.push_back(seq);
                if numbers.len() == 1 {
                    self.ready.insert(seq);
                }
            } else {
                self.ready.insert(seq);
            }
            self.open.insert(seq, Arc::new(delivery));
        }
        self.seen = self.seen.max(upto);
    }

    /// The next delivery to start.
    pub(super) fn next(&mut self, now: DateTime<Utc>) -> Option<Next> {
        if self.under_way + self.unstored >= self.most_in_flight {
            return None;
        }
        let next = match self.health.next_attempt_at() {
            Some(at) if self.under_way > 0 || at > now => None,
            Some(_) => self.probe(),
            None => self.waiting.take_due(now).map(Next::Retry).or_else(|| {
                let seq = self.ready.pop_first()?;
                Some(Next::Send(Arc::clone(&self.open[&seq])))
            }),
        };
        self.under_way += usize::from(next.is_some());
        next
    }

    /// The delivery that shows whether an endpoint works again: the oldest, and in turn with it the oldest that was never
    /// tried. If the endpoint refuses the oldest one alone, the other shows it.
    fn probe(&mut self) -> Option<Next> {
        let (open, waits) = (self.ready.first().copied(), self.waiting.first_idle());
        let seq = match (open, waits) {
            (Some(open), Some(_)) if self.health.attempts() % 2 == 1 => open,
            (open, waits) => open.into_iter().chain(waits).min()?,
        };
        if self.ready.remove(&seq) {
            return Some(Next::Send(Arc::clone(&self.open[&seq])));
        }
        Some(Next::Retry(self.waiting.take(seq)))
    }

    /// When [`Self::next`] has to be asked again although nothing ended.
    pub(super) fn wakes_at(&self) -> Option<DateTime<Utc>> {
        match self.health.next_attempt_at() {
            Some(_) if self.under_way > 0 || self.ready.is_empty() && self.waiting.first_idle().is_none() => None,
            Some(at) => Some(at),
            None if self.under_way + self.unstored >= self.most_in_flight => None,
            None => self.waiting.next_due(),
        }
    }

    /// Notes that a delivery succeeded.
    pub(super) fn delivered(&mut self, seq: Seq, now: DateTime<Utc>) -> Then {
        self.under_way -= 1;
        self.unstored += 1;
        if self.health.succeeded() {
            self.waiting.restart(now);
        }
        if let Some(delivery) = self.open.remove(&seq) {
            self.done.insert(seq);
            self.ended += 1;
            self.advance(&delivery.destination, seq);
            return Then::Nothing;
        }
        self.conclude(seq)
    }

    /// Lets the next delivery of a destination start.
    fn advance(&mut self, destination: &Arc<str>, seq: Seq) {
        let Some(numbers) = self.destinations.get_mut(destination) else { return };
        assert_eq!(numbers.pop_front(), Some(seq), "deliveries of a destination end in order");
        match numbers.front() {
            Some(next) => {
                self.ready.insert(*next);
            }
            None => {
                self.destinations.remove(destination);
            }
        }
    }

    /// Notes that a delivery failed. `asked`: the pause that the endpoint asks for.
    pub(super) fn failed(&mut self, seq: Seq, attempt: Attempt, asked: Option<Duration>) -> Then {
        self.under_way -= 1;
        let open = self.open.get(&seq).map(|delivery| Arc::clone(&delivery.destination));
        let destination = open.clone().or_else(|| self.waiting.get(seq).map(|row| Arc::clone(&row.destination)));
        let Some(destination) = destination else { return Then::Nothing };
        self.health.failed(&destination, asked, attempt.at);
        let endpoint_fails = self.health.failing_since().is_some();
        match (open, endpoint_fails) {
            (Some(_), true) => {
                self.ready.insert(seq);
            }
            (Some(_), false) => self.wait(seq, destination, attempt, asked),
            (None, true) => self.waiting.postpone(seq),
            (None, false) => {
                if let Some(After::Follow(upto)) = self.waiting.failed(seq, attempt, asked) {
                    return Then::Follow { seq, upto };
                }
            }
        }
        Then::Nothing
    }

    /// Lets a delivery wait, and with it the later ones of its destination.
    fn wait(&mut self, seq: Seq, destination: Arc<str>, attempt: Attempt, asked: Option<Duration>) {
        let held = self.destinations.remove(&destination).unwrap_or_else(|| VecDeque::from([seq]));
        let ordered = self.ordering == Ordering::Destination;
        for held in &held {
            self.open.remove(held);
            self.ready.remove(held);
            self.done.insert(*held);
        }
        let passed = held.back().copied().unwrap_or(seq);
        self.waiting.add(seq, destination, ordered, passed, attempt, asked);
    }

    /// Notes that an outcome is no longer in the log: nothing is left to deliver.
    pub(super) fn expired(&mut self, seq: Seq) -> Then {
        self.under_way -= 1;
        self.unstored += 1;
        self.conclude(seq)
    }

    fn conclude(&mut self, seq: Seq) -> Then {
        match self.waiting.delivered(seq) {
            After::Free => {
                self.ended += 1;
                Then::Nothing
            }
            After::Follow(upto) => Then::Follow { seq, upto },
        }
    }

    /// Gives a delivery back that could not be tried, for a cause on this side.
    pub(super) fn untried(&mut self, seq: Seq) {
        self.under_way -= 1;
        if self.open.contains_key(&seq) {
            self.ready.insert(seq);
        } else {
            self.waiting.postpone(seq);
        }
    }

    /// Continues a destination: `found` is its first outcome above `seq` and up to `asked`.
    pub(super) fn followed(&mut self, seq: Seq, asked: Seq, found: Option<Seq>, now: DateTime<Utc>) -> Then {
        match self.waiting.followed(seq, asked, found, now) {
            Followed::Again(upto) => Then::Follow { seq, upto },
            Followed::Continued { was_delivered } => {
                self.ended += usize::from(was_delivered);
                Then::Nothing
            }
        }
    }

    /// Makes a delivery that waits due.
    pub(super) fn request(&mut self, seq: Seq, now: DateTime<Utc>) {
        self.waiting.request(seq, now);
    }

    /// The destination of a delivery that waits; empty where none does.
    pub(super) fn destination(&self, seq: Seq) -> Arc<str> {
        self.waiting.get(seq).map_or_else(|| Arc::from(""), |row| Arc::clone(&row.destination))
    }

    /// Number of deliveries that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a delivery failed for good, and that is not stored yet.
    #[cfg(test)]
    pub(super) fn gives_up(&self, seq: Seq) -> bool {
        self.waiting.gives_up(seq)
    }

    /// Whether something has ended that Postgres does not hold.
    pub(super) fn has_ended(&self) -> bool {
        self.ended > 0 || self.waiting.is_changed() || self.health.failing_since() != self.stored.1
    }

    /// Whether enough has ended that it is worth a write, rather than to wait for more.
    pub(super) fn is_pressed(&self) -> bool {
        self.ended * 4 >= self.most_in_flight * 3 || self.unstored > 0 && self.under_way == 0
    }

    /// The changes since the last call; `None`: there are none.
    pub(super) fn changes(&mut self) -> Option<Changes> {
        let (cursor, failing_since) = (self.cursor(), self.health.failing_since());
        if self.ended == 0 && (cursor, failing_since) == self.stored && !self.waiting.is_changed() {
            return None;
        }
        self.done = self.done.split_off(&cursor.next());
        self.stored = (cursor, failing_since);
        let (rows, removed) = self.waiting.changes();
        let ended = std::mem::take(&mut self.ended);
        Some(Changes { cursor, done: self.done.iter().copied().collect(), failing_since, rows, removed, ended })
    }

    /// Notes that changes are stored.
    pub(super) fn stored(&mut self, changes: &Changes) {
        self.unstored -= changes.ended;
    }
}

fn before(seq: Seq) -> Seq {
    Seq::new(seq.get() - 1)
}
