//! The HorizontalPodAutoscaler of serve. Workers have none: the operator scales them by the backlog of records.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget,
    ResourceMetricSource,
};
use millrace_crds::ServeAutoscaling;

use super::{Child, Object, Validated, deployment, metadata};

/// The HorizontalPodAutoscaler of serve, where the manifest has one.
pub(super) fn serve(pipeline: &Validated) -> Option<Child> {
    let scaling = pipeline.spec.serve.as_ref()?.autoscaling.as_ref()?;
    let ServeAutoscaling { min_replicas, max_replicas, target_cpu_percent } = scaling;
    let number = |of: u32| i32::try_from(of).unwrap_or(i32::MAX);
    let name = deployment::name(pipeline, "serve");
    let target = MetricTarget {
        type_: "Utilization".to_owned(),
        average_utilization: Some(number(target_cpu_percent.unwrap_or(80))),
        ..MetricTarget::default()
    };
    let cpu = MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource { name: "cpu".to_owned(), target }),
        ..MetricSpec::default()
    };
    let spec = HorizontalPodAutoscalerSpec {
        scale_target_ref: CrossVersionObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: "Deployment".to_owned(),
            name: name.clone(),
        },
        min_replicas: Some(number(*min_replicas)),
        max_replicas: number(*max_replicas),
        metrics: Some(vec![cpu]),
        behavior: None,
    };
    let metadata = metadata(pipeline, name, Some("serve"));
    let object = HorizontalPodAutoscaler { metadata, spec: Some(spec), status: None };
    Some(Child::new(Object::HorizontalPodAutoscaler(object)))
}
