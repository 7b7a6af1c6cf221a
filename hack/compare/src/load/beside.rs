//! The client beside a load, until the load ends: two records at once, to two destinations; a source that is loud; a console.
//!
//! Its records must never be counted among those of the load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::bail;
use bytes::Bytes;
use tokio::{task::JoinHandle, time::interval};

use super::http::{Connection, Kind};
use crate::settings::Beside;

/// How the ids of its records begin.
const PREFIX: &str = "beside.";

/// How often the console asks for the workers.
const LOOK_AT_WORKERS: Duration = Duration::from_secs(10);

/// Whether a record is of this client.
pub(crate) fn is_of_it(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// The client; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Client(Option<JoinHandle<anyhow::Result<()>>>);

impl Client {
    /// Starts it, with records of so many destinations.
    pub(crate) fn start(port: u16, beside: Beside, keys: usize) -> Self {
        Self((beside != Beside::Nobody).then(|| tokio::spawn(send(port, beside, keys.max(2)))))
    }

    /// Starts one that sends so many records a second, a hundredth of them at once, refused or not.
    pub(crate) fn loud(port: u16, rate: f64) -> Loud {
        let refused = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(offer(port, (rate / 100.0).ceil() as usize, Arc::clone(&refused)));
        Loud { client: Self(Some(task)), refused }
    }

    /// Starts one that asks for what an open console shows.
    pub(crate) fn console(port: u16) -> Self {
        Self(Some(tokio::spawn(watch(port))))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let Some(task) = self.0.take() else { return Ok(()) };
        if task.is_finished() {
            task.await??;
            bail!("the client beside the load ended");
        }
        task.abort();
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A client that is refused now and then.
#[derive(Debug)]
pub(crate) struct Loud {
    client: Client,
    refused: Arc<AtomicU64>,
}

impl Loud {
    /// Ends it. Returns how many requests were refused in part or whole.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub(crate) async fn refused(self) -> anyhow::Result<u64> {
        self.client.end().await?;
        Ok(self.refused.load(Ordering::Relaxed))
    }
}

/// The requests of the page `overview`.
async fn watch(port: u16) -> anyhow::Result<()> {
    let (mut events, mut workers) = (Connection::open(port).await?, Connection::open(port).await?);
    let looks = async {
        let mut ticks = interval(LOOK_AT_WORKERS);
        loop {
            ticks.tick().await;
            workers.read("/workers").await?;
        }
    };
    tokio::select! {
        ended = events.read("/console/events") => ended,
        failed = looks => failed,
    }
}

async fn offer(port: u16, records: usize, refused: Arc<AtomicU64>) -> anyhow::Result<()> {
    let (mut connection, mut ticks) = (Connection::open(port).await?, interval(Duration::from_millis(10)));
    for n in 0_usize.. {
        ticks.tick().await;
        let lines = (0..records).map(|at| record(&format!("{PREFIX}{n}.{at}"), n % 100));
        let body = lines.collect::<Vec<_>>().join(&b'\n');
        if !connection.offer(body.into()).await? {
            refused.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn send(port: u16, beside: Beside, keys: usize) -> anyhow::Result<()> {
    let (mut one, mut other) = (Connection::open(port).await?, Connection::open(port).await?);
    for n in 0_usize.. {
        let second = if beside == Beside::OneId { format!("{PREFIX}{n}") } else { format!("{PREFIX}{n}.second") };
        let bodies = (record(&format!("{PREFIX}{n}"), n % keys), record(&second, (n + 1) % keys));
        tokio::try_join!(one.post(Kind::Single, bodies.0), other.post(Kind::Single, bodies.1))?;
    }
    Ok(())
}

fn record(id: &str, key: usize) -> Bytes {
    Bytes::from(format!(
        "{{\"recordId\":\"{id}\",\"time\":\"2026-01-31T12:00:00Z\",\"sourceId\":\"beside\",\
         \"destinationId\":\"destination-{key}\",\"type\":\"positive\",\"value\":\"1\",\"unit\":\"EUR\",\
         \"reference\":\"beside\"}}"
    ))
}
