//! `millrace send`: send records from a file, from standard input, or generated.
//!
//! Requests are cut at fixed row numbers, so that a file that grew can be sent again under the same key and what was
//! there before gets the same ids. Values stay the text they were: no number passes through a float.

mod amounts;
pub(super) mod answer;
mod args;
mod client;
mod export;
mod generate;
mod header;
pub(super) mod http;
mod input;
mod latencies;
mod numbers;
mod origin;
mod parts;
mod report;
mod rows;
mod shape;
mod table;
#[cfg(test)]
mod tests;
mod times;
mod tokens;
mod trim;
mod values;
mod window;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use args::{AmountArgs, EXAMPLES, FieldArgs, InputArgs};
use client::{BatchResult, Client};
use origin::{Origin, Refused};
use report::Report;
use rows::Reader;

use super::api::ApiArgs;

/// Records in a request, unless asked for otherwise.
const BATCH: usize = 500;

/// Flags of `millrace send`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// File of records, packed with gzip or not; `-` or absent: standard input.
    #[arg(conflicts_with = "generate")]
    file: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    fields: FieldArgs,
    #[command(flatten)]
    amounts: AmountArgs,
    /// Derive the ids of rows without a recordId from this, their sourceId and their number in the file. Same key, file
    /// and batch size: same ids, so a file can be sent again, also after it grew or rows of it were repaired.
    #[arg(help_heading = "Sending", long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Rows in a request. Default 500; less where --rate would make it clumpy.
    #[arg(help_heading = "Sending", long, value_name = "ROWS", value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch_size: Option<u16>,
    /// Requests at the same time. With 1, records arrive in the order of the file.
    #[arg(help_heading = "Sending", long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Send at most so many rows a second.
    #[arg(help_heading = "Sending", long, value_name = "ROWS/s")]
    rate: Option<Rate>,
    /// Stop when a request was not taken for so long, in seconds.
    #[arg(help_heading = "Sending", long, value_name = "SECONDS", default_value_t = 300)]
    give_up_after: u64,
    /// Write every row that was refused to this file, as NDJSON: its number, line, column, cell, the reason, and its
    /// content.
    #[arg(help_heading = "Sending", long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(help_heading = "Sending", long)]
    json: bool,
    /// Generate so many rows instead of reading any.
    #[arg(help_heading = "Generated load", long, value_name = "ROWS")]
    generate: Option<u64>,
    /// Share of generated rows that repeat an earlier one, 0 to 0.99.
    #[arg(help_heading = "Generated load", long, value_name = "SHARE", default_value_t = 0.0, requires = "generate")]
    duplicates: f64,
    /// Number of different destinations in generated rows.
    #[arg(help_heading = "Generated load", long, default_value_t = 1000, requires = "generate", value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Seed of generated rows; the same seed gives the same records. Absent: a random one, printed.
    #[arg(help_heading = "Generated load", long, requires = "generate")]
    seed: Option<u64>,
}

/// Rows a second, `28` or `28/s`.
#[derive(Debug, Clone, Copy)]
struct Rate(f64);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix("/s").unwrap_or(text).parse::<f64>() {
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Self(rate)),
            _ => Err("must be a number of rows a second, such as 28 or 28/s"),
        }
    }
}

/// Rows of one request.
#[derive(Debug)]
struct Batch {
    /// Number of the first row that was cut for this request, whether or not it is sent.
    first_row: u64,
    rows: Vec<Row>,
}

/// One record as a line of JSON.
#[derive(Debug)]
struct Row {
    /// Its number in the input, from 1: a line of NDJSON, an element of JSON, a data row of CSV.
    number: u64,
    line: Vec<u8>,
}

/// Messages of the input's reader, in order.
#[derive(Debug)]
enum Feed {
    /// A request, and its rows as the file has them.
    Batch(Batch, Vec<Origin>),
    Refused(Box<Refused>),
    Skipped(u64),
    Repeated(u64),
}

/// Runs the command.
///
/// # Errors
/// A failure, or the number of refused or given up rows, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if !(0.0..=0.99).contains(&args.duplicates) {
        bail!("--duplicates must be between 0 and 0.99");
    }
    let client = Arc::new(Client::new(&args)?);
    let batch_size = batch_size(&args);
    let seed = args.seed.unwrap_or_else(rand::random);
    let source = Reader::open(&args, seed, batch_size)?;
    let mut report = Report::new(&args, source.size(), args.generate.map(|_| seed))?;
    let (feed, mut fed) = mpsc::channel(usize::from(args.concurrency));
    let reading = tokio::task::spawn_blocking(move || source.read(&feed));

    let outcome = forward(&args, &client, &mut fed, &mut report).await;
    // The reader stops at its next batch once nobody takes it.
    drop(fed);
    let read = reading.await.context("the input's reader died")?;
    report.finish(args.json)?;
    outcome?;
    read?;
    report.verdict()
}

/// Rows in a request: small enough that `--rate` gives about ten requests a second. Under an idempotency key the ids
/// depend on it, so there only the flag itself changes it.
fn batch_size(args: &Args) -> usize {
    match (args.batch_size, args.rate) {
        (Some(size), _) => usize::from(size),
        (None, Some(Rate(rate))) if args.idempotency_key.is_none() => ((rate / 10.0) as usize).clamp(1, BATCH),
        (None, _) => BATCH,
    }
}

async fn forward(
    args: &Args,
    client: &Arc<Client>,
    fed: &mut mpsc::Receiver<Feed>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut dispatched = 0_u64;
    let mut flying: JoinSet<anyhow::Result<(BatchResult, Vec<Origin>)>> = JoinSet::new();
    let mut is_read = false;
    while !(is_read && flying.is_empty()) {
        let has_room = !is_read && !report.gave_up() && flying.len() < usize::from(args.concurrency);
        tokio::select! {
            Some(done) = flying.join_next() => {
                let (outcome, origins) = done.context("a request's task died")??;
                report.add(outcome, &origins)?;
            }
            next = fed.recv(), if has_room => match next {
                Some(Feed::Skipped(rows)) => report.skipped(rows),
                Some(Feed::Repeated(rows)) => report.repeated(rows),
                Some(Feed::Refused(refused)) => report.refuse(&refused)?,
                Some(Feed::Batch(batch, origins)) => {
                    let due = args.rate.map(|Rate(rate)| start + Duration::from_secs_f64(dispatched as f64 / rate));
                    dispatched += batch.rows.len() as u64;
                    let client = Arc::clone(client);
                    flying.spawn(async move {
                        if let Some(due) = due {
                            tokio::time::sleep_until(due).await;
                        }
                        Ok((client.deliver(batch).await?, origins))
                    });
                }
                None => is_read = true,
            },
            () = report.tick() => {}
        }
        // Once one request was given up, nothing new is begun; what is under way is waited for.
        is_read |= report.gave_up();
    }
    Ok(())
}
