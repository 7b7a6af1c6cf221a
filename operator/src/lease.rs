//! A Lease selects the one operator that acts.
//!
//! A process that was suspended past its lease must never act: its view is old. It ends instead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::{sync::watch, task::JoinHandle};

use crate::clock::Now;

/// How long a lease lasts without a renewal, in seconds.
pub(crate) const LEASE_SECONDS: u64 = 15;
/// How long before its end the lease is renewed, in seconds.
const GRACE_SECONDS: u64 = 8;
/// The time between two notes that the process runs and leads.
const TICK: Duration = Duration::from_millis(250);
/// A process that stalls for longer may have lost the lease: at its latest renewal not much more of it is left.
const LONGEST_STALL: Duration = Duration::from_secs(GRACE_SECONDS - 2);

/// The time between two reads of the Lease.
const READ_INTERVAL: Duration = Duration::from_secs(2);
/// How long before its end no write may start by a lease: the write itself takes time.
const MARGIN: Duration = Duration::from_secs(2);

/// Acquired leadership. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    started: Instant,
    /// Milliseconds from `started` until the last note that this process runs.
    ran_ms: Arc<AtomicU64>,
    /// Milliseconds from `started` until the end of the Lease, as it was last read, less [`MARGIN`].
    held_ms: Arc<AtomicU64>,
}

/// This process may not write: it does not lead, or it stalled for too long.
#[derive(Debug, thiserror::Error)]
#[error("this process does not lead any more, or cannot be sure of it")]
pub(crate) struct NotLeading;

impl Leadership {
    fn new(started: Instant) -> Self {
        Self { started, ran_ms: Arc::default(), held_ms: Arc::default() }
    }

    /// Must be called right before each write.
    ///
    /// # Errors
    /// When this process cannot be sure that it still leads.
    pub(crate) fn check(&self) -> Result<(), NotLeading> {
        let held = Duration::from_millis(self.held_ms.load(Ordering::Acquire));
        if !self.has_stalled() && self.started.elapsed() < held { Ok(()) } else { Err(NotLeading) }
    }

    fn has_stalled(&self) -> bool {
        let ran = Duration::from_millis(self.ran_ms.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(ran) >= LONGEST_STALL
    }

    fn note_run(&self) {
        self.ran_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Release);
    }

    /// Notes that the Lease is held for `left` from `from` on.
    fn note_held(&self, from: Instant, left: Duration) {
        let until = from.saturating_duration_since(self.started) + left.saturating_sub(MARGIN);
        self.held_ms.store(until.as_millis() as u64, Ordering::Release);
    }
}

/// Waits for the loss of leadership, and releases the Lease.
pub(crate) struct LeaseGuard {
    leadership: Leadership,
    leads: watch::Receiver<bool>,
    task: JoinHandle<kube_lease_manager::Result<LeaseManager>>,
    leases: Api<Lease>,
    lease: String,
    identity: String,
}

/// Waits until this process leads.
///
/// # Errors
/// When the Lease cannot be created or read.
pub(crate) async fn lead(
    client: Client,
    namespace: &str,
    lease: &str,
    identity: &str,
) -> anyhow::Result<(Leadership, LeaseGuard)> {
    let leases = Api::namespaced(client.clone(), namespace);
    let manager = LeaseManagerBuilder::new(client, lease)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_field_manager("millrace-operator")
        .with_duration(LEASE_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await
        .with_context(|| format!("the Lease {namespace}/{lease}"))?;
    let (mut leads, task) = manager.watch().await;
    tracing::info!(event = "leader.lease.waiting", lease, identity, "another operator holds the lease");
    leads.wait_for(|leads| *leads).await.context("the task of the Lease ended")?;
    tracing::info!(event = "leader.lease.acquired", lease, identity, "acquired the lease");
    let leadership = Leadership::new(Instant::now());
    let (lease, identity) = (lease.to_owned(), identity.to_owned());
    let guard = LeaseGuard { leadership: leadership.clone(), leads, task, leases, lease, identity };
    guard.read().await;
    Ok((leadership, guard))
}

impl LeaseGuard {
    /// Waits until leadership is lost, and returns the cause.
    pub(crate) async fn lost(&mut self) -> anyhow::Error {
        let mut leads = self.leads.clone();
        let reads = async {
            loop {
                self.read().await;
                tokio::time::sleep(READ_INTERVAL).await;
            }
        };
        tokio::select! {
            lost = lost_or_stalled(&mut leads, &self.leadership) => lost,
            () = reads => unreachable!("the loop has no end"),
        }
    }

    /// Releases the Lease, so that the next leader need not wait for its end. No write may follow.
    pub(crate) async fn release(self) {
        self.leadership.held_ms.store(0, Ordering::Release);
        drop(self.leads);
        // The task releases the Lease once its last receiver is dropped.
        let _ = tokio::time::timeout(Duration::from_secs(3), self.task).await;
    }

    /// Reads until when the Lease is held. The task that renews it reports nothing while it fails.
    async fn read(&self) {
        let from = Instant::now();
        let Ok(Ok(lease)) = tokio::time::timeout(READ_INTERVAL, self.leases.get(&self.lease)).await else { return };
        let Some(spec) = lease.spec.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity)) else {
            return;
        };
        let Some(renewed) = spec.renew_time else { return };
        let age = Duration::try_from(Now::read().time.duration_since(renewed.0)).unwrap_or_default();
        self.leadership.note_held(from, Duration::from_secs(LEASE_SECONDS).saturating_sub(age));
    }
}

/// Waits until the Lease is lost or the process has stalled, and returns the cause.
async fn lost_or_stalled(leads: &mut watch::Receiver<bool>, leadership: &Leadership) -> anyhow::Error {
    loop {
        if leadership.has_stalled() {
            return anyhow!("stalled for longer than {LONGEST_STALL:?}: another operator may lead by now");
        }
        leadership.note_run();
        tokio::select! {
            changed = leads.changed() => {
                if let Err(error) = changed {
                    return anyhow::Error::new(error).context("the task of the Lease ended");
                }
                if !*leads.borrow_and_update() {
                    return anyhow!("the Lease was lost");
                }
            }
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lost_lease_ends_the_watch() {
        let (sender, mut receiver) = watch::channel(true);
        let leadership = Leadership::new(Instant::now());
        leadership.note_held(leadership.started, Duration::from_secs(15));
        leadership.check().unwrap();
        let cause = tokio::spawn(async move { lost_or_stalled(&mut receiver, &leadership).await.to_string() });
        sender.send(false).unwrap();
        assert_eq!(cause.await.unwrap(), "the Lease was lost");
    }

    #[tokio::test]
    async fn a_process_that_stalled_never_writes_again() {
        let (_sender, mut receiver) = watch::channel(true);
        let leadership = Leadership::new(Instant::now().checked_sub(LONGEST_STALL * 2).unwrap());
        leadership.note_held(Instant::now(), Duration::from_secs(15));
        leadership.check().unwrap_err();
        let cause = lost_or_stalled(&mut receiver, &leadership).await.to_string();
        assert!(cause.contains("stalled"), "{cause}");
        leadership.check().unwrap_err();
    }

    #[test]
    fn a_process_that_cannot_read_its_lease_stops_writing_before_its_end() {
        let leadership = Leadership::new(Instant::now());
        leadership.check().unwrap_err();
        leadership.note_held(leadership.started, MARGIN + Duration::from_secs(9));
        leadership.check().unwrap();
        leadership.note_held(leadership.started, MARGIN);
        leadership.check().unwrap_err();
    }
}
