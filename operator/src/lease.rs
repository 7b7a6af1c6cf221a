//! Who acts: one operator at a time, by a Lease.
//!
//! Must never let a process act that stood still past its lease: what it holds to be true is old. It ends instead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kube::Client;
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::watch;

/// How long a lease lasts without being renewed, in seconds.
pub(crate) const LEASE_SECONDS: u64 = 15;
/// How long before its end it is renewed, in seconds.
const GRACE_SECONDS: u64 = 8;
/// How often it is noted that the process still runs and leads.
const TICK: Duration = Duration::from_millis(250);
/// Standing still for longer than this may outlive the lease: what is left of it after the latest renewal.
const LONGEST_STILL: Duration = Duration::from_secs(GRACE_SECONDS - 2);

/// Leadership, once it was won. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    born: Instant,
    /// Milliseconds since birth at which this process last knew that it leads.
    sure_ms: Arc<AtomicU64>,
}

/// This process may not write: it does not lead, or stood still for too long.
#[derive(Debug, thiserror::Error)]
#[error("this process does not lead any more")]
pub(crate) struct NotLeading;

impl Leadership {
    /// Asked right before each write.
    ///
    /// # Errors
    /// When this process cannot be sure that it still leads.
    pub(crate) fn check(&self) -> Result<(), NotLeading> {
        let since = self.born.elapsed().saturating_sub(Duration::from_millis(self.sure_ms.load(Ordering::Acquire)));
        if since < LONGEST_STILL { Ok(()) } else { Err(NotLeading) }
    }
}

/// Waits until this process leads; then gives its leadership and the future that guards it, which ends when it is lost.
///
/// # Errors
/// When the Lease cannot be made or read.
pub(crate) async fn lead(
    client: Client,
    namespace: &str,
    lease: &str,
    identity: &str,
) -> anyhow::Result<(Leadership, impl Future<Output = anyhow::Result<()>> + use<>)> {
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
    tracing::info!(lease, identity, "leader.lease.waiting");
    leads.wait_for(|leads| *leads).await.context("the task of the Lease ended")?;
    tracing::info!(lease, identity, "leader.lease.held");
    let leadership = Leadership { born: Instant::now(), sure_ms: Arc::default() };
    let guard = guard(leads, leadership.clone());
    Ok((leadership, async move {
        let lost = guard.await;
        // The task gives the Lease back once nobody listens any more.
        let _ = tokio::time::timeout(Duration::from_secs(3), task).await;
        lost
    }))
}

async fn guard(mut leads: watch::Receiver<bool>, leadership: Leadership) -> anyhow::Result<()> {
    loop {
        if leadership.check().is_err() {
            bail!("stood still for longer than {LONGEST_STILL:?}: another may lead by now");
        }
        leadership.sure_ms.store(leadership.born.elapsed().as_millis() as u64, Ordering::Release);
        tokio::select! {
            changed = leads.changed() => {
                changed.context("the task of the Lease ended")?;
                if !*leads.borrow_and_update() {
                    bail!("the Lease was lost");
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
    async fn a_lost_lease_ends_the_guard() {
        let (sender, receiver) = watch::channel(true);
        let leadership = Leadership { born: Instant::now(), sure_ms: Arc::default() };
        let guarded = tokio::spawn(guard(receiver, leadership.clone()));
        leadership.check().unwrap();
        sender.send(false).unwrap();
        assert_eq!(guarded.await.unwrap().unwrap_err().to_string(), "the Lease was lost");
    }

    #[tokio::test]
    async fn who_stood_still_is_never_sure_again() {
        let (_sender, receiver) = watch::channel(true);
        let born = Instant::now().checked_sub(LONGEST_STILL * 2).unwrap();
        let leadership = Leadership { born, sure_ms: Arc::default() };
        leadership.check().unwrap_err();
        let ended = guard(receiver, leadership.clone()).await.unwrap_err().to_string();
        assert!(ended.contains("stood still"), "{ended}");
        leadership.check().unwrap_err();
    }
}
