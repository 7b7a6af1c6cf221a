//! Compares a pipeline in one snapshot: a pass over each shard, in parallel on a few connections; beside them a reader of
//! each sink's stream, and the checks that Postgres makes by itself.

use std::{collections::BTreeMap, sync::Arc, thread};

use anyhow::Context as _;
use futures::future::try_join_all;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{
    facts::{Facts, Reported, published},
    log::LogChecks,
    pass::{Part, Reader, ShardPass},
    progress::Progress,
    sinks::{Passes, Sink, SinkReport},
};
use crate::{
    domain::ShardId,
    store::{Differences, Scope, Store, StoredTotal, Verification},
    streams::Streams,
};

/// Parts of sinks that wait for the passes of a connection.
const WAITING: usize = 32;

/// What was compared, and what differs.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Number of shards.
    pub(super) shards: usize,
    /// Number of records.
    pub(super) records: i64,
    /// Number of records that raised an alert.
    pub(super) alerts: i64,
    /// Number of keys and units with a total.
    pub(super) totals: usize,
    pub(super) sinks: Vec<SinkReport>,
    pub(super) differences: Differences,
}

/// The passes of one connection that ended.
struct Passed {
    shards: BTreeMap<ShardId, LogChecks>,
    differences: Differences,
}

/// Number of connections for passes.
pub(super) fn connections() -> usize {
    thread::available_parallelism().map_or(2, usize::from).clamp(2, 16)
}

/// Compares the part of a pipeline that is in the scope.
///
/// # Errors
/// Why it cannot be compared.
pub(super) async fn compare(store: &Store, streams: &Streams, scope: &Scope) -> anyhow::Result<Comparison> {
    let published = published(store, streams).await?;
    let mut snapshot = store.verification().await?;
    let facts = Facts::read(&mut snapshot, scope).await?;
    let mut result = Comparison::default();
    let reported = facts.sinks(published, &mut snapshot, &mut result.differences).await?;
    let sinks: Vec<Arc<Sink>> = reported.iter().filter_map(|reported| reported.sink.clone()).collect();
    let progress = Arc::new(Progress::default());
    let passes = facts.passes(&sinks, &progress, &mut snapshot).await?;
    result.shards = passes.len();
    let shown = progress.show(u64::try_from(facts.records())?);

    let shared = snapshot.share(store, connections().min(passes.len())).await?;
    let (running, channels) = start(shared, passes, scope);
    let reads: Vec<_> = sinks
        .iter()
        .enumerate()
        .map(|(index, sink)| {
            let (sink, streams, channels) = (Arc::clone(sink), streams.clone(), channels.clone());
            joined(async move {
                let read = sink.read(index, &streams, &channels).await;
                read.with_context(|| format!("cannot read the sink {}", sink.name()))
            })
        })
        .collect();
    // A pass ends when no reader holds its channel.
    drop(channels);
    let mut found = Differences::default();
    let tables = async { Ok(snapshot.tables(scope, &mut found).await?) };
    let (passed, reads, ()) = tokio::try_join!(try_join_all(running), try_join_all(reads), tables)?;
    drop(shown);

    result.differences.extend(found);
    let mut reads = reads.into_iter();
    for Reported { mut report, sink } in reported {
        if let Some((sink, read)) = sink.and_then(|sink| Some((sink, reads.next()?))) {
            report.entries = read.entries;
            report.trimmed |= sink.trims() > 0;
            result.differences.extend(read.differences);
        }
        result.sinks.push(report);
    }
    let mut shards = BTreeMap::new();
    for passed in passed {
        result.differences.extend(passed.differences);
        shards.extend(passed.shards);
    }
    facts.counters(&shards, &mut result.differences);
    totals(&mut snapshot, scope, shards, &mut result).await?;
    snapshot.end().await?;
    Ok(result)
}

/// Distributes the passes over the connections, and starts them. Returns the channels to them.
fn start(
    shared: Vec<Verification>,
    passes: BTreeMap<ShardId, ShardPass>,
    scope: &Scope,
) -> (Vec<impl Future<Output = anyhow::Result<Passed>>>, Passes) {
    let mut groups: Vec<BTreeMap<ShardId, ShardPass>> = shared.iter().map(|_| BTreeMap::new()).collect();
    let (mut of, count) = (BTreeMap::new(), groups.len());
    for (at, (shard, pass)) in passes.into_iter().enumerate() {
        of.insert(shard, at % count);
        groups[at % count].insert(shard, pass);
    }
    let (mut running, mut channels) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for (snapshot, group) in shared.into_iter().zip(groups) {
        let (channel, parts) = mpsc::channel(WAITING);
        channels.push(channel);
        running.push(joined(run(Reader { snapshot, differences: Differences::default() }, group, parts)));
    }
    (running, Passes { channels, of: Arc::new(of), is_limited: scope.shards.is_some() })
}

/// Runs the passes of one connection: they compare what the readers of sinks send, then the rest.
async fn run(
    mut reader: Reader,
    mut passes: BTreeMap<ShardId, ShardPass>,
    mut parts: mpsc::Receiver<Part>,
) -> anyhow::Result<Passed> {
    while let Some(part) = parts.recv().await {
        if let Some(pass) = passes.get_mut(&part.shard) {
            pass.compare(part, &mut reader).await?;
        }
    }
    let mut shards = BTreeMap::new();
    for (shard, pass) in passes {
        shards.insert(shard, pass.finish(&mut reader).await?);
    }
    reader.snapshot.end().await?;
    Ok(Passed { shards, differences: reader.differences })
}

/// Compares the stored total of every key and unit with the sum of its records.
async fn totals(
    snapshot: &mut Verification,
    scope: &Scope,
    mut shards: BTreeMap<ShardId, LogChecks>,
    result: &mut Comparison,
) -> anyhow::Result<()> {
    for checks in shards.values() {
        result.records += checks.records;
        result.alerts += checks.alerts;
        result.totals += checks.keys.len();
    }
    let found = &mut result.differences;
    let compare = |stored: StoredTotal| {
        let shard = u16::try_from(stored.shard).ok().map(ShardId::new);
        match shard.and_then(|shard| shards.get_mut(&shard)) {
            Some(checks) => checks.keys.compare(&stored, found),
            None => found.add("total", format!("shard {}", stored.shard), "no totals", stored.destination_id),
        }
    };
    snapshot.each_total(scope, compare).await?;
    for checks in shards.into_values() {
        checks.keys.finish(&mut result.differences);
    }
    Ok(())
}

/// A task of its own, which ends when the result is dropped.
fn joined<T: Send + 'static>(
    task: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> impl Future<Output = anyhow::Result<T>> {
    let task = AbortOnDropHandle::new(tokio::spawn(task));
    async move { task.await? }
}
