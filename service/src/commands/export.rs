//! `millrace export`: writes the processed records that match a filter to a file or to standard output.
//!
//! Beside a file stands `FILE.cursor`, which says up to which byte the file is whole and where the next page begins. It is
//! written after the bytes are on disk, so an export that was cut at any point continues without a missing or doubled line.

mod file;
mod pages;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::AsyncWriteExt as _;

use super::api::ApiArgs;
use file::ExportFile;
use pages::Pages;

/// Flags of `millrace export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write, or to continue; `-` or absent: standard output.
    file: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    /// Format; absent: csv for a file whose name ends in .csv, else ndjson.
    #[arg(long)]
    format: Option<Format>,
    /// Order of the records: of the log (shard, then number), or of their processing. With processed, an export that is
    /// repeated appends the records that were processed since.
    #[arg(long, default_value = "log")]
    order: Order,
    #[command(flatten)]
    filter: FilterArgs,
    /// Begin behind this cursor, which an export to standard output printed, or a page of GET /records had.
    #[arg(long, value_name = "CURSOR")]
    from_cursor: Option<String>,
    /// Records of one request.
    #[arg(long, value_name = "RECORDS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    page_size: u32,
    /// Stop when a page was not answered for so long, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    give_up_after: u64,
}

/// Which records are exported: those that match all that is given.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filter")]
struct FilterArgs {
    /// Only records with one of these ids; up to 100 times.
    #[arg(long, value_name = "ID")]
    record_id: Vec<String>,
    /// Only this destination.
    #[arg(long, value_name = "ID")]
    destination_id: Option<String>,
    /// Only this reference.
    #[arg(long)]
    reference: Option<String>,
    /// Only this source.
    #[arg(long, value_name = "ID")]
    source_id: Option<String>,
    /// Only records of this type, positive or negative.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only this unit.
    #[arg(long)]
    unit: Option<String>,
    /// Only records whose time is at or after this.
    #[arg(long, value_name = "TIME")]
    start_time: Option<String>,
    /// Only records whose time is before this.
    #[arg(long, value_name = "TIME")]
    end_time: Option<String>,
    /// Only records that raised an alert, or only those that did not.
    #[arg(long, value_name = "BOOL")]
    alerted: Option<bool>,
}

/// The format of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object per line.
    Ndjson,
    /// RFC 4180, with a header line.
    Csv,
}

/// The order of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// By shard, then number.
    Log,
    /// By the time of processing.
    Processed,
}

impl Order {
    fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Processed => "processed",
        }
    }
}

impl Args {
    fn format(&self) -> Format {
        let is_csv = || self.file.as_ref().and_then(|file| file.extension()).is_some_and(|ending| ending == "csv");
        self.format.unwrap_or_else(|| if is_csv() { Format::Csv } else { Format::Ndjson })
    }

    /// The parameters of the pages, without their size and cursor.
    fn query(&self) -> String {
        let filter = &self.filter;
        let alerted = filter.alerted.map(|alerted| alerted.to_string());
        let one = [
            ("destinationId", &filter.destination_id),
            ("reference", &filter.reference),
            ("sourceId", &filter.source_id),
            ("type", &filter.kind),
            ("unit", &filter.unit),
            ("startTime", &filter.start_time),
            ("endTime", &filter.end_time),
            ("alerted", &alerted),
        ];
        let query = reqwest::Url::parse("http://any").map(|mut url| {
            let mut pairs = url.query_pairs_mut();
            pairs.append_pair("order", self.order.as_str());
            pairs.extend_pairs(filter.record_id.iter().map(|id| ("recordId", id)));
            pairs.extend_pairs(one.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))));
            drop(pairs);
            url.query().unwrap_or_default().to_owned()
        });
        query.unwrap_or_default()
    }
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let api = args.api.open()?;
    let query = args.query();
    let pages = Pages::new(api, &query, args.format(), args.page_size, Duration::from_secs(args.give_up_after));
    match args.file.as_ref().filter(|file| file.as_os_str() != "-") {
        Some(path) => {
            let file = ExportFile::open(path, args.format(), &query, args.from_cursor)?;
            to_file(file, pages, args.order).await
        }
        None => to_stdout(pages, args.from_cursor).await,
    }
}

async fn to_file(mut file: ExportFile, mut pages: Pages, order: Order) -> anyhow::Result<()> {
    if file.is_complete() && order == Order::Log {
        bail!(
            "{}: is complete: name another file, or export with --order processed, which can be continued",
            file.shown()
        );
    }
    let before = file.records();
    if file.is_continued() {
        eprintln!("continuing {} behind its {before} records", file.shown());
    }
    let mut cursor = file.cursor();
    let bar = progress(before);
    loop {
        let page = pages.read(cursor.as_deref()).await?;
        let is_last = page.is_last;
        cursor = page.next_cursor.clone();
        file.append(&page)?;
        bar.set_position(file.records());
        if is_last {
            break;
        }
    }
    bar.finish_and_clear();
    eprintln!("{}: {} records, {} of them new", file.shown(), file.records(), file.records() - before);
    Ok(())
}

async fn to_stdout(mut pages: Pages, mut cursor: Option<String>) -> anyhow::Result<()> {
    let mut out = tokio::io::stdout();
    let mut is_first = true;
    loop {
        let page = match pages.read(cursor.as_deref()).await {
            Ok(page) => page,
            Err(error) => {
                let begin = cursor.map_or_else(|| "begin again".to_owned(), |cursor| format!("--from-cursor {cursor}"));
                return Err(error.context(format!("the export was cut; to continue it: {begin}")));
            }
        };
        out.write_all(page.lines(is_first)).await.context("standard output")?;
        out.flush().await.context("standard output")?;
        (is_first, cursor) = (false, page.next_cursor.or(cursor));
        if page.is_last {
            break;
        }
    }
    if let Some(cursor) = cursor.filter(|_| pages.can_be_continued()) {
        eprintln!("to export what is processed from now on: --from-cursor {cursor}");
    }
    Ok(())
}

/// Shown on a terminal only.
fn progress(before: u64) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_position(before);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} records, {per_sec}") {
        bar.set_style(style);
    }
    bar
}
