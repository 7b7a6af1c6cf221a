//! The window against a model of an endpoint, with a clock that is shifted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use millrace_crds::Ordering;
use proptest::prelude::*;

use super::window::{Changes, Delivery, Next, Then, Window};
use crate::{
    domain::{Attempt, DeliveryState, Seq},
    publish::outcomes::Outcome,
    store::{DeliveryRow, WebhookPosition},
};

const DESTINATIONS: i64 = 5;

fn destination(seq: Seq) -> String {
    // Uneven, so that some destinations have several outcomes at once.
    format!("d{}", (seq.get() * seq.get() / 3) % DESTINATIONS)
}

fn delivery(seq: i64) -> Delivery {
    let seq = Seq::new(seq);
    let outcome = Outcome::of_test(seq, &destination(seq));
    Delivery { destination: Arc::from(destination(seq)), outcome, previous: None }
}

fn attempt(at: DateTime<Utc>) -> Attempt {
    Attempt { at, latency_ms: 1, status: Some(500), error: None }
}

/// What Postgres holds.
#[derive(Debug, Clone)]
struct Stored {
    position: WebhookPosition,
    rows: BTreeMap<Seq, DeliveryRow>,
}

impl Stored {
    fn new(now: DateTime<Utc>) -> Self {
        let position =
            WebhookPosition { cursor: Seq::ZERO, done: Vec::new(), failing_since: None, filter_after: Seq::ZERO, now };
        Self { position, rows: BTreeMap::new() }
    }

    fn apply(&mut self, changes: &Changes) {
        self.position.cursor = changes.cursor;
        self.position.done.clone_from(&changes.done);
        self.position.failing_since = changes.failing_since;
        for seq in &changes.removed {
            self.rows.remove(seq);
        }
        for row in &changes.rows {
            self.rows.insert(row.seq, row.clone());
        }
    }

    fn window(&self, ordering: Ordering, in_flight: usize, now: DateTime<Utc>) -> Window {
        let waiting = self.rows.values().filter(|row| row.state == DeliveryState::Waiting).cloned().collect();
        Window::new(ordering, in_flight, &self.position, waiting, now)
    }
}

/// A run: the window, Postgres, the endpoint's receipts, and the deliveries under way.
struct Run {
    ordering: Ordering,
    in_flight: usize,
    last: i64,
    now: DateTime<Utc>,
    stored: Stored,
    window: Window,
    under_way: Vec<Seq>,
    follows: Vec<(Seq, Seq)>,
    storing: Option<Changes>,
    received: Vec<Seq>,
    /// Failed for good.
    given_up: BTreeSet<Seq>,
    /// Receipts since Postgres held the last of them, per crash the most that can repeat.
    repeats: usize,
    /// Number of receipts at the last crash.
    crashed_at: usize,
}

impl Run {
    fn new(ordering: Ordering, in_flight: usize, last: i64) -> Self {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        let stored = Stored::new(now);
        let window = stored.window(ordering, in_flight, now);
        let (under_way, follows, received, given_up) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
        Self {
            ordering,
            in_flight,
            last,
            now,
            stored,
            window,
            under_way,
            follows,
            storing: None,
            received,
            given_up,
            repeats: 0,
            crashed_at: 0,
        }
    }

    fn read(&mut self) {
        let seen = self.window.seen().get();
        if seen < self.last && self.window.takes_more() {
            let upto = (seen + 7).min(self.last);
            self.window.add((seen + 1..=upto).map(delivery).collect(), Seq::new(upto));
        }
    }

    fn start(&mut self) {
        while let Some(next) = self.window.next(self.now) {
            let seq = match next {
                Next::Send(delivery) => delivery.seq(),
                Next::Retry(seq) => seq,
            };
            if self.ordering == Ordering::Destination {
                let busy = self.under_way.iter().any(|other| destination(*other) == destination(seq));
                assert!(!busy, "a destination has one delivery under way");
                for earlier in (1..seq.get()).map(Seq::new).filter(|other| destination(*other) == destination(seq)) {
                    let is_over = self.received.contains(&earlier) || self.given_up.contains(&earlier);
                    assert!(is_over, "{seq} overtakes {earlier}");
                }
            }
            self.under_way.push(seq);
            assert!(self.under_way.len() <= self.in_flight);
        }
    }

    fn then(&mut self, then: Then) {
        if let Then::Follow { seq, upto } = then {
            self.follows.push((seq, upto));
        }
    }

    fn end(&mut self, index: usize, success: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let seq = self.under_way.remove(index % self.under_way.len());
        let then = if success {
            self.received.push(seq);
            self.window.delivered(seq, self.now)
        } else {
            self.window.failed(seq, attempt(self.now), None)
        };
        if self.window.gives_up(seq) {
            self.given_up.insert(seq);
        }
        self.then(then);
    }

    fn follow(&mut self) {
        for (seq, upto) in std::mem::take(&mut self.follows) {
            let next = (seq.get() + 1..=upto.get()).find(|n| destination(Seq::new(*n)) == destination(seq));
            let then = self.window.followed(seq, upto, next.map(Seq::new), self.now);
            self.then(then);
        }
    }

    fn store(&mut self) {
        if let Some(changes) = self.storing.take() {
            self.stored.apply(&changes);
            self.window.stored(&changes);
        }
        self.storing = self.window.changes();
    }

    fn crash(&mut self) {
        // What was received since the last crash and Postgres does not hold is received again; so may be what is under way.
        let held = |seq: &Seq| {
            let is_done = *seq <= self.stored.position.cursor || self.stored.position.done.contains(seq);
            is_done && !self.waits(*seq)
        };
        let received = self.received[self.crashed_at..].iter().filter(|seq| !held(seq));
        let repeats: BTreeSet<Seq> = received.chain(&self.under_way).copied().collect();
        self.repeats = self.repeats.max(repeats.len());
        self.crashed_at = self.received.len();
        (self.under_way, self.follows, self.storing) = (Vec::new(), Vec::new(), None);
        self.window = self.stored.window(self.ordering, self.in_flight, self.now);
    }

    /// Whether a row that waits implies an outcome.
    fn waits(&self, seq: Seq) -> bool {
        self.stored.rows.values().any(|row| {
            row.state == DeliveryState::Waiting
                && (row.seq == seq || row.ordered && row.seq < seq && destination(row.seq) == destination(seq))
        })
    }

    /// Lets all succeed until nothing is left.
    fn finish(&mut self) {
        for _ in 0..self.last * 40 + 400 {
            self.read();
            self.start();
            while !self.under_way.is_empty() {
                self.end(0, true);
            }
            self.follow();
            self.store();
            self.now += TimeDelta::hours(2);
        }
        self.store();
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Read,
    Start,
    End { index: usize, success: bool },
    Follow,
    Store,
    Wait(i64),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Read),
        6 => Just(Step::Start),
        12 => (0..8_usize, prop::bool::weighted(0.6)).prop_map(|(index, success)| Step::End { index, success }),
        3 => Just(Step::Follow),
        4 => Just(Step::Store),
        3 => prop_oneof![1..5_000_i64, Just(80 * 3_600_000)].prop_map(Step::Wait),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn each_outcome_is_delivered_in_order_or_failed_for_good_whatever_happens(
        steps in prop::collection::vec(step(), 1..250), in_flight in 1..6_usize, ordered: bool,
    ) {
        let ordering = if ordered { Ordering::Destination } else { Ordering::None };
        let mut run = Run::new(ordering, in_flight, 60);
        for step in steps {
            match step {
                Step::Read => run.read(),
                Step::Start => run.start(),
                Step::End { index, success } => run.end(index, success),
                Step::Follow => run.follow(),
                Step::Store => run.store(),
                Step::Wait(ms) => run.now += Duration::from_millis(ms.unsigned_abs()),
                Step::Crash => run.crash(),
            }
            let through = run.window.delivered_through();
            for seq in (1..=through.get()).map(Seq::new) {
                let is_over = run.received.contains(&seq) || run.given_up.contains(&seq);
                prop_assert!(is_over, "{through} is above {seq}");
            }
        }
        run.finish();
        let failed: Vec<Seq> = run.stored.rows.values().filter(|row| row.failed_at.is_some()).map(|row| row.seq).collect();
        for seq in (1..=60).map(Seq::new) {
            prop_assert!(run.received.contains(&seq) || failed.contains(&seq), "{seq} is missing");
        }
        prop_assert_eq!(run.stored.position.cursor, Seq::new(60));
        prop_assert!(run.stored.rows.values().all(|row| row.state == DeliveryState::Failed));
        prop_assert!(run.repeats <= in_flight, "{} repeat, {in_flight} may", run.repeats);
    }
}
