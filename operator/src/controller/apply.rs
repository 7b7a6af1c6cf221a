//! Brings about what a pass desires: writes children by server-side apply, and deletes those that are no longer wanted.
//!
//! It sends nothing for a child that is as it was applied. It must never take over an object that someone else created,
//! and must never delete one that changed since it was read.

use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use millrace_crds::{Reason, status_api::Problem};
use sha2::{Digest as _, Sha256};

use super::{
    build::{Child, Kind, Object},
    desire::{Desired, Scale, Unwanted},
    memory::Memory,
    observe::{Observed, is_owned},
    refusal,
    touch::touch,
    validate::Validated,
    write,
};
use crate::{context::Context, lease::NotLeading};

/// The manager of the fields that the operator applies.
const MANAGER: &str = "millrace-operator";

/// The manager of a Deployment's `replicas` while they pass to an autoscaler.
const SCALE_MANAGER: &str = "millrace-operator-scale";

/// The cause of a step's failure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request to the API server failed.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// This process may not write.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// A problem for the status; the pass continues with the other children.
    #[error("{}: {}", .0.reason, .0.message)]
    Problem(Problem),
}

/// The problems of what a pass applied.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Of objects except the Job, in their order.
    pub(super) problems: Vec<Problem>,
    /// Of the Job.
    pub(super) job: Option<Problem>,
}

/// Brings about what a pass desires, except the status.
///
/// # Errors
/// When a request to the API server fails. Refused objects are problems of the outcome.
pub(super) async fn apply_all(
    context: &Context,
    memory: &mut Memory,
    observed: &Observed<'_>,
    pipeline: &Validated,
    desired: &Desired,
) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    for notice in &desired.events {
        write::event(context, observed.meta(), notice).await;
    }
    apply_each(context, memory, observed, pipeline, &desired.base, &mut applied).await?;
    for unwanted in &desired.unwanted {
        delete(context, pipeline, unwanted).await?;
        memory.applied.remove(&(unwanted.kind, unwanted.name.clone()));
    }
    if let Some(job) = &desired.job {
        applied.job = problem(create_job(context, pipeline, job).await)?;
    }
    apply_each(context, memory, observed, pipeline, &desired.deployments, &mut applied).await?;
    for wanted in &desired.scales {
        scale(context, pipeline, wanted).await?;
    }
    for pod in &desired.touches {
        touch(context, memory, &pipeline.namespace, pod, observed.now).await?;
    }
    Ok(applied)
}

async fn apply_each(
    context: &Context,
    memory: &mut Memory,
    observed: &Observed<'_>,
    pipeline: &Validated,
    children: &[Child],
    applied: &mut Applied,
) -> Result<(), Error> {
    for child in children {
        let live = observed.children.get(&(child.kind, child.name.clone()));
        applied.problems.extend(problem(apply(context, memory, pipeline, child, live).await)?);
    }
    Ok(())
}

/// The problem for the status; every other error ends the pass.
fn problem(result: Result<(), Error>) -> Result<Option<Problem>, Error> {
    match result {
        Ok(()) => Ok(None),
        Err(Error::Problem(problem)) => Ok(Some(problem)),
        Err(error) => Err(error),
    }
}

/// The parameters of a merge patch by the operator.
pub(super) fn merge() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn api(context: &Context, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(context.client.clone(), namespace, &kind.resource())
}

/// Applies one child; `live` is its metadata where the cache holds it.
///
/// # Errors
/// [`Error::Problem`] for a problem that belongs into the status.
async fn apply(
    context: &Context,
    memory: &mut Memory,
    pipeline: &Validated,
    child: &Child,
    live: Option<&ObjectMeta>,
) -> Result<(), Error> {
    let key = (child.kind, child.name.clone());
    let object = child.object.as_ref().map_err(|problem| Error::Problem(problem.clone()))?;
    let hash: [u8; 32] = Sha256::digest(serde_json::to_vec(object).map_err(kube::Error::SerdeError)?).into();
    let version = live.and_then(|meta| meta.resource_version.as_deref());
    if memory.applied.get(&key).is_some_and(|(applied, at)| *applied == hash && version == Some(at)) {
        return Ok(());
    }
    let api = api(context, child.kind, &pipeline.namespace);
    let existing = match live {
        Some(meta) => Some(meta.clone()),
        // An object that someone else created has no label of ours, and is not in the cache.
        None => api
            .get_metadata_opt(&child.name)
            .await
            .map_err(|error| classify(child.kind, &child.name, error))?
            .map(|found| found.metadata),
    };
    if let Some(meta) = &existing {
        check_owner(child, meta, pipeline)?;
        if let Object::Deployment(deployment) = object {
            hand_over_replicas(context, &api, deployment).await?;
        }
    }
    context.leadership.check()?;
    let parameters = PatchParams::apply(MANAGER).force();
    let mut applied = api.patch(&child.name, &parameters, &Patch::Apply(object)).await;
    if let (Err(kube::Error::Api(status)), Some(meta), Object::Service(service)) = (&applied, &existing, object)
        && status.code == 422
    {
        // A port is identified by its number: one whose number someone changed is another port, and its name clashes
        // with that of ours. So the whole list is replaced.
        let ports = serde_json::json!({
            "metadata": { "uid": meta.uid },
            "spec": { "ports": service.spec.as_ref().and_then(|spec| spec.ports.as_ref()) },
        });
        api.patch(&child.name, &merge(), &Patch::Merge(&ports))
            .await
            .map_err(|error| classify(child.kind, &child.name, error))?;
        applied = api.patch(&child.name, &parameters, &Patch::Apply(object)).await;
    }
    let applied = applied.map_err(|error| classify(child.kind, &child.name, error))?;
    let version = applied.metadata.resource_version.unwrap_or_default();
    if existing.and_then(|meta| meta.resource_version).as_ref() != Some(&version) {
        tracing::info!(event = "apply.child.written", namespace = pipeline.namespace, kind = ?child.kind, name = child.name, "wrote an object of a pipeline");
        metrics::counter!(crate::metrics::WRITES, "kind" => format!("{:?}", child.kind)).increment(1);
    }
    memory.applied.insert(key, (hash, version));
    Ok(())
}

/// Before an autoscaler sets a Deployment's `replicas`: another manager of ours takes them over unchanged. An apply
/// removes a field that only its manager owns and that it no longer names, and the API server then sets 1.
async fn hand_over_replicas(context: &Context, api: &Api<DynamicObject>, wanted: &Deployment) -> Result<(), Error> {
    if wanted.spec.as_ref().is_some_and(|spec| spec.replicas.is_some()) {
        return Ok(());
    }
    let name = wanted.metadata.name.as_deref().unwrap_or_default();
    let Some(live) = api.get_opt(name).await? else { return Ok(()) };
    let owned = live.metadata.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0["f:spec"].get("f:replicas").is_some())
    });
    if owned {
        context.leadership.check()?;
        // An autoscaler ignores a Deployment with 0 replicas.
        let replicas = live.data["spec"]["replicas"].as_i64().unwrap_or(1).max(1);
        let handed = serde_json::json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": name, "uid": live.metadata.uid },
            "spec": { "replicas": replicas },
        });
        let parameters = PatchParams::apply(SCALE_MANAGER).force();
        api.patch(name, &parameters, &Patch::Apply(&handed)).await?;
    }
    Ok(())
}

/// Creates a Job; nothing changes it afterwards. A Job of that name that the pipeline owns is no error.
///
/// # Errors
/// [`Error::Problem`] for a problem that belongs into the status.
async fn create_job(context: &Context, pipeline: &Validated, child: &Child) -> Result<(), Error> {
    let job = match &child.object {
        Ok(Object::Job(job)) => job,
        Ok(_) => return Ok(()),
        Err(problem) => return Err(Error::Problem(problem.clone())),
    };
    context.leadership.check()?;
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    match Api::<Job>::namespaced(context.client.clone(), &pipeline.namespace).create(&parameters, job).await {
        Ok(_) => {
            tracing::info!(
                event = "apply.job.created",
                namespace = pipeline.namespace,
                job = child.name,
                "created a Job"
            );
            metrics::counter!(crate::metrics::WRITES, "kind" => "Job").increment(1);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            match api(context, child.kind, &pipeline.namespace).get_metadata_opt(&child.name).await? {
                Some(found) => check_owner(child, &found.metadata, pipeline),
                None => Ok(()),
            }
        }
        Err(error) => Err(classify(child.kind, &child.name, error)),
    }
}

/// Deletes a child, unless it changed since it was observed.
///
/// # Errors
/// When the API server is unreachable. A child that is deleted or changed already is no error: the watch brings the change.
async fn delete(context: &Context, pipeline: &Validated, unwanted: &Unwanted) -> Result<(), Error> {
    let Unwanted { kind, name, meta } = unwanted;
    if meta.deletion_timestamp.is_some() || !is_owned(meta, &pipeline.uid) {
        return Ok(());
    }
    context.leadership.check()?;
    let parameters = DeleteParams {
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() }),
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    match api(context, *kind, &pipeline.namespace).delete(name, &parameters).await {
        Ok(_) => {
            tracing::info!(
                event = "apply.child.deleted",
                namespace = pipeline.namespace,
                ?kind,
                name,
                "deleted an object of a pipeline"
            );
            metrics::counter!(crate::metrics::WRITES, "kind" => format!("{kind:?}")).increment(1);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(classify(*kind, name, error)),
    }
}

/// Sets the `replicas` of a Deployment, and nothing else; it creates nothing.
///
/// # Errors
/// When the API server is unreachable. A Deployment that is deleted, or changed since it was observed, is no error.
async fn scale(context: &Context, pipeline: &Validated, wanted: &Scale) -> Result<(), Error> {
    let Scale { meta, replicas } = wanted;
    context.leadership.check()?;
    let name = meta.name.as_deref().unwrap_or_default();
    let patch = serde_json::json!({
        "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version },
        "spec": { "replicas": replicas },
    });
    match api(context, Kind::Deployment, &pipeline.namespace).patch(name, &merge(), &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(
                event = "apply.deployment.scaled",
                namespace = pipeline.namespace,
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

/// Fails for an object of the child's name that is not this pipeline's, or that is being deleted.
fn check_owner(child: &Child, meta: &ObjectMeta, pipeline: &Validated) -> Result<(), Error> {
    if is_owned(meta, &pipeline.uid) && meta.deletion_timestamp.is_none() {
        return Ok(());
    }
    let (kind, name) = (child.kind, &child.name);
    let pipelines = meta.owner_references.iter().flatten().any(|of| of.kind == millrace_crds::KIND);
    let (reason, message) = if meta.deletion_timestamp.is_some() || pipelines {
        (
            Reason::PreviousObjectsTerminating,
            format!("{kind:?} {name} of an earlier pipeline of this name is still being removed"),
        )
    } else {
        (Reason::NameClash, format!("{kind:?} {name} is there and is not this pipeline's: delete or rename it"))
    };
    Err(Error::Problem(Problem::new(reason, message)))
}

/// The problem that a refusal of the API server is; every other error as it is.
fn classify(kind: Kind, name: &str, error: kube::Error) -> Error {
    let kube::Error::Api(status) = &error else { return error.into() };
    let reason = match status.code {
        400.. if let Some(reason) = refusal::reason(&status.message) => reason,
        403 if status.message.contains("being terminated") => Reason::NamespaceTerminating,
        403 => Reason::Forbidden,
        404 if kind == Kind::HttpRoute => {
            let message = format!("{kind:?} {name}: the Gateway API is not installed in this cluster");
            return Error::Problem(Problem::new(Reason::GatewayApiMissing, message));
        }
        400 | 422 => Reason::Refused,
        // The value breaks the schema of a field that the resource passes on unchecked.
        500 if status.message.contains("failed to create typed patch object") => Reason::Refused,
        _ => return error.into(),
    };
    Error::Problem(Problem::new(reason, format!("{kind:?} {name}: {}", status.message)))
}
