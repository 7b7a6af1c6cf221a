//! The objects of a pipeline, as plain JSON: one file per kind.
//!
//! Pure: the objects depend on nothing but the plan, and the same plan gives the same bytes. The pods' template must
//! never depend on the operator's version, nor on the fields of the manifest that change live (threshold, policy,
//! sinks, generation): an upgrade or a new threshold would roll every pod.

mod config_map;
mod deployment;
mod horizontal_pod_autoscaler;
mod http_route;
mod ingress;
mod job;
pub(crate) mod labels;
mod network_policy;
mod pod;
mod pod_disruption_budget;
mod service;
mod service_account;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

pub(crate) use self::job::{migration, migration_key, purge, template_hash};
use crate::pipeline::Pipeline;

/// The input of a build; the objects depend on nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// The pipeline.
    pub(crate) pipeline: &'a Pipeline,
    /// The image of the pods of serve and work.
    pub(crate) image: &'a str,
    /// The `replicas` of the Deployment of work.
    pub(crate) workers: i32,
    /// The `replicas` of the Deployment of serve; `None` leaves the field to the HorizontalPodAutoscaler.
    pub(crate) serve: Option<i32>,
    /// The namespace whose pods may reach the health port.
    pub(crate) operator_namespace: &'a str,
}

/// One object that belongs to a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its name; its namespace is the pipeline's.
    pub(crate) name: String,
    /// The whole object: apiVersion, kind, metadata with name, namespace, labels and ownerReferences, and the rest.
    pub(crate) object: Value,
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
    /// The number of serve's pods.
    HorizontalPodAutoscaler,
    /// The way from outside to serve.
    Ingress,
    /// The way from outside to serve, by the Gateway API.
    HttpRoute,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 10] = [
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Service,
        Self::NetworkPolicy,
        Self::PodDisruptionBudget,
        Self::Deployment,
        Self::Job,
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
            Self::HorizontalPodAutoscaler => ApiResource::erase::<HorizontalPodAutoscaler>(&()),
            Self::Ingress => ApiResource::erase::<Ingress>(&()),
            Self::HttpRoute => {
                let route = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
                ApiResource::from_gvk_with_plural(&route, "httproutes")
            }
        }
    }
}

/// All objects except Deployments and Jobs: they may exist before the schema is migrated.
pub(crate) fn base(plan: &Plan<'_>) -> Vec<Child> {
    let mut children = service_account::all(plan.pipeline);
    children.push(config_map::manifest(plan.pipeline));
    children.extend(service::all(plan.pipeline));
    children.extend(network_policy::all(plan.pipeline, plan.operator_namespace));
    children.extend(pod_disruption_budget::all(plan.pipeline));
    children.extend(horizontal_pod_autoscaler::serve(plan.pipeline));
    children.extend(ingress::serve(plan.pipeline));
    children.extend(http_route::serve(plan.pipeline));
    children
}

/// The Deployments of serve and work.
pub(crate) fn deployments(plan: &Plan<'_>) -> Vec<Child> {
    vec![deployment::serve(plan), deployment::work(plan)]
}

/// The labels that select the pods of a component: `serve`, `work`, `migrate` or `purge`.
pub(crate) fn selector(pipeline: &Pipeline, component: &str) -> BTreeMap<String, String> {
    labels::selector(pipeline, component)
}

/// The parts that all objects of a pipeline have.
struct Head<'a> {
    kind: Kind,
    name: String,
    /// `None` for an object of the whole pipeline.
    component: Option<&'a str>,
    annotations: &'a BTreeMap<String, String>,
}

impl<'a> Head<'a> {
    fn new(kind: Kind, name: String, component: Option<&'a str>) -> Self {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        Self { kind, name, component, annotations: &NONE }
    }

    /// The object, with the fields of `body` beside its metadata: mostly `{"spec": …}`.
    fn child(self, pipeline: &Pipeline, body: Value) -> Child {
        let Self { kind, name, component, annotations } = self;
        let resource = kind.resource();
        let mut metadata = json!({
            "name": name,
            "namespace": pipeline.namespace,
            "labels": labels::of(pipeline, component),
            "ownerReferences": [{
                "apiVersion": pipeline.manifest.api_version,
                "kind": pipeline.manifest.kind,
                "name": pipeline.name,
                "uid": pipeline.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        });
        if !annotations.is_empty() {
            metadata["annotations"] = json!(annotations);
        }
        let mut object = body;
        object["apiVersion"] = json!(resource.api_version);
        object["kind"] = json!(resource.kind);
        object["metadata"] = metadata;
        Child { kind, name, object }
    }
}
