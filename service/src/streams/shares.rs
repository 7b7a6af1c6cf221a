//! What each source holds of a shard's backlog, as far as this process has appended it.
//!
//! Records of a shard are applied in the order of their offsets. So an append is noted with its last offset, and what it
//! holds ends once that offset is acknowledged. Must never hold more than a bounded number of sources and of appends.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
    time::{Duration, Instant},
};

use crate::domain::SourceId;

/// Parts of a backlog at its limit that are noted apart.
const CHUNKS: u64 = 256;
/// Most sources of a shard that are noted apart.
const MOST_SOURCES: usize = 1_000;
/// Sources that are kept when there are more: those that hold the most.
const KEPT_SOURCES: usize = 500;
/// For how long a source counts after it has sent a record.
const RECENT: Duration = Duration::from_secs(60);
/// For how long the end of the applied records is taken for the present one.
const FRESH: Duration = Duration::from_millis(100);

static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A source, in 64 bits that only this process can compute: of two sources with the same bits, one is refused for what
/// the other holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTag(u64);

impl SourceTag {
    /// The tag of a source.
    #[must_use]
    pub fn of(source: &SourceId) -> Self {
        Self(HASHES.hash_one(source.as_str()))
    }
}

/// A number of records of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) source: SourceTag,
    pub(super) records: u64,
}

/// The runs of consecutive records of one source.
pub(super) fn runs(sources: impl Iterator<Item = Option<SourceTag>>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for source in sources.flatten() {
        match runs.last_mut() {
            Some(last) if last.source == source => last.records += 1,
            _ => runs.push(Run { source, records: 1 }),
        }
    }
    runs
}

/// The records of neighbouring appends.
#[derive(Debug, Default)]
struct Chunk {
    /// The highest offset of them.
    last: i64,
    records: u64,
    sources: HashMap<SourceTag, u64>,
}

#[derive(Debug)]
struct Source {
    /// Number of its records that are not applied.
    held: u64,
    /// When it last sent a record.
    seen: Instant,
}

/// What sources hold of one shard's backlog.
#[derive(Debug, Default)]
pub(super) struct Shares {
    chunks: VecDeque<Chunk>,
    sources: HashMap<SourceTag, Source>,
    /// When the end of the applied records was read; `None`: never.
    read_at: Option<Instant>,
}

impl Shares {
    /// Notes records that were appended, up to the offset `last`. `limit` is the backlog limit.
    pub(super) fn appended(&mut self, last: i64, runs: &[Run], limit: u64, now: Instant) {
        if self.chunks.back().is_some_and(|chunk| last < chunk.last) {
            // A rewound Redis counts from an earlier number.
            self.applied(i64::MAX, now);
        }
        let most = (limit / CHUNKS).max(1);
        if self.chunks.back().is_none_or(|chunk| chunk.records >= most) {
            self.chunks.push_back(Chunk::default());
        }
        for Run { source, records } in runs {
            self.seen(*source, now);
            let (Some(chunk), Some(state)) = (self.chunks.back_mut(), self.sources.get_mut(source)) else { continue };
            if chunk.sources.len() >= MOST_SOURCES && !chunk.sources.contains_key(source) {
                continue;
            }
            *chunk.sources.entry(*source).or_default() += records;
            chunk.records += records;
            state.held += records;
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.last = last;
        }
    }

    /// Notes that the records up to the offset `upto` are applied.
    pub(super) fn applied(&mut self, upto: i64, now: Instant) {
        self.read_at = Some(now);
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.last <= upto) {
            for (source, records) in chunk.sources {
                if let Some(state) = self.sources.get_mut(&source) {
                    state.held = state.held.saturating_sub(records);
                }
            }
        }
    }

    /// Notes that a source sent a record.
    pub(super) fn seen(&mut self, source: SourceTag, now: Instant) {
        if let Some(state) = self.sources.get_mut(&source) {
            state.seen = now;
            return;
        }
        if self.sources.len() >= MOST_SOURCES {
            let mut all: Vec<_> = std::mem::take(&mut self.sources).into_iter().collect();
            all.select_nth_unstable_by_key(KEPT_SOURCES, |(_, state)| std::cmp::Reverse((state.held, state.seen)));
            all.truncate(KEPT_SOURCES);
            self.sources.extend(all);
        }
        self.sources.insert(source, Source { held: 0, seen: now });
    }

    /// Whether the end of the applied records has to be read again. Returns true to one caller only.
    pub(super) fn has_to_read(&mut self, now: Instant) -> bool {
        let is_stale = self.read_at.is_none_or(|at| now.duration_since(at) >= FRESH);
        if is_stale {
            self.read_at = Some(now);
        }
        is_stale
    }

    /// Whether a source holds its share of `room`, which is this process's part of the backlog limit: it is divided by the
    /// sources of the last minute. `is_alone`: no other process serves, so that a single source shares with nobody.
    pub(super) fn is_used_up(&self, source: SourceTag, room: u64, is_alone: bool, now: Instant) -> bool {
        let recent = self.sources.values().filter(|state| now.duration_since(state.seen) < RECENT).count() as u64;
        if recent <= 1 && is_alone {
            return false;
        }
        let share = (room / recent.max(1)).max(1);
        self.sources.get(&source).is_some_and(|state| state.held >= share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: SourceTag = SourceTag(1);
    const B: SourceTag = SourceTag(2);

    fn run(source: SourceTag, records: u64) -> Run {
        Run { source, records }
    }

    #[test]
    fn a_source_is_refused_from_its_share_on_until_its_records_are_applied() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        shares.appended(10, &[run(B, 10)], 100, now);
        shares.appended(59, &[run(A, 49)], 100, now);
        assert!(!shares.is_used_up(A, 100, true, now));
        shares.appended(60, &[run(A, 1)], 100, now);
        assert!(shares.is_used_up(A, 100, true, now) && !shares.is_used_up(B, 100, true, now));
        shares.applied(58, now);
        assert!(shares.is_used_up(A, 100, true, now), "an append counts until its last record is applied");
        shares.applied(59, now);
        assert!(!shares.is_used_up(A, 100, true, now));
    }

    #[test]
    fn a_source_shares_with_those_of_the_last_minute_and_with_other_processes() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        shares.appended(60, &[run(A, 60)], 100, now);
        assert!(!shares.is_used_up(A, 100, true, now), "it is alone");
        assert!(shares.is_used_up(A, 50, false, now), "another process serves");
        shares.seen(B, now);
        assert!(shares.is_used_up(A, 100, true, now));
        let later = now + RECENT;
        shares.seen(A, later);
        assert!(!shares.is_used_up(A, 100, true, later), "the other sent nothing for a minute");
    }

    #[test]
    fn a_share_is_at_least_one_record() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        shares.seen(A, now);
        shares.appended(1, &[run(B, 1)], 1, now);
        assert!(!shares.is_used_up(A, 1, true, now) && shares.is_used_up(B, 1, true, now));
    }

    #[test]
    fn many_sources_cost_bounded_memory_and_the_largest_stays() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let mut last = 0;
        for n in 0..20_000 {
            last += 1;
            shares.appended(last, &[run(SourceTag(1_000 + n), 1)], 100_000, now);
            last += 1;
            shares.appended(last, &[run(A, 1)], 100_000, now);
        }
        assert!(shares.sources.len() <= MOST_SOURCES);
        assert!(shares.chunks.len() as u64 <= CHUNKS + 1, "{}", shares.chunks.len());
        assert_eq!(shares.sources[&A].held, 20_000);
        shares.applied(last, now);
        assert!(shares.chunks.is_empty() && shares.sources.values().all(|state| state.held == 0));
    }

    #[test]
    fn after_a_rewind_of_redis_only_later_appends_are_held() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        shares.appended(500, &[run(A, 500)], 1_000, now);
        shares.appended(20, &[run(A, 10)], 1_000, now);
        assert_eq!(shares.sources[&A].held, 10);
    }

    proptest! {
        #[test]
        fn a_source_holds_its_records_above_the_applied_offset(
            appends in prop::collection::vec((0..4_u64, 1..30_u64), 1..50),
            applied in 0..1_500_i64,
        ) {
            let (mut shares, now, mut last) = (Shares::default(), Instant::now(), 0);
            let mut expected = HashMap::<u64, u64>::new();
            for (source, records) in appends {
                last += i64::try_from(records).unwrap();
                // With a limit of 256 each append is a chunk of its own.
                shares.appended(last, &[run(SourceTag(source), records)], CHUNKS, now);
                if last > applied {
                    *expected.entry(source).or_default() += records;
                }
            }
            shares.applied(applied, now);
            for (source, state) in &shares.sources {
                prop_assert_eq!(state.held, expected.get(&source.0).copied().unwrap_or(0));
            }
        }
    }
}
