//! Who acts: one operator at a time, by a Lease.
//!
//! Must never let a process act that was suspended past its lease: its view is old. It ends instead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::{sync::watch, task::JoinHandle};

/// How long a lease lasts without being renewed, in seconds.
pub(crate) const LEASE_SECONDS: u64 = 15;
/// How long before its end it is renewed, in seconds.
const GRACE_SECONDS: u64 = 8;
/// How often it is noted that the process still runs and leads.
const TICK: Duration = Duration::from_millis(250);
/// ShardProgress still for longer than this may outlive the lease: what is left of it after the latest renewal.
const LONGEST_STILL: Duration = Duration::from_secs(GRACE_SECONDS - 2);

/// How often it is looked whether the Lease was renewed.
const LOOK: Duration = Duration::from_secs(2);
/// How long before its end a lease is not relied on: a write that was begun takes a while.
const MARGIN: Duration = Duration::from_secs(2);

/// Leadership, once it was won. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    born: Instant,
    /// Milliseconds since birth at which this process last ran.
    ran_ms: Arc<AtomicU64>,
    /// Milliseconds since birth until which the Lease, as it was last read, is this process's.
    held_ms: Arc<AtomicU64>,
}

/// This process may not write: it does not lead, or was stalled for too long.
#[derive(Debug, thiserror::Error)]
#[error("this process does not lead any more, or cannot be sure of it")]
pub(crate) struct NotLeading;

impl Leadership {
    fn new(born: Instant) -> Self {
        Self { born, ran_ms: Arc::default(), held_ms: Arc::default() }
    }

    /// Asked right before each write.
    ///
    /// # Errors
    /// When this process cannot be sure that it still leads.
    pub(crate) fn check(&self) -> Result<(), NotLeading> {
        let held = Duration::from_millis(self.held_ms.load(Ordering::Acquire));
        if !self.stood_still() && self.born.elapsed() < held { Ok(()) } else { Err(NotLeading) }
    }

    fn stood_still(&self) -> bool {
        let ran = Duration::from_millis(self.ran_ms.load(Ordering::Acquire));
        self.born.elapsed().saturating_sub(ran) >= LONGEST_STILL
    }

    fn runs(&self) {
        self.ran_ms.store(self.born.elapsed().as_millis() as u64, Ordering::Release);
    }

    /// Notes that the Lease is held for `left` from `from` on.
    fn holds(&self, from: Instant, left: Duration) {
        let until = from.saturating_duration_since(self.born) + left.saturating_sub(MARGIN);
        self.held_ms.store(until.as_millis() as u64, Ordering::Release);
    }
}

/// Tells when leadership is lost, and gives the Lease back.
pub(crate) struct Guard {
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
/// When the Lease cannot be made or read.
pub(crate) async fn lead(
    client: Client,
    namespace: &str,
    lease: &str,
    identity: &str,
) -> anyhow::Result<(Leadership, Guard)> {
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
    let guard = Guard { leadership: leadership.clone(), leads, task, leases, lease, identity };
    guard.look().await;
    Ok((leadership, guard))
}

impl Guard {
    /// Ends when leadership is lost; gives why.
    pub(crate) async fn lost(&mut self) -> anyhow::Error {
        let mut leads = self.leads.clone();
        let looks = async {
            loop {
                self.look().await;
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            lost = watched(&mut leads, &self.leadership) => lost,
            () = looks => unreachable!("it looks for ever"),
        }
    }

    /// Gives the Lease back: the next need not wait for its end. Nothing may be written any more.
    pub(crate) async fn release(self) {
        self.leadership.held_ms.store(0, Ordering::Release);
        drop(self.leads);
        // The task gives it back once nobody listens any more.
        let _ = tokio::time::timeout(Duration::from_secs(3), self.task).await;
    }

    /// Reads until when the Lease is held. The task that renews it says nothing while it cannot.
    async fn look(&self) {
        let from = Instant::now();
        let Ok(Ok(lease)) = tokio::time::timeout(LOOK, self.leases.get(&self.lease)).await else { return };
        let Some(spec) = lease.spec.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity)) else {
            return;
        };
        let Some(renewed) = spec.renew_time else { return };
        let age = Duration::try_from(Timestamp::now().duration_since(renewed.0)).unwrap_or_default();
        self.leadership.holds(from, Duration::from_secs(LEASE_SECONDS).saturating_sub(age));
    }
}

async fn watched(leads: &mut watch::Receiver<bool>, leadership: &Leadership) -> anyhow::Error {
    loop {
        if leadership.stood_still() {
            return anyhow!("stood still for longer than {LONGEST_STILL:?}: another may lead by now");
        }
        leadership.runs();
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
        leadership.holds(leadership.born, Duration::from_secs(15));
        leadership.check().unwrap();
        let watched = tokio::spawn(async move { watched(&mut receiver, &leadership).await.to_string() });
        sender.send(false).unwrap();
        assert_eq!(watched.await.unwrap(), "the Lease was lost");
    }

    #[tokio::test]
    async fn who_stalled_is_never_sure_again() {
        let (_sender, mut receiver) = watch::channel(true);
        let leadership = Leadership::new(Instant::now().checked_sub(LONGEST_STILL * 2).unwrap());
        leadership.holds(Instant::now(), Duration::from_secs(15));
        leadership.check().unwrap_err();
        let ended = watched(&mut receiver, &leadership).await.to_string();
        assert!(ended.contains("stood still"), "{ended}");
        leadership.check().unwrap_err();
    }

    #[test]
    fn who_cannot_read_its_lease_is_not_sure_past_its_end() {
        let leadership = Leadership::new(Instant::now());
        leadership.check().unwrap_err();
        leadership.holds(leadership.born, MARGIN + Duration::from_secs(9));
        leadership.check().unwrap();
        leadership.holds(leadership.born, MARGIN);
        leadership.check().unwrap_err();
    }
}
