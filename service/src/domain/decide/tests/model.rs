//! Records by chance, and the plain model that judges them.

mod reversals;

use std::collections::HashSet;

use proptest::prelude::*;

use rust_decimal::Decimal;

use super::super::*;
use crate::domain::{Account, OriginalRecord, RecordId, StreamId, Watermarks};
use reversals::reversal;

/// Destinations of which some belong to shard 0 of 2 and some do not.
pub(super) const DESTINATIONS: [&str; 4] = ["a", "b", "c", "d"];

pub(super) fn record(id: u8, destination: usize, value: &str, positive: bool, unit: &str, attributes: &str) -> String {
    let kind = if positive { "positive" } else { "negative" };
    format!(
        r#"{{"recordId":"id-{id}","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"{}","type":"{kind}","value":"{value}","unit":"{unit}","reference":"r","attributes":{attributes}}}"#,
        DESTINATIONS[destination]
    )
}

/// One record of a generated stream.
#[derive(Debug, Clone)]
pub(super) enum Step {
    New {
        payload: String,
        isolated: bool,
    },
    /// Reverses an earlier record, or what remains of it.
    Reverse {
        which: usize,
        id: u8,
        value: Option<&'static str>,
        fits: bool,
    },
    /// Delivers an earlier record again.
    Again(usize),
    /// Requests the replay of a dead letter.
    Replay(i64),
}

/// Steps; each may end a batch, and then names the dead letter to discard.
pub(super) fn steps() -> impl Strategy<Value = Vec<(Step, Option<i64>)>> {
    let value =
        prop_oneof![Just("1"), Just("1.0"), Just("2.5"), Just("0.000000001"), Just("999999999999999.999999999")];
    let attributes = prop_oneof![Just(r#"{"a":1,"b":2}"#), Just(r#"{"b":2.0,"a":1}"#), Just(r#"{"a":2}"#)];
    let unit = prop_oneof![4 => Just("EUR"), 1 => Just("USD")];
    let well_formed = (0..6_u8, 0..4_usize, value, any::<bool>(), unit, attributes).prop_map(
        |(id, destination, value, positive, unit, attributes)| {
            record(id, destination, value, positive, unit, attributes)
        },
    );
    let payload =
        prop_oneof![8 => well_formed, 1 => Just("garbage{".to_owned()), 1 => Just(r#"{"recordId":"id-1"}"#.to_owned())];
    let value = prop::option::weighted(0.6, prop_oneof![Just("1"), Just("0.5"), Just("2"), Just("0.000000001")]);
    let reversal = (0..40_usize, 0..5_u8, value, prop::bool::weighted(0.9))
        .prop_map(|(which, id, value, fits)| Step::Reverse { which, id, value, fits });
    let step = prop_oneof![
        8 => (payload, prop::bool::weighted(0.05)).prop_map(|(payload, isolated)| Step::New { payload, isolated }),
        4 => reversal,
        2 => (0..40_usize).prop_map(Step::Again),
        1 => (1..5_i64).prop_map(Step::Replay),
    ];
    prop::collection::vec((step, prop::option::weighted(0.3, 0..5_i64)), 1..40)
}

/// A record that came at a place.
pub(super) fn input(ms: u64, payload: &str, replay_of: Option<DeadLetterId>) -> InputRecord {
    InputRecord {
        position: StreamPosition { entry: StreamId { ms, n: 0 }, index: 0 },
        offsets: None,
        payload: payload.to_owned().into(),
        received_at: chrono::DateTime::UNIX_EPOCH,
        traceparent: None,
        replay_of,
        is_canonical: false,
        corrupted: false,
    }
}

/// Turns steps into records; one that comes again has the same place and payload.
pub(super) fn items(steps: &[(Step, Option<i64>)]) -> Vec<Item> {
    let mut made: Vec<(InputRecord, bool)> = Vec::new();
    for (index, (step, _)) in steps.iter().enumerate() {
        let fresh = |payload: &str, replay_of| input(index as u64, payload, replay_of);
        made.push(match step {
            Step::New { payload, isolated } => (fresh(payload, None), *isolated),
            Step::Reverse { which, id, value, fits } => {
                let of = made.get(which % made.len().max(1)).map_or(&b""[..], |(input, _)| &input.payload);
                (fresh(&reversal(of, *id, *value, *fits), None), false)
            }
            Step::Again(_) if made.is_empty() => (fresh(&record(0, 0, "1", true, "EUR", "{}"), None), false),
            Step::Again(which) => made[which % made.len()].clone(),
            // Often, but not always, the payload of its dead letter.
            Step::Replay(n) => {
                let refused = made.iter().filter(|(_, isolated)| *isolated).nth(*n as usize - 1);
                let other = || record((*n % 6) as u8, 0, "1", true, "EUR", "{}");
                let payload =
                    refused.map_or_else(other, |(input, _)| String::from_utf8_lossy(&input.payload).into_owned());
                (fresh(&payload, Some(DeadLetterId { shard: SHARD, seq: Seq::new(*n) })), false)
            }
        });
    }
    made.into_iter()
        .map(|(input, isolated)| Item {
            record: Parsed::read(&input.payload),
            input,
            isolated: isolated.then(|| Refusal::new(DeadLetterReason::CrashedWorker, "tested")),
        })
        .collect()
}

/// The outcome of a record, comparable between the decision and the model of the test.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decided {
    Record { seq: i64, id: String, previous: (i64, Decimal), alert: bool, value: Decimal, rest: Option<Decimal> },
    Duplicate { id: String },
    Conflict { n: i64, id: String },
    DeadLetter { n: i64, id: Option<String>, reason: DeadLetterReason },
    Nothing,
}

/// Everything that was ever written, in order.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) kept: Vec<Kept>,
    /// Length of `kept` when the batch began: only a committed dead letter can be replayed.
    pub(super) committed: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) outcome: Decided,
    position: StreamPosition,
    payload: Vec<u8>,
    parsed: Option<Parsed>,
    /// Of a dead letter.
    open: bool,
}

impl Kept {
    /// A processed record, with its value.
    fn processed(&self) -> Option<Record> {
        let Decided::Record { value, .. } = &self.outcome else { return None };
        self.parsed.as_ref().map(|parsed| Record { value: Amount::stored(*value), ..Record::clone(&parsed.record) })
    }

    fn has_content(&self, parsed: &Parsed) -> bool {
        let content = |parsed: &Parsed| {
            let value = if parsed.record.is_whole_reversal() { Amount::ZERO } else { parsed.record.value };
            Record { value, ..Record::clone(&parsed.record) }
        };
        self.parsed.as_ref().is_some_and(|own| content(own) == content(parsed))
    }
}

pub(super) const SHARD: ShardId = ShardId::new(0);
const MINIMUM: i64 = 0;

impl Model {
    pub(super) fn judge(&mut self, item: &Item) -> Decided {
        let outcome = self.outcome(item);
        self.kept.push(Kept {
            open: matches!(outcome, Decided::DeadLetter { .. }),
            outcome: outcome.clone(),
            position: item.input.position,
            payload: item.input.payload.to_vec(),
            parsed: item.record.as_ref().ok().cloned(),
        });
        outcome
    }

    /// Discards a dead letter, where there is an open one of this number.
    pub(super) fn discard(&mut self, number: i64) {
        let dead_letter = |kept: &&mut Kept| matches!(kept.outcome, Decided::DeadLetter { n, .. } if n == number);
        self.kept.iter_mut().filter(dead_letter).for_each(|kept| kept.open = false);
    }

    fn dead_letter(&self, item: &Item, reason: DeadLetterReason) -> Decided {
        let n = 1 + self.kept.iter().filter(|kept| matches!(kept.outcome, Decided::DeadLetter { .. })).count() as i64;
        let id = item.record.as_ref().ok().map(|parsed| parsed.record.record_id.to_string());
        Decided::DeadLetter { n, id, reason }
    }

    fn outcome(&mut self, item: &Item) -> Decided {
        let came = self.kept.iter().any(|kept| {
            matches!(kept.outcome, Decided::DeadLetter { .. })
                && kept.position == item.input.position
                && kept.payload == item.input.payload
        });
        let replayed = item.input.replay_of.and_then(|dead_letter| {
            self.kept
                .iter_mut()
                .take(self.committed)
                .find(|kept| matches!(kept.outcome, Decided::DeadLetter { n, .. } if n == dead_letter.seq.get()))
                .filter(|kept| kept.payload == item.input.payload)
        });
        let is_new = match replayed {
            Some(kept) => {
                if !std::mem::replace(&mut kept.open, false) {
                    return Decided::Nothing;
                }
                true
            }
            // Of a dead letter that is not stored: a record like any other.
            None if came => return Decided::Nothing,
            None => false,
        };
        let isolated = item.isolated.as_ref().map(|refusal| refusal.reason);
        let Ok(parsed) = &item.record else {
            return self.dead_letter(item, isolated.unwrap_or(DeadLetterReason::Malformed));
        };
        let record = &parsed.record;
        if let Some(outcome) = self.outcome_of_taken_id(item, parsed, is_new) {
            return outcome;
        }
        if let Some(reason) = isolated {
            return self.dead_letter(item, reason);
        }
        if ShardId::of(&record.destination_id, 2) != SHARD {
            return self.dead_letter(item, DeadLetterReason::WrongShard);
        }
        let (record, rest) = match self.reversed(parsed) {
            Ok(reversed) => reversed,
            Err(reason) => return self.dead_letter(item, reason),
        };
        let records = self.records();
        let on_key: Vec<&Record> = records.iter().filter(|other| Key::of(other) == Key::of(&record)).collect();
        let before: Decimal = on_key.iter().map(|record| record.signed()).sum();
        let destination: Decimal = records
            .iter()
            .filter(|other| other.destination_id == record.destination_id && other.unit == record.unit)
            .map(|record| record.signed())
            .sum();
        if record.kind == Kind::Negative && destination + record.signed() < Decimal::from(MINIMUM) {
            return self.dead_letter(item, DeadLetterReason::BelowMinimumTotal);
        }
        Decided::Record {
            seq: 1 + records.len() as i64,
            id: record.record_id.to_string(),
            previous: (on_key.len() as i64, before),
            alert: record.value.get() > Decimal::TWO,
            value: record.value.get(),
            rest,
        }
    }

    /// The outcome of a record whose id is taken, or was when it came first.
    fn outcome_of_taken_id(&self, item: &Item, parsed: &Parsed, is_new: bool) -> Option<Decided> {
        let id = parsed.record.record_id.to_string();
        let taken = self.kept.iter().find(|kept| match &kept.outcome {
            Decided::Record { id: taken, .. } => *taken == id,
            Decided::DeadLetter { id: Some(taken), .. } => kept.open && *taken == id,
            _ => false,
        });
        let same = taken.is_some_and(|taken| taken.has_content(parsed));
        let noted = self.kept.iter().any(|kept| {
            kept.position == item.input.position
                && kept.has_content(parsed)
                && match kept.outcome {
                    Decided::Record { .. } | Decided::Conflict { .. } | Decided::Duplicate { .. } => true,
                    Decided::DeadLetter { .. } => kept.open,
                    Decided::Nothing => false,
                }
        });
        let noted = noted && !is_new;
        if noted {
            return Some(Decided::Nothing);
        }
        if taken.is_some() {
            if same {
                return Some(Decided::Duplicate { id });
            }
            let n = 1 + self.kept.iter().filter(|kept| matches!(kept.outcome, Decided::Conflict { .. })).count() as i64;
            return Some(Decided::Conflict { n, id });
        }
        None
    }

    /// The stored state that Postgres would return for a batch.
    pub(super) fn stored(&self, batch: &[Item]) -> Stored {
        let mut known = Known::default();
        let mut ids = HashMap::new();
        let asked: HashSet<&RecordId> =
            batch.iter().filter_map(|item| item.record.as_ref().ok()).map(|parsed| &parsed.record.record_id).collect();
        let reversed: HashSet<&RecordId> = batch
            .iter()
            .filter_map(|item| item.record.as_ref().ok())
            .filter_map(|parsed| parsed.record.reverses.as_ref())
            .collect();
        let mut records = 0;
        for kept in &self.kept {
            match (&kept.outcome, &kept.parsed) {
                (Decided::Record { .. }, Some(parsed)) => {
                    records += 1;
                    let record = &kept.processed().expect("a record");
                    if reversed.contains(&record.record_id) {
                        let rest = record.value.get() - self.taken_back(&record.record_id);
                        let original = OriginalRecord { seq: Seq::new(records), record: record.clone().into(), rest };
                        known.originals.insert(record.record_id.clone(), original);
                    }
                    let total = known.totals.entry(Key::of(record)).or_default();
                    total.count += 1;
                    total.total += record.signed();
                    let key =
                        DestinationUnit { destination_id: record.destination_id.clone(), unit: record.unit.clone() };
                    *known.destinations.entry(key).or_default() += total_nanos(record.signed());
                    if asked.contains(&record.record_id) {
                        let holder = Holder::Record(ShardSeq { shard: SHARD, seq: Seq::new(records) });
                        let taken = TakenId { holder, digest: parsed.digest, position: Some(kept.position) };
                        ids.insert(record.record_id.clone(), taken);
                    }
                }
                (Decided::Duplicate { .. }, Some(parsed)) => {
                    known.duplicates.entry(position_of(&parsed.record, kept)).or_default().push(parsed.digest);
                }
                (Decided::Conflict { .. }, Some(parsed)) => {
                    known.conflicts.entry(position_of(&parsed.record, kept)).or_default().push(parsed.digest);
                }
                (Decided::DeadLetter { n, .. }, parsed) => {
                    let id = DeadLetterId { shard: SHARD, seq: Seq::new(*n) };
                    if let Some(parsed) = parsed.as_ref().filter(|_| kept.open) {
                        let taken = TakenId { holder: Holder::DeadLetter(id), digest: parsed.digest, position: None };
                        ids.insert(parsed.record.record_id.clone(), taken);
                    }
                    known.dead_letters.push(KnownDeadLetter {
                        id,
                        open: kept.open,
                        record_id: parsed.as_ref().map(|parsed| parsed.record.record_id.clone()),
                        position: kept.position,
                        payload: kept.payload.clone(),
                    });
                }
                _ => {}
            }
        }
        Stored { known, ids: IdLedger::new(ids) }
    }

    pub(super) fn position(&self) -> Position {
        let count = |wanted: fn(&Decided) -> bool| {
            Seq::ZERO.plus(self.kept.iter().filter(|kept| wanted(&kept.outcome)).count())
        };
        let watermarks = Watermarks {
            records: count(|outcome| matches!(outcome, Decided::Record { .. })),
            dead_letters: count(|outcome| matches!(outcome, Decided::DeadLetter { .. })),
            conflicts: count(|outcome| matches!(outcome, Decided::Conflict { .. })),
        };
        Position { shard: SHARD, shards: 2, watermarks, account: Account::default(), applied: None }
    }
}

/// The stored state that a decision depends on.
pub(super) struct Stored {
    pub(super) known: Known,
    pub(super) ids: IdLedger,
}

impl Stored {
    pub(super) fn decide(mut self, batch: &[Item], policy: &Policy, position: Position) -> Decision {
        decide(batch, self.known, &mut self.ids, policy, position)
    }
}

fn position_of(record: &Record, kept: &Kept) -> PositionOfRecord {
    PositionOfRecord { record_id: record.record_id.clone(), position: kept.position }
}
