//! `millrace verify`: derive everything again from the records alone, and compare it with what is stored and published.
//!
//! Must never write. May run under load: it compares one snapshot, and sinks up to the cursors that it read before.

mod entry;
mod sinks;

use anyhow::Context as _;

use crate::{
    config::Place,
    store::{Difference, Differences, Extent, Store},
    streams::Streams,
};
use sinks::{Checked, SinkReport};

/// Flags of `millrace verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// The outcome, also as JSON.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict<'a> {
    verified: bool,
    records: i64,
    alerts: i64,
    totals: i64,
    sinks: &'a [SinkReport],
    /// All of them.
    differences: u64,
    /// At most 100.
    first: &'a [Difference],
}

/// Runs the command.
///
/// # Errors
/// That something differs, or why nothing could be compared.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let pipeline = args.place.name()?;
    let streams = Streams::connect(&args.place.redis_url()?, &pipeline)?;
    let store = Store::connect(&args.place.postgres_url()?, &pipeline, 2)?;
    let outcome = compare(&store, &streams, args.json).await;
    store.close().await;
    outcome
}

async fn compare(store: &Store, streams: &Streams, as_json: bool) -> anyhow::Result<()> {
    // Cursors first: what they say was published is then in the snapshot for sure.
    let mut started = store.verification().await.context("cannot ask Postgres; was `millrace migrate` run?")?;
    let known = started.started_sinks().await.context("cannot ask Postgres; was `millrace migrate` run?")?;
    started.end().await?;
    let mut checked = Vec::new();
    for sink in known {
        let state =
            streams.sink_snapshot(&sink.stream).await.with_context(|| format!("cannot read {}", sink.stream))?;
        checked.push(Checked::new(sink, state));
    }

    let mut snapshot = store.verification().await?;
    let mut differences = Differences::default();
    let extent = snapshot.extent().await?;
    snapshot.numbers(&mut differences).await?;
    snapshot.counters(&mut differences).await?;
    snapshot.originals(&mut differences).await?;
    snapshot.ids(&mut differences).await?;
    snapshot.shards(extent.shards, &mut differences).await?;
    snapshot.summaries(&mut differences).await?;
    snapshot.totals(&mut differences).await?;
    snapshot.alerts(&mut differences).await?;
    let mut reports = Vec::new();
    for sink in checked {
        reports.push(sinks::check(sink, extent.shards, &mut snapshot, streams, &mut differences).await?);
    }
    snapshot.end().await?;
    report(extent, &reports, &differences, as_json)
}

fn report(extent: Extent, sinks: &[SinkReport], differences: &Differences, as_json: bool) -> anyhow::Result<()> {
    let Extent { records, alerts, totals, shards } = extent;
    if as_json {
        let outcome = Verdict {
            verified: differences.count == 0,
            records,
            alerts,
            totals,
            sinks,
            differences: differences.count,
            first: &differences.first,
        };
        say!("{}", serde_json::to_string(&outcome)?);
    } else {
        for Difference { check, place, expected, found } in &differences.first {
            say!("{check}: {place}: expected {expected}; found {found}");
        }
        for SinkReport { name, entries, behind, trimmed } in sinks {
            let trimmed = if *trimmed { ", older ones were trimmed" } else { "" };
            let behind = if *behind > 0 { format!(", {behind} numbers behind") } else { String::new() };
            say!("sink {name}: {entries} entries{trimmed}{behind}");
        }
    }
    if differences.count > 0 {
        anyhow::bail!("{} differences in {records} records", differences.count);
    }
    if !as_json {
        say!("verified: {records} records, {alerts} alerts, {totals} totals, {shards} shards, {} sinks", sinks.len());
    }
    Ok(())
}
