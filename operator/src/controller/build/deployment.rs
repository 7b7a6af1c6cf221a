//! The Deployments of serve and work.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::api::ObjectMeta;

use super::{Child, Kind, Object, Plan, Validated, labels::TEMPLATE, metadata, pod, pods_of, template};

/// The pods that accept records and answer queries.
pub(super) fn serve(plan: &Plan<'_>) -> Child {
    deployment(plan.pipeline, "serve", plan.serve, pod::serve(plan.pipeline, plan.image))
}

/// The pods that apply records and publish outcomes.
pub(super) fn work(plan: &Plan<'_>) -> Child {
    deployment(plan.pipeline, "work", Some(plan.workers), pod::work(plan.pipeline, plan.image))
}

/// The name of a component's Deployment.
pub(super) fn name(pipeline: &Validated, component: &str) -> String {
    format!("{}-{component}", pipeline.name)
}

fn deployment(
    pipeline: &Validated,
    component: &str,
    replicas: Option<i32>,
    template: Result<PodTemplateSpec, String>,
) -> Child {
    let name = name(pipeline, component);
    let mut template = match template {
        Ok(template) => template,
        Err(cause) => return Child::refused(Kind::Deployment, name, &cause),
    };
    // It distinguishes the pods of this template from older ones.
    let hash = template::hash(&template);
    let label = |meta: &mut ObjectMeta| meta.labels.get_or_insert_default().insert(TEMPLATE.to_owned(), hash.clone());
    label(template.metadata.get_or_insert_default());
    // A new pod is ready before an old one ends: with one replica there is no gap.
    let rolling =
        RollingUpdateDeployment { max_surge: Some(IntOrString::Int(1)), max_unavailable: Some(IntOrString::Int(0)) };
    let spec = DeploymentSpec {
        replicas,
        selector: pods_of(pipeline, component),
        strategy: Some(DeploymentStrategy { type_: Some("RollingUpdate".to_owned()), rolling_update: Some(rolling) }),
        revision_history_limit: Some(3),
        progress_deadline_seconds: Some(600),
        template,
        ..DeploymentSpec::default()
    };
    let mut metadata = metadata(pipeline, name, Some(component));
    label(&mut metadata);
    Child::new(Object::Deployment(Deployment { metadata, spec: Some(spec), status: None }))
}
