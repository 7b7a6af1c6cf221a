//! Starting a sink and moving it to another stream: every step is written to Postgres first and can be done again, by
//! any worker, also by one that was paused since it read the row.

use crate::{
    config::{Guard, THRESHOLDS},
    own::newest,
    protocol::Protocol,
    state::{Cursor, Plan, PlanStep, SinkRow, State},
};

/// Streams: of the first sink, of the first sink once moved, of the second sink.
const OUTS: [u8; 3] = [0, 1, 2];

impl Protocol {
    /// A policy is registered, with another threshold than the one before.
    pub(crate) fn register(&self, state: &mut State) -> bool {
        state.observer.policies += 1;
        state.postgres.policies.push(THRESHOLDS[usize::from(state.observer.policies)]);
        true
    }

    /// Without [`Guard::ReadPolicyAgain`] the number alone tells whether there is another one.
    pub(crate) fn follow(&self, state: &mut State, worker: u8) -> bool {
        let newest = newest(state);
        let policy = &mut state.workers[usize::from(worker)].policy;
        let other = policy.version != newest.version || (self.has(Guard::ReadPolicyAgain) && *policy != newest);
        if other {
            *policy = newest;
        }
        other
    }

    pub(crate) fn retarget(&self, state: &mut State) -> bool {
        state.observer.starts += 1;
        let start = state.observer.starts;
        let row = &mut state.postgres.sinks[0];
        // One that was not started continues from where it came, if it came from anywhere.
        let here = Some((row.out, row.start));
        let old =
            if self.has(Guard::MoveFromStarted) { if row.started { here } else { row.old } } else { row.old.or(here) };
        let out = if row.out == OUTS[0] { OUTS[1] } else { OUTS[0] };
        // No publisher has moved a start that was never started: where it begins still holds.
        let placed = row.placed && !row.started;
        *row = SinkRow { out, start, started: false, old, placed, after: row.after.clone() };
        true
    }

    pub(crate) fn start(&self, state: &mut State) -> bool {
        if state.postgres.sinks.len() > 1 {
            return false;
        }
        state.observer.starts += 1;
        let start = state.observer.starts;
        let after = state.postgres.shards.iter().map(|shard| shard.top).collect();
        state.postgres.sinks.push(SinkRow { out: OUTS[2], start, started: false, old: None, placed: true, after });
        true
    }

    /// One look at the sinks' rows, or one step of what was found to be done.
    pub(crate) fn keep(&self, state: &mut State, worker: u8) -> bool {
        let worker = usize::from(worker);
        match state.workers[worker].plan.take() {
            Some(plan) => {
                let next = self.carry_on(state, &plan);
                state.workers[worker].plan = next.map(|step| Plan { step, ..plan });
            }
            None => {
                let count = state.postgres.sinks.len();
                state.workers[worker].active.resize(count, None);
                for own in state.workers[worker].owns.iter_mut().flatten() {
                    own.publishers.resize(count, None);
                }
                for (sink, row) in (0..).zip(state.postgres.sinks.clone()) {
                    let target = (row.started && row.old.is_none()).then_some((row.out, row.start));
                    self.activate(state, worker, sink, target);
                    let step = match (row.started, &row.old) {
                        (true, None) => continue,
                        (true, Some(_)) => PlanStep::RemoveOld,
                        (false, _) if row.placed => PlanStep::MakeCursor(row.after.clone()),
                        (false, Some((out, start))) if self.is_retired_or_there(state, *out, *start) => {
                            PlanStep::Retire
                        }
                        // The old cursor is gone: halted, until someone says where to continue.
                        (false, _) => continue,
                    };
                    state.workers[worker].plan = Some(Plan { sink, row, step });
                    break;
                }
            }
        }
        true
    }

    fn is_retired_or_there(&self, state: &State, out: u8, start: u8) -> bool {
        state.redis.outs[usize::from(out)].cursor.as_ref().is_some_and(|cursor| cursor.start == start)
    }

    /// The publishers of another start, or of another stream, are ended.
    fn activate(&self, state: &mut State, worker: usize, sink: u8, target: Option<(u8, u8)>) {
        let it = &mut state.workers[worker];
        let sink = usize::from(sink);
        if it.active[sink] != target {
            it.active[sink] = target;
            it.owns.iter_mut().flatten().for_each(|own| own.publishers[sink] = None);
        }
    }

    /// Answers the next step; none when all is done, or has to be looked at again.
    fn carry_on(&self, state: &mut State, plan: &Plan) -> Option<PlanStep> {
        let Plan { sink, row, step } = plan;
        let now = state.postgres.sinks.get_mut(usize::from(*sink)).filter(|now| now.start == row.start);
        match step {
            PlanStep::Retire => {
                let (out, start) = row.old?;
                let cursor =
                    state.redis.outs[usize::from(out)].cursor.as_mut().filter(|cursor| cursor.start == start)?;
                cursor.retired = true;
                Some(PlanStep::NoteStarts(cursor.at.clone()))
            }
            PlanStep::NoteStarts(at) => {
                // Where the row has moved on, so has the plan: to make a cursor now could replace one that is still
                // needed.
                let now = now?;
                if !now.started {
                    now.after.clone_from(at);
                    now.placed = true;
                }
                Some(PlanStep::MakeCursor(now.after.clone()))
            }
            PlanStep::MakeCursor(after) => {
                let cursor = &mut state.redis.outs[usize::from(row.out)].cursor;
                if cursor.as_ref().is_some_and(|there| self.has(Guard::NewerStart) && there.start > row.start) {
                    return None;
                }
                if cursor.as_ref().is_none_or(|there| there.start != row.start) {
                    *cursor = Some(Cursor { sink: *sink, start: row.start, retired: false, at: after.clone() });
                }
                Some(PlanStep::NoteStarted)
            }
            PlanStep::NoteStarted => {
                now?.started = true;
                Some(PlanStep::RemoveOld)
            }
            PlanStep::RemoveOld => {
                let (out, start) = row.old?;
                let cursor = &mut state.redis.outs[usize::from(out)].cursor;
                if cursor.as_ref().is_some_and(|there| there.start == start) {
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
