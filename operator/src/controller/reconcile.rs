//! One pass over one pipeline.

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
    memory::Memory,
    migration::{self, Stand},
    refusal, rollout,
    status::{READY, View, stands},
    still,
    touch::touch,
    write,
};
use crate::{cache::Guarded, context::Context, facts::Problem, pipeline::Pipeline};

/// Brings a pipeline one step on, and says when to look again.
///
/// # Errors
/// When the API server does not do as asked; it is tried again.
pub(crate) async fn reconcile(object: &Guarded, scope: &Scope, memory: &mut Memory) -> Result<Action, Error> {
    let context = &scope.context;
    let meta = object.meta();
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    memory.of_uid(&object.uid().unwrap_or_default());
    if object.annotations().get(write::CLAIM).is_some_and(|of| *of != context.settings.claim()) {
        return Ok(Action::await_change());
    }
    let held = meta.finalizers.iter().flatten().any(|finalizer| finalizer == write::FINALIZER);
    if meta.deletion_timestamp.is_some() {
        if !held {
            context.forget(&namespace, &name);
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
    let stood = resource.status.clone().unwrap_or_default();
    let pipeline = match Pipeline::new(resource) {
        Ok(pipeline) => pipeline,
        Err(error) => return invalid(context, memory, meta, &stood, &error.to_string()).await,
    };
    if !held || !object.annotations().contains_key(write::CLAIM) {
        write::claim(context, meta).await?;
        // The change comes back by the watch.
        return Ok(Action::requeue(SOON));
    }
    Pass { context, scope, resource, pipeline: &pipeline, stood }.run(memory).await
}

/// One that cannot be worked on: its pods stay as they are until it is changed.
async fn invalid(
    context: &Context,
    memory: &mut Memory,
    meta: &ObjectMeta,
    stood: &RecordPipelineStatus,
    why: &str,
) -> Result<Action, Error> {
    let generation = meta.generation.unwrap_or(0);
    let next = RecordPipelineStatus {
        conditions: still::invalid(&stood.conditions, generation, why, Timestamp::now()),
        observed_generation: Some(generation),
        ..stood.clone()
    };
    write::status(context, memory, meta, stood, next).await?;
    Ok(Action::await_change())
}

/// What one pass has at hand.
pub(super) struct Pass<'a> {
    pub(super) context: &'a Context,
    scope: &'a Scope,
    resource: &'a RecordPipelineResource,
    pub(super) pipeline: &'a Pipeline,
    pub(super) stood: RecordPipelineStatus,
}

impl Pass<'_> {
    async fn run(&self, memory: &mut Memory) -> Result<Action, Error> {
        let Self { context, scope, pipeline, .. } = *self;
        let mut seen = Seen::of(&scope.cache, &pipeline.namespace, &pipeline.name, &pipeline.uid);
        refusal::find(context, memory, &pipeline.namespace, &mut seen).await;
        ask(context, memory, &seen).await;
        self.remember(memory, &seen);
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
        // What a Job's pod stands on comes before the Job.
        self.apply(memory, &seen, &base, &mut problems).await?;
        self.remove(memory, &seen, &base).await?;
        let stand = self.migrate(memory, &seen, &image, &mut problems).await?;
        if stand.is_done() {
            self.apply(memory, &seen, &build::deployments(&plan), &mut problems).await?;
        } else {
            // Until the schema is right for them, new pods are not made, and those there are keep all but their number.
            for (role, replicas) in [(&seen.work, Some(workers)), (&seen.serve, plan.serve)] {
                let role = role.as_ref().filter(|role| stays(&role.meta, &pipeline.uid));
                if let (Some(role), Some(replicas)) = (role, replicas)
                    && role.replicas != replicas
                {
                    apply::scale(context, self.owner(), &role.meta, replicas).await?;
                }
            }
        }
        let touching = touch(context, memory, pipeline, &seen).await?;
        let rollout = incomplete(&seen, &image, workers);
        if rollout.is_some() {
            memory.rolled = Some(Instant::now());
        }
        problems.extend(seen.problems());
        problems.extend(told(memory, &seen));
        if rollout.is_none() {
            self.contract(&seen, &image, &stand, &mut problems).await?;
        }
        let newest = memory.facts.newest();
        let view = View {
            generation: pipeline.generation,
            uid: &pipeline.uid,
            shards: pipeline.spec.shards,
            migration: &stand,
            image: &image,
            waits_for: waits.as_deref(),
            rollout: rollout.as_deref(),
            workers,
            problems: &problems,
            known: newest.map(|response| {
                let answer = &response.answer;
                (answer.shards.as_deref().unwrap_or_default(), answer.sinks.as_deref().unwrap_or_default())
            }),
            lapse: memory.all_worked.unwrap_or(memory.born).elapsed(),
            rolled: memory.rolled.unwrap_or(memory.born).elapsed(),
        };
        let next = self.status(memory, &seen, &view, &image);
        let going_on = next.conditions.iter().any(|condition| {
            (condition.type_ == "Progressing" && condition.status == "True")
                || (condition.type_ == READY && condition.status != "True" && workers > 0)
        });
        write::status(context, memory, self.resource.meta(), &self.stood, next).await?;
        Ok(Action::requeue(self.pause(&stand, touching, waits.is_some(), going_on, !problems.is_empty())))
    }

    /// Notes what lasts of what was seen: when every shard was worked, and records could be taken.
    fn remember(&self, memory: &mut Memory, seen: &Seen) {
        let Some(response) = memory.facts.newest() else { return };
        let shards = response.answer.shards.as_deref().unwrap_or_default();
        let worked = shards.iter().filter(|shard| shard.leased).count() >= usize::from(self.pipeline.spec.shards);
        let serves = seen.serve.as_ref().is_some_and(|serve| serve.replicas == 0 || serve.available > 0);
        if worked && serves {
            memory.all_worked = Some(response.gathered());
        }
    }

    /// Nothing is changed; what is seen is told.
    async fn paused(&self, memory: &mut Memory, seen: &Seen) -> Result<Action, Error> {
        let mut next = self.numbers(memory, seen);
        next.conditions =
            still::paused(&memory.stood(&self.stood).conditions, self.pipeline.generation, Timestamp::now());
        write::status(self.context, memory, self.resource.meta(), &self.stood, next).await?;
        Ok(Action::requeue(Duration::from_secs(self.context.tuning.resync_seconds)))
    }

    /// How many workers there should be.
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

    /// Removes what is no longer wanted. Deployments go with the resource only.
    async fn remove(&self, memory: &mut Memory, seen: &Seen, base: &[Child]) -> Result<(), Error> {
        for ((kind, name), meta) in &seen.children {
            let stays = base.iter().any(|child| child.kind == *kind && child.name == *name);
            if !stays && *kind != build::Kind::Deployment {
                apply::delete(self.context, self.owner(), *kind, name, meta).await?;
                memory.applied.remove(&(*kind, name.clone()));
            }
        }
        Ok(())
    }

    pub(super) fn owner(&self) -> Owner<'_> {
        Owner { namespace: &self.pipeline.namespace, uid: &self.pipeline.uid }
    }

    /// The status but for its conditions.
    fn numbers(&self, memory: &Memory, seen: &Seen) -> RecordPipelineStatus {
        let newest = memory.facts.newest().map(|response| &response.answer);
        let counts = newest.and_then(|answer| answer.counts);
        let stood = &self.stood;
        RecordPipelineStatus {
            observed_generation: stood.observed_generation,
            conditions: Vec::new(),
            replicas: Some(seen.work.as_ref().map_or(0, |work| work.available)),
            selector: Some(selector(self.pipeline)),
            backlog: counts.map(|counts| counts.backlog).or(stood.backlog),
            processed: counts.map(|counts| counts.processed).or(stood.processed),
            alerts: counts.map(|counts| counts.alerts).or(stood.alerts),
            dead_letters: counts.map(|counts| counts.dead_letters).or(stood.dead_letters),
            endpoint: Some(format!("http://{}-serve.{}.svc:8080", self.pipeline.name, self.pipeline.namespace)),
            pipeline_id: newest.and_then(|answer| answer.pipeline_id.clone()).or_else(|| stood.pipeline_id.clone()),
            migrated: stood.migrated.clone(),
            draining_since: None,
        }
    }

    fn status(&self, memory: &Memory, seen: &Seen, view: &View<'_>, image: &str) -> RecordPipelineStatus {
        let mut next = self.numbers(memory, seen);
        next.conditions = view.conditions(&memory.stood(&self.stood).conditions, Timestamp::now());
        // Whoever waits by this number alone waits for Ready of the newest generation, too. One that is Stalled is as far as
        // it comes by itself: to kstatus any older number means that it is still on its way.
        let stalled = stands(&next.conditions, "Stalled", "True");
        let ready = next.conditions.iter().find(|condition| condition.type_ == READY);
        next.observed_generation = stalled.or(ready).and_then(|condition| condition.observed_generation);
        if let Stand::Done { contract } = view.migration {
            let key = build::migration_key(self.pipeline, image, false);
            let contracted = build::migration_key(self.pipeline, image, true);
            let contracted = seen
                .migrations
                .iter()
                .any(|attempt| attempt.key == contracted && matches!(attempt.state, migration::State::Succeeded(_)));
            let contract = if contracted { 0 } else { *contract };
            next.migrated = Some(Migrated { image: image.to_owned(), key, contract });
        }
        next
    }

    /// When to look again.
    fn pause(&self, stand: &Stand, touching: Option<Duration>, waits: bool, going_on: bool, suffers: bool) -> Duration {
        let rest = Duration::from_secs(self.context.tuning.resync_seconds);
        let scaled = self.pipeline.spec.autoscaling.is_some();
        // One that suffers may do so for days; one that waits for its turn with a new image is one of many.
        let mut pause = if waits {
            rest
        } else if suffers || (scaled && !going_on) {
            rest.min(Duration::from_secs(5))
        } else if going_on {
            SOON
        } else {
            rest
        };
        if let Stand::Failed { next, .. } = stand {
            pause = pause.min(*next + Duration::from_millis(100));
        }
        touching.map_or(pause, |touching| pause.min(touching.max(Duration::from_millis(100))))
    }
}

/// Asks the pods that run.
pub(super) async fn ask(context: &Context, memory: &mut Memory, seen: &Seen) {
    let pods: Vec<_> = seen.pods.iter().filter_map(|pod| Some((pod.name.clone(), pod.address.clone()?))).collect();
    memory.facts.ask(&context.http, context.tuning.status_port, &pods).await;
}

/// What the pods say is wrong, each once, worst first.
fn told(memory: &Memory, seen: &Seen) -> Vec<Problem> {
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

/// What is not as it should be about the Deployments.
fn incomplete(seen: &Seen, image: &str, workers: i32) -> Option<String> {
    for (name, role) in [("serve", &seen.serve), ("work", &seen.work)] {
        let Some(role) = role else { return Some(format!("the Deployment of {name} is not there yet")) };
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

/// Keeps what the status should tell, and passes on what stops the pass.
pub(super) fn collect(problems: &mut Vec<Problem>, outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(Error::Problem(problem)) => {
            problems.push(problem);
            Ok(())
        }
        other => other,
    }
}

/// Whether a Deployment is there and stays.
pub(super) fn stays(meta: &ObjectMeta, uid: &str) -> bool {
    is_owned(meta, uid) && meta.deletion_timestamp.is_none()
}
