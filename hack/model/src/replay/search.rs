//! The order of a shard's steps over both servers: one that every step fits in, if there is one.
//!
//! Steps of one process come in the order of its lines, as far as one was answered before the other was sent. Across
//! processes only the values decide. A step that fits as it is, and that no result shows to be later than another one, is
//! taken at once. Where there is none, there may be several explanations: the first one is taken, and where that leads to
//! no end, the others are tried. Must never take a step without an answer where the next one with an answer fits.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Judged, Rejected,
    late::Explained,
    order::{epoch, is_before},
    shard::{Disturbed, Shard, Why},
    trace::{Sent, Step},
};

/// Most runs through the steps of a round, each with other explanations.
const MOST_RUNS: usize = 200;

/// The steps of a shard that are not taken yet, and its state.
#[derive(Debug, Clone)]
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

/// Which explanation is taken where: pairs of the place in the run, by the count of explanations before it, and its number,
/// where that is not 0. In the order of places.
type Plan = Vec<(usize, usize)>;

/// How far a run came.
enum Run {
    /// To the end.
    Ended(Judged, Vec<usize>),
    /// To a step that fits nowhere, behind so many explanations.
    Stuck(Rejected, usize),
    /// The plan asks for an explanation that is none.
    Void,
}

/// What comes next.
enum Next {
    /// This step was taken, behind so many without an answer, which are these.
    Taken(usize, Vec<usize>),
    /// As before, by an explanation.
    Explained(usize, Vec<usize>),
    /// There are less explanations.
    Void,
    /// No step with an answer is left.
    Nothing,
    /// None fits; this one of the lowest epoch should, but for this reason.
    Stuck(usize, Why),
}

/// The steps that may come next and do not fit as they are.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) unfit: Vec<usize>,
    /// Results show that another one came before.
    pub(super) blocked: Vec<usize>,
    /// Those without an answer.
    pub(super) open: Vec<usize>,
}

impl Search {
    pub(super) fn new() -> Self {
        let none = Disturbed::default();
        let (open, late_commits) = (BTreeMap::new(), Vec::new());
        Self { state: Shard::new(), open, late_commits, allowed: none, shown: none, late: none }
    }

    /// Takes all steps that have an answer. Where that cannot be done, takes none.
    pub(super) fn run(&mut self, steps: &mut [Step], disturbed: Disturbed) -> Result<Judged, Rejected> {
        self.allowed = disturbed;
        let Disturbed { redis, postgres } = self.late;
        self.state.disturbed = Disturbed { redis: disturbed.redis || redis, postgres: disturbed.postgres || postgres };
        self.find_read(steps);
        self.find_unanswered_appends(steps);
        let start = self.clone();
        let mut first = None;
        // Those with few explanations other than the first come first.
        let mut plans = VecDeque::from([Plan::new()]);
        for _ in 0..MOST_RUNS {
            let Some(plan) = plans.pop_front() else { break };
            match self.run_by(steps, &plan) {
                Run::Ended(judged, taken) => {
                    drop_values(steps, &taken);
                    return Ok(judged);
                }
                Run::Stuck(why, explained) => {
                    first.get_or_insert(why);
                    plans.extend(beside(&plan, explained));
                }
                Run::Void => {}
            }
            self.clone_from(&start);
        }
        first.map_or(Ok(Judged::default()), Err)
    }

    fn run_by(&mut self, steps: &[Step], plan: &Plan) -> Run {
        let (mut judged, mut taken, mut explained) = (Judged::default(), Vec::new(), 0);
        loop {
            let number = plan.iter().find(|(place, _)| *place == explained).map_or(0, |(_, number)| *number);
            let (at, unanswered) = match self.next(steps, number) {
                Next::Taken(at, unanswered) => (at, unanswered),
                Next::Explained(at, unanswered) => {
                    explained += 1;
                    (at, unanswered)
                }
                Next::Void => return Run::Void,
                Next::Nothing => return Run::Ended(judged, taken),
                Next::Stuck(at, why) => return Run::Stuck(rejected(&steps[at], why), explained),
            };
            judged.steps += 1;
            judged.unanswered += unanswered.len() as u64;
            let is_commit = |at: &&usize| matches!(steps[**at].sent, Sent::Commit { .. });
            self.late_commits.extend(unanswered.iter().filter(is_commit));
            for at in unanswered.into_iter().chain([at]) {
                if let Some(list) = self.open.get_mut(&steps[at].process) {
                    list.retain(|there| *there != at);
                }
                taken.push(at);
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

    /// The next step; where none fits as it is, by the explanation of this number.
    fn next(&mut self, steps: &[Step], number: usize) -> Next {
        let (answered, open): (Vec<_>, Vec<_>) =
            self.candidates(steps).into_iter().partition(|at| steps[*at].answer.is_some());
        let open: Vec<usize> = open.into_iter().filter(|at| steps[*at].sent.shows_late()).collect();
        let (mut appends, mut others): (Vec<_>, Vec<_>) = answered.into_iter().partition(|at| is_append(&steps[*at]));
        appends.sort_by_key(|at| steps[*at].answer.as_ref().and_then(|answer| answer.ids.first().copied()));
        // Lower epochs first: a higher one shows that they are over.
        others.sort_by_key(|at| (epoch(&steps[*at]), *at));
        let mut waiting = Waiting { open, ..Waiting::default() };
        let mut stuck = None;
        for at in others {
            if self.open.values().flatten().any(|other| is_before(&steps[*other], &steps[at])) {
                waiting.blocked.push(at);
                continue;
            }
            match self.fits_now(steps, at, appends.first().copied()) {
                Ok(next) => return next,
                Err(why) => stuck = stuck.or(Some((at, why))),
            }
            waiting.unfit.push(at);
        }
        // Only where nothing fits as it is: a step without an answer that is taken too early hides those that come.
        if let Some(Explained { at, state, unanswered, rewound }) = self.explain(steps, &waiting, number) {
            self.state = state;
            self.shown.redis |= rewound.redis;
            self.shown.postgres |= rewound.postgres;
            return Next::Explained(at, unanswered);
        }
        if number > 0 {
            return Next::Void;
        }
        let blocked = waiting.blocked.first().map(|at| (*at, "a step that came before it does not fit".to_owned()));
        match (stuck.or(blocked), appends.first().copied()) {
            (Some((at, why)), _) => Next::Stuck(at, why),
            (None, Some(at)) => self.append(steps, at),
            (None, None) => Next::Nothing,
        }
    }

    /// An append that no other step awaits.
    fn append(&mut self, steps: &[Step], at: usize) -> Next {
        match self.fits(&steps[at]) {
            Ok(state) => self.taken(state, at),
            Err(why) => match self.rewound(&steps[at]) {
                Some((state, rewound)) => {
                    self.shown.redis |= rewound.redis;
                    self.shown.postgres |= rewound.postgres;
                    self.taken(state, at)
                }
                None => Next::Stuck(at, why),
            },
        }
    }

    /// A step with an answer, or the append that it awaits, as the next one.
    fn fits_now(&mut self, steps: &[Step], at: usize, append: Option<usize>) -> Result<Next, Why> {
        let why = match self.fits(&steps[at]) {
            Ok(state) => return Ok(self.taken(state, at)),
            Err(why) => why,
        };
        let append = append.filter(|append| self.awaits(&steps[at], &steps[*append]));
        if let Some(append) = append
            && let Ok(state) = self.fits(&steps[append])
        {
            return Ok(self.taken(state, append));
        }
        Err(why)
    }

    fn taken(&mut self, state: Shard, at: usize) -> Next {
        self.state = state;
        Next::Taken(at, Vec::new())
    }

    /// The state behind a step with an answer, if it fits as it is.
    pub(super) fn fits(&self, step: &Step) -> Result<Shard, Why> {
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

    /// Notes the entries that were read: a disturbed Redis may have lost the others.
    fn find_read(&mut self, steps: &[Step]) {
        let answers = self.open.values().flatten().filter_map(|at| steps[*at].answer.as_ref());
        self.state.read.extend(answers.flat_map(|answer| &answer.entries).map(|entry| entry[0]));
    }
}

/// The plans that differ from one by one explanation more, or by the next one for its last.
fn beside(plan: &Plan, explained: usize) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut first = 0;
    if let Some((place, number)) = plan.last().copied() {
        first = place + 1;
        let mut next = plan.clone();
        next.pop();
        next.push((place, number + 1));
        plans.push(next);
    }
    plans.extend((first..explained).map(|place| plan.iter().copied().chain([(place, 1)]).collect()));
    plans
}

/// What steps that were taken held is in the state now.
fn drop_values(steps: &mut [Step], taken: &[usize]) {
    for at in taken.iter().copied() {
        if let Some(answer) = &mut steps[at].answer {
            (answer.entries, answer.ids) = (Vec::new(), Vec::new());
        }
    }
}

fn rejected(step: &Step, why: Why) -> Rejected {
    let Step { shard, process, lines, sent, answer } = step;
    Rejected { shard: *shard, step: format!("process {process}, line {}: {sent:?}: {answer:?}", lines.0), why }
}

fn is_append(step: &Step) -> bool {
    matches!(step.sent, Sent::Append { .. })
}
