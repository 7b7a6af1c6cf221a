//! Faults. Each happens regardless of the state of others.

use std::sync::Arc;

use crate::{
    own::newest,
    protocol::Protocol,
    state::{Notice, Stage, State, Worker},
};

impl Protocol {
    /// A worker starts again: its memory is lost, and its leases run out.
    pub(crate) fn crash(&self, state: &mut State, worker: u8) -> bool {
        let newest = newest(state);
        let moving = self.config.faults.retarget + self.config.faults.start > 0;
        let it = &mut state.workers[usize::from(worker)];
        it.owns.fill(None);
        it.transactions.clear();
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

    /// From here on Redis may lose writes.
    pub(crate) fn sync(&self, state: &mut State) -> bool {
        state.synced = Some(Arc::new(state.redis.clone()));
        state.observer.synced_unreconciled = state.observer.unreconciled.contains(&true);
        true
    }

    /// Redis is rewound: stream, group, fence and watermarks of a shard together, and a sink's stream and cursor
    /// together. `part`: 0 all of it, 1 the input streams, 2 the sinks' streams.
    pub(crate) fn redis_rewind(&self, state: &mut State, part: u8) -> bool {
        let Some(then) = state.synced.take().map(Arc::unwrap_or_clone) else { return false };
        if part != 2 {
            state.redis.inputs = then.inputs;
        }
        if part != 1 {
            state.redis.outs = then.outs;
        }
        state.observer.rewound.0 += 1;
        let unreconciled = std::mem::take(&mut state.observer.synced_unreconciled);
        note_rewind(state, unreconciled);
        true
    }

    /// Postgres may be rewound to this state.
    pub(crate) fn backup(&self, state: &mut State) -> bool {
        state.backup = Some(Arc::new(state.postgres.clone()));
        true
    }

    /// Open transactions are lost; their owners try again, with the same batch in flight.
    pub(crate) fn postgres_rewind(&self, state: &mut State) -> bool {
        let Some(then) = state.backup.take().map(Arc::unwrap_or_clone) else { return false };
        state.postgres = then;
        state.discards.clear();
        for worker in &mut state.workers {
            worker.transactions.clear();
        }
        for own in state.workers.iter_mut().flat_map(|worker| worker.owns.iter_mut().flatten()) {
            if let Stage::Write(batch, _) = &own.stage {
                own.stage = Stage::Commit(batch.clone());
            }
            // The times of the notes are lost with them.
            own.surplus = own.surplus.map(|_| u8::MAX);
        }
        state.observer.rewound.1 += 1;
        state.observer.synced_unreconciled = state.synced.is_some();
        note_rewind(state, false);
        true
    }
}

/// Notes that no owner has compared since a rewind, and whether the protocol's promise about ids ends here.
///
/// An owner restores one rewound server from the other. Where the other is rewound, too, before an owner could do that,
/// or Redis to a state from before that, possibly no server holds the numbers that a reader has seen, or an owner holds
/// numbers that no server holds: the promise ends.
fn note_rewind(state: &mut State, unreconciled: bool) {
    let highest = |shard: usize| {
        let cursors = state.redis.outs.iter().filter_map(|out| Some(out.cursor.as_ref()?.at[shard]));
        cursors.chain([state.postgres.shards[shard].top, state.redis.inputs[shard].watermarks[0]]).max()
    };
    let lost = |notice: &Notice| Some(notice.seq) > highest(usize::from(notice.shard));
    let held = |worker: &Worker| worker.owns.iter().any(Option::is_some);
    let observer = &state.observer;
    let both = observer.rewound.0 > 0 && observer.rewound.1 > 0;
    let unreconciled = unreconciled || observer.unreconciled.contains(&true);
    let blind = both && unreconciled && (observer.seen.iter().any(lost) || state.workers.iter().any(held));
    state.observer.blind |= blind;
    state.observer.unreconciled.fill(true);
}
