//! With all guards no property is violated, in any state that can be reached; and no run continues for ever.

mod common;

use std::collections::HashMap;

use common::{check, holds};
use millrace_model::{
    check::ALL_LOST,
    config::{Config, Faults, Record},
    protocol::Protocol,
    sizes::{crossed, replayed_beside},
    state::State,
};
use stateright::Model as _;

#[test]
fn two_workers_and_every_fault_once() {
    holds("2 workers, 1 shard, 2 records, every fault", Config::new(2, 2).faults(Faults::any(1)));
}

#[test]
fn two_workers_and_every_two_faults_together() {
    let faults = Faults { retarget: 0, start: 0, ..Faults::any(2) };
    holds("2 workers, 1 shard, 2 records, every two faults", Config::new(2, 2).faults(faults));
}

/// Without rewinds of Redis: see "Where the protocol ends" in the crate's documentation.
#[test]
fn sinks_are_started_and_moved_during_faults() {
    let rest = Faults { unknown: 0, repeat: 0, answer_lost: 0, ..Faults::any(2) };
    holds("2 workers, 1 shard, 1 record, sinks", Config::new(2, 1).faults(Faults { redis_rewind: 0, ..rest }));
}

/// Redis is rewound after Postgres or before it; in parts, as nodes of a cluster are.
#[test]
fn both_servers_are_rewound() {
    let faults = Faults { redis_rewind: 1, postgres_rewind: 1, ..Faults::default() };
    let config = Config { parts: true, ..Config::new(1, 2).faults(faults) };
    holds("1 worker, 1 shard, 2 records, both servers", config);
}

fn count(n: u8, clients: Vec<Vec<u8>>, faults: Faults) -> Config {
    Config { count: true, clients, ..Config::new(1, n).faults(faults) }
}

#[test]
fn a_rewound_redis_loses_what_it_is_said_to_lose() {
    let faults = Faults { redis_rewind: 2, unknown: 1, repeat: 1, crash: 1, together: 2, ..Faults::default() };
    holds("1 worker, 1 producer, 2 records, losses", count(2, vec![vec![0, 1]], faults));
}

#[test]
fn two_producers_and_a_rewound_redis() {
    let faults = Faults { redis_rewind: 1, unknown: 1, together: 2, ..Faults::default() };
    holds("1 worker, 2 producers, 2 records, losses", count(2, vec![vec![0], vec![1]], faults));
}

/// A flaw of the protocol: no producer counts the applied record, and the sum of all counts looks whole. See "Where the
/// protocol ends" in the crate's documentation.
#[test]
fn an_applied_record_of_unknown_outcome_can_hide_a_lost_one() {
    let faults = Faults { redis_rewind: 1, unknown: 1, ..Faults::default() };
    let config = Config { strict: true, ..count(2, vec![vec![0], vec![1]], faults) };
    let violated = check("1 worker, 2 producers, 2 records, a hidden loss", config, &[]);
    assert!(violated.iter().any(|(name, _)| *name == ALL_LOST), "{violated:#?}");
}

#[test]
fn losses_of_both_servers() {
    let faults = Faults { redis_rewind: 1, postgres_rewind: 1, ..Faults::default() };
    holds("1 worker, 1 producer, 2 records, losses of both servers", count(2, vec![vec![0, 1]], faults));
}

#[test]
fn a_serve_process_ends_without_its_last_note() {
    let faults = Faults { redis_rewind: 1, end_serve: 1, ..Faults::default() };
    holds("1 worker, 2 producers, 2 records, an end of serve", count(2, vec![vec![0, 1]], faults));
}

#[test]
fn entries_of_two_records() {
    let faults = Faults { crash: 1, expire: 1, answer_lost: 1, redis_rewind: 1, together: 2, ..Faults::default() };
    let config = Config { request: 2, count: true, ..Config::new(2, 2).faults(faults) };
    holds("2 workers, an entry of 2 records", config);
}

#[test]
fn two_workers_and_two_shards() {
    let faults = Faults { crash: 1, expire: 1, ..Faults::default() };
    let of_each =
        Config { records: vec![Record::new(0, 0), Record::new(1, 1)], clients: vec![vec![0, 1]], ..Config::new(2, 2) };
    holds("2 workers, 2 shards, 2 records", Config { shards: 2, ..of_each.faults(faults) });
}

#[test]
fn three_workers() {
    let faults = Faults { start: 0, retarget: 0, ..Faults::any(1) };
    holds("3 workers, 1 shard, 2 records", Config::new(3, 2).faults(faults));
}

#[test]
fn batches_of_two() {
    let faults = Faults { crash: 1, expire: 1, answer_lost: 1, repeat: 1, together: 2, ..Faults::default() };
    holds("2 workers, 1 shard, batches of 2", Config { batch: 2, ..Config::new(2, 2).faults(faults) });
}

/// Else a run could postpone the final state for ever, and the property of final states would miss that.
#[test]
fn no_run_continues_for_ever() {
    let faults = Faults { start: 0, retarget: 0, ..Faults::any(1) };
    let counted = Config { count: true, ..Config::new(1, 1).faults(faults) };
    let group = Config { split: true, ..crossed(1) };
    for config in [Config::new(2, 1).faults(faults), counted, group, replayed_beside()] {
        let protocol = Protocol::new(config);
        // On the current path (false), or done with (true).
        let mut done: HashMap<State, bool> = HashMap::new();
        let first = protocol.init_states().remove(0);
        let mut path: Vec<(State, Vec<State>)> = vec![(first.clone(), protocol.next_states(&first))];
        done.insert(first, false);
        while let Some((state, next)) = path.last_mut() {
            let Some(follower) = next.pop() else {
                done.insert(state.clone(), true);
                path.pop();
                continue;
            };
            match done.get(&follower) {
                None => {
                    done.insert(follower.clone(), false);
                    let behind = protocol.next_states(&follower);
                    path.push((follower, behind));
                }
                Some(false) => panic!("a state comes again: {follower:#?}"),
                Some(true) => {}
            }
        }
        println!("no cycle among {} states", done.len());
    }
}
