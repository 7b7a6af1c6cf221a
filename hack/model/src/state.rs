//! A state of the whole: both servers, the workers, the clients, and what only an observer knows.

use std::sync::Arc;

use crate::config::Faults;

/// What an owner shows. Tokens are random: a new one equals no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Fence {
    /// Rises with every owner, as far as the servers remember.
    pub epoch: u8,
    /// Tells two owners of the same epoch apart.
    pub token: u8,
}

/// An entry of a records stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// Its stream id: may come again after a Redis that went back.
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
    /// The policy that it stands at.
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
    pub fn settled(&self) -> u8 {
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

/// Postgres: goes back as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Postgres {
    /// The shards.
    pub shards: Vec<Shard>,
    /// The threshold of each policy, by version from 1.
    pub policies: Vec<u8>,
    /// The sinks.
    pub sinks: Vec<SinkRow>,
}

/// A records stream, its group, and what stands beside it.
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
    /// No lane moves it any more.
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
    /// Decide and commit what is in hand; then go on so.
    Commit(Vec<Entry>, Next),
    /// Write what was decided: the transaction is open, the shard's row locked.
    Write(Vec<Entry>, Next, Vec<Decision>),
    /// Acknowledge what is in hand.
    Ack(Vec<Entry>, Next),
    /// Look at the stream: so many were acknowledged, so many settled.
    Count(u8, u8),
    /// Report a loss: at least so many; at most what was appended less so many.
    Report(u8, u8),
}

/// Where an owner goes on behind a batch.
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
    /// Was settled before.
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
    /// The mark as it last saw it: its lanes publish up to there. None before the first comparison.
    pub marks: Option<[u8; 2]>,
    /// The last entry that it settled was new: what is behind it in the stream is not settled either.
    pub caught_up: bool,
    /// What it does next.
    pub stage: Stage,
    /// Committed rows in memory.
    pub feed: Vec<Row>,
    /// By sink: what its lane is about to append, and where it found the cursor.
    pub lanes: Vec<Option<(u8, Notice)>>,
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
    /// The policy it works by.
    pub policy: Policy,
    /// By shard.
    pub owns: Vec<Option<Own>>,
    /// By sink: stream and start that its lanes append to.
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
    /// Those that a commit settled, in whatever Postgres.
    pub decided: u16,
    /// Every notification that a reader ever saw.
    pub seen: Vec<Notice>,
    /// How often Redis and Postgres went back.
    pub went_back: (u8, u8),
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
    /// What Redis may go back to is from before an owner had compared.
    pub synced_wounded: bool,
    /// By shard: a server went back, and no owner has compared and set the mark since.
    pub wounded: Vec<bool>,
    /// Both servers went back before an owner could compare: what a reader has seen, nobody may remember.
    pub blind: bool,
    /// An entry was acknowledged that no commit had settled.
    pub acked_uncommitted: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Postgres.
    pub postgres: Postgres,
    /// Redis.
    pub redis: Redis,
    /// What Postgres may go back to.
    pub backup: Option<Arc<Postgres>>,
    /// What Redis may go back to.
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
