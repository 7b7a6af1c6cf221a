//! The state of one shard in a replay: both servers, the owners, and which step fits.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::trace::{Answered, Number, Sent, Step, Word};
use crate::{
    guards::Guards,
    state::{Fence, Input, InputRecord, Own},
    steps::Head,
};

/// The numbers of a real run.
pub(super) type N = u128;
/// Why a step does not fit.
pub(super) type Why = String;

/// What faults of a round may do to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Disturbed {
    /// Redis is rewound, loses keys, or is written into by another program.
    pub redis: bool,
    /// Postgres is rewound.
    pub postgres: bool,
}

/// An owner.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) own: Own<N>,
    /// Its process.
    pub(super) process: usize,
    /// Records that were read and are not in the batch.
    pub(super) rest: Vec<InputRecord<N>>,
    /// The claim that returned the batch has found nothing behind it.
    pub(super) claimed_all: bool,
    /// The highest numbers that its publishers may publish.
    pub(super) publishable: [N; 3],
}

/// The state of one shard.
#[derive(Debug, Clone, Default)]
pub(super) struct Shard {
    pub(super) guards: Option<Guards>,
    pub(super) head: Head<N>,
    /// Whether fence and numbers of the row are those of `head`: not behind a rewind, until a step shows them.
    pub(super) is_fence_known: bool,
    pub(super) is_head_known: bool,
    pub(super) input: Input<N>,
    /// As above, of the values beside the stream, and of the stream with its group.
    pub(super) is_beside_known: bool,
    pub(super) is_stream_known: bool,
    pub(super) has_group: bool,
    /// The last id of the stream when it was found at its end in an unknown state.
    pub(super) known_from: N,
    /// Redis was rewound in an earlier round, or may be in this one: offsets may come again.
    pub(super) was_rewound: bool,
    /// By producer: its place in the counts.
    pub(super) producers: BTreeMap<String, usize>,
    /// Producers with an append of unknown outcome: their count may be higher.
    pub(super) uncounted: BTreeSet<String>,
    /// A read of unknown outcome may have delivered entries.
    pub(super) may_be_delivered: bool,
    pub(super) owners: BTreeMap<N, Held>,
    /// By sink and generation.
    pub(super) cursors: BTreeMap<(String, String), N>,
    pub(super) disturbed: Disturbed,
    /// Entries that were read in this round.
    pub(super) read: BTreeSet<Number>,
}

/// Fails with a reason unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}
pub(super) use ensure;

impl Shard {
    /// The shard of a new pipeline.
    pub(super) fn new() -> Self {
        let known = Self { is_fence_known: true, is_head_known: true, is_beside_known: true, ..Self::default() };
        Self { is_stream_known: true, ..known }
    }

    pub(super) fn guards(&self) -> Guards {
        self.guards.unwrap_or(Guards::ALL)
    }

    /// Redis was rewound: its state is unknown.
    pub(super) fn rewind_redis(&mut self) {
        (self.is_beside_known, self.is_stream_known, self.was_rewound) = (false, false, true);
        self.cursors.clear();
    }

    /// Postgres was rewound: its state is unknown.
    pub(super) fn rewind_postgres(&mut self) {
        (self.is_fence_known, self.is_head_known) = (false, false);
    }

    /// Takes a step that has an answer, if it fits.
    pub(super) fn take(&mut self, step: &Step, answer: &Answered) -> Result<(), Why> {
        if let Some((token, epoch)) = step.sent.fence() {
            let there = self.owner(token.0)?.own.fence.epoch;
            ensure!(there == epoch.0, "the epoch of its owner is {there}");
        }
        match &step.sent {
            Sent::Take { token } => self.taken(token.0, step.process, answer),
            Sent::Raise { token, above, .. } => self.raised(token.0, above.0, answer),
            Sent::Release { token, .. } => self.released(token.0),
            Sent::Policy { token, version, .. } => self.policy(token.0, version.0),
            Sent::Account { token, .. } => self.account(token.0, answer),
            Sent::Compare { token, .. } => self.compared(token.0, answer),
            Sent::Skip { token, numbers, .. } => self.skipped(token.0, numbers.map(|number| number.0), answer),
            Sent::Lose { token, appended, .. } => self.lost(token.0, appended.0),
            Sent::Left { token, version, own, .. } => self.left(token.0, version.0, own, answer.result),
            Sent::Commit { .. } => self.committed(&step.sent),
            Sent::Prepare { token, epoch } => self.prepared(token.0, epoch.0, answer),
            Sent::Claim { token, known, start, .. } => self.claimed(token.0, known, start.0, answer),
            Sent::Turn { token, known, acks, reads, .. } => self.turned(token.0, known, acks.as_ref(), *reads, answer),
            Sent::Reconcile { token, known, .. } => self.reconciled(token.0, known, answer),
            Sent::Append { producer, known, counts } => self.appended(producer, known.0, counts, answer),
            Sent::Start { sink, generation, at } => {
                if answer.result == Word::Done {
                    self.cursors.entry((sink.clone(), generation.clone())).or_insert(at.0);
                }
                Ok(())
            }
            Sent::Publish { .. } => self.published(step, answer),
        }
    }

    /// The owner of a token. The replay of a known pipeline has seen each take.
    pub(super) fn owner(&self, token: N) -> Result<&Held, Why> {
        self.owners.get(&token).ok_or_else(|| "no owner has taken the shard with this token".to_owned())
    }

    /// A copy of an owner, for a step of it; a step that fits stores it.
    pub(super) fn owner_of(&mut self, token: N) -> Result<Held, Why> {
        self.owner(token).cloned()
    }

    pub(super) fn new_owner(&mut self, fence: Fence<N>, process: usize) {
        let own = Own::new(fence, 0);
        let held = Held { own, process, rest: Vec::new(), claimed_all: false, publishable: [0; 3] };
        self.owners.insert(fence.token, held);
    }
}
