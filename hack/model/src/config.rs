//! The size of a model: how many of everything, which faults how often, which guards are active.

/// A rule that holds the protocol together. Each can be taken out; a test shows what breaks then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
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
    /// An owner that raised the fence beside the stream reclaims pending entries again.
    ReclaimAgain,
    /// A commit below its shard's policy version is refused.
    PolicyVersion,
    /// A script appends and moves the cursor only if the cursor is where the publisher read it.
    CompareInAppend,
    /// An owner acknowledges entries after the commit, not before it.
    AckAfterCommit,
    /// An owner reclaims pending entries before it reads new ones.
    PendingFirst,
    /// A record id is unique over all shards, by an index, whatever a transaction read before it writes.
    UniqueId,
    /// Before its first commit an owner compares the log with the state of Redis, and continues above it.
    CompareLog,
    /// The watermarks are kept beside the input stream, and are part of that comparison.
    Watermark,
    /// The cursors are part of that comparison.
    CompareCursors,
    /// No publisher publishes above the watermark.
    BelowWatermark,
    /// Postgres refuses a commit on another start of Postgres than the compared one.
    CompareAgain,
    /// Publishers lose the rows in their memory when their owner prepares again.
    EmptyPublishers,
    /// An owner sets watermarks that Redis lost again once nothing is pending.
    RestoreWatermark,
    /// An owner detects a rewound Redis by a watermark below its own, or by an ack of an entry that is not pending; and
    /// prepares again.
    NoticeRedisRewind,
    /// A worker reads its policy again with the comparison, not only when the version changed.
    ReadPolicyAgain,
    /// A sink that moves again continues from the stream on which it was started, not from the one before that.
    MoveFromStarted,
    /// A cursor of a newer generation of a sink is never replaced by that of an older one.
    NewerGeneration,
    /// An owner acknowledges an entry once all of its records are applied.
    AckWholeEntry,
    /// A record that was applied is recognised by itself, not by the first record of its entry.
    RecognizeEachRecord,
    /// Each script of an owner compares the acknowledged offset.
    CompareAcknowledged,
    /// An append raises the counts of a rewound Redis to the one that its producer knows.
    RaiseInAppend,
    /// New records with an offset that was given before count as the next ones.
    CountOldOffsets,
    /// An owner reconciles, and judges the rest of the stream, with nothing in flight.
    BetweenBatches,
    /// An owner judges the rest of the stream only with nothing pending.
    NothingPending,
    /// An owner raises the counts of a rewound Redis to those that Postgres holds.
    RaiseByNotes,
    /// Serve notes an unchanged count again: Postgres may have been rewound.
    NoteAgain,
    /// Records that are applied, and that no producer counts, are added to a sum.
    FoldSurplus,
    /// They are added only when each producer that lives has noted its count since they were seen.
    WaitForNotes,
    /// Such a note counts only if its producer has no answer to an append on its way.
    NoteAfterAnswer,
    /// An owner that prepares again waits for such notes again: Redis may have been rewound twice.
    WaitAgain,
}

/// Every guard.
pub const GUARDS: [Guard; 35] = [
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
    Guard::Watermark,
    Guard::CompareCursors,
    Guard::BelowWatermark,
    Guard::CompareAgain,
    Guard::EmptyPublishers,
    Guard::RestoreWatermark,
    Guard::NoticeRedisRewind,
    Guard::ReadPolicyAgain,
    Guard::MoveFromStarted,
    Guard::NewerGeneration,
    Guard::AckWholeEntry,
    Guard::RecognizeEachRecord,
    Guard::CompareAcknowledged,
    Guard::RaiseInAppend,
    Guard::CountOldOffsets,
    Guard::BetweenBatches,
    Guard::NothingPending,
    Guard::RaiseByNotes,
    Guard::NoteAgain,
    Guard::FoldSurplus,
    Guard::WaitForNotes,
    Guard::NoteAfterAnswer,
    Guard::WaitAgain,
];

/// Which guards are active.
#[derive(Debug, Clone, Copy)]
pub struct Guards(u64);

impl Guards {
    /// All of them.
    pub const ALL: Self = Self(u64::MAX);

    /// All of these but one.
    #[must_use]
    pub const fn without(self, guard: Guard) -> Self {
        Self(self.0 & !(1 << guard as u64))
    }

    /// Whether one is active.
    #[must_use]
    pub const fn has(self, guard: Guard) -> bool {
        self.0 & (1 << guard as u64) != 0
    }
}

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
            together,
        }
    }
}

/// A record that a client can send.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Its id; its content follows from its place in [`Config::records`].
    pub id: u8,
    /// The shard of its destination; each has one destination.
    pub shard: u8,
    /// Its value: an alert when above the threshold.
    pub value: u8,
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
    /// Most records of a transaction.
    pub transaction: usize,
    /// Whether a transaction is two steps, its reads and its writes. It locks its shard's row in between, so that only
    /// other shards can act.
    pub split: bool,
    /// Whether losses are counted, of one shard. Then nothing is published: sinks have no part in it.
    pub count: bool,
    /// Whether the number of lost records is to be exact also where an applied record of unknown outcome hides a lost one.
    pub strict: bool,
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
            request: 1,
            batch: 1,
            transaction: 2,
            split: false,
            count: false,
            strict: false,
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
