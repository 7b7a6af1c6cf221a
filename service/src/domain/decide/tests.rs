//! The decision against a plain model that keeps everything in one list and looks through it for every entry.

mod model;
mod totals;

use proptest::prelude::*;

use super::*;
use crate::domain::{Account, DestinationId, Watermarks, code};
use model::{DESTINATIONS, Decided, Model, SHARD, Step, items, record, steps};

fn policy() -> Policy {
    let spec = serde_json::from_str(r#"{"threshold":"2","policy":{"minimumTotal":"0"}}"#).unwrap();
    Policy::of(&spec, 1)
}

/// The decision's outcomes, one per record.
fn outcomes(decision: &Decision, items: usize) -> Vec<Decided> {
    let mut outcomes = vec![Decided::Nothing; items];
    for new in &decision.records {
        outcomes[new.item] = Decided::Record {
            seq: new.seq.get(),
            id: new.record.record_id.to_string(),
            previous: (new.previous.count, new.previous.total),
            alert: new.threshold.is_some(),
            value: new.record.value.get(),
            rest: new.reversal.map(|reversal| reversal.rest),
        };
    }
    for duplicate in &decision.duplicates {
        outcomes[duplicate.item] = Decided::Duplicate { id: duplicate.record_id.to_string() };
    }
    for conflict in &decision.conflicts {
        outcomes[conflict.item] =
            Decided::Conflict { n: conflict.seq.get(), id: conflict.record.record_id.to_string() };
    }
    for dead_letter in &decision.dead_letters {
        let id = dead_letter.record_id.as_ref().map(ToString::to_string);
        outcomes[dead_letter.item] = Decided::DeadLetter { n: dead_letter.seq.get(), id, reason: dead_letter.reason };
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
            let before = model.stored(&[]).known.totals;
            let decision = model.stored(&batch).decide(&batch, &policy, model.position());
            model.committed = model.kept.len();
            let expected: Vec<Decided> = batch.iter().map(|item| model.judge(item)).collect();
            prop_assert_eq!(outcomes(&decision, batch.len()), expected);
            // Totals are the sums of the records, and only changed keys are written.
            let after = model.stored(&[]).known.totals;
            for (key, total) in &after {
                let (before, change) = (before.get(key).copied(), decision.totals.get(key).copied());
                prop_assert_eq!(change.is_some(), before != Some(*total));
                let (before, change) = (before.unwrap_or_default(), change.unwrap_or_default());
                prop_assert_eq!(total.count, before.count + change.positive_count + change.negative_count);
                prop_assert_eq!(total.total, before.total + change.positive_sum - change.negative_sum);
            }
            let alerts = decision.records.iter().filter(|new| new.threshold.is_some()).count() as i64;
            prop_assert_eq!(decision.alerts, alerts);
            prop_assert_eq!(decision.totals.values().map(|change| change.alerts).sum::<i64>(), alerts);
            model.assert_reversals();
            batch.clear();
            ends[index].into_iter().for_each(|n| model.discard(n));
        }
    }
}

#[test]
fn random_streams_have_every_outcome_of_a_reversal() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let (mut runner, mut refused, mut wholly, mut partly) = (TestRunner::deterministic(), HashMap::new(), 0, 0);
    for _ in 0..500 {
        let mut model = Model::default();
        for item in items(&steps().new_tree(&mut runner).unwrap().current()) {
            match model.judge(&item) {
                Decided::Record { rest: Some(rest), .. } if rest.is_zero() => wholly += 1,
                Decided::Record { rest: Some(_), .. } => partly += 1,
                Decided::DeadLetter { reason, .. } => *refused.entry(reason).or_insert(0) += 1,
                _ => {}
            }
        }
    }
    let of = |reason| refused.get(&reason).copied().unwrap_or(0);
    let counts = [
        of(DeadLetterReason::OriginalNotFound),
        of(DeadLetterReason::ReversalOfReversal),
        of(DeadLetterReason::ReversalMismatch),
        of(DeadLetterReason::ReversalExceedsOriginal),
        wholly,
        partly,
    ];
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
}

fn shard_of_destinations() -> ShardId {
    ShardId::of(&DestinationId::stored(DESTINATIONS[0]), 2)
}

fn one(payload: &str) -> Item {
    let input = model::input(7, payload, None);
    Item { record: Parsed::read(&input.payload), input, isolated: None }
}

#[test]
fn applied_entries_stay_applied_when_the_dead_letter_of_their_id_is_discarded() {
    let mut model = Model::default();
    let entry = |ms, value: &str, isolated: bool| {
        let mut item = one(&record(1, 0, value, true, "EUR", "{}"));
        item.input.position.entry.ms = ms;
        item.isolated = isolated.then(|| Refusal::new(DeadLetterReason::CrashedWorker, "tested"));
        item
    };
    let batch = [entry(1, "1", true), entry(2, "1", false), entry(3, "2", false)];
    for item in &batch {
        model.judge(item);
    }
    let [dead_letter, duplicate, conflict] = &model.kept[..] else { panic!("three outcomes") };
    assert!(matches!(dead_letter.outcome, Decided::DeadLetter { n: 1, .. }), "{dead_letter:?}");
    assert!(matches!(duplicate.outcome, Decided::Duplicate { .. }), "{duplicate:?}");
    assert!(matches!(conflict.outcome, Decided::Conflict { .. }), "{conflict:?}");
    model.discard(1);
    let position = Position { shard: shard_of_destinations(), ..model.position() };
    let decision = model.stored(&batch[1..]).decide(&batch[1..], &Policy::default(), position);
    assert_eq!(decision.redelivered, 2, "{decision:?}");
    // The record sent again is taken, and the conflict before it stays one.
    let again = [entry(4, "2", false), entry(3, "2", false)];
    let decision = model.stored(&again).decide(&again, &Policy::default(), position);
    assert_eq!((decision.records.len(), decision.redelivered), (1, 1), "{decision:?}");
}

#[test]
fn a_total_stops_at_its_bound() {
    let model = Model::default();
    let item = one(&record(1, 0, "1", true, "EUR", "{}"));
    let key = Key::of(&item.record.as_ref().unwrap().record);
    // A destination that belongs to the shard, whichever it is.
    let shard = ShardId::of(&key.destination_id, 2);
    let decide_at = |total: &str| {
        let mut stored = model.stored(&[]);
        stored.known.totals.insert(key.clone(), Total { count: 1, total: total.parse().unwrap() });
        let position = Position { shard, ..model.position() };
        stored.decide(std::slice::from_ref(&item), &Policy::default(), position)
    };
    assert_eq!(decide_at("9999999999999999998.999999999").records.len(), 1);
    let refused = decide_at("9999999999999999999.000000000");
    assert_eq!(refused.dead_letters[0].reason, DeadLetterReason::TotalOutOfBounds);
    assert!(refused.totals.is_empty());
}

#[test]
fn a_total_of_zero_has_no_sign() {
    let items = [(1, "0.00"), (2, "0"), (3, "0.0")].map(|(id, value)| one(&record(id, 0, value, false, "EUR", "{}")));
    let model = Model::default();
    let position = Position { shard: shard_of_destinations(), ..model.position() };
    let decision = model.stored(&[]).decide(&items, &Policy::default(), position);
    let totals: Vec<String> = decision.records.iter().map(|record| record.previous.total.to_string()).collect();
    assert_eq!(totals.len(), 3);
    assert!(totals.iter().all(|total| !total.starts_with('-')), "{totals:?}");
    assert!(decision.totals.values().all(|change| !change.negative_sum.is_sign_negative()));
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
        let shard = shard_of_destinations();
        let model = Model::default();
        let position = Position { shard, ..model.position() };
        let decision = model.stored(&[]).decide(std::slice::from_ref(&item), &policy, position);
        assert_eq!(decision.alerts == 1, alert, "{value} {unit}");
    }
}

#[test]
fn an_unreadable_payload_keeps_its_reason() {
    let mut item = one("garbage");
    assert_eq!(item.record.as_ref().unwrap_err().code, code::INVALID_JSON);
    let model = Model::default();
    let dead_letter = |item: &Item| {
        let decision = model.stored(&[]).decide(std::slice::from_ref(item), &Policy::default(), model.position());
        decision.dead_letters[0].reason
    };
    assert_eq!(dead_letter(&item), DeadLetterReason::Malformed);
    item.isolated = Some(Refusal::new(DeadLetterReason::Panicked, ""));
    assert_eq!(dead_letter(&item), DeadLetterReason::Panicked);
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
        let steps: Vec<_> = payloads.map(|payload| (Step::New { payload, isolated: false }, None)).collect();
        let position = Position {
            shard: SHARD,
            shards: 1,
            watermarks: Watermarks::default(),
            account: Account::default(),
            applied: None,
        };
        let decision = Model::default().stored(&[]).decide(&items(&steps), &policy, position);
        (decision.alerts, decision.without_threshold)
    };
    assert_eq!(counted("thresholds: {EUR: '1', JPY: '9'}"), (1, 2));
    assert_eq!(counted("thresholds: {EUR: '1'}, threshold: '1'"), (4, 0), "the common one holds");
    assert_eq!(counted("threshold: '9'"), (0, 0));
    assert_eq!(counted(""), (0, 0), "no unit has one");
}

/// A record of one id at a place, of another place than the ones that are stored where `ms` differs.
fn of_id(ms: u64, value: &str, replay_of: Option<i64>) -> Item {
    let mut item = one(&record(1, 0, value, true, "EUR", "{}"));
    item.input.position.entry.ms = ms;
    item.input.replay_of = replay_of.map(|seq| DeadLetterId { shard: SHARD, seq: Seq::new(seq) });
    item
}

/// A model in which id 1 has a dead letter of value 1, and a duplicate of it came at place 2.
fn refused_and_repeated() -> Model {
    let mut model = Model::default();
    let refused =
        Item { isolated: Some(Refusal::new(DeadLetterReason::CrashedWorker, "tested")), ..of_id(1, "1", None) };
    for item in [refused, of_id(2, "1", None)] {
        model.judge(&item);
    }
    assert!(matches!(model.kept[1].outcome, Decided::Duplicate { .. }));
    model
}

fn decide_in(model: &Model, item: Item) -> Decision {
    let position = Position { shard: shard_of_destinations(), ..model.position() };
    model.stored(std::slice::from_ref(&item)).decide(std::slice::from_ref(&item), &Policy::default(), position)
}

#[test]
fn another_record_at_the_place_of_a_noted_duplicate_is_no_redelivery() {
    let mut model = refused_and_repeated();
    model.discard(1);
    let decision = decide_in(&model, of_id(2, "2", None));
    assert_eq!((decision.records.len(), decision.redelivered), (1, 0), "{decision:?}");
    let decision = decide_in(&model, of_id(2, "1", None));
    assert_eq!((decision.records.len(), decision.redelivered), (0, 1), "{decision:?}");
}

#[test]
fn a_replay_of_an_open_dead_letter_is_decided_whatever_came_at_its_place() {
    let decision = decide_in(&refused_and_repeated(), of_id(2, "1", Some(1)));
    assert_eq!((decision.records.len(), decision.closed.len(), decision.redelivered), (1, 1, 0), "{decision:?}");
}

#[test]
fn a_replay_closes_no_dead_letter_of_other_content() {
    let decision = decide_in(&refused_and_repeated(), of_id(3, "2", Some(1)));
    assert!(decision.closed.is_empty() && decision.conflicts.len() == 1, "{decision:?}");
    let mut model = refused_and_repeated();
    model.discard(1);
    let decision = decide_in(&model, of_id(3, "2", Some(1)));
    assert_eq!((decision.records.len(), decision.redelivered), (1, 0), "it may be the last copy: {decision:?}");
}
