//! The Jobs: migrations of the schema, and the purge of all data.
//!
//! A Job's template is immutable, so a Job is created and never applied; its name holds a hash of everything that it
//! depends on. It runs once: the operator decides about the next attempt, which is the next Job. It stays until its
//! pipeline is deleted or the operator deletes it, for the operator reads the cause of a failure from it.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use millrace_crds::ADOPT;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Child, Kind, Object, Validated,
    labels::{ATTEMPT, KEY, TEMPLATE},
    metadata, pod, template,
};

/// The migration's Job, `NAME-migrate-KEY-ATTEMPT`. With `contract` it runs the contracting steps, which break pods of
/// older images.
pub(crate) fn migration(pipeline: &Validated, image: &str, key: &str, attempt: u32, contract: bool) -> Child {
    let name = format!("{}-migrate-{key}-{attempt}", pipeline.name);
    let labels = [(KEY, key.to_owned()), (ATTEMPT, attempt.to_string())];
    let (args, deadline): (&[&str], _) =
        if contract { (&["migrate", "--contract"], 3600) } else { (&["migrate"], 600) };
    job(pipeline, "migrate", name, &labels, image, args, deadline)
}

/// The hash of everything that a migration depends on: 8 hexadecimal digits, so that the longest name of a pipeline
/// leaves room for an attempt of 5 digits within the 63 characters of a Job's name.
pub(crate) fn migration_key(pipeline: &Validated, image: &str, contract: bool) -> String {
    let millrace_crds::SecretKeyRef { name, key } = &pipeline.postgres;
    // JSON separates the texts without ambiguity.
    let mut parts = vec![json!([image, name, key, pipeline.uid, pipeline.manifest.annotation(ADOPT), contract])];
    // A migration without TLS keeps its key.
    parts.extend(pipeline.spec.postgres.as_ref().and_then(|postgres| postgres.tls.as_ref()).map(|tls| json!(tls)));
    let parts: String = parts.iter().map(ToString::to_string).collect();
    hex::encode(&Sha256::digest(parts)[..4])
}

/// The Job that removes the pipeline's schema and its Redis keys, `NAME-purge-ATTEMPT`.
pub(crate) fn purge(pipeline: &Validated, image: &str, attempt: u32) -> Child {
    let name = format!("{}-purge-{attempt}", pipeline.name);
    job(pipeline, "purge", name, &[(ATTEMPT, attempt.to_string())], image, &["purge", "--yes"], 3600)
}

fn job(
    pipeline: &Validated,
    component: &'static str,
    name: String,
    labels: &[(&str, String)],
    image: &str,
    args: &[&str],
    deadline_seconds: i64,
) -> Child {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let template = match pod::job(pipeline, component, image, args, &labels) {
        Ok(template) => template,
        Err(cause) => return Child::refused(Kind::Job, name, &cause),
    };
    let mut metadata = metadata(pipeline, name, Some(component));
    let own = labels.into_iter().chain([(TEMPLATE.to_owned(), template::hash(&template))]);
    metadata.labels.get_or_insert_default().extend(own);
    let spec = JobSpec {
        backoff_limit: Some(0),
        active_deadline_seconds: Some(deadline_seconds),
        template,
        ..JobSpec::default()
    };
    Child::new(Object::Job(Job { metadata, spec: Some(spec), status: None }))
}
