//! Queries that read from a standby of Postgres: a request that asks for it, while the standby is fresh.
//!
//! It must never answer from a standby that lacks what was committed longer than `maxStaleness` before the request, and must
//! never read from the standby for a request that did not ask: such a request sees all that was answered before it.

mod follower;
mod read_from;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

pub(crate) use read_from::{ReadFrom, document};

use crate::{
    config::{ActiveManifest, StandbyPlace},
    lifecycle::Lifecycle,
    store::{Server, Store},
};
use follower::Follower;

/// The standby of this process, if it has one. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Standby(Arc<Mutex<Option<Fresh>>>);

/// A standby with what it has replayed.
#[derive(Debug, Clone)]
struct Fresh {
    store: Store,
    /// The standby that was asked.
    server: Server,
    /// The primary whose notes it has.
    primary: Server,
    /// For requests until then it is recent enough.
    until: Instant,
}

impl Standby {
    /// Follows the standby at this place, if one is given, by a task of `lifecycle`. `process` is this process's name as a producer.
    pub(crate) fn follow(
        place: StandbyPlace,
        primary: &Store,
        manifest: &watch::Receiver<ActiveManifest>,
        process: &Arc<str>,
        lifecycle: &Lifecycle,
    ) -> Self {
        let this = Self::default();
        if !place.is_given() {
            return this;
        }
        let follower = Follower::new(this.clone(), place, primary.clone(), manifest.clone(), Arc::clone(process));
        let heartbeat = lifecycle.heartbeats.register("serve.standby", Duration::from_secs(30));
        let (board, soft) = (lifecycle.board.clone(), lifecycle.soft.clone());
        lifecycle.spawn("serve.standby", async move {
            follower.run(&board, &heartbeat, &soft).await;
            Ok(())
        });
        this
    }

    /// The standby, if it is recent enough for a request that comes now.
    fn fresh(&self, primary: &Store) -> Option<Store> {
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = fresh.as_ref()?;
        // Another server behind the same URL has not been asked yet.
        let is_known = fresh.store.server() == fresh.server && primary.server() == fresh.primary;
        (is_known && Instant::now() < fresh.until).then(|| fresh.store.clone())
    }

    fn set(&self, fresh: Option<Fresh>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }
}
