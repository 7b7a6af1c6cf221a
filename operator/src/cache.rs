//! What the API server holds of pipelines and their children, watched and kept in memory without what nothing reads.
//!
//! One cache for each watched namespace, or one for all. Must never be written to but by what the API server sent.

use std::{collections::BTreeMap, fmt::Debug, hash::Hash, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        batch::v1::{Job, JobStatus},
        core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DynamicObject, ObjectMeta, PartialObjectMeta},
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use millrace_crds::RecordPipelineResource;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::controller::build::{
    Kind,
    labels::{self, ATTEMPT, COMPONENT, INSTANCE, KEY, TEMPLATE},
};

/// A pipeline as the API server gave it, or why it could not be read.
pub(crate) type Guarded = DeserializeGuard<RecordPipelineResource>;
/// What is kept of a child of which only the metadata matters.
pub(crate) type Meta = PartialObjectMeta<DynamicObject>;
/// Pipelines whose children changed.
pub(crate) type Triggers = Pin<Box<dyn Stream<Item = ObjectRef<Guarded>> + Send>>;

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
    /// How many of these were not read yet.
    unread: watch::Receiver<usize>,
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
        let unread = Arc::new(watch::Sender::new(0));
        let (pipelines, writer) = reflector::store();
        let found = watcher(scoped(client, namespace), watcher::Config::default()).default_backoff().modify(
            |pipeline: &mut Guarded| {
                let meta = pipeline.meta_mut();
                meta.managed_fields = None;
                if let Some(annotations) = &mut meta.annotations {
                    // The whole resource once more.
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                }
            },
        );
        let found = noted(&unread, reflector::reflector(writer, found)).touched_objects().boxed();
        let ours = || watcher::Config::default().labels(&labels::ours());
        let (deployments, changed_deployments) =
            typed::<Deployment>(&unread, scoped(client, namespace), ours(), |deployment| {
                trim_child(&mut deployment.metadata);
                // Only the number, the images and the state are read.
                let spec = deployment.spec.take().unwrap_or_default();
                let containers = spec.template.spec.unwrap_or_default().containers.into_iter();
                let slim = |of: Container| Container { name: of.name, image: of.image, ..Container::default() };
                let pod = PodSpec { containers: tight(containers.map(slim)), ..PodSpec::default() };
                let template = PodTemplateSpec { spec: Some(pod), metadata: None };
                deployment.spec =
                    Some(DeploymentSpec { replicas: spec.replicas, template, ..DeploymentSpec::default() });
            });
        let (jobs, changed_jobs) = typed::<Job>(&unread, scoped(client, namespace), ours(), |job| {
            trim_child(&mut job.metadata);
            job.spec = None;
            let conditions = job.status.take().and_then(|status| status.conditions);
            let conditions = conditions.map(|all| tight(all.into_iter()));
            job.status = Some(JobStatus { conditions, ..JobStatus::default() });
        });
        let (pods, changed_pods) = typed::<Pod>(&unread, scoped(client, namespace), ours(), |pod| {
            trim_child(&mut pod.metadata);
            let wanted = pod.spec.take().unwrap_or_default().containers;
            let status = pod.status.take().unwrap_or_default();
            let slim = |of: ContainerStatus| ContainerStatus {
                // As the Deployment names it: the kubelet gives the name that it resolved it to.
                image: wanted
                    .iter()
                    .find(|one| one.name == of.name)
                    .and_then(|one| one.image.clone())
                    .unwrap_or(of.image),
                name: of.name,
                state: of.state,
                last_state: of.last_state,
                ..ContainerStatus::default()
            };
            let scheduled = status.conditions.into_iter().flatten().filter(|one| one.type_ == "PodScheduled");
            pod.status = Some(PodStatus {
                phase: status.phase,
                pod_ip: status.pod_ip,
                conditions: Some(tight(scheduled)),
                container_statuses: status.container_statuses.map(|all| tight(all.into_iter().map(slim))),
                ..PodStatus::default()
            });
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
            let api: Api<Meta> = dynamic(client, namespace, &resource);
            let found = watcher(api, ours()).default_backoff().modify(|object: &mut Meta| {
                object.types = None;
                let meta = &mut object.metadata;
                trim_child(meta);
                // Nothing but whose it is is read of their labels, and a map of one takes half a kilobyte.
                meta.generate_name = meta.labels.take().and_then(|mut labels| labels.remove(INSTANCE));
            });
            children.push(triggers(noted(&unread, reflector::reflector(writer, found))));
        }
        let unread = unread.subscribe();
        let cache = Self { pipelines, deployments, jobs, pods, others, unread };
        (cache, Feeds { pipelines: found, children: stream::select_all(children).boxed() })
    }

    /// Waits until all of it was read once. Not by `Store::wait_until_ready`, which wakes one of those who wait, only:
    /// the reconciles of the others would never end.
    pub(crate) async fn ready(&self) {
        // It fails when nobody reads any more: then the process ends.
        let _ = self.unread.clone().wait_for(|unread| *unread == 0).await;
    }

    /// Whether all of it was read once.
    #[must_use]
    pub(crate) fn is_read(&self) -> bool {
        *self.unread.borrow() == 0
    }

    /// The metadata of each child of a pipeline of which that is all that is kept.
    #[must_use]
    pub(crate) fn others(&self, namespace: &str, pipeline: &str) -> BTreeMap<(Kind, String), ObjectMeta> {
        let mut found = BTreeMap::new();
        for (kind, store) in &self.others {
            for object in of(store, namespace, pipeline) {
                found.insert((*kind, object.name_any()), object.metadata.clone());
            }
        }
        found
    }
}

/// What of a store belongs to a pipeline, by its labels.
pub(crate) fn of<K>(store: &Store<K>, namespace: &str, pipeline: &str) -> Vec<Arc<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    store.state_filter(|object| {
        object.meta().namespace.as_deref() == Some(namespace)
            && instance(object.meta()).is_some_and(|instance| instance == pipeline)
    })
}

/// The name of the pipeline that a child says it is of.
fn instance(meta: &ObjectMeta) -> Option<&String> {
    meta.labels.as_ref().and_then(|labels| labels.get(INSTANCE)).or(meta.generate_name.as_ref())
}

/// A namespace's objects, or all.
fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// As `scoped`, for what has no type of its own.
pub(crate) fn dynamic<K>(client: &Client, namespace: Option<&str>, resource: &K::DynamicType) -> Api<K>
where
    K: Resource<Scope = kube::core::DynamicResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// Counts a stream that fills a store as unread until it has.
fn noted<K, S>(
    unread: &Arc<watch::Sender<usize>>,
    filling: S,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + use<K, S>
where
    S: Stream<Item = Result<Event<K>, watcher::Error>>,
{
    unread.send_modify(|unread| *unread += 1);
    let mut unread = Some(Arc::clone(unread));
    filling.inspect_ok(move |event| {
        // A watch that broke is read again: only the first time counts.
        if matches!(event, Event::InitDone)
            && let Some(unread) = unread.take()
        {
            unread.send_modify(|unread| *unread -= 1);
        }
    })
}

fn typed<K>(
    unread: &Arc<watch::Sender<usize>>,
    api: Api<K>,
    config: watcher::Config,
    trim: fn(&mut K),
) -> (Store<K>, Triggers)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let found = watcher(api, config).default_backoff().modify(trim);
    (reader, triggers(noted(unread, reflector::reflector(writer, found))))
}

fn triggers<K>(found: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static) -> Triggers
where
    K: Resource + Send + 'static,
{
    let touched = found.touched_objects().filter_map(|object| {
        let owner = match object {
            Ok(object) => {
                // Someone may have changed the label; pods are owned by what the pipeline owns.
                let owners = object.owner_references().iter();
                let owner =
                    owners.filter(|owner| owner.kind == millrace_crds::KIND).map(|owner| owner.name.clone()).next();
                owner
                    .or_else(|| instance(object.meta()).cloned())
                    .map(|name| ObjectRef::new(&name).within(&object.namespace().unwrap_or_default()))
            }
            Err(error) => {
                tracing::warn!(event = "operator.watch.failed", error = %error, "a watch of the API server failed and is retried");
                None
            }
        };
        future::ready(owner)
    });
    touched.boxed()
}

/// A list with room for nothing more: what is parsed has, and what is collected of it in place keeps it.
fn tight<T>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.shrink_to_fit();
    all
}

/// Leaves of a child's metadata what is read: with a thousand pipelines there are some twenty thousand of them.
pub(crate) fn trim_child(meta: &mut ObjectMeta) {
    let all = std::mem::take(meta);
    let kept = [INSTANCE, COMPONENT, KEY, ATTEMPT, TEMPLATE];
    let labels = all.labels.map(|mut labels| {
        labels.retain(|name, _| kept.contains(&name.as_str()));
        labels
    });
    *meta = ObjectMeta {
        name: all.name,
        namespace: all.namespace,
        uid: all.uid,
        resource_version: all.resource_version,
        generation: all.generation,
        creation_timestamp: all.creation_timestamp,
        deletion_timestamp: all.deletion_timestamp,
        owner_references: all
            .owner_references
            .map(|all| tight(all.into_iter().map(|owner| OwnerReference { api_version: String::new(), ..owner }))),
        labels,
        ..ObjectMeta::default()
    };
}
