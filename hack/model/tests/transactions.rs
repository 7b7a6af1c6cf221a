//! Transactions with all guards: groups of two shards, redeliveries, dead letters, periods.

mod common;

use common::holds;
use millrace_model::{
    config::{Config, Faults, Refused},
    sizes::{crossed, freed, refused, replayed_beside, same_first},
};

fn none() -> Faults {
    Faults::default()
}

#[test]
fn groups_of_two_shards_share_ids() {
    let lost = Faults { answer_lost: 1, crash: 1, together: 2, ..none() };
    let taken = Faults { crash: 1, expire: 1, together: 1, ..none() };
    let split = |workers| Config { split: true, ..crossed(workers) };
    holds("1 worker, 2 shards, shared ids, steps", split(1).faults(lost));
    holds("2 workers, 2 shards, shared ids, steps", split(2).faults(taken));
    holds("2 workers, 2 shards, shared ids", crossed(2).faults(Faults { answer_lost: 1, ..taken }));
}

#[test]
fn groups_of_two_shards_and_rewound_servers() {
    let redis = Faults { redis_rewind: 1, ..none() };
    let postgres = Faults { postgres_rewind: 1, ..none() };
    holds("1 worker, 2 shards, a rewound Redis, steps", Config { split: true, ..crossed(1).faults(redis) });
    holds("1 worker, 2 shards, a rewound Postgres", crossed(1).faults(postgres));
}

#[test]
fn redeliveries_of_entries_with_repeated_ids() {
    let faults = Faults { redis_rewind: 1, crash: 1, ..none() };
    holds("1 worker, 2 entries of 2 records, the same first", same_first().faults(faults));
    let again = Config { request: 2, clients: vec![vec![0, 1], vec![1, 0]], ..Config::new(1, 2) };
    let faults = Faults { expire: 1, answer_lost: 1, together: 2, ..faults };
    holds("1 worker, 2 entries of 2 records, twice", again.faults(faults));
}

#[test]
fn dead_letters_are_replayed_and_discarded() {
    let asked = Faults { replay: 2, discard: 1, admit: 1, ..none() };
    let one = || Config { split: true, ..refused(&[Refused::AtFirst]) };
    holds("1 dead letter, steps", one().faults(Faults { crash: 1, answer_lost: 1, ..asked }));
    holds("2 workers, 1 dead letter, steps", Config { workers: 2, ..one() }.faults(Faults { expire: 1, ..asked }));
    holds("1 dead letter, another record with its id", Config { split: true, ..freed(Refused::AtFirst) }.faults(asked));
    holds("a replay beside another record, 2 shards, steps", replayed_beside());
}

/// All of it at once: groups of two shards, entries of two records, a dead letter and its replay.
#[test]
fn two_workers_and_two_shards_with_a_replay() {
    let faults = Faults { expire: 1, ..replayed_beside().faults };
    holds("2 workers, 2 shards, a replay", Config { workers: 2, ..replayed_beside() }.faults(faults));
}

#[test]
fn dead_letters_and_rewound_servers() {
    let asked = Faults { replay: 1, discard: 1, admit: 1, ..none() };
    let redis = Faults { redis_rewind: 1, ..asked };
    let postgres = Faults { postgres_rewind: 1, ..asked };
    holds("1 dead letter, another record with its id, a rewound Redis", freed(Refused::AtFirst).faults(redis));
    let two = refused(&[Refused::AtFirst, Refused::Always]);
    holds("2 dead letters, a rewound Postgres", two.faults(Faults { crash: 1, ..postgres }));
}

#[test]
fn periods_and_a_clock_that_moves_back() {
    let faults = Faults { clock: 2, crash: 1, ..none() };
    holds("1 worker, 3 records, periods", Config::new(1, 3).faults(Faults { postgres_rewind: 1, ..faults }));
    holds("2 workers, 2 records, periods", Config::new(2, 2).faults(Faults { expire: 1, ..faults }));
}

#[test]
fn a_postgres_that_is_put_back_while_it_runs() {
    let config = |workers, faults| Config { in_place: true, ..Config::new(workers, 2).faults(faults) };
    let faults = Faults { postgres_rewind: 1, crash: 1, answer_lost: 1, together: 2, ..none() };
    holds("1 worker, 2 records, Postgres put back", config(1, Faults { redis_rewind: 1, ..faults }));
    holds("2 workers, 2 records, Postgres put back", config(2, Faults { expire: 1, ..faults }));
}

#[test]
fn a_rollup_that_is_declared_between_records() {
    let config = |workers, n, faults| Config { rollup: true, ..Config::new(workers, n).faults(faults) };
    let declared = Faults { policy: 1, crash: 1, ..none() };
    holds("1 worker, 3 records, a declared rollup", config(1, 3, Faults { answer_lost: 1, ..declared }));
    holds("2 workers, 2 records, a declared rollup", config(2, 2, Faults { expire: 1, ..declared }));
    let rewound = Faults { policy: 2, postgres_rewind: 1, ..none() };
    holds("1 worker, 2 records, a declared rollup, a rewound Postgres", config(1, 2, rewound));
}
