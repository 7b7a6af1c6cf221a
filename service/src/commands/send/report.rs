//! Output of `millrace send`: progress, refused rows, and the summary.

use std::{
    fs::File,
    io::{BufWriter, IsTerminal as _, Write as _},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{
    Args,
    client::{BatchResult, Rejected},
    input::Size,
    latencies::Latencies,
    origin::{Found, Origin, Refused},
    trim,
};

/// Refused rows that are shown on standard error.
const SHOWN: u64 = 20;

/// The summary, also as JSON.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    /// Rows that were sent.
    sent: u64,
    accepted: u64,
    /// Rows that were refused, by the service or before they were sent.
    rejected: u64,
    /// Of the rejected rows, those that were not sent.
    unsent: u64,
    /// Rows of which it is not known that they were accepted.
    given_up: u64,
    /// Rows left out by `--skip-empty`, and rows without any content.
    skipped: u64,
    /// Requests that were begun.
    requests: u64,
    /// Requests that were answered, with whatever.
    answered: u64,
    /// Requests that sent rows again.
    repetitions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<Generated>,
    elapsed_seconds: f64,
    /// Accepted rows a second.
    rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_ms: Option<RequestMs>,
}

#[derive(Debug, Serialize)]
struct Generated {
    seed: u64,
    duplicates: u64,
    /// Share of the generated rows.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct RequestMs {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Summary {
    /// Summary of the requests, for a person.
    fn requests(&self) -> String {
        let Self { requests, answered, repetitions, .. } = self;
        match &self.request_ms {
            None if *requests == 0 => "no requests".to_owned(),
            None => format!("{requests} attempts, none answered"),
            Some(RequestMs { p50, p95, p99 }) => {
                let unanswered = match requests - answered {
                    0 => String::new(),
                    unanswered => format!(", {unanswered} not answered"),
                };
                let times = format!("p50 {p50} ms, p95 {p95} ms, p99 {p99} ms");
                format!("{requests} requests, {repetitions} of them repetitions{unanswered}; {times}")
            }
        }
    }
}

/// A refused row in the file of errors.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refusal<'a> {
    #[serde(flatten)]
    rejected: &'a Rejected,
    /// The line of the file on which the row begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    /// The column or key that the refused field came from, and its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cell: Option<&'a str>,
    /// The row as the file has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// The row where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_base64: Option<String>,
    /// Only the head of the row is held.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    content_is_cut: bool,
}

impl<'a> Refusal<'a> {
    fn new(rejected: &'a Rejected, origin: Option<&'a Origin>, found: Option<&'a Found>) -> Self {
        let text = origin.map(|origin| std::str::from_utf8(&origin.text).map_err(|_| &origin.text));
        Self {
            rejected,
            line: origin.map(|origin| origin.line),
            column: found.map(|found| found.column.as_str()),
            cell: found.map(|found| found.value.as_str()),
            content: text.and_then(Result::ok),
            content_base64: text.and_then(Result::err).map(|bytes| STANDARD.encode(bytes)),
            content_is_cut: origin.is_some_and(|origin| origin.is_cut),
        }
    }
}

/// A refused row on standard error.
fn shown(rejected: &Rejected, origin: Option<&Origin>, found: Option<&Found>) -> String {
    let Rejected { row, code, pointer, detail, .. } = rejected;
    let pointer = pointer.as_deref().unwrap_or("");
    let place = origin.map_or_else(String::new, |origin| {
        let cell = found.map_or_else(String::new, |Found { column, value }| {
            let end = value.char_indices().nth(80).map(|(end, _)| end);
            let (value, more) = end.map_or((value.as_str(), ""), |end| (&value[..end], " …"));
            // With escapes: what cannot be seen is often what is wrong.
            format!(", {column}: {value:?}{more}")
        });
        format!(" [line {}{cell}]", origin.line)
    });
    let space = if pointer.is_empty() { "" } else { " " };
    format!("row {row}: {code} {pointer}{space}{detail}{place}")
}

/// Progress and outcome of a run.
pub(super) struct Report {
    summary: Summary,
    times: Latencies,
    start: Instant,
    bar: Option<ProgressBar>,
    ticks: Interval,
    size: Size,
    errors: Option<BufWriter<File>>,
    /// `--trim`
    trims: bool,
    reason: Option<String>,
    repeated: u64,
    /// Whether a proxy's limit was named.
    named_limit: bool,
}

impl Report {
    /// Begins; `seed` is that of generated load.
    pub(super) fn new(args: &Args, size: Size, seed: Option<u64>) -> anyhow::Result<Self> {
        let bar = std::io::stderr().is_terminal().then(|| match &size {
            Size::Rows(total) | Size::Bytes { total, .. } => ProgressBar::new(*total).with_style(
                ProgressStyle::with_template("{bar:32} {percent:>3}% {msg} · {eta} left")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            ),
            Size::Unknown => ProgressBar::new_spinner(),
        });
        let every = Duration::from_millis(if bar.is_some() { 200 } else { 5_000 });
        let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let errors = match &args.errors {
            Some(path) => {
                Some(BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
            }
            None => None,
        };
        if let Some(seed) = seed {
            eprintln!("seed {seed}");
        }
        let generated = seed.map(|seed| Generated { seed, duplicates: 0, ratio: 0.0 });
        let summary = Summary { generated, ..Summary::default() };
        Ok(Self {
            summary,
            times: Latencies::default(),
            start: Instant::now(),
            bar,
            ticks,
            size,
            errors,
            trims: args.input.trim,
            reason: None,
            repeated: 0,
            named_limit: false,
        })
    }

    /// Waits for the time to show progress, and shows it.
    pub(super) async fn tick(&mut self) {
        self.ticks.tick().await;
        let Summary { sent, accepted, rejected, .. } = self.summary;
        let rate = accepted as f64 / self.start.elapsed().as_secs_f64();
        let line = format!("{sent} rows · {rate:.0}/s · {rejected} refused");
        match &self.bar {
            Some(bar) => {
                match &self.size {
                    Size::Rows(_) => bar.set_position(sent),
                    Size::Bytes { read, .. } => bar.set_position(read.load(Ordering::Relaxed)),
                    Size::Unknown => bar.tick(),
                }
                bar.set_message(line);
            }
            None => eprintln!("{line}"),
        }
    }

    /// Rows that were left out.
    pub(super) fn skipped(&mut self, rows: u64) {
        self.summary.skipped += rows;
    }

    /// Generated rows that repeat an earlier one.
    pub(super) fn repeated(&mut self, rows: u64) {
        self.repeated += rows;
    }

    /// A batch is done; `origins` are its rows as the file has them.
    pub(super) fn add(&mut self, outcome: BatchResult, origins: &[Origin]) -> anyhow::Result<()> {
        let BatchResult { rows, accepted, rejected, given_up, requests, times, repetitions, refused_bytes } = outcome;
        self.summary.sent += rows;
        self.summary.accepted += accepted;
        self.summary.requests += requests;
        self.summary.answered += times.len() as u64;
        self.summary.repetitions += repetitions;
        for time in times {
            self.times.add(time);
        }
        for rejected in rejected {
            let origin = origins.iter().find(|origin| origin.number == rejected.row);
            self.reject(rejected, origin)?;
        }
        if let Some(bytes) = refused_bytes.filter(|_| !self.named_limit) {
            self.named_limit = true;
            self.line(&format!(
                "a proxy refuses requests of {bytes} bytes (413): they are sent in smaller parts; its limit for bodies \
                 is that of nginx's client_max_body_size, or its like"
            ));
        }
        if let Some((rows, reason)) = given_up {
            self.summary.given_up += rows;
            self.reason = Some(reason);
        }
        Ok(())
    }

    /// A row is refused before it is sent.
    pub(super) fn refuse(&mut self, refused: &Refused) -> anyhow::Result<()> {
        let Refused { origin, invalid } = refused;
        self.summary.unsent += 1;
        let rejected = Rejected {
            row: origin.number,
            record_id: origin.cell("/recordId").map(|found| found.value).filter(|id| !id.is_empty()),
            code: invalid.code.to_owned(),
            pointer: Some(invalid.pointer.clone()).filter(|pointer| !pointer.is_empty()),
            detail: invalid.detail.clone(),
        };
        self.reject(rejected, Some(origin))
    }

    fn reject(&mut self, mut rejected: Rejected, origin: Option<&Origin>) -> anyhow::Result<()> {
        self.summary.rejected += 1;
        let is_shown = self.summary.rejected <= SHOWN;
        let origin = origin.filter(|origin| !origin.text.is_empty() && (is_shown || self.errors.is_some()));
        let found = origin.zip(rejected.pointer.as_deref()).and_then(|(origin, pointer)| origin.cell(pointer));
        if !self.trims && found.as_ref().is_some_and(|Found { value, .. }| trim::text(value) != value) {
            rejected.detail.push_str("; --trim removes what is at the ends of the cell");
        }
        let rejected = &rejected;
        if let Some(errors) = &mut self.errors {
            serde_json::to_writer(&mut *errors, &Refusal::new(rejected, origin, found.as_ref()))
                .context("cannot write the file of errors")?;
            errors.write_all(b"\n").context("cannot write the file of errors")?;
        }
        let line = match self.summary.rejected {
            _ if is_shown => shown(rejected, origin, found.as_ref()),
            n if n == SHOWN + 1 => "more rows are refused; --errors FILE keeps them all".to_owned(),
            _ => return Ok(()),
        };
        self.line(&line);
        Ok(())
    }

    /// A line on standard error, above the progress.
    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Whether a batch was given up.
    pub(super) fn gave_up(&self) -> bool {
        self.summary.given_up > 0
    }

    /// Ends the progress and prints the summary.
    pub(super) fn finish(&mut self, as_json: bool) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some(errors) = &mut self.errors {
            errors.flush().context("cannot write the file of errors")?;
        }
        let elapsed = self.start.elapsed().as_secs_f64();
        self.summary.elapsed_seconds = (elapsed * 1000.0).round() / 1000.0;
        self.summary.rate = (self.summary.accepted as f64 / elapsed * 10.0).round() / 10.0;
        if let Some(generated) = &mut self.summary.generated {
            generated.duplicates = self.repeated;
            generated.ratio = self.repeated as f64 / (self.summary.sent.max(1)) as f64;
        }
        let at = |share| self.times.percentile(share);
        self.summary.request_ms =
            at(0.5).zip(at(0.95)).zip(at(0.99)).map(|((p50, p95), p99)| RequestMs { p50, p95, p99 });
        if as_json {
            say!("{}", serde_json::to_string(&self.summary)?);
        } else {
            self.print();
        }
        Ok(())
    }

    fn print(&self) {
        let Summary { sent, accepted, rejected, unsent, given_up, skipped, generated, .. } = &self.summary;
        say!("sent {sent}: accepted {accepted}, rejected {}, given up {given_up}", rejected - unsent);
        if *unsent > 0 {
            say!("refused before sending {unsent}");
        }
        if *skipped > 0 {
            say!("left out {skipped}");
        }
        if *accepted > 0 {
            say!("accepted is queued: /stats counts what is processed, duplicates and conflicts");
        }
        if let Some(Generated { seed, duplicates, ratio }) = generated {
            say!("generated with seed {seed}: {duplicates} duplicates ({:.1} %)", ratio * 100.0);
        }
        say!("{:.1} s, {:.0} rows/s", self.summary.elapsed_seconds, self.summary.rate);
        say!("{}", self.summary.requests());
    }

    /// Success only when every row was accepted.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let Summary { rejected, given_up, .. } = self.summary;
        if let Some(reason) = &self.reason {
            bail!(
                "gave up: {given_up} rows are not known to be accepted ({reason}); send the same again, ids make it safe"
            );
        }
        if rejected > 0 {
            bail!("{rejected} rows were refused");
        }
        Ok(())
    }
}
