//! The conditions of a pipeline's status: pure.
//!
//! Ready is True of generation N only when every shard has an owner that runs generation N and rollouts are complete;
//! of an older generation while its pods continue. An unknown state must never be True.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use millrace_crds::{
    Reason,
    status_api::{Problem, PublisherState, PublisherStatus, RedisDurability, ShardStatus},
};

use super::{
    condition::{self, ConditionType, Maker, Status},
    desire::Run,
    migration::MigrationState,
    observe::Finding,
    validate::Validated,
};
use crate::facts::PodResponse;

/// The observed state of a pipeline that runs.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// The pipeline.
    pub(super) pipeline: &'a Validated,
    /// The decisions about it.
    pub(super) run: &'a Run,
    /// Problems of the pods and the objects, worst first, those of the newest generation before all others.
    pub(super) problems: &'a [Finding],
    /// The answer of a pod with current shards and publishers; `None` while they are unknown.
    pub(super) newest: Option<&'a PodResponse>,
    /// The time since all shards were last known to have an owner, or since the operator first observed the pipeline.
    pub(super) unowned_for: Duration,
    /// The time since the Deployments were last incomplete.
    pub(super) complete_for: Duration,
}

/// How long Ready stays True while shards change owners: longer than a lease.
const TIMEOUT: Duration = Duration::from_secs(30);

impl View<'_> {
    /// The worst problem, including publishers that do not publish, and `failure`, which is of the migration. Those of
    /// the newest generation come first.
    fn worst(&self, failure: Option<Problem>) -> Option<Finding> {
        let publishers = self.newest.and_then(|newest| newest.answer.sinks.as_deref()).unwrap_or_default();
        let halted = |publisher: &&PublisherStatus| publisher.state.is_final();
        let publisher = || publishers.iter().find(halted).or(publishers.first());
        let current = self.problems.iter().find(|finding| finding.is_current).cloned();
        current
            .or_else(|| publisher().map(problem_of).or(failure).map(Finding::current))
            .or_else(|| self.problems.first().cloned())
    }

    /// The number of shards for which this is not true; `None` while it is unknown.
    fn shards_without(&self, is_true: impl Fn(&ShardStatus) -> bool) -> Option<usize> {
        let shards = self.newest?.answer.shards.as_deref().unwrap_or_default();
        let shards = shards.iter().filter(|shard| is_true(shard)).count();
        Some(usize::from(self.pipeline.spec.shards).saturating_sub(shards))
    }

    /// The step that is under way; `None` when none is.
    fn progress(&self) -> Option<Problem> {
        let (pipeline, run) = (self.pipeline, self.run);
        match &run.migration {
            MigrationState::Done { .. } => {}
            MigrationState::Failed { problem, .. } => {
                let message = format!("the last attempt failed, {}: another follows", problem.reason);
                return Some(Problem::new(Reason::Migrating, message));
            }
            _ => return Some(self.migrating()),
        }
        if let Some(other) = &run.waits_for {
            let message = format!("{other} takes the operator's new default image first");
            return Some(Problem::new(Reason::WaitingForRollout, message));
        }
        if let Some(incomplete) = &run.incomplete {
            return Some(Problem::new(Reason::RollingOut, incomplete));
        }
        if run.workers == 0 {
            return None;
        }
        let is_current = |shard: &ShardStatus| {
            shard.leased && shard.uid.as_ref() == Some(&pipeline.uid) && shard.generation == Some(pipeline.generation)
        };
        let message = match self.shards_without(is_current) {
            None => "no pod has reported yet which generation its shards run".to_owned(),
            Some(0) => return None,
            Some(behind) => {
                let (shards, generation) = (pipeline.spec.shards, pipeline.generation);
                format!("{behind} of {shards} shards do not run generation {generation} yet")
            }
        };
        Some(Problem::new(Reason::RollingOut, message))
    }

    fn migrating(&self) -> Problem {
        Problem::new(Reason::Migrating, format!("a Job migrates the schema by {}", self.run.image))
    }

    /// All conditions, by a maker that has the previous ones and the generation of the spec.
    #[must_use]
    pub(super) fn conditions(&self, maker: &Maker<'_>) -> Vec<Condition> {
        let progress = self.progress();
        let (migrated, failure) = match &self.run.migration {
            MigrationState::Done { .. } => {
                let message = format!("by {}", self.run.image);
                (maker.make(ConditionType::Migrated, Status::True, &Reason::Migrated, message), None)
            }
            MigrationState::Failed { problem, .. } | MigrationState::Running(Some(problem)) => {
                (maker.of(ConditionType::Migrated, Status::False, problem), Some(problem.clone()))
            }
            MigrationState::Running(None) | MigrationState::Create(_) => {
                (maker.of(ConditionType::Migrated, Status::False, &self.migrating()), None)
            }
        };
        let trouble = self.worst(failure);
        let kind = ConditionType::Progressing;
        let progressing = match &progress {
            Some(step) => maker.of(kind, Status::True, step),
            None if self.run.workers == 0 => maker.make(kind, Status::False, &Reason::Stopped, "no workers are wanted"),
            None => {
                let message = format!("generation {} is active", self.pipeline.generation);
                maker.make(kind, Status::False, &Reason::Complete, message)
            }
        };
        let [degraded, stalled] = maker.degraded_and_stalled(trouble.as_ref());
        let trouble = trouble.map(|finding| finding.problem);
        let ready = self.ready(maker, progress.as_ref(), trouble.as_ref());
        let reconciling = maker.reconciling(&progressing, &stalled);
        vec![ready, migrated, progressing, reconciling, degraded, stalled, self.redis_durable(maker)]
    }

    /// Whether Redis keeps what it acknowledged, as the pods report it.
    fn redis_durable(&self, maker: &Maker<'_>) -> Condition {
        let kind = ConditionType::RedisDurable;
        let weak = [Reason::RedisNotDurable, Reason::RedisEvicts];
        if let Some(finding) = self.problems.iter().find(|finding| weak.contains(&finding.problem.reason)) {
            return maker.of(kind, Status::False, &finding.problem);
        }
        match self.newest.and_then(|newest| newest.answer.redis_durability) {
            Some(RedisDurability::Durable) => {
                maker.make(kind, Status::True, &Reason::AsExpected, "its settings keep what it acknowledged")
            }
            Some(_) => {
                let message = "Redis does not show its settings: compare them with docs/servers.md";
                maker.make(kind, Status::Unknown, &Reason::DurabilityUnknown, message)
            }
            None => maker.make(kind, Status::Unknown, &Reason::StatusUnknown, "no pod has reported it yet"),
        }
    }

    fn ready(&self, maker: &Maker<'_>, progress: Option<&Problem>, trouble: Option<&Problem>) -> Condition {
        let kind = ConditionType::Ready;
        let shards = self.pipeline.spec.shards;
        if self.run.workers == 0 && self.run.incomplete.is_none() {
            let message = "no workers are wanted: records are taken and wait";
            return maker.make(kind, Status::False, &Reason::Stopped, message);
        }
        let active = |maker: &Maker<'_>| {
            maker.make(kind, Status::True, &Reason::ManifestActive, format!("all {shards} shards have an owner"))
        };
        let Some(step) = progress else { return active(maker) };
        // The old generation continues until the new one is active; shards change owners within a lease.
        let was_ready = condition::find(maker.before, kind, Status::True);
        if let Some(older) = was_ready.and_then(|condition| condition.observed_generation)
            && self.unowned_for < TIMEOUT
        {
            return active(&Maker { generation: older, ..*maker });
        }
        if let Some(problem) = trouble {
            return maker.of(kind, Status::False, problem);
        }
        // New pods need some time to take shards.
        if self.complete_for < TIMEOUT || step.reason != Reason::RollingOut {
            return maker.of(kind, Status::False, step);
        }
        match self.shards_without(|shard| shard.leased) {
            None => {
                let message = "no pod reports which generation its shards run";
                maker.make(kind, Status::Unknown, &Reason::StatusUnknown, message)
            }
            Some(0) => maker.of(kind, Status::False, step),
            Some(count) => {
                let message = format!("{count} of {shards} shards have no owner");
                maker.make(kind, Status::False, &Reason::ShardsWithoutOwner, message)
            }
        }
    }
}

fn problem_of(publisher: &PublisherStatus) -> Problem {
    let reason = match publisher.state {
        PublisherState::Halted => Reason::SinkHalted,
        PublisherState::Disabled => Reason::SinkDisabled,
        PublisherState::Waiting => Reason::SinkWaiting,
        PublisherState::Failing => Reason::SinkFailing,
    };
    Problem::new(reason, format!("{}, shard {}: {}", publisher.sink, publisher.shard, publisher.detail))
}
