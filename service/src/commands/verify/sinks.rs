//! Comparing a sink's stream with the log: each number once, in order, with the content of its row.

use std::collections::BTreeMap;

use super::entry::{self, Expected, NumberedEntry};
use crate::{
    domain::{Seq, SeqRange, ShardId, StreamId},
    store::{Differences, StartedSink, Verification},
    streams::{SinkEntry, SinkSnapshot, Streams},
};

/// Entries that are held at a time.
const PAGE: usize = 500;
/// Numbers that are named when they are missing.
const NAMED: usize = 100;

/// A sink with its cursor and the end of its stream, read before the snapshot.
pub(super) struct Checked {
    sink: StartedSink,
    state: SinkSnapshot,
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

impl Checked {
    pub(super) fn new(sink: StartedSink, state: SinkSnapshot) -> Self {
        Self { sink, state }
    }
}

/// State of the comparison of one shard.
#[derive(Debug, Clone, Copy)]
enum At {
    /// The number that was compared last, or after which the sink starts.
    Number(Seq),
    /// Anywhere: what came first was trimmed.
    Anywhere,
}

struct Walk<'a> {
    sink: &'a StartedSink,
    state: &'a SinkSnapshot,
    source: String,
    at: BTreeMap<ShardId, At>,
    snapshot: &'a mut Verification,
    differences: &'a mut Differences,
}

/// Compares a sink.
pub(super) async fn check(
    checked: Checked,
    shards: u16,
    snapshot: &mut Verification,
    streams: &Streams,
    differences: &mut Differences,
) -> anyhow::Result<SinkReport> {
    let Checked { sink, state } = checked;
    let place = format!("sink {}", sink.name);
    let mut report = SinkReport { name: sink.name.clone(), entries: 0, behind: 0, trimmed: state.is_trimmed };
    if state.cursor_generation.as_deref() != Some(&sink.cursor_generation) {
        let found = state.cursor_generation.map_or("no cursor".to_owned(), |other| format!("generation {other}"));
        differences.add("cursor", place, format!("a cursor of generation {}", sink.cursor_generation), found);
        return Ok(report);
    }
    let mut at = BTreeMap::new();
    for start in snapshot.sink_starts(&sink.name).await? {
        at.insert(start.shard, if state.is_trimmed { At::Anywhere } else { At::Number(start.seq) });
    }
    for shard in ShardId::all(shards) {
        let highest = snapshot.highest(sink.kind, shard).await?;
        let cursor = state.cursor.get(&shard).copied();
        if cursor.is_some_and(|cursor| cursor > highest) {
            let found = cursor.unwrap_or_default().to_string();
            differences.add("cursor", format!("{place}, shard {shard}"), format!("at most {highest}"), found);
        }
        report.behind += highest.above(cursor.unwrap_or_default());
    }
    let source = snapshot.source().await?;
    let mut walk = Walk { sink: &sink, state: &state, source, at, snapshot, differences };
    let mut after: Option<String> = None;
    while let Some(newest) = &state.newest {
        let (page, is_whole) = streams.sink_page(&sink.stream, after.as_deref(), newest, PAGE).await?;
        if !is_whole {
            // Trimmed while this continued: what comes next may begin anywhere, too.
            report.trimmed = true;
            walk.at.values_mut().for_each(|at| *at = At::Anywhere);
        }
        let Some(last) = page.last() else { break };
        after = Some(last.stream_id.clone());
        // Entries from before this start were compared while that one was active.
        let is_older =
            |entry: &SinkEntry| entry.stream_id.parse::<StreamId>().ok().is_some_and(|id| Some(id) <= state.behind);
        let page: Vec<SinkEntry> = page.into_iter().filter(|entry| !is_older(entry)).collect();
        report.entries += page.len() as u64;
        walk.page(page).await?;
    }
    walk.finish().await?;
    Ok(report)
}

impl Walk<'_> {
    async fn page(&mut self, page: Vec<SinkEntry>) -> anyhow::Result<()> {
        let mut by_shard: BTreeMap<ShardId, Vec<NumberedEntry>> = BTreeMap::new();
        // Of another pipeline, whose stream was taken over. One of ours that says so wrongly is missed by its number.
        let is_ours = |entry: &SinkEntry| entry.fields.get("source").is_none_or(|source| *source == self.source);
        for entry in page.into_iter().filter(is_ours) {
            let id = entry.fields.get("id").cloned().unwrap_or_default();
            match entry::number(self.sink.kind, &id) {
                Some(place) => by_shard.entry(place.shard).or_default().push(NumberedEntry { seq: place.seq, entry }),
                None => {
                    let place = format!("sink {}, entry {}", self.sink.name, entry.stream_id);
                    self.differences.add("entry", place, format!("an id of {}", self.sink.kind.as_str()), id);
                }
            }
        }
        for (shard, entries) in by_shard {
            self.shard(shard, entries).await?;
        }
        Ok(())
    }

    async fn shard(&mut self, shard: ShardId, entries: Vec<NumberedEntry>) -> anyhow::Result<()> {
        let cursor = self.state.cursor.get(&shard).copied().unwrap_or_default();
        let mut fresh: Vec<NumberedEntry> = Vec::with_capacity(entries.len());
        for NumberedEntry { seq, entry } in entries {
            let before = match (fresh.last(), self.at.get(&shard)) {
                (Some(NumberedEntry { seq: before, .. }), _) | (None, Some(At::Number(before))) => *before,
                (None, Some(At::Anywhere)) => Seq::ZERO,
                (None, None) => {
                    self.odd(&entry, "an entry of a shard that the sink was started for");
                    continue;
                }
            };
            if seq <= before {
                self.odd(&entry, &format!("a number above {before}: each once, in order"));
            } else if seq > cursor {
                self.odd(&entry, &format!("at most {cursor}, the cursor"));
            } else {
                fresh.push(NumberedEntry { seq, entry });
            }
        }
        let (Some(first), Some(last)) = (fresh.first(), fresh.last()) else { return Ok(()) };
        let after = match self.at.get(&shard) {
            Some(At::Number(after)) => *after,
            _ => Seq::new(first.seq.get() - 1),
        };
        let range = SeqRange { after, upto: last.seq };
        let limit = i64::try_from(fresh.len() + NAMED)?;
        let expected = self.snapshot.published_numbers(self.sink.kind, shard, range, limit).await?;
        for number in
            expected.iter().filter(|number| fresh.binary_search_by_key(*number, |numbered| numbered.seq).is_err())
        {
            self.missing(shard, *number);
        }
        let skipped = self.snapshot.skipped(self.sink.kind, shard).await?;
        let was_skipped = |seq: Seq| skipped.iter().any(|gap| gap.after < seq && seq <= gap.upto);
        let rows = Expected::read(self.snapshot, self.sink.kind, shard, &fresh).await?;
        for NumberedEntry { seq, entry } in &fresh {
            match rows.get(*seq) {
                None if was_skipped(*seq) => {}
                None => self.odd(entry, "an outcome that is in the log"),
                Some(row) => {
                    let place = format!("sink {}, {}", self.sink.name, entry.fields.get("id").map_or("", |id| id));
                    row.compare(self.sink.kind, &self.source, entry, &place, self.differences);
                }
            }
        }
        self.at.insert(shard, At::Number(range.upto));
        Ok(())
    }

    /// Outcomes below the cursor that were not in the stream.
    async fn finish(&mut self) -> anyhow::Result<()> {
        for (shard, cursor) in self.state.cursor.clone() {
            let Some(At::Number(after)) = self.at.get(&shard).copied() else { continue };
            let limit = i64::try_from(NAMED)?;
            let missing =
                self.snapshot.published_numbers(self.sink.kind, shard, SeqRange { after, upto: cursor }, limit).await?;
            for number in missing {
                self.missing(shard, number);
            }
        }
        Ok(())
    }

    fn missing(&mut self, shard: ShardId, number: Seq) {
        let place = format!("sink {}, shard {shard}", self.sink.name);
        self.differences.add("entry", place, format!("number {number}"), "no entry");
    }

    fn odd(&mut self, entry: &SinkEntry, expected: &str) {
        let place = format!("sink {}, entry {}", self.sink.name, entry.stream_id);
        let id = entry.fields.get("id").cloned().unwrap_or_default();
        self.differences.add("entry", place, expected, id);
    }
}
