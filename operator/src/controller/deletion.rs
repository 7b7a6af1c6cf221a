//! The deletion of a pipeline: take no more records, apply the queued ones, publish their outcomes, remove the
//! finalizer.
//!
//! It must never create anything but the Job of a purge, and never remove the finalizer in silence while records wait:
//! an Event names their number, and they stay in Redis.

use std::time::Instant;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Resource as _, ResourceExt as _, runtime::controller::Action};
use millrace_crds::{DeletionPolicy, RecordPipelineResource, RecordPipelineStatus};

use super::{
    SOON, Scope,
    apply::{self, Error, Owner},
    build,
    dereference::{Role, Seen},
    inactive::{self, DRAINED, DRAINING, PURGING},
    memory::Memory,
    migration::{self, Attempt, MigrationState},
    reconcile::{collect, is_kept, refresh_facts},
    refusal,
    status::find_condition,
    write,
};
use crate::{cache::Guarded, facts::Problem, pipeline::Pipeline};

/// How long draining may take unless the spec sets a time, in seconds.
const DRAIN_SECONDS: u32 = 600;

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

/// Takes the next step of a deletion.
///
/// # Errors
/// When a request to the API server fails; the caller retries.
pub(super) async fn step(object: &Guarded, scope: &Scope, memory: &mut Memory) -> Result<Action, Error> {
    let context = &scope.context;
    let meta = object.meta();
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let resource = object.0.as_ref().ok();
    let pipeline = resource.and_then(|resource| Pipeline::new(resource).ok());
    let (Some(resource), Some(pipeline)) = (resource, pipeline) else {
        // Nothing was ever built from it that could drain in order.
        let note = "the resource is invalid: the finalizer is removed without a drain".to_owned();
        write::event(context, meta, true, "NotDrained", note).await;
        write::remove_finalizer(context, meta).await?;
        return Ok(Action::await_change());
    };
    let mut seen = Seen::of(&scope.cache, &namespace, &name, &pipeline.uid);
    refusal::add_refusals(context, memory, &namespace, &mut seen).await;
    let since = drain_start(memory, resource);
    refresh_facts(context, memory, &seen).await;
    Deletion { scope, resource, pipeline: &pipeline, seen: &seen, since }.run(memory).await
}

/// The time when draining began.
fn drain_start(memory: &Memory, resource: &RecordPipelineResource) -> Timestamp {
    let cached = resource.status.clone().unwrap_or_default();
    memory.current_status(&cached).draining_since.as_ref().map_or_else(Timestamp::now, |time| time.0)
}

/// One pass over one pipeline that is being deleted.
struct Deletion<'a> {
    scope: &'a Scope,
    resource: &'a RecordPipelineResource,
    pipeline: &'a Pipeline,
    seen: &'a Seen,
    since: Timestamp,
}

impl Deletion<'_> {
    async fn run(&self, memory: &mut Memory) -> Result<Action, Error> {
        let policy = self.pipeline.spec.deletion_policy.unwrap_or_default();
        let state = match policy {
            DeletionPolicy::Now => DrainState::GivenUp(String::new()),
            DeletionPolicy::Drain | DeletionPolicy::Purge => self.drain(memory).await?,
        };
        let purges = policy == DeletionPolicy::Purge && !self.is_foreground();
        let mut problems = Vec::new();
        let reason = match state {
            DrainState::Draining(_) => DRAINING,
            DrainState::Drained(_) => DRAINED,
            DrainState::Done | DrainState::GivenUp(_) => PURGING,
        };
        let remaining = match state {
            DrainState::Draining(step) | DrainState::Drained(step) => Some(step),
            DrainState::GivenUp(cause) => {
                self.report_not_drained(memory, &cause, purges).await;
                if purges { self.purge(&mut problems).await? } else { None }
            }
            DrainState::Done if purges => self.purge(&mut problems).await?,
            DrainState::Done => None,
        };
        let terminating = problems.iter().any(|problem| problem.reason == "NamespaceTerminating");
        let Some(remaining) = remaining.filter(|_| !terminating) else {
            let not_purged = match policy {
                DeletionPolicy::Purge if !purges => Some("foreground deletion removes the objects that the Job needs"),
                DeletionPolicy::Purge if terminating => Some("no Job can start in a namespace that is being deleted"),
                _ => None,
            };
            return self.finish(not_purged).await;
        };
        self.write_status(memory, &Problem::new(reason, remaining), &problems).await?;
        Ok(Action::requeue(SOON))
    }

    /// Removes the finalizer. `not_purged` is the cause where the data stays against the policy.
    async fn finish(&self, not_purged: Option<&str>) -> Result<Action, Error> {
        let (context, meta) = (&self.scope.context, self.resource.meta());
        if let Some(cause) = not_purged {
            let note = format!("{cause}: the data stays in Postgres and Redis");
            write::event(context, meta, true, "NotPurged", note).await;
        }
        write::event(context, meta, false, "Deleted", "the finalizer is removed".to_owned()).await;
        write::remove_finalizer(context, meta).await?;
        context.drop_memory(&self.pipeline.namespace, &self.pipeline.name);
        Ok(Action::await_change())
    }

    fn is_foreground(&self) -> bool {
        self.resource.finalizers().iter().any(|finalizer| finalizer == "foregroundDeletion")
    }

    fn owner(&self) -> Owner<'_> {
        Owner { namespace: &self.pipeline.namespace, uid: &self.pipeline.uid }
    }

    /// Reports once, as an Event, that records are left.
    async fn report_not_drained(&self, memory: &mut Memory, cause: &str, purges: bool) {
        if cause.is_empty() || memory.reported_not_drained {
            return;
        }
        memory.reported_not_drained = true;
        let counts = memory.facts.newest().and_then(|response| response.answer.counts);
        let cached = self.resource.status.as_ref().and_then(|status| status.backlog);
        let left = counts.map(|counts| counts.backlog).or(cached);
        let backlog = left.map_or("an unknown number of records".to_owned(), |left| format!("{left} records"));
        let outcome = if purges {
            "that are queued are removed with the other data"
        } else {
            "stay queued in Redis; applying the pipeline again processes them"
        };
        let note = format!("{cause}: {backlog} {outcome}");
        write::event(&self.scope.context, self.resource.meta(), left != Some(0), "NotDrained", note).await;
    }

    /// Takes the next step of the drain, and returns its state.
    async fn drain(&self, memory: &mut Memory) -> Result<DrainState, Error> {
        let foreground = self.is_foreground();
        let work = self.seen.work.as_ref().filter(|work| is_kept(&work.meta, &self.pipeline.uid));
        if self.has_drained() {
            return self.stop_workers(work).await;
        }
        let Some(work) = work else {
            let cause = if foreground { "foreground deletion removed the workers first" } else { "no workers exist" };
            return Ok(DrainState::GivenUp(cause.to_owned()));
        };
        if foreground {
            return Ok(DrainState::GivenUp("foreground deletion does not wait for the workers".to_owned()));
        }
        if work.replicas == 0 {
            return Ok(DrainState::GivenUp("replicas is 0: no workers exist to drain it".to_owned()));
        }
        let longest = i64::from(self.pipeline.spec.drain_seconds.unwrap_or(DRAIN_SECONDS));
        if Timestamp::now().duration_since(self.since).as_secs() >= longest {
            return Ok(DrainState::GivenUp(format!("not drained within {longest} s")));
        }
        let serve = self.seen.serve.as_ref().filter(|serve| serve.replicas > 0);
        if let Some(serve) = serve.filter(|serve| is_kept(&serve.meta, &self.pipeline.uid)) {
            apply::scale(&self.scope.context, self.owner(), &serve.meta, 0).await?;
            return Ok(DrainState::Draining("no more records are accepted".to_owned()));
        }
        let serving = self.seen.pods_of("serve").count();
        if serving > 0 {
            memory.no_serve_since = None;
            return Ok(DrainState::Draining(format!("{serving} pods of serve finish their requests")));
        }
        let closed = *memory.no_serve_since.get_or_insert_with(Instant::now);
        // Only counts that were gathered after the last record was accepted show that none is left.
        let newest = memory.facts.newest().filter(|response| response.gathered() > closed);
        Ok(match newest.and_then(|response| response.answer.counts) {
            None => DrainState::Draining("the number of queued records is being requested".to_owned()),
            Some(counts) if counts.backlog == 0 && counts.unpublished == 0 => {
                DrainState::Drained("all records are applied and published".to_owned())
            }
            Some(counts) => DrainState::Draining(format!(
                "{} records are queued, {} outcomes are not published",
                counts.backlog, counts.unpublished
            )),
        })
    }

    /// Whether the status holds that all is applied and published. It is written before the workers end: an operator
    /// that starts later cannot request their `/status` any more.
    fn has_drained(&self) -> bool {
        let conditions = self.resource.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let progressing = find_condition(conditions, "Progressing", "True");
        progressing.is_some_and(|condition| [DRAINED, PURGING].contains(&condition.reason.as_str()))
    }

    async fn stop_workers(&self, work: Option<&Role>) -> Result<DrainState, Error> {
        if let Some(work) = work.filter(|work| work.replicas > 0) {
            apply::scale(&self.scope.context, self.owner(), &work.meta, 0).await?;
        }
        let left = self.seen.pods_of("work").count();
        Ok(if left == 0 {
            DrainState::Done
        } else {
            DrainState::Drained(format!("all records are applied; {left} workers end"))
        })
    }

    /// Removes the pipeline's data by a Job; returns the step that remains, `None` when the data is removed.
    async fn purge(&self, problems: &mut Vec<Problem>) -> Result<Option<String>, Error> {
        let seen = self.seen;
        // Pods that continue would write the schema's rows again.
        for role in [&seen.serve, &seen.work].into_iter().flatten() {
            if role.replicas > 0 && is_kept(&role.meta, &self.pipeline.uid) {
                apply::scale(&self.scope.context, self.owner(), &role.meta, 0).await?;
            }
        }
        // A migration that ends later would create the schema again; one whose pod others keep open would never end.
        for running in seen.migrations.iter().filter(|attempt| attempt.open) {
            self.delete_job(running).await?;
        }
        let ending = seen.pods.len() + seen.migrating;
        if ending > 0 {
            return Ok(Some(format!("{ending} pods end before the data is removed")));
        }
        let image = self.purge_image();
        let key = seen.purges.first().map(|purge| purge.key.clone()).unwrap_or_default();
        match migration::decide(&key, &seen.purges, None, None, Timestamp::now()) {
            MigrationState::Create(number) => {
                let job = build::purge(self.pipeline, &image, number);
                collect(problems, apply::create_job(&self.scope.context, self.owner(), &job).await)?;
                Ok(Some("a Job removes the data".to_owned()))
            }
            MigrationState::Running(problem) => {
                let wanted = |number| build::template_hash(&build::purge(self.pipeline, &image, number));
                for waits in seen.purges.iter().filter(|attempt| attempt.is_replaceable(&wanted(attempt.number))) {
                    self.delete_job(waits).await?;
                }
                problems.extend(problem);
                Ok(Some("a Job removes the data".to_owned()))
            }
            MigrationState::Failed { problem, .. } => {
                let step = format!("the data is not removed yet: {}", problem.message);
                problems.push(problem);
                Ok(Some(step))
            }
            MigrationState::Done { .. } => Ok(None),
        }
    }

    /// The image that last migrated the schema, for it fits; else the wanted image.
    fn purge_image(&self) -> String {
        let migrated = self.resource.status.as_ref().and_then(|status| status.migrated.as_ref());
        let wanted = || self.pipeline.spec.image.clone();
        let default = || self.scope.context.tuning.default_image.clone();
        migrated.map(|migrated| migrated.image.clone()).or_else(wanted).unwrap_or_else(default)
    }

    async fn delete_job(&self, attempt: &Attempt) -> Result<(), Error> {
        let Some(meta) = self.seen.jobs.get(&attempt.name) else { return Ok(()) };
        apply::delete(&self.scope.context, self.owner(), build::Kind::Job, &attempt.name, meta).await
    }

    async fn write_status(&self, memory: &mut Memory, progress: &Problem, problems: &[Problem]) -> Result<(), Error> {
        let cached = self.resource.status.clone().unwrap_or_default();
        let counts = memory.facts.newest().and_then(|response| response.answer.counts);
        let before = &memory.current_status(&cached).conditions;
        let generation = self.pipeline.generation;
        let conditions = inactive::draining(before, generation, progress, problems.first(), Timestamp::now());
        let next = RecordPipelineStatus {
            conditions,
            observed_generation: Some(generation),
            replicas: Some(self.seen.work.as_ref().map_or(0, |work| work.available)),
            backlog: counts.map(|counts| counts.backlog).or(cached.backlog),
            draining_since: Some(Time(self.since)),
            ..cached.clone()
        };
        write::status(&self.scope.context, memory, self.resource.meta(), &cached, next).await
    }
}
