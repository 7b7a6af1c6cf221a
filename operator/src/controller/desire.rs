//! Decides what a pass is to bring about. Pure except for the memory, and for the caches that a rollout reads.

use std::time::Duration;

use kube::api::ObjectMeta;
use millrace_crds::status_api::Problem;

use super::{
    autoscale::Scaler,
    build::{self, Child, Kind, Plan},
    deletion::End,
    memory::Memory,
    migration::{self, Attempt, MigrationState},
    observe::{Observed, ObservedPod, Role},
    rollout, touch,
    touch::PodTouch,
    validate::Validated,
    write::Notice,
};
use crate::context::Context;

/// What a pass brings about, in this order.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    /// Events about the resource.
    pub(super) events: Vec<Notice>,
    /// Objects that exist as they are here. The pods of Jobs need them.
    pub(super) base: Vec<Child>,
    /// Objects that do not exist.
    pub(super) unwanted: Vec<Unwanted>,
    /// A Job that exists.
    pub(super) job: Option<Child>,
    /// Deployments, and a CronJob, that exist as they are here.
    pub(super) deployments: Vec<Child>,
    /// Deployments that stay as they are but for the number of their pods.
    pub(super) scales: Vec<Scale>,
    /// Pods whose files are to change soon.
    pub(super) touches: Vec<PodTouch>,
    /// The purpose of all this.
    pub(super) goal: Goal,
}

/// The purpose of a pass.
#[derive(Debug, Default)]
pub(super) enum Goal {
    /// The pipeline stays as it is.
    #[default]
    Pause,
    /// It runs as its spec describes.
    Run(Run),
    /// It ends.
    End(End),
}

/// The decisions about a pipeline that runs.
#[derive(Debug)]
pub(super) struct Run {
    /// The image of the migration and the pods.
    pub(super) image: String,
    /// The number of workers.
    pub(super) workers: i32,
    /// The pipeline that takes the default image first.
    pub(super) waits_for: Option<String>,
    /// The state of the migration.
    pub(super) migration: MigrationState,
    /// The problem of the contracting steps.
    pub(super) contract: Option<Problem>,
    /// Why the Deployments are not complete; `None` when they are.
    pub(super) incomplete: Option<String>,
    /// The pods of the newest generation.
    pub(super) templates: Templates,
}

/// The hash of each role's wanted pod template: pods of another one are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Templates {
    pub(super) serve: String,
    pub(super) work: String,
}

impl Templates {
    /// The hash of a role: `serve` or `work`.
    pub(super) fn of(&self, component: &str) -> &str {
        if component == "serve" { &self.serve } else { &self.work }
    }
}

/// An object to delete.
#[derive(Debug)]
pub(super) struct Unwanted {
    pub(super) kind: Kind,
    pub(super) name: String,
    /// As it was observed.
    pub(super) meta: ObjectMeta,
}

/// The number of pods of a Deployment.
#[derive(Debug)]
pub(super) struct Scale {
    /// The Deployment's metadata, as observed.
    pub(super) meta: ObjectMeta,
    pub(super) replicas: i32,
}

impl Desired {
    /// A pipeline that runs as its spec describes.
    pub(super) fn running(
        context: &Context,
        observed: &Observed<'_>,
        pipeline: &Validated,
        memory: &mut Memory,
    ) -> Self {
        let live = observed.work.as_ref().map(|work| work.image.clone());
        let wanted = pipeline.image(&context.tuning.default_image).to_owned();
        let follows = pipeline.spec.image.is_none() && live.as_ref().is_some_and(|live| *live != wanted);
        let key = format!("{}/{}", pipeline.namespace, pipeline.name);
        let waits_for = if follows { rollout::waits_for(&key, &rollout::followers(context)) } else { None };
        let image = live.filter(|_| waits_for.is_some()).unwrap_or(wanted);
        let workers = workers(context, observed, pipeline, memory);
        let operator_namespace = &context.settings.namespace;
        let plan = Plan { pipeline, image: &image, workers, serve: pipeline.serve_replicas(), operator_namespace };

        let mut desired = Self { base: build::base(&plan), ..Self::default() };
        let verify = build::verify(&plan);
        desired.unwanted = unwanted(observed, desired.base.iter().chain(&verify));
        let migration = desired.migrate(observed, pipeline, &image, memory);
        let deployments = build::deployments(&plan);
        let [serve, work] = &deployments;
        let templates = Templates { serve: build::template_of(serve), work: build::template_of(work) };
        if migration.is_done() {
            desired.deployments = deployments.into();
            // Its image has to fit the schema, as theirs.
            desired.deployments.extend(verify);
        } else {
            // Until the schema fits, no new pods start, and of the existing ones only the number changes.
            desired.scale(observed.work.as_ref(), workers);
            if let Some(replicas) = plan.serve {
                desired.scale(observed.serve.as_ref(), replicas);
            }
        }
        desired.touches = touch::wanted(observed, pipeline, memory);
        let incomplete = incomplete(observed, &image, workers);
        let mut contract = None;
        if incomplete.is_some() {
            memory.incomplete_at = Some(observed.now.instant);
        } else {
            contract = desired.contract(observed, pipeline, &image, &migration);
        }
        desired.goal = Goal::Run(Run { image, workers, waits_for, migration, contract, incomplete, templates });
        desired
    }

    /// Sets the number of pods of a Deployment that exists.
    pub(super) fn scale(&mut self, role: Option<&Role>, replicas: i32) {
        if let Some(role) = role.filter(|role| role.is_kept() && role.replicas != replicas) {
            self.scales.push(Scale { meta: role.meta.clone(), replicas });
        }
    }

    /// Deletes a Job.
    pub(super) fn delete_job(&mut self, observed: &Observed<'_>, attempt: &Attempt) {
        if let Some(meta) = observed.jobs.get(&attempt.name) {
            self.unwanted.push(Unwanted { kind: Kind::Job, name: attempt.name.clone(), meta: meta.clone() });
        }
    }

    /// Takes the next step of the migration, and returns its state.
    fn migrate(
        &mut self,
        observed: &Observed<'_>,
        pipeline: &Validated,
        image: &str,
        memory: &mut Memory,
    ) -> MigrationState {
        let key = build::migration_key(pipeline, image, false);
        let contract = build::migration_key(pipeline, image, true);
        let (attempts, now) = (&observed.migrations, observed.now.time);
        let missing = observed.reports_missing_schema();
        memory.not_migrated = missing.then(|| memory.not_migrated.unwrap_or(now));
        let migrated = observed.status.migrated.as_ref();
        let state = migration::decide(&key, attempts, migrated, memory.not_migrated, now);
        if let MigrationState::Create(number) = state {
            self.job = Some(build::migration(pipeline, image, &key, number, false));
        }
        let wanted = |attempt: &Attempt| {
            let contracts = attempt.key == contract;
            build::template_of(&build::migration(pipeline, image, &attempt.key, attempt.number, contracts))
        };
        let replaceable = attempts
            .iter()
            .filter(|attempt| [&key, &contract].contains(&&attempt.key) && attempt.is_replaceable(&wanted(attempt)));
        // While pods miss the schema, the Job shows when it was last migrated.
        let lingering = if missing { Vec::new() } else { migration::lingering(&key, &contract, attempts, migrated) };
        let outdated = migration::outdated(&[&key, &contract], attempts, state.is_done());
        for old in outdated.into_iter().chain(lingering).chain(replaceable) {
            self.delete_job(observed, old);
        }
        state
    }

    /// Runs the contracting steps once no pod of an older image exists; returns their problem.
    fn contract(
        &mut self,
        observed: &Observed<'_>,
        pipeline: &Validated,
        image: &str,
        state: &MigrationState,
    ) -> Option<Problem> {
        // A Deployment does not count pods that are being deleted, and the cache may hold it before its pods.
        let is_old = |pod: &ObservedPod| pod.deleting || pod.image != image;
        if !matches!(state, MigrationState::Done { contract: 1.. }) || observed.pods.iter().any(is_old) {
            return None;
        }
        let key = build::migration_key(pipeline, image, true);
        match migration::decide(&key, &observed.migrations, None, None, observed.now.time) {
            MigrationState::Create(number) => {
                self.job = Some(build::migration(pipeline, image, &key, number, true));
                None
            }
            MigrationState::Failed { problem, .. } => Some(problem),
            MigrationState::Running(problem) => problem,
            MigrationState::Done { .. } => None,
        }
    }
}

/// The wanted number of workers.
fn workers(context: &Context, observed: &Observed<'_>, pipeline: &Validated, memory: &mut Memory) -> i32 {
    let spec = &pipeline.spec;
    let fixed = spec.replicas.map(|replicas| i32::try_from(replicas).unwrap_or(i32::MAX));
    match (&spec.autoscaling, fixed) {
        (_, Some(0)) => 0,
        (Some(scaling), _) => {
            let backlog = observed.counts().map(|counts| counts.backlog);
            let hold = Duration::from_secs(context.tuning.scale_down_seconds);
            let scaler = memory.scaler.get_or_insert_with(|| Scaler::new(hold));
            let live = observed.work.as_ref().map(|work| work.replicas);
            scaler.workers(scaling, live, backlog, observed.now.instant)
        }
        (None, replicas) => replicas.unwrap_or(1),
    }
}

/// Children that are no longer wanted. Deployments are deleted only with the resource.
fn unwanted<'a>(observed: &Observed<'_>, wanted: impl Iterator<Item = &'a Child> + Clone) -> Vec<Unwanted> {
    let is_wanted = |kind: Kind, name: &str| wanted.clone().any(|child| child.kind == kind && child.name == *name);
    let children = observed.children.iter();
    children
        .filter(|((kind, name), _)| *kind != Kind::Deployment && !is_wanted(*kind, name))
        .map(|((kind, name), meta)| Unwanted { kind: *kind, name: name.clone(), meta: meta.clone() })
        .collect()
}

/// The children of one kind, to be deleted.
pub(super) fn children(observed: &Observed<'_>, kind: Kind) -> impl Iterator<Item = Unwanted> {
    let of_kind = observed.children.iter().filter(move |((found, _), _)| *found == kind);
    of_kind.map(|((kind, name), meta)| Unwanted { kind: *kind, name: name.clone(), meta: meta.clone() })
}

/// Why the Deployments are not complete; `None` when they are.
fn incomplete(observed: &Observed<'_>, image: &str, workers: i32) -> Option<String> {
    for (name, role) in [("serve", &observed.serve), ("work", &observed.work)] {
        let Some(role) = role else { return Some(format!("the Deployment of {name} does not exist yet")) };
        if role.image != image {
            return Some(format!("the pods of {name} are to change from {} to {image}", role.image));
        }
        if let Some(incomplete) = &role.incomplete {
            return Some(incomplete.clone());
        }
    }
    let scaled = observed.work.as_ref().is_some_and(|work| work.replicas == workers);
    (!scaled).then(|| format!("the number of workers is to become {workers}"))
}
