//! PodDisruptionBudgets: a drain of nodes takes one pod of a component at a time.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Child, Object, Validated, metadata, pods_of};

/// The budgets of serve and of work. They bound the unavailable pods: `minAvailable` would block the drain of a node
/// that has the only pod. Unhealthy pods may always be evicted, or a broken pipeline would block the drain of a node
/// for ever.
pub(super) fn all(pipeline: &Validated) -> [Child; 2] {
    ["serve", "work"].map(|component| {
        let spec = PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            selector: Some(pods_of(pipeline, component)),
            min_available: None,
        };
        let metadata = metadata(pipeline, format!("{}-{component}", pipeline.name), Some(component));
        Child::new(Object::PodDisruptionBudget(PodDisruptionBudget { metadata, spec: Some(spec), status: None }))
    })
}
