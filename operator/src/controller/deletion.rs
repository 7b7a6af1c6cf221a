//! The end of a pipeline: take no more, work off what is queued, publish it, then let go.
//!
//! Must never create anything but the Job of a purge, and never let go silently of records that are queued: what is left
//! is named in an Event, and stays in Redis.

use std::time::Instant;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Resource as _, ResourceExt as _, runtime::controller::Action};
use millrace_crds::{DeletionPolicy, RecordPipelineResource, RecordPipelineStatus};

use super::{
    SOON, Scope,
    apply::{self, Error, Owner},
    build,
    dereference::Seen,
    memory::Memory,
    migration::{self, Stand},
    reconcile::{ask, collect, stays},
    refusal,
    status::stands,
    still::{self, DRAINED, DRAINING, PURGING},
    write,
};
use crate::{cache::Guarded, facts::Problem, pipeline::Pipeline};

/// How long draining may take unless the spec says otherwise, in seconds.
const DRAIN_SECONDS: u32 = 600;

/// Where draining stands.
#[derive(Debug, PartialEq, Eq)]
enum Drain {
    /// Not yet; why.
    Goes(String),
    /// Nothing is queued, and all is published; what is still to be done.
    Drained(String),
    /// Done, and no pod is left.
    Done,
    /// It cannot be, or no longer; why.
    GivenUp(String),
}

/// One step on the way to the end.
///
/// # Errors
/// When the API server does not do as asked; it is tried again.
pub(super) async fn step(object: &Guarded, scope: &Scope, memory: &mut Memory) -> Result<Action, Error> {
    let context = &scope.context;
    let meta = object.meta();
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let resource = object.0.as_ref().ok();
    let pipeline = resource.and_then(|resource| Pipeline::new(resource).ok());
    let (Some(resource), Some(pipeline)) = (resource, pipeline) else {
        // Nothing was ever built of it that could be drained in order.
        write::event(context, meta, true, "NotDrained", "the resource is invalid: let go as it is".to_owned()).await;
        write::release(context, meta).await?;
        return Ok(Action::await_change());
    };
    let policy = pipeline.spec.deletion_policy.unwrap_or_default();
    let mut seen = Seen::of(&scope.cache, &namespace, &name, &pipeline.uid);
    refusal::find(context, memory, &namespace, &mut seen).await;
    let since = began(memory, resource);
    let owner = Owner { namespace: &namespace, uid: &pipeline.uid };
    ask(context, memory, &seen).await;
    let drain = match policy {
        DeletionPolicy::Now => Drain::GivenUp(String::new()),
        DeletionPolicy::Drain | DeletionPolicy::Purge => {
            drain(scope, memory, resource, &pipeline, &seen, since, owner).await?
        }
    };
    let purges = policy == DeletionPolicy::Purge && !is_foreground(resource);
    let mut problems = Vec::new();
    let reason = match drain {
        Drain::Goes(_) => DRAINING,
        Drain::Drained(_) => DRAINED,
        Drain::Done | Drain::GivenUp(_) => PURGING,
    };
    let going = match drain {
        Drain::Goes(how) | Drain::Drained(how) => Some(how),
        Drain::GivenUp(why) => {
            let left = memory.facts.newest().and_then(|response| response.answer.counts);
            let left = left.map(|counts| counts.backlog).or(resource.status.as_ref().and_then(|status| status.backlog));
            if !why.is_empty() && !memory.given_up {
                memory.given_up = true;
                let backlog = left.map_or("an unknown number of records".to_owned(), |left| format!("{left} records"));
                let fate = if purges {
                    "that are queued are removed with the rest"
                } else {
                    "stay queued in Redis, and are worked off when it is applied again"
                };
                let note = format!("{why}: {backlog} {fate}");
                write::event(context, meta, left != Some(0), "NotDrained", note).await;
            }
            if purges { purge(scope, resource, &pipeline, &seen, owner, &mut problems).await? } else { None }
        }
        Drain::Done if purges => purge(scope, resource, &pipeline, &seen, owner, &mut problems).await?,
        Drain::Done => None,
    };
    let terminating = problems.iter().any(|problem| problem.reason == "NamespaceTerminating");
    let stays_behind = match policy {
        DeletionPolicy::Purge if !purges => Some("foreground deletion removes what the Job stands on"),
        DeletionPolicy::Purge if terminating => Some("no Job can be made in a namespace that is being removed"),
        _ => None,
    };
    let going = going.filter(|_| !terminating);
    if let (Some(why), None) = (stays_behind, &going) {
        write::event(context, meta, true, "NotPurged", format!("{why}: the data stays in Postgres and Redis")).await;
    }
    let Some(going) = going else {
        write::event(context, meta, false, "Deleted", "let go".to_owned()).await;
        write::release(context, meta).await?;
        context.forget(&namespace, &name);
        return Ok(Action::await_change());
    };
    let progress = Problem::new(reason, going);
    tell(scope, memory, resource, &pipeline, &seen, &progress, &problems, since).await?;
    Ok(Action::requeue(SOON))
}

fn is_foreground(resource: &RecordPipelineResource) -> bool {
    resource.finalizers().iter().any(|finalizer| finalizer == "foregroundDeletion")
}

/// When draining began.
fn began(memory: &Memory, resource: &RecordPipelineResource) -> Timestamp {
    let stood = resource.status.clone().unwrap_or_default();
    memory.stood(&stood).draining_since.as_ref().map_or_else(Timestamp::now, |time| time.0)
}

async fn drain(
    scope: &Scope,
    memory: &mut Memory,
    resource: &RecordPipelineResource,
    pipeline: &Pipeline,
    seen: &Seen,
    since: Timestamp,
    owner: Owner<'_>,
) -> Result<Drain, Error> {
    let context = &scope.context;
    let foreground = is_foreground(resource);
    let work = seen.work.as_ref().filter(|work| stays(&work.meta, &pipeline.uid));
    // Told before the workers end: whoever comes after this process cannot ask them any more.
    let stood = resource.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if stands(stood, "Progressing", "True")
        .is_some_and(|condition| [DRAINED, PURGING].contains(&condition.reason.as_str()))
    {
        if let Some(work) = work.filter(|work| work.replicas > 0) {
            apply::scale(context, owner, &work.meta, 0).await?;
        }
        let left = seen.pods_of("work").count();
        return Ok(if left == 0 {
            Drain::Done
        } else {
            Drain::Drained(format!("all is worked off; {left} workers end"))
        });
    }
    let Some(work) = work else {
        let why = if foreground { "foreground deletion took the workers first" } else { "no workers are there" };
        return Ok(Drain::GivenUp(why.to_owned()));
    };
    if foreground {
        return Ok(Drain::GivenUp("foreground deletion does not wait for the workers".to_owned()));
    }
    if work.replicas == 0 {
        return Ok(Drain::GivenUp("replicas is 0: no workers are there to drain it".to_owned()));
    }
    let longest = i64::from(pipeline.spec.drain_seconds.unwrap_or(DRAIN_SECONDS));
    if Timestamp::now().duration_since(since).as_secs() >= longest {
        return Ok(Drain::GivenUp(format!("not drained within {longest} s")));
    }
    if let Some(serve) = seen.serve.as_ref().filter(|serve| serve.replicas > 0 && stays(&serve.meta, &pipeline.uid)) {
        apply::scale(context, owner, &serve.meta, 0).await?;
        return Ok(Drain::Goes("no more records are taken".to_owned()));
    }
    let serving = seen.pods_of("serve").count();
    if serving > 0 {
        memory.serve_gone = None;
        return Ok(Drain::Goes(format!("{serving} pods of serve finish what they hold")));
    }
    let gone = *memory.serve_gone.get_or_insert_with(Instant::now);
    // Only what was counted after the last record was taken tells that none is left.
    let counts =
        memory.facts.newest().filter(|response| response.gathered() > gone).and_then(|response| response.answer.counts);
    match counts {
        None => Ok(Drain::Goes("what is queued is being asked".to_owned())),
        Some(counts) if counts.backlog == 0 && counts.unpublished == 0 => {
            Ok(Drain::Drained("all is worked off and published".to_owned()))
        }
        Some(counts) => Ok(Drain::Goes(format!(
            "{} records are queued, {} outcomes are not published",
            counts.backlog, counts.unpublished
        ))),
    }
}

/// Removes the pipeline's data by a Job; `None` when that is done.
async fn purge(
    scope: &Scope,
    resource: &RecordPipelineResource,
    pipeline: &Pipeline,
    seen: &Seen,
    owner: Owner<'_>,
    problems: &mut Vec<Problem>,
) -> Result<Option<String>, Error> {
    // The image that is known to have worked on this schema.
    let worked = resource.status.as_ref().and_then(|status| status.migrated.as_ref()).map(|by| by.image.clone());
    let wanted = || pipeline.spec.image.clone().unwrap_or_else(|| scope.context.tuning.default_image.clone());
    let image = worked.unwrap_or_else(wanted);
    // Pods that continue would make the schema's rows again.
    for role in [&seen.serve, &seen.work].into_iter().flatten() {
        if role.replicas > 0 && stays(&role.meta, &pipeline.uid) {
            apply::scale(&scope.context, owner, &role.meta, 0).await?;
        }
    }
    // One that ends later would make the schema again; one whose pod others keep would be waited for.
    for running in seen.migrations.iter().filter(|attempt| attempt.open) {
        if let Some(meta) = seen.jobs.get(&running.name) {
            apply::delete(&scope.context, owner, build::Kind::Job, &running.name, meta).await?;
        }
    }
    let ending = seen.pods.len() + seen.migrating;
    if ending > 0 {
        return Ok(Some(format!("{ending} pods end before the data is removed")));
    }
    let key = seen.purges.first().map(|purge| purge.key.clone()).unwrap_or_default();
    match migration::judge(&key, &seen.purges, None, None, Timestamp::now()) {
        Stand::Create(number) => {
            let job = build::purge(pipeline, &image, number);
            collect(problems, apply::create_job(&scope.context, owner, &job).await)?;
            Ok(Some("a Job removes the data".to_owned()))
        }
        Stand::Running(problem) => {
            let wanted = |number| build::template_hash(&build::purge(pipeline, &image, number));
            for waits in seen.purges.iter().filter(|attempt| attempt.is_outlived(&wanted(attempt.number))) {
                if let Some(meta) = seen.jobs.get(&waits.name) {
                    apply::delete(&scope.context, owner, build::Kind::Job, &waits.name, meta).await?;
                }
            }
            problems.extend(problem);
            Ok(Some("a Job removes the data".to_owned()))
        }
        Stand::Failed { problem, .. } => {
            let how = format!("the data is not removed yet: {}", problem.message);
            problems.push(problem);
            Ok(Some(how))
        }
        Stand::Done { .. } => Ok(None),
    }
}

#[expect(clippy::too_many_arguments, reason = "all of it is told")]
async fn tell(
    scope: &Scope,
    memory: &mut Memory,
    resource: &RecordPipelineResource,
    pipeline: &Pipeline,
    seen: &Seen,
    progress: &Problem,
    problems: &[Problem],
    since: Timestamp,
) -> Result<(), Error> {
    let stood = resource.status.clone().unwrap_or_default();
    let counts = memory.facts.newest().and_then(|response| response.answer.counts);
    let before = &memory.stood(&stood).conditions;
    let conditions = still::draining(before, pipeline.generation, progress, problems.first(), Timestamp::now());
    let next = RecordPipelineStatus {
        conditions,
        observed_generation: Some(pipeline.generation),
        replicas: Some(seen.work.as_ref().map_or(0, |work| work.available)),
        backlog: counts.map(|counts| counts.backlog).or(stood.backlog),
        draining_since: Some(Time(since)),
        ..stood.clone()
    };
    write::status(&scope.context, memory, resource.meta(), &stood, next).await
}
