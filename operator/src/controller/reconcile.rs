//! One pass of the reconcile over one pipeline.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta, runtime::controller::Action};
use millrace_crds::{Migrated, RecordPipelineResource, RecordPipelineStatus};

use super::{
    SOON, Scope,
    apply::{self, Error, Owner},
    autoscale::Scaler,
    build::{self, Child, Plan},
    deletion,
    dereference::{Seen, is_owned},
    inactive,
    memory::Memory,
    migration::{self, MigrationState},
    refusal, rollout,
    status::{READY, View, find_condition},
    touch::touch,
    write,
};
use crate::{cache::Guarded, context::Context, facts::Problem, pipeline::Pipeline};

/// Takes the next steps for a pipeline, and returns when to reconcile it again.
///
/// # Errors
/// When a request to the API server fails; the caller retries.
pub(crate) async fn reconcile(object: &Guarded, scope: &Scope, memory: &mut Memory) -> Result<Action, Error> {
    let context = &scope.context;
    let meta = object.meta();
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    memory.reset_for(&object.uid().unwrap_or_default());
    if object.annotations().get(write::CLAIM).is_some_and(|of| *of != context.settings.claim()) {
        return Ok(Action::await_change());
    }
    let held = meta.finalizers.iter().flatten().any(|finalizer| finalizer == write::FINALIZER);
    if meta.deletion_timestamp.is_some() {
        if !held {
            context.drop_memory(&namespace, &name);
            return Ok(Action::await_change());
        }
        return deletion::step(object, scope, memory).await;
    }
    let resource = match &object.0 {
        Ok(resource) => resource,
        Err(error) => {
            return invalid(context, memory, meta, &RecordPipelineStatus::default(), &error.error).await;
        }
    };
    let cached_status = resource.status.clone().unwrap_or_default();
    let pipeline = match Pipeline::new(resource) {
        Ok(pipeline) => pipeline,
        Err(error) => return invalid(context, memory, meta, &cached_status, &error.to_string()).await,
    };
    if !held || !object.annotations().contains_key(write::CLAIM) {
        write::claim(context, meta).await?;
        // The watch brings the change.
        return Ok(Action::requeue(SOON));
    }
    Pass { context, scope, resource, pipeline: &pipeline, cached_status }.run(memory).await
}

/// Reports an invalid resource: its pods stay as they are until it changes.
async fn invalid(
    context: &Context,
    memory: &mut Memory,
    meta: &ObjectMeta,
    cached_status: &RecordPipelineStatus,
    cause: &str,
) -> Result<Action, Error> {
    let generation = meta.generation.unwrap_or(0);
    let next = RecordPipelineStatus {
        conditions: inactive::invalid(&cached_status.conditions, generation, cause, Timestamp::now()),
        observed_generation: Some(generation),
        ..cached_status.clone()
    };
    write::status(context, memory, meta, cached_status, next).await?;
    Ok(Action::await_change())
}

/// One pass over one valid pipeline.
pub(super) struct Pass<'a> {
    pub(super) context: &'a Context,
    scope: &'a Scope,
    resource: &'a RecordPipelineResource,
    pub(super) pipeline: &'a Pipeline,
    /// The status as the cache holds it.
    pub(super) cached_status: RecordPipelineStatus,
}

impl Pass<'_> {
    async fn run(&self, memory: &mut Memory) -> Result<Action, Error> {
        let Self { context, scope, pipeline, .. } = *self;
        let mut seen = Seen::of(&scope.cache, &pipeline.namespace, &pipeline.name, &pipeline.uid);
        refusal::add_refusals(context, memory, &pipeline.namespace, &mut seen).await;
        refresh_facts(context, memory, &seen).await;
        self.note_owned(memory, &seen);
        if pipeline.spec.paused == Some(true) {
            return self.paused(memory, &seen).await;
        }
        let key = format!("{}/{}", pipeline.namespace, pipeline.name);
        let live = seen.work.as_ref().map(|work| work.image.clone());
        let wanted = pipeline.spec.image.clone().unwrap_or_else(|| context.tuning.default_image.clone());
        let follows = pipeline.spec.image.is_none() && live.as_ref().is_some_and(|live| *live != wanted);
        let waits = if follows { rollout::waits_for(&key, &rollout::followers(context)) } else { None };
        let image = if waits.is_some() { live.clone().unwrap_or(wanted) } else { wanted };

        let mut problems = Vec::new();
        let workers = self.workers(memory, &seen);
        let plan = self.plan(&image, workers);
        let base = build::base(&plan);
        // The objects that a Job's pod needs come before the Job.
        self.apply(memory, &seen, &base, &mut problems).await?;
        self.remove(memory, &seen, &base).await?;
        let migration = self.migrate(memory, &seen, &image, &mut problems).await?;
        if migration.is_done() {
            self.apply(memory, &seen, &build::deployments(&plan), &mut problems).await?;
        } else {
            // Until the schema fits, no new pods start, and of the existing ones only the number changes.
            for (role, replicas) in [(&seen.work, Some(workers)), (&seen.serve, plan.serve)] {
                let role = role.as_ref().filter(|role| is_kept(&role.meta, &pipeline.uid));
                if let (Some(role), Some(replicas)) = (role, replicas)
                    && role.replicas != replicas
                {
                    apply::scale(context, self.owner(), &role.meta, replicas).await?;
                }
            }
        }
        let next_touch = touch(context, memory, pipeline, &seen).await?;
        let rollout = incomplete(&seen, &image, workers);
        if rollout.is_some() {
            memory.incomplete_at = Some(Instant::now());
        }
        problems.extend(seen.problems());
        problems.extend(pod_problems(memory, &seen));
        if rollout.is_none() {
            self.contract(&seen, &image, &migration, &mut problems).await?;
        }
        let newest = memory.facts.newest();
        let view = View {
            generation: pipeline.generation,
            uid: &pipeline.uid,
            shards: pipeline.spec.shards,
            migration: &migration,
            image: &image,
            waits_for: waits.as_deref(),
            rollout: rollout.as_deref(),
            workers,
            problems: &problems,
            known: newest.map(|response| {
                let answer = &response.answer;
                (answer.shards.as_deref().unwrap_or_default(), answer.sinks.as_deref().unwrap_or_default())
            }),
            unowned_for: memory.all_owned_at.unwrap_or(memory.created).elapsed(),
            complete_for: memory.incomplete_at.unwrap_or(memory.created).elapsed(),
        };
        let next = self.status(memory, &seen, &view, &image);
        let progresses = next.conditions.iter().any(|condition| {
            (condition.type_ == "Progressing" && condition.status == "True")
                || (condition.type_ == READY && condition.status != "True" && workers > 0)
        });
        write::status(context, memory, self.resource.meta(), &self.cached_status, next).await?;
        Ok(Action::requeue(self.pause(&migration, next_touch, waits.is_some(), progresses, !problems.is_empty())))
    }

    /// Notes the time when every shard has an owner and a pod of serve is available.
    fn note_owned(&self, memory: &mut Memory, seen: &Seen) {
        let Some(response) = memory.facts.newest() else { return };
        let shards = response.answer.shards.as_deref().unwrap_or_default();
        let all_owned = shards.iter().filter(|shard| shard.leased).count() >= usize::from(self.pipeline.spec.shards);
        let serves = seen.serve.as_ref().is_some_and(|serve| serve.replicas == 0 || serve.available > 0);
        if all_owned && serves {
            memory.all_owned_at = Some(response.gathered());
        }
    }

    /// Reports the status of a paused pipeline, and changes nothing else.
    async fn paused(&self, memory: &mut Memory, seen: &Seen) -> Result<Action, Error> {
        let mut next = self.numbers(memory, seen);
        let before = &memory.current_status(&self.cached_status).conditions;
        next.conditions = inactive::paused(before, self.pipeline.generation, Timestamp::now());
        write::status(self.context, memory, self.resource.meta(), &self.cached_status, next).await?;
        Ok(Action::requeue(Duration::from_secs(self.context.tuning.resync_seconds)))
    }

    /// The wanted number of workers.
    fn workers(&self, memory: &mut Memory, seen: &Seen) -> i32 {
        let spec = &self.pipeline.spec;
        let fixed = spec.replicas.map(|replicas| i32::try_from(replicas).unwrap_or(i32::MAX));
        match (&spec.autoscaling, fixed) {
            (_, Some(0)) => 0,
            (Some(scaling), _) => {
                let backlog =
                    memory.facts.newest().and_then(|response| response.answer.counts).map(|counts| counts.backlog);
                let hold = Duration::from_secs(self.context.tuning.scale_down_seconds);
                let scaler = memory.scaler.get_or_insert_with(|| Scaler::new(hold));
                scaler.workers(scaling, seen.work.as_ref().map(|work| work.replicas), backlog, Instant::now())
            }
            (None, replicas) => replicas.unwrap_or(1),
        }
    }

    fn plan<'b>(&'b self, image: &'b str, workers: i32) -> Plan<'b> {
        let serve = self.pipeline.spec.serve.as_ref();
        let scaled_by_kubernetes = serve.is_some_and(|serve| serve.autoscaling.is_some());
        let replicas = serve.and_then(|serve| serve.replicas).unwrap_or(1);
        Plan {
            pipeline: self.pipeline,
            image,
            workers,
            serve: (!scaled_by_kubernetes).then(|| i32::try_from(replicas).unwrap_or(i32::MAX)),
            operator_namespace: &self.context.settings.namespace,
        }
    }

    async fn apply(
        &self,
        memory: &mut Memory,
        seen: &Seen,
        wanted: &[Child],
        problems: &mut Vec<Problem>,
    ) -> Result<(), Error> {
        for child in wanted {
            let live = seen.children.get(&(child.kind, child.name.clone()));
            collect(problems, apply::apply(self.context, memory, self.owner(), child, live).await)?;
        }
        Ok(())
    }

    /// Deletes children that are no longer wanted. Deployments are deleted only with the resource.
    async fn remove(&self, memory: &mut Memory, seen: &Seen, base: &[Child]) -> Result<(), Error> {
        for ((kind, name), meta) in &seen.children {
            let is_wanted = base.iter().any(|child| child.kind == *kind && child.name == *name);
            if !is_wanted && *kind != build::Kind::Deployment {
                apply::delete(self.context, self.owner(), *kind, name, meta).await?;
                memory.applied.remove(&(*kind, name.clone()));
            }
        }
        Ok(())
    }

    pub(super) fn owner(&self) -> Owner<'_> {
        Owner { namespace: &self.pipeline.namespace, uid: &self.pipeline.uid }
    }

    /// The next status without its conditions.
    fn numbers(&self, memory: &Memory, seen: &Seen) -> RecordPipelineStatus {
        let newest = memory.facts.newest().map(|response| &response.answer);
        let counts = newest.and_then(|answer| answer.counts);
        let before = &self.cached_status;
        RecordPipelineStatus {
            observed_generation: before.observed_generation,
            conditions: Vec::new(),
            replicas: Some(seen.work.as_ref().map_or(0, |work| work.available)),
            selector: Some(selector(self.pipeline)),
            backlog: counts.map(|counts| counts.backlog).or(before.backlog),
            processed: counts.map(|counts| counts.processed).or(before.processed),
            alerts: counts.map(|counts| counts.alerts).or(before.alerts),
            dead_letters: counts.map(|counts| counts.dead_letters).or(before.dead_letters),
            endpoint: Some(format!("http://{}-serve.{}.svc:8080", self.pipeline.name, self.pipeline.namespace)),
            pipeline_id: newest.and_then(|answer| answer.pipeline_id.clone()).or_else(|| before.pipeline_id.clone()),
            migrated: before.migrated.clone(),
            draining_since: None,
        }
    }

    fn status(&self, memory: &Memory, seen: &Seen, view: &View<'_>, image: &str) -> RecordPipelineStatus {
        let mut next = self.numbers(memory, seen);
        next.conditions = view.conditions(&memory.current_status(&self.cached_status).conditions, Timestamp::now());
        // A client that waits by this number alone so waits for Ready of the newest generation. A stalled pipeline has
        // the newest number: kstatus reads an older one as progress, and there is none without a change by hand.
        let stalled = find_condition(&next.conditions, "Stalled", "True");
        let ready = next.conditions.iter().find(|condition| condition.type_ == READY);
        next.observed_generation = stalled.or(ready).and_then(|condition| condition.observed_generation);
        if let MigrationState::Done { contract } = view.migration {
            let key = build::migration_key(self.pipeline, image, false);
            let contracted = build::migration_key(self.pipeline, image, true);
            let contracted = seen
                .migrations
                .iter()
                .any(|attempt| attempt.key == contracted && matches!(attempt.state, migration::JobState::Succeeded(_)));
            let contract = if contracted { 0 } else { *contract };
            next.migrated = Some(Migrated { image: image.to_owned(), key, contract });
        }
        next
    }

    /// The time until the next reconcile.
    fn pause(
        &self,
        migration: &MigrationState,
        next_touch: Option<Duration>,
        waits: bool,
        progresses: bool,
        has_problems: bool,
    ) -> Duration {
        let resync = Duration::from_secs(self.context.tuning.resync_seconds);
        let scaled = self.pipeline.spec.autoscaling.is_some();
        // Problems may last for days, and many pipelines may wait for their turn with a new image.
        let mut pause = if waits {
            resync
        } else if has_problems || (scaled && !progresses) {
            resync.min(Duration::from_secs(5))
        } else if progresses {
            SOON
        } else {
            resync
        };
        if let MigrationState::Failed { next, .. } = migration {
            pause = pause.min(*next + Duration::from_millis(100));
        }
        next_touch.map_or(pause, |touch| pause.min(touch.max(Duration::from_millis(100))))
    }
}

/// Requests `/status` from the pods that run.
pub(super) async fn refresh_facts(context: &Context, memory: &mut Memory, seen: &Seen) {
    let pods: Vec<_> = seen.pods.iter().filter_map(|pod| Some((pod.name.clone(), pod.address.clone()?))).collect();
    memory.facts.refresh(&context.http, context.tuning.status_port, &pods).await;
}

/// The problems that the pods report, each reason once, worst first.
fn pod_problems(memory: &Memory, seen: &Seen) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    for response in seen.pods.iter().filter(|pod| !pod.deleting).filter_map(|pod| memory.facts.of(&pod.name)) {
        for problem in &response.answer.problems {
            if !found.iter().any(|known| known.reason == problem.reason) {
                found.push(problem.clone());
            }
        }
    }
    found
}

/// Why the Deployments are not complete; `None` when they are.
fn incomplete(seen: &Seen, image: &str, workers: i32) -> Option<String> {
    for (name, role) in [("serve", &seen.serve), ("work", &seen.work)] {
        let Some(role) = role else { return Some(format!("the Deployment of {name} does not exist yet")) };
        if role.image != image {
            return Some(format!("the pods of {name} are to change from {} to {image}", role.image));
        }
        if let Some(incomplete) = &role.incomplete {
            return Some(incomplete.clone());
        }
    }
    let scaled = seen.work.as_ref().is_some_and(|work| work.replicas == workers);
    (!scaled).then(|| format!("the number of workers is to become {workers}"))
}

fn selector(pipeline: &Pipeline) -> String {
    let labels = build::selector(pipeline, "work");
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Adds a problem for the status to `problems`; returns every other error, which ends the pass.
pub(super) fn collect(problems: &mut Vec<Problem>, result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Problem(problem)) => {
            problems.push(problem);
            Ok(())
        }
        other => other,
    }
}

/// Whether a Deployment belongs to the resource with this uid and is not being deleted.
pub(super) fn is_kept(meta: &ObjectMeta, uid: &str) -> bool {
    is_owned(meta, uid) && meta.deletion_timestamp.is_none()
}
