//! How an owner counts losses: between two batches, in three steps whose order matters.
//!
//! First acknowledged and applied entries, then present ones, then all appends up to then: so an entry that moves in
//! between is neither missing in the lower bound nor counted twice in the upper one.

use crate::{
    check::lost,
    config::Guard,
    protocol::Protocol,
    state::{Own, Stage, State},
};

impl Protocol {
    /// Begins to count, where there is something to report.
    pub(crate) fn count(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let shard = usize::from(shard);
        let row = &state.postgres.shards[shard];
        let (acknowledged, applied) = (row.appends.0, row.applied());
        let present = state.redis.inputs[shard].entries.len() as u8;
        let least = acknowledged.saturating_sub(applied + present);
        let Some(own) = &state.workers[usize::from(worker)].owns[shard] else { return false };
        let most = self.most(state, shard, applied + self.surely_unapplied(own, present));
        let report = (row.lost.0.max(least), most);
        if row.lost == report {
            return false;
        }
        if !self.has(Guard::CountBetweenBatches) {
            // Without regard to the owner's entries in flight.
            state.postgres.shards[shard].lost = report;
            return true;
        }
        let stage = Stage::Count(acknowledged, applied);
        state.workers[usize::from(worker)].owns[shard] = Some(Own { stage, ..own.clone() });
        true
    }

    /// Whether the upper bound holds if an owner counts now, at once.
    pub(crate) fn most_holds(&self, state: &State) -> bool {
        let boot = state.observer.rewound.1;
        state.workers.iter().filter_map(|worker| worker.owns[0].as_ref()).all(|own| {
            let (row, input) = (&state.postgres.shards[0], &state.redis.inputs[0]);
            let counts = self.config.count && own.stage == Stage::Read && own.boot == boot;
            if !counts || row.fence != own.fence || input.fence != own.fence || self.rewound(input, own) {
                return true;
            }
            let accounted = row.applied() + self.surely_unapplied(own, input.entries.len() as u8);
            lost(state, true) <= self.most(state, 0, accounted)
        })
    }

    /// Entries in the stream that surely no commit has applied: after a rewind of Redis the first ones may be applied
    /// ones.
    fn surely_unapplied(&self, own: &Own, present: u8) -> u8 {
        if own.caught_up || !self.has(Guard::CountUnapplied) { present } else { 0 }
    }

    /// The upper bound, by the counts that serve notes after the look: all appends up to then.
    fn most(&self, state: &State, shard: usize, accounted: u8) -> u8 {
        let (acknowledged, unknown) = self.noted_next(state, shard);
        (acknowledged + unknown).saturating_sub(accounted)
    }

    /// Counts the present entries: one script.
    pub(crate) fn look(
        &self,
        state: &mut State,
        shard: usize,
        own: &mut Own,
        acknowledged: u8,
        applied: u8,
    ) -> Option<bool> {
        let input = &state.redis.inputs[shard];
        if !self.same(input.fence, own.fence) || self.rewound(input, own) {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let present = input.entries.len() as u8;
        let accounted = applied + self.surely_unapplied(own, present);
        own.stage = Stage::Report(acknowledged.saturating_sub(applied + present), accounted);
        state.observer.lost_at_look = lost(state, true);
        Some(true)
    }

    /// Writes the report, under the fence, once every serve process has noted its counts after the look.
    pub(crate) fn report(
        &self,
        state: &mut State,
        shard: usize,
        own: &mut Own,
        least: u8,
        accounted: u8,
    ) -> Option<bool> {
        if !self.is_owner(state, shard, own.fence) {
            return None;
        }
        if own.boot != state.observer.rewound.1 {
            own.stage = Stage::Prepare;
            return Some(true);
        }
        let most = self.most(state, shard, accounted);
        let row = &mut state.postgres.shards[shard];
        row.lost = (row.lost.0.max(least), most);
        state.observer.most_too_low |= std::mem::take(&mut state.observer.lost_at_look) > most;
        own.stage = Stage::Read;
        Some(true)
    }
}
