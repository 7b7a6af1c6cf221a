//! A state of the whole: both servers, the workers, the clients, and the observer's notes.

use std::sync::Arc;

use crate::config::Faults;
pub use crate::servers::{
    Cursor, DeadLetter, DeadLetterState, Fence, Holder, Input, InputRecord, LEDGER_IDS, Noted, Notice, Out, Postgres,
    Producer, Redis, Row, Shard, SinkRow,
};

/// The next step of an owner with its shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage<N = u8> {
    /// Set the fence beside the stream, read the watermarks.
    Prepare,
    /// Raise the epoch above this one.
    Raise(N),
    /// Read the cursors; the watermarks were these.
    Cursors([N; 3]),
    /// Compare the log with the watermarks and the highest cursor.
    Compare([N; 3], N),
    /// Reclaim pending entries above this id.
    Claim(N),
    /// Read new entries.
    Read,
    /// Decide and commit the batch in flight, alone or together with those of other shards.
    Commit(Batch<N>),
    /// The batch is in an open transaction, which has locked the shard's row.
    Write(Batch<N>, Vec<Decided>),
    /// Acknowledge the batch in flight.
    Ack(Batch<N>),
    /// The records above the accounted offset, up to this one, are lost: write that.
    Lose(N),
    /// Compare these counts of Postgres with those of Redis.
    Reconcile(Account),
    /// Where the sum of the folded producers is the first number, add the second.
    Fold(u8, u8),
}

/// A batch in flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Batch<N = u8> {
    /// The records of its entries, which are whole.
    pub records: Vec<InputRecord<N>>,
    /// How the owner continues.
    pub next: Next<N>,
}

/// The counts of a shard in Postgres, as an owner read them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account {
    /// All records up to this offset are applied or lost.
    pub accounted: u8,
    /// Number of records that no producer counts.
    pub folded: u8,
    /// The producers.
    pub producers: Vec<Producer>,
    /// Every producer that lives has noted its count since the surplus was seen.
    pub all_noted: bool,
}

/// The stage of an owner after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Next<N = u8> {
    /// With pending entries above this id.
    Claim(N),
    /// With new entries.
    Read,
}

/// The outcome of a record of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decision {
    /// A new record: to be stored.
    New,
    /// Another record holds its id, with the same content.
    Duplicate,
    /// Another record holds its id, with other content.
    Conflict,
    /// It is refused: to be stored as a dead letter.
    DeadLetter,
    /// It was applied before, or is the replay of a closed dead letter: it counts nowhere.
    Redelivered,
}

/// A decided record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Decided {
    /// Its outcome.
    pub decision: Decision,
    /// Whether it closes the dead letter that it is the replay of.
    pub closes: bool,
}

/// A change of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Change {
    /// The id.
    pub id: u8,
    /// What it named: nothing, or a dead letter that is closed.
    pub from: Holder,
    /// What it names now.
    pub to: Holder,
}

/// An open transaction. The decisions are with its shards ([`Stage::Write`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Transaction {
    /// Its shards, ascending.
    pub shards: Vec<u8>,
    /// The changes of the ledger, in the order in which they are written.
    pub changes: Vec<Change>,
    /// How many of them are written: their rows are locked.
    pub written: u8,
}

/// A request to discard a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Discard {
    /// The shard.
    pub shard: u8,
    /// The number of the dead letter, which was open when the request began.
    pub number: u8,
    /// Whether it has locked the dead letter; next is the ledger row.
    pub has_locked: bool,
}

/// A shard that a worker owns, or did when it last looked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Own<N = u8> {
    /// The fence that it presents.
    pub fence: Fence<N>,
    /// The start of Postgres whose log it compared.
    pub boot: N,
    /// The shard's highest numbers as it last read them.
    pub numbers: [N; 3],
    /// The applied entry as it last read or wrote it.
    pub applied: N,
    /// The watermarks as it last read them: its publishers publish up to there. None before the first comparison.
    pub watermarks: Option<[N; 3]>,
    /// The accounted offset as it last read or wrote it.
    pub accounted: N,
    /// The acknowledged offset as it last read or wrote it.
    pub acknowledged: N,
    /// More records are accounted for than appended; these producers have not noted their counts since that was seen.
    pub surplus: Option<u8>,
    /// Its next step.
    pub stage: Stage<N>,
    /// Recent commits: committed rows in memory.
    pub recent: Vec<Row>,
    /// By sink: the notification that its publisher appends next, and the position of the cursor as it read it.
    pub publishers: Vec<Option<(u8, Notice)>>,
}

impl<N: Default> Own<N> {
    /// Of an owner that has only taken the shard, with so many sinks.
    pub(crate) fn new(fence: Fence<N>, sinks: usize) -> Self {
        Self {
            fence,
            boot: N::default(),
            numbers: Default::default(),
            applied: N::default(),
            watermarks: None,
            accounted: N::default(),
            acknowledged: N::default(),
            surplus: None,
            stage: Stage::Prepare,
            recent: Vec::new(),
            publishers: vec![None; sinks],
        }
    }
}

/// The work of a worker on a sink: the row as it read it, and its progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Plan {
    /// Its sink.
    pub sink: u8,
    /// As it was read.
    pub row: SinkRow,
    /// Its next step.
    pub step: PlanStep,
}

/// A step of a sink's start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlanStep {
    /// End the old cursor.
    Retire,
    /// Note the position of the old cursor.
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

/// A policy as a worker holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Policy {
    /// Its version.
    pub version: u8,
    /// Values above it raise an alert, and so does a record that takes the total over it.
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
    /// Its open transactions. Empty where a transaction is one step.
    pub transactions: Vec<Transaction>,
    /// By sink: stream and generation that its publishers append to.
    pub active: Vec<Option<(u8, u8)>>,
    /// Its work on a sink.
    pub plan: Option<Plan>,
}

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Client {
    /// How many of its records were answered.
    pub done: u8,
    /// The appends whose answer is on its way.
    pub waits: u16,
    /// The count of its producer in that answer.
    pub answer: u8,
}

/// A serve process. Each client has its own, which appends to the first shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Serve {
    /// Its name as a producer.
    pub producer: u8,
    /// Number of records that it appended, by the answers that it got.
    pub appended: u8,
    /// The count that it noted last; used only without [`crate::guards::Guard::NoteAgain`].
    pub noted: u8,
}

/// Notes that no process of the system has: kept for the properties.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Observer {
    /// Appends so far.
    pub appended: u8,
    /// Those that were answered with 202.
    pub acknowledged: u16,
    /// Those that a commit applied, in any state of Postgres.
    pub decided: u16,
    /// Every notification that a reader ever saw.
    pub seen: Vec<Notice>,
    /// How often Redis and Postgres were rewound.
    pub rewound: (u8, u8),
    /// Policies registered, in any state of Postgres.
    pub policies: u8,
    /// Generations of sinks, in any state of Postgres.
    pub generations: u8,
    /// Appends that neither server held, in any earlier state or now.
    pub missing: u16,
    /// Those that a commit took for another append's redelivery: the stream id and the content were the same.
    pub mistaken: u16,
    /// The state that Redis may be rewound to is from before an owner had compared.
    pub synced_unreconciled: bool,
    /// By shard: a server was rewound, and no owner has compared and set the watermarks since.
    pub unreconciled: Vec<bool>,
    /// Both servers were rewound before an owner could compare, and possibly no server holds the ids that a reader has
    /// seen.
    pub blind: bool,
    /// An owner acknowledged an entry that no commit had applied.
    pub acked_uncommitted: bool,
    /// A record counted nowhere, and nothing has its content.
    pub dropped: bool,
    /// A transaction took an id twice.
    pub taken_twice: bool,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Postgres.
    pub postgres: Postgres,
    /// Redis.
    pub redis: Redis,
    /// The state that Postgres may be rewound to.
    pub backup: Option<Arc<Postgres>>,
    /// The state that Redis may be rewound to.
    pub synced: Option<Arc<Redis>>,
    /// The workers, sorted: their names have no part in it.
    pub workers: Vec<Worker>,
    /// The clients.
    pub clients: Vec<Client>,
    /// Requests to discard dead letters.
    pub discards: Vec<Discard>,
    /// The period of Postgres's clock.
    pub clock: u8,
    /// Whether records are accepted that were refused before.
    pub admits: bool,
    /// The serve process of each client. Empty where losses are not counted.
    pub serve: Vec<Serve>,
    /// Faults that may still happen.
    pub left: Faults,
    /// The observer's notes.
    pub observer: Observer,
}
