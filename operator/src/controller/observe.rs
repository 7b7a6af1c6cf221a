//! The children of a pipeline, as the caches hold them. It writes nothing.

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

/// The children of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The Deployment of serve.
    pub(crate) serve: Option<Role>,
    /// The Deployment of work.
    pub(crate) work: Option<Role>,
    /// Jobs of migrations.
    pub(crate) migrations: Vec<Attempt>,
    /// Jobs of purges.
    pub(crate) purges: Vec<Attempt>,
    /// Pods of migrations that are not finished.
    pub(crate) migrating: usize,
    /// Pods of both roles that are not finished.
    pub(crate) pods: Vec<PodSeen>,
    /// Metadata of each child except Jobs.
    pub(crate) children: BTreeMap<(Kind, String), ObjectMeta>,
    /// Metadata of each Job, by name.
    pub(crate) jobs: BTreeMap<String, ObjectMeta>,
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
    /// Why its rollout is not complete; `None` when it is.
    pub(crate) incomplete: Option<String>,
    /// The problem that keeps it from creating pods.
    pub(crate) problem: Option<Problem>,
}

/// A pod of a role.
#[derive(Debug, Clone)]
pub(crate) struct PodSeen {
    /// Its name.
    pub(crate) name: String,
    /// `serve` or `work`.
    pub(crate) component: String,
    /// Its image; empty while the kubelet reports no container.
    pub(crate) image: String,
    /// Its IP address, once it runs.
    pub(crate) address: Option<String>,
    /// The problem that keeps it from running.
    pub(crate) problem: Option<Problem>,
    /// Whether it is being deleted.
    pub(crate) deleting: bool,
}

impl Seen {
    /// Finds in the cache the children of the resource with this uid.
    #[must_use]
    pub(crate) fn of(cache: &Cache, namespace: &str, name: &str, uid: &str) -> Self {
        let owned = |meta: &ObjectMeta| is_owned(meta, uid);
        let deployments = cache::of_pipeline(&cache.deployments, namespace, name);
        let mut children = cache.others(namespace, name);
        children.extend(deployments.iter().map(|of| ((Kind::Deployment, of.name_any()), of.metadata.clone())));
        let role = |component: &str| {
            deployments
                .iter()
                .find(|found| component_of(&found.metadata) == component && owned(&found.metadata))
                .map(|found| Role::of(found))
        };
        let pods = cache::of_pipeline(&cache.pods, namespace, name);
        let mut seen = Self { serve: role("serve"), work: role("work"), children, ..Self::default() };
        for job in cache::of_pipeline(&cache.jobs, namespace, name).iter().filter(|job| owned(&job.metadata)) {
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

    /// Pods of a role, including those that are being deleted.
    pub(crate) fn pods_of(&self, component: &str) -> impl Iterator<Item = &PodSeen> {
        self.pods.iter().filter(move |pod| pod.component == component)
    }

    /// The problems of Deployments and pods, each reason once.
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

/// Whether a child belongs to the resource with this uid.
#[must_use]
pub(crate) fn is_owned(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// A child's component label; empty where it has none.
pub(super) fn component_of(meta: &ObjectMeta) -> &str {
    meta.labels.as_ref().and_then(|labels| labels.get(COMPONENT)).map_or("", String::as_str)
}

impl Role {
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
            let reason = refusal::reason(&message(found)).unwrap_or("PodsNotCreated");
            Some(Problem::new(reason, format!("Deployment {name}: {}", message(found))))
        } else {
            find_condition("Progressing", "False")
                .map(|found| Problem::new("RolloutFailed", format!("{name}: {}", message(found))))
        };
        Self { meta: deployment.metadata.clone(), replicas, available, image, incomplete, problem }
    }
}

impl PodSeen {
    /// A pod of serve or work that is not finished; `None` for every other.
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

/// The problem that keeps a pod from running, as the kubelet or the scheduler reports it.
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
            // The kubelet alternates between two of these names.
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
                return Some(Problem::new(
                    "ImagePullBackOff",
                    format!("pod {name}: image {}: {message}", container.image),
                ));
            }
            "CrashLoopBackOff" => {
                let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
                let code = last.map_or(String::new(), |last| format!("exit code {}", last.exit_code));
                let message = format!("pod {name} restarts again and again, {code}: kubectl logs --previous {name}");
                return Some(Problem::new("CrashLoopBackOff", message));
            }
            other => return Some(Problem::new(other, format!("pod {name}: {message}"))),
        }
    }
    None
}
