//! The Deployments of serve and work.

use serde_json::{Value, json};

use super::{Child, Head, Kind, Plan, pod, selector};
use crate::pipeline::Pipeline;

/// The pods that accept records and answer queries.
pub(super) fn serve(plan: &Plan<'_>) -> Child {
    deployment(plan.pipeline, "serve", plan.serve, pod::serve(plan.pipeline, plan.image))
}

/// The pods that apply records and publish outcomes.
pub(super) fn work(plan: &Plan<'_>) -> Child {
    deployment(plan.pipeline, "work", Some(plan.workers), pod::work(plan.pipeline, plan.image))
}

/// The name of a component's Deployment.
pub(super) fn name(pipeline: &Pipeline, component: &str) -> String {
    format!("{}-{component}", pipeline.name)
}

fn deployment(pipeline: &Pipeline, component: &str, replicas: Option<i32>, template: Value) -> Child {
    let mut spec = json!({
        "selector": { "matchLabels": selector(pipeline, component) },
        // A new pod is ready before an old one ends: with one replica there is no gap.
        "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": 600,
        "template": template,
    });
    if let Some(replicas) = replicas {
        spec["replicas"] = json!(replicas);
    }
    let head = Head::new(Kind::Deployment, name(pipeline, component), Some(component));
    head.child(pipeline, json!({ "spec": spec }))
}
