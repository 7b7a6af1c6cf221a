//! The HorizontalPodAutoscaler of serve. Workers have none: the operator scales them by the backlog of records.

use millrace_crds::ServeAutoscaling;
use serde_json::json;

use super::{Child, Head, Kind, deployment};
use crate::pipeline::Pipeline;

/// The HorizontalPodAutoscaler of serve, where the manifest has one.
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
