//! Speeds up changes of a pod's files: the kubelet checks them at once when the pod's metadata changes, and within a
//! minute and a half otherwise.
//!
//! It must never touch a pod whose files are current.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use millrace_crds::Reason;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    apply::Error,
    memory::Memory,
    observe::{Observed, is_behind},
    validate::Validated,
};
use crate::{clock::Now, context::Context};

/// The annotation that a touch changes.
const TOUCHED: &str = "millrace.dev/touched";

/// A pod whose files are behind.
#[derive(Debug)]
pub(super) struct PodTouch {
    /// The pod's name.
    pub(super) pod: String,
    /// What its files lack.
    purpose: String,
}

/// Problems that another content of a Secret may end.
const SECRETS: [Reason; 7] = [
    Reason::SecretNotFound,
    Reason::SecretInvalid,
    Reason::TlsFilesInvalid,
    Reason::TlsExpired,
    Reason::TlsUntrusted,
    Reason::TlsNameMismatch,
    Reason::TlsClientRefused,
];

/// The pods whose files are behind. Drops the touches of those whose files are current.
pub(super) fn wanted(observed: &Observed<'_>, pipeline: &Validated, memory: &mut Memory) -> Vec<PodTouch> {
    let permits = &pipeline.manifest.metadata.annotations;
    let permitted = permits.values().next().map(|_| hex::encode(&Sha256::digest(json!(permits).to_string())[..4]));
    let mut found = Vec::new();
    for pod in observed.pods.iter().filter(|pod| !pod.deleting) {
        let Some(response) = &pod.response else { continue };
        let current = response.answer.manifest.is_some() && !is_behind(response, pipeline);
        let reports =
            |reasons: &[Reason]| response.answer.problems.iter().any(|problem| reasons.contains(&problem.reason));
        let purpose = if !current {
            format!("g{}", pipeline.generation)
        } else if reports(&SECRETS) {
            "secret".to_owned()
        } else if let Some(permitted) = &permitted
            && reports(&[Reason::OtherPipeline, Reason::UidNotClaimed, Reason::ManifestRefused])
        {
            // Annotations permit it; they come with the manifest and are no new generation.
            format!("a{permitted}")
        } else {
            memory.touches.remove(&pod.name);
            continue;
        };
        found.push(PodTouch { pod: pod.name.clone(), purpose });
    }
    memory.touches.retain(|name, _| observed.pods.iter().any(|pod| pod.name == *name));
    found
}

/// Touches a pod, unless its last touch was a moment ago.
///
/// # Errors
/// When a request to the API server fails.
pub(super) async fn touch(
    context: &Context,
    memory: &mut Memory,
    namespace: &str,
    touch: &PodTouch,
    now: Now,
) -> Result<(), Error> {
    let PodTouch { pod, purpose } = touch;
    let Some(count) = memory.touch(pod, purpose, now.instant) else { return Ok(()) };
    context.leadership.check()?;
    let patch = json!({ "metadata": { "annotations": { TOUCHED: format!("{purpose}-{count}") } } });
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    match api.patch_metadata(pod, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
