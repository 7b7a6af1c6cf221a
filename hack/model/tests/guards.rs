//! Without any one guard the checker finds a violation, in the smallest configuration that shows it; with the guard there
//! is none.

mod common;

use common::{check, holds};
use millrace_model::{
    check::{
        ACKED, ALERTS, ALL_LOST, BACKLOG, CLOSED, DROPPED, END, IDS, NAMED, ONCE, ORDER, PERIOD, ROLLUP, SHARED, SINK,
        TRULY_LOST, TWICE,
    },
    config::{Config, Faults, Refused},
    guards::{GUARDS, Guard},
    sizes::{crossed, freed, refused, replayed_beside, same_first, twins},
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
    replay: 0,
    discard: 0,
    admit: 0,
    clock: 0,
    together: 0,
};
const REDIS: Faults = Faults { redis_rewind: 1, ..NONE };
const POSTGRES: Faults = Faults { postgres_rewind: 1, ..NONE };

fn count(n: u8, faults: Faults) -> Config {
    Config { count: true, ..Config::new(1, n).faults(faults) }
}

/// Two clients, each with a serve process of its own.
fn producers(faults: Faults) -> Config {
    Config { clients: vec![vec![0], vec![1]], ..count(2, faults) }
}

/// An entry of two records.
fn entry(faults: Faults) -> Config {
    Config { request: 2, ..Config::new(1, 2).faults(faults) }
}

/// Two clients send the same record.
fn same(faults: Faults) -> Config {
    Config { clients: vec![vec![0], vec![0]], ..Config::new(1, 1).faults(faults) }
}

/// A dead letter is replayed and discarded.
fn discarded(split: bool) -> Config {
    let faults = Faults { replay: 1, discard: 1, admit: 1, ..NONE };
    Config { split, ..refused(&[Refused::AtFirst]) }.faults(faults)
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
        Guard::UniqueId => (Config { split: true, ..twins(2) }, ONCE),
        Guard::CompareLog | Guard::Watermark | Guard::BelowWatermark => (two(POSTGRES), IDS),
        Guard::CompareAgain => (Config::new(2, 1).faults(Faults { expire: 1, policy: 1, ..POSTGRES }), IDS),
        Guard::CompareCursors => (apart, IDS),
        Guard::EmptyPublishers | Guard::FollowRecent => (two(Faults { answer_lost: 1, ..POSTGRES }), IDS),
        Guard::RestoreWatermark => (two(REDIS), END),
        Guard::NoticeRedisRewind => (count(1, REDIS), BACKLOG),
        Guard::ReadPolicyAgain => (Config::new(2, 1).faults(Faults { policy: 1, ..POSTGRES }), ALERTS),
        Guard::MoveFromStarted => (Config::new(1, 2).faults(Faults { retarget: 2, ..NONE }), END),
        Guard::NewerGeneration => (Config::new(2, 1).faults(Faults { retarget: 3, ..NONE }), END),
        Guard::WholeEntries => (entry(NONE), ACKED),
        Guard::RecognizeEachRecord => (same_first().faults(REDIS), DROPPED),
        Guard::AppliedUnderLock | Guard::CompareApplied => (same(Faults { answer_lost: 1, ..NONE }), TWICE),
        Guard::AppliedNeverFalls => (Config::new(1, 2).faults(REDIS), TWICE),
        Guard::CompareNumbers => {
            let faults = Faults { postgres_rewind: 1, ..REDIS };
            (Config { in_place: true, ..Config::new(1, 3).faults(faults) }, IDS)
        }
        Guard::DuplicateByContent => (freed(Refused::Always).faults(Faults { discard: 1, ..REDIS }), DROPPED),
        Guard::SharedIds => (twins(1), SHARED),
        Guard::LedgerOrder => (Config { split: true, ..crossed(1) }, END),
        Guard::MovesInOrder => (replayed_beside(), END),
        Guard::PeriodNeverFalls => (Config::new(1, 3).faults(Faults { clock: 2, ..NONE }), PERIOD),
        Guard::DeadLetterFirst => (discarded(true), END),
        Guard::OpenUnderLock => (discarded(true), CLOSED),
        Guard::OnlyWhileNamed => (discarded(true), NAMED),
        Guard::ReplayOnlyOpen => (discarded(false), CLOSED),
        Guard::ReplayByContent => {
            let faults = Faults { replay: 1, admit: 1, ..POSTGRES };
            (refused(&[Refused::AtFirst, Refused::Always]).faults(faults), CLOSED)
        }
        Guard::ReplayIsNew => {
            let again = Config { clients: vec![vec![0], vec![0]], ..refused(&[Refused::AtFirst]) };
            (again.faults(Faults { replay: 1, admit: 1, ..REDIS }), CLOSED)
        }
        Guard::LastCopy => (refused(&[Refused::Always]).faults(Faults { replay: 1, ..POSTGRES }), DROPPED),
        Guard::CompareAcknowledged => (count(1, Faults { postgres_rewind: 1, ..REDIS }), BACKLOG),
        Guard::RaiseInAppend => (count(2, REDIS), ALL_LOST),
        Guard::CountOldOffsets => (producers(REDIS), TRULY_LOST),
        Guard::BetweenBatches | Guard::WaitForNotes | Guard::NoteAfterAnswer => (count(1, REDIS), TRULY_LOST),
        Guard::WaitAgain => (count(2, Faults { redis_rewind: 2, ..NONE }), TRULY_LOST),
        Guard::NothingPending => (count(1, Faults { redis_rewind: 2, ..NONE }), END),
        Guard::RaiseByNotes => (count(1, REDIS), ALL_LOST),
        Guard::NoteAgain => (count(1, Faults { postgres_rewind: 1, ..REDIS }), ALL_LOST),
        Guard::BoundaryBySeq | Guard::MoveWithRows => {
            (Config { rollup: true, ..Config::new(1, 2).faults(Faults { policy: 1, ..NONE }) }, ROLLUP)
        }
        Guard::FoldSurplus => (count(1, Faults { end_serve: 1, ..REDIS }), BACKLOG),
    }
}

/// Guards that protect the same: a guard is shown to be needed without them.
fn others(guard: Guard) -> &'static [Guard] {
    match guard {
        Guard::AppliedUnderLock => &[Guard::CompareApplied, Guard::CompareNumbers],
        Guard::CompareApplied => &[Guard::AppliedUnderLock, Guard::CompareNumbers],
        Guard::OnlyWhileNamed => &[Guard::OpenUnderLock],
        Guard::EmptyPublishers => &[Guard::FollowRecent],
        Guard::FollowRecent => &[Guard::EmptyPublishers],
        _ => &[],
    }
}

#[test]
fn without_any_one_guard_a_property_is_violated() {
    for guard in GUARDS {
        let (config, property) = case(guard);
        let config = others(guard).iter().fold(config, |config, other| config.without(*other));
        let name = format!("without {guard:?}");
        let violated = check(&name, config.without(guard), &[property]);
        assert!(violated.iter().any(|(name, _)| *name == property), "{name}: {property}: {violated:#?}");
    }
}

#[test]
fn a_guard_protects_also_without_others_that_protect_the_same() {
    for guard in GUARDS.into_iter().filter(|guard| !others(*guard).is_empty()) {
        let (config, property) = case(guard);
        let config = others(guard).iter().fold(config, |config, other| config.without(*other));
        let violated = check(&format!("only with {guard:?}"), config, &[property]);
        assert!(violated.iter().all(|(name, _)| *name != property), "{guard:?}: {violated:#?}");
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
