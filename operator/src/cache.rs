//! What the API server holds of pipelines and their children, watched and kept in memory without what nothing reads.
//!
//! One cache for each watched namespace, or one for all. Must never be written to but by what the API server sent.

use std::{collections::BTreeMap, fmt::Debug, hash::Hash, pin::Pin};

use futures::{Stream, StreamExt as _, future, stream};
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DynamicObject, PartialObjectMeta},
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use millrace_crds::RecordPipelineResource;
use serde::de::DeserializeOwned;

use crate::controller::build::Kind;

/// A pipeline as the API server gave it, or why it could not be read.
pub(crate) type Guarded = DeserializeGuard<RecordPipelineResource>;
/// What is kept of a child of which only the metadata matters.
pub(crate) type Meta = PartialObjectMeta<DynamicObject>;
/// Pipelines whose children changed.
pub(crate) type Triggers = Pin<Box<dyn Stream<Item = ObjectRef<Guarded>> + Send>>;

/// The label that names a child's pipeline.
pub(crate) const INSTANCE: &str = "app.kubernetes.io/instance";
const OURS: &str = "app.kubernetes.io/managed-by=millrace-operator";

/// The caches of one namespace, or of all.
#[derive(Clone)]
pub(crate) struct Cache {
    /// Pipelines.
    pub(crate) pipelines: Store<Guarded>,
    /// Deployments of serve and work.
    pub(crate) deployments: Store<Deployment>,
    /// Jobs of migrations and purges.
    pub(crate) jobs: Store<Job>,
    /// Their pods.
    pub(crate) pods: Store<Pod>,
    /// Other children: metadata only.
    pub(crate) others: BTreeMap<Kind, Store<Meta>>,
}

/// The streams that fill a cache; whoever runs the controller polls them.
pub(crate) struct Feeds {
    /// Of pipelines: all that is touched.
    pub(crate) pipelines: Pin<Box<dyn Stream<Item = Result<Guarded, watcher::Error>> + Send>>,
    /// Of children.
    pub(crate) children: Triggers,
}

impl Cache {
    /// Watches a namespace, or all; `kinds` are those that the API server knows.
    #[must_use]
    pub(crate) fn new(client: &Client, namespace: Option<&str>, kinds: &[Kind]) -> (Self, Feeds) {
        let (pipelines, writer) = reflector::store();
        let found = watcher(scoped(client, namespace), watcher::Config::default())
            .default_backoff()
            .modify(|pipeline: &mut Guarded| trim(pipeline));
        let found = reflector::reflector(writer, found).touched_objects().boxed();
        let ours = || watcher::Config::default().labels(OURS);
        let (deployments, changed_deployments) = typed::<Deployment>(scoped(client, namespace), ours(), |deployment| {
            trim(deployment);
            // Only the number, the image and the state are read.
            if let Some(template) = deployment.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()) {
                template.volumes = None;
                template.affinity = None;
                for container in &mut template.containers {
                    (container.env, container.volume_mounts) = (None, None);
                }
            }
        });
        let (jobs, changed_jobs) = typed::<Job>(scoped(client, namespace), ours(), |job| {
            trim(job);
            job.spec = None;
        });
        let (pods, changed_pods) = typed::<Pod>(scoped(client, namespace), ours(), |pod| {
            trim(pod);
            pod.spec = None;
        });
        let mut children: Vec<Triggers> = vec![changed_deployments, changed_jobs, changed_pods];
        let mut others = BTreeMap::new();
        for kind in kinds {
            if matches!(kind, Kind::Deployment | Kind::Job) {
                continue;
            }
            let resource = kind.resource();
            let writer = Writer::<Meta>::new(resource.clone());
            others.insert(*kind, writer.as_reader());
            let api: Api<Meta> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let found = watcher(api, ours()).default_backoff().modify(|object: &mut Meta| {
                object.metadata.managed_fields = None;
                object.metadata.annotations = None;
            });
            children.push(triggers(reflector::reflector(writer, found)));
        }
        let cache = Self { pipelines, deployments, jobs, pods, others };
        (cache, Feeds { pipelines: found, children: stream::select_all(children).boxed() })
    }

    /// Waits until all of it was read once.
    pub(crate) async fn ready(&self) {
        let _ = self.pipelines.wait_until_ready().await;
        let _ = self.deployments.wait_until_ready().await;
        let _ = self.jobs.wait_until_ready().await;
        let _ = self.pods.wait_until_ready().await;
        for store in self.others.values() {
            let _ = store.wait_until_ready().await;
        }
    }

    /// The metadata of each child of a pipeline, Jobs excepted.
    #[must_use]
    pub(crate) fn children(&self, namespace: &str, pipeline: &str) -> BTreeMap<(Kind, String), kube::api::ObjectMeta> {
        let mut found = BTreeMap::new();
        for deployment in of(&self.deployments, namespace, pipeline) {
            found.insert((Kind::Deployment, deployment.name_any()), deployment.metadata.clone());
        }
        for (kind, store) in &self.others {
            for object in of(store, namespace, pipeline) {
                found.insert((*kind, object.name_any()), object.metadata.clone());
            }
        }
        found
    }
}

/// What of a store belongs to a pipeline, by its labels.
pub(crate) fn of<K>(store: &Store<K>, namespace: &str, pipeline: &str) -> Vec<std::sync::Arc<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    store.state_filter(|object| {
        object.meta().namespace.as_deref() == Some(namespace)
            && object.labels().get(INSTANCE).is_some_and(|instance| instance == pipeline)
    })
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn typed<K>(api: Api<K>, config: watcher::Config, trim: fn(&mut K)) -> (Store<K>, Triggers)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let found = watcher(api, config).default_backoff().modify(trim);
    (reader, triggers(reflector::reflector(writer, found)))
}

fn triggers<K>(found: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static) -> Triggers
where
    K: Resource + Send + 'static,
{
    let touched = found.touched_objects().filter_map(|object| {
        let owner = match object {
            Ok(object) => object
                .labels()
                .get(INSTANCE)
                .map(|name| ObjectRef::new(name).within(&object.namespace().unwrap_or_default())),
            Err(error) => {
                tracing::warn!(error = %error, "cache.watch.failed");
                None
            }
        };
        future::ready(owner)
    });
    touched.boxed()
}

fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}
