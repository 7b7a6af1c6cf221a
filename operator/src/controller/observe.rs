//! Reads everything that a pass depends on: the resource and its children from the caches, the pods' `/status`, and the
//! time. It writes nothing.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use millrace_crds::{
    Reason, RecordPipelineStatus,
    status_api::{PipelineCounts, Problem},
};

use super::{
    Scope,
    build::{
        Kind,
        labels::{COMPONENT, TEMPLATE},
    },
    condition::Maker,
    desire::Templates,
    memory::Memory,
    migration::Attempt,
    refusal,
    validate::Validated,
};
use crate::{
    cache::{self, Cache, Guarded},
    clock::{Clock, Now},
    facts::PodResponse,
};

/// A pipeline and its children, as one pass sees them.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    /// The resource, or the reason why it cannot be parsed.
    pub(crate) resource: &'a Guarded,
    /// Its status: the one that was written last, for the cache may be behind it, else the cached one.
    pub(crate) status: RecordPipelineStatus,
    /// The Deployment of serve.
    pub(crate) serve: Option<Role>,
    /// The Deployment of work.
    pub(crate) work: Option<Role>,
    /// Jobs of migrations.
    pub(crate) migrations: Vec<Attempt>,
    /// Jobs of purges.
    pub(crate) purges: Vec<Attempt>,
    /// Pods of migrations and of verify that are not finished.
    pub(crate) jobs_running: usize,
    /// Pods of both roles that are not finished.
    pub(crate) pods: Vec<ObservedPod>,
    /// Metadata of each child except Jobs.
    pub(crate) children: BTreeMap<(Kind, String), ObjectMeta>,
    /// Metadata of each Job, by name.
    pub(crate) jobs: BTreeMap<String, ObjectMeta>,
    /// When all of this was read.
    pub(crate) now: Now,
}

/// A problem, and whether the newest generation has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The problem.
    pub(super) problem: Problem,
    /// False for a report of a pod that the newest generation replaces, or that has not read it yet: the newest
    /// generation may be the repair.
    pub(super) is_current: bool,
}

impl Finding {
    /// A problem of the newest generation.
    pub(super) fn current(problem: Problem) -> Self {
        Self { problem, is_current: true }
    }
}

/// A Deployment: the role serve or the role work.
#[derive(Debug, Clone)]
pub(crate) struct Role {
    /// Its metadata.
    pub(crate) meta: ObjectMeta,
    /// The wanted number of pods.
    pub(crate) replicas: i32,
    /// The number of available pods.
    pub(crate) available: i32,
    /// The image of its pods.
    pub(crate) image: String,
    /// The hash of its pod template; empty while its controller has not observed it.
    pub(crate) template: String,
    /// Why its rollout is not complete; `None` when it is.
    pub(crate) incomplete: Option<String>,
    /// The problem that keeps it from creating pods.
    pub(crate) problem: Option<Problem>,
}

/// A pod of a role.
#[derive(Debug, Clone)]
pub(crate) struct ObservedPod {
    /// Its name.
    pub(crate) name: String,
    /// `serve` or `work`.
    pub(crate) component: String,
    /// The hash of its template.
    pub(crate) template: String,
    /// Its image; empty while the kubelet reports no container.
    pub(crate) image: String,
    /// Its IP address, once it runs.
    pub(crate) address: Option<String>,
    /// The problem that keeps it from running.
    pub(crate) problem: Option<Problem>,
    /// Whether it is being deleted.
    pub(crate) deleting: bool,
    /// Its last answer to `/status`, if that is recent.
    pub(crate) response: Option<Arc<PodResponse>>,
}

impl<'a> Observed<'a> {
    /// Reads the caches, the Events of Jobs without a pod, and `/status` of the pods that run.
    pub(super) async fn read(resource: &'a Guarded, scope: &Scope, memory: &mut Memory, clock: Clock) -> Self {
        let (context, cached) = (&scope.context, resource.0.as_ref().ok());
        let cached = cached.and_then(|resource| resource.status.clone()).unwrap_or_default();
        let mut observed = Self::of(&scope.cache, resource, clock());
        observed.status = memory.current_status(&cached).clone();
        refusal::add_refusals(context, memory, &mut observed).await;
        let addresses = observed.pods.iter().filter_map(|pod| Some((pod.name.clone(), pod.address.clone()?))).collect();
        memory.facts.refresh(&context.http, context.tuning.status_port, &addresses, clock).await;
        observed.now = clock();
        for pod in &mut observed.pods {
            pod.response = memory.facts.of(&pod.name, observed.now.instant);
        }
        observed
    }

    /// Finds the resource's children in the cache.
    fn of(cache: &Cache, resource: &'a Guarded, now: Now) -> Self {
        let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
        let uid = resource.uid().unwrap_or_default();
        let owned = |meta: &ObjectMeta| is_owned(meta, &uid);
        let deployments = cache::of_pipeline(&cache.deployments, &namespace, &name);
        let mut children = cache.others(&namespace, &name);
        children.extend(deployments.iter().map(|of| ((Kind::Deployment, of.name_any()), of.metadata.clone())));
        let role = |component: &str| {
            deployments
                .iter()
                .find(|found| component_of(&found.metadata) == component && owned(&found.metadata))
                .map(|found| Role::of(found))
        };
        let pods = cache::of_pipeline(&cache.pods, &namespace, &name);
        let (mut migrations, mut purges, mut jobs) = (Vec::new(), Vec::new(), BTreeMap::new());
        for job in cache::of_pipeline(&cache.jobs, &namespace, &name).iter().filter(|job| owned(&job.metadata)) {
            let attempt = Attempt::of(job, pods.iter().map(AsRef::as_ref), now.time);
            let attempts = if component_of(&job.metadata) == "migrate" { &mut migrations } else { &mut purges };
            attempts.push(attempt);
            jobs.insert(job.name_any(), job.metadata.clone());
        }
        let runs = |pod: &&Arc<Pod>| ["migrate", "verify"].contains(&component_of(&pod.metadata)) && !is_finished(pod);
        let mut observed_pods: Vec<_> = pods.iter().filter_map(|pod| ObservedPod::of(pod)).collect();
        observed_pods.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            resource,
            status: RecordPipelineStatus::default(),
            serve: role("serve"),
            work: role("work"),
            migrations,
            purges,
            jobs_running: pods.iter().filter(runs).count(),
            pods: observed_pods,
            children,
            jobs,
            now,
        }
    }

    /// The resource's metadata.
    pub(crate) fn meta(&self) -> &'a ObjectMeta {
        self.resource.meta()
    }

    /// Makes conditions of this generation after the previous ones.
    pub(super) fn maker(&self, generation: i64) -> Maker<'_> {
        Maker { before: &self.status.conditions, generation, now: self.now.time }
    }

    /// The newest answer with shards and counts of the whole pipeline, if these are fresh.
    #[must_use]
    pub(crate) fn newest(&self) -> Option<&PodResponse> {
        let responses = self.pods.iter().filter_map(|pod| pod.response.as_deref());
        responses
            .filter(|response| response.answer.counts.is_some() && response.answer.shards.is_some())
            .filter(|response| response.is_fresh(self.now.instant))
            .max_by_key(|response| response.gathered())
    }

    /// The counts of [`Self::newest`].
    #[must_use]
    pub(crate) fn counts(&self) -> Option<PipelineCounts> {
        self.newest().and_then(|response| response.answer.counts)
    }

    /// Whether a pod reports that the schema is missing.
    pub(crate) fn reports_missing_schema(&self) -> bool {
        let mut responses = self.pods.iter().filter_map(|pod| pod.response.as_ref());
        responses.any(|response| response.answer.problems.iter().any(|problem| problem.reason == Reason::NotMigrated))
    }

    /// Pods of a role, including those that are being deleted.
    pub(crate) fn pods_of(&self, component: &str) -> impl Iterator<Item = &ObservedPod> {
        self.pods.iter().filter(move |pod| pod.component == component)
    }

    /// The problems of Deployments and pods, each reason once, then those that the pods report, worst first. Those of
    /// the newest generation, whose pods have these templates, come before all others.
    #[must_use]
    pub(super) fn problems(&self, pipeline: &Validated, templates: &Templates) -> Vec<Finding> {
        let of_role = |(role, template): (&Option<Role>, &String)| {
            let role = role.as_ref()?;
            Some(Finding { problem: role.problem.clone()?, is_current: role.template == *template })
        };
        let roles = [(&self.serve, &templates.serve), (&self.work, &templates.work)].into_iter().filter_map(of_role);
        let pods = || self.pods.iter().filter(|pod| !pod.deleting);
        let is_new = |pod: &ObservedPod| pod.template == templates.of(&pod.component);
        let of_pod = |pod: &ObservedPod| Some(Finding { problem: pod.problem.clone()?, is_current: is_new(pod) });
        let mut found: Vec<_> = roles.chain(pods().filter_map(of_pod)).collect();
        found.sort_by(|a, b| {
            let (a, b) = (&a.problem, &b.problem);
            (a.reason.as_str(), &a.message).cmp(&(b.reason.as_str(), &b.message))
        });
        for pod in pods() {
            let Some(response) = &pod.response else { continue };
            let is_current = is_new(pod) && !is_behind(response, pipeline);
            found.extend(response.answer.problems.iter().cloned().map(|problem| Finding { problem, is_current }));
        }
        found.sort_by_key(|finding| !finding.is_current);
        let mut unique: Vec<Finding> = Vec::new();
        for finding in found {
            if !unique.iter().any(|known| known.problem.reason == finding.problem.reason) {
                unique.push(finding);
            }
        }
        unique
    }
}

/// Whether the manifest that a pod last read is of an older generation.
pub(super) fn is_behind(response: &PodResponse, pipeline: &Validated) -> bool {
    let read = response.answer.manifest.as_ref();
    read.is_some_and(|read| read.uid.as_deref() != Some(&pipeline.uid) || read.generation < pipeline.generation)
}

/// Whether a child belongs to the resource with this uid.
#[must_use]
pub(crate) fn is_owned(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// A child's component label; empty where it has none.
pub(super) fn component_of(meta: &ObjectMeta) -> &str {
    meta.labels.as_ref().and_then(|labels| labels.get(COMPONENT)).map_or("", String::as_str)
}

/// The label with the hash of a pod template; empty where there is none.
fn template_of(meta: &ObjectMeta) -> String {
    meta.labels.as_ref().and_then(|labels| labels.get(TEMPLATE)).cloned().unwrap_or_default()
}

impl Role {
    /// Whether it is not being deleted.
    #[must_use]
    pub(crate) fn is_kept(&self) -> bool {
        self.meta.deletion_timestamp.is_none()
    }

    /// The role that a Deployment is.
    #[must_use]
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let containers = spec.and_then(|spec| spec.template.spec.as_ref()).map(|pod| pod.containers.as_slice());
        // Others may add containers, before this one or after it.
        let main = containers.and_then(|all| all.iter().find(|one| one.name == component_of(&deployment.metadata)));
        let image = main.and_then(|main| main.image.clone()).unwrap_or_default();
        let status = deployment.status.clone().unwrap_or_default();
        let (updated, all) = (status.updated_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
        let available = status.available_replicas.unwrap_or(0);
        let name = deployment.name_any();
        let incomplete = if status.observed_generation < deployment.metadata.generation {
            Some(format!("{name} was changed a moment ago"))
        } else if updated < replicas {
            Some(format!("{name}: {updated} of {replicas} pods are of the new kind"))
        } else if all > updated {
            Some(format!("{name}: {} pods of the old kind are left", all - updated))
        } else if available < replicas {
            Some(format!("{name}: {available} of {replicas} pods are available"))
        } else {
            None
        };
        let conditions = status.conditions.unwrap_or_default();
        let find_condition = |kind: &str, status: &str| {
            conditions.iter().find(|condition| condition.type_ == kind && condition.status == status)
        };
        let message =
            |found: &k8s_openapi::api::apps::v1::DeploymentCondition| found.message.clone().unwrap_or_default();
        let problem = if let Some(found) = find_condition("ReplicaFailure", "True") {
            let reason = refusal::reason(&message(found)).unwrap_or(Reason::PodsNotCreated);
            Some(Problem::new(reason, format!("Deployment {name}: {}", message(found))))
        } else {
            find_condition("Progressing", "False")
                .map(|found| Problem::new(Reason::RolloutFailed, format!("{name}: {}", message(found))))
        };
        let observed = status.observed_generation >= deployment.metadata.generation;
        let template = if observed { template_of(&deployment.metadata) } else { String::new() };
        Self { meta: deployment.metadata.clone(), replicas, available, image, template, incomplete, problem }
    }
}

impl ObservedPod {
    /// A pod of serve or work that is not finished; `None` for every other.
    fn of(pod: &Pod) -> Option<Self> {
        let component = component_of(&pod.metadata).to_owned();
        let status = pod.status.as_ref()?;
        if !["serve", "work"].contains(&component.as_str()) || is_finished(pod) {
            return None;
        }
        let containers = || status.container_statuses.iter().flatten();
        let main = containers().find(|container| container.name == component);
        let running =
            containers().any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
        Some(Self {
            name: pod.name_any(),
            template: template_of(&pod.metadata),
            image: main.map(|main| main.image.clone()).unwrap_or_default(),
            component,
            address: status.pod_ip.clone().filter(|_| running),
            problem: trouble(pod),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            response: None,
        })
    }
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase))
}

/// The problem that keeps a pod from running, as the kubelet or the scheduler reports it.
pub(super) fn trouble(pod: &Pod) -> Option<Problem> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled =
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let message = condition.message.clone().unwrap_or_default();
        return Some(Problem::new(Reason::Unschedulable, format!("pod {name}: {message}")));
    }
    for container in status.container_statuses.iter().flatten() {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
        let message = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
        match reason {
            "" | "ContainerCreating" | "PodInitializing" => {}
            // The kubelet alternates between two of these names.
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
                return Some(Problem::new(
                    Reason::ImagePullBackOff,
                    format!("pod {name}: image {}: {message}", container.image),
                ));
            }
            "CrashLoopBackOff" => {
                let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
                let code = last.map_or(String::new(), |last| format!("exit code {}", last.exit_code));
                let message = format!("pod {name} restarts again and again, {code}: kubectl logs --previous {name}");
                return Some(Problem::new(Reason::CrashLoopBackOff, message));
            }
            other => return Some(Problem::new(Reason::from(other.to_owned()), format!("pod {name}: {message}"))),
        }
    }
    None
}
