//! Preparing a shard: the first step of an owner, and the first after any error.
//!
//! Must never let a number be given again that was acknowledged or published.

use std::sync::Arc;

use millrace_crds::ADOPT;

use super::shard::{Error, Mode, Shard, current};
use crate::{domain::Watermarks, protocol_trace, streams::Acknowledged, telemetry::metrics as names};

impl Shard {
    /// Sets the lease, and compares both servers, before anything is read or committed.
    pub(super) async fn prepare(&mut self) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let lease = current(&self.lease);
        let active_manifest = context.active_manifest.borrow().clone();
        // Sets the lease first, so that no earlier owner acknowledges any more.
        let prepared = self.input.prepare(&lease, active_manifest.manifest.annotation(ADOPT)).await?;
        let compare = protocol_trace::begin(self.shard.get(), "compare", || lease.facts());
        let mut log = context.store.progress_of(self.shard).await?;
        if !context.store.knows_policy(active_manifest.policy.version, &active_manifest.manifest.spec).await? {
            // The task that follows the manifest registers it again, or continues with a stored version.
            return Err(Error::PolicyMissing(active_manifest.policy.version));
        }
        self.policy_version = 0;
        if prepared.created && context.store.note_prepared(self.shard).await? {
            tracing::error!(
                event = "worker.stream.recreated",
                shard = self.shard.get(),
                "the input stream or its group was missing and was recreated; records may be lost"
            );
            metrics::counter!(names::RECREATED, "shard" => self.shard.to_string()).increment(1);
            context.store.note_recreated(self.shard).await?;
        }
        log.accounted = context.store.open_account(self.shard, &lease, prepared.acknowledged.offset).await?;
        let highest = self.highest_known(prepared.acknowledged.watermarks).await?;
        if log.watermarks.is_below(highest) {
            // Higher numbers were acknowledged or published: none of them is given again.
            let skipped = context.store.skip_to(self.shard, &lease, highest).await?;
            tracing::error!(event = "worker.postgres.rewound", shard = self.shard.get(), from = %log.watermarks, to = %skipped, "Postgres was rewound: its log is behind the watermarks");
            metrics::counter!(names::REWINDS, "shard" => self.shard.to_string()).increment(1);
            log.watermarks = skipped;
        }
        let watermarks = prepared.acknowledged.watermarks.min(log.watermarks);
        self.acknowledged = Acknowledged { watermarks, ..prepared.acknowledged };
        self.log = log;
        compare.end("done", || log.facts());
        // Rows in memory can be of a Postgres that was rewound: publishers read the log until there are new ones.
        self.recent.reset(watermarks);
        self.reconciler.restart();
        self.mode = Mode::Claim("-".to_owned());
        Ok(())
    }

    /// The highest numbers outside of the log: the watermarks beside the stream, and the cursors of the sinks.
    async fn highest_known(&self, watermarks: Watermarks) -> Result<Watermarks, Error> {
        let sinks = self.context.store.sinks().await?;
        let streams: Vec<String> = sinks.iter().filter_map(|sink| sink.stream.clone()).collect();
        let cursors = self.context.streams.sink_cursors(&streams).await?;
        let pipeline_id = Arc::clone(&self.context.active_manifest.borrow().pipeline_id);
        let mut highest = watermarks;
        for (sink, cursor) in sinks.iter().filter(|sink| sink.stream.is_some()).zip(cursors) {
            if cursor.pipeline_id.as_deref() == Some(&*pipeline_id) {
                let number = cursor.numbers.get(&self.shard).copied().unwrap_or_default();
                highest.raise(sink.kind.sequence(), number);
            }
        }
        Ok(highest)
    }
}
