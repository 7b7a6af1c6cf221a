//! The order of a shard's steps over both servers: one that every step fits in, if there is one.
//!
//! Steps of one process come in the order of its lines, as far as one was answered before the other was sent. Across
//! processes only the values decide. Must never take a step without an answer where the next one with an answer fits.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Judged, Rejected,
    shard::{Disturbed, Shard, Why},
    trace::{Answered, Number, Sent, Step, Word},
};

/// Most steps without an answer that are taken together.
const TOGETHER: usize = 3;

/// The steps of a shard that are not taken yet, and its state.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) state: Shard,
    /// By process, in the order of its lines: places among the steps.
    pub(super) open: BTreeMap<usize, Vec<usize>>,
    /// Commits without an answer that took effect.
    pub(super) late_commits: Vec<usize>,
    /// What the faults of this round may have done; what a step of it has shown; and what one of the round before may
    /// have done that no step has shown yet.
    allowed: Disturbed,
    shown: Disturbed,
    late: Disturbed,
}

/// What comes next.
enum Next {
    /// This step was taken, behind so many without an answer, which are these.
    Taken(usize, Vec<usize>),
    /// No step with an answer is left.
    Nothing,
    /// None fits; this one of the lowest epoch should, but for this reason.
    Stuck(usize, Why),
}

impl Search {
    pub(super) fn new() -> Self {
        let none = Disturbed::default();
        let (open, late_commits) = (BTreeMap::new(), Vec::new());
        Self { state: Shard::new(), open, late_commits, allowed: none, shown: none, late: none }
    }

    /// Takes all steps that have an answer.
    pub(super) fn run(&mut self, steps: &mut [Step], disturbed: Disturbed) -> Result<Judged, Rejected> {
        self.allowed = disturbed;
        let Disturbed { redis, postgres } = self.late;
        self.state.disturbed = Disturbed { redis: disturbed.redis || redis, postgres: disturbed.postgres || postgres };
        self.find_read(steps);
        self.find_unanswered_appends(steps);
        let mut judged = Judged::default();
        loop {
            match self.next(steps) {
                Next::Taken(at, unanswered) => {
                    judged.steps += 1;
                    judged.unanswered += unanswered.len() as u64;
                    let is_commit = |at: &&usize| matches!(steps[**at].sent, Sent::Commit { .. });
                    self.late_commits.extend(unanswered.iter().filter(is_commit));
                    unanswered.into_iter().chain([at]).for_each(|at| self.remove(steps, at));
                }
                Next::Nothing => return Ok(judged),
                Next::Stuck(at, why) => {
                    let Step { shard, process, lines, sent, answer } = &steps[at];
                    let step = format!("process {process}, line {}: {sent:?}: {answer:?}", lines.0);
                    return Err(Rejected { shard: *shard, step, why });
                }
            }
        }
    }

    /// The end of a round. Drops steps without an answer that were sent before a place: their connections are gone.
    pub(super) fn end_round(&mut self, place: usize) {
        let (allowed, shown) = (self.allowed, std::mem::take(&mut self.shown));
        self.late.redis = allowed.redis && !shown.redis;
        self.late.postgres = allowed.postgres && !shown.postgres;
        self.state.read.clear();
        self.open.values_mut().for_each(|open| open.retain(|at| *at >= place));
        self.late_commits.retain(|at| *at >= place);
    }

    /// A commit of a group that can no longer have taken effect: the row has moved on from the values before it.
    pub(super) fn missed(&self, steps: &[Step], process: usize, group: u64) -> Option<usize> {
        let is_missed = |step: &Step| match &step.sent {
            Sent::Commit { group: there, before, after, .. } if *there == group && before != after => {
                !self.state.is_at(before)
            }
            _ => false,
        };
        let open = self.open.get(&process)?.iter().copied();
        open.filter(|at| steps[*at].answer.is_none()).find(|at| is_missed(&steps[*at]))
    }

    fn remove(&mut self, steps: &mut [Step], at: usize) {
        if let Some(list) = self.open.get_mut(&steps[at].process) {
            list.retain(|there| *there != at);
        }
        // What it held is in the state now.
        if let Some(answer) = &mut steps[at].answer {
            (answer.entries, answer.ids) = (Vec::new(), Vec::new());
        }
    }

    /// The steps that may come next: no other one of their process was answered before they were sent.
    fn candidates(&self, steps: &[Step]) -> Vec<usize> {
        let mut found = Vec::new();
        for list in self.open.values() {
            let mut first_answer = usize::MAX;
            for at in list.iter().copied() {
                if steps[at].lines.0 > first_answer {
                    break;
                }
                found.push(at);
                first_answer = first_answer.min(steps[at].lines.1.unwrap_or(usize::MAX));
            }
        }
        found
    }

    fn next(&mut self, steps: &[Step]) -> Next {
        let (answered, open): (Vec<_>, Vec<_>) =
            self.candidates(steps).into_iter().partition(|at| steps[*at].answer.is_some());
        let open: Vec<usize> = open.into_iter().filter(|at| steps[*at].sent.shows_late()).collect();
        let (mut appends, mut others): (Vec<_>, Vec<_>) = answered.into_iter().partition(|at| is_append(&steps[*at]));
        appends.sort_by_key(|at| steps[*at].answer.as_ref().and_then(|answer| answer.ids.first().copied()));
        // Lower epochs first: a higher one shows that they are over.
        others.sort_by_key(|at| (epoch(&steps[*at]), *at));
        // No owner follows another one whose step does not fit, but behind a rewind.
        let (mut stuck, mut waiting, mut blocked) = (None, Vec::new(), Vec::new());
        for at in others {
            if stuck.is_some() && self.is_behind_lower(steps, at) {
                blocked.push(at);
                continue;
            }
            match self.fits_now(steps, at, appends.first().copied()) {
                Ok(next) => return next,
                Err(why) => stuck = stuck.or(Some((at, why))),
            }
            waiting.push(at);
        }
        // Only where nothing fits as it is: a step without an answer that is taken too early hides those that come.
        for at in waiting {
            if let Some(next) = self.fits_late(steps, at, &open) {
                return next;
            }
        }
        let is_disturbed = self.state.disturbed != Disturbed::default();
        for at in blocked.into_iter().filter(|_| is_disturbed) {
            match self.fits_now(steps, at, appends.first().copied()) {
                Ok(next) => return next,
                Err(_) => {
                    if let Some(next) = self.fits_late(steps, at, &open) {
                        return next;
                    }
                }
            }
        }
        match (stuck, appends.first().copied()) {
            (Some((at, why)), _) => Next::Stuck(at, why),
            (None, Some(at)) => match self.fits(&steps[at]).or_else(|why| self.fits_rewound(&steps[at]).ok_or(why)) {
                Ok(state) => self.taken(state, at, Vec::new()),
                Err(why) => Next::Stuck(at, why),
            },
            (None, None) => Next::Nothing,
        }
    }

    /// A step with an answer, or the append that it awaits, as the next one.
    fn fits_now(&mut self, steps: &[Step], at: usize, append: Option<usize>) -> Result<Next, Why> {
        let why = match self.fits(&steps[at]) {
            Ok(state) => return Ok(self.taken(state, at, Vec::new())),
            Err(why) => why,
        };
        let append = append.filter(|append| self.awaits(&steps[at], &steps[*append]));
        if let Some(append) = append
            && let Ok(state) = self.fits(&steps[append])
        {
            return Ok(self.taken(state, append, Vec::new()));
        }
        Err(why)
    }

    /// A step with an answer as the next one, behind some without one, or behind a rewind.
    fn fits_late(&mut self, steps: &[Step], at: usize, open: &[usize]) -> Option<Next> {
        if let Some((state, unanswered)) = self.fits_behind(steps, at, open) {
            return Some(self.taken(state, at, unanswered));
        }
        // A fence that is higher is no sign of a rewind.
        let is_fenced = steps[at].answer.as_ref().is_some_and(|answer| answer.result == Word::Fenced);
        let state = self.fits_rewound(&steps[at]).filter(|_| !is_fenced)?;
        Some(self.taken(state, at, Vec::new()))
    }

    /// Whether an owner of a lower epoch has still a step that its server's fence let through: without a rewind it came
    /// before this one.
    fn is_behind_lower(&self, steps: &[Step], at: usize) -> bool {
        let Some(server) = steps[at].sent.server() else { return false };
        let is_lower = |other: &Step| {
            let is_done = other.answer.as_ref().is_some_and(|answer| answer.result == Word::Done);
            is_done && other.sent.fenced_by() == Some(server) && epoch(other) < epoch(&steps[at])
        };
        self.open.values().flatten().any(|other| is_lower(&steps[*other]))
    }

    fn taken(&mut self, state: Shard, at: usize, unanswered: Vec<usize>) -> Next {
        self.state = state;
        Next::Taken(at, unanswered)
    }

    fn fits(&self, step: &Step) -> Result<Shard, Why> {
        let mut state = self.state.clone();
        let answer = step.answer.as_ref().ok_or("it has no answer")?;
        state.take(step, answer).map(|()| state)
    }

    /// Whether a step shows that an append came before it.
    fn awaits(&self, step: &Step, append: &Step) -> bool {
        let (Some(answer), Some(appended)) = (&step.answer, &append.answer) else { return false };
        let id = appended.ids.first().copied().unwrap_or_default();
        let reads = matches!(step.sent, Sent::Claim { .. } | Sent::Turn { .. } | Sent::Reconcile { .. });
        let is_read = answer.entries.last().is_some_and(|last| last[0] >= id);
        reads && (is_read || answer.appended.0 > self.state.input.appended)
    }

    /// The state behind a step that fits only behind some without an answer: as few as possible.
    fn fits_behind(&self, steps: &[Step], at: usize, open: &[usize]) -> Option<(Shard, Vec<usize>)> {
        let mut chosen: Vec<(Shard, Vec<usize>)> = vec![(self.state.clone(), Vec::new())];
        for _ in 0..TOGETHER {
            let mut longer = Vec::new();
            for (state, some) in &chosen {
                for next in open.iter().copied().filter(|next| !some.contains(next)) {
                    let mut state = state.clone();
                    if state.take_unanswered(&steps[next]).is_err() {
                        continue;
                    }
                    let some: Vec<usize> = some.iter().copied().chain([next]).collect();
                    let mut behind = state.clone();
                    let answer = steps[at].answer.as_ref()?;
                    if behind.take(&steps[at], answer).is_ok() {
                        return Some((behind, some));
                    }
                    longer.push((state, some));
                }
            }
            chosen = longer;
        }
        None
    }

    /// The state behind a step that fits only where a server was rewound, which a fault may have done.
    fn fits_rewound(&mut self, step: &Step) -> Option<Shard> {
        let Disturbed { redis, postgres } = self.state.disturbed;
        for (redis, postgres) in [(redis, false), (false, postgres), (redis, postgres)] {
            let mut rewound = self.state.clone();
            if redis {
                rewound.rewind_redis();
            }
            if postgres {
                rewound.rewind_postgres();
            }
            if redis | postgres && rewound.take(step, step.answer.as_ref()?).is_ok() {
                self.shown.redis |= redis;
                self.shown.postgres |= postgres;
                return Some(rewound);
            }
        }
        None
    }

    /// Notes the entries that were read: a disturbed Redis may have lost the others.
    fn find_read(&mut self, steps: &[Step]) {
        let answers = self.open.values().flatten().filter_map(|at| steps[*at].answer.as_ref());
        self.state.read.extend(answers.flat_map(|answer| &answer.entries).map(|entry| entry[0]));
    }

    /// Finds the ids of appends without an answer: those that were read, and that no other append has.
    fn find_unanswered_appends(&mut self, steps: &mut [Step]) {
        let places: Vec<usize> = self.open.values().flatten().copied().collect();
        let mut seen: BTreeMap<Number, u128> = BTreeMap::new();
        for at in &places {
            let entries = steps[*at].answer.iter().flat_map(|answer| &answer.entries);
            seen.extend(entries.filter(|entry| entry[1].0 > 0).map(|entry| (entry[0], entry[2].0 - entry[1].0 + 1)));
        }
        let answers = places.iter().filter_map(|at| steps[*at].answer.as_ref());
        let mut known: BTreeSet<Number> = answers.flat_map(|answer| &answer.ids).copied().collect();
        known.extend(self.state.input.entries.iter().map(|entry| Number(entry.sid)));
        let is_new = |id: &Number| id.0 > self.state.input.delivered || self.state.disturbed.redis;
        seen.retain(|id, _| !known.contains(id) && is_new(id));
        for at in places {
            let Sent::Append { counts, producer, .. } = &steps[at].sent else { continue };
            if steps[at].answer.is_some() {
                continue;
            }
            self.state.uncounted.insert(producer.clone());
            let ids: Vec<(Number, u128)> = seen.iter().map(|(id, count)| (*id, *count)).collect();
            let is_it = |ids: &&[(Number, u128)]| {
                ids.iter().zip(counts).all(|((_, there), count)| *there == u128::from(*count))
            };
            if let Some(found) = ids.windows(counts.len().max(1)).find(is_it) {
                let ids: Vec<Number> = found.iter().map(|(id, _)| *id).collect();
                seen.retain(|id, _| !ids.contains(id));
                steps[at].answer = Some(Answered { result: Word::Done, ids, ..Answered::default() });
            }
        }
    }
}

fn is_append(step: &Step) -> bool {
    matches!(step.sent, Sent::Append { .. })
}

/// The epoch of a step's owner. A publisher follows its owner's acknowledgements, whatever the epoch.
fn epoch(step: &Step) -> Number {
    match (&step.sent, &step.answer) {
        (Sent::Take { .. }, Some(answer)) => answer.epoch,
        (sent, _) => sent.fence().map(|(_, epoch)| epoch).unwrap_or_default(),
    }
}
