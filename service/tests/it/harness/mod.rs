//! The harness of all tests: servers, a pipeline for each test, its processes, and checks of their results.

mod backups;
#[path = "../../../src/tls/testing.rs"]
mod certificates;
mod checks;
mod document;
mod failover;
mod http;
mod issuer;
mod pipeline;
mod pooler;
mod process;
mod proxy;
mod receiver;
mod records;
mod s3;
mod servers;

use std::time::{Duration, Instant};

pub(crate) use certificates::{Authority, Issued};
pub(crate) use checks::{SinkEntry, check_stream, lost};
pub(crate) use failover::ManyRedis;
pub(crate) use http::{Answer, answer};
pub(crate) use issuer::{AUDIENCE, Issuer, now};
pub(crate) use pipeline::{KEY, LEASE_MS, Pipeline, sink};
pub(crate) use pooler::Pooler;
pub(crate) use process::{Process, free_port};
pub(crate) use proxy::Proxy;
pub(crate) use receiver::{Receiver, SIGNING_KEY};
pub(crate) use records::{Load, record};
pub(crate) use s3::S3;
pub(crate) use servers::{PrivatePostgres, PrivateRedis, shared, tls_redis};

/// Longest wait for a condition.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `answers` returns a value, which it tries every 40 ms. Fails after [`TIMEOUT`].
pub(crate) async fn obtain<T>(what: &str, mut answers: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = answers().await {
            return answer;
        }
        assert!(begun.elapsed() < TIMEOUT, "waited {TIMEOUT:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// Waits until `holds` returns true. Fails after [`TIMEOUT`].
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    obtain(what, async || holds().await.then_some(())).await;
}
