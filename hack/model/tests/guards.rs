//! Without any one guard the checker finds a violation, in the smallest configuration that shows it; with the guard there
//! is none.

mod common;

use common::{check, holds};
use millrace_model::{
    check::{ACKED, ALERTS, ALL_LOST, BACKLOG, END, IDS, KEPT, ONCE, ORDER, SINK, TRULY_LOST},
    config::{Config, Faults, Record},
    guards::{GUARDS, Guard},
};

const NONE: Faults = Faults {
    crash: 0,
    expire: 0,
    redis_rewind: 0,
    postgres_rewind: 0,
    unknown: 0,
    repeat: 0,
    answer_lost: 0,
    end_serve: 0,
    policy: 0,
    retarget: 0,
    start: 0,
    together: 0,
};
const REDIS: Faults = Faults { redis_rewind: 1, ..NONE };
const POSTGRES: Faults = Faults { postgres_rewind: 1, ..NONE };

/// One record id, in two records with different content, for two shards.
fn twins() -> Config {
    let twin = |shard| Record { id: 0, shard, value: 2 };
    let records = vec![twin(0), twin(1)];
    Config { shards: 2, records, clients: vec![vec![0], vec![1]], split: true, ..Config::new(2, 2) }
}

fn count(n: u8, faults: Faults) -> Config {
    Config { count: true, ..Config::new(1, n).faults(faults) }
}

/// Two clients, each with a serve process of its own.
fn producers(faults: Faults) -> Config {
    Config { clients: vec![vec![0], vec![1]], ..count(2, faults) }
}

/// An entry of two records, each committed alone.
fn cut(faults: Faults) -> Config {
    Config { request: 2, transaction: 1, ..Config::new(1, 2).faults(faults) }
}

/// The configuration that needs a guard, and the property that is violated without it.
fn case(guard: Guard) -> (Config, &'static str) {
    let two = |faults| Config::new(2, 2).faults(faults);
    // The nodes of Redis that have the input streams and the sinks' streams are rewound each by itself.
    let apart = Config { parts: true, ..Config::new(1, 2).faults(Faults { postgres_rewind: 1, ..REDIS }) };
    match guard {
        Guard::FenceOnWrite => (two(Faults { expire: 1, ..REDIS }), END),
        Guard::FenceOnRead => (two(Faults { expire: 1, ..NONE }), ORDER),
        Guard::FenceOnAck => (two(Faults { expire: 1, ..REDIS }), ACKED),
        Guard::RaiseEpoch => (Config::new(2, 1).faults(POSTGRES), END),
        Guard::Token => (two(Faults { expire: 1, ..POSTGRES }), ORDER),
        Guard::ReclaimAgain => (two(Faults { expire: 1, ..REDIS }), ORDER),
        Guard::PolicyVersion => (two(Faults { policy: 1, expire: 1, crash: 1, ..NONE }), ALERTS),
        Guard::CompareInAppend => (Config::new(1, 1).faults(Faults { answer_lost: 1, ..NONE }), SINK),
        Guard::AckAfterCommit => (Config::new(1, 1).faults(Faults { crash: 1, ..NONE }), ACKED),
        Guard::PendingFirst => (two(Faults { crash: 1, ..NONE }), ORDER),
        Guard::UniqueId => (twins(), ONCE),
        Guard::CompareLog | Guard::Watermark | Guard::BelowWatermark | Guard::CompareAgain => (two(POSTGRES), IDS),
        Guard::CompareCursors => (apart, IDS),
        Guard::EmptyPublishers => (two(Faults { answer_lost: 1, ..POSTGRES }), IDS),
        Guard::RestoreWatermark => (two(REDIS), END),
        Guard::NoticeRedisRewind => (count(1, REDIS), BACKLOG),
        Guard::ReadPolicyAgain => (Config::new(2, 1).faults(Faults { policy: 1, ..POSTGRES }), ALERTS),
        Guard::MoveFromStarted => (Config::new(1, 2).faults(Faults { retarget: 2, ..NONE }), END),
        Guard::NewerGeneration => (Config::new(2, 1).faults(Faults { retarget: 3, ..NONE }), END),
        Guard::AckWholeEntry => (cut(NONE), ACKED),
        Guard::RecognizeEachRecord => (cut(Faults { crash: 1, ..NONE }), KEPT),
        Guard::CompareAcknowledged => (count(1, Faults { postgres_rewind: 1, ..REDIS }), BACKLOG),
        Guard::RaiseInAppend => (count(2, REDIS), ALL_LOST),
        Guard::CountOldOffsets => (producers(REDIS), TRULY_LOST),
        Guard::BetweenBatches | Guard::WaitForNotes | Guard::NoteAfterAnswer => (count(1, REDIS), TRULY_LOST),
        Guard::WaitAgain => (count(2, Faults { redis_rewind: 2, ..NONE }), TRULY_LOST),
        Guard::NothingPending => (count(1, Faults { redis_rewind: 2, ..NONE }), END),
        Guard::RaiseByNotes => (count(1, REDIS), ALL_LOST),
        Guard::NoteAgain => (count(1, Faults { postgres_rewind: 1, ..REDIS }), ALL_LOST),
        Guard::FoldSurplus => (count(1, Faults { end_serve: 1, ..REDIS }), BACKLOG),
    }
}

#[test]
fn without_any_one_guard_a_property_is_violated() {
    for guard in GUARDS {
        let (config, property) = case(guard);
        let name = format!("without {guard:?}");
        let violated = check(&name, config.without(guard));
        assert!(violated.iter().any(|(name, _)| *name == property), "{name}: {property}: {violated:#?}");
    }
}

#[test]
fn with_all_guards_no_property_is_violated() {
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
