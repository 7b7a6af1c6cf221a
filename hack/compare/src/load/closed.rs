//! A closed loop: each connection sends its next request when the one before is answered.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::{task::JoinSet, time::Instant};

use super::http::{Connection, Kind};

/// Sends all bodies over so many connections, which are open when it begins. Returns when the first request began and
/// when the last answer came.
pub(crate) async fn send(port: u16, load: Load) -> anyhow::Result<Span> {
    let (kind, bodies) = (load.kind, Arc::new(load.bodies));
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(Connection::open(port).await?);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let (bodies, next) = (Arc::clone(&bodies), Arc::clone(&next));
        tasks.spawn(async move {
            while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                connection.post(kind, body.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(Span { began, ended: Instant::now() })
}

/// Requests and their connections.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) bodies: Vec<Bytes>,
    pub(crate) connections: usize,
}

/// The time of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}
