//! What goes wrong. A fault takes no account of anybody.

use std::sync::Arc;

use crate::{
    own::newest,
    protocol::Protocol,
    state::{Notice, Stage, State, Worker},
};

impl Protocol {
    /// A worker starts again: its memory is gone, and its leases run out.
    pub(crate) fn crash(&self, state: &mut State, worker: u8) -> bool {
        let newest = newest(state);
        let moving = self.config.faults.retarget + self.config.faults.start > 0;
        let it = &mut state.workers[usize::from(worker)];
        it.owns.fill(None);
        it.plan = None;
        it.policy = newest;
        if moving {
            it.active.fill(None);
        }
        true
    }

    /// The owner is slow, or paused: it continues as if nothing had happened, now or any time later.
    pub(crate) fn expire(&self, state: &mut State, shard: u8) -> bool {
        let row = &mut state.postgres.shards[usize::from(shard)];
        !std::mem::replace(&mut row.free, true)
    }

    pub(crate) fn sync(&self, state: &mut State) -> bool {
        state.synced = Some(Arc::new(state.redis.clone()));
        state.observer.synced_wounded = state.observer.wounded.contains(&true);
        true
    }

    /// Stream, group, fence and mark of a shard are rewound together, and so do a sink's stream and cursor.
    pub(crate) fn redis_back(&self, state: &mut State, part: u8) -> bool {
        let Some(then) = state.synced.take().map(Arc::unwrap_or_clone) else { return false };
        if part != 2 {
            state.redis.inputs = then.inputs;
        }
        if part != 1 {
            state.redis.outs = then.outs;
        }
        state.observer.rewound.0 += 1;
        let unmended = std::mem::take(&mut state.observer.synced_wounded);
        wound(state, unmended);
        true
    }

    pub(crate) fn backup(&self, state: &mut State) -> bool {
        state.backup = Some(Arc::new(state.postgres.clone()));
        true
    }

    /// Open transactions are gone; whoever had one tries again, with the same batch in flight.
    pub(crate) fn postgres_back(&self, state: &mut State) -> bool {
        let Some(then) = state.backup.take().map(Arc::unwrap_or_clone) else { return false };
        state.postgres = then;
        for own in state.workers.iter_mut().flat_map(|worker| worker.owns.iter_mut().flatten()) {
            if let Stage::Write(hand, next, _) = &own.stage {
                own.stage = Stage::Commit(hand.clone(), *next);
            }
        }
        state.observer.rewound.1 += 1;
        state.observer.synced_wounded = state.synced.is_some();
        wound(state, false);
        true
    }
}

/// One server that is rewound is fixed from what the other holds. Where the other is rewound, too, before an owner
/// could do that, or Redis to what it was before that, nobody may hold what a reader has seen, or somebody may hold
/// what nobody holds: there the protocol's promise about ids ends.
fn wound(state: &mut State, unmended: bool) {
    let remembered = |shard: usize| {
        let cursors = state.redis.outs.iter().filter_map(|out| Some(out.cursor.as_ref()?.at[shard]));
        cursors.chain([state.postgres.shards[shard].top, state.redis.inputs[shard].marks[0]]).max()
    };
    let forgotten = |notice: &Notice| Some(notice.seq) > remembered(usize::from(notice.shard));
    let held = |worker: &Worker| worker.owns.iter().any(Option::is_some);
    let observer = &state.observer;
    let both = observer.rewound.0 > 0 && observer.rewound.1 > 0;
    let unmended = unmended || observer.wounded.contains(&true);
    let blind = both && unmended && (observer.seen.iter().any(forgotten) || state.workers.iter().any(held));
    state.observer.blind |= blind;
    state.observer.wounded.fill(true);
}
