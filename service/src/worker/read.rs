//! Reading a shard's stream: pending entries first, then new ones; at its end, waiting.
//!
//! Must never take a record for lost while an entry is pending or in flight.

use std::{sync::Arc, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::sleep_until};

use super::{
    loss,
    shard::{Error, Mode, Shard, current},
};
use crate::{
    domain::{Entry, StreamId},
    store,
    streams::{self, End, Read, Step},
};

/// Longest wait for an entry, and so the interval at which an idle shard reads its stream.
const LONGEST_WAIT: Duration = Duration::from_millis(1000);

/// Memory that a read can take.
const READ_KIB: u32 = 256;

/// What was read together with the acknowledgement of the batch before it.
#[derive(Debug)]
pub(super) struct Ahead {
    read: Result<Read, streams::Error>,
    memory: OwnedSemaphorePermit,
}

/// Keeps the memory that entries take, and frees the rest.
fn used(memory: Option<OwnedSemaphorePermit>, entries: &[Entry]) -> Option<OwnedSemaphorePermit> {
    let mut memory = memory?;
    let bytes: usize = entries.iter().flat_map(|entry| &entry.records).map(|record| record.payload.len() + 256).sum();
    memory.split((bytes / 1024 + 1).min(memory.num_permits()))
}

impl Shard {
    pub(super) async fn claim(&mut self, start: &str) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let memory = Arc::clone(&context.memory).acquire_many_owned(READ_KIB).await;
        let Step::Done(claimed) = self.input.claim(&current(&self.lease), start, context.options.batch).await? else {
            self.mode = Mode::Prepare;
            return Ok(());
        };
        if claimed.deleted > 0 {
            tracing::warn!(
                event = "worker.pending.deleted",
                shard = self.shard.get(),
                entries = claimed.deleted,
                "pending entries were deleted from the input stream"
            );
        }
        if !claimed.entries.is_empty() {
            tracing::info!(
                event = "worker.pending.reclaimed",
                shard = self.shard.get(),
                entries = claimed.entries.len(),
                "reclaimed pending entries"
            );
        }
        let _memory = used(memory.ok(), &claimed.entries);
        self.apply(claimed.entries, None).await?;
        if self.mode != Mode::Prepare {
            self.mode = claimed.next.map_or(Mode::Read, Mode::Claim);
        }
        if self.mode == Mode::Read && self.acknowledged != self.committed() {
            // Nothing is pending, so all that is committed is acknowledged: Redis was rewound, or an answer was lost.
            self.acknowledge(&[]).await?;
        }
        Ok(())
    }

    pub(super) async fn read(&mut self) -> Result<(), Error> {
        let mut reading = None;
        let Ahead { read, memory } = match self.ahead.take() {
            Some(ahead) => ahead,
            None => {
                if let Some(due) = self.context.ready.reads_at() {
                    sleep_until(due).await;
                }
                let memory = Arc::clone(&self.context.memory).acquire_many_owned(READ_KIB).await;
                let memory = memory.map_err(|_| Error::Returned)?;
                reading = Some(self.context.ready.reading());
                crate::fault::point("before_read");
                match self.input.read(&current(&self.lease), self.context.options.batch).await? {
                    Step::Done(read) => Ahead { read: Ok(read), memory },
                    Step::Raised => return self.raised(),
                }
            }
        };
        match read? {
            Read::Entries(entries) => {
                crate::fault::point("after_read");
                let _memory = used(Some(memory), &entries);
                self.apply(entries, reading).await?;
                self.reconcile().await
            }
            Read::Nothing(end) => {
                drop((memory, reading));
                self.end_reached(&end).await?;
                self.reconcile().await?;
                if self.mode == Mode::Read { self.wait(&end.last).await } else { Ok(()) }
            }
        }
    }

    /// Redis was rewound: its lease or its watermarks were lower.
    fn raised(&mut self) -> Result<(), Error> {
        tracing::warn!(
            event = "worker.lease.raised_in_redis",
            shard = self.shard.get(),
            "Redis was rewound: its lease or its watermarks were lower"
        );
        self.mode = Mode::Prepare;
        Ok(())
    }

    /// Whether entries were read that are not handed over yet.
    pub(super) fn has_entries(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| matches!(ahead.read, Ok(Read::Entries(_))))
    }

    /// Acknowledges applied entries of a batch that is done, and reads the next ones in the same step, unless they would
    /// wait for the next group, the shard is to be returned or is not in order, or memory is short: a shard that held some
    /// while it waits could stop all others.
    pub(super) async fn turn(&mut self, ids: &[StreamId]) -> Result<(), Error> {
        // The counts are compared while nothing is in flight.
        let is_early = self.context.ready.reads_at().is_some();
        let reads = self.mode == Mode::Read && !is_early && !self.stop.is_cancelled() && !self.reconciler.is_due();
        let memory = || Arc::clone(&self.context.memory).try_acquire_many_owned(READ_KIB).ok();
        let Some(memory) = reads.then(memory).flatten() else { return self.acknowledge(ids).await };
        let committed = self.committed();
        crate::fault::point("before_read");
        match self.input.ack_and_read(&current(&self.lease), committed, ids, self.context.options.batch).await? {
            Step::Done(read) => {
                self.acknowledged(committed);
                self.ahead = Some(Ahead { read, memory });
            }
            Step::Raised => self.mode = Mode::Prepare,
        }
        Ok(())
    }

    /// The stream is at its end, and nothing is in flight: records that were appended and did not come are lost.
    async fn end_reached(&mut self, end: &End) -> Result<(), Error> {
        if end.pending > 0 {
            // Another program has read for the group.
            self.mode = Mode::Prepare;
        } else if end.appended > self.log.accounted {
            let lease = current(&self.lease);
            let noted = loss::note_rest(&self.context, self.shard, &lease, self.log.accounted, end.appended);
            store::within(noted).await?;
            self.log.accounted = end.appended;
            crate::fault::point("after_loss_noted");
            self.acknowledge(&[]).await?;
        }
        Ok(())
    }

    /// Makes the counts of both servers agree, every second: between batches, when nothing is in flight.
    async fn reconcile(&mut self) -> Result<(), Error> {
        if self.mode == Mode::Read && !self.has_entries() && self.reconciler.is_due() {
            let lease = current(&self.lease);
            if !store::within(self.reconciler.step(&self.context, &self.input, &lease)).await? {
                self.mode = Mode::Prepare;
            }
        }
        Ok(())
    }

    /// Waits for an entry; delivers nothing to the group.
    async fn wait(&mut self, last: &str) -> Result<(), Error> {
        let mut connection = match self.waiting.take() {
            Some(connection) => connection,
            None => self.input.blocking(LONGEST_WAIT).await?,
        };
        let mut active_manifest = self.context.active_manifest.clone();
        active_manifest.mark_unchanged();
        tokio::select! {
            waited = self.input.wait(&mut connection, last, LONGEST_WAIT) => {
                waited?;
                self.waiting = Some(connection);
            }
            _ = active_manifest.changed() => {}
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }
}
