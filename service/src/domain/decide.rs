//! The decision: a batch, what is stored about its ids and keys, and the policy, into what is to be written.
//!
//! Pure and total: every record ends as exactly one of a new record, a duplicate, a conflict, a dead letter, or nothing
//! (a redelivery, or a replay whose dead letter is closed). Must never look at a place in the stream alone.

use std::collections::HashMap;

use millrace_crds::TotalOf;
use rust_decimal::Decimal;

use super::{
    Amount, ContentDigest, DeadLetterId, DeadLetterReason, Decision, DestinationUnit, Duplicate, Holder, IdLedger,
    InputRecord, Item, Key, Kind, Known, KnownDeadLetter, NewConflict, NewDeadLetter, NewRecord, Parsed, Policy,
    Position, PositionOfRecord, Record, Refusal, Reversals, Seq, ShardId, ShardSeq, StreamPosition, TakenId, Total,
    TotalAlert, TotalStep, WindowKey, total_in_bounds, total_nanos,
};

/// Decides a batch of one shard, in order. `ids` holds every taken id of the batch, and takes those that it takes.
///
/// # Panics
/// When a record has not exactly one outcome, or numbers are not contiguous: a fault of this function.
#[must_use]
pub fn decide(batch: &[Item], known: Known, ids: &mut IdLedger, policy: &Policy, position: Position) -> Decision {
    let mut judge = Judge::new(known, ids, policy, position);
    for (index, item) in batch.iter().enumerate() {
        let before = judge.decision.redelivered;
        judge.judge(index, item);
        if let Some(offsets) = item.input.offsets {
            judge.position.account.count(offsets, judge.decision.redelivered == before);
        }
    }
    judge.decision.account = judge.position.account;
    let entries = batch.iter().map(|item| item.input.position.entry);
    judge.decision.applied = entries.chain(position.applied).max();
    judge.decision.assert_complete(batch.len(), position);
    judge.decision
}

struct Judge<'a> {
    policy: &'a Policy,
    position: Position,
    ids: &'a mut IdLedger,
    /// Dead letters whose replays can come.
    dead_letters: HashMap<DeadLetterId, KnownDeadLetter>,
    noted_dead_letters: HashMap<StreamPosition, Vec<Vec<u8>>>,
    duplicates: HashMap<PositionOfRecord, Vec<ContentDigest>>,
    conflicts: HashMap<PositionOfRecord, Vec<ContentDigest>>,
    totals: HashMap<Key, Total>,
    destinations: HashMap<DestinationUnit, i128>,
    reversals: Reversals,
    windows: HashMap<WindowKey, i128>,
    decision: Decision,
}

/// The totals that a record adds to, before it.
struct Added {
    previous: Total,
    total_alerts: Vec<TotalAlert>,
}

impl<'a> Judge<'a> {
    fn new(known: Known, ids: &'a mut IdLedger, policy: &'a Policy, position: Position) -> Self {
        let mut judge = Self {
            policy,
            position,
            ids,
            dead_letters: HashMap::new(),
            noted_dead_letters: HashMap::new(),
            duplicates: known.duplicates,
            conflicts: known.conflicts,
            totals: known.totals,
            destinations: known.destinations,
            reversals: Reversals::new(known.originals),
            windows: known.windows,
            decision: Decision::default(),
        };
        for dead_letter in known.dead_letters {
            if dead_letter.id.shard == position.shard {
                let noted = judge.noted_dead_letters.entry(dead_letter.position).or_default();
                noted.push(dead_letter.payload.clone());
            }
            judge.dead_letters.insert(dead_letter.id, dead_letter);
        }
        judge
    }

    fn judge(&mut self, index: usize, item: &Item) {
        let input = &item.input;
        let replayed = self.replayed(input);
        let is_new = replayed.is_some_and(|dead_letter| dead_letter.open);
        let is_decided = replayed.is_some_and(|dead_letter| !dead_letter.open);
        // A replay of an open dead letter was never decided, whatever came at its place before.
        let noted = self.noted_dead_letters.get(&input.position).filter(|_| !is_new);
        let is_noted = noted.is_some_and(|dead_letters| dead_letters.iter().any(|payload| *payload == input.payload));
        if is_noted || is_decided {
            self.decision.redelivered += 1;
            return;
        }
        if let Some(dead_letter) = input.replay_of.filter(|_| is_new) {
            self.close(dead_letter);
        }
        let record = match &item.record {
            Ok(record) => record,
            Err(invalid) => {
                let malformed = || Refusal::new(DeadLetterReason::Malformed, invalid.to_string());
                return self.dead_letter(index, input, None, item.isolated.clone().unwrap_or_else(malformed));
            }
        };
        if self.is_taken(index, input, record, is_new) {
            return;
        }
        if let Some(refusal) = item.isolated.clone() {
            return self.dead_letter(index, input, Some(record), refusal);
        }
        if ShardId::of(&record.record.destination_id, self.position.shards) != self.position.shard {
            let detail = "the record is in the stream of another shard than that of its destinationId";
            return self.dead_letter(index, input, Some(record), Refusal::new(DeadLetterReason::WrongShard, detail));
        }
        let outcome = self.reversals.judge(record, &self.decision.records).and_then(|(content, reversal)| {
            let threshold = self.threshold(&content);
            let Added { previous, total_alerts } = self.add(&content, threshold.is_some())?;
            Ok(NewRecord { seq: Seq::ZERO, item: index, record: content, previous, threshold, total_alerts, reversal })
        });
        match outcome {
            Ok(new) => self.keep(input, record, new),
            Err(refusal) => self.dead_letter(index, input, Some(record), refusal),
        }
    }

    /// The dead letter of a replay; `None`: no replay, or Postgres holds no dead letter of this number with this payload. After
    /// a restore the number can be another's, and the replay can be the last copy: then it is decided as a record.
    fn replayed(&self, input: &InputRecord) -> Option<&KnownDeadLetter> {
        self.dead_letters.get(&input.replay_of?).filter(|known| known.payload == input.payload)
    }

    /// Closes an open dead letter. Its replay is judged as if it were closed before.
    fn close(&mut self, id: DeadLetterId) {
        if let Some(dead_letter) = self.dead_letters.get_mut(&id) {
            dead_letter.open = false;
            if let Some(record_id) = &dead_letter.record_id {
                self.ids.close(record_id, id);
            }
            self.decision.closed.push(id);
        }
    }

    /// Applies a record whose id is taken, or was when it came first: as a redelivery, a duplicate or a conflict. `is_new`: it
    /// was never decided, whatever came at its place before.
    fn is_taken(&mut self, index: usize, input: &InputRecord, parsed: &Parsed, is_new: bool) -> bool {
        let id = &parsed.record.record_id;
        let taken = self.ids.get(id).copied();
        let same = taken.is_some_and(|taken| taken.digest == parsed.digest);
        let free = taken.is_none();
        let delivery = PositionOfRecord { record_id: id.clone(), position: input.position };
        // A noted outcome stays: the dead letter that took the id then may be closed by now, and the id free or another's.
        let is_noted = |noted: &HashMap<PositionOfRecord, Vec<ContentDigest>>| {
            noted.get(&delivery).is_some_and(|digests| digests.contains(&parsed.digest))
        };
        let again = !is_new
            && (is_noted(&self.conflicts)
                || is_noted(&self.duplicates)
                || taken.is_some_and(|taken| same && self.came_as(&taken, input.position)));
        if again {
            self.decision.redelivered += 1;
        } else if free {
            return false;
        } else if same {
            self.duplicates.entry(delivery).or_default().push(parsed.digest);
            self.decision.duplicates.push(Duplicate { item: index, record_id: id.clone(), digest: parsed.digest });
        } else {
            self.conflicts.entry(delivery).or_default().push(parsed.digest);
            let seq = next(&mut self.position.watermarks.conflicts);
            let conflict = NewConflict { seq, item: index, record: parsed.record.clone() };
            self.decision.conflicts.push(conflict);
        }
        true
    }

    /// Whether the holder of an id came at this place in this shard.
    fn came_as(&self, taken: &TakenId, position: StreamPosition) -> bool {
        let shard = match taken.holder {
            Holder::Record(record) => record.shard,
            Holder::DeadLetter(dead_letter) => dead_letter.shard,
        };
        shard == self.position.shard && taken.position == Some(position)
    }

    /// Adds a record to its totals, or refuses it.
    fn add(&mut self, record: &Record, is_alert: bool) -> Result<Added, Refusal> {
        let key = Key::of(record);
        let previous = self.totals.get(&key).copied().unwrap_or_default();
        let total =
            previous.total.checked_add(record.signed()).filter(|total| total_in_bounds(*total)).ok_or_else(|| {
                let detail =
                    "the total of its destinationId, reference and unit would have more than 19 integer digits";
                Refusal::new(DeadLetterReason::TotalOutOfBounds, detail)
            })?;
        let mut of_destination = None;
        if self.policy.needs_destinations() {
            let of_unit = DestinationUnit { destination_id: key.destination_id.clone(), unit: key.unit.clone() };
            let stored = self.destinations.entry(of_unit).or_default();
            let step = TotalStep { before: *stored, after: *stored + total_nanos(record.signed()) };
            let is_below = self.policy.minimum_total_nanos().is_some_and(|minimum| step.after < minimum);
            if record.kind == Kind::Negative && is_below {
                let detail = "its destination's total in this unit would be below policy.minimumTotal";
                return Err(Refusal::new(DeadLetterReason::BelowMinimumTotal, detail));
            }
            *stored = step.after;
            of_destination = Some(step);
        }
        let of_key = TotalStep { before: total_nanos(previous.total), after: total_nanos(total) };
        let total_alerts = self.total_alerts(record, of_key, of_destination);
        let next = Total { count: previous.count + 1, total };
        self.totals.insert(key.clone(), next);
        let seq = self.position.watermarks.records.next();
        self.decision.totals.entry(key).or_default().add(record, seq, is_alert);
        Ok(Added { previous, total_alerts })
    }

    /// The alerts of a record that changes totals, and adds it to the totals of its windows.
    fn total_alerts(
        &mut self,
        record: &Record,
        of_key: TotalStep,
        of_destination: Option<TotalStep>,
    ) -> Vec<TotalAlert> {
        let policy = self.policy;
        let (mut alerts, mut windows) = (Vec::new(), Vec::new());
        for threshold in policy.total_thresholds().iter().filter(|threshold| threshold.is_of(record)) {
            let window = threshold.window(record, policy.rollups());
            let step = match (threshold.total_of(), &window) {
                (Some(TotalOf::Key), _) => Some(of_key),
                (Some(TotalOf::Destination), _) => of_destination,
                (None, Some(window)) => self.windows.get(window).map(|before| {
                    let before = *before;
                    TotalStep { before, after: before + total_nanos(record.signed()) }
                }),
                (None, None) => None,
            };
            let begins = window
                .as_ref()
                .and_then(|window| Some(policy.rollups().get(window.rollup)?.window_begins(window.window_start)));
            alerts.extend(step.and_then(|step| threshold.alert(record, step, begins)));
            // Several thresholds can be on the same window.
            windows.extend(window.filter(|window| !windows.contains(window)));
        }
        for window in windows {
            if let Some(total) = self.windows.get_mut(&window) {
                *total += total_nanos(record.signed());
            }
        }
        alerts
    }

    /// The threshold that a record's value is above.
    fn threshold(&self, record: &Record) -> Option<Decimal> {
        let threshold = self.policy.threshold(record.unit.as_str());
        threshold.filter(|threshold| record.value > Amount::stored(*threshold))
    }

    /// Gives a new record its number.
    fn keep(&mut self, input: &InputRecord, parsed: &Parsed, new: NewRecord) {
        let seq = next(&mut self.position.watermarks.records);
        let holder = Holder::Record(ShardSeq { shard: self.position.shard, seq });
        self.take(holder, parsed, input.position);
        self.decision.alerts += i64::from(new.threshold.is_some());
        self.decision.total_alerts += new.total_alerts.len() as i64;
        self.decision.without_threshold += i64::from(self.policy.lacks_threshold(new.record.unit.as_str()));
        let new = NewRecord { seq, ..new };
        self.reversals.keep(&new);
        self.decision.records.push(new);
    }

    fn dead_letter(&mut self, index: usize, input: &InputRecord, parsed: Option<&Parsed>, refusal: Refusal) {
        self.noted_dead_letters.entry(input.position).or_default().push(input.payload.to_vec());
        let seq = next(&mut self.position.watermarks.dead_letters);
        if let Some(parsed) = parsed {
            let holder = Holder::DeadLetter(DeadLetterId { shard: self.position.shard, seq });
            self.take(holder, parsed, input.position);
        }
        self.decision.dead_letters.push(NewDeadLetter {
            seq,
            item: index,
            record_id: parsed.map(|parsed| parsed.record.record_id.clone()),
            source_id: parsed.map(|parsed| parsed.record.source_id.clone()),
            destination_id: parsed.map(|parsed| parsed.record.destination_id.clone()),
            reason: refusal.reason,
            detail: refusal.detail,
            replay_of: input.replay_of,
        });
    }

    fn take(&mut self, holder: Holder, parsed: &Parsed, position: StreamPosition) {
        let taken = TakenId { holder, digest: parsed.digest, position: Some(position) };
        self.ids.take(&parsed.record.record_id, taken);
    }
}

fn next(watermark: &mut Seq) -> Seq {
    *watermark = watermark.next();
    *watermark
}

#[cfg(test)]
mod tests;
