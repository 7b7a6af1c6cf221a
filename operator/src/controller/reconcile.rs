//! One pass over one pipeline: observe, validate, desire, apply, and write the status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource as _, ResourceExt as _, runtime::controller::Action};
use millrace_crds::{Migrated, Reason, RecordPipelineStatus};

use super::{
    SOON, Scope,
    apply::{self, Applied, Error},
    build,
    condition::{self, ConditionType, Status},
    deletion::End,
    desire::{Desired, Goal, Run},
    inactive,
    memory::Memory,
    migration::{JobState, MigrationState},
    observe::{Finding, Observed},
    status::View,
    touch::PodTouch,
    validate::Validated,
    write::{self, Notice},
};
use crate::{cache::Guarded, clock::Clock, context::Context};

/// Takes the next steps for a pipeline, and returns when to reconcile it again.
///
/// # Errors
/// When a request to the API server fails; the caller retries.
pub(crate) async fn reconcile(
    object: &Guarded,
    scope: &Scope,
    memory: &mut Memory,
    clock: Clock,
) -> Result<Action, Error> {
    let context = &scope.context;
    memory.reset_for(&object.uid().unwrap_or_default(), clock());
    let claim = object.annotations().get(write::CLAIM);
    if claim.is_some_and(|of| *of != context.settings.claim()) {
        return Ok(Action::await_change());
    }
    let is_deleted = object.meta().deletion_timestamp.is_some();
    let is_held = object.finalizers().iter().any(|finalizer| finalizer == write::FINALIZER);
    if is_deleted && !is_held {
        context.drop_memory(&object.namespace().unwrap_or_default(), &object.name_any());
        return Ok(Action::await_change());
    }
    let observed = Observed::read(object, scope, memory, clock).await;
    let pipeline = match Validated::of(object) {
        Ok(pipeline) => pipeline,
        // Nothing was ever built from it that could drain in order.
        Err(_) if is_deleted => {
            let note = "the resource is invalid: the finalizer is removed without a drain".to_owned();
            return release(context, &observed, [Notice { warning: true, reason: Reason::NotDrained, note }]).await;
        }
        Err(cause) => return report_invalid(context, memory, &observed, &cause).await,
    };
    if !is_deleted && (!is_held || claim.is_none()) {
        write::claim(context, object.meta()).await?;
        // The watch brings the change.
        return Ok(Action::requeue(SOON));
    }
    let desired = if is_deleted {
        Desired::ending(&context.tuning.default_image, &observed, &pipeline, memory)
    } else {
        note_owned(memory, &observed, &pipeline);
        let is_paused = pipeline.spec.paused == Some(true);
        if is_paused { Desired::default() } else { Desired::running(context, &observed, &pipeline, memory) }
    };
    let applied = apply::apply_all(context, memory, &observed, &pipeline, &desired).await?;
    let report = Report { context, observed: &observed, pipeline: &pipeline, touched: desired.touches };
    match desired.goal {
        Goal::Pause => report.paused(memory).await,
        Goal::Run(run) => report.running(memory, run, applied).await,
        Goal::End(end) => report.ending(memory, end, applied).await,
    }
}

/// Notes the time when every shard has an owner and a pod of serve is available.
fn note_owned(memory: &mut Memory, observed: &Observed<'_>, pipeline: &Validated) {
    let Some(response) = observed.newest() else { return };
    let shards = response.answer.shards.as_deref().unwrap_or_default();
    let all_owned = shards.iter().filter(|shard| shard.leased).count() >= usize::from(pipeline.spec.shards);
    let serves = observed.serve.as_ref().is_some_and(|serve| serve.replicas == 0 || serve.available > 0);
    if all_owned && serves {
        memory.all_owned_at = Some(response.gathered());
    }
}

/// Reports an invalid resource: its pods stay as they are until it changes.
async fn report_invalid(
    context: &Context,
    memory: &mut Memory,
    observed: &Observed<'_>,
    cause: &str,
) -> Result<Action, Error> {
    let generation = observed.meta().generation.unwrap_or(0);
    let next = RecordPipelineStatus {
        conditions: inactive::invalid(&observed.maker(generation), cause),
        observed_generation: Some(generation),
        ..observed.status.clone()
    };
    write::status(context, memory, observed, next).await?;
    Ok(Action::await_change())
}

/// Removes the finalizer, after Events.
async fn release(
    context: &Context,
    observed: &Observed<'_>,
    events: impl IntoIterator<Item = Notice>,
) -> Result<Action, Error> {
    for notice in events {
        write::event(context, observed.meta(), &notice).await;
    }
    write::remove_finalizer(context, observed.meta()).await?;
    context.drop_memory(&observed.resource.namespace().unwrap_or_default(), &observed.resource.name_any());
    Ok(Action::await_change())
}

/// Reports the outcome of a pass.
struct Report<'a> {
    context: &'a Context,
    observed: &'a Observed<'a>,
    pipeline: &'a Validated,
    /// The pods whose files are behind.
    touched: Vec<PodTouch>,
}

impl Report<'_> {
    /// Of a paused pipeline.
    async fn paused(&self, memory: &mut Memory) -> Result<Action, Error> {
        let conditions = inactive::paused(&self.observed.maker(self.pipeline.generation));
        let next = RecordPipelineStatus { conditions, ..self.numbers() };
        write::status(self.context, memory, self.observed, next).await?;
        Ok(Action::requeue(Duration::from_secs(self.context.tuning.resync_seconds)))
    }

    /// Of a pipeline that runs.
    async fn running(&self, memory: &mut Memory, mut run: Run, applied: Applied) -> Result<Action, Error> {
        let observed = self.observed;
        let Applied { problems, job } = applied;
        let mut problems: Vec<_> = problems.into_iter().map(Finding::current).collect();
        // The Job is that of the migration, or that of the contracting steps.
        let contract = match (job, &run.migration) {
            (Some(refused), MigrationState::Create(_)) => {
                problems.push(Finding::current(refused.clone()));
                run.migration = MigrationState::Running(Some(refused));
                None
            }
            (refused, _) => refused.or(run.contract.take()),
        };
        problems.extend(observed.problems(self.pipeline, &run.templates));
        problems.extend(contract.map(Finding::current));
        let view = View {
            pipeline: self.pipeline,
            run: &run,
            problems: &problems,
            newest: observed.newest(),
            unowned_for: observed.now.since(memory.all_owned_at.unwrap_or(memory.created)),
            complete_for: observed.now.since(memory.incomplete_at.unwrap_or(memory.created)),
        };
        let next = self.status(&view);
        let has = |kind, status| condition::find(&next.conditions, kind, status).is_some();
        let progresses = has(ConditionType::Progressing, Status::True)
            || (!has(ConditionType::Ready, Status::True) && run.workers > 0);
        let pause = self.pause(memory, &run, progresses, !problems.is_empty());
        write::status(self.context, memory, observed, next).await?;
        Ok(Action::requeue(pause))
    }

    /// Of a pipeline that is being deleted.
    async fn ending(&self, memory: &mut Memory, end: End, applied: Applied) -> Result<Action, Error> {
        let observed = self.observed;
        let problem = end.problem.or(applied.job);
        let is_terminating = problem.as_ref().is_some_and(|problem| problem.reason == Reason::NamespaceTerminating);
        let Some(remaining) = end.remaining.filter(|_| !is_terminating) else {
            let terminating = is_terminating.then_some("no Job can start in a namespace that is being deleted");
            let not_purged = end.not_purged.or(terminating).map(|cause| Notice {
                warning: true,
                reason: Reason::NotPurged,
                note: format!("{cause}: the data stays in Postgres and Redis"),
            });
            let note = "the finalizer is removed".to_owned();
            let deleted = Notice { warning: false, reason: Reason::Deleted, note };
            return release(self.context, observed, not_purged.into_iter().chain([deleted])).await;
        };
        let generation = self.pipeline.generation;
        let backlog = self.numbers().backlog;
        let next = RecordPipelineStatus {
            conditions: inactive::deleted(&observed.maker(generation), &remaining, problem.as_ref()),
            observed_generation: Some(generation),
            replicas: Some(observed.work.as_ref().map_or(0, |work| work.available)),
            backlog,
            draining_since: Some(Time(end.since)),
            ..observed.status.clone()
        };
        write::status(self.context, memory, observed, next).await?;
        Ok(Action::requeue(SOON))
    }

    /// The next status without its conditions.
    fn numbers(&self) -> RecordPipelineStatus {
        let (pipeline, before) = (self.pipeline, &self.observed.status);
        let newest = self.observed.newest().map(|response| &response.answer);
        let counts = newest.and_then(|answer| answer.counts);
        let backlog = counts.map(|counts| i64::try_from(counts.backlog).unwrap_or(i64::MAX));
        let selector = build::selector(pipeline, "work");
        let selector: Vec<_> = selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
        RecordPipelineStatus {
            observed_generation: before.observed_generation,
            conditions: Vec::new(),
            replicas: Some(self.observed.work.as_ref().map_or(0, |work| work.available)),
            selector: Some(selector.join(",")),
            backlog: backlog.or(before.backlog),
            processed: counts.map(|counts| counts.processed).or(before.processed),
            alerts: counts.map(|counts| counts.alerts).or(before.alerts),
            dead_letters: counts.map(|counts| counts.dead_letters).or(before.dead_letters),
            endpoint: Some(build::endpoint(pipeline)),
            pipeline_id: newest.and_then(|answer| answer.pipeline_id.clone()).or_else(|| before.pipeline_id.clone()),
            migrated: before.migrated.clone(),
            draining_since: None,
        }
    }

    fn status(&self, view: &View<'_>) -> RecordPipelineStatus {
        let mut next = self.numbers();
        next.conditions = view.conditions(&self.observed.maker(self.pipeline.generation));
        // A client that waits by this number alone so waits for Ready of the newest generation. A stalled pipeline has
        // the newest number: kstatus reads an older one as progress, and there is none without a change by hand.
        let stalled = condition::find(&next.conditions, ConditionType::Stalled, Status::True);
        let ready = next.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready.as_str());
        next.observed_generation = stalled.or(ready).and_then(|condition| condition.observed_generation);
        if let MigrationState::Done { contract } = view.run.migration {
            let image = view.run.image.clone();
            let key = build::migration_key(self.pipeline, &image, false);
            let contracting = build::migration_key(self.pipeline, &image, true);
            let mut attempts = self.observed.migrations.iter().filter(|attempt| attempt.key == contracting);
            let contracted = attempts.any(|attempt| matches!(attempt.state, JobState::Succeeded(_)));
            next.migrated = Some(Migrated { image, key, contract: if contracted { 0 } else { contract } });
        }
        next
    }

    /// The time until the next reconcile.
    fn pause(&self, memory: &Memory, run: &Run, progresses: bool, has_problems: bool) -> Duration {
        let resync = Duration::from_secs(self.context.tuning.resync_seconds);
        let scaled = self.pipeline.spec.autoscaling.is_some();
        // Problems may last for days, and many pipelines may wait for their turn with a new image.
        let mut pause = if run.waits_for.is_some() {
            resync
        } else if has_problems || (scaled && !progresses) {
            resync.min(Duration::from_secs(5))
        } else if progresses {
            SOON
        } else {
            resync
        };
        if let MigrationState::Failed { next, .. } = run.migration {
            pause = pause.min(next + Duration::from_millis(100));
        }
        let touches = self.touched.iter().filter_map(|touched| memory.touches.get(&touched.pod));
        let due = touches.map(|touch| touch.due.saturating_duration_since(self.observed.now.instant)).min();
        due.map_or(pause, |due| pause.min(due.max(Duration::from_millis(100))))
    }
}
