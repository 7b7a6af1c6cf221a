//! What there is of a pipeline: its children, as the caches have them. Reads only.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{ResourceExt as _, api::ObjectMeta};

use super::{
    build::{Kind, labels::COMPONENT},
    migration::Attempt,
    refusal,
};
use crate::{
    cache::{self, Cache},
    facts::Problem,
};

/// What there is of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The HTTP role.
    pub(crate) serve: Option<Role>,
    /// The worker role.
    pub(crate) work: Option<Role>,
    /// Jobs of migrations.
    pub(crate) migrations: Vec<Attempt>,
    /// Jobs of purges.
    pub(crate) purges: Vec<Attempt>,
    /// Pods of migrations that are not finished.
    pub(crate) migrating: usize,
    /// Pods of both roles that are not finished.
    pub(crate) pods: Vec<PodSeen>,
    /// Metadata of each child, Jobs excepted.
    pub(crate) children: BTreeMap<(Kind, String), ObjectMeta>,
    /// Metadata of each Job, by name.
    pub(crate) jobs: BTreeMap<String, ObjectMeta>,
}

/// A Deployment.
#[derive(Debug, Clone)]
pub(crate) struct Role {
    /// Its metadata.
    pub(crate) meta: ObjectMeta,
    /// Pods that are wanted.
    pub(crate) replicas: i32,
    /// Pods that are available.
    pub(crate) available: i32,
    /// The image of its pods.
    pub(crate) image: String,
    /// What is not complete about its rollout; `None` when it is.
    pub(crate) incomplete: Option<String>,
    /// What keeps it from making pods.
    pub(crate) problem: Option<Problem>,
}

/// A pod of a role.
#[derive(Debug, Clone)]
pub(crate) struct PodSeen {
    /// Its name.
    pub(crate) name: String,
    /// `serve` or `work`.
    pub(crate) component: String,
    /// Its image; empty while the kubelet knows nothing of it.
    pub(crate) image: String,
    /// Where it can be asked, once it runs.
    pub(crate) address: Option<String>,
    /// What keeps it from running.
    pub(crate) problem: Option<Problem>,
    /// Whether it is being deleted.
    pub(crate) deleting: bool,
}

impl Seen {
    /// Looks through the caches for what belongs to this very resource.
    #[must_use]
    pub(crate) fn of(cache: &Cache, namespace: &str, name: &str, uid: &str) -> Self {
        let owned = |meta: &ObjectMeta| is_owned(meta, uid);
        let deployments = cache::of(&cache.deployments, namespace, name);
        let mut children = cache.others(namespace, name);
        children.extend(deployments.iter().map(|of| ((Kind::Deployment, of.name_any()), of.metadata.clone())));
        let role = |component: &str| {
            deployments
                .iter()
                .find(|found| component_of(&found.metadata) == component && owned(&found.metadata))
                .map(|found| Role::of(found))
        };
        let pods = cache::of(&cache.pods, namespace, name);
        let mut seen = Self { serve: role("serve"), work: role("work"), children, ..Self::default() };
        for job in cache::of(&cache.jobs, namespace, name).iter().filter(|job| owned(&job.metadata)) {
            let attempt = Attempt::of(job, pods.iter().map(AsRef::as_ref));
            if component_of(&job.metadata) == "migrate" {
                seen.migrations.push(attempt);
            } else {
                seen.purges.push(attempt);
            }
            seen.jobs.insert(job.name_any(), job.metadata.clone());
        }
        let finished = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase.is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase))
        };
        seen.migrating = pods.iter().filter(|pod| component_of(&pod.metadata) == "migrate" && !finished(pod)).count();
        seen.pods = pods.iter().filter_map(|pod| PodSeen::of(pod)).collect();
        seen.pods.sort_by(|a, b| a.name.cmp(&b.name));
        seen
    }

    /// Pods of a role, those that are being deleted among them.
    pub(crate) fn pods_of(&self, component: &str) -> impl Iterator<Item = &PodSeen> {
        self.pods.iter().filter(move |pod| pod.component == component)
    }

    /// What keeps pods and Deployments from running, each once.
    #[must_use]
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let roles = [&self.serve, &self.work].into_iter().flatten().filter_map(|role| role.problem.clone());
        let pods = self.pods.iter().filter(|pod| !pod.deleting).filter_map(|pod| pod.problem.clone());
        let mut found: Vec<_> = roles.chain(pods).collect();
        found.sort();
        found.dedup_by(|a, b| a.reason == b.reason);
        found
    }
}

/// Whether a child is this very resource's.
#[must_use]
pub(crate) fn is_owned(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

pub(super) fn component_of(meta: &ObjectMeta) -> &str {
    meta.labels.as_ref().and_then(|labels| labels.get(COMPONENT)).map_or("", String::as_str)
}

impl Role {
    /// What there is of a Deployment.
    #[must_use]
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let containers = spec.and_then(|spec| spec.template.spec.as_ref()).map(|pod| pod.containers.as_slice());
        // Others may add containers of their own, before it or after.
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
        let stands = |kind: &str, status: &str| {
            conditions.iter().find(|condition| condition.type_ == kind && condition.status == status)
        };
        let message =
            |found: &k8s_openapi::api::apps::v1::DeploymentCondition| found.message.clone().unwrap_or_default();
        let problem = if let Some(found) = stands("ReplicaFailure", "True") {
            let reason = refusal::reason(&message(found)).unwrap_or("PodsNotCreated");
            Some(Problem::new(reason, format!("Deployment {name}: {}", message(found))))
        } else {
            stands("Progressing", "False")
                .map(|found| Problem::new("RolloutFailed", format!("{name}: {}", message(found))))
        };
        Self { meta: deployment.metadata.clone(), replicas, available, image, incomplete, problem }
    }
}

impl PodSeen {
    fn of(pod: &Pod) -> Option<Self> {
        let component = component_of(&pod.metadata).to_owned();
        let status = pod.status.as_ref()?;
        let phase = status.phase.as_deref().unwrap_or_default();
        if !["serve", "work"].contains(&component.as_str()) || ["Succeeded", "Failed"].contains(&phase) {
            return None;
        }
        let containers = || status.container_statuses.iter().flatten();
        let main = containers().find(|container| container.name == component);
        let running =
            containers().any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
        Some(Self {
            name: pod.name_any(),
            image: main.map(|main| main.image.clone()).unwrap_or_default(),
            component,
            address: status.pod_ip.clone().filter(|_| running),
            problem: trouble(pod),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// What keeps a pod from running, as the kubelet or the scheduler says.
pub(super) fn trouble(pod: &Pod) -> Option<Problem> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled =
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let message = condition.message.clone().unwrap_or_default();
        return Some(Problem::new("Unschedulable", format!("pod {name}: {message}")));
    }
    for container in status.container_statuses.iter().flatten() {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
        let message = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
        match reason {
            "" | "ContainerCreating" | "PodInitializing" => {}
            // One state, two names in turn.
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
                return Some(Problem::new(
                    "ImagePullBackOff",
                    format!("pod {name}: image {}: {message}", container.image),
                ));
            }
            "CrashLoopBackOff" => {
                let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
                let code = last.map_or(String::new(), |last| format!("exit code {}", last.exit_code));
                let said = format!("pod {name} restarts again and again, {code}: kubectl logs --previous {name}");
                return Some(Problem::new("CrashLoopBackOff", said));
            }
            other => return Some(Problem::new(other, format!("pod {name}: {message}"))),
        }
    }
    None
}
