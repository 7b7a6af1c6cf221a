//! The settings, clients and caches that all reconciles share.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use kube::{Client, runtime::events::Recorder};
use tokio::sync::Mutex;

use crate::{cache::Cache, clock::Now, controller::memory::Memory, lease::Leadership};

/// The release and the namespaces of the operator. Each is a flag or a variable.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Settings {
    /// The name of the release that this operator belongs to; pipelines of another release are left alone
    #[arg(long, env = "MILLRACE_OPERATOR_RELEASE")]
    pub(crate) release: String,
    /// The operator's namespace
    #[arg(long, env = "MILLRACE_OPERATOR_NAMESPACE")]
    pub(crate) namespace: String,
    /// Namespaces to watch, with commas between; none: all
    #[arg(long, env = "MILLRACE_WATCH_NAMESPACES", value_delimiter = ',', hide_default_value = true)]
    pub(crate) watch_namespaces: Vec<String>,
}

impl Settings {
    /// The value of the annotation by which a release claims a pipeline: `<namespace>/<release>`.
    #[must_use]
    pub(crate) fn claim(&self) -> String {
        format!("{}/{}", self.namespace, self.release)
    }

    /// The namespaces to watch; a single `None` means all.
    #[must_use]
    pub(crate) fn scopes(&self) -> Vec<Option<String>> {
        let named: Vec<_> =
            self.watch_namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
        if named.is_empty() { vec![None] } else { named.into_iter().map(|name| Some(name.to_owned())).collect() }
    }
}

/// The defaults, ports and times of the operator. Each is a flag or a variable.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Tuning {
    /// The image of pipelines that name none
    #[arg(long, env = "MILLRACE_DEFAULT_IMAGE")]
    pub(crate) default_image: String,
    /// The pods' health port
    #[arg(long, env = "MILLRACE_STATUS_PORT", default_value_t = 8081)]
    pub(crate) status_port: u16,
    /// How long fewer workers must suffice before their number goes down, in seconds
    #[arg(long, env = "MILLRACE_SCALE_DOWN_SECONDS", default_value_t = 120)]
    pub(crate) scale_down_seconds: u64,
    /// How often a pipeline at rest is looked at, in seconds
    #[arg(long, env = "MILLRACE_RESYNC_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=25))]
    pub(crate) resync_seconds: u64,
}

type Memories = HashMap<(String, String), Arc<Mutex<Memory>>>;

/// The settings, clients and caches that all reconciles share.
pub(crate) struct Context {
    /// The client of the API server.
    pub(crate) client: Client,
    /// Release and namespaces.
    pub(crate) settings: Settings,
    /// Defaults, ports and times.
    pub(crate) tuning: Tuning,
    /// Whether this process may write.
    pub(crate) leadership: Leadership,
    /// The client for the pods' `/status`.
    pub(crate) http: reqwest::Client,
    /// Publishes Events of Kubernetes.
    pub(crate) recorder: Recorder,
    /// All caches: the rollout of a default image reads every pipeline.
    pub(crate) caches: Vec<Cache>,
    /// The memory of each pipeline, by namespace and name.
    memories: std::sync::Mutex<Memories>,
}

impl Context {
    /// A context without memories.
    #[must_use]
    pub(crate) fn new(
        client: Client,
        settings: Settings,
        tuning: Tuning,
        leadership: Leadership,
        recorder: Recorder,
        caches: Vec<Cache>,
    ) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(2))
            // Requests to one pod are rare and pods are many: idle connections would take more memory than they save
            // time.
            .pool_max_idle_per_host(0)
            .build()
            .unwrap_or_default();
        let memories = std::sync::Mutex::default();
        Self { client, settings, tuning, leadership, http, recorder, caches, memories }
    }

    /// The memory of a pipeline, new where there is none.
    #[must_use]
    pub(crate) fn memory(&self, namespace: &str, name: &str, now: Now) -> Arc<Mutex<Memory>> {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = memories.entry((namespace.to_owned(), name.to_owned()));
        Arc::clone(memory.or_insert_with(|| Arc::new(Mutex::new(Memory::new(String::new(), now)))))
    }

    /// Drops the memory of a pipeline that is deleted.
    pub(crate) fn drop_memory(&self, namespace: &str, name: &str) {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.remove(&(namespace.to_owned(), name.to_owned()));
    }
}
