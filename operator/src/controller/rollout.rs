//! The rollout of a new default image: one pipeline at a time, in the order of their names. Where one does not become
//! ready with it, the others stay as they are. Pure except for the caches that it reads.

use std::collections::{BTreeMap, HashMap};

use kube::{Resource as _, ResourceExt as _};
use millrace_crds::RecordPipelineResource;

use super::{
    build::labels::{COMPONENT, INSTANCE},
    condition::{self, ConditionType, Status},
    observe::{Role, is_owned},
    validate::Validated,
    write::CLAIM,
};
use crate::context::Context;

/// A pipeline that follows the default image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Follower {
    /// `<namespace>/<name>`.
    pub(crate) key: String,
    /// Whether its pods have the default image already.
    pub(crate) took: bool,
    /// Whether its rollout is complete and it is ready, with its current image.
    pub(crate) is_ready: bool,
}

/// The pipeline that another one waits for before it takes the default image; `None` when it waits for none.
#[must_use]
pub(crate) fn waits_for(me: &str, others: &[Follower]) -> Option<String> {
    others
        .iter()
        .filter(|other| other.key != me && (if other.took { !other.is_ready } else { other.key.as_str() < me }))
        .map(|other| other.key.clone())
        .min()
}

/// Every pipeline of this release that follows the default image and has pods.
pub(crate) fn followers(context: &Context) -> Vec<Follower> {
    let claim = context.settings.claim();
    let mut found = Vec::new();
    // A pipeline of a namespace that the operator cannot read takes no image, either.
    for cache in context.caches.iter().filter(|cache| cache.is_read()) {
        // By pipeline, in one go: a search through all Deployments for each pipeline would take quadratic time.
        let mut deployments: HashMap<(String, String), Vec<_>> = HashMap::new();
        for deployment in cache.deployments.state() {
            let instance = deployment.labels().get(INSTANCE).cloned().unwrap_or_default();
            deployments.entry((deployment.namespace().unwrap_or_default(), instance)).or_default().push(deployment);
        }
        for object in cache.pipelines.state() {
            let Ok(resource) = &object.0 else { continue };
            let mine = resource.annotations().get(CLAIM).is_some_and(|of| *of == claim);
            let follows = resource.spec.image.is_none() && resource.spec.paused != Some(true);
            if !mine || !follows || resource.meta().deletion_timestamp.is_some() || Validated::new(resource).is_err() {
                continue;
            }
            let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
            let uid = resource.uid().unwrap_or_default();
            let owned = deployments.get(&(namespace.clone(), name.clone())).into_iter().flatten();
            let owned: Vec<_> = owned.filter(|deployment| is_owned(&deployment.metadata, &uid)).collect();
            let is_work = |labels: &BTreeMap<String, String>| labels.get(COMPONENT).is_some_and(|of| of == "work");
            let Some(work) = owned.iter().find(|deployment| is_work(deployment.labels())) else { continue };
            let work = Role::of(work);
            let took = work.image == context.tuning.default_image;
            let complete = owned.iter().all(|deployment| Role::of(deployment).incomplete.is_none());
            found.push(Follower {
                key: format!("{namespace}/{name}"),
                took,
                is_ready: complete && (work.replicas == 0 || is_ready(resource)),
            });
        }
    }
    found
}

fn is_ready(resource: &RecordPipelineResource) -> bool {
    let conditions = resource.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::find(conditions, ConditionType::Ready, Status::True).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower(key: &str, took: bool, is_ready: bool) -> Follower {
        Follower { key: key.into(), took, is_ready }
    }

    #[test]
    fn pipelines_take_an_image_one_by_one_and_none_after_a_failure() {
        let (old, fails, new) =
            (|key| follower(key, false, true), |key| follower(key, true, false), |key| follower(key, true, true));
        let all = [old("n/a"), old("n/b"), old("n/c")];
        assert_eq!(waits_for("n/a", &all), None);
        assert_eq!(waits_for("n/b", &all).as_deref(), Some("n/a"));
        assert_eq!(waits_for("n/c", &all).as_deref(), Some("n/a"));
        let all = [fails("n/a"), old("n/b"), old("n/c")];
        assert_eq!(waits_for("n/b", &all).as_deref(), Some("n/a"), "it stops at the first that fails");
        let all = [new("n/a"), old("n/b"), old("n/c")];
        assert_eq!(waits_for("n/b", &all), None);
        assert_eq!(waits_for("n/c", &all).as_deref(), Some("n/b"));
    }
}
