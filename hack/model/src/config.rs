//! The size of a model: how many of everything, which faults how often, which guards are active.

use crate::guards::{Guard, Guards};

/// How often each fault may happen, at any moment; and what else comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Faults {
    /// A worker dies and starts again: its memory is lost.
    pub crash: u8,
    /// A lease runs out while its owner continues, or is paused: only its next step shows it to the owner.
    pub expire: u8,
    /// Redis loses its last writes.
    pub redis_rewind: u8,
    /// Postgres is restored to an older state.
    pub postgres_rewind: u8,
    /// The outcome of a request is unknown to its client, which sends again; the request took effect or not.
    pub unknown: u8,
    /// A client repeats an answered request.
    pub repeat: u8,
    /// A commit, an ack or an append took effect, but its answer was lost.
    pub answer_lost: u8,
    /// A serve process ends without its last note; another one takes its place.
    pub end_serve: u8,
    /// A policy is registered.
    pub policy: u8,
    /// The first sink is given another stream.
    pub retarget: u8,
    /// Another sink is started.
    pub start: u8,
    /// An administrator replays a dead letter.
    pub replay: u8,
    /// An administrator discards a dead letter.
    pub discard: u8,
    /// Records are accepted from here on that were refused before.
    pub admit: u8,
    /// Postgres's clock moves: first to the next period, then back.
    pub clock: u8,
    /// Most faults of all kinds in one run; 0: no bound.
    pub together: u8,
}

impl Faults {
    /// Each fault of a worker, a server or a client once, but at most `together` in one run.
    #[must_use]
    pub const fn any(together: u8) -> Self {
        Self {
            crash: 1,
            expire: 1,
            redis_rewind: 1,
            postgres_rewind: 1,
            unknown: 1,
            repeat: 1,
            answer_lost: 1,
            end_serve: 0,
            policy: 1,
            retarget: 1,
            start: 1,
            replay: 0,
            discard: 0,
            admit: 0,
            clock: 0,
            together,
        }
    }
}

/// Whether a record is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is not.
    Never,
    /// Until [`Faults::admit`] happens.
    AtFirst,
    /// It is.
    Always,
}

/// A record that a client can send.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Its id, below [`crate::state::LEDGER_IDS`]; its content follows from its place in [`Config::records`].
    pub id: u8,
    /// The shard of its destination; each has one destination.
    pub shard: u8,
    /// Its value: an alert when above the threshold.
    pub value: u8,
    /// Whether it becomes a dead letter.
    pub refused: Refused,
}

impl Record {
    /// A record that is accepted.
    #[must_use]
    pub const fn new(id: u8, shard: u8) -> Self {
        Self { id, shard, value: 2, refused: Refused::Never }
    }
}

/// The size of a model.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many workers; all are alike.
    pub workers: u8,
    /// How many shards.
    pub shards: u8,
    /// All records.
    pub records: Vec<Record>,
    /// The records of each client, in this order; it sends each after the answer to the one before.
    pub clients: Vec<Vec<u8>>,
    /// Most records of a request: an entry has the records of one.
    pub request: usize,
    /// Most entries of a batch.
    pub batch: usize,
    /// Whether a transaction is several steps: it locks the shards' rows, reads and decides; changes the ledger row by
    /// row; commits. Otherwise it is one.
    pub split: bool,
    /// Whether Postgres is rewound without a restart: somebody puts its schema back.
    pub in_place: bool,
    /// Whether losses are counted, of one shard. Then nothing is published: sinks have no part in it.
    pub count: bool,
    /// Whether the number of lost records is to be exact also where an applied record of unknown outcome hides a lost one.
    pub strict: bool,
    /// Whether Redis can be rewound in parts: the input streams alone, or the sinks' streams alone, as nodes of a
    /// cluster do.
    pub parts: bool,
    /// Whether the second policy version declares a rollup.
    pub rollup: bool,
    /// Faults.
    pub faults: Faults,
    /// Guards.
    pub guards: Guards,
}

/// Thresholds of the policies, in the order in which they are registered.
pub const THRESHOLDS: [u8; 4] = [1, 3, 1, 3];

impl Config {
    /// One client that sends `n` records, one after the other, to one shard; no faults; all guards.
    #[must_use]
    pub fn new(workers: u8, n: u8) -> Self {
        Self {
            workers,
            shards: 1,
            records: (0..n).map(|id| Record::new(id, 0)).collect(),
            clients: vec![(0..n).collect()],
            request: 1,
            batch: 1,
            split: false,
            in_place: false,
            count: false,
            strict: false,
            parts: false,
            rollup: false,
            faults: Faults::default(),
            guards: Guards::ALL,
        }
    }

    /// With these faults.
    #[must_use]
    pub fn faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// Without a guard.
    #[must_use]
    pub fn without(self, guard: Guard) -> Self {
        Self { guards: self.guards.without(guard), ..self }
    }
}
