//! What is known of shards and sinks before the passes begin.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;

use super::{
    log::{LogChecks, Policies},
    pass::{Extent, ShardPass},
    progress::Progress,
    sinks::{Sink, SinkReport},
    totals::{Rollups, TotalChecks},
};
use crate::{
    domain::{Seq, SeqRange, Sequence, ShardId},
    store::{
        Differences, ExpiredOutcomes, FirstSince, Scope, ShardHead, SkippedNumbers, StartedSink, Store, Verification,
    },
    streams::{SinkSnapshot, Streams},
};

/// The cursor and stream of a sink.
pub(super) struct Published {
    sink: StartedSink,
    state: SinkSnapshot,
    /// Postgres's clock just before, in milliseconds.
    postgres_ms: i64,
}

/// The snapshot's facts about shards.
pub(super) struct Facts<'a> {
    scope: &'a Scope,
    heads: Vec<ShardHead>,
    skipped: Vec<SkippedNumbers>,
    expired: Vec<ExpiredOutcomes>,
    first: Vec<FirstSince>,
    policies: Policies,
    rollups: Arc<Rollups>,
    source: Arc<str>,
}

/// A sink with its report; without the sink where its stream is not read.
pub(super) struct Reported {
    pub(super) report: SinkReport,
    pub(super) sink: Option<Arc<Sink>>,
}

/// Reads the cursors and streams of all sinks. It comes before the snapshot, so that the snapshot holds every outcome
/// that they show as published.
pub(super) async fn published(store: &Store, streams: &Streams) -> anyhow::Result<Vec<Published>> {
    let mut started = store.verification().await.context("cannot ask Postgres; was `millrace migrate` run?")?;
    let known = started.started_sinks().await.context("cannot ask Postgres; was `millrace migrate` run?")?;
    let mut published = Vec::with_capacity(known.len());
    for sink in known {
        let postgres_ms = started.now().await?.timestamp_millis();
        let state =
            streams.sink_snapshot(&sink.stream).await.with_context(|| format!("cannot read {}", sink.stream))?;
        published.push(Published { sink, state, postgres_ms });
    }
    started.end().await?;
    Ok(published)
}

impl<'a> Facts<'a> {
    pub(super) async fn read(snapshot: &mut Verification, scope: &'a Scope) -> anyhow::Result<Self> {
        let heads = snapshot.heads().await?;
        let shards = heads.len();
        if let Some(shard) = scope.shards.iter().flatten().find(|shard| usize::from(shard.get()) >= shards) {
            anyhow::bail!("--shard {shard}: the pipeline has the shards 0 to {}", shards.saturating_sub(1));
        }
        Ok(Self {
            scope,
            heads,
            skipped: snapshot.skipped().await?,
            expired: snapshot.expired().await?,
            first: match scope.since {
                Some(since) => snapshot.first_since(since).await?,
                None => Vec::new(),
            },
            policies: Policies::new(snapshot.stored_policies().await?, snapshot.policy_starts().await?)?,
            rollups: Arc::new(Rollups::new(
                snapshot.rollup_facts().await?,
                snapshot.last_dropped().await?,
                scope.since.is_none(),
            )),
            source: snapshot.source().await?.into(),
        })
    }

    /// The shards of the scope.
    fn chosen(&self) -> impl Iterator<Item = &ShardHead> {
        self.heads.iter().filter(|head| self.scope.has(head.shard))
    }

    /// The number below the first of a shard's sequence in the scope.
    fn before(&self, head: &ShardHead, sequence: Sequence) -> Seq {
        // Other outcomes that retention deleted have others between them.
        let expired = self.expired(head.shard, Sequence::Records).filter(|_| sequence == Sequence::Records);
        let kept = expired.map_or(Seq::ZERO, |expired| expired.upto);
        if self.scope.since.is_none() {
            return kept;
        }
        let first = self.first.iter().find(|first| first.shard == head.shard && first.sequence == sequence);
        let before = match (first, sequence) {
            (Some(first), _) => Seq::new(first.seq.get() - 1),
            (None, Sequence::Records) => head.last,
            (None, _) => head.highest(sequence),
        };
        before.max(kept)
    }

    fn expired(&self, shard: ShardId, sequence: Sequence) -> Option<&ExpiredOutcomes> {
        self.expired.iter().find(|expired| expired.shard == shard && expired.sequence == sequence)
    }

    /// Numbers whose entries in a sink need no row: those that were skipped, and those that retention deleted.
    fn without_rows(&self, shard: ShardId, sequence: Sequence) -> Vec<SeqRange> {
        let expired = self.expired(shard, sequence).map(|expired| SeqRange { after: Seq::ZERO, upto: expired.upto });
        self.gaps(shard, sequence).into_iter().chain(expired).collect()
    }

    fn gaps(&self, shard: ShardId, sequence: Sequence) -> Vec<SeqRange> {
        let of = self.skipped.iter().filter(|skipped| skipped.shard == shard && skipped.sequence == sequence);
        of.map(|skipped| skipped.range).collect()
    }

    /// The number of records in the scope.
    pub(super) fn records(&self) -> i64 {
        self.chosen().map(|head| head.last.above(self.before(head, Sequence::Records))).sum()
    }

    /// Checks the cursors of sinks, and prepares the reading of their streams.
    pub(super) async fn sinks(
        &self,
        published: Vec<Published>,
        snapshot: &mut Verification,
        found: &mut Differences,
    ) -> anyhow::Result<Vec<Reported>> {
        let mut all = Vec::with_capacity(published.len());
        for Published { sink, state, postgres_ms } in published {
            let place = format!("sink {}", sink.name);
            let mut report = SinkReport { name: sink.name.clone(), entries: 0, behind: 0, trimmed: state.is_trimmed };
            if state.cursor_generation.as_deref() != Some(&sink.cursor_generation) {
                let other =
                    state.cursor_generation.map_or("no cursor".to_owned(), |other| format!("generation {other}"));
                found.add("cursor", place, format!("a cursor of generation {}", sink.cursor_generation), other);
                all.push(Reported { report, sink: None });
                continue;
            }
            for head in self.chosen() {
                let highest = head.highest(sink.kind.sequence());
                let cursor = state.cursor.get(&head.shard).copied().unwrap_or_default();
                if cursor > highest {
                    let place = format!("{place}, shard {}", head.shard);
                    found.add("cursor", place, format!("at most {highest}"), cursor.to_string());
                }
                report.behind += highest.above(cursor);
            }
            let starts = snapshot.sink_starts(&sink.name).await?;
            let starts = starts.into_iter().map(|start| (start.shard, start.seq)).collect();
            let sink = Sink::new(sink, state, Arc::clone(&self.source), starts, self.scope, postgres_ms);
            all.push(Reported { report, sink: Some(Arc::new(sink)) });
        }
        Ok(all)
    }

    /// The passes over the shards of the scope.
    pub(super) async fn passes(
        &self,
        sinks: &[Arc<Sink>],
        progress: &Arc<Progress>,
        snapshot: &mut Verification,
    ) -> anyhow::Result<BTreeMap<ShardId, ShardPass>> {
        let shards = u16::try_from(self.heads.len()).unwrap_or(u16::MAX);
        let mut passes = BTreeMap::new();
        for head in self.chosen() {
            let shard = head.shard;
            let extent = Extent { shard, shards, before: self.before(head, Sequence::Records), last: head.last };
            // Where a pass does not begin at the first record, the stored totals without its records are those before it.
            let begin = match extent.before > Seq::ZERO && self.policies.has_totals(shard) {
                true => snapshot.destination_totals(shard, extent.before).await?,
                false => Vec::new(),
            };
            let totals = TotalChecks::new(shard, Arc::clone(&self.rollups), begin);
            let checks = LogChecks::new(extent, self.gaps(shard, Sequence::Records), &self.policies, totals);
            let mut pass = ShardPass::new(extent, checks, Arc::clone(progress));
            for sink in sinks {
                let sequence = sink.kind().sequence();
                let before = self.before(head, sequence);
                pass.add_sink(sink, before, head.highest(sequence), self.without_rows(shard, sequence));
            }
            passes.insert(shard, pass);
        }
        Ok(passes)
    }

    /// Compares the counters of records in each shard's row with what the pass counted.
    pub(super) fn counters(&self, passed: &BTreeMap<ShardId, LogChecks>, found: &mut Differences) {
        for head in self.chosen() {
            let (Some(checks), Some(stored)) = (passed.get(&head.shard), head.counters) else { continue };
            let skipped = self.gaps(head.shard, Sequence::Records).into_iter().map(|gap| gap.upto).max();
            let highest = head.last.max(skipped.unwrap_or_default()).get();
            let expired = self.expired(head.shard, Sequence::Records);
            let (kept, records, alerts, total_alerts) = expired.map_or((Seq::ZERO, 0, 0, 0), |expired| {
                (expired.upto, expired.count, expired.alerts, expired.total_alerts)
            });
            // Other records before the scope are not counted.
            let is_whole = self.before(head, Sequence::Records) == kept;
            let counted = [
                ("processed", checks.records + records, stored.processed),
                ("alerts", checks.alerts + alerts, stored.alerts),
                ("alerts of totals", checks.totals.alerts + total_alerts, stored.total_alerts),
            ];
            let counted = counted.into_iter().filter(|_| is_whole);
            for (name, derived, stored) in counted.chain([("highest record", highest, stored.watermarks.records.get())])
            {
                if derived != stored {
                    let place = format!("{name} of shard {}", head.shard);
                    found.add("counter", place, derived.to_string(), stored.to_string());
                }
            }
        }
    }
}
