//! The pass over one shard: its log in order, each page read once, merged with the entries of every sink.
//!
//! It must never hold more than a few pages of rows: a sink that is far behind the others reads its pages again.

use std::{collections::VecDeque, sync::Arc};

use super::{
    entry::{NumberedEntry, Row},
    log::LogChecks,
    progress::Progress,
    sinks::Sink,
    totals::{self, Alert},
};
use crate::{
    domain::{OutcomeKind, Seq, SeqRange, ShardId},
    store::{Differences, LoggedRecord, Verification},
};

/// Rows of the log that all shards hold together, in each of the pages that a shard keeps.
const ROWS: i64 = 16_384;
/// Pages that a shard keeps.
const PAGES: usize = 2;
/// Refused outcomes that are read at a time.
const REFUSED: usize = 500;

/// Consecutive entries of a sink for one shard.
pub(super) struct Part {
    /// The sink's index.
    pub(super) sink: usize,
    pub(super) shard: ShardId,
    pub(super) entries: Vec<NumberedEntry>,
    /// How often entries were trimmed unread before these.
    pub(super) trims: u32,
}

/// The part of a shard's log that a pass is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) shard: ShardId,
    /// Number of shards of the pipeline.
    pub(super) shards: u16,
    /// The number below the first record.
    pub(super) before: Seq,
    /// The number of the last record.
    pub(super) last: Seq,
}

/// A snapshot, and what was found in it.
pub(super) struct Reader {
    pub(super) snapshot: Verification,
    pub(super) differences: Differences,
}

/// State of the comparison of one sink.
#[derive(Debug, Clone, Copy)]
enum At {
    /// The number that was compared last, or after which the sink starts.
    Number(Seq),
    /// Anywhere: the entries before were trimmed.
    Anywhere,
}

struct SinkState {
    sink: Arc<Sink>,
    at: At,
    /// Entries up to this number come before the pass begins.
    before: Seq,
    cursor: Seq,
    skipped: Vec<SeqRange>,
    trims: u32,
    /// Entries of the last number, which can have further ones.
    held: Vec<NumberedEntry>,
}

/// Pages of the log, those that were read last.
struct Log {
    shard: ShardId,
    /// Rows of a page: page 0 holds the numbers from 1 to this.
    size: i64,
    /// Below the first record of the pass.
    before: Seq,
    last: Seq,
    /// The page that the checks read next.
    next: i64,
    kept: VecDeque<Page>,
    checks: LogChecks,
    progress: Arc<Progress>,
}

struct Page {
    index: i64,
    rows: Vec<LoggedRecord>,
}

/// The pass over one shard, with a state per sink.
pub(super) struct ShardPass {
    log: Log,
    sinks: Vec<Option<SinkState>>,
}

impl ShardPass {
    pub(super) fn new(extent: Extent, checks: LogChecks, progress: Arc<Progress>) -> Self {
        let size = (ROWS / i64::from(extent.shards)).clamp(64, 512);
        let Extent { shard, before, last, .. } = extent;
        let log = Log { shard, size, before, last, next: before.get() / size, kept: VecDeque::new(), checks, progress };
        Self { log, sinks: Vec::new() }
    }

    /// Adds the next sink; nothing where it was not started for the shard. `before` is the number below the first of its
    /// sequence in the pass, `highest` the highest number.
    pub(super) fn add_sink(&mut self, sink: &Arc<Sink>, before: Seq, highest: Seq, skipped: Vec<SeqRange>) {
        let state = sink.starts.get(&self.log.shard).map(|start| SinkState {
            sink: Arc::clone(sink),
            at: if sink.may_begin_anywhere { At::Anywhere } else { At::Number(before.max(*start)) },
            before,
            cursor: sink.cursor(self.log.shard).min(highest),
            skipped,
            trims: 0,
            held: Vec::new(),
        });
        self.sinks.push(state);
    }

    /// Compares entries of a sink with the log.
    pub(super) async fn compare(&mut self, part: Part, reader: &mut Reader) -> anyhow::Result<()> {
        let Some(state) = self.sinks.get_mut(part.sink).and_then(Option::as_mut) else { return Ok(()) };
        if part.trims > state.trims {
            (state.trims, state.at) = (part.trims, At::Anywhere);
            state.held.clear();
        }
        let entries = state.whole_numbers(part.entries);
        compare(&mut self.log, state, entries, reader).await
    }

    /// Ends the pass once every sink is read: outcomes below a cursor that were not in the stream, and the rest of the log.
    pub(super) async fn finish(mut self, reader: &mut Reader) -> anyhow::Result<LogChecks> {
        for state in self.sinks.iter_mut().flatten() {
            let held = std::mem::take(&mut state.held);
            if state.trims == state.sink.trims() {
                compare(&mut self.log, state, held, reader).await?;
            }
            let At::Number(after) = state.at else { continue };
            if state.trims == state.sink.trims() && after < state.cursor {
                let range = SeqRange { after, upto: state.cursor };
                merge(&mut self.log, state, range, Vec::new(), reader).await?;
            }
        }
        while self.log.next * self.log.size < self.log.last.get() {
            self.log.read_next(reader).await?;
        }
        Ok(self.log.checks)
    }
}

impl SinkState {
    /// Whether a number can have several entries.
    fn has_several(&self) -> bool {
        self.sink.kind() == OutcomeKind::TotalAlert
    }

    /// The entries of whole numbers, with those that were held; the last number is held, because more of it can come.
    fn whole_numbers(&mut self, entries: Vec<NumberedEntry>) -> Vec<NumberedEntry> {
        if !self.has_several() {
            return entries;
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend(entries);
        let last = all.last().map(|numbered| numbered.seq);
        let whole = all.iter().rposition(|numbered| Some(numbered.seq) != last).map_or(0, |at| at + 1);
        self.held = all.split_off(whole);
        all
    }

    /// The entries whose numbers come next; others are differences.
    fn in_order(&self, entries: Vec<NumberedEntry>, found: &mut Differences) -> Vec<NumberedEntry> {
        let mut last = match self.at {
            At::Number(after) => after,
            At::Anywhere => Seq::ZERO,
        };
        let mut fresh = Vec::with_capacity(entries.len());
        for numbered in entries {
            if numbered.seq.max(last) <= self.before {
                continue;
            }
            let continues =
                self.has_several() && fresh.last().is_some_and(|one: &NumberedEntry| one.seq == numbered.seq);
            if numbered.seq <= last && !continues {
                self.sink.odd(&numbered.entry, &format!("a number above {last}: each once, in order"), found);
            } else if numbered.seq > self.cursor {
                self.sink.odd(&numbered.entry, &format!("at most {}, the cursor", self.cursor), found);
            } else {
                last = numbered.seq;
                fresh.push(numbered);
            }
        }
        fresh
    }

    /// Merges rows with the entries up to `upto`: each row has one, and each has a row.
    fn merge<'a>(
        &self,
        shard: ShardId,
        rows: impl Iterator<Item = Row<'a>>,
        entries: &mut std::iter::Peekable<std::vec::IntoIter<NumberedEntry>>,
        upto: Seq,
        found: &mut Differences,
    ) {
        for row in rows {
            let seq = row.seq();
            while let Some(numbered) = entries.next_if(|numbered| numbered.seq < seq) {
                self.without_row(&numbered, found);
            }
            match entries.next_if(|numbered| numbered.seq == seq) {
                Some(NumberedEntry { entry, .. }) => {
                    row.compare(self.sink.kind(), &self.sink.source, &entry, self.sink.name(), found);
                }
                None if self.sink.is_filtered() => {}
                None => {
                    let place = format!("sink {}, shard {shard}", self.sink.name());
                    found.add("entry", place, format!("number {seq}"), "no entry");
                }
            }
        }
        while let Some(numbered) = entries.next_if(|numbered| numbered.seq <= upto) {
            self.without_row(&numbered, found);
        }
    }

    fn without_row(&self, NumberedEntry { seq, entry }: &NumberedEntry, found: &mut Differences) {
        if !self.skipped.iter().any(|gap| gap.after < *seq && *seq <= gap.upto) {
            self.sink.odd(entry, "an outcome that is in the log", found);
        }
    }
}

/// Compares the next entries of a sink with their rows.
async fn compare(
    log: &mut Log,
    state: &mut SinkState,
    entries: Vec<NumberedEntry>,
    reader: &mut Reader,
) -> anyhow::Result<()> {
    let mut entries = state.in_order(entries, &mut reader.differences);
    let after = match state.at {
        At::Number(after) => after,
        At::Anywhere => {
            let Some(first) = entries.first().map(|first| first.seq) else { return Ok(()) };
            // Of its first number, some entries can be trimmed.
            let is_cut = state.has_several();
            entries.retain(|numbered| !is_cut || numbered.seq > first);
            if is_cut { first } else { Seq::new(first.get() - 1) }
        }
    };
    let Some(last) = entries.last() else { return Ok(()) };
    let range = SeqRange { after, upto: last.seq };
    state.at = At::Number(range.upto);
    merge(log, state, range, entries, reader).await
}

/// Merges a range of a sink with its rows, page by page.
async fn merge(
    log: &mut Log,
    state: &SinkState,
    range: SeqRange,
    entries: Vec<NumberedEntry>,
    reader: &mut Reader,
) -> anyhow::Result<()> {
    let (kind, shard) = (state.sink.kind(), log.shard);
    let mut entries = entries.into_iter().peekable();
    if kind.sequence() == OutcomeKind::Processed.sequence() {
        let (first, last) = (log.page_of(range.after.next()), log.page_of(range.upto));
        for index in first..=last {
            let upto = Seq::new((index + 1) * log.size).min(range.upto);
            let at = log.read(index, reader).await?;
            let is_of = |row: &&LoggedRecord| {
                range.after < row.seq && row.seq <= upto && (kind != OutcomeKind::Alert || row.threshold.is_some())
            };
            let rows = log.kept[at].rows.iter().filter(is_of);
            if kind == OutcomeKind::TotalAlert {
                // What is stored in another form is a difference of the log.
                let alerts =
                    rows.flat_map(|row| totals::stored(row).unwrap_or_default().into_iter().map(move |of| (row, of)));
                let alerts: Vec<(&LoggedRecord, Alert)> = alerts.collect();
                let rows = alerts.iter().map(|(row, alert)| Row::TotalAlert(row, alert));
                state.merge(shard, rows, &mut entries, upto, &mut reader.differences);
            } else {
                state.merge(shard, rows.map(Row::Record), &mut entries, upto, &mut reader.differences);
            }
        }
        return Ok(());
    }
    let SeqRange { mut after, upto } = range;
    loop {
        let rest = SeqRange { after, upto };
        let rows = reader.snapshot.refused_page(kind, shard, rest, i64::try_from(REFUSED)?).await?;
        let end = rows.last().filter(|_| rows.len() == REFUSED).map_or(upto, |last| last.seq);
        state.merge(shard, rows.iter().map(Row::Refused), &mut entries, end, &mut reader.differences);
        if end >= upto {
            return Ok(());
        }
        after = end;
    }
}

impl Log {
    fn page_of(&self, seq: Seq) -> i64 {
        (seq.get() - 1) / self.size
    }

    /// The place of a page among the kept ones, after it was read and all pages before it were checked.
    async fn read(&mut self, index: i64, reader: &mut Reader) -> anyhow::Result<usize> {
        while self.next <= index {
            self.read_next(reader).await?;
        }
        if let Some(at) = self.kept.iter().position(|page| page.index == index) {
            return Ok(at);
        }
        let rows = self.rows(index, reader).await?;
        self.keep(Page { index, rows });
        Ok(self.kept.len() - 1)
    }

    /// Reads the next page, and checks its records.
    async fn read_next(&mut self, reader: &mut Reader) -> anyhow::Result<()> {
        let index = self.next;
        let rows = self.rows(index, reader).await?;
        for row in &rows {
            self.checks.record(row, &mut reader.differences);
        }
        self.progress.add(rows.len());
        self.keep(Page { index, rows });
        self.next += 1;
        Ok(())
    }

    async fn rows(&self, index: i64, reader: &mut Reader) -> anyhow::Result<Vec<LoggedRecord>> {
        let after = Seq::new(index * self.size).max(self.before);
        let upto = Seq::new((index + 1) * self.size);
        Ok(reader.snapshot.log_page(self.shard, SeqRange { after, upto }).await?)
    }

    fn keep(&mut self, page: Page) {
        if self.kept.len() == PAGES {
            self.kept.pop_front();
        }
        self.kept.push_back(page);
    }
}
