//! `GET /workers`: the workers and the leases of the shards.
//!
//! Must never show a fencing token.

use poem::web::Data;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;

use super::{Tags, answer::Answer, types::Time};
use crate::{
    http::{App, auth::ReaderOfAll, problem::Failure},
    store::{KnownLease, KnownWorker},
};

/// A worker that was alive within the last day.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct Worker {
    /// Its name.
    pub name: String,
    /// When it started.
    pub started_at: Time,
    /// Until when its heartbeat holds.
    pub seen_until: Time,
    /// Whether its heartbeat has not expired.
    pub alive: bool,
}

/// The lease of a shard.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lease {
    /// The shard.
    pub shard: u16,
    /// The worker that owns it; absent: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The end of the lease; the worker extends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Whether the lease has not expired.
    pub alive: bool,
    /// How often the shard was taken.
    pub epoch: i64,
    /// When its worker took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// The policy version that the shard runs.
    pub policy_version: i64,
}

/// The workers and the leases.
#[derive(Debug, Object, Serialize)]
pub(super) struct Workers {
    /// The workers, by name.
    pub workers: Vec<Worker>,
    /// The leases, by shard.
    pub leases: Vec<Lease>,
}

impl From<KnownWorker> for Worker {
    fn from(worker: KnownWorker) -> Self {
        let KnownWorker { worker: name, started_at, seen_until, is_alive: alive } = worker;
        Self { name, started_at: Time(started_at), seen_until: Time(seen_until), alive }
    }
}

impl From<KnownLease> for Lease {
    fn from(lease: KnownLease) -> Self {
        let KnownLease { shard, owner, lease_until, is_alive, epoch, taken_at, policy_version } = lease;
        Self {
            shard: shard.get(),
            worker: owner,
            until: lease_until.map(Time),
            alive: is_alive,
            epoch,
            taken_at: taken_at.map(Time),
            policy_version,
        }
    }
}

/// `/workers`.
#[derive(Debug)]
pub struct WorkersApi;

#[OpenApi(tag = "Tags::Pipeline")]
impl WorkersApi {
    /// List workers and leases
    ///
    /// By Postgres's clock, which alone decides who owns a shard.
    #[oai(path = "/workers", method = "get", operation_id = "listWorkers")]
    async fn list(&self, app: Data<&App>, _reader: ReaderOfAll) -> Result<Answer<Workers>, Failure> {
        let workers = app.store.known_workers().await?.into_iter().map(Worker::from).collect();
        let leases = app.store.known_leases().await?.into_iter().map(Lease::from).collect();
        Ok(Answer(Workers { workers, leases }))
    }
}
