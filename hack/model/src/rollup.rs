//! A declared rollup: each record of the log counts once, by the commit that decided it or by the background build.
//!
//! Policy version [`DECLARED`] declares it. A commit counts its records from that version on. The build adds the records
//! below the first one of that version, in steps that any worker can do: it adds rows and moves its position in one
//! transaction, under the lock of the row that holds the position. It does not lock the shard.

use crate::{
    guards::Guard,
    protocol::{Action, Protocol},
    state::{Shard, State},
};

/// The policy version that declares the rollup.
pub const DECLARED: u8 = 2;

/// The rollup of a shard, in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Rollup {
    /// The number of the first record under the declaring version or a later one; 0: the shard runs an older one.
    pub from: u8,
    /// The build covers the records below; 0: not begun.
    pub until: u8,
    /// Records below are built.
    pub next: u8,
    /// The numbers of the records that count, ascending.
    pub counted: Vec<u8>,
}

impl Rollup {
    fn count(&mut self, seq: u8) {
        let at = self.counted.partition_point(|there| *there < seq);
        self.counted.insert(at, seq);
    }

    fn is_complete(&self) -> bool {
        self.until > 0 && self.next >= self.until
    }
}

impl Protocol {
    /// A commit of a policy version counts the records of a shard from `first` on.
    pub(crate) fn count_in_rollup(&self, row: &mut Shard, version: u8, first: u8) {
        if !self.config.rollup || version < DECLARED {
            return;
        }
        if row.version < DECLARED {
            row.rollup.from = first;
        }
        for seq in row.log.iter().map(|row| row.seq).filter(|seq| *seq >= first) {
            row.rollup.count(seq);
        }
    }

    /// The steps of the build.
    pub(crate) fn builds(&self, actions: &mut Vec<Action>) {
        for shard in 0..if self.config.rollup { self.config.shards } else { 0 } {
            actions.push(Action::Build(shard, true));
            if !self.has(Guard::MoveWithRows) {
                actions.push(Action::Build(shard, false));
            }
        }
    }

    /// A step of the build: begin, or add the next record. `moves`: whether the position moves with it.
    pub(crate) fn build(&self, state: &mut State, shard: u8, moves: bool) -> bool {
        let row = &mut state.postgres.shards[usize::from(shard)];
        let rollup = &mut row.rollup;
        if rollup.from == 0 || rollup.is_complete() {
            return false;
        }
        if rollup.until == 0 {
            rollup.until = if self.has(Guard::BoundaryBySeq) { rollup.from } else { row.top + 1 };
            rollup.next = 1;
            return moves;
        }
        let Some(seq) = row.log.iter().map(|row| row.seq).find(|seq| (rollup.next..rollup.until).contains(seq)) else {
            rollup.next = rollup.until;
            return moves;
        };
        if !moves && rollup.counted.contains(&seq) {
            return false;
        }
        rollup.count(seq);
        if moves {
            rollup.next = seq + 1;
        }
        true
    }
}

/// Each record counts at most once; in a complete rollup, exactly once.
pub(crate) fn is_exact(state: &State) -> bool {
    state.postgres.shards.iter().all(|shard| {
        let Rollup { counted, .. } = &shard.rollup;
        let once = counted.is_sorted_by(|a, b| a < b);
        let in_log = counted.iter().all(|seq| shard.log.iter().any(|row| row.seq == *seq));
        once && in_log && (!shard.rollup.is_complete() || counted.len() == shard.log.len())
    })
}

/// Every shard that runs the declaring version has a complete rollup.
pub(crate) fn is_built(state: &State) -> bool {
    state.postgres.shards.iter().all(|shard| shard.rollup.from == 0 || shard.rollup.is_complete())
}
