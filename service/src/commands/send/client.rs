//! Delivering one request's rows: again and again until each is accepted, refused for good, or time is up.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::bail;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Uri, header};
use tokio::time::Instant;

use super::{
    Args, Batch,
    answer::{Answer, External, ItemError, Response},
};
use crate::commands::{api::Api, backoff::Backoff};

/// Sends batches to one pipeline.
#[derive(Debug)]
pub(super) struct Client {
    api: Api,
    url: Uri,
    give_up_after: Duration,
    /// Most bytes of a request's body: what a proxy refused is sent in smaller parts.
    most_bytes: AtomicUsize,
    /// Whether it was said that a request is repeated, since one was concluded.
    is_waiting: AtomicBool,
}

/// The outcome of a batch.
#[derive(Debug, Default)]
pub(super) struct BatchResult {
    pub(super) rows: u64,
    pub(super) accepted: u64,
    pub(super) rejected: Vec<Rejected>,
    /// Rows of which it is not known that they were accepted when time was up, and why.
    pub(super) given_up: Option<(u64, String)>,
    /// Requests that were begun, answered or not.
    pub(super) requests: u64,
    /// Time of each request that was answered.
    pub(super) times: Vec<Duration>,
    pub(super) repetitions: u64,
    /// Size in bytes of a request that a proxy refused as too large, and that was sent in parts.
    pub(super) refused_bytes: Option<usize>,
}

/// A row that was refused for good.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rejected {
    pub(super) row: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) record_id: Option<String>,
    pub(super) code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pointer: Option<String>,
    pub(super) detail: String,
}

/// One request: rows of a batch that are sent together.
#[derive(Debug)]
struct Part {
    /// The row of the batch in each line, ascending.
    rows: Vec<usize>,
    body: Vec<u8>,
}

/// Meaning of an answer for the rows of its request.
#[derive(Debug)]
enum Verdict {
    /// Each has its outcome.
    Concluded,
    /// Some have none yet: send those again, after a pause.
    Again { reason: String, retry_after: Option<Duration> },
    /// Send again in smaller parts.
    Smaller,
}

impl Client {
    /// A client for the pipeline that the flags name.
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        let api = args.api.open()?;
        Ok(Self {
            url: api.url("/records/batch")?,
            api,
            give_up_after: Duration::from_secs(args.give_up_after),
            most_bytes: AtomicUsize::new(usize::MAX),
            is_waiting: AtomicBool::new(false),
        })
    }

    /// Delivers a batch.
    ///
    /// # Errors
    /// Why no row of any batch can be delivered: no access, or an answer of something that is not the service.
    pub(super) async fn deliver(&self, batch: Batch) -> anyhow::Result<BatchResult> {
        let mut outcome = BatchResult { rows: batch.rows.len() as u64, ..BatchResult::default() };
        // Indexes of rows whose outcome is open.
        let mut open: Vec<usize> = (0..batch.rows.len()).collect();
        let (mut backoff, mut failing_since) = (Backoff::default(), None);
        while !open.is_empty() {
            let part = self.part(&batch, &open);
            let (began, before) = (Instant::now(), open.len());
            outcome.requests += 1;
            let verdict = match self.post(&part).await {
                Ok(response) => {
                    outcome.times.push(began.elapsed());
                    self.judge(&batch, &part, &response, &mut open, &mut outcome)?
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    Verdict::Again { reason, retry_after: None }
                }
            };
            if open.len() < before {
                (backoff, failing_since) = (Backoff::default(), None);
            }
            let Verdict::Again { reason, retry_after } = verdict else {
                self.is_waiting.store(false, Ordering::Relaxed);
                continue;
            };
            let wait = backoff.next(retry_after);
            let since = *failing_since.get_or_insert(began);
            if since.elapsed() + wait > self.give_up_after {
                outcome.given_up = Some((open.len() as u64, reason));
                return Ok(outcome);
            }
            tracing::debug!(
                event = "send.request.retried",
                first_row = batch.first_row,
                reason,
                "a request is retried"
            );
            if !self.is_waiting.swap(true, Ordering::Relaxed) {
                eprintln!("waiting, for at most {} s: {reason}", self.give_up_after.as_secs());
            }
            outcome.repetitions += 1;
            tokio::time::sleep(wait).await;
        }
        Ok(outcome)
    }

    /// The next request: as many open rows as its size allows, at least one. Each row has its id, so any part of a batch
    /// can be sent again.
    fn part(&self, batch: &Batch, open: &[usize]) -> Part {
        let most_bytes = self.most_bytes.load(Ordering::Relaxed);
        let mut part = Part { rows: Vec::new(), body: Vec::new() };
        for &index in open {
            let line = &batch.rows[index].line;
            if !part.rows.is_empty() && part.body.len() + line.len() + 1 > most_bytes {
                break;
            }
            part.rows.push(index);
            part.body.extend_from_slice(line);
            part.body.push(b'\n');
        }
        part
    }

    async fn post(&self, part: &Part) -> anyhow::Result<Response> {
        let request = self.api.request(Method::POST, &self.url).header(header::CONTENT_TYPE, "application/x-ndjson");
        self.api.http.send(request.body(Full::new(Bytes::from(part.body.clone())))?).await
    }

    /// Meaning of an answer; removes the rows that have their outcome from `open`.
    fn judge(
        &self,
        batch: &Batch,
        part: &Part,
        response: &Response,
        open: &mut Vec<usize>,
        outcome: &mut BatchResult,
    ) -> anyhow::Result<Verdict> {
        let (url, retry_after) = (&self.url, response.retry_after());
        let before = open.len();
        let reason = match response.read(part.rows.len()) {
            Answer::Report(report) => {
                let read = report.next_index.unwrap_or(part.rows.len());
                part.conclude(batch, &report.errors, read, open, outcome);
                response.status.to_string()
            }
            Answer::Problem(problem) => {
                let (status, errors) = (response.status, &problem.errors);
                part.conclude(batch, errors, 0, open, outcome);
                if open.len() == before && !problem.retryable {
                    bail!("{url} answered {status}, {problem}");
                }
                format!("{status} {problem}")
            }
            Answer::External(external) if external.is_too_large() => return self.shrink(part, &external, outcome),
            Answer::External(external) if external.may_pass() => format!("{url} answered {external}"),
            Answer::External(external) => bail!(
                "{url} answered {external}; look whether --url is right and whether a proxy is in between. Rows whose \
                 outcome is open can be sent again: ids make it safe"
            ),
        };
        let is_concluded = before - open.len() == part.rows.len();
        Ok(if is_concluded { Verdict::Concluded } else { Verdict::Again { reason, retry_after } })
    }

    /// A proxy refused a request for its size: smaller ones from now on.
    fn shrink(&self, part: &Part, external: &External, outcome: &mut BatchResult) -> anyhow::Result<Verdict> {
        let (url, bytes) = (&self.url, part.body.len());
        if part.rows.len() == 1 {
            bail!(
                "{url} answered {external}; a proxy in between refuses a request of {bytes} bytes that holds one row: raise \
                 its limit for bodies (nginx: client_max_body_size)"
            );
        }
        self.most_bytes.fetch_min(bytes / 2, Ordering::Relaxed);
        outcome.refused_bytes = Some(bytes);
        Ok(Verdict::Smaller)
    }
}

impl Part {
    /// Notes what became of the rows: those with an error that is final are rejected, those without one among the first
    /// `accepted_below` lines are accepted. The others stay open.
    fn conclude(
        &self,
        batch: &Batch,
        errors: &[ItemError],
        accepted_below: usize,
        open: &mut Vec<usize>,
        outcome: &mut BatchResult,
    ) {
        let mut concluded = Vec::with_capacity(self.rows.len());
        for (line, &index) in self.rows.iter().enumerate() {
            match errors.iter().find(|error| error.index == line) {
                Some(error) if error.retryable => continue,
                Some(error) => outcome.rejected.push(Rejected {
                    row: batch.rows[index].number,
                    record_id: error.record_id.clone(),
                    code: error.code.clone(),
                    pointer: error.pointer.clone(),
                    detail: error.detail.clone(),
                }),
                None if line < accepted_below => outcome.accepted += 1,
                None => continue,
            }
            concluded.push(index);
        }
        // Ascending, as the rows are.
        open.retain(|index| concluded.binary_search(index).is_err());
    }
}
