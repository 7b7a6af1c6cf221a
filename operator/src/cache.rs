//! The pipelines and their children, watched and held in memory without the fields that nothing reads.
//!
//! There is one cache for each watched namespace, or one for all. Only the API server's watches may write to it.

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
    core::{ApiResource, DeserializeGuard},
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

/// A pipeline as the API server returned it, or the reason why it cannot be parsed.
pub(crate) type Guarded = DeserializeGuard<RecordPipelineResource>;
/// The metadata of a child of which nothing else is read.
pub(crate) type Meta = PartialObjectMeta<DynamicObject>;
/// Pipelines that changed.
pub(crate) type PipelineChanges = Pin<Box<dyn Stream<Item = Result<Guarded, watcher::Error>> + Send>>;
/// References to the pipelines whose children changed.
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
    /// The number of stores that no first list has filled yet.
    unread: watch::Receiver<usize>,
}

/// The streams that fill a cache while the controller polls them.
pub(crate) struct CacheStreams {
    /// Fills the store of pipelines.
    pub(crate) pipelines: PipelineChanges,
    /// Fills the stores of children.
    pub(crate) children: Triggers,
}

impl Cache {
    /// Watches one namespace, or all; `kinds` are the kinds that the API server serves.
    #[must_use]
    pub(crate) fn new(client: &Client, namespace: Option<&str>, kinds: &[Kind]) -> (Self, CacheStreams) {
        let unread = Arc::new(watch::Sender::new(0));
        let (pipelines, changed_pipelines) = watch_pipelines(&unread, typed_api(client, namespace));
        let (deployments, changed_deployments) = watch_children(&unread, typed_api(client, namespace), trim_deployment);
        let (jobs, changed_jobs) = watch_children(&unread, typed_api(client, namespace), trim_job);
        let (pods, changed_pods) = watch_children(&unread, typed_api(client, namespace), trim_pod);
        let mut children = vec![changed_deployments, changed_jobs, changed_pods];
        let mut others = BTreeMap::new();
        for kind in kinds.iter().filter(|kind| !matches!(kind, Kind::Deployment | Kind::Job)) {
            let (store, changed) = watch_metadata(&unread, client, namespace, &kind.resource());
            others.insert(*kind, store);
            children.push(changed);
        }
        let unread = unread.subscribe();
        let cache = Self { pipelines, deployments, jobs, pods, others, unread };
        (cache, CacheStreams { pipelines: changed_pipelines, children: stream::select_all(children).boxed() })
    }

    /// Waits until each store was filled once. Not by `Store::wait_until_ready`, which wakes only one of the waiting
    /// tasks: the reconciles of the others would never end.
    pub(crate) async fn ready(&self) {
        // It fails once the streams are dropped: then the process ends.
        let _ = self.unread.clone().wait_for(|unread| *unread == 0).await;
    }

    /// Whether each store was filled once.
    #[must_use]
    pub(crate) fn is_read(&self) -> bool {
        *self.unread.borrow() == 0
    }

    /// The metadata of a pipeline's children, except Deployments and Jobs.
    #[must_use]
    pub(crate) fn others(&self, namespace: &str, pipeline: &str) -> BTreeMap<(Kind, String), ObjectMeta> {
        let mut found = BTreeMap::new();
        for (kind, store) in &self.others {
            for object in of_pipeline(store, namespace, pipeline) {
                found.insert((*kind, object.name_any()), object.metadata.clone());
            }
        }
        found
    }
}

/// The objects of a store that belong to a pipeline by their labels.
pub(crate) fn of_pipeline<K>(store: &Store<K>, namespace: &str, pipeline: &str) -> Vec<Arc<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    store.state_filter(|object| {
        object.meta().namespace.as_deref() == Some(namespace)
            && instance(object.meta()).is_some_and(|instance| instance == pipeline)
    })
}

/// The name of the pipeline in a child's label, or where [`watch_metadata`] puts it.
fn instance(meta: &ObjectMeta) -> Option<&String> {
    meta.labels.as_ref().and_then(|labels| labels.get(INSTANCE)).or(meta.generate_name.as_ref())
}

/// The API of one namespace's objects, or of all.
fn typed_api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// As [`typed_api`], for objects without a type of their own.
pub(crate) fn dynamic_api<K>(client: &Client, namespace: Option<&str>, resource: &K::DynamicType) -> Api<K>
where
    K: Resource<Scope = kube::core::DynamicResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// Counts a store as unread until its stream filled it.
fn count_until_read<K, S>(
    unread: &Arc<watch::Sender<usize>>,
    filling: S,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + use<K, S>
where
    S: Stream<Item = Result<Event<K>, watcher::Error>>,
{
    unread.send_modify(|unread| *unread += 1);
    let mut unread = Some(Arc::clone(unread));
    filling.inspect_ok(move |event| {
        // A watch that broke lists again: only the first list counts.
        if matches!(event, Event::InitDone)
            && let Some(unread) = unread.take()
        {
            unread.send_modify(|unread| *unread -= 1);
        }
    })
}

fn watch_pipelines(unread: &Arc<watch::Sender<usize>>, api: Api<Guarded>) -> (Store<Guarded>, PipelineChanges) {
    let (store, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default()).default_backoff().modify(|pipeline: &mut Guarded| {
        let meta = pipeline.meta_mut();
        meta.managed_fields = None;
        if let Some(annotations) = &mut meta.annotations {
            // It holds the whole resource once more.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    });
    (store, count_until_read(unread, reflector::reflector(writer, events)).touched_objects().boxed())
}

/// Watches the children of one type, and stores what `trim` leaves of each.
fn watch_children<K>(unread: &Arc<watch::Sender<usize>>, api: Api<K>, trim: fn(&mut K)) -> (Store<K>, Triggers)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, children_config()).default_backoff().modify(trim);
    (store, triggers(count_until_read(unread, reflector::reflector(writer, events))))
}

/// Watches the children of one kind, and stores their metadata only.
fn watch_metadata(
    unread: &Arc<watch::Sender<usize>>,
    client: &Client,
    namespace: Option<&str>,
    resource: &ApiResource,
) -> (Store<Meta>, Triggers) {
    let writer = Writer::<Meta>::new(resource.clone());
    let store = writer.as_reader();
    let api: Api<Meta> = dynamic_api(client, namespace, resource);
    let events = watcher(api, children_config()).default_backoff().modify(|object: &mut Meta| {
        object.types = None;
        let meta = &mut object.metadata;
        trim_child(meta);
        // Of their labels only the pipeline's name is read, and a map of one entry takes half a kilobyte.
        meta.generate_name = meta.labels.take().and_then(|mut labels| labels.remove(INSTANCE));
    });
    (store, triggers(count_until_read(unread, reflector::reflector(writer, events))))
}

fn children_config() -> watcher::Config {
    watcher::Config::default().labels(&labels::ours())
}

fn triggers<K>(found: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static) -> Triggers
where
    K: Resource + Send + 'static,
{
    let touched = found.touched_objects().filter_map(|object| {
        let owner = match object {
            Ok(object) => {
                // The owner first: anyone can change the label. Pods have only the label: a child owns them.
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

/// A list without spare capacity. Parsed lists have it, and a list that is collected in place keeps it.
fn shrunk<T>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.shrink_to_fit();
    all
}

/// Leaves of a child's metadata the fields that are read: a thousand pipelines have about twenty thousand children.
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
            .map(|all| shrunk(all.into_iter().map(|owner| OwnerReference { api_version: String::new(), ..owner }))),
        labels,
        ..ObjectMeta::default()
    };
}

/// Leaves of a Deployment its number of pods, its images and its status.
fn trim_deployment(deployment: &mut Deployment) {
    trim_child(&mut deployment.metadata);
    let spec = deployment.spec.take().unwrap_or_default();
    let containers = spec.template.spec.unwrap_or_default().containers.into_iter();
    let slim = |of: Container| Container { name: of.name, image: of.image, ..Container::default() };
    let pod = PodSpec { containers: shrunk(containers.map(slim)), ..PodSpec::default() };
    let template = PodTemplateSpec { spec: Some(pod), metadata: None };
    deployment.spec = Some(DeploymentSpec { replicas: spec.replicas, template, ..DeploymentSpec::default() });
}

/// Leaves of a Job its conditions.
fn trim_job(job: &mut Job) {
    trim_child(&mut job.metadata);
    job.spec = None;
    let conditions = job.status.take().and_then(|status| status.conditions);
    let conditions = conditions.map(|all| shrunk(all.into_iter()));
    job.status = Some(JobStatus { conditions, ..JobStatus::default() });
}

/// Leaves of a pod its phase, its address, whether it is scheduled, and the states of its containers.
fn trim_pod(pod: &mut Pod) {
    trim_child(&mut pod.metadata);
    let wanted = pod.spec.take().unwrap_or_default().containers;
    let status = pod.status.take().unwrap_or_default();
    let slim = |of: ContainerStatus| ContainerStatus {
        // The name that the Deployment has: the kubelet reports the name that it resolved the image to.
        image: wanted.iter().find(|one| one.name == of.name).and_then(|one| one.image.clone()).unwrap_or(of.image),
        name: of.name,
        state: of.state,
        last_state: of.last_state,
        ..ContainerStatus::default()
    };
    let scheduled = status.conditions.into_iter().flatten().filter(|one| one.type_ == "PodScheduled");
    pod.status = Some(PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        conditions: Some(shrunk(scheduled)),
        container_statuses: status.container_statuses.map(|all| shrunk(all.into_iter().map(slim))),
        ..PodStatus::default()
    });
}
