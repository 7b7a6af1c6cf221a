//! ServiceAccounts: each kind of pod has its own. None has a token, for no pod calls the API server.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{Child, Object, Validated, metadata};

/// The accounts of serve, of work, and of the Jobs.
pub(super) fn all(pipeline: &Validated) -> [Child; 3] {
    ["serve", "work", "migrate"].map(|component| {
        Child::new(Object::ServiceAccount(ServiceAccount {
            metadata: metadata(pipeline, name(pipeline, component), Some(component)),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        }))
    })
}

/// The name of the account of a component's pods; a verify and a purge have the account of the migration.
pub(super) fn name(pipeline: &Validated, component: &str) -> String {
    let component = if ["verify", "purge"].contains(&component) { "migrate" } else { component };
    format!("{}-{component}", pipeline.name)
}
