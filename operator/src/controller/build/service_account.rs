//! ServiceAccounts: each kind of pod has its own, and none has a token, for no pod talks to the API server.

use serde_json::json;

use super::{Child, Head, Kind};
use crate::pipeline::Pipeline;

/// Of serve, of work, and of the Jobs.
pub(super) fn all(pipeline: &Pipeline) -> Vec<Child> {
    ["serve", "work", "migrate"]
        .map(|component| {
            let head = Head::new(Kind::ServiceAccount, name(pipeline, component), Some(component));
            head.child(pipeline, json!({ "automountServiceAccountToken": false }))
        })
        .into()
}

/// The account that pods of a component run as; a purge runs as the migration does.
pub(super) fn name(pipeline: &Pipeline, component: &str) -> String {
    let component = if component == "purge" { "migrate" } else { component };
    format!("{}-{component}", pipeline.name)
}
