//! Taking out any one guard lets the checker find a violation, in the smallest configuration that shows it; with the
//! guard there is none.

mod common;

use common::{check, holds};
use millrace_model::{
    check::{ACKED, ALERTS, END, IDS, LEAST, MOST, ONCE, ORDER, SINK},
    config::{Config, Faults, GUARDS, Guard, Record},
};

const NONE: Faults = Faults {
    crash: 0,
    expire: 0,
    redis_back: 0,
    postgres_back: 0,
    unknown: 0,
    repeat: 0,
    answer_lost: 0,
    policy: 0,
    retarget: 0,
    start: 0,
    together: 0,
};
const REDIS: Faults = Faults { redis_back: 1, ..NONE };
const POSTGRES: Faults = Faults { postgres_back: 1, ..NONE };

/// One record id, sent with other content to another shard.
fn twins() -> Config {
    let twin = |shard| Record { id: 0, shard, value: 2 };
    let records = vec![twin(0), twin(1)];
    Config { shards: 2, records, clients: vec![vec![0], vec![1]], split: true, ..Config::new(2, 2) }
}

fn count(n: u8, faults: Faults) -> Config {
    Config { count: true, ..Config::new(1, n).faults(faults) }
}

/// Of each guard: where it is needed, and what is violated without it.
fn case(guard: Guard) -> (Config, &'static str) {
    let two = |faults| Config::new(2, 2).faults(faults);
    // The nodes of Redis that have the records and the sinks' streams, each by itself.
    let apart = Config { parts: true, ..Config::new(1, 2).faults(Faults { postgres_back: 1, ..REDIS }) };
    match guard {
        Guard::FenceOnWrite => (two(Faults { expire: 1, ..REDIS }), END),
        Guard::FenceOnRead => (two(Faults { expire: 1, ..NONE }), END),
        Guard::FenceOnAck => (two(Faults { expire: 1, ..REDIS }), ACKED),
        Guard::RaiseEpoch => (Config::new(2, 1).faults(POSTGRES), END),
        Guard::Token => (two(Faults { expire: 1, ..POSTGRES }), ORDER),
        Guard::ReclaimAgain => (two(Faults { expire: 1, ..REDIS }), END),
        Guard::PolicyVersion => (two(Faults { policy: 1, expire: 1, crash: 1, ..NONE }), ALERTS),
        Guard::CompareInAppend => (Config::new(1, 1).faults(Faults { answer_lost: 1, ..NONE }), SINK),
        Guard::AckAfterCommit => (Config::new(1, 1).faults(Faults { crash: 1, ..NONE }), ACKED),
        Guard::PendingFirst => (two(Faults { crash: 1, ..NONE }), ORDER),
        Guard::UniqueId => (twins(), ONCE),
        Guard::CompareLog | Guard::Mark | Guard::BelowMark | Guard::CompareAgain => (two(POSTGRES), IDS),
        Guard::CompareCursors => (apart, IDS),
        Guard::EmptyPublishers => (two(Faults { answer_lost: 1, ..POSTGRES }), IDS),
        Guard::RestoreMark | Guard::NoticeRedisBack => (two(REDIS), END),
        Guard::ReadPolicyAgain => (Config::new(2, 1).faults(Faults { policy: 1, ..POSTGRES }), ALERTS),
        Guard::MoveFromStarted => (Config::new(1, 2).faults(Faults { retarget: 2, ..NONE }), END),
        Guard::NewerStart => (Config::new(2, 1).faults(Faults { retarget: 3, ..NONE }), END),
        Guard::CountBeforeSending => (count(1, REDIS), MOST),
        Guard::CountEmptyHanded => (count(1, REDIS), LEAST),
        Guard::CountUnapplied => (count(2, REDIS), MOST),
        Guard::FlushAgain => (count(2, POSTGRES), MOST),
    }
}

#[test]
fn without_any_one_guard_something_breaks() {
    for guard in GUARDS {
        let (config, property) = case(guard);
        let name = format!("without {guard:?}");
        let violated = check(&name, config.without(guard));
        assert!(violated.iter().any(|(name, _)| *name == property), "{name}: {property}: {violated:#?}");
    }
}

#[test]
fn with_all_guards_nothing_does() {
    let mut seen: Vec<String> = Vec::new();
    for guard in GUARDS {
        let (config, _) = case(guard);
        let size = format!("{config:?}");
        if !seen.contains(&size) {
            seen.push(size);
            holds(&format!("where {guard:?} is needed"), config);
        }
    }
}
