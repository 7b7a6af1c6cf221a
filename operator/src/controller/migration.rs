//! Decides the next step of a pipeline's migration: pure.
//!
//! Jobs are created and never changed: each attempt is a Job of its own. A schema must never count as migrated by
//! anything but a Job whose own container ended with 0, and no second Job may start while the container of one may run.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use millrace_crds::{
    Migrated, Reason,
    status_api::{Problem, TerminationMessage},
};

use crate::backoff::doubled;

/// The back-off before the second attempt; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A Job of this pipeline's migration, as it was last seen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attempt {
    /// The Job's name.
    pub(crate) name: String,
    /// The hash of everything that the migration depends on.
    pub(crate) key: String,
    /// The number of the attempt, from 1.
    pub(crate) number: u32,
    /// The hash of its pod's template.
    pub(crate) template: String,
    /// The state of the Job.
    pub(crate) state: JobState,
    /// Whether its container runs or ever ran.
    pub(crate) begun: bool,
    /// Whether the Job itself has not ended: containers of others may still run in its pod.
    pub(crate) open: bool,
    /// For how long it has no pod, in seconds; `None` when it has one or has ended.
    pub(crate) podless_seconds: Option<i64>,
    /// The message of its container that ended.
    pub(crate) message: Option<TerminationMessage>,
    /// The problem that keeps its pod from running, such as an image that cannot be pulled.
    pub(crate) trouble: Option<Problem>,
}

/// The state of a Job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobState {
    /// It may still succeed.
    Running,
    /// It succeeded, at this time.
    Succeeded(Timestamp),
    /// It failed, at this time.
    Failed(Timestamp),
}

/// The state of a migration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MigrationState {
    /// The schema fits the image.
    Done {
        /// The number of contracting steps that wait.
        contract: u32,
    },
    /// The Job of this attempt has to be created.
    Create(u32),
    /// A Job runs, or cannot be created; with the problem that keeps it from ending, where one is known.
    Running(Option<Problem>),
    /// The last attempt failed; another follows.
    Failed {
        /// The cause.
        problem: Problem,
        /// The time until the next attempt.
        next: Duration,
    },
}

impl Attempt {
    /// Whether its container never ran and `template`, the hash of the wanted pod, is another: such a Job may be
    /// replaced at once.
    #[must_use]
    pub(crate) fn is_replaceable(&self, template: &str) -> bool {
        self.state == JobState::Running && !self.begun && self.template != template
    }

    fn succeeded(&self) -> bool {
        matches!(self.state, JobState::Succeeded(_))
    }
}

impl MigrationState {
    /// Whether pods of the image may start.
    #[must_use]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

/// Decides the state of the migration: `key` is the hash of everything that it depends on now, `migrated` the last
/// migration in the status, `missing` the time since when pods report that the schema is missing.
#[must_use]
pub(crate) fn decide(
    key: &str,
    attempts: &[Attempt],
    migrated: Option<&Migrated>,
    missing: Option<Timestamp>,
    now: Timestamp,
) -> MigrationState {
    let last = attempts.iter().filter(|attempt| attempt.key == key).max_by_key(|attempt| attempt.number);
    let known = migrated.filter(|migrated| migrated.key == key);
    let Some(last) = last else {
        // The Job may have been deleted long after it succeeded.
        return match known {
            Some(migrated) if missing.is_none() => MigrationState::Done { contract: migrated.contract },
            _ => MigrationState::Create(1),
        };
    };
    match last.state {
        JobState::Running => MigrationState::Running(last.trouble.clone()),
        JobState::Succeeded(at) => {
            let contract = last.message.as_ref().and_then(|message| message.contract).unwrap_or(0);
            let contract = u32::try_from(contract).unwrap_or(u32::MAX);
            // A schema that was missing before the Job ended exists by now; one that is missing since then is migrated
            // again.
            let is_missing =
                missing.is_some_and(|since| since > at && seconds(at, now) >= LONGEST_PAUSE.as_secs_f64() / 10.0);
            if is_missing { MigrationState::Create(last.number + 1) } else { MigrationState::Done { contract } }
        }
        JobState::Failed(at) => {
            let pause = doubled(FIRST_PAUSE, last.number.saturating_sub(1), LONGEST_PAUSE);
            // Clocks differ: the time of the failure is the API server's, the current time is this machine's.
            let left = (pause.as_secs_f64() - seconds(at, now)).min(pause.as_secs_f64());
            if left <= 0.0 {
                return MigrationState::Create(last.number + 1);
            }
            let reported = last.message.as_ref().filter(|message| !message.reason.as_str().is_empty());
            let reported = reported.map(|message| Problem::new(message.reason.clone(), &message.message));
            let problem = reported.or_else(|| last.trouble.clone()).unwrap_or_else(|| {
                let message = format!("Job {0} failed without a reason; kubectl logs job/{0} shows more", last.name);
                Problem::new(Reason::MigrationFailed, message)
            });
            MigrationState::Failed { problem, next: Duration::from_secs_f64(left) }
        }
    }
}

/// Jobs that are no longer needed: all but the newest attempt of each wanted key, once the first key has an attempt or
/// its migration is `done`.
#[must_use]
pub(crate) fn outdated<'a>(keys: &[&str], attempts: &'a [Attempt], done: bool) -> Vec<&'a Attempt> {
    let newest = |key: &str| attempts.iter().filter(|attempt| attempt.key == key).map(|attempt| attempt.number).max();
    if !done && keys.first().and_then(|key| newest(key)).is_none() {
        return Vec::new();
    }
    let stays = |attempt: &&Attempt| keys.iter().any(|key| attempt.key == *key && Some(attempt.number) == newest(key));
    attempts.iter().filter(|attempt| !stays(attempt)).collect()
}

/// Jobs whose result the status holds and that only containers of others keep open: they are removed, so that their
/// pods end. `key` is the key of the migration, `contract` that of its contracting steps.
#[must_use]
pub(crate) fn lingering<'a>(
    key: &str,
    contract: &str,
    attempts: &'a [Attempt],
    migrated: Option<&Migrated>,
) -> Vec<&'a Attempt> {
    let Some(known) = migrated.filter(|migrated| migrated.key == key) else { return Vec::new() };
    let lingers = |key: &str| attempts.iter().any(|attempt| attempt.key == key && attempt.succeeded() && attempt.open);
    // The migration's Job is removed with that of the contracting steps: its message names them as waiting.
    let contracted = known.contract == 0 && lingers(contract);
    let is_lingering = |attempt: &&Attempt| {
        attempt.succeeded()
            && (attempt.key == contract && contracted || attempt.key == key && (contracted || lingers(key)))
    };
    attempts.iter().filter(is_lingering).collect()
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

    fn attempt(key: &str, number: u32, state: JobState) -> Attempt {
        Attempt {
            name: format!("p-migrate-{key}-{number}"),
            key: key.into(),
            number,
            template: "t".into(),
            state,
            begun: true,
            open: false,
            podless_seconds: None,
            message: None,
            trouble: None,
        }
    }

    fn known(key: &str) -> Migrated {
        Migrated { image: "i".into(), key: key.into(), contract: 0 }
    }

    #[test]
    fn one_attempt_runs_at_a_time_until_one_succeeds() {
        assert_eq!(decide("k", &[], None, None, at(0)), MigrationState::Create(1));
        assert_eq!(decide("k", &[attempt("old", 7, JobState::Running)], None, None, at(0)), MigrationState::Create(1));
        assert_eq!(
            decide("k", &[attempt("k", 1, JobState::Running)], None, None, at(0)),
            MigrationState::Running(None)
        );
        let done = attempt("k", 1, JobState::Succeeded(at(0)));
        assert_eq!(decide("k", &[done], None, None, at(9)), MigrationState::Done { contract: 0 });
        assert_eq!(
            decide("k", &[], Some(&known("k")), None, at(9)),
            MigrationState::Done { contract: 0 },
            "the Job is deleted"
        );
        assert_eq!(decide("k", &[], Some(&known("older")), None, at(9)), MigrationState::Create(1), "another image");
    }

    #[test]
    fn a_failure_names_its_cause_and_is_retried_less_and_less_often() {
        let mut failed = attempt("k", 1, JobState::Failed(at(0)));
        let MigrationState::Failed { problem, next } = decide("k", &[failed.clone()], None, None, at(1)) else {
            panic!()
        };
        assert!(problem.message.contains("kubectl logs job/p-migrate-k-1"), "{problem:?}");
        assert_eq!(next, Duration::from_secs(4));
        assert_eq!(decide("k", &[failed.clone()], None, None, at(5)), MigrationState::Create(2));
        failed.message = serde_json::from_str(r#"{"reason": "SchemaTooNew", "message": "m"}"#).unwrap();
        failed.number = 30;
        let MigrationState::Failed { problem, next } = decide("k", &[failed.clone()], None, None, at(0)) else {
            panic!()
        };
        assert_eq!((problem.reason, next), (Reason::SchemaTooNew, LONGEST_PAUSE));
        assert_eq!(decide("k", &[failed], Some(&known("older")), None, at(300)), MigrationState::Create(31));
    }

    #[test]
    fn a_missing_schema_is_migrated_again_but_not_in_a_loop() {
        let done = [attempt("k", 2, JobState::Succeeded(at(0)))];
        let missing = |since| Some(at(since));
        assert_eq!(decide("k", &done, Some(&known("k")), missing(-5), at(60)), MigrationState::Done { contract: 0 });
        assert_eq!(decide("k", &done, Some(&known("k")), missing(5), at(10)), MigrationState::Done { contract: 0 });
        assert_eq!(decide("k", &done, Some(&known("k")), missing(5), at(31)), MigrationState::Create(3));
        assert_eq!(decide("k", &[], Some(&known("k")), missing(5), at(31)), MigrationState::Create(1));
    }

    #[test]
    fn a_job_that_never_ran_is_replaced_when_its_pod_changes() {
        let mut waits = Attempt { begun: false, ..attempt("k", 1, JobState::Running) };
        assert!(waits.is_replaceable("other") && !waits.is_replaceable("t"));
        waits.begun = true;
        assert!(!waits.is_replaceable("other"));
    }

    #[test]
    fn a_job_that_a_sidecar_keeps_open_goes_once_the_status_has_its_result() {
        let open = |key: &str| Attempt { open: true, ..attempt(key, 1, JobState::Succeeded(at(0))) };
        let names = |attempts: &[Attempt], migrated: Option<Migrated>| {
            let found = lingering("k", "c", attempts, migrated.as_ref());
            found.into_iter().map(|attempt| attempt.key.clone()).collect::<Vec<_>>()
        };
        let noted = |contract| Some(Migrated { contract, ..known("k") });
        assert!(names(&[open("k")], None).is_empty(), "the status does not hold it yet");
        assert!(names(&[open("k")], Some(known("older"))).is_empty());
        assert_eq!(names(&[open("k")], noted(2)), ["k"]);
        assert!(names(&[attempt("k", 1, JobState::Succeeded(at(0)))], noted(0)).is_empty(), "it has ended");
        assert!(names(&[Attempt { open: true, ..attempt("k", 1, JobState::Failed(at(0))) }], noted(0)).is_empty());
        // If it stayed, the migration's Job would cause the contracting steps again.
        let both = [attempt("k", 1, JobState::Succeeded(at(0))), open("c")];
        assert!(names(&both, noted(2)).is_empty());
        assert_eq!(names(&both, noted(0)), ["k", "c"]);
    }

    #[test]
    fn only_the_newest_attempt_of_each_wanted_key_stays() {
        let all = [
            attempt("old", 9, JobState::Running),
            attempt("k", 1, JobState::Running),
            attempt("k", 2, JobState::Running),
        ];
        let names: Vec<_> =
            outdated(&["k", "contract"], &all, false).into_iter().map(|attempt| attempt.name.as_str()).collect();
        assert_eq!(names, ["p-migrate-old-9", "p-migrate-k-1"]);
        assert!(outdated(&["new"], &all, false).is_empty(), "no Job goes before its successor exists");
        assert_eq!(outdated(&["known"], &all, true).len(), 3, "the successor's Job is deleted, its result is held");
    }
}
