//! The state of the two servers. Postgres is rewound as a whole; Redis as a whole, or in parts.

use crate::{rollup::Rollup, steps::Head};

/// The fence of an owner. Tokens are random: a new one equals no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Fence<N = u8> {
    /// Rises with every owner, as far as the servers hold it.
    pub epoch: N,
    /// Distinguishes two owners of the same epoch.
    pub token: N,
}

/// A record of an entry of an input stream. The records of an entry are neighbours, with one stream id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputRecord<N = u8> {
    /// The stream id of its entry: may come again after a rewind of Redis.
    pub sid: N,
    /// Its index in the entry.
    pub index: u8,
    /// Its offset, from 1: may come again after a rewind of Redis. 0 where losses are not counted.
    pub offset: N,
    /// The number of its append over the whole run. For the observer only; no step may look at it.
    pub uid: u8,
    /// Which record.
    pub record: u8,
    /// The number of the dead letter whose replay it is; 0: it is none.
    pub replay_of: u8,
}

impl InputRecord {
    /// Its place in the stream of its shard.
    #[must_use]
    pub fn place(&self) -> (u8, u8) {
        (self.sid, self.index)
    }
}

/// A committed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// Its number in the shard.
    pub seq: u8,
    /// As it came in the input stream.
    pub input: InputRecord,
    /// The policy version that decided it.
    pub version: u8,
    /// Whether its value was above the threshold.
    pub alert: bool,
    /// Whether it took the total over the threshold.
    pub total_alert: bool,
    /// The total before it.
    pub before: u8,
    /// Its partition.
    pub period: u8,
}

/// A duplicate or a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Noted {
    /// As it came in the input stream.
    pub input: InputRecord,
    /// The id was taken by other content.
    pub conflict: bool,
}

/// The state of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadLetterState {
    /// It holds its id.
    Open,
    /// Its replay was decided.
    Replayed,
    /// It was discarded.
    Discarded,
}

/// A record that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeadLetter {
    /// Its number in the shard.
    pub number: u8,
    /// As it came in the input stream.
    pub input: InputRecord,
    /// Its state.
    pub state: DeadLetterState,
}

/// What an id names in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Holder {
    /// Nothing.
    #[default]
    Free,
    /// The record of a shard with a number.
    Record(u8, u8),
    /// The open dead letter of a shard with a number.
    DeadLetter(u8, u8),
}

/// Number of ids in a ledger.
pub const LEDGER_IDS: usize = 4;

/// A shard in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Shard {
    /// No worker owns it, or the lease ran out.
    pub free: bool,
    /// Of the last owner.
    pub fence: Fence,
    /// The policy version that it runs.
    pub version: u8,
    /// The highest number given.
    pub top: u8,
    /// The highest id of an entry that was ever applied.
    pub applied: u8,
    /// The period of its newest record.
    pub period: u8,
    /// By period: the number of its first record. Empty where the clock stays in one period.
    pub periods: Vec<(u8, u8)>,
    /// The log.
    pub log: Vec<Row>,
    /// Duplicates and conflicts.
    pub noted: Vec<Noted>,
    /// Dead letters.
    pub dead_letters: Vec<DeadLetter>,
    /// The highest number of a dead letter.
    pub last_dead_letter: u8,
    /// Numbers skipped on purpose: above the first, up to the second.
    pub gaps: Vec<(u8, u8)>,
    /// The running total.
    pub total: u8,
    /// All records up to this offset are applied or lost.
    pub accounted: u8,
    /// Number of lost records.
    pub lost: u8,
    /// The producers. Empty where losses are not counted.
    pub producers: Vec<Producer>,
    /// Number of records that no producer counts.
    pub folded: u8,
    /// Records can be lost whose number no server holds.
    pub uncertain: bool,
    /// The declared rollup.
    pub rollup: Rollup,
}

/// A producer of a shard, as Postgres holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Producer {
    /// Number of records that it has appended, as it noted.
    pub appended: u8,
    /// How often Redis had been rewound when it noted last: in place of the times that the owner compares.
    pub rewinds: u8,
    /// Whether it has ended.
    pub closed: bool,
}

impl Shard {
    /// The highest numbers: of records, of duplicates and conflicts, of dead letters.
    #[must_use]
    pub fn numbers(&self) -> [u8; 3] {
        [self.top, self.noted.len() as u8, self.last_dead_letter]
    }

    /// The values that an owner compares.
    #[must_use]
    pub fn head(&self) -> Head {
        let (numbers, Self { fence, accounted, applied, version, .. }) = (self.numbers(), self);
        Head { fence: *fence, numbers, accounted: *accounted, applied: *applied, version: *version }
    }

    /// A dead letter.
    #[must_use]
    pub fn dead_letter(&self, number: u8) -> Option<&DeadLetter> {
        self.dead_letters.iter().find(|dead_letter| dead_letter.number == number)
    }
}

/// A sink's row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkRow {
    /// Which stream.
    pub out: u8,
    /// Its generation: rises.
    pub generation: u8,
    /// Whether its cursor was made.
    pub started: bool,
    /// The stream that it moves away from, and the generation there.
    pub old: Option<(u8, u8)>,
    /// Whether `after` holds: the old cursor is retired, or there was none.
    pub placed: bool,
    /// By shard: the number behind which this generation begins.
    pub after: Vec<u8>,
}

/// Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Postgres {
    /// The shards.
    pub shards: Vec<Shard>,
    /// The id ledger, by id.
    pub ledger: [Holder; LEDGER_IDS],
    /// The threshold of each policy, by version from 1.
    pub policies: Vec<u8>,
    /// The sinks.
    pub sinks: Vec<SinkRow>,
}

/// An input stream, its group, and the values beside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Input<N = u8> {
    /// The last stream id given.
    pub last: N,
    /// The records of the entries that are not trimmed.
    pub entries: Vec<InputRecord<N>>,
    /// The group's last delivered id.
    pub delivered: N,
    /// Delivered and not acknowledged. The consumer has no part in it: an owner reclaims all.
    pub pending: Vec<N>,
    /// The fence.
    pub fence: Fence<N>,
    /// The watermarks: the highest committed numbers that an ack carried.
    pub watermarks: [N; 3],
    /// The offset of the last record that was appended.
    pub appended: N,
    /// The offset up to which records are applied or lost, as the last ack carried it.
    pub acknowledged: N,
    /// By producer: number of records that it appended. Empty where losses are not counted.
    pub by: Vec<N>,
}

/// A notification: `<shard>-<seq>` and its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Notice {
    /// The shard.
    pub shard: u8,
    /// The number.
    pub seq: u8,
    /// The record.
    pub record: u8,
    /// Whether it alerts.
    pub alert: bool,
    /// Whether it alerts of the total.
    pub total_alert: bool,
    /// The summary.
    pub before: u8,
}

/// A sink's cursor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cursor {
    /// Its sink.
    pub sink: u8,
    /// Its generation.
    pub generation: u8,
    /// No publisher moves it any more.
    pub retired: bool,
    /// By shard: the number of the last row that was appended.
    pub at: Vec<u8>,
}

/// An output stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Out {
    /// The cursor beside the stream.
    pub cursor: Option<Cursor>,
    /// The appended notifications, each with its sink.
    pub notices: Vec<(u8, Notice)>,
}

/// Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Redis {
    /// By shard.
    pub inputs: Vec<Input>,
    /// Output streams.
    pub outs: Vec<Out>,
}
