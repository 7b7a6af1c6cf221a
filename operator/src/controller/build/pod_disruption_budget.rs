//! PodDisruptionBudgets: a drain of nodes takes one pod of a component at a time.

use serde_json::json;

use super::{Child, Head, Kind, selector};
use crate::pipeline::Pipeline;

/// The budgets of serve and of work. They bound the unavailable pods: `minAvailable` would block the drain of a node
/// that has the only pod. Unhealthy pods may always be evicted, or a broken pipeline would block the drain of a node
/// for ever.
pub(super) fn all(pipeline: &Pipeline) -> Vec<Child> {
    ["serve", "work"]
        .map(|component| {
            let name = format!("{}-{component}", pipeline.name);
            Head::new(Kind::PodDisruptionBudget, name, Some(component)).child(
                pipeline,
                json!({ "spec": {
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": { "matchLabels": selector(pipeline, component) },
            } }),
            )
        })
        .into()
}
