//! What no answer shows: that steps without an answer took effect before one with an answer, or that a server was rewound.
//! Must never explain a step that fits as it is.

use std::ops::ControlFlow;

use super::{
    order::place,
    search::{Search, Waiting},
    shard::{Disturbed, Shard},
    trace::{Step, Word},
};

/// Most steps without an answer that are taken together.
const TOGETHER: usize = 3;

/// A step with an answer that fits behind something that no answer shows.
pub(super) struct Explained {
    pub(super) at: usize,
    /// The state behind it.
    pub(super) state: Shard,
    /// The steps without an answer that took effect before it.
    pub(super) unanswered: Vec<usize>,
    /// What was rewound before it.
    pub(super) rewound: Disturbed,
}

/// Breaks with the explanation that is looked for.
type Visited = ControlFlow<Explained>;

impl Search {
    /// The explanation of this number: of the lowest epoch first, with as few steps without an answer as possible.
    pub(super) fn explain(&self, steps: &[Step], waiting: &Waiting, number: usize) -> Option<Explained> {
        let mut left = number;
        let mut visit = |explained: Explained| {
            if left == 0 {
                return ControlFlow::Break(explained);
            }
            left -= 1;
            ControlFlow::Continue(())
        };
        self.visit(steps, waiting, &mut visit).break_value()
    }

    fn visit(&self, steps: &[Step], waiting: &Waiting, visit: &mut impl FnMut(Explained) -> Visited) -> Visited {
        for at in waiting.unfit.iter().copied() {
            self.visit_behind(steps, at, &waiting.open, visit)?;
            self.visit_rewound(steps, at, visit)?;
        }
        // Behind a rewind results show no order.
        let blocked: &[usize] = if self.state.disturbed == Disturbed::default() { &[] } else { &waiting.blocked };
        for at in blocked.iter().copied() {
            if let Ok(state) = self.fits(&steps[at]) {
                visit(Explained { at, state, unanswered: Vec::new(), rewound: Disturbed::default() })?;
            }
            self.visit_behind(steps, at, &waiting.open, visit)?;
            self.visit_rewound(steps, at, visit)?;
        }
        ControlFlow::Continue(())
    }

    /// A step behind some without an answer.
    fn visit_behind(
        &self,
        steps: &[Step],
        at: usize,
        open: &[usize],
        visit: &mut impl FnMut(Explained) -> Visited,
    ) -> Visited {
        let there = |next: &usize| place(&steps[*next]) == place(&steps[at]);
        let open: Vec<usize> = open.iter().copied().filter(there).collect();
        let Some(answer) = steps[at].answer.as_ref() else { return ControlFlow::Continue(()) };
        let mut chosen: Vec<(Shard, Vec<usize>)> = vec![(self.state.clone(), Vec::new())];
        for _ in 0..TOGETHER {
            let mut longer = Vec::new();
            for (state, some) in &chosen {
                for next in open.iter().copied().filter(|next| !some.contains(next)) {
                    let mut state = state.clone();
                    if state.take_unanswered(&steps[next], &steps[at]).is_err() {
                        continue;
                    }
                    let unanswered: Vec<usize> = some.iter().copied().chain([next]).collect();
                    let mut behind = state.clone();
                    if behind.take(&steps[at], answer).is_ok() {
                        visit(Explained { at, state: behind, unanswered, rewound: Disturbed::default() })?;
                    } else {
                        longer.push((state, unanswered));
                    }
                }
            }
            chosen = longer;
        }
        ControlFlow::Continue(())
    }

    /// A step behind a rewind, which a fault may have done.
    fn visit_rewound(&self, steps: &[Step], at: usize, visit: &mut impl FnMut(Explained) -> Visited) -> Visited {
        // A fence that is higher is no sign of a rewind.
        let is_fenced = steps[at].answer.as_ref().is_some_and(|answer| answer.result == Word::Fenced);
        match self.rewound(&steps[at]).filter(|_| !is_fenced) {
            Some((state, rewound)) => visit(Explained { at, state, unanswered: Vec::new(), rewound }),
            None => ControlFlow::Continue(()),
        }
    }

    /// The state behind a step that fits only where a server was rewound, and which one was.
    pub(super) fn rewound(&self, step: &Step) -> Option<(Shard, Disturbed)> {
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
                return Some((rewound, Disturbed { redis, postgres }));
            }
        }
        None
    }
}
