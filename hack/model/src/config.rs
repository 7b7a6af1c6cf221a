//! What is checked: how many of everything, which faults how often, which guards are active.

/// A rule that holds the protocol together. Each can be taken out; a test shows what breaks then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Guard {
    /// Every write to Postgres compares the fence.
    FenceOnWrite,
    /// The script that reads compares the fence.
    FenceOnRead,
    /// The script that acknowledges compares the fence.
    FenceOnAck,
    /// An owner below the fence beside the stream raises its epoch above it.
    RaiseEpoch,
    /// A fence is (epoch, token), not the epoch alone.
    Token,
    /// Whoever had to raise the fence beside the stream takes pending entries over again.
    ReclaimAgain,
    /// A commit below its shard's policy version is refused.
    PolicyVersion,
    /// A script appends and moves the cursor only if it stands where the publisher thinks.
    CompareInAppend,
    /// Entries are acknowledged behind the commit, not before it.
    AckAfterCommit,
    /// Pending entries are taken over before new ones are read.
    PendingFirst,
    /// A record id is unique over all shards, by an index, whatever was seen before the write.
    UniqueId,
    /// Before its first commit an owner compares the log with what Redis holds, and continues above it.
    CompareLog,
    /// The highest committed number is kept beside the input stream, and is part of that comparison.
    Mark,
    /// The cursors are part of that comparison.
    CompareCursors,
    /// No publisher publishes above the mark.
    BelowMark,
    /// A commit on another start of Postgres than the one that was compared with is refused.
    CompareAgain,
    /// Publishers lose the rows in their memory when their owner prepares again.
    EmptyPublishers,
    /// A mark that Redis lost is set again once nothing is pending.
    RestoreMark,
    /// An owner finds a Redis that was rewound by its mark, below the one that the owner knows, or by an ack of something
    /// that is not pending; and prepares again.
    NoticeRedisBack,
    /// What a worker holds of the policy is read again with the comparison, not only when its number changed.
    ReadPolicyAgain,
    /// A sink that is moved again continues from the stream it was started on, not from the one it came from before.
    MoveFromStarted,
    /// A cursor of a newer start of a sink is never replaced by that of an older one.
    NewerStart,
    /// Appends are counted as unknown before they are sent.
    CountBeforeSending,
    /// Losses are counted with nothing in flight.
    CountEmptyHanded,
    /// What came back with Redis counts as applied for the most that was lost, until it is known not to be.
    CountUnapplied,
    /// Serve notes its counts again, though they did not change, where Postgres has other ones.
    FlushAgain,
}

/// Every guard.
pub const GUARDS: [Guard; 26] = [
    Guard::FenceOnWrite,
    Guard::FenceOnRead,
    Guard::FenceOnAck,
    Guard::RaiseEpoch,
    Guard::Token,
    Guard::ReclaimAgain,
    Guard::PolicyVersion,
    Guard::CompareInAppend,
    Guard::AckAfterCommit,
    Guard::PendingFirst,
    Guard::UniqueId,
    Guard::CompareLog,
    Guard::Mark,
    Guard::CompareCursors,
    Guard::BelowMark,
    Guard::CompareAgain,
    Guard::EmptyPublishers,
    Guard::RestoreMark,
    Guard::NoticeRedisBack,
    Guard::ReadPolicyAgain,
    Guard::MoveFromStarted,
    Guard::NewerStart,
    Guard::CountBeforeSending,
    Guard::CountEmptyHanded,
    Guard::CountUnapplied,
    Guard::FlushAgain,
];

/// Which guards are active.
#[derive(Debug, Clone, Copy)]
pub struct Guards(u32);

impl Guards {
    /// All of them.
    pub const ALL: Self = Self(u32::MAX);

    /// All of these but one.
    #[must_use]
    pub const fn without(self, guard: Guard) -> Self {
        Self(self.0 & !(1 << guard as u32))
    }

    /// Whether one is active.
    #[must_use]
    pub const fn has(self, guard: Guard) -> bool {
        self.0 & (1 << guard as u32) != 0
    }
}

/// How often each fault may happen, at any moment; and what else comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Faults {
    /// A worker dies and starts again: its memory is gone.
    pub crash: u8,
    /// A lease runs out while its owner continues, or is paused: it learns of it only by what it does next.
    pub expire: u8,
    /// Redis comes back without its last writes.
    pub redis_back: u8,
    /// Postgres comes back in an older state.
    pub postgres_back: u8,
    /// A request's outcome is unknown to its client, which sends again; it took effect or not.
    pub unknown: u8,
    /// A client repeats a request that was answered.
    pub repeat: u8,
    /// A commit, an ack or an append took effect, but its answer was lost.
    pub answer_lost: u8,
    /// A policy is registered.
    pub policy: u8,
    /// The sink is given another stream.
    pub retarget: u8,
    /// Another sink is started.
    pub start: u8,
    /// Most of all these together in one run; 0: no bound.
    pub together: u8,
}

impl Faults {
    /// Each of them once, but no more than so many in one run.
    #[must_use]
    pub const fn any(together: u8) -> Self {
        Self {
            crash: 1,
            expire: 1,
            redis_back: 1,
            postgres_back: 1,
            unknown: 1,
            repeat: 1,
            answer_lost: 1,
            policy: 1,
            retarget: 1,
            start: 1,
            together,
        }
    }
}

/// What a client can send.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Its id; the content is which of the records it is.
    pub id: u8,
    /// The shard of its destination; each has one destination.
    pub shard: u8,
    /// Its value: an alert when above the threshold.
    pub value: u8,
}

/// The size of a model.
#[derive(Debug, Clone)]
pub struct Config {
    /// Workers, alike.
    pub workers: u8,
    /// Shards.
    pub shards: u8,
    /// All records.
    pub records: Vec<Record>,
    /// What each client sends, in this order, each record behind the answer to the one before.
    pub clients: Vec<Vec<u8>>,
    /// Most entries of a batch.
    pub batch: usize,
    /// Whether a transaction is two steps, what it reads and what it writes. Its shard's row is locked in between, so
    /// that only other shards can tell.
    pub split: bool,
    /// Whether losses are counted.
    pub count: bool,
    /// Whether Redis can be rewound in parts: the input streams alone, or the sinks' streams alone, as nodes of a
    /// cluster do.
    pub parts: bool,
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
            records: (0..n).map(|id| Record { id, shard: 0, value: 2 }).collect(),
            clients: vec![(0..n).collect()],
            batch: 1,
            split: false,
            count: false,
            parts: false,
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
