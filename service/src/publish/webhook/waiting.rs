//! Deliveries that failed and wait for a retry.
//!
//! It must never hold more than one row of a destination in order: the row stands for all later outcomes of the destination
//! that the publisher has passed over.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};

use super::retry;
use crate::{
    domain::{Attempt, DeliveryState, Seq},
    store::DeliveryRow,
};

/// Attempts that are kept of a delivery, the newest.
const ATTEMPTS: usize = 10;

/// A delivery that waits.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) destination: Arc<str>,
    /// Whether later outcomes of the destination wait for this one.
    pub(super) ordered: bool,
    /// The highest number of the destination that was passed over.
    passed: Seq,
    attempts: u32,
    first_attempt_at: DateTime<Utc>,
    next_attempt_at: DateTime<Utc>,
    log: Vec<Attempt>,
    /// Whether it is under way, or its successor is looked for.
    busy: bool,
}

/// What comes after the delivery of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing: no outcome of the destination was passed over, or the row is not in order.
    Free,
    /// The destination's first outcome above the row's and up to this number.
    Follow(Seq),
}

/// The continuation of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// More was passed over meanwhile: its first outcome has to be looked for up to this number.
    Again(Seq),
    /// Its next outcome waits, or it is free. The one before was delivered, or it was given up.
    Continued { was_delivered: bool },
}

/// All deliveries that wait, of one shard and sink.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    rows: BTreeMap<Seq, Row>,
    /// Rows in order, by destination.
    ordered: HashMap<Arc<str>, Seq>,
    /// Those that are not busy, by their next attempt.
    due: BTreeSet<(DateTime<Utc>, Seq)>,
    changed: BTreeSet<Seq>,
    removed: BTreeSet<Seq>,
    given_up: Vec<DeliveryRow>,
}

impl Waiting {
    /// The rows that Postgres holds. All numbers up to `passed` may have been passed over.
    pub(super) fn stored(rows: Vec<DeliveryRow>, passed: Seq) -> Self {
        let mut this = Self::default();
        for row in rows {
            let destination: Arc<str> = Arc::from(row.destination_id);
            let waiting = Row {
                destination,
                ordered: row.ordered,
                passed: if row.ordered { passed } else { row.seq },
                attempts: u32::try_from(row.attempts).unwrap_or_default(),
                first_attempt_at: row.first_attempt_at,
                next_attempt_at: row.next_attempt_at,
                log: row.log,
                busy: false,
            };
            this.insert(row.seq, waiting);
        }
        this.changed.clear();
        this
    }

    fn insert(&mut self, seq: Seq, row: Row) {
        if row.ordered {
            let before = self.ordered.insert(Arc::clone(&row.destination), seq);
            assert!(before.is_none(), "a destination in order has one row");
        }
        self.due.insert((row.next_attempt_at, seq));
        self.changed.insert(seq);
        self.rows.insert(seq, row);
    }

    fn remove(&mut self, seq: Seq) -> Option<Row> {
        let row = self.rows.remove(&seq)?;
        if row.ordered {
            self.ordered.remove(&row.destination);
        }
        self.due.remove(&(row.next_attempt_at, seq));
        self.changed.remove(&seq);
        Some(row)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Row> {
        self.rows.get(&seq)
    }

    /// The lowest number that waits.
    pub(super) fn first(&self) -> Option<Seq> {
        self.rows.keys().next().copied()
    }

    /// The lowest number that waits and is not busy.
    pub(super) fn first_idle(&self) -> Option<Seq> {
        self.due.iter().map(|(_, seq)| *seq).min()
    }

    /// Passes over an outcome whose destination waits in order. Returns false if it does not.
    pub(super) fn pass_over(&mut self, destination: &str, seq: Seq) -> bool {
        let Some(row) = self.ordered.get(destination).and_then(|at| self.rows.get_mut(at)) else { return false };
        row.passed = row.passed.max(seq);
        true
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes the one that is due first.
    pub(super) fn take_due(&mut self, now: DateTime<Utc>) -> Option<Seq> {
        let (at, seq) = *self.due.first()?;
        (at <= now).then(|| self.take(seq))
    }

    /// Takes one that is not busy, due or not.
    pub(super) fn take(&mut self, seq: Seq) -> Seq {
        let row = self.rows.get_mut(&seq).expect("a row that is due exists");
        row.busy = true;
        self.due.remove(&(row.next_attempt_at, seq));
        seq
    }

    /// Adds a delivery whose first attempt failed. `passed` is the highest number of its destination that was read.
    pub(super) fn add(
        &mut self,
        seq: Seq,
        destination: Arc<str>,
        ordered: bool,
        passed: Seq,
        attempt: Attempt,
        asked: Option<Duration>,
    ) {
        let at = attempt.at;
        let next_attempt_at = at + retry::of_destination(1, asked);
        let log = vec![attempt];
        let row =
            Row { destination, ordered, passed, attempts: 1, first_attempt_at: at, next_attempt_at, log, busy: false };
        self.insert(seq, row);
    }

    /// Notes a retry that failed. Returns what follows if the delivery is given up.
    pub(super) fn failed(&mut self, seq: Seq, attempt: Attempt, asked: Option<Duration>) -> Option<After> {
        let row = self.rows.get_mut(&seq)?;
        let at = attempt.at;
        row.attempts = row.attempts.saturating_add(1);
        push(&mut row.log, attempt);
        if at - row.first_attempt_at < retry::GIVE_UP {
            row.next_attempt_at = at + retry::of_destination(row.attempts, asked);
            row.busy = false;
            self.due.insert((row.next_attempt_at, seq));
            self.changed.insert(seq);
            return None;
        }
        let failed = row.render(seq, Some(at));
        self.given_up.push(failed);
        // Until its successor is known, Postgres has to hold it as one that waits: the cursor may move over it.
        self.changed.insert(seq);
        let after = self.after(seq);
        if after == After::Free {
            self.remove(seq);
        }
        Some(after)
    }

    /// Notes a retry that failed because the endpoint does: it counts for nothing.
    pub(super) fn postpone(&mut self, seq: Seq) {
        if let Some(row) = self.rows.get_mut(&seq) {
            row.busy = false;
            self.due.insert((row.next_attempt_at, seq));
        }
    }

    /// Notes a delivery. Returns what follows.
    pub(super) fn delivered(&mut self, seq: Seq) -> After {
        let after = self.after(seq);
        if after == After::Free {
            self.remove(seq);
            self.removed.insert(seq);
        }
        after
    }

    fn after(&self, seq: Seq) -> After {
        match self.rows.get(&seq) {
            Some(row) if row.ordered && row.passed > seq => After::Follow(row.passed),
            _ => After::Free,
        }
    }

    /// Continues a destination after the outcome of its row: with the `found` one, the first up to `asked`.
    pub(super) fn followed(&mut self, seq: Seq, asked: Seq, found: Option<Seq>, now: DateTime<Utc>) -> Followed {
        let Some(row) = self.rows.get(&seq) else { return Followed::Continued { was_delivered: false } };
        if found.is_none() && row.passed > asked {
            return Followed::Again(row.passed);
        }
        let row = self.remove(seq).expect("it was there");
        // The row of one that was given up stays, as a failed one.
        let was_delivered = !self.given_up.iter().any(|failed| failed.seq == seq);
        if was_delivered {
            self.removed.insert(seq);
        }
        if let Some(next) = found {
            let next_row =
                Row { attempts: 0, first_attempt_at: now, next_attempt_at: now, log: Vec::new(), busy: false, ..row };
            self.insert(next, next_row);
        }
        Followed::Continued { was_delivered }
    }

    /// Makes all due: the endpoint works again. The time in which it did not counts for none.
    pub(super) fn restart(&mut self, now: DateTime<Utc>) {
        self.due.clear();
        for (seq, row) in &mut self.rows {
            (row.first_attempt_at, row.next_attempt_at, row.attempts) = (now, now, row.attempts.min(1));
            if !row.busy {
                self.due.insert((now, *seq));
            }
            self.changed.insert(*seq);
        }
    }

    /// Makes one due: an administrator asked for it.
    pub(super) fn request(&mut self, seq: Seq, now: DateTime<Utc>) {
        let Some(row) = self.rows.get_mut(&seq) else { return };
        if !row.busy {
            self.due.remove(&(row.next_attempt_at, seq));
            row.next_attempt_at = now;
            self.due.insert((now, seq));
        }
        self.changed.insert(seq);
    }

    #[cfg(test)]
    pub(super) fn gives_up(&self, seq: Seq) -> bool {
        self.given_up.iter().any(|row| row.seq == seq)
    }

    pub(super) fn is_changed(&self) -> bool {
        let given_up = self.given_up.iter().any(|row| !self.rows.contains_key(&row.seq));
        !(self.changed.is_empty() && self.removed.is_empty()) || given_up
    }

    /// The changes to store: rows to write, and numbers of rows to delete. A delivery that is given up and whose successor is
    /// being looked for stays until that is known: the destination would be free without it.
    pub(super) fn changes(&mut self) -> (Vec<DeliveryRow>, Vec<Seq>) {
        let changed = std::mem::take(&mut self.changed);
        let mut rows: Vec<DeliveryRow> =
            changed.iter().filter_map(|seq| Some(self.rows.get(seq)?.render(*seq, None))).collect();
        let (ready, following) =
            std::mem::take(&mut self.given_up).into_iter().partition(|row| !self.rows.contains_key(&row.seq));
        self.given_up = following;
        rows.extend::<Vec<DeliveryRow>>(ready);
        (rows, std::mem::take(&mut self.removed).into_iter().collect())
    }
}

impl Row {
    fn render(&self, seq: Seq, failed_at: Option<DateTime<Utc>>) -> DeliveryRow {
        DeliveryRow {
            seq,
            destination_id: self.destination.to_string(),
            state: if failed_at.is_some() { DeliveryState::Failed } else { DeliveryState::Waiting },
            ordered: self.ordered,
            attempts: i32::try_from(self.attempts).unwrap_or(i32::MAX),
            first_attempt_at: self.first_attempt_at,
            next_attempt_at: self.next_attempt_at,
            failed_at,
            log: self.log.clone(),
        }
    }
}

/// Adds an attempt to those that are kept.
pub(super) fn push(log: &mut Vec<Attempt>, attempt: Attempt) {
    if log.len() >= ATTEMPTS {
        log.drain(..=log.len() - ATTEMPTS);
    }
    log.push(attempt);
}
