//! Configurations that several tests share.

use crate::config::{Config, Faults, Record, Refused};

/// Another record with the same id for each of two shards.
#[must_use]
pub fn twins(workers: u8) -> Config {
    let records = vec![Record::new(0, 0), Record::new(0, 1)];
    Config { shards: 2, records, clients: vec![vec![0], vec![1]], ..Config::new(workers, 2) }
}

/// An entry of two records for each of two shards, with the same two ids in another order.
#[must_use]
pub fn crossed(workers: u8) -> Config {
    let records = [(0, 0), (1, 0), (1, 1), (0, 1)].map(|(id, shard)| Record::new(id, shard)).to_vec();
    Config { shards: 2, records, clients: vec![vec![0, 1], vec![2, 3]], request: 2, ..Config::new(workers, 4) }
}

/// Two clients send an entry of two records each, with the same first one.
#[must_use]
pub fn same_first() -> Config {
    Config { request: 2, clients: vec![vec![0, 1], vec![0, 2]], ..Config::new(1, 3) }
}

/// One client sends these records, one after the other, each with an id of its own.
#[must_use]
pub fn refused(refused: &[Refused]) -> Config {
    let records = (0..).zip(refused).map(|(id, refused)| Record { refused: *refused, ..Record::new(id, 0) }).collect();
    Config { records, ..Config::new(1, refused.len() as u8) }
}

/// A record that is refused comes twice, then another one with its id.
#[must_use]
pub fn freed(refused: Refused) -> Config {
    let records = vec![Record { refused, ..Record::new(0, 0) }, Record::new(0, 0)];
    Config { records, clients: vec![vec![0], vec![0], vec![1]], ..Config::new(1, 2) }
}

/// The replay of a dead letter comes with another record into one batch, while another shard takes both ids.
#[must_use]
pub fn replayed_beside() -> Config {
    let first = Record { refused: Refused::AtFirst, ..Record::new(1, 0) };
    let records = vec![first, Record::new(0, 0), Record::new(0, 1), Record::new(1, 1)];
    let clients = vec![vec![0], vec![1], vec![2, 3]];
    let faults = Faults { replay: 1, admit: 1, ..Faults::default() };
    Config { shards: 2, records, clients, request: 2, batch: 2, split: true, ..Config::new(1, 4) }.faults(faults)
}
