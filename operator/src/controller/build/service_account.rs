//! ServiceAccounts: each kind of pod has its own. None has a token, for no pod calls the API server.

use serde_json::json;

use super::{Child, Head, Kind};
use crate::pipeline::Pipeline;

/// The accounts of serve, of work, and of the Jobs.
pub(super) fn all(pipeline: &Pipeline) -> Vec<Child> {
    ["serve", "work", "migrate"]
        .map(|component| {
            let head = Head::new(Kind::ServiceAccount, name(pipeline, component), Some(component));
            head.child(pipeline, json!({ "automountServiceAccountToken": false }))
        })
        .into()
}

/// The name of the account of a component's pods; a purge has the account of the migration.
pub(super) fn name(pipeline: &Pipeline, component: &str) -> String {
    let component = if component == "purge" { "migrate" } else { component };
    format!("{}-{component}", pipeline.name)
}
