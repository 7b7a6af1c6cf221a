//! The labels by which Kubernetes recommends to tell what belongs to what.

use std::collections::BTreeMap;

use crate::pipeline::Pipeline;

/// The labels of an object; without a component it belongs to the whole pipeline.
pub(super) fn of(pipeline: &Pipeline, component: Option<&str>) -> BTreeMap<String, String> {
    let component = component.map(|component| ("app.kubernetes.io/component", component));
    [
        ("app.kubernetes.io/name", "millrace"),
        ("app.kubernetes.io/instance", &pipeline.name),
        ("app.kubernetes.io/managed-by", "millrace-operator"),
        ("app.kubernetes.io/part-of", "millrace"),
    ]
    .into_iter()
    .chain(component)
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Those that select the pods of a component. A Deployment's selector is immutable: these must never change.
pub(super) fn selector(pipeline: &Pipeline, component: &str) -> BTreeMap<String, String> {
    let mut labels = of(pipeline, Some(component));
    labels.remove("app.kubernetes.io/managed-by");
    labels.remove("app.kubernetes.io/part-of");
    labels
}
