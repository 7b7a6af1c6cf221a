//! The check finds violations, without a server: the tests make outcomes, then spoil them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Allowed, Check, Wrong, digest, stored::Gaps};
use crate::{
    endpoint::Delivery,
    load::{
        Load,
        history::{Answer, Closed},
        record::{COLLIDE, Code, Content, ELSEWHERE, OTHER_VALUE, TOTAL_THRESHOLDS, TotalThreshold},
    },
    read::Entry,
};

const SEED: u64 = 7;

/// A client that sent some records, all to shard 0, and the outcomes that must follow.
struct Story {
    load: Arc<Load>,
    check: Check,
    records: Vec<Entry>,
    alerts: Vec<Entry>,
    total_alerts: Vec<Entry>,
}

fn story(records: usize) -> Story {
    let load = Load::new(SEED, Vec::new(), 1.0);
    let check = Check::new(&load);
    let mut story = Story { load, check, records: Vec::new(), alerts: Vec::new(), total_alerts: Vec::new() };
    let mut destinations: std::collections::BTreeMap<(String, &str), i128> = std::collections::BTreeMap::new();
    let mut sums: std::collections::BTreeMap<(String, String, &str), (i64, i128)> = std::collections::BTreeMap::new();
    while story.records.len() < records {
        let code = story.load.history().begin(0);
        let content = Content::of(SEED, code);
        // Positive records never bring a total below the minimum.
        if !content.positive {
            continue;
        }
        story.load.history().note_answer(code, Answer::Taken);
        let (n, alerts, signed) = (story.records.len() + 1, content.alerts(), content.signed());
        let sum = sums.entry((content.destination.clone(), content.reference.clone(), content.unit)).or_default();
        let mut data = notification(&content, *sum);
        story.records.push(entry(&format!("0-{n}"), "record.processed", &data));
        let all = destinations.entry((content.destination.clone(), content.unit)).or_default();
        for threshold in TOTAL_THRESHOLDS.iter().filter(|threshold| threshold.unit == content.unit) {
            let before = if threshold.per == "Key" { sum.1 } else { *all };
            let steps = steps_by_hand(threshold, before, before + signed);
            if steps > 0 {
                let mut data = data.clone();
                data["totalAlert"] = json!({
                    "name": threshold.name, "per": threshold.per, "every": threshold.every, "steps": steps,
                    (if threshold.is_above { "above" } else { "below" }): threshold.bound,
                    "previousTotal": decimal(before), "total": decimal(before + signed),
                });
                let id = format!("0-{n}-total-{}", threshold.name);
                story.total_alerts.push(entry(&id, "record.total_alert", &data));
            }
        }
        *all += signed;
        if alerts {
            data["threshold"] = content.threshold().into();
            story.alerts.push(entry(&format!("0-{n}-alert"), "record.alert", &data));
        }
        *sum = (sum.0 + 1, sum.1 + signed);
    }
    story
}

fn notification(content: &Content, (count, total): (i64, i128)) -> Value {
    let mut record: Value = serde_json::from_str(&content.json()).unwrap();
    record["value"] = content.value.clone().into();
    record["receivedAt"] = "then".into();
    record["processedAt"] = "now".into();
    json!({"record": record, "summary": {"previousCount": count, "previousTotal": decimal(total), "unit": content.unit}})
}

fn decimal(billionths: i128) -> String {
    format!("{}.{:09}", billionths / 1_000_000_000, billionths % 1_000_000_000)
}

/// Each step of a threshold by itself; no total of the story is so high that there are more.
fn steps_by_hand(threshold: &TotalThreshold, before: i128, after: i128) -> usize {
    let number = |text: &str| crate::decimal::parse(text).unwrap();
    let at = |n: i128| number(threshold.bound) + n * number(threshold.every) * if threshold.is_above { 1 } else { -1 };
    let passes = |at: i128| if threshold.is_above { before <= at && after > at } else { before >= at && after < at };
    (0..10_000).filter(|n| passes(at(*n))).count()
}

fn entry(id: &str, kind: &str, data: &Value) -> Entry {
    Entry { id: id.to_owned(), kind: kind.to_owned(), source: "faults/0123".to_owned(), data: data.to_string() }
}

impl Story {
    /// The violations that the check finds, each kind once.
    fn found(mut self) -> Vec<Wrong> {
        self.check.notifications(std::mem::take(&mut self.records), &Gaps::default());
        self.check.alerts(&self.alerts, &Gaps::default());
        self.check.total_alerts(&self.total_alerts, &Gaps::default());
        self.check.every_id();
        let mut found: Vec<Wrong> = self.check.violations.iter().map(|violation| violation.wrong).collect();
        found.dedup();
        found
    }
}

#[test]
fn correct_outcomes_are_no_violation() {
    let story = story(40);
    assert!(story.alerts.len() > 2, "the story has alerts");
    assert!(story.total_alerts.len() > 5, "and alerts of totals");
    assert_eq!(story.found(), []);
}

#[test]
fn missing_outcomes_are_found() {
    let mut none = story(40);
    none.records.pop();
    none.total_alerts.retain(|alert| !alert.id.starts_with("0-40-"));
    assert_eq!(none.found(), [Wrong::Lost]);
    let mut alert = story(40);
    alert.alerts.pop();
    assert_eq!(alert.found(), [Wrong::Lost]);
    let mut threshold = story(40);
    let data = &mut threshold.alerts[1].data;
    *data = data.replace("\"threshold\":\"", "\"threshold\":\"1");
    assert_eq!(threshold.found(), [Wrong::Miscounted], "another threshold");
    let mut total_alert = story(40);
    total_alert.total_alerts.pop();
    assert_eq!(total_alert.found(), [Wrong::Lost]);
    let mut first = story(40);
    first.total_alerts.remove(0);
    assert!(first.found().contains(&Wrong::Miscounted), "the first crossing is left out");
    let mut middle = story(40);
    middle.records.remove(20);
    assert!(middle.found().contains(&Wrong::Reordered), "a number is left out");
}

#[test]
fn repeated_outcomes_are_found() {
    let mut again = story(40);
    again.records.push(again.records[30].clone());
    assert_eq!(again.found(), [Wrong::Doubled], "the same number");
    let mut alert = story(40);
    alert.total_alerts.insert(3, alert.total_alerts[2].clone());
    assert_eq!(alert.found(), [Wrong::Doubled], "the same alert of a total");
    for (from, to) in [("\"steps\":", "\"steps\":1"), ("\"previousTotal\":\"", "\"previousTotal\":\"1")] {
        let mut alert = story(40);
        let data = &mut alert.total_alerts[2].data;
        let at = data.find("totalAlert").unwrap();
        *data = format!("{}{}", &data[..at], data[at..].replacen(from, to, 1));
        assert_eq!(alert.found(), [Wrong::Miscounted], "{from}");
    }
    let mut other = story(40);
    let id = format!("0-{}", other.records.len() + 1);
    other.records.push(Entry { id, ..other.records[30].clone() });
    assert!(other.found().contains(&Wrong::Doubled), "the same record under another number");
}

#[test]
fn a_rewound_redis_may_repeat_only_the_same_content() {
    let mut again = story(40);
    again.check.allowed = Allowed { redis_lost: true, sinks_lost: true, ..Allowed::default() };
    again.records.push(again.records[30].clone());
    assert_eq!(again.found(), []);
    let mut other = story(40);
    other.check.allowed = Allowed { redis_lost: true, sinks_lost: true, ..Allowed::default() };
    let data = other.records[29].data.clone();
    other.records.push(Entry { data, ..other.records[30].clone() });
    assert_eq!(other.found(), [Wrong::Doubled]);
}

#[test]
fn another_order_content_or_sum_is_found() {
    let mut order = story(40);
    let data: Vec<String> = order.records.iter().map(|entry| entry.data.clone()).collect();
    for (entry, data) in order.records.iter_mut().zip(data.into_iter().rev()) {
        entry.data = data;
    }
    assert!(order.found().contains(&Wrong::Reordered));
    for (from, to) in [("\"unit\":\"EUR\"", "\"unit\":\"CHF\""), ("\"previousCount\":0", "\"previousCount\":1")] {
        let mut spoilt = story(40);
        let entry = spoilt.records.iter_mut().find(|entry| entry.data.contains(from)).unwrap();
        entry.data = entry.data.replacen(from, to, 1);
        assert!(spoilt.found().contains(&Wrong::Miscounted), "{from}");
    }
}

/// A client sent an id again with another value, after its record.
#[test]
fn other_content_under_an_id_is_one_conflict_and_no_duplicate() {
    let found = |conflicts: usize, sends: usize, came_first: bool| {
        let mut story = story(5);
        let code = Code::of_id(&record_id(&story.records[4])).unwrap().with_variant(OTHER_VALUE);
        (0..sends).for_each(|_| story.load.history().note_answer(code, Answer::Taken));
        if came_first {
            story.records[4].data = notification(&Content::of(SEED, code), sum_before(&story.records[4])).to_string();
            // The other value can be on the other side of the threshold.
            story.alerts.clear();
        }
        story.check.notifications(std::mem::take(&mut story.records), &Gaps::default());
        let data = json!({"recordId": code.id()});
        let came: Vec<Entry> = (1..=conflicts).map(|n| entry(&format!("0-c{n}"), "record.conflicted", &data)).collect();
        story.check.conflicts(&came, &Gaps::default());
        // The other entries have the outcome of a duplicate.
        (conflicts..sends).for_each(|_| _ = story.load.history().apply(code.with_variant(0)));
        story.check.every_id();
        story.check.violations.iter().map(|violation| violation.wrong).collect::<Vec<_>>()
    };
    assert_eq!(found(1, 1, false), []);
    assert_eq!(found(0, 1, false), [Wrong::Lost], "it was applied as a duplicate");
    assert_eq!(found(1, 2, false), [Wrong::Lost], "one of two was");
    assert_eq!(found(1, 0, false)[0], Wrong::Miscounted, "a conflict without other content");
    assert_eq!(found(1, 1, true)[0], Wrong::Reordered, "it counts before the record that was sent first");
}

fn sum_before(entry: &Entry) -> (i64, i128) {
    let data: Value = serde_json::from_str(&entry.data).unwrap();
    let summary = &data["summary"];
    let total = summary["previousTotal"].as_str().and_then(crate::decimal::parse).unwrap();
    (summary["previousCount"].as_i64().unwrap(), total)
}

#[test]
fn a_dead_letter_needs_a_low_total_or_a_poisoned_record() {
    let found = |negative: bool, poisoned: bool, reason: &str| {
        let mut story = story(5);
        let mut codes = (0..).map(|_| story.load.history().begin(0));
        let content = |code| Content::of(SEED, code);
        let code = codes.find(|code| content(*code).positive != negative && content(*code).signed() != 0).unwrap();
        story.load.history().note_answer(code, Answer::Taken);
        if poisoned {
            story.load.history().poisoned.insert(code);
        }
        // The balance before it.
        let there = (content(code).destination, content(code).unit);
        let balance = if reason == "below_minimum_total" && !poisoned { -content(code).signed() } else { 0 };
        story.check.balances.insert(there, balance);
        let mut payload: Value = serde_json::from_str(&content(code).json()).unwrap();
        payload["value"] = content(code).value.into();
        let data = json!({"recordId": code.id(), "reason": reason, "payload": payload});
        story.check.dead_letters(&[entry("0-d1", "record.dead_lettered", &data)], &Gaps::default());
        story.check.violations.iter().map(|violation| violation.wrong).collect::<Vec<_>>()
    };
    assert_eq!(found(true, false, "below_minimum_total"), [Wrong::Miscounted], "there was enough");
    assert_eq!(found(true, true, "below_minimum_total"), []);
    assert_eq!(found(false, false, "crashed_worker"), [Wrong::Miscounted], "a record that crashes no worker");
    assert_eq!(found(false, true, "crashed_worker"), []);
}

/// A record was sent twice, and its first entry became a dead letter, which was closed before the second one was decided.
#[test]
fn the_id_of_a_closed_dead_letter_counts_once() {
    let found = |closed: Option<Closed>, dead_letters: usize, duplicates: usize| {
        let mut story = story(5);
        let code = Code::of_id(&record_id(&story.records[4])).unwrap();
        {
            let mut history = story.load.history();
            history.note_answer(code, Answer::Taken);
            history.poisoned.insert(code);
            history.closed.extend(closed.map(|closed| (code, closed)));
        }
        story.check.notifications(std::mem::take(&mut story.records), &Gaps::default());
        let data = json!({"recordId": code.id(), "reason": "crashed_worker"});
        let came: Vec<Entry> =
            (1..=dead_letters).map(|n| entry(&format!("0-d{n}"), "record.dead_lettered", &data)).collect();
        story.check.dead_letters(&came, &Gaps::default());
        (0..duplicates).for_each(|_| _ = story.load.history().apply(code));
        story.check.every_id();
        story.check.violations.iter().map(|violation| violation.wrong).collect::<Vec<_>>()
    };
    assert_eq!(found(Some(Closed::Replayed), 1, 1), []);
    assert_eq!(found(Some(Closed::Discarded), 1, 0), []);
    assert_eq!(found(Some(Closed::Replayed), 1, 0), [Wrong::Lost], "the second entry has no outcome");
    assert_eq!(found(Some(Closed::Discarded), 1, 1), [Wrong::Doubled], "an entry has two outcomes");
    assert_eq!(found(Some(Closed::Discarded), 2, 0)[0], Wrong::Doubled, "a second dead letter");
    assert_eq!(found(None, 1, 0)[0], Wrong::Doubled, "the dead letter is open, and its id counts");
}

/// An id was sent to all destinations at once, and to one of them twice.
#[test]
fn of_an_id_that_collides_one_counts_and_the_others_are_conflicts() {
    let found = |records: &[u8], conflicts: usize, duplicates: usize| {
        let mut story = story(1);
        let code = story.load.history().begin(COLLIDE);
        for variant in code.variants().chain([code.with_variant(5)]) {
            story.load.history().note_answer(variant, Answer::Taken);
        }
        for (n, variant) in records.iter().enumerate() {
            let content = Content::of(SEED, code.with_variant(*variant));
            story.records.push(entry(&format!("1-{}", n + 1), "record.processed", &notification(&content, (0, 0))));
        }
        story.load.history().flag(code, crate::load::history::UNORDERED, true);
        story.check.notifications(std::mem::take(&mut story.records), &Gaps::default());
        let data = json!({"recordId": code.id()});
        let came: Vec<Entry> = (1..=conflicts).map(|n| entry(&format!("1-c{n}"), "record.conflicted", &data)).collect();
        story.check.conflicts(&came, &Gaps::default());
        (0..duplicates).for_each(|_| _ = story.load.history().apply(code));
        story.check.every_id();
        story.check.violations.iter().map(|violation| violation.wrong).collect::<Vec<_>>()
    };
    assert_eq!(found(&[5], 15, 1), []);
    assert_eq!(found(&[4], 16, 0), []);
    assert_eq!(found(&[5], 16, 0), [Wrong::Miscounted], "the same content is no conflict");
    assert_eq!(found(&[5], 14, 2), [Wrong::Lost], "other content is no duplicate");
    assert_eq!(found(&[5], 14, 1), [Wrong::Lost, Wrong::Lost], "an entry has no outcome");
    assert_eq!(found(&[5, 7], 14, 1)[0], Wrong::Doubled, "two of them count");
}

#[test]
fn a_gap_or_a_repetition_in_a_stream_is_found() {
    let found = |spoil: fn(&mut Vec<(Entry, u32)>)| {
        let mut story = story(40);
        let mut stream: Vec<(Entry, u32)> =
            story.records.iter().map(|entry| (entry.clone(), digest(&entry.data))).collect();
        story.check.notifications(std::mem::take(&mut story.records), &Gaps::default());
        spoil(&mut stream);
        story.check.stream(0, &stream);
        story.check.violations.iter().map(|violation| violation.wrong).collect::<Vec<_>>()
    };
    assert_eq!(found(|_| ()), []);
    assert_eq!(found(|stream| stream.truncate(30)), [Wrong::Lost]);
    assert_eq!(found(|stream| _ = stream.remove(7)), [Wrong::Lost]);
    assert_eq!(found(|stream| stream.push(stream[39].clone())), [Wrong::Doubled]);
    assert_eq!(found(|stream| stream[12].1 += 1), [Wrong::Doubled]);
}

#[test]
fn a_record_that_was_never_sent_is_found() {
    let mut ghost = story(3);
    let content = Content::of(SEED, Code::new(0, 1_000_000));
    ghost.records.push(entry("0-4", "record.processed", &notification(&content, (0, 0))));
    assert_eq!(ghost.found(), [Wrong::Ghost]);
}

/// Postgres lost the last two of five records; the record behind the noted gap continues the sums of the third.
#[test]
fn records_in_a_noted_gap_count_no_more() {
    let mut story = story(5);
    story.check.allowed = Allowed { postgres_lost: true, ..Allowed::default() };
    let mut shorter = story_of_three_and_one();
    story.load = Arc::clone(&story.check.load);
    let behind = shorter.pop().unwrap();
    story.records.push(Entry { id: "0-8".to_owned(), ..behind });
    let gaps = Gaps::noted(0, "records", 4, 7);
    let code = Code::of_id(&record_id(&story.records[5])).unwrap();
    while story.load.history().count(0) <= code.n() {
        story.load.history().begin(0);
    }
    story.load.history().note_answer(code, Answer::Taken);
    story.check.notifications(std::mem::take(&mut story.records), &gaps);
    assert!(story.check.violations.is_empty(), "{:?}", story.check.violations);
    assert_eq!(story.check.counts.processed, 4);
}

/// A client sent the last of five to two shards at once. Where Postgres lost it in one, whose gap has no record behind it
/// yet, it may count in the other; else it counts twice.
#[test]
fn a_record_lost_in_one_shard_may_count_in_another() {
    let found = |gaps: &Gaps, postgres_lost: bool| {
        let mut story = story(5);
        story.check.allowed = Allowed { postgres_lost, ..Allowed::default() };
        let code = Code::of_id(&record_id(&story.records[4])).unwrap().with_variant(ELSEWHERE);
        story.load.history().note_answer(code, Answer::Taken);
        let other = Content::of(SEED, code);
        let elsewhere = |entry: &Entry| content(entry).destination != other.destination;
        assert!(story.records.iter().all(elsewhere), "{}", other.destination);
        story.records.push(entry("1-1", "record.processed", &notification(&other, (0, 0))));
        story.check.notifications(std::mem::take(&mut story.records), gaps);
        story.check.violations.iter().map(|violation| violation.wrong).collect::<Vec<_>>()
    };
    assert_eq!(found(&Gaps::noted(0, "records", 4, 7), true), []);
    assert_eq!(found(&Gaps::noted(0, "records", 6, 7), true), [Wrong::Doubled], "it is before the gap");
    assert_eq!(found(&Gaps::default(), false), [Wrong::Doubled]);
}

/// Six records, the last one as it must come where the fourth and fifth are lost.
fn story_of_three_and_one() -> Vec<Entry> {
    let mut all = story(6);
    let kept: Vec<Content> = [0, 1, 2].map(|n| content(&all.records[n])).into();
    let last = content(&all.records[5]);
    let same = |one: &&Content| {
        (&one.destination, &one.reference, one.unit) == (&last.destination, &last.reference, last.unit)
    };
    let before: Vec<&Content> = kept.iter().filter(same).collect();
    let sum = (before.len() as i64, before.iter().map(|one| one.signed()).sum());
    all.records[5].data = notification(&last, sum).to_string();
    all.records
}

fn record_id(entry: &Entry) -> String {
    let data: Value = serde_json::from_str(&entry.data).unwrap();
    data["record"]["recordId"].as_str().unwrap().to_owned()
}

fn content(entry: &Entry) -> Content {
    Content::of(SEED, Code::of_id(&record_id(entry)).unwrap())
}

/// The deliveries of a story, each to one of three destinations.
fn deliveries(story: &Story) -> Vec<Delivery> {
    let one = |(index, entry): (usize, &Entry)| Delivery {
        shard: 0,
        seq: index as i64 + 1,
        previous: (index >= 3).then(|| index as i64 - 2),
        destination: format!("d-{}", index % 3),
        digest: digest(&entry.data),
        is_signed: true,
    };
    story.records.iter().enumerate().map(one).collect()
}

#[test]
fn wrong_deliveries_are_found() {
    let found = |spoil: &dyn Fn(&mut Vec<Delivery>)| {
        let mut story = story(40);
        let mut deliveries = deliveries(&story);
        spoil(&mut deliveries);
        story.check.notifications(std::mem::take(&mut story.records), &Gaps::default());
        story.check.deliveries(deliveries, &Gaps::default(), &[(0, 1)], true);
        let mut found: Vec<Wrong> = story.check.violations.iter().map(|violation| violation.wrong).collect();
        found.dedup();
        found
    };
    assert_eq!(found(&|_| {}), []);
    assert_eq!(found(&|all| all[7].is_signed = false), [Wrong::Miscounted]);
    assert_eq!(found(&|all| all[7].digest += 1), [Wrong::Miscounted]);
    assert_eq!(found(&|all| drop(all.pop())), [Wrong::Lost]);
    assert_eq!(found(&|all| drop(all.remove(20))), [Wrong::Lost], "named by the next, and not there");
    assert!(found(&|all| all.swap(6, 9)).contains(&Wrong::Reordered));
    assert_eq!(found(&|all| all.swap(6, 7)), [], "of two destinations");
    assert_eq!(found(&|all| all[7].previous = None), [Wrong::Lost]);
    let repeat = |times: usize| move |all: &mut Vec<Delivery>| all.extend_from_within(40 - times..);
    assert_eq!(found(&repeat(16)), [], "as many as were in flight");
    assert_eq!(found(&repeat(17)), [Wrong::Doubled]);
    assert!(found(&|all| all.push(Delivery { seq: 99, ..all[0].clone() })).contains(&Wrong::Ghost));
}
