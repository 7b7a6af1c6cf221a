//! The report of a run: JSON for programs, a Markdown table for people.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde::Serialize;

use crate::{
    check::{Counts, Violation, Wrong},
    faults::Injected,
    load::history::Answers,
    phases::Coverage,
    plan::{KINDS, Kind},
};

/// How often a kind was injected, and how often it took effect.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Tally {
    pub(crate) asked: u64,
    pub(crate) took: u64,
}

/// The settings and findings of a run.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) rounds: u64,
    /// Pipelines: each serves some rounds.
    pub(crate) pipelines: u64,
    pub(crate) kinds: BTreeMap<&'static str, Tally>,
    /// The phases of the protocol that the faults hit.
    pub(crate) coverage: Coverage,
    pub(crate) skipped: BTreeMap<&'static str, String>,
    /// Ids that clients sent.
    pub(crate) records: u64,
    pub(crate) answers: Answers,
    pub(crate) counts: Counts,
    /// Records that faults destroyed where they may, and the loss that the product reported.
    pub(crate) destroyed: u64,
    pub(crate) said_lost: i64,
    /// Milliseconds from each loss until `/stats`, a metric and a log had reported it.
    pub(crate) said_ms: Vec<u64>,
    /// Rounds with destroyed records; of them, those with an uncertain loss, and those without a timed report.
    pub(crate) lossy_rounds: u64,
    pub(crate) uncertain: u64,
    pub(crate) unsaid: u64,
    /// Steps of the protocol that the model has judged; of them those without an answer; and rounds with such steps.
    pub(crate) judged: (u64, u64),
    pub(crate) judged_rounds: u64,
    pub(crate) rejected: u64,
    /// Reads that were compared with the history of their client.
    pub(crate) reads: u64,
    /// Kinds of violations, with how often each was found.
    pub(crate) wrong: BTreeMap<Wrong, u64>,
    pub(crate) violations: Vec<Violation>,
    /// kB at the end of the first round of a pipeline, and the most at the end of any: of serve, of work.
    pub(crate) memory_base_kb: (u64, u64),
    pub(crate) memory_most_kb: (u64, u64),
    /// The longest time until a pipeline was idle after a round, in milliseconds.
    pub(crate) longest_rest_ms: u64,
}

impl Report {
    /// Notes the effect of a fault.
    pub(crate) fn injected(&mut self, injected: &Injected) {
        let tally = self.kinds.entry(injected.kind.name()).or_default();
        tally.asked += 1;
        tally.took += u64::from(injected.took);
        if injected.took {
            self.coverage.note(injected.kind, &injected.phases);
        }
    }

    /// Power losses that took effect.
    pub(crate) fn power_losses(&self) -> u64 {
        let of_power = KINDS.iter().filter(|(kind, _)| kind.loses_power());
        of_power.filter_map(|(_, name)| self.kinds.get(name)).map(|tally| tally.took).sum()
    }

    /// Notes that a kind is left out.
    pub(crate) fn skip(&mut self, kind: Kind, why: &str) {
        self.skipped.insert(kind.name(), why.to_owned());
    }

    /// Adds the counts of a pipeline.
    pub(crate) fn add(&mut self, answers: &Answers, counts: &Counts) {
        let sums = &mut self.answers;
        sums.sent += answers.sent;
        sums.taken += answers.taken;
        sums.unknown += answers.unknown;
        sums.refused += answers.refused;
        for (result, times) in &answers.requests {
            *sums.requests.entry(result.clone()).or_default() += times;
        }
        self.counts.processed += counts.processed;
        self.counts.duplicates += counts.duplicates;
        self.counts.conflicts += counts.conflicts;
        self.counts.dead_letters += counts.dead_letters;
        self.counts.alerts += counts.alerts;
        self.counts.reversals += counts.reversals;
        self.counts.total_alerts += counts.total_alerts;
        self.counts.external += counts.external;
    }

    /// Faults that took effect.
    pub(crate) fn took(&self) -> u64 {
        self.kinds.values().map(|tally| tally.took).sum()
    }

    fn times(&self, wrong: Wrong) -> u64 {
        self.wrong.get(&wrong).copied().unwrap_or(0)
    }

    /// A table for people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "Seed {}, {} rounds on {} pipelines, {} s.\n\n| kind | asked | took effect |\n|---|---:|---:|",
            self.seed, self.rounds, self.pipelines, self.seconds
        );
        for (_, name) in KINDS {
            if let Some(Tally { asked, took }) = self.kinds.get(name) {
                let _ = writeln!(text, "| {name} | {asked} | {took} |");
            } else if let Some(why) = self.skipped.get(name) {
                let _ = writeln!(text, "| {name} | skipped | {why} |");
            }
        }
        let _ = writeln!(text, "| **all** | | **{}** |\n\n| what | number |\n|---|---:|", self.took());
        for (what, number) in [
            ("records", self.records),
            ("power losses that took effect", self.power_losses()),
            ("entries sent", self.answers.sent),
            ("of them accepted", self.answers.taken),
            ("outcome unknown", self.answers.unknown),
            ("processed", self.counts.processed.cast_unsigned()),
            ("duplicates", self.counts.duplicates.cast_unsigned()),
            ("conflicts", self.counts.conflicts.cast_unsigned()),
            ("dead letters", self.counts.dead_letters.cast_unsigned()),
            ("alerts", self.counts.alerts.cast_unsigned()),
            ("reversals", self.counts.reversals.cast_unsigned()),
            ("alerts of totals", self.counts.total_alerts.cast_unsigned()),
            ("destroyed by faults that may destroy", self.destroyed),
            ("reported as lost, those of unknown outcome included", self.said_lost.cast_unsigned()),
            ("rounds in which something was destroyed", self.lossy_rounds),
            ("of them with an uncertain loss", self.uncertain),
            ("of them with no loss reported within ten seconds", self.unsaid),
            ("times that a loss was reported", self.said_ms.len() as u64),
            ("of them within five seconds", self.said_ms.iter().filter(|after| **after <= 5_000).count() as u64),
            ("the longest, milliseconds", self.said_ms.iter().max().copied().unwrap_or(0)),
            ("lost", self.times(Wrong::Lost)),
            ("doubled", self.times(Wrong::Doubled)),
            ("reordered", self.times(Wrong::Reordered)),
            ("never sent", self.times(Wrong::Ghost)),
            ("miscounted", self.times(Wrong::Miscounted)),
            ("stuck", self.times(Wrong::Stuck)),
            ("memory not returned", self.times(Wrong::Memory)),
            ("not reported", self.times(Wrong::Unreported)),
            ("reads that were compared with their client's history", self.reads),
            ("of them older than it", self.times(Wrong::Stale)),
            ("steps of the protocol that the model has judged", self.judged.0),
            ("of them without an answer", self.judged.1),
            ("rounds whose trace was judged", self.judged_rounds),
            ("traces rejected", self.rejected),
        ] {
            let _ = writeln!(text, "| {what} | {number} |");
        }
        let _ = writeln!(text, "\nPhases of the protocol that the faults hit:\n\n{}", self.coverage.markdown());
        for violation in self.violations.iter().take(50) {
            let _ = writeln!(text, "\n- round {}: {:?}: {}", violation.round, violation.wrong, violation.detail);
        }
        text
    }

    /// Writes both forms into a folder.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("report.json"), serde_json::to_string_pretty(self)?)?;
        fs::write(dir.join("report.md"), self.markdown())?;
        Ok(())
    }
}
