//! The plan of a run: faults, their times and victims. It follows from the seed alone, but for the phases that faults aim
//! at: those that none of their kind has hit.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::phases::{Coverage, Phase};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    KillWork,
    KillServe,
    PauseWork,
    PauseServe,
    TermWork,
    TermServe,
    Scale,
    Upgrade,
    /// A process acts at a named point of a record's path.
    Point(&'static str, Act),
    /// Workers act between the creation of a new sink's cursor and the note that the sink is started.
    SinkStart(Act),
    /// A record at which every worker that decides it dies, or panics.
    PoisonedRecord,
    /// Record 500 of a batch of 1,000, several entries, at which every worker that decides it dies.
    PoisonedBatch,
    RedisKill,
    RedisRestart,
    RedisPause,
    RedisSlow,
    RedisFull,
    RedisGroup,
    RedisMalformed,
    RedisCut,
    RedisFlush,
    RedisTrim,
    RedisStream,
    RedisHash,
    RedisIds,
    /// The power of Redis fails, of Postgres, or of both at once; and of a Redis that flushes each second.
    PowerRedis,
    PowerPostgres,
    PowerBoth,
    PowerEverysec,
    /// The last bytes of Redis's log are cut; or half of a command that nobody was answered is behind them.
    RedisTorn,
    RedisHalf,
    /// A bit of an entry that waits in Redis's log is flipped; one of Postgres's log since its last checkpoint.
    RedisBit,
    PostgresBit,
    PostgresKill,
    PostgresTerminate,
    PostgresPause,
    PostgresSlow,
    PostgresLock,
    PostgresFull,
    PostgresSyncStandby,
    PostgresAsyncStandby,
    PostgresRestore,
    /// Postgres's clock is set past the end of the last period that has a partition, and back.
    PostgresClock,
    /// Workers run as a role that may not create tables.
    PostgresRole,
    NetCut,
    NetDelay,
    NetHalfOpen,
    NetCutAnswer,
    /// The answer to COMMIT is cut for a batch that has duplicates only.
    NetCutCommit,
    ClockAhead,
    ClockBehind,
    Duplicates,
    Herd,
    Hot,
    Poison,
    CutUpload,
    /// The same 500 ids are sent to sixteen destinations at once, in opposite orders.
    Collide,
    /// Dead letters are replayed and discarded at once.
    DeadLetters,
    /// An idle pipeline and its servers are restarted three times.
    RestartIdle,
    /// The rollups are removed from the manifest and declared again.
    Rollups,
    /// The endpoint of the webhook is closed; answers too late; cuts connections; answers 500 and redirects; its name does
    /// not resolve.
    WebhookDown,
    WebhookSlow,
    WebhookCut,
    WebhookLie,
    WebhookName,
}

/// The act of a process at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Act {
    /// It is killed.
    Die,
    /// It is suspended for longer than a lease lasts, and continues with its old state.
    Stop,
    /// It is asked to end.
    Term,
}

/// The harm of a kind to acknowledged writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// Nothing may be lost.
    None,
    /// Redis loses some of them by the fault's nature.
    Redis,
    /// Postgres is rewound.
    Postgres,
    /// Nothing may be lost; it takes long, so that few others run with it.
    Long,
}

/// All kinds by their names.
pub(crate) const KINDS: &[(Kind, &str)] = &[
    (Kind::KillWork, "work-kill"),
    (Kind::KillServe, "serve-kill"),
    (Kind::PauseWork, "work-pause"),
    (Kind::PauseServe, "serve-pause"),
    (Kind::TermWork, "work-term"),
    (Kind::TermServe, "serve-term"),
    (Kind::Scale, "scale"),
    (Kind::Upgrade, "upgrade"),
    (Kind::Point("after_read", Act::Die), "point-after-read"),
    (Kind::Point("before_commit", Act::Die), "point-before-commit"),
    (Kind::Point("after_commit", Act::Die), "point-after-commit"),
    (Kind::Point("before_ack", Act::Die), "point-before-ack"),
    (Kind::Point("after_ack", Act::Die), "point-after-ack"),
    (Kind::Point("before_publish", Act::Die), "point-before-publish"),
    (Kind::Point("after_publish", Act::Die), "point-after-publish"),
    (Kind::Point("after_append", Act::Die), "point-after-append"),
    (Kind::Point("after_fold", Act::Die), "point-after-fold"),
    (Kind::SinkStart(Act::Die), "point-before-sink-started"),
    (Kind::Point("before_read", Act::Stop), "stop-before-read"),
    (Kind::Point("after_read", Act::Stop), "stop-after-read"),
    (Kind::Point("before_commit", Act::Stop), "stop-before-commit"),
    (Kind::Point("after_commit", Act::Stop), "stop-after-commit"),
    (Kind::Point("before_ack", Act::Stop), "stop-before-ack"),
    (Kind::Point("after_ack", Act::Stop), "stop-after-ack"),
    (Kind::Point("before_publish", Act::Stop), "stop-before-publish"),
    (Kind::Point("after_publish", Act::Stop), "stop-after-publish"),
    (Kind::Point("after_append", Act::Stop), "stop-after-append"),
    (Kind::Point("after_fold", Act::Stop), "stop-after-fold"),
    (Kind::SinkStart(Act::Stop), "stop-before-sink-started"),
    (Kind::Point("after_read", Act::Term), "term-after-read"),
    (Kind::Point("before_commit", Act::Term), "term-before-commit"),
    (Kind::Point("after_commit", Act::Term), "term-after-commit"),
    (Kind::Point("before_ack", Act::Term), "term-before-ack"),
    (Kind::Point("after_ack", Act::Term), "term-after-ack"),
    (Kind::Point("before_publish", Act::Term), "term-before-publish"),
    (Kind::Point("after_publish", Act::Term), "term-after-publish"),
    (Kind::Point("after_append", Act::Term), "term-after-append"),
    (Kind::Point("after_fold", Act::Term), "term-after-fold"),
    (Kind::SinkStart(Act::Term), "term-before-sink-started"),
    (Kind::PoisonedRecord, "work-poison"),
    (Kind::PoisonedBatch, "work-batch-poison"),
    (Kind::RedisKill, "redis-kill"),
    (Kind::RedisRestart, "redis-restart"),
    (Kind::RedisPause, "redis-pause"),
    (Kind::RedisSlow, "redis-slow"),
    (Kind::RedisFull, "redis-full"),
    (Kind::RedisGroup, "redis-group"),
    (Kind::RedisMalformed, "redis-malformed"),
    (Kind::RedisCut, "redis-cut"),
    (Kind::RedisFlush, "redis-flushall"),
    (Kind::RedisTrim, "redis-trim"),
    (Kind::RedisStream, "redis-stream"),
    (Kind::RedisHash, "redis-hash"),
    (Kind::RedisIds, "redis-ids"),
    (Kind::PowerRedis, "power-redis"),
    (Kind::PowerPostgres, "power-postgres"),
    (Kind::PowerBoth, "power-both"),
    (Kind::PowerEverysec, "power-everysec"),
    (Kind::RedisTorn, "redis-torn"),
    (Kind::RedisHalf, "redis-half"),
    (Kind::RedisBit, "redis-bit"),
    (Kind::PostgresBit, "postgres-bit"),
    (Kind::PostgresKill, "postgres-kill"),
    (Kind::PostgresTerminate, "postgres-terminate"),
    (Kind::PostgresPause, "postgres-pause"),
    (Kind::PostgresSlow, "postgres-slow"),
    (Kind::PostgresLock, "postgres-lock"),
    (Kind::PostgresFull, "postgres-full"),
    (Kind::PostgresSyncStandby, "postgres-sync-standby"),
    (Kind::PostgresAsyncStandby, "postgres-async-standby"),
    (Kind::PostgresRestore, "postgres-restore"),
    (Kind::PostgresClock, "postgres-clock"),
    (Kind::PostgresRole, "postgres-role"),
    (Kind::NetCut, "net-cut"),
    (Kind::NetDelay, "net-delay"),
    (Kind::NetHalfOpen, "net-half-open"),
    (Kind::NetCutAnswer, "net-cut-answer"),
    (Kind::NetCutCommit, "net-cut-commit"),
    (Kind::ClockAhead, "clock-ahead"),
    (Kind::ClockBehind, "clock-behind"),
    (Kind::Duplicates, "client-duplicates"),
    (Kind::Herd, "client-herd"),
    (Kind::Hot, "client-hot"),
    (Kind::Poison, "client-poison"),
    (Kind::CutUpload, "client-cut"),
    (Kind::Collide, "client-collide"),
    (Kind::DeadLetters, "client-dead-letters"),
    (Kind::RestartIdle, "restart-idle"),
    (Kind::Rollups, "rollups-again"),
    (Kind::WebhookDown, "webhook-down"),
    (Kind::WebhookSlow, "webhook-slow"),
    (Kind::WebhookCut, "webhook-cut"),
    (Kind::WebhookLie, "webhook-lie"),
    (Kind::WebhookName, "webhook-name"),
];

impl Kind {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }

    /// Whether a disk loses power.
    pub(crate) fn loses_power(self) -> bool {
        matches!(self, Self::PowerRedis | Self::PowerPostgres | Self::PowerBoth | Self::PowerEverysec)
    }

    /// Whether Redis may lose what it acknowledged at the end of its log, entries of the sinks included.
    pub(crate) fn cuts_redis(self) -> bool {
        matches!(self, Self::RedisCut | Self::RedisFlush | Self::RedisIds | Self::PowerEverysec | Self::RedisTorn)
    }

    /// Whether it lets no connection of a worker break: deliveries then repeat only where a shard changes its owner.
    pub(crate) fn ends_workers_at_most(self) -> bool {
        [
            "work-",
            "serve-",
            "scale",
            "upgrade",
            "point-",
            "stop-",
            "term-",
            "client-",
            "webhook-slow",
            "webhook-cut",
            "webhook-lie",
        ]
        .into_iter()
        .any(|start| self.name().starts_with(start))
    }

    /// Its harm to acknowledged writes.
    pub(crate) fn harm(self) -> Harm {
        match self {
            Self::RedisCut
            | Self::RedisFlush
            | Self::RedisTrim
            | Self::RedisStream
            | Self::RedisIds
            | Self::PowerEverysec
            | Self::RedisTorn => Harm::Redis,
            Self::PostgresAsyncStandby | Self::PostgresRestore | Self::PostgresBit => Harm::Postgres,
            Self::PostgresSyncStandby
            | Self::PostgresClock
            | Self::PostgresRole
            | Self::NetCutCommit
            | Self::PoisonedRecord
            | Self::PoisonedBatch
            | Self::SinkStart(_)
            | Self::Collide
            | Self::DeadLetters
            | Self::RedisBit
            | Self::RestartIdle
            | Self::Rollups
            | Self::WebhookName => Harm::Long,
            _ => Harm::None,
        }
    }
}

/// One fault of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// When, in milliseconds of the round; how long, for kinds that last; and a number that chooses the victim.
    pub(crate) at_ms: u64,
    pub(crate) for_ms: u64,
    pub(crate) pick: u64,
    /// The phase that it waits for, for a while.
    pub(crate) aim: Option<Phase>,
}

/// The kinds that a demanded number of power losses is made of.
const POWER: [Kind; 3] = [Kind::PowerRedis, Kind::PowerPostgres, Kind::PowerBoth];

/// Draws rounds, each kind as often as any other.
#[derive(Debug)]
pub(crate) struct Plan {
    dice: StdRng,
    round_ms: u64,
    free: Deck,
    harmful: Deck,
    round: u64,
}

#[derive(Debug)]
struct Deck {
    kinds: Vec<Kind>,
    left: Vec<Kind>,
}

impl Deck {
    fn draw(&mut self, dice: &mut StdRng) -> Option<Kind> {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            self.left.shuffle(dice);
        }
        self.left.pop()
    }
}

impl Plan {
    /// A plan of these kinds; rounds have load for `round_ms`.
    pub(crate) fn new(seed: u64, kinds: &[Kind], round_ms: u64) -> Self {
        let (free, harmful) = kinds.iter().partition(|kind| kind.harm() == Harm::None);
        let deck = |kinds| Deck { kinds, left: Vec::new() };
        Self { dice: StdRng::seed_from_u64(seed), round_ms, free: deck(free), harmful: deck(harmful), round: 0 }
    }

    /// The faults of the next round: one with harm every third time, some without, and so many power losses.
    pub(crate) fn next_round(&mut self, coverage: &Coverage, power_losses: u64) -> Vec<Fault> {
        let harm = self.free.kinds.is_empty() || self.round % 3 == 2;
        self.round += 1;
        let mut kinds: Vec<Kind> = Vec::new();
        if harm {
            kinds.extend(self.harmful.draw(&mut self.dice));
        }
        let more = if kinds.is_empty() { self.dice.random_range(4..=7) } else { self.dice.random_range(1..=3) };
        for _ in 0..more {
            kinds.extend(self.free.draw(&mut self.dice));
        }
        kinds.extend((0..power_losses).map(|_| POWER[self.dice.random_range(0..POWER.len())]));
        kinds.into_iter().map(|kind| self.fault(kind, coverage)).collect()
    }

    fn fault(&mut self, kind: Kind, coverage: &Coverage) -> Fault {
        let at_ms = self.dice.random_range(500..self.round_ms.max(3_000) - 1_500);
        let (for_ms, pick) = (self.dice.random_range(300..4_000), self.dice.random());
        // Whatever was hit, a seed draws as much.
        let (empty, choice) = (coverage.empty(kind), self.dice.random::<u32>() as usize);
        let aim = (!empty.is_empty()).then(|| empty[choice % empty.len()]);
        Fault { kind, at_ms, for_ms, pick, aim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_plan_and_every_kind_its_share() {
        let kinds: Vec<Kind> = KINDS.iter().map(|(kind, _)| *kind).collect();
        let draw = |seed| {
            let mut plan = Plan::new(seed, &kinds, 10_000);
            (0..390).map(|_| plan.next_round(&Coverage::default(), 0)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let drawn: Vec<Kind> = draw(7).into_iter().flatten().map(|fault| fault.kind).collect();
        for kind in &kinds {
            let times = drawn.iter().filter(|drawn| *drawn == kind).count();
            assert!(times >= 5, "{}: {times}", kind.name());
        }
        let mut plan = Plan::new(7, &kinds[..1], 10_000);
        let losses = plan.next_round(&Coverage::default(), 3).iter().filter(|fault| fault.kind.loses_power()).count();
        assert_eq!(losses, 3, "as many as are wanted");
        assert!(draw(7).iter().all(|round| round.iter().filter(|fault| fault.kind.harm() != Harm::None).count() <= 1));
    }
}
