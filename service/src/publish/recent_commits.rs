//! Recent commits of one shard, in memory, for its publishers.
//!
//! Bounded by bytes, whatever the publishers do: a publisher that does not find its rows here reads them from the log.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    domain::{SeqRange, Watermarks},
    store::LogRow,
};

/// Rows of one commit.
type Batch = Arc<Vec<LogRow>>;

/// The newest commits of a shard, and up to which numbers they may be published.
#[derive(Debug)]
pub struct RecentCommits {
    recent: Mutex<Recent>,
    numbers: watch::Sender<Option<Watermarks>>,
    resets: AtomicU64,
    most_bytes: usize,
}

#[derive(Debug, Default)]
struct Recent {
    batches: VecDeque<(Batch, usize)>,
    bytes: usize,
}

impl RecentCommits {
    /// Holds rows of up to `most_bytes` (at least one batch); no numbers yet.
    #[must_use]
    pub fn new(most_bytes: usize) -> Self {
        Self { recent: Mutex::default(), numbers: watch::Sender::new(None), resets: AtomicU64::new(0), most_bytes }
    }

    /// Adds the rows that a commit wrote, in order. They may be published once [`RecentCommits::advance`] says so.
    pub fn push(&self, rows: Vec<LogRow>) {
        if let Some(first) = rows.first() {
            let mut recent = self.lock();
            let follows = recent
                .batches
                .back()
                .and_then(|(batch, _)| batch.last())
                .is_none_or(|last| last.seq.next() == first.seq);
            if !follows {
                // A commit whose outcome was unknown is missing here; it is in the log.
                *recent = Recent::default();
            }
            let bytes = rows.iter().map(weight).sum();
            recent.batches.push_back((Arc::new(rows), bytes));
            recent.bytes += bytes;
            while recent.bytes > self.most_bytes && recent.batches.len() > 1 {
                if let Some((_, bytes)) = recent.batches.pop_front() {
                    recent.bytes -= bytes;
                }
            }
        }
    }

    /// Up to these numbers it may be published: what is committed is acknowledged, and is beside the stream.
    pub fn advance(&self, numbers: Watermarks) {
        self.numbers.send_replace(Some(numbers));
    }

    /// Drops all rows: the server may have been rewound since.
    pub fn clear(&self) {
        *self.lock() = Recent::default();
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    /// Drops all rows, and takes the numbers up to which publishers may publish as they were read.
    pub fn reset(&self, numbers: Watermarks) {
        self.clear();
        self.advance(numbers);
    }

    /// Number of resets. State that a publisher read from a server before a reset may be outdated.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::SeqCst)
    }

    /// Up to `most` rows right behind `after`, none above `upto`; `None` when they are not here, but in the log. Rows are
    /// here before they are acknowledged, and until then their numbers may come again with other content.
    #[must_use]
    pub fn after(&self, SeqRange { after, upto }: SeqRange, most: usize) -> Option<Vec<(Batch, usize)>> {
        let recent = self.lock();
        let first = recent.batches.front()?.0.first()?.seq;
        if after.next() < first {
            return None;
        }
        let mut found = Vec::new();
        let begin = recent.batches.partition_point(|(batch, _)| batch.last().is_none_or(|last| last.seq <= after));
        for (batch, _) in recent.batches.range(begin..) {
            let from = batch.partition_point(|row| row.seq <= after);
            for index in from..batch.len() {
                if found.len() == most || batch[index].seq > upto {
                    return Some(found);
                }
                found.push((Arc::clone(batch), index));
            }
        }
        Some(found)
    }

    /// Up to which numbers may be published, followed; `None` until it is known.
    #[must_use]
    pub fn numbers(&self) -> watch::Receiver<Option<Watermarks>> {
        self.numbers.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About how much memory a row takes.
fn weight(row: &LogRow) -> usize {
    let record = &row.record;
    let texts = [
        record.record_id.as_str(),
        record.source_id.as_str(),
        record.destination_id.as_str(),
        record.unit.as_str(),
        record.reference.as_str(),
    ];
    size_of::<LogRow>()
        + texts.iter().map(|text| text.len() + 16).sum::<usize>()
        + record.attributes.as_ref().map_or(0, |attributes| attributes.as_str().len())
        + row.traceparent.as_ref().map_or(0, |traceparent| traceparent.len())
        + row.json.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Seq;

    fn watermarks(records: i64) -> Watermarks {
        Watermarks { records: Seq::new(records), ..Watermarks::default() }
    }

    #[test]
    fn rows_without_an_acknowledgement_are_not_published() {
        let recent = RecentCommits::new(1 << 20);
        assert_eq!(*recent.numbers().borrow(), None, "not read yet");
        recent.reset(watermarks(3));
        recent.push(Vec::new());
        assert_eq!(*recent.numbers().borrow(), Some(watermarks(3)));
        recent.advance(watermarks(4));
        assert_eq!(*recent.numbers().borrow(), Some(watermarks(4)));
        let resets = recent.resets();
        recent.clear();
        assert_eq!((*recent.numbers().borrow(), recent.resets()), (Some(watermarks(4)), resets + 1));
    }
}
