//! Starting a sink and moving it to another stream: a worker writes every step to Postgres first, and any worker can
//! repeat it, also one that was paused since it read the row.

use crate::{
    config::THRESHOLDS,
    guards::Guard,
    own::newest,
    protocol::Protocol,
    state::{Cursor, Plan, PlanStep, SinkRow, State},
};

/// Output streams: of the first sink, of the first sink once moved, of the second sink.
const OUTS: [u8; 3] = [0, 1, 2];

impl Protocol {
    /// A policy is registered, with another threshold than the one before.
    pub(crate) fn register(&self, state: &mut State) -> bool {
        state.observer.policies += 1;
        state.postgres.policies.push(THRESHOLDS[usize::from(state.observer.policies)]);
        true
    }

    /// A worker reads the newest policy. Without [`Guard::ReadPolicyAgain`] only another version counts as another
    /// policy.
    pub(crate) fn follow(&self, state: &mut State, worker: u8) -> bool {
        let newest = newest(state);
        let policy = &mut state.workers[usize::from(worker)].policy;
        let other = policy.version != newest.version || (self.has(Guard::ReadPolicyAgain) && *policy != newest);
        if other {
            *policy = newest;
        }
        other
    }

    /// The first sink is given another stream.
    pub(crate) fn retarget(&self, state: &mut State) -> bool {
        state.observer.generations += 1;
        let generation = state.observer.generations;
        let row = &mut state.postgres.sinks[0];
        // One that was not started continues from the stream that it came from, if any.
        let here = Some((row.out, row.generation));
        let old =
            if self.has(Guard::MoveFromStarted) { if row.started { here } else { row.old } } else { row.old.or(here) };
        let out = if row.out == OUTS[0] { OUTS[1] } else { OUTS[0] };
        // No publisher has moved the cursor of a generation that was never started: its beginning still holds.
        let placed = row.placed && !row.started;
        *row = SinkRow { out, generation, started: false, old, placed, after: row.after.clone() };
        true
    }

    /// Another sink is started, from the current end of the log.
    pub(crate) fn start(&self, state: &mut State) -> bool {
        if state.postgres.sinks.len() > 1 {
            return false;
        }
        state.observer.generations += 1;
        let generation = state.observer.generations;
        let after = state.postgres.shards.iter().map(|shard| shard.top).collect();
        state.postgres.sinks.push(SinkRow { out: OUTS[2], generation, started: false, old: None, placed: true, after });
        true
    }

    /// One look at the sinks' rows, or one step of the plan that the look made.
    pub(crate) fn reconcile_sinks(&self, state: &mut State, worker: u8) -> bool {
        let worker = usize::from(worker);
        match state.workers[worker].plan.take() {
            Some(plan) => {
                let next = self.do_step(state, &plan);
                state.workers[worker].plan = next.map(|step| Plan { step, ..plan });
            }
            None => {
                let count = state.postgres.sinks.len();
                state.workers[worker].active.resize(count, None);
                for own in state.workers[worker].owns.iter_mut().flatten() {
                    own.publishers.resize(count, None);
                }
                for (sink, row) in (0..).zip(state.postgres.sinks.clone()) {
                    let target = (row.started && row.old.is_none()).then_some((row.out, row.generation));
                    self.activate(state, worker, sink, target);
                    let step = match (row.started, &row.old) {
                        (true, None) => continue,
                        (true, Some(_)) => PlanStep::RemoveOld,
                        (false, _) if row.placed => PlanStep::MakeCursor(row.after.clone()),
                        (false, Some((out, generation))) if self.has_cursor(state, *out, *generation) => {
                            PlanStep::Retire
                        }
                        // The old cursor is missing: halted, until an administrator names the place to continue.
                        (false, _) => continue,
                    };
                    state.workers[worker].plan = Some(Plan { sink, row, step });
                    break;
                }
            }
        }
        true
    }

    /// Whether the old cursor exists, retired or not.
    fn has_cursor(&self, state: &State, out: u8, generation: u8) -> bool {
        state.redis.outs[usize::from(out)].cursor.as_ref().is_some_and(|cursor| cursor.generation == generation)
    }

    /// Ends the publishers of another generation, or of another stream.
    fn activate(&self, state: &mut State, worker: usize, sink: u8, target: Option<(u8, u8)>) {
        let it = &mut state.workers[worker];
        let sink = usize::from(sink);
        if it.active[sink] != target {
            it.active[sink] = target;
            it.owns.iter_mut().flatten().for_each(|own| own.publishers[sink] = None);
        }
    }

    /// Does a step of the plan, and returns the next one; `None`: all is done, or the rows have to be read again.
    fn do_step(&self, state: &mut State, plan: &Plan) -> Option<PlanStep> {
        let Plan { sink, row, step } = plan;
        let now = state.postgres.sinks.get_mut(usize::from(*sink)).filter(|now| now.generation == row.generation);
        match step {
            PlanStep::Retire => {
                let (out, generation) = row.old?;
                let cursor = state.redis.outs[usize::from(out)]
                    .cursor
                    .as_mut()
                    .filter(|cursor| cursor.generation == generation)?;
                cursor.retired = true;
                Some(PlanStep::NoteStarts(cursor.at.clone()))
            }
            PlanStep::NoteStarts(at) => {
                // Where the row has changed, the plan ends: a cursor made now could replace one that is still needed.
                let now = now?;
                if !now.started {
                    now.after.clone_from(at);
                    now.placed = true;
                }
                Some(PlanStep::MakeCursor(now.after.clone()))
            }
            PlanStep::MakeCursor(after) => {
                let cursor = &mut state.redis.outs[usize::from(row.out)].cursor;
                if cursor
                    .as_ref()
                    .is_some_and(|there| self.has(Guard::NewerGeneration) && there.generation > row.generation)
                {
                    return None;
                }
                if cursor.as_ref().is_none_or(|there| there.generation != row.generation) {
                    *cursor =
                        Some(Cursor { sink: *sink, generation: row.generation, retired: false, at: after.clone() });
                }
                Some(PlanStep::NoteStarted)
            }
            PlanStep::NoteStarted => {
                now?.started = true;
                Some(PlanStep::RemoveOld)
            }
            PlanStep::RemoveOld => {
                let (out, generation) = row.old?;
                let cursor = &mut state.redis.outs[usize::from(out)].cursor;
                if cursor.as_ref().is_some_and(|there| there.generation == generation) {
                    *cursor = None;
                }
                Some(PlanStep::NoteMoved)
            }
            PlanStep::NoteMoved => {
                now?.old = None;
                None
            }
        }
    }
}
