//! What to do about a pipeline's migration: pure.
//!
//! Jobs are created and never changed: each attempt is a Job of its own. Must never call a schema migrated on anything but
//! a Job whose own container ended well, and never start a second Job while the container of one may run.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use millrace_crds::Migrated;
use serde::Deserialize;

use crate::{backoff::doubled, facts::Problem};

/// Before the second attempt; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A Job of this pipeline's migration, as it was last seen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attempt {
    /// The Job's name.
    pub(crate) name: String,
    /// What it depends on, hashed.
    pub(crate) key: String,
    /// Which attempt it is, from 1.
    pub(crate) number: u32,
    /// What its pod is made of, hashed.
    pub(crate) template: String,
    /// Where it is.
    pub(crate) state: State,
    /// Whether its container runs or ever ran.
    pub(crate) begun: bool,
    /// Whether the Job itself has not ended: containers of others may still run in its pod.
    pub(crate) open: bool,
    /// For how long it has no pod, in seconds; `None` when it has one or has ended.
    pub(crate) podless_seconds: Option<i64>,
    /// What its pod left when it ended.
    pub(crate) outcome: Option<Outcome>,
    /// What of its pod keeps it from running, such as an image that cannot be pulled.
    pub(crate) trouble: Option<Problem>,
}

/// Where a Job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It may still end well.
    Running,
    /// It ended well, at this time.
    Succeeded(Timestamp),
    /// It failed, at this time.
    Failed(Timestamp),
}

/// A Job's termination message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Outcome {
    /// A stable word.
    pub(crate) reason: String,
    /// What to look at.
    pub(crate) message: String,
    /// The pipeline's id.
    pub(crate) pipeline_id: Option<String>,
    /// Contracting steps that wait until no older pod is left.
    pub(crate) contract: u32,
}

/// Where the migration stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Stand {
    /// The schema is right for these images.
    Done {
        /// Contracting steps that wait.
        contract: u32,
    },
    /// This attempt is to be created.
    Create(u32),
    /// A Job runs, or cannot be made; why it does not come to an end, where that is known.
    Running(Option<Problem>),
    /// The last attempt failed; the next comes after this time.
    Failed {
        /// Why.
        problem: Problem,
        /// How long until the next attempt.
        next: Duration,
    },
}

impl Attempt {
    /// Whether it waits with a pod that is no longer wanted: a Job whose container never ran may be replaced at once.
    #[must_use]
    pub(crate) fn is_outlived(&self, template: &str) -> bool {
        self.state == State::Running && !self.begun && self.template != template
    }

    fn succeeded(&self) -> bool {
        matches!(self.state, State::Succeeded(_))
    }
}

impl Stand {
    /// Whether pods of the image may be started.
    #[must_use]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

/// What to do: `key` is what the migration depends on now, `migrated` what the schema was last migrated by, `missing` since
/// when pods report a schema that is not there although it was.
#[must_use]
pub(crate) fn judge(
    key: &str,
    attempts: &[Attempt],
    migrated: Option<&Migrated>,
    missing: Option<Timestamp>,
    now: Timestamp,
) -> Stand {
    let last = attempts.iter().filter(|attempt| attempt.key == key).max_by_key(|attempt| attempt.number);
    let known = migrated.filter(|migrated| migrated.key == key);
    let Some(last) = last else {
        // The Job may be gone long after it did its work.
        return match known {
            Some(migrated) if missing.is_none() => Stand::Done { contract: migrated.contract },
            _ => Stand::Create(1),
        };
    };
    match last.state {
        State::Running => Stand::Running(last.trouble.clone()),
        State::Succeeded(at) => {
            let contract = last.outcome.as_ref().map_or(0, |outcome| outcome.contract);
            // What pods missed before the Job ended is there by now; what they continue missing is done again.
            let again =
                missing.is_some_and(|since| since > at && seconds(at, now) >= LONGEST_PAUSE.as_secs_f64() / 10.0);
            if again { Stand::Create(last.number + 1) } else { Stand::Done { contract } }
        }
        State::Failed(at) => {
            let pause = doubled(FIRST_PAUSE, last.number.saturating_sub(1), LONGEST_PAUSE);
            // Clocks differ: the API server's says when it failed, this machine's what time it is.
            let left = (pause.as_secs_f64() - seconds(at, now)).min(pause.as_secs_f64());
            if left <= 0.0 {
                return Stand::Create(last.number + 1);
            }
            let problem = last
                .outcome
                .as_ref()
                .map(|outcome| Problem { reason: outcome.reason.clone(), message: outcome.message.clone() });
            let problem = problem.filter(|problem| !problem.reason.is_empty()).or_else(|| last.trouble.clone());
            let problem = problem.unwrap_or_else(|| {
                let left = format!("Job {0} failed and left no reason; kubectl logs job/{0} tells more", last.name);
                Problem::new("MigrationFailed", left)
            });
            Stand::Failed { problem, next: Duration::from_secs_f64(left) }
        }
    }
}

/// Jobs that nothing needs any more: all but the newest attempt of each wanted key, once there is one of the first or its
/// work is `done`.
#[must_use]
pub(crate) fn outdated<'a>(keys: &[&str], attempts: &'a [Attempt], done: bool) -> Vec<&'a Attempt> {
    let newest = |key: &str| attempts.iter().filter(|attempt| attempt.key == key).map(|attempt| attempt.number).max();
    if !done && keys.first().and_then(|key| newest(key)).is_none() {
        return Vec::new();
    }
    let stays = |attempt: &&Attempt| keys.iter().any(|key| attempt.key == *key && Some(attempt.number) == newest(key));
    attempts.iter().filter(|attempt| !stays(attempt)).collect()
}

/// Jobs whose work is noted in the status and whose pod only others keep: they are removed, so that the pod ends. `key` is
/// of the migration, `contract` of its contracting steps.
#[must_use]
pub(crate) fn lingering<'a>(
    key: &str,
    contract: &str,
    attempts: &'a [Attempt],
    migrated: Option<&Migrated>,
) -> Vec<&'a Attempt> {
    let Some(known) = migrated.filter(|migrated| migrated.key == key) else { return Vec::new() };
    let lingers = |key: &str| attempts.iter().any(|attempt| attempt.key == key && attempt.succeeded() && attempt.open);
    // With the Job of the contracting steps goes that of the migration, which says that they are still to be done.
    let contracted = known.contract == 0 && lingers(contract);
    let goes = |attempt: &&Attempt| {
        attempt.succeeded()
            && (attempt.key == contract && contracted || attempt.key == key && (contracted || lingers(key)))
    };
    attempts.iter().filter(goes).collect()
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn attempt(key: &str, number: u32, state: State) -> Attempt {
        Attempt {
            name: format!("p-migrate-{key}-{number}"),
            key: key.into(),
            number,
            template: "t".into(),
            state,
            begun: true,
            open: false,
            podless_seconds: None,
            outcome: None,
            trouble: None,
        }
    }

    fn known(key: &str) -> Migrated {
        Migrated { image: "i".into(), key: key.into(), contract: 0 }
    }

    #[test]
    fn one_attempt_at_a_time_until_one_ends_well() {
        assert_eq!(judge("k", &[], None, None, at(0)), Stand::Create(1));
        assert_eq!(judge("k", &[attempt("old", 7, State::Running)], None, None, at(0)), Stand::Create(1));
        assert_eq!(judge("k", &[attempt("k", 1, State::Running)], None, None, at(0)), Stand::Running(None));
        let done = attempt("k", 1, State::Succeeded(at(0)));
        assert_eq!(judge("k", &[done], None, None, at(9)), Stand::Done { contract: 0 });
        assert_eq!(judge("k", &[], Some(&known("k")), None, at(9)), Stand::Done { contract: 0 }, "the Job is gone");
        assert_eq!(judge("k", &[], Some(&known("older")), None, at(9)), Stand::Create(1), "another image");
    }

    #[test]
    fn a_failure_says_why_and_is_tried_again_later_and_later() {
        let mut failed = attempt("k", 1, State::Failed(at(0)));
        let Stand::Failed { problem, next } = judge("k", &[failed.clone()], None, None, at(1)) else { panic!() };
        assert!(problem.message.contains("kubectl logs job/p-migrate-k-1"), "{problem:?}");
        assert_eq!(next, Duration::from_secs(4));
        assert_eq!(judge("k", &[failed.clone()], None, None, at(5)), Stand::Create(2));
        failed.outcome = Some(Outcome { reason: "SchemaTooNew".into(), message: "m".into(), ..Outcome::default() });
        failed.number = 30;
        let Stand::Failed { problem, next } = judge("k", &[failed.clone()], None, None, at(0)) else { panic!() };
        assert_eq!((problem.reason.as_str(), next), ("SchemaTooNew", LONGEST_PAUSE));
        assert_eq!(judge("k", &[failed], Some(&known("older")), None, at(300)), Stand::Create(31));
    }

    #[test]
    fn a_schema_that_disappeared_is_made_again_and_not_in_a_loop() {
        let done = [attempt("k", 2, State::Succeeded(at(0)))];
        let missing = |since| Some(at(since));
        assert_eq!(judge("k", &done, Some(&known("k")), missing(-5), at(60)), Stand::Done { contract: 0 });
        assert_eq!(judge("k", &done, Some(&known("k")), missing(5), at(10)), Stand::Done { contract: 0 });
        assert_eq!(judge("k", &done, Some(&known("k")), missing(5), at(31)), Stand::Create(3));
        assert_eq!(judge("k", &[], Some(&known("k")), missing(5), at(31)), Stand::Create(1));
    }

    #[test]
    fn a_job_that_never_ran_is_replaced_when_its_pod_changes() {
        let mut waits = Attempt { begun: false, ..attempt("k", 1, State::Running) };
        assert!(waits.is_outlived("other") && !waits.is_outlived("t"));
        waits.begun = true;
        assert!(!waits.is_outlived("other"));
    }

    #[test]
    fn a_job_that_a_sidecar_keeps_continuesce_the_status_has_its_work() {
        let open = |key: &str| Attempt { open: true, ..attempt(key, 1, State::Succeeded(at(0))) };
        let names = |attempts: &[Attempt], migrated: Option<Migrated>| {
            let found = lingering("k", "c", attempts, migrated.as_ref());
            found.into_iter().map(|attempt| attempt.key.clone()).collect::<Vec<_>>()
        };
        let noted = |contract| Some(Migrated { contract, ..known("k") });
        assert!(names(&[open("k")], None).is_empty(), "the status has it not yet");
        assert!(names(&[open("k")], Some(known("older"))).is_empty());
        assert_eq!(names(&[open("k")], noted(2)), ["k"]);
        assert!(names(&[attempt("k", 1, State::Succeeded(at(0)))], noted(0)).is_empty(), "it has ended");
        assert!(names(&[Attempt { open: true, ..attempt("k", 1, State::Failed(at(0))) }], noted(0)).is_empty());
        // Left alone, the migration's Job would ask for the contracting steps again.
        let both = [attempt("k", 1, State::Succeeded(at(0))), open("c")];
        assert!(names(&both, noted(2)).is_empty());
        assert_eq!(names(&both, noted(0)), ["k", "c"]);
    }

    #[test]
    fn only_the_newest_attempt_of_what_is_wanted_stays() {
        let all = [attempt("old", 9, State::Running), attempt("k", 1, State::Running), attempt("k", 2, State::Running)];
        let names: Vec<_> =
            outdated(&["k", "contract"], &all, false).into_iter().map(|attempt| attempt.name.as_str()).collect();
        assert_eq!(names, ["p-migrate-old-9", "p-migrate-k-1"]);
        assert!(outdated(&["new"], &all, false).is_empty(), "nothing goes before its successor is there");
        assert_eq!(outdated(&["known"], &all, true).len(), 3, "the successor's Job is gone, and its work stands");
    }
}
