//! Phases of the protocol, by the last lines of a process's trace: what a fault hit, and what none has hit yet.
//!
//! A trace has no times: a moment is how long each of them was.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use serde::Serialize;
use serde_json::Value;

use crate::plan::{KINDS, Kind};

/// How much of the end of a trace is looked at.
const TAIL: u64 = 16 << 10;

/// What a process does for a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Phase {
    Idle,
    /// A serve process appends.
    Appending,
    Taking,
    /// An owner sets its fence and compares, up to its first read.
    Preparing,
    Reclaiming,
    Reading,
    /// Between read and commit.
    Read,
    Committing,
    /// Between commit and acknowledgement.
    Committed,
    Acknowledging,
    /// Between acknowledgement and publication.
    Acknowledged,
    Publishing,
}

/// All of them.
pub(crate) const PHASES: [Phase; 12] = [
    Phase::Idle,
    Phase::Appending,
    Phase::Taking,
    Phase::Preparing,
    Phase::Reclaiming,
    Phase::Reading,
    Phase::Read,
    Phase::Committing,
    Phase::Committed,
    Phase::Acknowledging,
    Phase::Acknowledged,
    Phase::Publishing,
];

impl Kind {
    /// The phases that it can aim at. What a process does at a named point is no choice.
    fn aims(self) -> impl Iterator<Item = Phase> {
        let (serves, works) = (self.name().starts_with("serve-"), self.name().starts_with("work-"));
        let has_point = matches!(self, Self::Point(..) | Self::SinkStart(_));
        let is_possible = move |phase: &Phase| match phase {
            Phase::Idle => true,
            Phase::Appending => !works,
            _ => !serves,
        };
        PHASES.into_iter().filter(move |phase| !has_point && is_possible(phase))
    }
}

/// How often the faults of a kind hit each phase.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Coverage(BTreeMap<&'static str, BTreeMap<Phase, u64>>);

impl Coverage {
    /// Notes what a fault hit.
    pub(crate) fn note(&mut self, kind: Kind, phases: &BTreeSet<Phase>) {
        let cells = self.0.entry(kind.name()).or_default();
        phases.iter().for_each(|phase| *cells.entry(*phase).or_default() += 1);
    }

    fn times(&self, kind: Kind, phase: Phase) -> u64 {
        self.0.get(kind.name()).and_then(|cells| cells.get(&phase)).copied().unwrap_or(0)
    }

    /// The phases that a kind can aim at, and that none of its faults has hit.
    pub(crate) fn empty(&self, kind: Kind) -> Vec<Phase> {
        kind.aims().filter(|phase| self.times(kind, *phase) == 0).collect()
    }

    /// A table of the kinds that were used, and the cells that are empty.
    pub(crate) fn markdown(&self) -> String {
        let used = || KINDS.iter().map(|(kind, _)| *kind).filter(|kind| self.0.contains_key(kind.name()));
        let row = |first: &str, cells: &[String]| format!("| {first} | {} |\n", cells.join(" | "));
        let mut text = row("kind", &PHASES.map(|phase| format!("{phase:?}").to_lowercase()));
        text += &row("---", &PHASES.map(|_| "---:".to_owned()));
        for kind in used() {
            let aims: Vec<Phase> = kind.aims().collect();
            let cell = |phase| match self.times(kind, phase) {
                0 if !aims.contains(&phase) => String::new(),
                times => times.to_string(),
            };
            text += &row(kind.name(), &PHASES.map(cell));
        }
        let empty: Vec<(Kind, Vec<Phase>)> = used().map(|kind| (kind, self.empty(kind))).collect();
        let cells: usize = empty.iter().map(|(_, phases)| phases.len()).sum();
        text += &format!("\nCells that stay empty: {cells}\n\n");
        for (kind, phases) in empty.iter().filter(|(_, phases)| !phases.is_empty()) {
            let phases: Vec<String> = phases.iter().map(|phase| format!("{phase:?}").to_lowercase()).collect();
            text += &format!("- {}: {}\n", kind.name(), phases.join(", "));
        }
        text
    }
}

/// A moment of a run: the newest trace of each place for a process, and how long it was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moment(BTreeMap<String, (String, u64)>);

impl Moment {
    /// Now.
    pub(crate) fn now(traces: &Path) -> Self {
        let mut newest = BTreeMap::new();
        for file in fs::read_dir(traces).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some((_, slot)) = name.strip_suffix(".jsonl").and_then(|name| name.split_once('-')) else { continue };
            let known: &mut (String, u64) = newest.entry(slot.to_owned()).or_default();
            if known.0 < name
                && let Ok(metadata) = file.metadata()
            {
                *known = (name, metadata.len());
            }
        }
        Self(newest)
    }

    /// The places of processes, each with its phases.
    pub(crate) fn phases(&self, traces: &Path) -> BTreeMap<&str, BTreeSet<Phase>> {
        let mut found = BTreeMap::new();
        for (slot, (name, length)) in &self.0 {
            let text = tail(&traces.join(name), *length).unwrap_or_default();
            found.insert(slot.as_str(), phases(&text));
        }
        found
    }
}

/// The last whole lines of a file of this length.
fn tail(file: &Path, length: u64) -> std::io::Result<String> {
    let from = length.saturating_sub(TAIL);
    let mut file = File::open(file)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length - from).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let first = if from == 0 { 0 } else { text.find('\n').map_or(0, |end| end + 1) };
    Ok(text[first..].to_owned())
}

/// The phases behind these lines, of all shards.
fn phases(lines: &str) -> BTreeSet<Phase> {
    let mut shards: HashMap<u64, Phase> = HashMap::new();
    let mut open: HashMap<u64, (u64, Value)> = HashMap::new();
    for line in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let n = line["n"].as_u64().unwrap_or_default();
        if let Some(shard) = line["shard"].as_u64() {
            match line["step"].as_str().unwrap_or_default() {
                "release" => drop(shards.remove(&shard)),
                "append" | "reconcile" => {}
                // Behind an acknowledgement: the next read may have begun.
                "publish" | "start" => {
                    if shards.get(&shard) == Some(&Phase::Acknowledged) {
                        shards.insert(shard, Phase::Idle);
                    }
                }
                _ => drop(shards.insert(shard, during(&line))),
            }
            open.insert(n, (shard, line));
        } else if let Some((shard, step)) = open.remove(&n)
            && let Some(phase) = behind(&step, &line)
        {
            shards.insert(shard, phase);
        }
    }
    let mut phases: BTreeSet<Phase> = shards.into_values().collect();
    phases.extend(open.values().filter_map(|(_, step)| match step["step"].as_str() {
        Some("publish") => Some(Phase::Publishing),
        Some("append") => Some(Phase::Appending),
        _ => None,
    }));
    if phases.is_empty() {
        phases.insert(Phase::Idle);
    }
    phases
}

/// The phase of a shard while a step is under way.
fn during(step: &Value) -> Phase {
    match step["step"].as_str().unwrap_or_default() {
        "take" => Phase::Taking,
        "claim" => Phase::Reclaiming,
        "turn" if step.get("acks").is_some() => Phase::Acknowledging,
        "turn" => Phase::Reading,
        "commit" => Phase::Committing,
        _ => Phase::Preparing,
    }
}

/// The phase of a shard behind a step.
fn behind(step: &Value, answer: &Value) -> Option<Phase> {
    let is_done = answer["result"] == "done";
    let has_entries = answer["entries"].as_array().is_some_and(|entries| !entries.is_empty());
    match step["step"].as_str()? {
        "claim" | "turn" if !is_done => Some(Phase::Preparing),
        "claim" | "turn" if has_entries => Some(Phase::Read),
        "turn" if step.get("acks").is_some() => Some(Phase::Acknowledged),
        "claim" | "turn" => Some(Phase::Idle),
        "commit" if is_done => Some(Phase::Committed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_leads_to_its_phase() {
        let steps = [
            (r#"{"n":1,"shard":0,"step":"take"}"#, Phase::Taking),
            (r#"{"n":2,"shard":0,"step":"prepare"}"#, Phase::Preparing),
            (r#"{"n":3,"shard":0,"step":"claim"}"#, Phase::Reclaiming),
            (r#"{"n":3,"result":"done","entries":[]}"#, Phase::Idle),
            (r#"{"n":4,"shard":0,"step":"turn","reads":true}"#, Phase::Reading),
            (r#"{"n":4,"result":"done","entries":[["1-0",1,1]]}"#, Phase::Read),
            (r#"{"n":5,"shard":0,"step":"commit"}"#, Phase::Committing),
            (r#"{"n":5,"result":"done"}"#, Phase::Committed),
            (r#"{"n":6,"shard":0,"step":"turn","acks":{}}"#, Phase::Acknowledging),
            (r#"{"n":6,"result":"done"}"#, Phase::Acknowledged),
        ];
        let mut lines = String::new();
        for (line, phase) in steps {
            lines += line;
            lines += "\n";
            assert_eq!(phases(&lines), BTreeSet::from([phase]), "{line}");
        }
        lines += r#"{"n":7,"shard":0,"step":"publish"}"#;
        assert_eq!(phases(&lines), BTreeSet::from([Phase::Idle, Phase::Publishing]));
        assert_eq!(phases(r#"{"n":7,"shard":0,"step":"append"}"#), BTreeSet::from([Phase::Appending]));
    }

    #[test]
    fn cells_without_a_fault_are_listed() {
        let mut coverage = Coverage::default();
        coverage.note(Kind::KillServe, &BTreeSet::from([Phase::Idle]));
        assert_eq!(coverage.empty(Kind::KillServe), [Phase::Appending]);
        assert!(coverage.markdown().contains("- serve-kill: appending"), "{}", coverage.markdown());
        coverage.note(Kind::KillServe, &BTreeSet::from([Phase::Appending]));
        assert!(coverage.markdown().contains("empty: 0"));
    }
}
