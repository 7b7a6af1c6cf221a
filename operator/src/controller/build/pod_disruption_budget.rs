//! PodDisruptionBudgets: a drain of nodes takes one pod of a component at a time.

use serde_json::json;

use super::{Child, Head, Kind, selector};
use crate::pipeline::Pipeline;

/// Of serve and of work. A share of one: `minAvailable` would let no node be drained where there is one pod. Pods that
/// are not healthy serve nobody and may always go, or a broken pipeline would hold up the drain of a node for ever.
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
