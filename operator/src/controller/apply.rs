//! Brings children to what they should be: by server-side apply, and by removal of what is no longer wanted.
//!
//! Nothing is sent for a child that stands as it was applied. Must never take over an object that someone else made, and
//! must never delete one that changed since it was seen.

use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use sha2::{Digest as _, Sha256};

use super::{
    build::{Child, Kind},
    dereference::is_owned,
    memory::Memory,
    refusal,
};
use crate::{context::Context, facts::Problem, lease::NotLeading};

/// Who owns the fields that the operator applies.
const MANAGER: &str = "millrace-operator";

/// Who owns a number of pods on its way to an autoscaler.
const SCALE_MANAGER: &str = "millrace-operator-scale";

/// Why a step did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server did not do as asked.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// This process may not write.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// Something that the status tells; the other children are brought on nevertheless.
    #[error("{}: {}", .0.reason, .0.message)]
    Problem(Problem),
}

/// The pipeline that children belong to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// Its namespace.
    pub(crate) namespace: &'a str,
    /// Its uid.
    pub(crate) uid: &'a str,
}

/// A merge patch by the operator.
pub(super) fn merge() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn api(context: &Context, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(context.client.clone(), namespace, &kind.resource())
}

/// Brings one child to what it should be; `live` is its metadata, when it is there.
///
/// # Errors
/// [`Error::Problem`] for what the status should tell.
pub(crate) async fn apply(
    context: &Context,
    memory: &mut Memory,
    owner: Owner<'_>,
    child: &Child,
    live: Option<&ObjectMeta>,
) -> Result<(), Error> {
    let key = (child.kind, child.name.clone());
    let hash: [u8; 32] = Sha256::digest(child.object.to_string()).into();
    let version = live.and_then(|meta| meta.resource_version.as_deref());
    if memory.applied.get(&key).is_some_and(|(applied, at)| *applied == hash && version == Some(at)) {
        return Ok(());
    }
    let api = api(context, child.kind, owner.namespace);
    let there = match live {
        Some(meta) => Some(meta.clone()),
        // What someone else made has no label of ours, and is not in the cache.
        None => api
            .get_metadata_opt(&child.name)
            .await
            .map_err(|error| told(child.kind, &child.name, error))?
            .map(|found| found.metadata),
    };
    if let Some(meta) = &there {
        external(child, meta, owner)?;
    }
    if there.is_some() {
        hand_over_replicas(context, &api, child).await?;
    }
    context.leadership.check()?;
    let parameters = PatchParams::apply(MANAGER).force();
    let mut applied = api.patch(&child.name, &parameters, &Patch::Apply(&child.object)).await;
    if let (Err(kube::Error::Api(status)), Some(meta), Kind::Service) = (&applied, &there, child.kind)
        && status.code == 422
    {
        // Ports are told apart by their number: one whose number someone changed is another one, and stands in the way of
        // ours by its name. So the whole list is put in its place.
        let ports = serde_json::json!({
            "metadata": { "uid": meta.uid },
            "spec": { "ports": child.object["spec"]["ports"] },
        });
        api.patch(&child.name, &merge(), &Patch::Merge(&ports))
            .await
            .map_err(|error| told(child.kind, &child.name, error))?;
        applied = api.patch(&child.name, &parameters, &Patch::Apply(&child.object)).await;
    }
    let applied = applied.map_err(|error| told(child.kind, &child.name, error))?;
    let version = applied.metadata.resource_version.unwrap_or_default();
    if there.and_then(|meta| meta.resource_version).as_ref() != Some(&version) {
        tracing::info!(event = "apply.child.written", namespace = owner.namespace, kind = ?child.kind, name = child.name, "wrote an object of a pipeline");
        metrics::counter!(crate::metrics::WRITES, "kind" => format!("{:?}", child.kind)).increment(1);
    }
    memory.applied.insert(key, (hash, version));
    Ok(())
}

/// Before a Deployment's `replicas` are left to an autoscaler: another manager of ours takes them as they are. An apply
/// removes what only it owns and no longer names, and the API server then makes it one pod.
async fn hand_over_replicas(context: &Context, api: &Api<DynamicObject>, child: &Child) -> Result<(), Error> {
    if child.kind != Kind::Deployment || child.object["spec"].get("replicas").is_some() {
        return Ok(());
    }
    let Some(live) = api.get_opt(&child.name).await? else { return Ok(()) };
    let owned = live.metadata.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0["f:spec"].get("f:replicas").is_some())
    });
    if owned {
        context.leadership.check()?;
        // An autoscaler leaves one that is at nought alone.
        let replicas = live.data["spec"]["replicas"].as_i64().unwrap_or(1).max(1);
        let handed = serde_json::json!({
            "apiVersion": child.object["apiVersion"],
            "kind": child.object["kind"],
            "metadata": { "name": child.name, "uid": live.metadata.uid },
            "spec": { "replicas": replicas },
        });
        let parameters = PatchParams::apply(SCALE_MANAGER).force();
        api.patch(&child.name, &parameters, &Patch::Apply(&handed)).await?;
    }
    Ok(())
}

/// Creates a Job; it is never changed afterwards.
///
/// # Errors
/// [`Error::Problem`] for what the status should tell.
pub(crate) async fn create_job(context: &Context, owner: Owner<'_>, child: &Child) -> Result<(), Error> {
    context.leadership.check()?;
    let object: DynamicObject = serde_json::from_value(child.object.clone()).map_err(kube::Error::SerdeError)?;
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    match api(context, child.kind, owner.namespace).create(&parameters, &object).await {
        Ok(_) => {
            tracing::info!(event = "apply.job.created", namespace = owner.namespace, job = child.name, "created a Job");
            metrics::counter!(crate::metrics::WRITES, "kind" => "Job").increment(1);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            match api(context, child.kind, owner.namespace).get_metadata_opt(&child.name).await? {
                Some(found) => external(child, &found.metadata, owner),
                None => Ok(()),
            }
        }
        Err(error) => Err(told(child.kind, &child.name, error)),
    }
}

/// Deletes a child, as long as it is the one that was seen.
///
/// # Errors
/// When the API server cannot be reached. One that is gone, or changed since, is no error: the watch brings it again.
pub(crate) async fn delete(
    context: &Context,
    owner: Owner<'_>,
    kind: Kind,
    name: &str,
    meta: &ObjectMeta,
) -> Result<(), Error> {
    if meta.deletion_timestamp.is_some() || !is_owned(meta, owner.uid) {
        return Ok(());
    }
    context.leadership.check()?;
    let parameters = DeleteParams {
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() }),
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    match api(context, kind, owner.namespace).delete(name, &parameters).await {
        Ok(_) => {
            tracing::info!(
                event = "apply.child.deleted",
                namespace = owner.namespace,
                ?kind,
                name,
                "deleted an object of a pipeline"
            );
            metrics::counter!(crate::metrics::WRITES, "kind" => format!("{kind:?}")).increment(1);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(told(kind, name, error)),
    }
}

/// Changes the number of a Deployment's pods, and nothing else; creates nothing.
///
/// # Errors
/// When the API server cannot be reached. One that is gone, or changed since, is no error.
pub(crate) async fn scale(context: &Context, owner: Owner<'_>, meta: &ObjectMeta, replicas: i32) -> Result<(), Error> {
    context.leadership.check()?;
    let name = meta.name.as_deref().unwrap_or_default();
    let patch = serde_json::json!({
        "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version },
        "spec": { "replicas": replicas },
    });
    match api(context, Kind::Deployment, owner.namespace).patch(name, &merge(), &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(
                event = "apply.deployment.scaled",
                namespace = owner.namespace,
                name,
                replicas,
                "scaled a Deployment"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An object of the same name that is not this pipeline's.
fn external(child: &Child, meta: &ObjectMeta, owner: Owner<'_>) -> Result<(), Error> {
    if is_owned(meta, owner.uid) && meta.deletion_timestamp.is_none() {
        return Ok(());
    }
    let (kind, name) = (child.kind, &child.name);
    let pipelines = meta.owner_references.iter().flatten().any(|of| of.kind == millrace_crds::KIND);
    let (reason, message) = if meta.deletion_timestamp.is_some() || pipelines {
        (
            "PreviousObjectsTerminating",
            format!("{kind:?} {name} of an earlier pipeline of this name is still being removed"),
        )
    } else {
        ("NameClash", format!("{kind:?} {name} is there and is not this pipeline's: delete or rename it"))
    };
    Err(Error::Problem(Problem::new(reason, message)))
}

/// What the API server refused for a reason that a person has to know.
fn told(kind: Kind, name: &str, error: kube::Error) -> Error {
    let kube::Error::Api(status) = &error else { return error.into() };
    let reason = match status.code {
        400.. if let Some(reason) = refusal::reason(&status.message) => reason,
        403 if status.message.contains("being terminated") => "NamespaceTerminating",
        403 => "Forbidden",
        404 if kind == Kind::HttpRoute => {
            let message = format!("{kind:?} {name}: the Gateway API is not installed in this cluster");
            return Error::Problem(Problem::new("GatewayApiMissing", message));
        }
        400 | 422 => "Refused",
        // What breaks the schema of a field that the resource takes as it is.
        500 if status.message.contains("failed to create typed patch object") => "Refused",
        _ => return error.into(),
    };
    Error::Problem(Problem::new(reason, format!("{kind:?} {name}: {}", status.message)))
}
