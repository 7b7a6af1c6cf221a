//! The parts of a cluster that an API server alone does not have: the controllers of Deployments and Jobs, the
//! kubelets, and the pods' `/status`.
//!
//! Each pod has a loopback address of its own; one listener answers for all of them and identifies the pod by the
//! address of the connection. A pipeline's [`Behaviour`] controls its pods and Jobs; a test may change it at any time.

mod deployments;
mod jobs;
mod kubelet;
mod status;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future};
use k8s_openapi::{
    api::{apps::v1::Deployment, batch::v1::Job},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        Controller,
        controller::{Action, Config},
        watcher,
    },
};
use millrace_crds::status_api::RedisDurability;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

const INSTANCE: &str = "app.kubernetes.io/instance";
const COMPONENT: &str = "app.kubernetes.io/component";

/// The end of a Job: its reason, its message, and the number of contracting steps that wait. The Job succeeds when the
/// reason is `Migrated` or `Purged`.
pub(crate) type JobEnd = (&'static str, &'static str, u32);

/// The behaviour of a pipeline's pods and Jobs.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    /// Whether workers hold the shards.
    pub(crate) leased: bool,
    /// Whether pods leave requests unanswered.
    pub(crate) silent: bool,
    /// The number of touches until a pod has a new manifest.
    pub(crate) touches: usize,
    /// Reason and message of the problems that pods report.
    pub(crate) problems: Vec<(&'static str, &'static str)>,
    /// What pods report about Redis.
    pub(crate) durability: Option<RedisDurability>,
    /// Records queued and pending.
    pub(crate) backlog: u64,
    /// Outcomes that are not published.
    pub(crate) unpublished: i64,
    /// Whether Jobs run without an end.
    pub(crate) hold_jobs: bool,
    /// Whether the pods of Jobs have another container, which never ends.
    pub(crate) sidecar: bool,
    /// The ends of the next Jobs; later ones succeed.
    pub(crate) job_ends: VecDeque<JobEnd>,
    /// The image whose pods never become available.
    pub(crate) broken_image: Option<String>,
    manifest: Option<Manifest>,
}

/// Uid and generation of a manifest.
type Manifest = (String, i64);

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            leased: true,
            silent: false,
            touches: 0,
            problems: Vec::new(),
            durability: Some(RedisDurability::Durable),
            backlog: 0,
            unpublished: 0,
            hold_jobs: false,
            sidecar: false,
            job_ends: VecDeque::new(),
            broken_image: None,
            manifest: None,
        }
    }
}

/// A pod of a Deployment.
#[derive(Debug, Clone)]
pub(crate) struct FakePod {
    pub(crate) namespace: String,
    pub(crate) pipeline: String,
    pub(crate) name: String,
    pub(crate) component: String,
    /// The hash of its template.
    template: u64,
    /// The manifest in its files.
    manifest: Option<Manifest>,
    /// The annotation of the last touch.
    touch: String,
    /// The times of touches since the manifest last changed.
    pub(crate) touched: Vec<Instant>,
}

#[derive(Default)]
struct State {
    behaviours: HashMap<(String, String), Behaviour>,
    pods: HashMap<Ipv4Addr, FakePod>,
    last_address: u32,
    /// Resource versions of the fake cluster's own writes.
    written: HashSet<String>,
}

struct Shared {
    client: Client,
    state: Mutex<State>,
}

/// The running parts; they stop when it is dropped.
pub(crate) struct FakeCluster {
    shared: Arc<Shared>,
    /// The port of the pods' `/status`.
    pub(crate) port: u16,
    _tasks: JoinSet<()>,
}

impl FakeCluster {
    /// Runs for one namespace, or for all.
    pub(crate) async fn new(client: Client, namespace: Option<&str>) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { client: client.clone(), state: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(status::serve(listener, Arc::clone(&shared)));
        let config = || Config::default().concurrency(16);
        let controller = Controller::new(api::<Deployment>(&client, namespace), watcher::Config::default());
        let reconciles = controller.with_config(config()).run(deployments::reconcile, retry, Arc::clone(&shared));
        tasks.spawn(reconciles.for_each(|_| future::ready(())));
        let controller = Controller::new(api::<Job>(&client, namespace), watcher::Config::default());
        let reconciles = controller.with_config(config()).run(jobs::reconcile, retry, Arc::clone(&shared));
        tasks.spawn(reconciles.for_each(|_| future::ready(())));
        tasks.spawn(jobs::remove_pods(api(&client, namespace), client.clone()));
        tasks.spawn(kubelet::follow_manifests(api(&client, namespace), Arc::clone(&shared)));
        tasks.spawn(kubelet::follow_touches(api(&client, namespace), Arc::clone(&shared)));
        Self { shared, port, _tasks: tasks }
    }

    /// Changes the behaviour of a pipeline's pods and Jobs.
    pub(crate) fn set_behaviour(&self, namespace: &str, pipeline: &str, change: impl FnOnce(&mut Behaviour)) {
        change(self.shared.lock().behaviours.entry((namespace.to_owned(), pipeline.to_owned())).or_default());
    }

    /// The pods of a pipeline, by name.
    pub(crate) fn pods(&self, namespace: &str, pipeline: &str) -> Vec<FakePod> {
        let state = self.shared.lock();
        let pods = state.pods.values().filter(|pod| pod.namespace == namespace && pod.pipeline == pipeline);
        let mut found: Vec<_> = pods.cloned().collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Whether a resource version is one of the fake cluster's own writes.
    pub(crate) fn wrote(&self, version: &str) -> bool {
        self.shared.lock().written.contains(version)
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn retry<K>(_: Arc<K>, _: &kube::Error, _: Arc<Shared>) -> Action {
    Action::requeue(Duration::from_millis(300))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn behaviour(&self, namespace: &str, pipeline: &str) -> Behaviour {
        self.lock().behaviours.entry((namespace.to_owned(), pipeline.to_owned())).or_default().clone()
    }

    /// Writes a status, and notes the write.
    async fn write_status<K>(&self, api: &Api<K>, object: &K, status: Value) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let patch = Patch::Merge(json!({ "status": status }));
        let name = object.name_any();
        match api.patch_status(&name, &PatchParams::default(), &patch).await {
            Ok(done) if done.resource_version() != object.resource_version() => {
                self.lock().written.extend(done.resource_version());
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The message of an admission that refused a pod.
fn refusal(error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) if [403, 422].contains(&status.code) => Some(status.message.clone()),
        _ => None,
    }
}

/// The current time in whole seconds, as the API has it.
#[expect(clippy::disallowed_methods, reason = "the fake cluster has a clock of its own")]
fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap().to_string()
}
