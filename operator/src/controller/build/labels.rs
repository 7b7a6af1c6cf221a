//! The labels of a pipeline's objects: those that Kubernetes recommends, and our own on Jobs.

use std::collections::BTreeMap;

use super::super::validate::Validated;

/// The name of an object's pipeline.
pub(crate) const INSTANCE: &str = "app.kubernetes.io/instance";
/// The role of an object: `serve`, `work`, `migrate`, `verify` or `purge`.
pub(crate) const COMPONENT: &str = "app.kubernetes.io/component";
/// The hash of everything that a Job depends on.
pub(crate) const KEY: &str = "millrace.dev/migration-key";
/// The hash of the pod template of a Job or a Deployment, on it and on the pods of a Deployment.
pub(crate) const TEMPLATE: &str = "millrace.dev/template";
/// The number of a Job's attempt.
pub(crate) const ATTEMPT: &str = "millrace.dev/attempt";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const PART_OF: &str = "app.kubernetes.io/part-of";
const OPERATOR: &str = "millrace-operator";

/// A selector of all objects that the operator created.
pub(crate) fn ours() -> String {
    format!("{MANAGED_BY}={OPERATOR}")
}

/// The labels of an object; without a component it belongs to the whole pipeline.
pub(super) fn of(pipeline: &Validated, component: Option<&str>) -> BTreeMap<String, String> {
    let component = component.map(|component| (COMPONENT, component));
    [("app.kubernetes.io/name", "millrace"), (INSTANCE, &pipeline.name), (MANAGED_BY, OPERATOR), (PART_OF, "millrace")]
        .into_iter()
        .chain(component)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The labels that select the pods of a component. A Deployment's selector is immutable: they must never change.
pub(super) fn selector(pipeline: &Validated, component: &str) -> BTreeMap<String, String> {
    let mut labels = of(pipeline, Some(component));
    labels.remove(MANAGED_BY);
    labels.remove(PART_OF);
    labels
}
