//! Creates the partitions of the records ahead of their periods, for as long as the worker runs.
//!
//! A role that may not create one is reported at the start, two periods before a commit needs the partition.

use std::{sync::Arc, time::Duration};

use millrace_crds::{Reason, status_api::Problem};

use super::Context;
use crate::store;

const PERIOD: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
/// The part of the board for partitions.
const PARTITIONS: &str = "partitions";

/// Creates missing partitions until the worker ends.
pub(super) async fn run(context: Arc<Context>) {
    let mut is_failing = false;
    loop {
        let partition = context.active_manifest.borrow().manifest.spec.retention.unwrap_or_default().partition;
        let pause = match store::within(context.store.create_partitions(partition)).await {
            Ok(created) => {
                for period in created {
                    tracing::info!(event = "worker.partition.created", %period, "created a partition of the records");
                }
                is_failing = false;
                context.board.set(PARTITIONS, []);
                PERIOD
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(event = "worker.partition.failed", %error, "a partition of the records cannot be created");
                }
                // Other parts report a Postgres that does not answer.
                let problem = (!error.is_unavailable()).then(|| {
                    let message = format!(
                        "a partition of the records cannot be created, and records stop when their period begins: {error}; \
                         run `millrace migrate` as the owner of the tables, or let this role create tables"
                    );
                    Problem::new(Reason::PartitionMissing, message)
                });
                context.board.set(PARTITIONS, problem);
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}
