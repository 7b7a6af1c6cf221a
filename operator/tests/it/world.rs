//! The environment of a test: a namespace with a fake cluster and a ledger, and operators as processes of their own.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::Namespace, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use millrace_crds::RecordPipelineResource;
use serde_json::{Value, json};

use crate::{cluster::FakeCluster, ledger::Ledger, server::Server};

/// Longer than anything takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The image of pipelines that name none.
pub(crate) const IMAGE: &str = "millrace/service:1";

/// Repeats `check` until it succeeds; panics with its last error after [`TIMEOUT`].
pub(crate) async fn eventually<T>(goal: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match check().await {
            Ok(found) => return found,
            Err(error) if begun.elapsed() > TIMEOUT => panic!("waited {TIMEOUT:?} until {goal}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// `Ok` where `is_so`, else the error.
pub(crate) fn so(is_so: bool, error: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(error()) }
}

/// A namespace of one test.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) cluster: FakeCluster,
    pub(crate) ledger: Ledger,
    pub(crate) kubeconfig: String,
}

impl World {
    /// A namespace on the server that all tests share.
    pub(crate) async fn new(test: &str) -> Self {
        Self::on(Server::shared().await, test).await
    }

    /// A namespace on a server.
    pub(crate) async fn on(server: &Server, test: &str) -> Self {
        let client = server.client().await;
        let namespace = format!("{test}-{}", std::process::id());
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let cluster = FakeCluster::new(client.clone(), Some(&namespace)).await;
        let ledger = Ledger::new(&client, Some(&namespace));
        Self { client, namespace, cluster, ledger, kubeconfig: server.kubeconfig.clone() }
    }

    /// Starts an operator of this namespace; `variables` add to its defaults or replace them.
    pub(crate) fn operator(&self, pod: &str, variables: &[(&str, &str)]) -> Operator {
        let port = self.cluster.port.to_string();
        let mut all = vec![
            ("KUBECONFIG", self.kubeconfig.as_str()),
            ("MILLRACE_OPERATOR_RELEASE", "millrace"),
            ("MILLRACE_OPERATOR_NAMESPACE", &self.namespace),
            ("MILLRACE_OPERATOR_LEASE", "millrace"),
            ("MILLRACE_OPERATOR_POD", pod),
            ("MILLRACE_OPERATOR_LISTEN", "127.0.0.1:0"),
            ("MILLRACE_WATCH_NAMESPACES", &self.namespace),
            ("MILLRACE_DEFAULT_IMAGE", IMAGE),
            ("MILLRACE_STATUS_PORT", &port),
            ("MILLRACE_RESYNC_SECONDS", "1"),
            ("MILLRACE_LOG", "debug,kube=info,hyper=info,reqwest=info,hyper_util=info,tower=info,rustls=info,h2=info"),
            ("MILLRACE_LOG_FORMAT", "human"),
        ];
        all.retain(|(name, _)| !variables.iter().any(|(other, _)| other == name));
        all.extend_from_slice(variables);
        Operator::start(&all)
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn pipelines(&self) -> Api<RecordPipelineResource> {
        self.api()
    }

    /// Creates a pipeline; `spec` adds to its defaults or replaces them, and null removes a field.
    pub(crate) async fn create(&self, name: &str, spec: Value) -> RecordPipelineResource {
        self.create_annotated(name, json!({}), spec).await
    }

    pub(crate) async fn create_annotated(&self, name: &str, annotations: Value, spec: Value) -> RecordPipelineResource {
        let mut object = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline",
            "metadata": { "name": name, "annotations": annotations },
            "spec": {
                "threshold": "1000.00", "shards": 4, "replicas": 2,
                "sinks": [{ "name": "notifications", "event": "Processed", "redisStream": {} }],
                "redis": { "urlSecretRef": { "name": "servers", "key": "redis" } },
                "postgres": { "urlSecretRef": { "name": "servers", "key": "postgres" } },
            },
        });
        for (field, value) in spec.as_object().unwrap() {
            object["spec"][field] = value.clone();
            if value.is_null() {
                object["spec"].as_object_mut().unwrap().remove(field);
            }
        }
        let object = serde_json::from_value(object).unwrap();
        self.pipelines().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn get(&self, name: &str) -> RecordPipelineResource {
        self.pipelines().get(name).await.unwrap()
    }

    /// Merges a patch into a pipeline, and returns its new generation.
    pub(crate) async fn change(&self, name: &str, patch: Value) -> i64 {
        self.patch::<RecordPipelineResource>(name, patch).await.metadata.generation.unwrap()
    }

    /// Merges a patch into any object.
    pub(crate) async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + serde::de::DeserializeOwned,
        K: std::fmt::Debug,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// Waits until a condition has a status and a reason (an empty reason means any), and returns the resource.
    pub(crate) async fn waits(&self, name: &str, kind: &str, status: &str, reason: &str) -> RecordPipelineResource {
        let goal = format!("{kind} of {name} is {status} {reason}");
        eventually(&goal, async || {
            let found = self.get(name).await;
            let conditions = conditions(&found);
            let is = conditions.iter().any(|condition| {
                condition.type_ == kind
                    && condition.status == status
                    && (reason.is_empty() || condition.reason == reason)
            });
            so(is, || format!("{conditions:#?}")).map(|()| found)
        })
        .await
    }

    /// Waits until a condition describes a generation, and returns the resource.
    pub(crate) async fn waits_of(&self, name: &str, kind: &str, generation: i64) -> RecordPipelineResource {
        eventually(&format!("{kind} of {name} describes generation {generation}"), async || {
            let found = self.get(name).await;
            let is = condition(&found, kind).is_some_and(|one| one.observed_generation == Some(generation));
            so(is, || format!("{:#?}", conditions(&found))).map(|()| found)
        })
        .await
    }

    /// Waits until a pipeline is ready for a generation.
    pub(crate) async fn ready(&self, name: &str, generation: i64) -> RecordPipelineResource {
        eventually(&format!("{name} is ready for generation {generation}"), async || {
            let found = self.get(name).await;
            let is = condition(&found, "Ready")
                .is_some_and(|ready| ready.status == "True" && ready.observed_generation == Some(generation));
            so(is, || format!("{:#?}", conditions(&found))).map(|()| found)
        })
        .await
    }

    /// Waits until a pipeline is deleted.
    pub(crate) async fn gone(&self, name: &str) {
        eventually(&format!("{name} is deleted"), async || {
            let found = self.pipelines().get_opt(name).await.unwrap();
            so(found.is_none(), || format!("{:#?}", found.as_ref().map(conditions)))
        })
        .await;
    }

    /// The Events about a pipeline: reason and note.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, String)> {
        let events = self.api::<Event>().list(&ListParams::default()).await.unwrap();
        let about = events
            .items
            .into_iter()
            .filter(|event| event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref()) == Some(name));
        about.map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default())).collect()
    }

    /// Waits until the operator has ended two more reconciles for each pipeline.
    pub(crate) async fn two_reconciles(&self, operator: &Operator) {
        let before = operator.reconciles().await;
        let pipelines = self.pipelines().list(&ListParams::default()).await.unwrap().items.len() as u64;
        eventually("the operator has ended two more reconciles for each pipeline", async || {
            let now = operator.reconciles().await;
            so(now >= before + 2 * pipelines.max(1), || format!("{before} reconciles and {now}"))
        })
        .await;
    }
}

/// The conditions of a pipeline.
pub(crate) fn conditions(pipeline: &RecordPipelineResource) -> Vec<Condition> {
    pipeline.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
}

/// A condition of a pipeline.
pub(crate) fn condition(pipeline: &RecordPipelineResource, kind: &str) -> Option<Condition> {
    conditions(pipeline).into_iter().find(|condition| condition.type_ == kind)
}

/// `uid` of an object.
pub(crate) fn uid(object: &impl ResourceExt) -> String {
    object.uid().unwrap()
}

/// An operator's process, killed at the end.
pub(crate) struct Operator {
    process: Child,
    log: PathBuf,
}

impl Operator {
    fn start(variables: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("millrace-operator-{}-{number}.log", std::process::id()));
        let file = File::create(&log).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_millrace-operator"))
            .arg("run")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { process, log }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether the process runs.
    pub(crate) fn runs(&self) -> bool {
        Command::new("kill").args(["-0", &self.pid().to_string()]).stderr(Stdio::null()).status().unwrap().success()
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal: `KILL`, `STOP`, `CONT`, `TERM`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the operator ends", async || self.process.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()))
            .await
    }

    /// Its metrics in Prometheus's form; empty while it does not answer.
    pub(crate) async fn metrics(&self) -> String {
        let log = self.log();
        let Some((_, rest)) = log.split_once("socket://") else { return String::new() };
        let listens: String = rest.chars().take_while(|of| of.is_ascii_digit() || ".:".contains(*of)).collect();
        match reqwest::get(format!("http://{listens}/metrics")).await {
            Ok(response) => response.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// The number of reconciles that it has ended.
    pub(crate) async fn reconciles(&self) -> u64 {
        let metrics = self.metrics().await;
        let of = |line: &str| line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok());
        let lines = metrics.lines().filter(|line| line.starts_with("millrace_operator_reconciles_total{"));
        lines.filter_map(of).sum()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the operator's log, {}\n{}", self.log.display(), self.log());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
