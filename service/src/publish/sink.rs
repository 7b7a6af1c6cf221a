//! A sink that may run, and its publisher for one shard.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use millrace_crds::Webhook;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::{
    RecentCommits, WebhookSecrets, outcomes::Outcomes, publisher::Publisher as RedisPublisher,
    webhook::Publisher as WebhookPublisher,
};
use crate::{
    domain::{Lease, OutcomeFilter, OutcomeKind, ShardId},
    store::Store,
    streams::{Output, Streams},
    webhook::{Allowed, Client},
};

/// A sink that has a cursor: its publishers may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveSink {
    /// Its name.
    pub name: String,
    /// Its outcomes.
    pub kind: OutcomeKind,
    /// Which of these it publishes.
    pub filter: OutcomeFilter,
    /// Before the first outcome at or after it the sink ends.
    pub until: Option<DateTime<Utc>>,
    /// Where it publishes them.
    pub target: Target,
}

/// Where a sink publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a Redis stream.
    Redis(Output),
    /// To an HTTP endpoint.
    Webhook(Arc<WebhookTarget>),
}

/// An HTTP endpoint, for one generation of its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookTarget {
    /// The pipeline's id.
    pub pipeline_id: String,
    /// `<pipeline>/<pipeline id>`: the source of every notification.
    pub source: String,
    /// The generation of the cursor.
    pub cursor_generation: String,
    /// The manifest's fields.
    pub webhook: Webhook,
    /// The client of all shards of this process.
    pub client: SharedClient,
}

impl WebhookTarget {
    /// The client of all shards of this process.
    ///
    /// # Errors
    /// When the URL is none.
    pub(super) fn client(&self) -> Result<Client, String> {
        let made = self.client.0.get_or_init(|| {
            let timeout = Duration::from_secs(self.webhook.timeout_seconds.into());
            let Webhook { url, proxy, .. } = &self.webhook;
            let client = Client::new(url, timeout, Allowed::new(self.webhook.allowed()), proxy.as_deref());
            client.map_err(|error| format!("{error:#}"))
        });
        made.clone()
    }
}

/// A client that is made once and belongs to a target: it makes no difference between two.
#[derive(Debug, Clone, Default)]
pub struct SharedClient(OnceLock<Result<Client, String>>);

impl PartialEq for SharedClient {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for SharedClient {}

/// A publisher and what it needs.
#[derive(Debug)]
pub struct Publisher {
    /// Postgres.
    pub store: Store,
    /// Redis.
    pub streams: Streams,
    /// The shard.
    pub shard: ShardId,
    /// The lease of the shard's owner.
    pub lease: Arc<Mutex<Lease>>,
    /// Recent commits of the shard.
    pub recent: Arc<RecentCommits>,
    /// The sink.
    pub sink: ActiveSink,
    /// The Secrets of webhooks.
    pub secrets: WebhookSecrets,
}

impl Publisher {
    /// Publishes until `stop` is cancelled, then ends in order, as long as `drain` is not cancelled.
    pub async fn run(self, stop: CancellationToken, drain: CancellationToken) {
        let Self { store, streams, shard, lease, recent, sink, secrets } = self;
        let ActiveSink { name, kind, filter, until, target } = sink;
        let end = OnceLock::new();
        let outcomes = Outcomes { store, shard, recent: Arc::clone(&recent), sink: name, kind, filter, until, end };
        match target {
            Target::Redis(output) => {
                let token = current(&lease).token;
                let begins_after = OnceCell::new();
                RedisPublisher { outcomes, streams, token, recent, output, begins_after }.run(stop, drain).await;
            }
            Target::Webhook(target) => {
                let outcomes = Arc::new(outcomes);
                WebhookPublisher { outcomes, lease, recent, target, secrets }.run(stop, drain).await;
            }
        }
    }
}

/// The present lease.
pub(super) fn current(lease: &Mutex<Lease>) -> Lease {
    lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
