//! A state of the whole: both servers, the workers, the clients, and what only an observer knows.

use std::sync::Arc;

use crate::config::Faults;
pub use crate::servers::{Cursor, Entry, Fence, Input, Noted, Notice, Out, Postgres, Redis, Row, Shard, SinkRow};

/// What an owner does next with its shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Set the fence beside the stream, read the mark.
    Prepare,
    /// Raise the epoch above this one.
    Raise(u8),
    /// Read the cursors; the mark was this.
    Cursors([u8; 2]),
    /// Compare the log with the mark and the highest cursor.
    Compare([u8; 2], u8),
    /// Take over pending entries above this id.
    Claim(u8),
    /// Read new entries.
    Read,
    /// Decide and commit what is in flight; then continue so.
    Commit(Vec<Entry>, Next),
    /// Write what was decided: the transaction is open, the shard's row locked.
    Write(Vec<Entry>, Next, Vec<Decision>),
    /// Acknowledge what is in flight.
    Ack(Vec<Entry>, Next),
    /// Look at the stream: so many were acknowledged, so many applied.
    Count(u8, u8),
    /// Report a loss: at least so many; at most what was appended less so many.
    Report(u8, u8),
}

/// Where an owner continues behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Next {
    /// With pending entries above this id.
    Claim(u8),
    /// With new entries.
    Read,
}

/// What an entry of a batch is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decision {
    /// To be stored.
    New,
    /// Its id is taken by the same content.
    Duplicate,
    /// Its id is taken by other content.
    Conflict,
    /// Was applied before.
    Redelivered,
}

/// A shard in a worker's hands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Own {
    /// What it shows.
    pub fence: Fence,
    /// The start of Postgres that it compared the log of.
    pub boot: u8,
    /// The shard's highest numbers as it last saw them.
    pub numbers: [u8; 2],
    /// The mark as it last saw it: its publishers publish up to there. None before the first comparison.
    pub marks: Option<[u8; 2]>,
    /// The last entry that it applied was new: what is behind it in the stream is not applied either.
    pub caught_up: bool,
    /// What it does next.
    pub stage: Stage,
    /// Committed rows in memory.
    pub recent: Vec<Row>,
    /// By sink: what its publisher is about to append, and where it found the cursor.
    pub publishers: Vec<Option<(u8, Notice)>>,
}

/// What a worker does about a sink: the row as it read it, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Plan {
    /// Which.
    pub sink: u8,
    /// As it was read.
    pub row: SinkRow,
    /// What comes next.
    pub step: PlanStep,
}

/// A step of a sink's start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlanStep {
    /// End the old cursor.
    Retire,
    /// Note where it stood.
    NoteStarts(Vec<u8>),
    /// Make the new cursor.
    MakeCursor(Vec<u8>),
    /// Note that it was made.
    NoteStarted,
    /// Remove the old cursor.
    RemoveOld,
    /// Note that it was removed.
    NoteMoved,
}

/// A policy as a worker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Policy {
    /// Its version.
    pub version: u8,
    /// Values above it raise an alert.
    pub threshold: u8,
    /// The start of Postgres that it was read from.
    pub boot: u8,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Worker {
    /// The policy it runs.
    pub policy: Policy,
    /// By shard.
    pub owns: Vec<Option<Own>>,
    /// By sink: stream and start that its publishers append to.
    pub active: Vec<Option<(u8, u8)>>,
    /// What it does about a sink.
    pub plan: Option<Plan>,
}

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Client {
    /// How many of its records were answered.
    pub done: u8,
    /// The append whose answer is on its way.
    pub waits: Option<u8>,
}

/// What serve counts of its appends to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Counts {
    /// Answered.
    pub acknowledged: u8,
    /// Sent, but not answered.
    pub unknown: u8,
    /// Both as they were last noted; only where it goes by that.
    pub noted: (u8, u8),
}

/// What nobody in the system knows: kept to check by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Observer {
    /// Appends so far.
    pub appended: u8,
    /// Those that were answered with 202.
    pub acknowledged: u16,
    /// Those that a commit applied, in whatever Postgres.
    pub decided: u16,
    /// Every notification that a reader ever saw.
    pub seen: Vec<Notice>,
    /// How often Redis and Postgres was rewound.
    pub rewound: (u8, u8),
    /// Policies registered, in whatever Postgres.
    pub policies: u8,
    /// Starts of sinks, in whatever Postgres.
    pub starts: u8,
    /// By shard: the most that were ever lost at a time.
    pub worst: Vec<u8>,
    /// What was lost when an owner last looked, appends that are not answered yet included; until it reports.
    pub lost_at_look: u8,
    /// A report's most was less than that.
    pub most_too_low: bool,
    /// What Redis may be rewound to is from before an owner had compared.
    pub synced_wounded: bool,
    /// By shard: a server was rewound, and no owner has compared and set the mark since.
    pub wounded: Vec<bool>,
    /// Both servers were rewound before an owner could compare, and no server holds what was seen, or will be.
    pub blind: bool,
    /// An entry was acknowledged that no commit had applied.
    pub acked_uncommitted: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Postgres.
    pub postgres: Postgres,
    /// Redis.
    pub redis: Redis,
    /// What Postgres may be rewound to.
    pub backup: Option<Arc<Postgres>>,
    /// What Redis may be rewound to.
    pub synced: Option<Arc<Redis>>,
    /// The workers, sorted: which is which has no part in it.
    pub workers: Vec<Worker>,
    /// The clients.
    pub clients: Vec<Client>,
    /// Serve's memory, by shard.
    pub serve: Vec<Counts>,
    /// Faults that may still happen.
    pub left: Faults,
    /// What nobody knows.
    pub observer: Observer,
}
