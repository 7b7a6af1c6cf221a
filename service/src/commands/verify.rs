//! `millrace verify`: derive everything again from the records alone, and compare it with what is stored and published.
//!
//! Must write nothing but its result. May run under load: it compares one snapshot, and sinks up to the cursors that it
//! read before.

mod compare;
mod entry;
mod facts;
mod keys;
mod log;
mod pass;
mod progress;
mod sinks;
#[cfg(test)]
mod tests;
mod totals;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::{DateTime, Utc};

use super::job::Failure;
use crate::{
    config::Place,
    domain::{ShardId, parse_time},
    store::{Difference, Scope, Store, VerifyRun},
};
use compare::{Comparison, compare, connections};
use sinks::SinkReport;

/// Flags of `millrace verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Compare only this shard; may be given several times
    #[arg(long = "shard", value_name = "N")]
    shards: Vec<u16>,
    /// Compare only records that were processed at this time or later, such as 2026-01-31T12:00:00Z; what is stored for
    /// the first one of each key is taken as right
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<DateTime<Utc>>,
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
    totals: usize,
    sinks: &'a [SinkReport],
    /// All of them.
    differences: u64,
    /// At most 100.
    first: &'a [Difference],
}

/// Nothing is known about the records.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("nothing was compared")]
pub struct NotCompared;

/// Runs the command.
///
/// # Errors
/// That something differs; or why nothing could be compared, with [`NotCompared`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    let as_json = args.json;
    let compared = compare_all(args).await.context(NotCompared)?;
    report(&compared, as_json)
}

async fn compare_all(args: Args) -> anyhow::Result<Comparison> {
    let pipeline = args.place.name()?;
    let streams = super::redis(&args.place, &pipeline)?;
    match streams.missing_for_verify().await {
        Ok(missing) => anyhow::ensure!(missing.is_empty(), "{missing}"),
        // Any other Redis that does not answer is reported below.
        Err(error) => streams.tls_problem(&error).map_or(Ok(()), |problem| Err(Failure::from(problem)))?,
    }
    // One for the checks of Postgres, one for the result.
    let most = u32::try_from(connections())? + 2;
    let store = super::postgres(&args.place, &pipeline, most).await?;
    let mut shards: Vec<ShardId> = args.shards.iter().copied().map(ShardId::new).collect();
    shards.sort_unstable();
    shards.dedup();
    let scope = Scope { shards: Some(shards).filter(|shards| !shards.is_empty()), since: args.since };
    let start = Instant::now();
    let outcome = compare(&store, &streams, &scope).await;
    note(&store, &scope, start.elapsed(), &outcome).await;
    store.close().await;
    outcome
}

/// Stores the result. Where that fails, a line reports it: the comparison is valid all the same.
async fn note(store: &Store, scope: &Scope, took: Duration, outcome: &anyhow::Result<Comparison>) {
    let run = VerifyRun {
        took,
        scope,
        records: outcome.as_ref().map_or(0, |result| result.records),
        found: outcome.as_ref().map(|result| &result.differences).map_err(|error| format!("{error:#}")),
    };
    if let Err(error) = store.store_verify_run(&run).await.context("the result is not stored") {
        eprintln!("millrace: {error:#}");
    }
}

fn report(result: &Comparison, as_json: bool) -> anyhow::Result<()> {
    let Comparison { shards, records, alerts, totals, sinks, differences } = result;
    if as_json {
        let outcome = Verdict {
            verified: differences.count == 0,
            records: *records,
            alerts: *alerts,
            totals: *totals,
            sinks,
            differences: differences.count,
            first: &differences.first,
        };
        say!("{}", serde_json::to_string(&outcome)?);
    } else {
        for difference in &differences.first {
            say!("{difference}");
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
