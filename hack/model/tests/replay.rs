//! A protocol trace of the running program is accepted; with one mistake in it, it is rejected.
//!
//! `tests/traces` holds two shards of a round of the campaign: workers were killed behind commits and before
//! acknowledgements, and dead letters replayed. It has groups of both shards, entries of two and more records, and steps
//! without an answer. `tests/deleted-*` hold one shard of kept runs, with the files of their rounds and without its publishers:
//! faults deleted the hash beside its stream, or the stream, whose ids then began again below those of before.
//! `tests/late-commit` is one of an owner that was killed behind its commit, in a power loss of Postgres.
//! `tests/torn-log` is one with the publishers of one sink: Redis may have lost the end of its log, and three processes
//! moved the cursor.

use std::{fs, path::Path};

use millrace_model::replay::{
    Disturbed, Judged, Rejected, Replay,
    rounds::judge_again,
    trace::{Answered, Number, Process, Sent, Step, Word},
};

fn recorded() -> Vec<Step> {
    steps_of("traces")
}

#[expect(clippy::unwrap_used, reason = "without the files there is nothing to test")]
fn steps_of(folder: &str) -> Vec<Step> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "jsonl"));
    files.sort();
    let mut steps = Vec::new();
    for (process, file) in files.iter().enumerate() {
        Process::default().read(process, &fs::read_to_string(file).unwrap(), &mut steps).unwrap();
    }
    steps
}

fn judge(steps: Vec<Step>) -> Result<Judged, Rejected> {
    let mut replay = Replay::default();
    replay.add(steps);
    replay.judge(Disturbed::default())
}

/// The answer of a step that took effect.
fn done(step: &Step) -> Option<&Answered> {
    step.answer.as_ref().filter(|answer| answer.result == Word::Done)
}

/// Whether a step changes a server or its owner, and another step depends on it.
fn matters(steps: &[Step], at: usize) -> bool {
    let step = &steps[at];
    let Some(answer) = done(step) else { return false };
    let later = |test: &dyn Fn(&Sent) -> bool| {
        steps.iter().any(|other| {
            (other.process, other.shard) == (step.process, step.shard)
                && other.lines.0 > step.lines.0
                && done(other).is_some()
                && test(&other.sent)
        })
    };
    match &step.sent {
        Sent::Take { token } => later(&|sent| sent.fence().is_some_and(|(there, _)| there == *token)),
        Sent::Prepare { .. } | Sent::Compare { .. } => later(&|sent| matches!(sent, Sent::Claim { .. })),
        Sent::Claim { .. } => later(&|sent| matches!(sent, Sent::Turn { .. } | Sent::Commit { .. })),
        Sent::Turn { acks, .. } => {
            let has_effect = acks.is_some() || !answer.entries.is_empty();
            has_effect && later(&|sent| matches!(sent, Sent::Turn { .. } | Sent::Commit { .. }))
        }
        Sent::Commit { .. } => later(&|sent| matches!(sent, Sent::Turn { .. })),
        Sent::Publish { sink, r#type, .. } => {
            let same =
                |sent: &Sent| matches!(sent, Sent::Publish { sink: s, r#type: t, .. } if (s, t) == (sink, r#type));
            later(&same)
        }
        Sent::Append { .. } => true,
        _ => false,
    }
}

/// The steps that others depend on.
fn places(steps: &[Step]) -> Vec<usize> {
    (0..steps.len()).filter(|at| matters(steps, *at)).collect()
}

/// Each of these traces is rejected.
fn all_rejected(what: &str, mutated: Vec<(usize, Vec<Step>)>, at_least: usize) {
    assert!(mutated.len() >= at_least, "{what}: only {} places", mutated.len());
    let recorded = recorded();
    assert!(judge(recorded.clone()).is_ok(), "{what}: the trace is accepted without it");
    let accepted: Vec<String> = mutated
        .into_iter()
        .filter_map(|(at, steps)| judge(steps).ok().map(|_| format!("{:?}", recorded[at])))
        .collect();
    assert!(accepted.is_empty(), "{what}: {} were accepted:\n{}", accepted.len(), accepted.join("\n"));
}

#[test]
fn a_trace_of_the_running_program_is_accepted() {
    let steps = recorded();
    let open = steps.iter().filter(|step| step.answer.is_none()).count();
    let judged = judge(steps.clone()).unwrap();
    assert_eq!(judged.steps, (steps.len() - open) as u64, "every step with an answer was judged");
    assert!(judged.unanswered > 0, "a step without an answer took effect");
    let is_group = |step: &&Step| matches!(step.sent, Sent::Commit { .. });
    let groups = |shard| steps.iter().filter(is_group).filter(move |step| step.shard == shard);
    let group = |step: &Step| match step.sent {
        Sent::Commit { group, .. } => (step.process, group),
        _ => unreachable!("only commits are asked"),
    };
    assert!(groups(2).any(|a| groups(5).any(|b| group(a) == group(b))), "both shards were committed together");
}

#[test]
fn a_trace_without_one_of_its_steps_is_rejected() {
    let steps = recorded();
    let without = |at: usize| {
        let mut steps = steps.clone();
        steps.remove(at);
        (at, steps)
    };
    all_rejected("dropped", places(&steps).into_iter().map(without).collect(), 60);
}

#[test]
fn a_trace_with_a_step_repeated_is_rejected() {
    let steps = recorded();
    let repeats = |at: &usize| !matches!(steps[*at].sent, Sent::Prepare { .. } | Sent::Claim { .. });
    let twice = |at: usize| {
        let mut steps = steps.clone();
        steps.insert(at + 1, steps[at].clone());
        (at, steps)
    };
    all_rejected("repeated", places(&steps).into_iter().filter(repeats).map(twice).collect(), 60);
}

#[test]
fn a_trace_with_two_steps_swapped_is_rejected() {
    let steps = recorded();
    let swapped = places(&steps).into_iter().filter_map(|at| {
        let next = steps.iter().enumerate().position(|(next, step)| {
            next > at
                && (step.process, step.shard) == (steps[at].process, steps[at].shard)
                && matters(&steps, next)
                && sink(step) == sink(&steps[at])
        })?;
        let is_over = steps[at].lines.1.is_some_and(|end| end < steps[next].lines.0);
        is_over.then(|| {
            let mut steps = steps.clone();
            let lines = (steps[at].lines, steps[next].lines);
            steps.swap(at, next);
            (steps[at].lines, steps[next].lines) = lines;
            (at, steps)
        })
    });
    all_rejected("swapped", swapped.collect(), 60);
}

/// The sink of a publisher's step.
fn sink(step: &Step) -> Option<&str> {
    match &step.sent {
        Sent::Publish { sink, .. } => Some(sink),
        _ => None,
    }
}

#[test]
fn a_trace_with_another_epoch_is_rejected() {
    let steps = recorded();
    let mut mutated = Vec::new();
    for at in (0..steps.len()).filter(|at| done(&steps[*at]).is_some()) {
        let mut steps = steps.clone();
        let step = &mut steps[at];
        let epoch = match &mut step.sent {
            Sent::Take { .. } => step.answer.as_mut().map(|answer| &mut answer.epoch),
            Sent::Prepare { epoch, .. }
            | Sent::Claim { epoch, .. }
            | Sent::Turn { epoch, .. }
            | Sent::Commit { epoch, .. }
            | Sent::Compare { epoch, .. } => Some(epoch),
            _ => None,
        };
        if let Some(epoch) = epoch {
            epoch.0 += 1;
            mutated.push((at, steps));
        }
    }
    all_rejected("another epoch", mutated, 60);
}

#[test]
fn a_trace_with_a_cursor_one_too_high_is_rejected() {
    let steps = recorded();
    let mut mutated = Vec::new();
    for at in places(&steps) {
        let mut steps = steps.clone();
        let step = &mut steps[at];
        if let (Sent::Publish { upto, .. }, Some(answer)) = (&mut step.sent, &mut step.answer) {
            *upto = Number(upto.0 + 1);
            answer.cursor = *upto;
            mutated.push((at, steps));
        }
    }
    all_rejected("a cursor too high", mutated, 15);
}

/// A commit whose answer was lost took effect in one shard. In the other one, another commit has come in its place.
#[test]
fn a_group_that_was_committed_in_part_is_rejected() {
    let mut steps = recorded();
    let is_commit = |step: &&Step| matches!(step.sent, Sent::Commit { .. });
    let lost = steps.iter().filter(is_commit).find(|step| step.answer.is_none()).unwrap().clone();
    let is_other = |step: &&Step| step.shard != lost.shard && done(step).is_some();
    let mut part = steps.iter().filter(is_commit).find(is_other).unwrap().clone();
    if let (Sent::Commit { group, .. }, Sent::Commit { group: of_lost, .. }) = (&mut part.sent, &lost.sent) {
        *group = *of_lost;
    }
    steps.push(Step { process: lost.process, lines: (lost.lines.0, None), answer: None, ..part });
    let rejected = judge(steps).unwrap_err();
    assert!(rejected.why.contains("in part"), "{rejected}");
}

/// A process was killed while it took the shard, and had no effect. An owner before found that it had lost the shard: to
/// the take that was answered.
#[test]
fn a_take_without_an_answer_hides_no_other() {
    let mut steps = recorded();
    let takes = |shard: u16, next: u128| {
        steps.iter().any(|step| {
            let is_next = done(step).is_some_and(|answer| answer.epoch == Number(next));
            step.shard == shard && is_next && matches!(step.sent, Sent::Take { .. })
        })
    };
    let last_commit = steps.iter().rfind(|step| match &step.sent {
        Sent::Commit { epoch, .. } => done(step).is_some() && takes(step.shard, epoch.0 + 1),
        _ => false,
    });
    let owner = last_commit.unwrap().clone();
    let Sent::Commit { token, epoch, version, after, .. } = owner.sent else { unreachable!("only commits are found") };
    let fenced = Answered { result: Word::Fenced, ..Answered::default() };
    let left = Sent::Left { token, epoch, version: version[1], own: after };
    let taken = Sent::Take { token: Number(7) };
    steps.push(Step { lines: (usize::MAX - 1, Some(usize::MAX)), sent: left, answer: Some(fenced), ..owner.clone() });
    steps.push(Step { process: usize::MAX, lines: (1, None), sent: taken, answer: None, ..owner });
    judge(steps).unwrap();
}

/// The next owner opened the account that only this commit explains, and released the shard; two more followed. A take of
/// theirs does not come before that account.
#[test]
fn a_commit_without_an_answer_is_found_before_the_next_owners() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/late-commit");
    let judged: Vec<Judged> = judge_again(&kept).unwrap().into_iter().map(|(_, judged)| judged.unwrap()).collect();
    assert_eq!(judged.last().map(|judged| judged.unanswered), Some(1), "the commit took effect");
}

/// A fault may have rewound Redis, and each cursor may be any: its numbers still give the order.
#[test]
fn publishers_of_three_processes_move_a_cursor_in_its_order() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torn-log");
    for (round, judged) in judge_again(&kept).unwrap() {
        let judged = judged.unwrap_or_else(|why| panic!("round {}: {why}", round.round));
        assert!(judged.steps > 0, "round {} has steps", round.round);
    }
}

/// Each process may be killed between a step and its answer: the trace is as right without it.
#[test]
fn a_last_step_of_a_process_needs_no_answer() {
    let steps = recorded();
    let mut dropped = 0;
    for at in 0..steps.len() {
        let is_behind = |other: &Step| {
            other.process == steps[at].process && other.shard == steps[at].shard && other.lines.0 > steps[at].lines.0
        };
        if done(&steps[at]).is_none() || steps.iter().any(is_behind) {
            continue;
        }
        let mut steps = steps.clone();
        (steps[at].answer, steps[at].lines.1) = (None, None);
        dropped += 1;
        let judged = judge(steps.clone());
        assert!(judged.is_ok(), "{:?}: {judged:?}", steps[at]);
    }
    assert!(dropped >= 10, "only {dropped} processes end with such a step");
}

/// Beside each step, one of a process that was killed before it had any effect.
#[test]
fn steps_without_any_effect_hide_no_others() {
    let steps = recorded();
    let killed = steps.iter().enumerate().map(|(at, step)| {
        let mut killed = Step { process: 1_000 + at, lines: (1, None), answer: None, ..step.clone() };
        if let Sent::Take { token } = &mut killed.sent {
            token.0 += 1;
        }
        killed
    });
    let is_owners = |step: &Step| !matches!(step.sent, Sent::Append { .. } | Sent::Start { .. } | Sent::Publish { .. });
    let mut all = steps.clone();
    all.extend(killed.filter(is_owners));
    let judged = judge(all).unwrap();
    assert_eq!(judged, judge(steps).unwrap(), "no more steps took effect");
}

/// Two policies without an answer explain that an owner found a newer one. With the first, its next commit does not fit.
#[test]
fn another_explanation_is_tried_where_the_first_leads_to_no_end() {
    let mut steps = recorded();
    let is_last = |at: &usize| {
        let is_commit = |step: &Step| step.shard == steps[*at].shard && matches!(step.sent, Sent::Commit { .. });
        is_commit(&steps[*at]) && done(&steps[*at]).is_some() && !steps[*at + 1..].iter().any(is_commit)
    };
    let last = (0..steps.len()).rfind(is_last).unwrap();
    let commit = steps[last].clone();
    let Sent::Commit { token, epoch, version: old, before, .. } = commit.sent.clone() else {
        unreachable!("it is one")
    };
    if let Sent::Commit { version, .. } = &mut steps[last].sent {
        *version = [Number(old[1].0 + 1); 2];
    }
    let answer = Answered { result: Word::OldPolicy, ..Answered::default() };
    let line = commit.lines.0 - 1;
    let sent = Sent::Left { token, epoch, version: old[1], own: before };
    steps.insert(last, Step { lines: (line, Some(line)), sent, answer: Some(answer), ..commit.clone() });
    for (process, higher) in [(1_000, 2), (1_001, 1)] {
        let sent = Sent::Policy { token, epoch, version: Number(old[1].0 + higher) };
        steps.push(Step { process, lines: (1, None), sent, answer: None, ..commit.clone() });
    }
    judge(steps).unwrap();
}

/// Without its round's flags, no step shows a rewind: the first one behind it is rejected.
#[test]
fn kept_rounds_are_judged_again_by_what_their_faults_may_have_done() {
    for name in ["deleted-hash", "deleted-stream"] {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
        let judged = judge_again(&kept).unwrap();
        assert!(judged.len() > 1, "{name} has rounds");
        for (round, judged) in judged {
            let judged = judged.unwrap_or_else(|why| panic!("{name}, round {}: {why}", round.round));
            assert!(judged.steps > 0, "{name}, round {} has steps", round.round);
        }
        assert!(judge(steps_of(name)).is_err(), "{name}: the faults have done something");
    }
}
