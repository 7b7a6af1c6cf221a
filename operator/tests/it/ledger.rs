//! Counts every write to a pipeline and its children, from the API server's watches.
//!
//! A write is a changed resource version; writes of the fake cluster do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures::StreamExt as _;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, PartialObjectMeta},
    core::ApiResource,
    runtime::{WatchStreamExt as _, watcher},
};
use millrace_crds::RecordPipelineResource;
use tokio::task::JoinSet;

use crate::cluster::FakeCluster;

/// Kind and name of an object.
pub(crate) type Object = (String, String);

/// All writes so far; it watches until it is dropped.
pub(crate) struct Ledger {
    written: Arc<Mutex<BTreeSet<(Object, String)>>>,
    _tasks: JoinSet<()>,
}

/// The kinds that a reconcile may write, except Events and Leases.
fn kinds() -> Vec<ApiResource> {
    vec![
        ApiResource::erase::<RecordPipelineResource>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<Job>(&()),
        ApiResource::erase::<CronJob>(&()),
        ApiResource::erase::<HorizontalPodAutoscaler>(&()),
        ApiResource::erase::<Ingress>(&()),
        ApiResource::erase::<Pod>(&()),
    ]
}

impl Ledger {
    /// Watches a namespace, or all.
    pub(crate) fn new(client: &Client, namespace: Option<&str>) -> Self {
        let written = Arc::<Mutex<BTreeSet<_>>>::default();
        let mut tasks = JoinSet::new();
        for kind in kinds() {
            let api: Api<PartialObjectMeta<DynamicObject>> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
                None => Api::all_with(client.clone(), &kind),
            };
            let written = Arc::clone(&written);
            let changes = watcher(api, watcher::Config::default()).default_backoff().touched_objects();
            tasks.spawn(changes.for_each(move |object| {
                if let Ok(object) = object {
                    let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
                    let entry = ((kind.kind.clone(), name), object.resource_version().unwrap_or_default());
                    written.lock().unwrap().insert(entry);
                }
                futures::future::ready(())
            }));
        }
        Self { written, _tasks: tasks }
    }

    /// The number of writes to each object by the operator or a test.
    pub(crate) fn writes(&self, cluster: &FakeCluster) -> BTreeMap<Object, usize> {
        let mut counts = BTreeMap::new();
        for (object, version) in self.written.lock().unwrap().iter() {
            // Only the cluster writes pods, except for touches.
            if !cluster.wrote(version) {
                *counts.entry(object.clone()).or_default() += 1;
            }
        }
        counts
    }
}
