//! Reads a sink's stream once, in order, and hands each shard's entries to the pass over that shard.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::mpsc;

use super::{
    entry::{self, NumberedEntry},
    pass::Part,
};
use crate::{
    domain::{OutcomeKind, Seq, ShardId, StreamId},
    store::{Differences, Scope, StartedSink},
    streams::{SinkEntry, SinkSnapshot, Streams},
};

/// Entries that are read at a time.
const PAGE: usize = 1_000;
/// How far the clocks of Postgres and Redis may have differed from their difference now, in milliseconds.
const CLOCKS_MS: i64 = 60_000;

/// A sink whose stream is compared.
pub(super) struct Sink {
    sink: StartedSink,
    state: SinkSnapshot,
    /// Of each entry.
    pub(super) source: Arc<str>,
    /// Per shard of the scope, the number after which the sink publishes.
    pub(super) starts: BTreeMap<ShardId, Seq>,
    /// Entries up to this id are not read.
    after: StreamId,
    /// Whether what came first was trimmed.
    pub(super) may_begin_anywhere: bool,
    trims: AtomicU32,
}

/// The result of comparing a sink.
#[derive(Debug, serde::Serialize)]
pub(super) struct SinkReport {
    pub(super) name: String,
    /// Entries that were compared.
    pub(super) entries: u64,
    /// Numbers between the cursor and the log's end, over all shards.
    pub(super) behind: i64,
    pub(super) trimmed: bool,
}

/// The channels to the passes over the shards.
#[derive(Clone)]
pub(super) struct Passes {
    pub(super) channels: Vec<mpsc::Sender<Part>>,
    /// The channel of each shard of the scope.
    pub(super) of: Arc<BTreeMap<ShardId, usize>>,
    /// Whether the scope lacks shards.
    pub(super) is_limited: bool,
}

/// What the reader of a sink saw.
#[derive(Debug, Default)]
pub(super) struct SinkRead {
    /// Entries that were compared.
    pub(super) entries: u64,
    /// Differences that no pass finds.
    pub(super) differences: Differences,
}

impl Sink {
    /// `postgres_ms` is the time of Postgres's clock, read just before `state`.
    pub(super) fn new(
        sink: StartedSink,
        state: SinkSnapshot,
        source: Arc<str>,
        starts: BTreeMap<ShardId, Seq>,
        scope: &Scope,
        postgres_ms: i64,
    ) -> Self {
        // Entries from before this start were compared while that one was active.
        let mut after = state.behind.unwrap_or(StreamId { ms: 0, n: 0 });
        if let Some(since) = scope.since {
            // A record's entry comes after its commit, but its id is of the other server's clock.
            let redis_behind = (postgres_ms - state.now.timestamp_millis()).max(0);
            let ms = since.timestamp_millis() - redis_behind - CLOCKS_MS;
            after = after.max(StreamId { ms: u64::try_from(ms).unwrap_or(0), n: 0 });
        }
        let may_begin_anywhere = state.is_trimmed && state.oldest.is_none_or(|oldest| oldest > after);
        let trims = AtomicU32::new(0);
        Self { sink, state, source, starts, after, may_begin_anywhere, trims }
    }

    pub(super) fn name(&self) -> &str {
        &self.sink.name
    }

    pub(super) fn kind(&self) -> OutcomeKind {
        self.sink.kind
    }

    /// Whether any outcome may be left out.
    pub(super) fn is_filtered(&self) -> bool {
        self.sink.filtered
    }

    /// The highest appended number of a shard.
    pub(super) fn cursor(&self, shard: ShardId) -> Seq {
        self.state.cursor.get(&shard).copied().unwrap_or_default()
    }

    /// How often entries were trimmed unread.
    pub(super) fn trims(&self) -> u32 {
        self.trims.load(Ordering::Acquire)
    }

    /// Adds an entry that should not be as it is.
    pub(super) fn odd(&self, entry: &SinkEntry, expected: &str, found: &mut Differences) {
        let place = format!("sink {}, entry {}", self.name(), entry.stream_id);
        found.add("entry", place, expected, entry.field("id").unwrap_or_default());
    }

    /// Reads the stream up to the newest entry of the snapshot. Ends early where a pass has ended: that returns the error.
    /// `index` is the sink's in the passes.
    pub(super) async fn read(&self, index: usize, streams: &Streams, passes: &Passes) -> anyhow::Result<SinkRead> {
        let mut read = SinkRead::default();
        let Some(newest) = self.state.newest else { return Ok(read) };
        // What was trimmed up to the oldest entry of the snapshot is not expected.
        let (mut after, mut oldest) = (self.after, self.state.oldest.unwrap_or(self.after).max(self.after));
        loop {
            let page = streams.sink_page(&self.sink.stream, after, newest, PAGE).await?;
            // If the entry that was read last is trimmed, entries after it may be trimmed as well.
            if page.oldest.is_none_or(|now| now > oldest) {
                self.trims.fetch_add(1, Ordering::AcqRel);
            }
            let Some(last) = page.entries.last().and_then(|entry| entry.stream_id.parse().ok()) else { break };
            (after, oldest) = (last, last);
            let mut by_shard: BTreeMap<ShardId, Vec<NumberedEntry>> = BTreeMap::new();
            for entry in page.entries {
                if let Some((shard, numbered)) = self.numbered(entry, passes, &mut read) {
                    by_shard.entry(shard).or_default().push(numbered);
                }
            }
            for (shard, entries) in by_shard {
                let part = Part { sink: index, shard, entries, trims: self.trims() };
                let channel = passes.of.get(&shard).and_then(|at| passes.channels.get(*at));
                if let Some(channel) = channel
                    && channel.send(part).await.is_err()
                {
                    return Ok(read);
                }
            }
        }
        Ok(read)
    }

    /// The shard and number of an entry, where a pass compares it.
    fn numbered(&self, entry: SinkEntry, passes: &Passes, read: &mut SinkRead) -> Option<(ShardId, NumberedEntry)> {
        let place = entry::number(self.kind(), entry.field("id").unwrap_or_default());
        if passes.is_limited && place.is_some_and(|place| !passes.of.contains_key(&place.shard)) {
            return None;
        }
        read.entries += 1;
        // Of another pipeline, whose stream was taken over. One of ours with a wrong source is missed by its number.
        if entry.field("source").is_some_and(|source| source != &*self.source) {
            return None;
        }
        let expected = match place {
            None => format!("an id of {}", self.kind().as_str()),
            Some(place) if self.starts.contains_key(&place.shard) => {
                return Some((place.shard, NumberedEntry { seq: place.seq, entry }));
            }
            Some(_) => "an entry of a shard that the sink was started for".to_owned(),
        };
        self.odd(&entry, &expected, &mut read.differences);
        None
    }
}
