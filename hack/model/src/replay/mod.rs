//! Replays the protocol trace of a real run: each of its steps is judged by the model's step ([`crate::steps`]).
//!
//! A trace is accepted if its steps have an order in which each of them fits. Which steps there are, and what happens to
//! one without an answer, is in docs/decisions/0020.

mod appends;
mod late;
mod order;
mod postgres;
mod redis;
pub mod rounds;
mod search;
mod shard;
pub mod trace;
mod unanswered;

use std::{collections::BTreeMap, fmt};

use search::Search;
pub use shard::Disturbed;
use trace::{Process, Step};

/// How many steps were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Judged {
    /// Those that have an answer.
    pub steps: u64,
    /// Those without an answer that have taken effect.
    pub unanswered: u64,
}

/// The first step of a trace that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its shard.
    pub shard: u16,
    /// The step.
    pub step: String,
    /// The reason.
    pub why: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}: {}; the step was {}", self.shard, self.why, self.step)
    }
}

/// The replay of one pipeline, from its first step on.
#[derive(Debug, Default)]
pub struct Replay {
    processes: BTreeMap<usize, Process>,
    steps: Vec<Step>,
    /// How many of the steps are in a list, or taken; and how many were when a round was accepted last.
    placed: (usize, usize),
    shards: BTreeMap<u16, Search>,
}

impl Replay {
    /// Adds what a process wrote since the last call.
    ///
    /// # Errors
    /// A line that is none of a trace.
    pub fn read(&mut self, process: usize, text: &str) -> Result<(), String> {
        self.processes.entry(process).or_default().read(process, text, &mut self.steps)
    }

    /// Adds steps.
    pub fn add(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.steps.extend(steps);
    }

    /// Judges all steps that were added. `disturbed`: what faults may have done to the servers meanwhile.
    ///
    /// # Errors
    /// The first step that does not fit. The replay cannot continue behind it, but with more lines of the same steps.
    pub fn judge(&mut self, disturbed: Disturbed) -> Result<Judged, Rejected> {
        for at in self.placed.0..self.steps.len() {
            let step = &self.steps[at];
            let search = self.shards.entry(step.shard).or_insert_with(Search::new);
            search.open.entry(step.process).or_default().push(at);
        }
        self.placed.0 = self.steps.len();
        let mut sum = Judged::default();
        for search in self.shards.values_mut() {
            let judged = search.run(&mut self.steps, disturbed)?;
            sum.steps += judged.steps;
            sum.unanswered += judged.unanswered;
        }
        self.check_groups()?;
        let before = std::mem::replace(&mut self.placed.1, self.placed.0);
        self.shards.values_mut().for_each(|search| search.end_round(before));
        Ok(sum)
    }

    /// A transaction over several shards took effect in all of them, or in none.
    fn check_groups(&self) -> Result<(), Rejected> {
        let late = self.shards.values().flat_map(|search| &search.late_commits);
        for step in late.map(|at| &self.steps[*at]) {
            let trace::Sent::Commit { group, .. } = step.sent else { continue };
            let missed = self.shards.values().find_map(|search| search.missed(&self.steps, step.process, group));
            if let Some(missed) = missed {
                let Step { shard, process, lines, sent, .. } = &self.steps[missed];
                let step = format!("process {process}, line {}: {sent:?}", lines.0);
                return Err(Rejected { shard: *shard, step, why: "its group was committed in part".to_owned() });
            }
        }
        Ok(())
    }
}
