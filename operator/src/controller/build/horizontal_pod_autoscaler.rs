//! The HorizontalPodAutoscaler of serve. Workers have none: they follow the true backlog, which it cannot see.

use millrace_crds::ServeAutoscaling;
use serde_json::json;

use super::{Child, Head, Kind, deployment};
use crate::pipeline::Pipeline;

/// Of serve, where the manifest asks for it.
pub(super) fn serve(pipeline: &Pipeline) -> Option<Child> {
    let scaling = pipeline.spec.serve.as_ref()?.autoscaling.as_ref()?;
    let ServeAutoscaling { min_replicas, max_replicas, target_cpu_percent } = scaling;
    let name = deployment::name(pipeline, "serve");
    let spec = json!({
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name },
        "minReplicas": min_replicas,
        "maxReplicas": max_replicas,
        "metrics": [{ "type": "Resource", "resource": {
            "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": target_cpu_percent.unwrap_or(80) },
        } }],
    });
    Some(Head::new(Kind::HorizontalPodAutoscaler, name, Some("serve")).child(pipeline, json!({ "spec": spec })))
}
