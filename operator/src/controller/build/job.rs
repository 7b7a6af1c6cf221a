//! The Jobs: migrations of the schema, and the purge of all data.
//!
//! A Job's template is immutable, so a Job is created and never applied; its name holds a hash of everything that it
//! depends on. It runs once: the operator decides about the next attempt, which is the next Job. It stays until its
//! pipeline is deleted or the operator deletes it, for the operator reads the cause of a failure from it.

use std::collections::BTreeMap;

use millrace_crds::ADOPT;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Child, Head, Kind,
    labels::{ATTEMPT, KEY, TEMPLATE},
    pod,
};
use crate::pipeline::Pipeline;

/// The migration's Job, `NAME-migrate-KEY-ATTEMPT`. With `contract` it runs the contracting steps, which break pods of
/// older images.
pub(crate) fn migration(pipeline: &Pipeline, image: &str, key: &str, attempt: u32, contract: bool) -> Child {
    let name = format!("{}-migrate-{key}-{attempt}", pipeline.name);
    let labels = [(KEY, key.to_owned()), (ATTEMPT, attempt.to_string())];
    let (args, deadline): (&[&str], _) =
        if contract { (&["migrate", "--contract"], 3600) } else { (&["migrate"], 600) };
    job(pipeline, "migrate", name, &labels, image, args, deadline)
}

/// The hash of everything that a migration depends on: 8 hexadecimal digits, so that the longest name of a pipeline
/// leaves room for an attempt of 5 digits within the 63 characters of a Job's name.
pub(crate) fn migration_key(pipeline: &Pipeline, image: &str, contract: bool) -> String {
    let millrace_crds::SecretKeyRef { name, key } = &pipeline.postgres;
    // JSON separates the texts without ambiguity.
    let parts = json!([image, name, key, pipeline.uid, pipeline.manifest.annotation(ADOPT), contract]);
    hex::encode(&Sha256::digest(parts.to_string())[..4])
}

/// The Job that removes the pipeline's schema and its Redis keys, `NAME-purge-ATTEMPT`.
pub(crate) fn purge(pipeline: &Pipeline, image: &str, attempt: u32) -> Child {
    let name = format!("{}-purge-{attempt}", pipeline.name);
    job(pipeline, "purge", name, &[(ATTEMPT, attempt.to_string())], image, &["purge", "--yes"], 3600)
}

fn job(
    pipeline: &Pipeline,
    component: &'static str,
    name: String,
    labels: &[(&str, String)],
    image: &str,
    args: &[&str],
    deadline_seconds: u32,
) -> Child {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let spec = json!({
        "backoffLimit": 0,
        "activeDeadlineSeconds": deadline_seconds,
        "template": pod::job(pipeline, component, image, args, &labels),
    });
    let mut child = Head::new(Kind::Job, name, Some(component)).child(pipeline, json!({ "spec": spec }));
    for (name, value) in labels {
        child.object["metadata"]["labels"][name] = json!(value);
    }
    child.object["metadata"]["labels"][TEMPLATE] = json!(template_hash(&child));
    child
}

/// The hash of a Job's pod template. The attempt's number is left out: the next attempt has the same pod.
pub(crate) fn template_hash(job: &Child) -> String {
    let mut template = job.object["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(ATTEMPT);
    }
    hex::encode(&Sha256::digest(template.to_string())[..4])
}
