//! What stands in the two servers. Postgres is rewound as a whole; Redis as a whole, or in parts.

/// What an owner shows. Tokens are random: a new one equals no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Fence {
    /// Rises with every owner, as far as the servers hold it.
    pub epoch: u8,
    /// Tells two owners of the same epoch apart.
    pub token: u8,
}

/// An entry of an input stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// Its stream id: may come again after a Redis that was rewound.
    pub sid: u8,
    /// Which append it was, of all times. Known to the observer only; no step may look at it.
    pub uid: u8,
    /// Which record.
    pub record: u8,
}

/// A committed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// Its number in the shard.
    pub seq: u8,
    /// The entry it came in.
    pub entry: Entry,
    /// By which policy.
    pub version: u8,
    /// Whether its value was above the threshold.
    pub alert: bool,
    /// Total before it.
    pub before: u8,
}

/// A duplicate or a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Noted {
    /// The entry it came in.
    pub entry: Entry,
    /// The id was taken by other content.
    pub conflict: bool,
}

/// A shard in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Shard {
    /// Nobody owns it, or the lease ran out.
    pub free: bool,
    /// Of the last owner.
    pub fence: Fence,
    /// The policy that it is at.
    pub version: u8,
    /// The highest number given.
    pub top: u8,
    /// The log.
    pub log: Vec<Row>,
    /// Duplicates and conflicts.
    pub noted: Vec<Noted>,
    /// Numbers skipped on purpose: above the first, up to the second.
    pub gaps: Vec<(u8, u8)>,
    /// The running total.
    pub total: u8,
    /// What serve noted: acknowledged and unknown appends.
    pub appends: (u8, u8),
    /// Reported: at least and at most so many acknowledged appends were lost.
    pub lost: (u8, u8),
}

impl Shard {
    /// How many entries have an outcome.
    #[must_use]
    pub fn applied(&self) -> u8 {
        (self.log.len() + self.noted.len()) as u8
    }

    /// The highest numbers: of records, and of what is only noted.
    #[must_use]
    pub fn numbers(&self) -> [u8; 2] {
        [self.top, self.noted.len() as u8]
    }
}

/// A sink's row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkRow {
    /// Which stream.
    pub out: u8,
    /// Which start of it: rises.
    pub start: u8,
    /// Whether its cursor was made.
    pub started: bool,
    /// The stream, and the start there, that it moves away from.
    pub old: Option<(u8, u8)>,
    /// Where each shard's part of this start begins is known: the old cursor is retired, or there was none.
    pub placed: bool,
    /// Where each shard's part begins.
    pub after: Vec<u8>,
}

/// Postgres: is rewound as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Postgres {
    /// The shards.
    pub shards: Vec<Shard>,
    /// The threshold of each policy, by version from 1.
    pub policies: Vec<u8>,
    /// The sinks.
    pub sinks: Vec<SinkRow>,
}

/// An input stream, its group, and what is beside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Input {
    /// The last stream id given.
    pub last: u8,
    /// The entries that are not trimmed.
    pub entries: Vec<Entry>,
    /// The group's last delivered id.
    pub delivered: u8,
    /// Delivered, not acknowledged. To whom has no part in it: all are taken over.
    pub pending: Vec<u8>,
    /// The fence.
    pub fence: Fence,
    /// The mark: the highest committed numbers that an ack came with.
    pub marks: [u8; 2],
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
    /// The summary.
    pub before: u8,
}

/// A sink's cursor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cursor {
    /// Whose.
    pub sink: u8,
    /// Of which start.
    pub start: u8,
    /// No publisher moves it any more.
    pub retired: bool,
    /// Where each shard stands.
    pub at: Vec<u8>,
}

/// An output stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Out {
    /// Beside the stream.
    pub cursor: Option<Cursor>,
    /// What was appended, by which sink.
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
