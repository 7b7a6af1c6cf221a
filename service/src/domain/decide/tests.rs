//! The decision against a plain model that keeps everything in one list and looks through it for every entry.

use proptest::prelude::*;
use rust_decimal::Decimal;

use super::*;
use crate::domain::code;

/// Destinations of which some belong to shard 0 of 2 and some do not.
const DESTINATIONS: [&str; 4] = ["a", "b", "c", "d"];

fn record(id: u8, destination: usize, value: &str, positive: bool, unit: &str, attributes: &str) -> String {
    let kind = if positive { "positive" } else { "negative" };
    format!(
        r#"{{"recordId":"id-{id}","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"{}","type":"{kind}","value":"{value}","unit":"{unit}","reference":"r","attributes":{attributes}}}"#,
        DESTINATIONS[destination]
    )
}

/// One entry of a generated stream.
#[derive(Debug, Clone)]
enum Step {
    New {
        payload: String,
        marked: bool,
        isolated: bool,
    },
    /// Delivers an earlier entry again.
    Again(usize),
    /// Asks for a replay of a dead letter.
    Replay(i64),
}

/// Steps, with each whether a batch ends behind it, and which dead letter is discarded then.
fn steps() -> impl Strategy<Value = Vec<(Step, Option<i64>)>> {
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
    let step = prop_oneof![
        8 => (payload, any::<bool>(), prop::bool::weighted(0.05))
            .prop_map(|(payload, marked, isolated)| Step::New { payload, marked, isolated }),
        2 => (0..40_usize).prop_map(Step::Again),
        1 => (1..5_i64).prop_map(Step::Replay),
    ];
    prop::collection::vec((step, prop::option::weighted(0.3, 0..5_i64)), 1..40)
}

/// Turns steps into entries; an entry that comes again has the same stream id and payload.
fn items(steps: &[(Step, Option<i64>)]) -> Vec<Item> {
    let mut made: Vec<(Entry, bool)> = Vec::new();
    for (index, (step, _)) in steps.iter().enumerate() {
        let fresh = |payload: String, marked, replay_of| Entry {
            id: StreamId { ms: index as u64, n: 0 },
            deliveries: 1,
            payload: payload.into_bytes(),
            received_at: chrono::DateTime::UNIX_EPOCH,
            traceparent: None,
            marked,
            replay_of,
        };
        made.push(match step {
            Step::New { payload, marked, isolated } => (fresh(payload.clone(), *marked, None), *isolated),
            Step::Again(which) if made.is_empty() => {
                (fresh(record(0, 0, "1", true, "EUR", "{}"), *which > 0, None), false)
            }
            Step::Again(which) => made[which % made.len()].clone(),
            // What a replay carries does not depend on the dead letter here: any payload may stand in one.
            Step::Replay(n) => {
                let payload = record((*n % 6) as u8, 0, "1", true, "EUR", "{}");
                (fresh(payload, false, Some(DeadLetterId { shard: 0, n: *n })), false)
            }
        });
    }
    made.into_iter()
        .map(|(entry, isolated)| Item {
            record: Record::parse(&entry.payload).map(Arc::new),
            entry,
            isolated: isolated.then(|| ("crashed_worker", "tested".to_owned())),
        })
        .collect()
}

/// What became of an entry, in words that both sides speak.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Record { seq: i64, id: String, previous: (i64, Decimal), alert: bool },
    Duplicate { id: String },
    Conflict { n: i64, id: String },
    DeadLetter { n: i64, id: Option<String>, reason: String },
    Nothing,
}

/// Everything that was ever written, in order.
#[derive(Debug, Default)]
struct Model {
    kept: Vec<Kept>,
    /// How many were kept when the batch began: only a dead letter that is committed can be asked for.
    committed: usize,
}

#[derive(Debug, Clone)]
struct Kept {
    outcome: Outcome,
    stream_id: StreamId,
    payload: Vec<u8>,
    record: Option<Record>,
    /// Of a dead letter.
    open: bool,
}

const MINIMUM: i64 = 0;

impl Model {
    fn judge(&mut self, item: &Item) -> Outcome {
        let outcome = self.outcome(item);
        self.kept.push(Kept {
            open: matches!(outcome, Outcome::DeadLetter { .. }),
            outcome: outcome.clone(),
            stream_id: item.entry.id,
            payload: item.entry.payload.clone(),
            record: item.record.as_ref().ok().map(|record| Record::clone(record)),
        });
        outcome
    }

    /// Discards a dead letter, where there is an open one of this number.
    fn discard(&mut self, number: i64) {
        let dead_letter = |kept: &&mut Kept| matches!(kept.outcome, Outcome::DeadLetter { n, .. } if n == number);
        self.kept.iter_mut().filter(dead_letter).for_each(|kept| kept.open = false);
    }

    fn dead_letter(&self, item: &Item, reason: &str) -> Outcome {
        let n = 1 + self.kept.iter().filter(|kept| matches!(kept.outcome, Outcome::DeadLetter { .. })).count() as i64;
        let id = item.record.as_ref().ok().map(|record| record.record_id.to_string());
        Outcome::DeadLetter { n, id, reason: reason.to_owned() }
    }

    fn outcome(&mut self, item: &Item) -> Outcome {
        if let Some(dead_letter) = item.entry.replay_of {
            let found =
                self.kept.iter_mut().take(self.committed).find(|kept| {
                    kept.open && matches!(kept.outcome, Outcome::DeadLetter { n, .. } if n == dead_letter.n)
                });
            match found {
                Some(kept) => kept.open = false,
                None => return Outcome::Nothing,
            }
        } else if self.kept.iter().any(|kept| {
            matches!(kept.outcome, Outcome::DeadLetter { .. })
                && kept.stream_id == item.entry.id
                && kept.payload == item.entry.payload
        }) {
            return Outcome::Nothing;
        }
        let isolated = item.isolated.as_ref().map(|(reason, _)| *reason);
        let Ok(record) = &item.record else { return self.dead_letter(item, isolated.unwrap_or("malformed")) };
        let id = record.record_id.to_string();
        let taken = self.kept.iter().find(|kept| match &kept.outcome {
            Outcome::Record { id: taken, .. } => *taken == id,
            Outcome::DeadLetter { id: Some(taken), .. } => kept.open && *taken == id,
            _ => false,
        });
        let same = taken.is_some_and(|taken| taken.record.as_ref() == Some(&**record));
        let noted = self.kept.iter().any(|kept| {
            kept.stream_id == item.entry.id
                && kept.record.as_ref() == Some(&**record)
                && match kept.outcome {
                    Outcome::Record { .. } | Outcome::Conflict { .. } => true,
                    Outcome::DeadLetter { .. } => kept.open,
                    // Of a duplicate it is not kept what it said: only of that which took its id.
                    Outcome::Duplicate { .. } => same || taken.is_none(),
                    Outcome::Nothing => false,
                }
        });
        if noted {
            return Outcome::Nothing;
        }
        if taken.is_some() {
            if same {
                return Outcome::Duplicate { id };
            }
            let n = 1 + self.kept.iter().filter(|kept| matches!(kept.outcome, Outcome::Conflict { .. })).count() as i64;
            return Outcome::Conflict { n, id };
        }
        if let Some(reason) = isolated {
            return self.dead_letter(item, reason);
        }
        if shard_of(record.destination_id.as_str(), 2) != 0 {
            return self.dead_letter(item, "wrong_shard");
        }
        let records: Vec<&Record> = self
            .kept
            .iter()
            .filter(|kept| matches!(kept.outcome, Outcome::Record { .. }))
            .filter_map(|kept| kept.record.as_ref())
            .collect();
        let on_key: Vec<&&Record> = records.iter().filter(|other| Key::of(other) == Key::of(record)).collect();
        let before: Decimal = on_key.iter().map(|record| record.signed()).sum();
        let destination: Decimal = records
            .iter()
            .filter(|other| other.destination_id == record.destination_id && other.unit == record.unit)
            .map(|record| record.signed())
            .sum();
        if record.kind == Kind::Negative && destination + record.signed() < Decimal::from(MINIMUM) {
            return self.dead_letter(item, "below_minimum_total");
        }
        Outcome::Record {
            seq: 1 + records.len() as i64,
            id,
            previous: (on_key.len() as i64, before),
            alert: record.value.get() > Decimal::TWO,
        }
    }

    /// What Postgres would tell of a batch.
    fn known(&self, batch: &[Item]) -> Known {
        let mut known = Known {
            records: HashMap::new(),
            dead_letters: Vec::new(),
            duplicates: HashSet::new(),
            conflicts: HashMap::new(),
            totals: HashMap::new(),
            destinations: HashMap::new(),
        };
        let asked: HashSet<&Text> =
            batch.iter().filter_map(|item| item.record.as_ref().ok()).map(|record| &record.record_id).collect();
        for kept in &self.kept {
            match (&kept.outcome, &kept.record) {
                (Outcome::Record { .. }, Some(record)) => {
                    let total = known.totals.entry(Key::of(record)).or_default();
                    total.count += 1;
                    total.total += record.signed();
                    let key = (record.destination_id.to_string(), record.unit.to_string());
                    *known.destinations.entry(key).or_default() += total_nanos(record.signed());
                    if asked.contains(&record.record_id) {
                        let stored = KnownRecord { record: Arc::new(record.clone()), stream_id: kept.stream_id };
                        known.records.insert(record.record_id.clone(), stored);
                    }
                }
                (Outcome::Duplicate { .. }, Some(record)) => {
                    known.duplicates.insert((record.record_id.clone(), kept.stream_id));
                }
                (Outcome::Conflict { .. }, Some(record)) => {
                    known.conflicts.entry((record.record_id.clone(), kept.stream_id)).or_default().push(record.clone());
                }
                (Outcome::DeadLetter { n, .. }, record) => known.dead_letters.push(KnownDeadLetter {
                    id: DeadLetterId { shard: 0, n: *n },
                    open: kept.open,
                    record_id: record.as_ref().map(|record| record.record_id.clone()),
                    stream_id: kept.stream_id,
                    payload: kept.payload.clone(),
                }),
                _ => {}
            }
        }
        known
    }

    fn position(&self) -> Position {
        let count = |wanted: fn(&Outcome) -> bool| self.kept.iter().filter(|kept| wanted(&kept.outcome)).count() as i64;
        Position {
            shard: 0,
            shards: 2,
            records: count(|outcome| matches!(outcome, Outcome::Record { .. })),
            dead_letters: count(|outcome| matches!(outcome, Outcome::DeadLetter { .. })),
            conflicts: count(|outcome| matches!(outcome, Outcome::Conflict { .. })),
        }
    }
}

fn policy() -> Policy {
    let spec = serde_json::from_str(r#"{"threshold":"2","policy":{"minimumTotal":"0"}}"#).unwrap();
    Policy::of(&spec, 1)
}

/// The decision's outcomes, one per entry.
fn outcomes(decision: &Decision, entries: usize) -> Vec<Outcome> {
    let mut outcomes = vec![Outcome::Nothing; entries];
    for new in &decision.records {
        outcomes[new.entry] = Outcome::Record {
            seq: new.seq,
            id: new.record.record_id.to_string(),
            previous: (new.previous.count, new.previous.total),
            alert: new.threshold.is_some(),
        };
    }
    for duplicate in &decision.duplicates {
        outcomes[duplicate.entry] = Outcome::Duplicate { id: duplicate.record_id.to_string() };
    }
    for conflict in &decision.conflicts {
        outcomes[conflict.entry] = Outcome::Conflict { n: conflict.n, id: conflict.record.record_id.to_string() };
    }
    for dead_letter in &decision.dead_letters {
        let id = dead_letter.record_id.as_ref().map(ToString::to_string);
        outcomes[dead_letter.entry] =
            Outcome::DeadLetter { n: dead_letter.n, id, reason: dead_letter.reason.to_owned() };
    }
    outcomes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn decides_as_the_model_however_the_stream_is_cut_into_batches(steps in steps()) {
        let policy = policy();
        let mut model = Model::default();
        let mut batch: Vec<Item> = Vec::new();
        let ends: Vec<Option<i64>> = steps.iter().map(|(_, ends)| *ends).collect();
        let all = items(&steps);
        let last = all.len() - 1;
        for (index, item) in all.into_iter().enumerate() {
            batch.push(item);
            if ends[index].is_none() && index != last {
                continue;
            }
            let decision = decide(&batch, model.known(&batch), &policy, model.position());
            model.committed = model.kept.len();
            let expected: Vec<Outcome> = batch.iter().map(|item| model.judge(item)).collect();
            prop_assert_eq!(outcomes(&decision, batch.len()), expected);
            // Totals are the sums of the records, and only changed keys are written.
            let known = model.known(&batch);
            for (key, total) in &decision.totals {
                prop_assert_eq!(known.totals.get(key), Some(total));
            }
            let external = batch.iter().zip(outcomes(&decision, batch.len()))
                .filter(|(item, outcome)| *outcome != Outcome::Nothing && !item.entry.marked)
                .count() as i64;
            prop_assert_eq!(decision.external, external);
            let alerts = decision.records.iter().filter(|new| new.threshold.is_some()).count() as i64;
            prop_assert_eq!(decision.alerts, alerts);
            batch.clear();
            ends[index].into_iter().for_each(|n| model.discard(n));
        }
    }
}

fn one(payload: &str) -> Item {
    let entry = Entry {
        id: StreamId { ms: 7, n: 0 },
        deliveries: 1,
        payload: payload.as_bytes().to_vec(),
        received_at: chrono::DateTime::UNIX_EPOCH,
        traceparent: None,
        marked: true,
        replay_of: None,
    };
    Item { record: Record::parse(&entry.payload).map(Arc::new), entry, isolated: None }
}

#[test]
fn what_was_applied_stays_applied_though_the_dead_letter_that_took_its_id_is_discarded() {
    let mut model = Model::default();
    let entry = |ms, value: &str, isolated: bool| {
        let mut item = one(&record(1, 0, value, true, "EUR", "{}"));
        item.entry.id.ms = ms;
        item.isolated = isolated.then(|| ("crashed_worker", "tested".to_owned()));
        item
    };
    let batch = [entry(1, "1", true), entry(2, "1", false), entry(3, "2", false)];
    for item in &batch {
        model.judge(item);
    }
    let [dead_letter, duplicate, conflict] = &model.kept[..] else { panic!("three are kept") };
    assert!(matches!(dead_letter.outcome, Outcome::DeadLetter { n: 1, .. }), "{dead_letter:?}");
    assert!(matches!(duplicate.outcome, Outcome::Duplicate { .. }), "{duplicate:?}");
    assert!(matches!(conflict.outcome, Outcome::Conflict { .. }), "{conflict:?}");
    model.discard(1);
    let position = Position { shard: shard_of(DESTINATIONS[0], 2), ..model.position() };
    let decision = decide(&batch[1..], model.known(&batch[1..]), &Policy::default(), position);
    assert_eq!(decision.redelivered, 2, "{decision:?}");
    // What is sent again is taken, and what was refused before it stays refused.
    let again = [entry(4, "2", false), entry(3, "2", false)];
    let decision = decide(&again, model.known(&again), &Policy::default(), position);
    assert_eq!((decision.records.len(), decision.redelivered), (1, 1), "{decision:?}");
}

#[test]
fn a_total_stops_at_its_bound() {
    let model = Model::default();
    let item = one(&record(1, 0, "1", true, "EUR", "{}"));
    let key = Key::of(item.record.as_ref().unwrap());
    // A destination that belongs to the shard, whichever it is.
    let shard = shard_of(&key.destination_id, 2);
    let decide_at = |total: &str| {
        let mut known = model.known(&[]);
        known.totals.insert(key.clone(), Total { count: 1, total: total.parse().unwrap() });
        let position = Position { shard, ..model.position() };
        decide(std::slice::from_ref(&item), known, &Policy::default(), position)
    };
    assert_eq!(decide_at("9999999999999999998.999999999").records.len(), 1);
    let refused = decide_at("9999999999999999999.000000000");
    assert_eq!(refused.dead_letters[0].reason, "total_out_of_bounds");
    assert!(refused.totals.is_empty());
}

#[test]
fn a_total_of_zero_has_no_sign() {
    let items = [(1, "0.00"), (2, "0"), (3, "0.0")].map(|(id, value)| one(&record(id, 0, value, false, "EUR", "{}")));
    let model = Model::default();
    let position = Position { shard: shard_of(DESTINATIONS[0], 2), ..model.position() };
    let decision = decide(&items, model.known(&[]), &Policy::default(), position);
    let totals: Vec<String> = decision.records.iter().map(|record| record.previous.total.to_string()).collect();
    assert_eq!(totals.len(), 3);
    assert!(totals.iter().all(|total| !total.starts_with('-')), "{totals:?}");
    assert!(decision.totals.values().all(|total| !total.total.is_sign_negative()));
}

#[test]
fn the_threshold_of_a_unit_overrides_and_the_value_has_to_be_above_it() {
    let spec = serde_json::from_str(r#"{"threshold":"10.00","thresholds":{"min":"120"}}"#).unwrap();
    let policy = Policy::of(&spec, 3);
    for (unit, value, alert) in [
        ("EUR", "10", false),
        ("EUR", "10.000000001", true),
        ("min", "119", false),
        ("min", "120.0", false),
        ("min", "121", true),
    ] {
        let item = one(&record(1, 0, value, false, unit, "{}"));
        let shard = shard_of(DESTINATIONS[0], 2);
        let model = Model::default();
        let position = Position { shard, ..model.position() };
        let decision = decide(std::slice::from_ref(&item), model.known(&[]), &policy, position);
        assert_eq!(decision.alerts == 1, alert, "{value} {unit}");
    }
}

#[test]
fn what_cannot_be_read_keeps_its_reason() {
    let mut item = one("garbage");
    assert_eq!(item.record.as_ref().unwrap_err().code, code::INVALID_JSON);
    let model = Model::default();
    let dead_letter = |item: &Item| {
        let decision = decide(std::slice::from_ref(item), model.known(&[]), &Policy::default(), model.position());
        decision.dead_letters[0].reason
    };
    assert_eq!(dead_letter(&item), "malformed");
    item.isolated = Some(("panicked", String::new()));
    assert_eq!(dead_letter(&item), "panicked");
}

#[test]
fn records_of_a_unit_without_threshold_beside_others_are_counted() {
    let counted = |spec: &str| {
        let yaml = format!(
            "{{apiVersion: millrace.dev/v1alpha1, kind: RecordPipeline, metadata: {{name: p}}, spec: {{{spec}}}}}"
        );
        let policy = Policy::of(&millrace_crds::RecordPipeline::from_yaml(&yaml).expect("a manifest").spec, 1);
        let payloads =
            ["EUR", "eur", "eur", "JPY"].iter().zip(0..).map(|(unit, id)| record(id, 0, "5", true, unit, "{}"));
        let steps: Vec<_> =
            payloads.map(|payload| (Step::New { payload, marked: true, isolated: false }, None)).collect();
        let position = Position { shard: 0, shards: 1, records: 0, dead_letters: 0, conflicts: 0 };
        let decision = decide(&items(&steps), Model::default().known(&[]), &policy, position);
        (decision.alerts, decision.without_threshold)
    };
    assert_eq!(counted("thresholds: {EUR: '1', JPY: '9'}"), (1, 2));
    assert_eq!(counted("thresholds: {EUR: '1'}, threshold: '1'"), (4, 0), "the common one holds");
    assert_eq!(counted("threshold: '9'"), (0, 0));
    assert_eq!(counted(""), (0, 0), "no unit has one");
}
