//! `millrace-operator check-uninstall`: fails while pipelines exist that nothing could delete in order afterwards.

use anyhow::{Context as _, bail};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::ApiResource,
};
use millrace_crds::RecordPipelineResource;

use crate::{cache::dynamic_api, context::Settings, controller::CLAIM};

/// Flags of `millrace-operator check-uninstall`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckUninstallArgs {
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
///
/// # Errors
/// When pipelines of this release exist: the error names them and the remedy.
pub(crate) async fn run(args: CheckUninstallArgs) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("the API server")?;
    let (resource, claim) = (ApiResource::erase::<RecordPipelineResource>(&()), args.settings.claim());
    let mut left = Vec::new();
    for scope in args.settings.scopes() {
        let api: Api<DynamicObject> = dynamic_api(&client, scope.as_deref(), &resource);
        match api.list_metadata(&ListParams::default()).await {
            Ok(found) => left.extend(
                found
                    .items
                    .into_iter()
                    .filter(|pipeline| pipeline.annotations().get(CLAIM).is_none_or(|of| *of == claim))
                    .map(|pipeline| format!("{}/{}", pipeline.namespace().unwrap_or_default(), pipeline.name_any())),
            ),
            // The definition is deleted, and every pipeline with it.
            // Not `is_not_found`: the API server then answers in plain text.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).context("cannot list RecordPipelines"),
        }
    }
    if left.is_empty() {
        println!("no RecordPipelines are left");
        return Ok(());
    }
    left.sort();
    bail!(
        "RecordPipelines exist: {}. Without their operator they could never be deleted in order: kubectl delete them first, \
         or uninstall with --no-hooks to leave them as they are",
        left.join(", ")
    )
}
