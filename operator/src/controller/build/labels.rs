//! The labels by which Kubernetes recommends to tell what belongs to what.

use std::collections::BTreeMap;

use crate::pipeline::Pipeline;

/// Names an object's pipeline.
pub(crate) const INSTANCE: &str = "app.kubernetes.io/instance";
/// Names an object's role: `serve`, `work`, `migrate` or `purge`.
pub(crate) const COMPONENT: &str = "app.kubernetes.io/component";
/// Names what a Job depends on, hashed.
pub(crate) const KEY: &str = "millrace.dev/migration-key";
/// Names what a Job's pod is made of, hashed.
pub(crate) const TEMPLATE: &str = "millrace.dev/template";
/// Numbers a Job's attempt.
pub(crate) const ATTEMPT: &str = "millrace.dev/attempt";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const PART_OF: &str = "app.kubernetes.io/part-of";
const OPERATOR: &str = "millrace-operator";

/// Selects all that the operator made.
pub(crate) fn ours() -> String {
    format!("{MANAGED_BY}={OPERATOR}")
}

/// The labels of an object; without a component it belongs to the whole pipeline.
pub(super) fn of(pipeline: &Pipeline, component: Option<&str>) -> BTreeMap<String, String> {
    let component = component.map(|component| (COMPONENT, component));
    [("app.kubernetes.io/name", "millrace"), (INSTANCE, &pipeline.name), (MANAGED_BY, OPERATOR), (PART_OF, "millrace")]
        .into_iter()
        .chain(component)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Those that select the pods of a component. A Deployment's selector is immutable: these must never change.
pub(super) fn selector(pipeline: &Pipeline, component: &str) -> BTreeMap<String, String> {
    let mut labels = of(pipeline, Some(component));
    labels.remove(MANAGED_BY);
    labels.remove(PART_OF);
    labels
}
