//! Speeds up changes of a pod's files: the kubelet checks them at once when the pod's metadata changes, and within a
//! minute and a half otherwise.
//!
//! It must never touch a pod whose files are current.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{apply::Error, dereference::Seen, memory::Memory};
use crate::{context::Context, pipeline::Pipeline};

/// The annotation that a touch changes.
const TOUCHED: &str = "millrace.dev/touched";

/// Touches pods whose files are behind; returns the time until the next touch.
///
/// # Errors
/// When a request to the API server fails.
pub(super) async fn touch(
    context: &Context,
    memory: &mut Memory,
    pipeline: &Pipeline,
    seen: &Seen,
) -> Result<Option<Duration>, Error> {
    let now = Instant::now();
    let permits = &pipeline.manifest.metadata.annotations;
    let permitted = permits.values().next().map(|_| hex::encode(&Sha256::digest(json!(permits).to_string())[..4]));
    let mut next: Option<Duration> = None;
    for pod in seen.pods.iter().filter(|pod| !pod.deleting) {
        let Some(response) = memory.facts.of(&pod.name) else { continue };
        let read = response.answer.manifest.as_ref();
        let current = read.is_some_and(|read| {
            read.uid.as_deref() == Some(&pipeline.uid) && read.generation >= Some(pipeline.generation)
        });
        let reports = |reasons: &[&str]| {
            response.answer.problems.iter().any(|problem| reasons.contains(&problem.reason.as_str()))
        };
        let purpose = if !current {
            format!("g{}", pipeline.generation)
        } else if reports(&["SecretNotFound", "SecretInvalid"]) {
            "secret".to_owned()
        } else if let Some(permitted) = &permitted
            && reports(&["OtherPipeline", "UidNotClaimed", "ManifestRefused"])
        {
            // Annotations permit it; they come with the manifest and are no new generation.
            format!("a{permitted}")
        } else {
            memory.touches.remove(&pod.name);
            continue;
        };
        if let Some(count) = memory.touch(&pod.name, &purpose, now) {
            context.leadership.check()?;
            let patch = json!({ "metadata": { "annotations": { TOUCHED: format!("{purpose}-{count}") } } });
            let api: Api<Pod> = Api::namespaced(context.client.clone(), &pipeline.namespace);
            match api.patch_metadata(&pod.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let due = memory.touches[&pod.name].due.saturating_duration_since(now);
        next = Some(next.map_or(due, |next| next.min(due)));
    }
    memory.touches.retain(|pod, _| seen.pods.iter().any(|seen| seen.name == *pod));
    Ok(next)
}
