//! Looks again and again whether Redis grants a process the rights that it needs.
//!
//! A Redis that is unavailable changes nothing here: that is the problem of others. One that fails by TLS, by contrast, is
//! refused or refuses until somebody changes a Secret. Must never let a worker own shards that it cannot work, while another
//! one may be able to.

use std::{sync::Arc, time::Duration};

use millrace_crds::{Reason, status_api::Problem};
use tokio::sync::watch;

use crate::{
    board::of_redis,
    config::ActiveManifest,
    lifecycle::Lifecycle,
    streams::{self, Streams},
};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest time without access, one answer that comes late included, until a process is not ready.
const LONGEST_DENIAL: Duration = Duration::from_secs(20);

/// The name of the look of `serve`, among loops and problems.
const OF_SERVE: &str = "serve.redis";
/// The name of the look of `work`, among loops and problems.
const OF_WORK: &str = "work.redis";

/// What a look has found.
enum Access {
    /// All rights.
    Granted,
    /// The rights to the streams of some sinks are missing.
    LacksSinks(Problem),
    /// The rights to commands or to the input streams are missing.
    Lacks(Problem),
    /// No connection: the user, the password or a certificate is refused.
    Denied(Problem),
    /// A server that is unavailable by another cause than TLS.
    Unavailable,
}

/// Follows the access of a `serve` process. While it is denied, every record would be refused: the process is not ready, so
/// that no traffic comes to it.
pub(crate) fn watch_serve(streams: &Streams, manifest: &watch::Receiver<ActiveManifest>, lifecycle: &Lifecycle) {
    let _ = watch_access(OF_SERVE, streams, manifest, lifecycle);
}

/// Follows the access of a `work` process. While it is denied, the process is not ready, so that a rollout keeps the previous
/// ones. Returns whether it may own shards: once it had all rights that these need, and until a connection is denied.
pub(crate) fn watch_work(
    streams: &Streams,
    manifest: &watch::Receiver<ActiveManifest>,
    lifecycle: &Lifecycle,
) -> watch::Receiver<bool> {
    watch_access(OF_WORK, streams, manifest, lifecycle)
}

fn watch_access(
    part: &'static str,
    streams: &Streams,
    manifest: &watch::Receiver<ActiveManifest>,
    lifecycle: &Lifecycle,
) -> watch::Receiver<bool> {
    let (may_own, owner) = watch::channel(false);
    let heartbeat = lifecycle.heartbeats.register(part, LONGEST_DENIAL);
    let (streams, manifest) = (streams.clone(), manifest.clone());
    let (board, soft) = (lifecycle.board.clone(), lifecycle.soft.clone());
    lifecycle.spawn(part, async move {
        let mut said: Option<Problem> = None;
        loop {
            let sinks = sinks(&manifest);
            let access = look(&streams, &sinks).await;
            match access {
                Access::Granted | Access::LacksSinks(_) => _ = may_own.send_replace(true),
                Access::Denied(_) => _ = may_own.send_replace(false),
                Access::Lacks(_) | Access::Unavailable => {}
            }
            let (problem, is_ready) = match access {
                Access::Granted | Access::Unavailable => (None, true),
                Access::LacksSinks(problem) => (Some(problem), true),
                Access::Lacks(problem) | Access::Denied(problem) => (Some(problem), false),
            };
            match &problem {
                Some(Problem { reason, message }) if problem != said => {
                    tracing::error!(
                        event = "streams.access.denied",
                        ?reason,
                        error = message,
                        "Redis denies access to this process"
                    );
                }
                None if said.is_some() => {
                    tracing::info!(event = "streams.access.granted", "Redis grants access to this process again");
                }
                _ => {}
            }
            said.clone_from(&problem);
            board.set(part, problem);
            if is_ready {
                heartbeat.record();
            }
            if tokio::time::timeout(LOOK_EVERY, soft.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
    owner
}

/// The streams of the sinks of the active manifest.
fn sinks(manifest: &watch::Receiver<ActiveManifest>) -> Vec<String> {
    let manifest = Arc::clone(&manifest.borrow().manifest);
    manifest.spec.sinks.iter().filter_map(|sink| sink.stream(&manifest.metadata.name)).collect()
}

async fn look(streams: &Streams, sinks: &[String]) -> Access {
    let error = match streams.missing_rights(sinks).await {
        Ok(missing) if missing.is_empty() => return Access::Granted,
        Ok(missing) => {
            let problem = Problem::new(Reason::RedisAclMissing, missing.to_string());
            let is_of_sinks = missing.commands.is_empty() && streams.may_append(&missing);
            return if is_of_sinks { Access::LacksSinks(problem) } else { Access::Lacks(problem) };
        }
        Err(error) => error,
    };
    if let streams::Error::Denied(_) = error {
        return Access::Denied(of_redis(&error));
    }
    match streams.tls_problem(&error) {
        Some(problem) => Access::Denied(problem),
        // A server of another make may not know the question: what it refuses then shows itself.
        None if error.is_answer() => Access::Granted,
        None => Access::Unavailable,
    }
}
