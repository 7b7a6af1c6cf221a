//! The objects of a pipeline, in the types of Kubernetes: one file per kind.
//!
//! Pure: the objects depend on nothing but the plan, and the same plan gives the same bytes. The pods' template must
//! never depend on the operator's version, nor on the fields of the manifest that change live (threshold, policy,
//! sinks but the Secrets of webhooks, generation): an upgrade or a new threshold would roll every pod.

mod config_map;
mod cron_job;
mod deployment;
mod horizontal_pod_autoscaler;
mod http_route;
mod ingress;
mod job;
pub(crate) mod labels;
mod network_policy;
mod overrides;
mod pod;
mod pod_disruption_budget;
mod service;
mod service_account;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::{Ingress, NetworkPolicy},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference},
};
use kube::{
    api::{DynamicObject, ObjectMeta},
    core::{ApiResource, GroupVersionKind},
};
use millrace_crds::{Reason, status_api::Problem};
use serde::Serialize;

pub(crate) use self::job::{migration, migration_key, purge};
use self::labels::TEMPLATE;
use super::validate::Validated;

/// The input of a build; the objects depend on nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// The pipeline.
    pub(crate) pipeline: &'a Validated,
    /// The image of the pods of serve and work.
    pub(crate) image: &'a str,
    /// The `replicas` of the Deployment of work.
    pub(crate) workers: i32,
    /// The `replicas` of the Deployment of serve; `None` leaves the field to the HorizontalPodAutoscaler.
    pub(crate) serve: Option<i32>,
    /// The namespace whose pods may reach the health port.
    pub(crate) operator_namespace: &'a str,
}

/// The URL of the API within the cluster.
pub(crate) fn endpoint(pipeline: &Validated) -> String {
    let (scheme, service) = (pod::scheme(pipeline), service::serve_name(pipeline));
    format!("{scheme}://{service}.{}.svc:{}", pipeline.namespace, pod::HTTP)
}

/// One object that belongs to a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its name; its namespace is the pipeline's.
    pub(crate) name: String,
    /// The whole object; or the problem, where the manifest has a field of Kubernetes that has no meaning.
    pub(crate) object: Result<Object, Problem>,
}

/// An object of each kind, with name, namespace, labels and owner.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Object {
    ServiceAccount(ServiceAccount),
    ConfigMap(ConfigMap),
    Service(Service),
    NetworkPolicy(NetworkPolicy),
    PodDisruptionBudget(PodDisruptionBudget),
    Deployment(Deployment),
    Job(Job),
    CronJob(Box<CronJob>),
    HorizontalPodAutoscaler(HorizontalPodAutoscaler),
    Ingress(Ingress),
    HttpRoute(DynamicObject),
}

impl Child {
    /// An object that is complete.
    fn new(object: Object) -> Self {
        let (kind, meta) = match &object {
            Object::ServiceAccount(object) => (Kind::ServiceAccount, &object.metadata),
            Object::ConfigMap(object) => (Kind::ConfigMap, &object.metadata),
            Object::Service(object) => (Kind::Service, &object.metadata),
            Object::NetworkPolicy(object) => (Kind::NetworkPolicy, &object.metadata),
            Object::PodDisruptionBudget(object) => (Kind::PodDisruptionBudget, &object.metadata),
            Object::Deployment(object) => (Kind::Deployment, &object.metadata),
            Object::Job(object) => (Kind::Job, &object.metadata),
            Object::CronJob(object) => (Kind::CronJob, &object.metadata),
            Object::HorizontalPodAutoscaler(object) => (Kind::HorizontalPodAutoscaler, &object.metadata),
            Object::Ingress(object) => (Kind::Ingress, &object.metadata),
            Object::HttpRoute(object) => (Kind::HttpRoute, &object.metadata),
        };
        Self { kind, name: meta.name.clone().unwrap_or_default(), object: Ok(object) }
    }

    /// An object that cannot be made, and the cause.
    fn refused(kind: Kind, name: String, cause: &str) -> Self {
        let problem = Problem::new(Reason::Refused, format!("{kind:?} {name}: {cause}"));
        Self { kind, name, object: Err(problem) }
    }
}

/// The kinds of objects that a pipeline has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// The identity of the pods.
    ServiceAccount,
    /// The manifest.
    ConfigMap,
    /// The address of the pods.
    Service,
    /// The allowed connections to the pods and from them.
    NetworkPolicy,
    /// The number of pods that may be evicted at once.
    PodDisruptionBudget,
    /// The pods of serve and work.
    Deployment,
    /// A migration or a purge.
    Job,
    /// The schedule of verify.
    CronJob,
    /// The number of serve's pods.
    HorizontalPodAutoscaler,
    /// The way from outside to serve.
    Ingress,
    /// The way from outside to serve, by the Gateway API.
    HttpRoute,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 11] = [
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Service,
        Self::NetworkPolicy,
        Self::PodDisruptionBudget,
        Self::Deployment,
        Self::Job,
        Self::CronJob,
        Self::HorizontalPodAutoscaler,
        Self::Ingress,
        Self::HttpRoute,
    ];

    /// Group, version and names of the kind in the API.
    pub(crate) fn resource(self) -> ApiResource {
        match self {
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Job => ApiResource::erase::<Job>(&()),
            Self::CronJob => ApiResource::erase::<CronJob>(&()),
            Self::HorizontalPodAutoscaler => ApiResource::erase::<HorizontalPodAutoscaler>(&()),
            Self::Ingress => ApiResource::erase::<Ingress>(&()),
            Self::HttpRoute => {
                let route = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
                ApiResource::from_gvk_with_plural(&route, "httproutes")
            }
        }
    }
}

/// All objects except Deployments, Jobs and the CronJob: they may exist before the schema is migrated.
pub(crate) fn base(plan: &Plan<'_>) -> Vec<Child> {
    let mut children: Vec<_> = service_account::all(plan.pipeline).into();
    children.push(config_map::manifest(plan.pipeline));
    children.extend(service::all(plan.pipeline));
    children.extend(network_policy::all(plan.pipeline, plan.operator_namespace));
    children.extend(pod_disruption_budget::all(plan.pipeline));
    children.extend(horizontal_pod_autoscaler::serve(plan.pipeline));
    children.extend(ingress::serve(plan.pipeline));
    children.extend(http_route::serve(plan.pipeline));
    children
}

/// The CronJob of verify, where the spec has a schedule.
pub(crate) fn verify(plan: &Plan<'_>) -> Option<Child> {
    cron_job::verify(plan.pipeline, plan.image)
}

/// The Deployments of serve and work.
pub(crate) fn deployments(plan: &Plan<'_>) -> [Child; 2] {
    [deployment::serve(plan), deployment::work(plan)]
}

/// The hash of the pod template of a Job or a Deployment; empty where the object cannot be made.
pub(crate) fn template_of(child: &Child) -> String {
    let labels = match &child.object {
        Ok(Object::Job(job)) => job.metadata.labels.as_ref(),
        Ok(Object::Deployment(deployment)) => deployment.metadata.labels.as_ref(),
        _ => None,
    };
    labels.and_then(|labels| labels.get(TEMPLATE)).cloned().unwrap_or_default()
}

/// The labels that select the pods of a component: `serve`, `work`, `migrate`, `verify` or `purge`.
pub(crate) fn selector(pipeline: &Validated, component: &str) -> BTreeMap<String, String> {
    labels::selector(pipeline, component)
}

/// The metadata of an object; without a component it belongs to the whole pipeline.
fn metadata(pipeline: &Validated, name: String, component: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(pipeline.namespace.clone()),
        labels: Some(labels::of(pipeline, component)),
        owner_references: Some(vec![OwnerReference {
            api_version: pipeline.manifest.api_version.clone(),
            kind: pipeline.manifest.kind.clone(),
            name: pipeline.name.clone(),
            uid: pipeline.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

/// Selects the pods of a component.
fn pods_of(pipeline: &Validated, component: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(pipeline, component)), match_expressions: None }
}

/// A list or a map; an empty one is left out.
fn unless_empty<T>(all: T) -> Option<T>
where
    for<'a> &'a T: IntoIterator,
{
    let is_empty = (&all).into_iter().next().is_none();
    (!is_empty).then_some(all)
}
