//! The guards: rules that hold the protocol together. Each can be taken out; a test shows what breaks then.

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
    /// A commit that does not follow the recent commits in memory replaces them.
    FollowRecent,
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
    /// A transaction decides whole entries: an entry is acknowledged behind all of its records.
    WholeEntries,
    /// A record that was applied is recognised by itself, not by the first record of its entry: after a rewind of Redis
    /// another entry can have the same id.
    RecognizeEachRecord,
    /// The applied entry that decides is that of the shard's row, read under its lock.
    AppliedUnderLock,
    /// The applied entry never falls, though stream ids do after a rewind of Redis.
    AppliedNeverFalls,
    /// A commit is refused where the applied entry is another than the owner left.
    CompareApplied,
    /// A commit is refused where the numbers are others than the owner left.
    CompareNumbers,
    /// A noted duplicate is recognised by its content, too, and whatever its id names now.
    DuplicateByContent,
    /// The shards of a transaction are decided over one map of ids.
    SharedIds,
    /// A transaction takes the ids that are free in their order.
    LedgerOrder,
    /// Ids of dead letters that it closes come in that order, too, not before the free ones.
    MovesInOrder,
    /// A shard's period never falls, though Postgres's clock does.
    PeriodNeverFalls,
    /// Replay and discard lock the dead letter first, then its row of the ledger.
    DeadLetterFirst,
    /// A discard that has locked a dead letter looks again whether it is open.
    OpenUnderLock,
    /// Replay and discard change a row of the ledger only while it names their dead letter.
    OnlyWhileNamed,
    /// A replay of a closed dead letter changes nothing.
    ReplayOnlyOpen,
    /// A replay closes a dead letter only where its content is that of the dead letter.
    ReplayByContent,
    /// A replay of an open dead letter is no redelivery, whatever came at its place before.
    ReplayIsNew,
    /// A replay whose dead letter Postgres does not hold is decided as a record.
    LastCopy,
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
    /// The build of a declared rollup ends where the numbers of the declaring version begin, not where the log is when it
    /// begins.
    BoundaryBySeq,
    /// The build moves its position in the transaction that adds the rows.
    MoveWithRows,
}

/// Every guard.
pub const GUARDS: [Guard; 54] = [
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
    Guard::FollowRecent,
    Guard::RestoreWatermark,
    Guard::NoticeRedisRewind,
    Guard::ReadPolicyAgain,
    Guard::MoveFromStarted,
    Guard::NewerGeneration,
    Guard::WholeEntries,
    Guard::RecognizeEachRecord,
    Guard::AppliedUnderLock,
    Guard::AppliedNeverFalls,
    Guard::CompareApplied,
    Guard::CompareNumbers,
    Guard::DuplicateByContent,
    Guard::SharedIds,
    Guard::LedgerOrder,
    Guard::MovesInOrder,
    Guard::PeriodNeverFalls,
    Guard::DeadLetterFirst,
    Guard::OpenUnderLock,
    Guard::OnlyWhileNamed,
    Guard::ReplayOnlyOpen,
    Guard::ReplayByContent,
    Guard::ReplayIsNew,
    Guard::LastCopy,
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
    Guard::BoundaryBySeq,
    Guard::MoveWithRows,
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
