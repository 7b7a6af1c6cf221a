//! The deletion of a pipeline: take no more records, apply the queued ones, publish their outcomes, remove the
//! finalizer. Pure except for the memory.
//!
//! It must never create anything but the Job of a purge, and never remove the finalizer in silence while records wait:
//! an Event names their number, and they stay in Redis.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use millrace_crds::{DeletionPolicy, Reason, status_api::Problem};

use super::{
    build::{self, Kind},
    condition::{self, ConditionType, Status},
    desire::{self, Desired, Goal},
    memory::Memory,
    migration::{self, MigrationState},
    observe::Observed,
    validate::Validated,
    write::Notice,
};

/// How long draining may take unless the spec sets a time, in seconds.
const DRAIN_SECONDS: u32 = 600;

/// The progress of a deletion.
#[derive(Debug)]
pub(super) struct End {
    /// When draining began.
    pub(super) since: Timestamp,
    /// The step that remains; `None` when the finalizer is to be removed.
    pub(super) remaining: Option<Problem>,
    /// The problem that keeps it.
    pub(super) problem: Option<Problem>,
    /// The cause where the data stays against the policy.
    pub(super) not_purged: Option<&'static str>,
}

/// The state of a drain.
#[derive(Debug, PartialEq, Eq)]
enum DrainState {
    /// Records or outcomes are left; with a message about them.
    Draining(String),
    /// All records are applied and all outcomes published; with a message about the step that remains.
    Drained(String),
    /// All is done, and no worker is left.
    Done,
    /// The pipeline cannot drain, or not in time; with the cause, empty where the policy asks for no drain.
    GivenUp(String),
}

impl Desired {
    /// The next step of a deletion. A purge needs the default image.
    pub(super) fn ending(
        default_image: &str,
        observed: &Observed<'_>,
        pipeline: &Validated,
        memory: &mut Memory,
    ) -> Self {
        let mut desired = Self::default();
        let policy = pipeline.spec.deletion_policy.unwrap_or_default();
        let since = observed.status.draining_since.as_ref().map_or(observed.now.time, |time| time.0);
        let state = match policy {
            DeletionPolicy::Now => DrainState::GivenUp(String::new()),
            DeletionPolicy::Drain | DeletionPolicy::Purge => desired.drain(observed, pipeline, memory, since),
        };
        let foreground = is_foreground(observed);
        let purges = policy == DeletionPolicy::Purge && !foreground;
        let mut end = End { since, remaining: None, problem: None, not_purged: None };
        if policy == DeletionPolicy::Purge && foreground {
            end.not_purged = Some("foreground deletion removes the objects that the Job needs");
        }
        match state {
            DrainState::Draining(step) => end.remaining = Some(Problem::new(Reason::Draining, step)),
            DrainState::Drained(step) => end.remaining = Some(Problem::new(Reason::Drained, step)),
            DrainState::Done | DrainState::GivenUp(_) => {
                if let DrainState::GivenUp(cause) = &state {
                    desired.events.extend(not_drained(observed, memory, cause, purges));
                }
                if purges {
                    let image = purge_image(observed, pipeline, default_image);
                    let step = desired.purge(observed, pipeline, &image, &mut end);
                    end.remaining = step.map(|step| Problem::new(Reason::Purging, step));
                }
            }
        }
        desired.goal = Goal::End(end);
        desired
    }

    /// Takes the next step of the drain, and returns its state.
    fn drain(
        &mut self,
        observed: &Observed<'_>,
        pipeline: &Validated,
        memory: &mut Memory,
        since: Timestamp,
    ) -> DrainState {
        let foreground = is_foreground(observed);
        let work = observed.work.as_ref().filter(|work| work.is_kept());
        if has_drained(observed) {
            self.scale(work, 0);
            let left = observed.pods_of("work").count();
            if left == 0 {
                return DrainState::Done;
            }
            return DrainState::Drained(format!("all records are applied; {left} workers end"));
        }
        let Some(work) = work else {
            let cause = if foreground { "foreground deletion removed the workers first" } else { "no workers exist" };
            return DrainState::GivenUp(cause.to_owned());
        };
        if foreground {
            return DrainState::GivenUp("foreground deletion does not wait for the workers".to_owned());
        }
        if work.replicas == 0 {
            return DrainState::GivenUp("replicas is 0: no workers exist to drain it".to_owned());
        }
        let longest = i64::from(pipeline.spec.drain_seconds.unwrap_or(DRAIN_SECONDS));
        if observed.now.time.duration_since(since).as_secs() >= longest {
            return DrainState::GivenUp(format!("not drained within {longest} s"));
        }
        if let Some(serve) = observed.serve.as_ref().filter(|serve| serve.is_kept() && serve.replicas > 0) {
            self.scale(Some(serve), 0);
            return DrainState::Draining("no more records are accepted".to_owned());
        }
        let serving = observed.pods_of("serve").count();
        if serving > 0 {
            memory.no_serve_since = None;
            return DrainState::Draining(format!("{serving} pods of serve finish their requests"));
        }
        let closed = *memory.no_serve_since.get_or_insert(observed.now.instant);
        // Only counts that were gathered after the last record was accepted show that none is left.
        let newest = observed.newest().filter(|response| response.gathered() > closed);
        match newest.and_then(|response| response.answer.counts) {
            None => DrainState::Draining("the number of queued records is being requested".to_owned()),
            Some(counts) if counts.backlog == 0 && counts.unpublished == 0 => {
                DrainState::Drained("all records are applied and published".to_owned())
            }
            Some(counts) => DrainState::Draining(format!(
                "{} records are queued, {} outcomes are not published",
                counts.backlog, counts.unpublished
            )),
        }
    }

    /// Removes the pipeline's data by a Job; returns the step that remains, `None` when the data is removed.
    fn purge(&mut self, observed: &Observed<'_>, pipeline: &Validated, image: &str, end: &mut End) -> Option<String> {
        // Pods that continue would write the schema's rows again.
        self.scales.clear();
        self.scale(observed.serve.as_ref(), 0);
        self.scale(observed.work.as_ref(), 0);
        // A migration that ends later would create the schema again; one whose pod others keep open would never end.
        for running in observed.migrations.iter().filter(|attempt| attempt.open) {
            self.delete_job(observed, running);
        }
        // One that starts later would find no schema; one that runs would lock its tables.
        self.unwanted.extend(desire::children(observed, Kind::CronJob));
        let ending = observed.pods.len() + observed.jobs_running;
        if ending > 0 {
            return Some(format!("{ending} pods end before the data is removed"));
        }
        let key = observed.purges.first().map(|purge| purge.key.clone()).unwrap_or_default();
        let step = "a Job removes the data".to_owned();
        match migration::decide(&key, &observed.purges, None, None, observed.now.time) {
            MigrationState::Create(number) => {
                self.job = Some(build::purge(pipeline, image, number));
                Some(step)
            }
            MigrationState::Running(problem) => {
                let wanted = |number| build::template_of(&build::purge(pipeline, image, number));
                for waits in observed.purges.iter().filter(|attempt| attempt.is_replaceable(&wanted(attempt.number))) {
                    self.delete_job(observed, waits);
                }
                end.problem = problem;
                Some(step)
            }
            MigrationState::Failed { problem, .. } => {
                let step = format!("the data is not removed yet: {}", problem.message);
                end.problem = Some(problem);
                Some(step)
            }
            MigrationState::Done { .. } => None,
        }
    }
}

fn is_foreground(observed: &Observed<'_>) -> bool {
    observed.resource.finalizers().iter().any(|finalizer| finalizer == "foregroundDeletion")
}

/// Whether the status holds that all is applied and published. It is written before the workers end: an operator that
/// starts later cannot request their `/status` any more.
fn has_drained(observed: &Observed<'_>) -> bool {
    let progressing = condition::find(&observed.status.conditions, ConditionType::Progressing, Status::True);
    let ends = [Reason::Drained, Reason::Purging];
    progressing.is_some_and(|condition| ends.iter().any(|reason| condition.reason == reason.as_str()))
}

/// The image that last migrated the schema, for it fits; else the wanted image.
fn purge_image(observed: &Observed<'_>, pipeline: &Validated, default: &str) -> String {
    let migrated = observed.status.migrated.as_ref().map(|migrated| migrated.image.clone());
    migrated.unwrap_or_else(|| pipeline.image(default).to_owned())
}

/// Reports once, as an Event, that records are left.
fn not_drained(observed: &Observed<'_>, memory: &mut Memory, cause: &str, purges: bool) -> Option<Notice> {
    if cause.is_empty() || memory.reported_not_drained {
        return None;
    }
    memory.reported_not_drained = true;
    let known = observed.status.backlog.and_then(|backlog| u64::try_from(backlog).ok());
    let left = observed.counts().map(|counts| counts.backlog).or(known);
    let backlog = left.map_or("an unknown number of records".to_owned(), |left| format!("{left} records"));
    let outcome = if purges {
        "that are queued are removed with the other data"
    } else {
        "stay queued in Redis; applying the pipeline again processes them"
    };
    let note = format!("{cause}: {backlog} {outcome}");
    Some(Notice { warning: left != Some(0), reason: Reason::NotDrained, note })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use kube::{api::ObjectMeta, core::DeserializeGuard};
    use millrace_crds::{
        RecordPipelineResource, RecordPipelineStatus,
        status_api::{PipelineCounts, ProcessStatus},
    };

    use super::*;
    use crate::{
        cache::Guarded,
        clock::Now,
        controller::{
            inactive,
            observe::{ObservedPod, Role},
        },
        facts::PodResponse,
    };

    fn role(replicas: i32) -> Option<Role> {
        let meta = ObjectMeta::default();
        Some(Role {
            meta,
            replicas,
            available: replicas,
            image: "i".to_owned(),
            template: String::new(),
            incomplete: None,
            problem: None,
        })
    }

    fn pod(component: &str, backlog: u64, now: Now) -> ObservedPod {
        let counts = Some(PipelineCounts { backlog, ..PipelineCounts::default() });
        let answer = ProcessStatus { counts, shards: Some(Vec::new()), ..ProcessStatus::default() };
        ObservedPod {
            name: component.to_owned(),
            component: component.to_owned(),
            template: String::new(),
            image: "i".to_owned(),
            address: None,
            problem: None,
            deleting: false,
            response: Some(Arc::new(PodResponse { at: now.instant, answer })),
        }
    }

    /// Serve and work run, and 3 records are queued.
    fn observed(resource: &Guarded, now: Now) -> Observed<'_> {
        Observed {
            resource,
            status: RecordPipelineStatus::default(),
            serve: role(1),
            work: role(1),
            migrations: Vec::new(),
            purges: Vec::new(),
            jobs_running: 0,
            pods: vec![pod("serve", 3, now), pod("work", 3, now)],
            children: BTreeMap::new(),
            jobs: BTreeMap::new(),
            now,
        }
    }

    fn resource() -> RecordPipelineResource {
        serde_saphyr::from_str(include_str!("../../tests/golden/minimal/pipeline.yaml")).unwrap()
    }

    fn end(desired: Desired) -> Option<Problem> {
        let Goal::End(end) = desired.goal else { panic!("{desired:?}") };
        end.remaining
    }

    #[test]
    fn a_drain_ends_after_counts_that_are_newer_than_the_last_record() {
        let (pipeline, resource) = (Validated::new(&resource()).unwrap(), DeserializeGuard(Ok(resource())));
        let begin = Now::read();
        let later = |seconds| Now { instant: begin.instant + Duration::from_secs(seconds), ..begin };
        let mut memory = Memory::new("u".to_owned(), begin);
        let mut seen = observed(&resource, begin);
        let mut step = |seen: &Observed<'_>| Desired::ending("i", seen, &pipeline, &mut memory);

        let desired = step(&seen);
        assert_eq!(desired.scales.iter().map(|scale| scale.replicas).collect::<Vec<_>>(), [0], "of serve");
        assert_eq!(end(desired).unwrap().reason, Reason::Draining);
        seen.serve = role(0);
        assert_eq!(end(step(&seen)).unwrap().message, "1 pods of serve finish their requests");
        seen.pods = vec![pod("work", 0, begin)];
        assert_eq!(end(step(&seen)).unwrap().message, "the number of queued records is being requested");
        seen.pods = vec![pod("work", 2, later(1))];
        seen.now = later(1);
        assert_eq!(end(step(&seen)).unwrap().message, "2 records are queued, 0 outcomes are not published");
        seen.pods = vec![pod("work", 0, later(1))];
        let drained = end(step(&seen)).unwrap();
        assert_eq!(drained.reason, Reason::Drained);
        seen.status.conditions = inactive::deleted(&seen.maker(1), &drained, None);
        let desired = step(&seen);
        assert_eq!(desired.scales.len(), 1, "only now the workers end");
        assert_eq!(end(desired).unwrap().message, "all records are applied; 1 workers end");
        seen.pods.clear();
        assert_eq!(end(step(&seen)), None);
    }

    #[test]
    fn a_drain_that_takes_too_long_is_reported_once() {
        let (pipeline, resource) = (Validated::new(&resource()).unwrap(), DeserializeGuard(Ok(resource())));
        let begin = Now::read();
        let mut memory = Memory::new("u".to_owned(), begin);
        let mut seen = observed(&resource, begin);
        seen.status.draining_since = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(begin.time));
        seen.now.time = Timestamp::from_second(begin.time.as_second() + i64::from(DRAIN_SECONDS) + 1).unwrap();
        let desired = Desired::ending("i", &seen, &pipeline, &mut memory);
        let notes: Vec<_> = desired.events.iter().map(|notice| notice.note.clone()).collect();
        assert_eq!(
            notes,
            ["not drained within 600 s: 3 records stay queued in Redis; applying the pipeline again processes them"]
        );
        assert_eq!(end(desired), None);
        assert!(Desired::ending("i", &seen, &pipeline, &mut memory).events.is_empty());
    }
}
