//! Plays what a cluster has and an API server alone has not: the controllers of Deployments and Jobs, the kubelets, and
//! the pods' `/status`.
//!
//! Each pod gets a loopback address of its own; one listener answers for all of them and tells them apart by the address
//! that was called. What a pipeline's pods and Jobs do is its [`Scene`], which a test may change at any time.

mod jobs;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, future};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PartialObjectMeta, Patch, PatchParams, PostParams},
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{Action, Config},
        watcher,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const INSTANCE: &str = "app.kubernetes.io/instance";
const COMPONENT: &str = "app.kubernetes.io/component";
/// The annotation that makes a kubelet look at a pod's files.
const TOUCHED: &str = "millrace.dev/touched";

/// How a Job ends: its reason, its message, and contracting steps that wait. It ends well when the reason is `Migrated` or
/// `Purged`.
pub(crate) type Outcome = (&'static str, &'static str, u32);

/// What a pipeline's pods and Jobs do.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    /// Whether workers hold the shards.
    pub(crate) leased: bool,
    /// Whether pods answer nothing.
    pub(crate) silent: bool,
    /// How often a pod must be touched before it sees a new manifest.
    pub(crate) touches: usize,
    /// Reason and message of what pods say is wrong.
    pub(crate) problems: Vec<(&'static str, &'static str)>,
    /// Records queued and pending.
    pub(crate) backlog: i64,
    /// Outcomes that are not published.
    pub(crate) unpublished: i64,
    /// Whether Jobs continue for ever.
    pub(crate) hold_jobs: bool,
    /// Whether the pods of Jobs have a container of somebody else, which never ends.
    pub(crate) sidecar: bool,
    /// How the next Jobs end; then all end well.
    pub(crate) outcomes: VecDeque<Outcome>,
    /// Pods of this image never become available.
    pub(crate) broken_image: Option<String>,
    manifest: Option<Manifest>,
}

type Manifest = (String, i64);

impl Default for Scene {
    fn default() -> Self {
        Self {
            leased: true,
            silent: false,
            touches: 0,
            problems: Vec::new(),
            backlog: 0,
            unpublished: 0,
            hold_jobs: false,
            sidecar: false,
            outcomes: VecDeque::new(),
            broken_image: None,
            manifest: None,
        }
    }
}

/// A pod.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) namespace: String,
    pub(crate) pipeline: String,
    pub(crate) name: String,
    pub(crate) component: String,
    template: u64,
    seen: Option<Manifest>,
    mark: String,
    /// When it was touched since the manifest last changed.
    pub(crate) touched: Vec<Instant>,
}

#[derive(Default)]
struct Cast {
    scenes: HashMap<(String, String), Scene>,
    actors: HashMap<Ipv4Addr, Actor>,
    next: u32,
    /// Resource versions that came of what the player wrote.
    wrote: HashSet<String>,
}

struct Stage {
    client: Client,
    cast: Mutex<Cast>,
}

/// The player; it stops when it is dropped.
pub(crate) struct Player {
    stage: Arc<Stage>,
    /// Where the pods answer.
    pub(crate) port: u16,
    _tasks: JoinSet<()>,
}

impl Player {
    /// Plays in a namespace, or in all.
    pub(crate) async fn new(client: Client, namespace: Option<&str>) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stage = Arc::new(Stage { client: client.clone(), cast: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&stage)));
        let quick = || Config::default().concurrency(16);
        let deployments = Controller::new(api::<Deployment>(&client, namespace), watcher::Config::default());
        let played = deployments.with_config(quick()).run(play_deployment, again, Arc::clone(&stage));
        tasks.spawn(played.for_each(|_| future::ready(())));
        let jobs = Controller::new(api::<Job>(&client, namespace), watcher::Config::default());
        let played = jobs.with_config(quick()).run(jobs::play, again, Arc::clone(&stage));
        tasks.spawn(played.for_each(|_| future::ready(())));
        tasks.spawn(jobs::remove_pods(api(&client, namespace), client.clone()));
        tasks.spawn(follow_manifests(api(&client, namespace), Arc::clone(&stage)));
        tasks.spawn(follow_pods(api(&client, namespace), Arc::clone(&stage)));
        Self { stage, port, _tasks: tasks }
    }

    /// Changes what a pipeline's pods and Jobs do.
    pub(crate) fn scene(&self, namespace: &str, pipeline: &str, change: impl FnOnce(&mut Scene)) {
        change(self.stage.cast().scenes.entry((namespace.to_owned(), pipeline.to_owned())).or_default());
    }

    /// The pods of a pipeline, by name.
    pub(crate) fn actors(&self, namespace: &str, pipeline: &str) -> Vec<Actor> {
        let mut found: Vec<_> = self
            .stage
            .cast()
            .actors
            .values()
            .filter(|actor| actor.namespace == namespace && actor.pipeline == pipeline)
            .cloned()
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Whether a resource version came of what the player wrote.
    pub(crate) fn wrote(&self, version: &str) -> bool {
        self.stage.cast().wrote.contains(version)
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

fn again<K>(_: Arc<K>, _: &kube::Error, _: Arc<Stage>) -> Action {
    Action::requeue(Duration::from_millis(300))
}

impl Stage {
    fn cast(&self) -> MutexGuard<'_, Cast> {
        self.cast.lock().unwrap()
    }

    fn scene(&self, namespace: &str, pipeline: &str) -> Scene {
        self.cast().scenes.entry((namespace.to_owned(), pipeline.to_owned())).or_default().clone()
    }

    /// Writes a status, and stores that it did.
    async fn status<K>(&self, api: &Api<K>, object: &K, status: Value) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let patch = Patch::Merge(json!({ "status": status }));
        let name = object.name_any();
        match api.patch_status(&name, &PatchParams::default(), &patch).await {
            Ok(done) if done.resource_version() != object.resource_version() => {
                self.cast().wrote.extend(done.resource_version());
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a pod by a template and lets its own container run, or end with a message; others, before it, run.
    async fn make_pod(
        &self,
        namespace: &str,
        template: &Value,
        own: Value,
        address: Option<Ipv4Addr>,
    ) -> Result<String, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"],
        });
        let pod: Pod = serde_json::from_value(pod).map_err(kube::Error::SerdeError)?;
        let name = pods.create(&PostParams::default(), &pod).await?.name_any();
        let containers = template["spec"]["containers"].as_array().unwrap();
        let component = &template["metadata"]["labels"][COMPONENT];
        let ended = own["terminated"]["exitCode"].as_i64().filter(|_| containers.len() == 1);
        let phase = ended.map_or("Running", |code| if code == 0 { "Succeeded" } else { "Failed" });
        let running = json!({ "running": { "startedAt": now() } });
        let status = |of: &Value| {
            let state = if of["name"] == *component { &own } else { &running };
            json!({
                "name": of["name"], "image": of["image"], "imageID": "", "restartCount": 0,
                "ready": state["terminated"].is_null(), "state": state,
            })
        };
        let statuses: Vec<_> = containers.iter().map(status).collect();
        let mut status = json!({ "phase": phase, "containerStatuses": statuses });
        if let Some(address) = address {
            status["podIP"] = json!(address);
            status["podIPs"] = json!([{ "ip": address }]);
        }
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(&name, &PatchParams::default(), &patch).await?;
        Ok(name)
    }

    /// What a pod answers.
    fn answer(&self, address: Ipv4Addr) -> Option<Value> {
        let cast = self.cast();
        let me = cast.actors.get(&address)?;
        let scene = cast.scenes.get(&(me.namespace.clone(), me.pipeline.clone()))?;
        if scene.silent {
            return None;
        }
        let mut workers: Vec<_> = cast
            .actors
            .values()
            .filter(|actor| actor.namespace == me.namespace && actor.pipeline == me.pipeline)
            .filter(|actor| actor.component == "work")
            .collect();
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        let origin = |seen: &Option<Manifest>| match seen {
            Some((uid, generation)) => json!({ "uid": uid, "generation": generation, "version": generation }),
            None => Value::Null,
        };
        let shards = (0..4_usize).map(|shard| {
            let owner = workers.get(shard % workers.len().max(1));
            let mut it = owner.map_or(json!({}), |owner| origin(&owner.seen));
            it["shard"] = json!(shard);
            it["leased"] = json!(scene.leased && owner.is_some());
            it
        });
        let problems = scene.problems.iter().map(|(reason, message)| json!({ "reason": reason, "message": message }));
        Some(json!({
            "role": me.component, "software": "0.1.0", "process": me.name, "pipeline": me.pipeline,
            "pipelineId": "0123456789abcdef", "manifest": origin(&me.seen), "active": origin(&me.seen),
            "refusal": null, "problems": problems.collect::<Vec<_>>(), "shards": shards.collect::<Vec<_>>(),
            "owned": [], "sinks": [], "ageMs": 0,
            "counts": {
                "queued": scene.backlog, "pending": 0, "backlog": scene.backlog, "unpublished": scene.unpublished,
                "processed": 7, "alerts": 3, "deadLetters": 1, "lost": 0,
            },
        }))
    }
}

/// Makes and removes a Deployment's pods, and tells how many there are.
async fn play_deployment(deployment: Arc<Deployment>, stage: Arc<Stage>) -> Result<Action, kube::Error> {
    let (namespace, name) = (deployment.namespace().unwrap(), deployment.name_any());
    let deployments: Api<Deployment> = Api::namespaced(stage.client.clone(), &namespace);
    let spec = deployment.spec.as_ref().unwrap();
    let template = serde_json::to_value(&spec.template).unwrap();
    let labels = &template["metadata"]["labels"];
    let (pipeline, component) = (labels[INSTANCE].as_str().unwrap_or(""), labels[COMPONENT].as_str().unwrap_or(""));
    let scene = stage.scene(&namespace, pipeline);
    let containers = template["spec"]["containers"].as_array().unwrap();
    let main = containers.iter().find(|container| container["name"] == component);
    let image = main.map_or("", |main| main["image"].as_str().unwrap()).to_owned();
    let broken = scene.broken_image.as_ref() == Some(&image);
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    let hash = hasher.finish();
    let wanted = if deployment.metadata.deletion_timestamp.is_some() { 0 } else { spec.replicas.unwrap_or(1) as usize };

    let (old, new): (Vec<_>, Vec<_>) = {
        let cast = stage.cast();
        let mine = cast.actors.iter().filter(|(_, actor)| {
            actor.namespace == namespace && actor.pipeline == pipeline && actor.component == component
        });
        let mine: Vec<_> = mine.map(|(address, actor)| (*address, actor.clone())).collect();
        mine.into_iter().partition(|(_, actor)| actor.template != hash)
    };
    for _ in new.len()..if broken { 0 } else { wanted } {
        let address = {
            let mut cast = stage.cast();
            cast.next += 1;
            Ipv4Addr::from(Ipv4Addr::new(127, 1, 0, 0).to_bits() + cast.next)
        };
        let mut pod = template.clone();
        pod["metadata"]["generateName"] = json!(format!("{name}-"));
        pod["metadata"]["labels"]["pod-template-hash"] = json!(format!("{hash:x}"));
        let running = json!({ "running": { "startedAt": now() } });
        // It answers before anybody can learn its address.
        let mut actor = Actor {
            namespace: namespace.clone(),
            pipeline: pipeline.to_owned(),
            name: address.to_string(),
            component: component.to_owned(),
            template: hash,
            seen: stage.scene(&namespace, pipeline).manifest,
            mark: String::new(),
            touched: Vec::new(),
        };
        stage.cast().actors.insert(address, actor.clone());
        match stage.make_pod(&namespace, &pod, running, Some(address)).await {
            Ok(name) => {
                actor.name = name;
                let seen = stage.cast().scenes[&(namespace.clone(), pipeline.to_owned())].manifest.clone();
                stage.cast().actors.insert(address, Actor { seen, ..actor });
            }
            Err(error) => {
                stage.cast().actors.remove(&address);
                let Some(message) = refusal(&error) else { return Err(error) };
                // As the controller of a ReplicaSet tells that of its Deployment.
                let failure = json!([{
                    "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message,
                    "lastTransitionTime": now(), "lastUpdateTime": now(),
                }]);
                let told = json!({ "observedGeneration": deployment.metadata.generation, "conditions": failure });
                if deployment.status.as_ref().and_then(|status| status.conditions.as_ref()).is_none() {
                    stage.status(&deployments, &deployment, told).await?;
                }
                return Ok(Action::requeue(Duration::from_millis(300)));
            }
        }
    }
    let pods: Api<Pod> = Api::namespaced(stage.client.clone(), &namespace);
    let gone = if broken { &[][..] } else { &old[..] };
    for (address, actor) in gone.iter().chain(new.iter().skip(wanted)) {
        let _ = pods.delete(&actor.name, &DeleteParams::default().grace_period(0)).await;
        stage.cast().actors.remove(address);
    }
    let old = if broken { old.len() } else { 0 };
    let updated = if broken { 0 } else { wanted };
    let mut status = json!({
        "observedGeneration": deployment.metadata.generation, "replicas": old + updated, "updatedReplicas": updated,
        "readyReplicas": old + updated, "availableReplicas": old + updated,
    });
    let stands = serde_json::to_value(&deployment.status).unwrap();
    // Zero is left out of what comes back.
    let told = |field: &str| stands[field].as_i64().unwrap_or(0) == status[field].as_i64().unwrap_or(0);
    let refused = !stands["conditions"].is_null();
    if refused || !status.as_object().unwrap().keys().all(|field| told(field)) {
        if refused {
            status["conditions"] = Value::Null;
        }
        stage.status(&deployments, &deployment, status).await?;
    }
    // A scene may change; nobody else tells.
    Ok(if broken { Action::requeue(Duration::from_millis(500)) } else { Action::await_change() })
}

/// What admission refused a pod with.
fn refusal(error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) if [403, 422].contains(&status.code) => Some(status.message.clone()),
        _ => None,
    }
}

fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap().to_string()
}

/// As the kubelets do: a pod sees a new manifest at once, or after it was touched as often as its scene wants.
async fn follow_manifests(maps: Api<ConfigMap>, stage: Arc<Stage>) {
    let mut changes = watcher(maps, watcher::Config::default()).default_backoff().applied_objects().boxed();
    loop {
        let Ok(Some(map)) = changes.try_next().await else { continue };
        let Some(text) = map.data.as_ref().and_then(|data| data.get("pipeline.yaml")) else { continue };
        let manifest: Value = serde_saphyr::from_str(text).unwrap();
        let metadata = &manifest["metadata"];
        let (Some(uid), Some(generation)) = (metadata["uid"].as_str(), metadata["generation"].as_i64()) else {
            continue;
        };
        let (namespace, pipeline) = (map.namespace().unwrap(), metadata["name"].as_str().unwrap().to_owned());
        let mut cast = stage.cast();
        let Cast { scenes, actors, .. } = &mut *cast;
        let scene = scenes.entry((namespace.clone(), pipeline.clone())).or_default();
        let new = Some((uid.to_owned(), generation));
        if scene.manifest == new {
            continue;
        }
        scene.manifest.clone_from(&new);
        for actor in actors.values_mut().filter(|actor| actor.namespace == namespace && actor.pipeline == pipeline) {
            actor.touched.clear();
            if scene.touches == 0 {
                actor.seen.clone_from(&new);
            }
        }
    }
}

async fn follow_pods(pods: Api<PartialObjectMeta<Pod>>, stage: Arc<Stage>) {
    let mut changes = watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
    loop {
        let Ok(Some(pod)) = changes.try_next().await else { continue };
        let Some(mark) = pod.annotations().get(TOUCHED) else { continue };
        let mut cast = stage.cast();
        let Cast { scenes, actors, .. } = &mut *cast;
        let (namespace, name) = (pod.namespace().unwrap(), pod.name_any());
        let found = actors.values_mut().find(|actor| actor.namespace == namespace && actor.name == name);
        let Some(actor) = found.filter(|actor| actor.mark != *mark) else { continue };
        mark.clone_into(&mut actor.mark);
        actor.touched.push(Instant::now());
        let scene = &scenes[&(namespace, actor.pipeline.clone())];
        if actor.touched.len() >= scene.touches {
            actor.seen.clone_from(&scene.manifest);
        }
    }
}

async fn serve(listener: TcpListener, stage: Arc<Stage>) {
    let mut calls = JoinSet::new();
    loop {
        while calls.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            calls.spawn(answer(stream, Arc::clone(&stage)));
        }
    }
}

/// Answers each request of a connection; what is asked is in the address.
async fn answer(mut stream: TcpStream, stage: Arc<Stage>) -> Option<()> {
    let IpAddr::V4(address) = stream.local_addr().ok()?.ip() else { return None };
    let (mut request, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&piece[..read]);
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        // A pod that says nothing cuts the connection.
        let body = stage.answer(address)?.to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}
