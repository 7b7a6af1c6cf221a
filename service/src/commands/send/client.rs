//! Delivering one request's rows: again and again until each is accepted, refused for good, or time is up.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{StatusCode, header};
use serde::Deserialize;
use tokio::time::Instant;

use super::{Args, Batch};

/// First pause before a repetition; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Sends batches to one pipeline.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    authorization: Option<header::HeaderValue>,
    idempotency_key: Option<String>,
    give_up_after: Duration,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Outcome {
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

/// An answer: of a batch that was taken in part or whole, or a problem.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    errors: Vec<ItemError>,
    next_index: Option<usize>,
    code: String,
    detail: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemError {
    index: usize,
    record_id: Option<String>,
    code: String,
    #[serde(default)]
    retryable: bool,
    pointer: Option<String>,
    #[serde(default)]
    detail: String,
}

impl Client {
    /// A client for the pipeline that the flags name.
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        let base = reqwest::Url::parse(&args.url).with_context(|| format!("--url {} is no URL", args.url))?;
        if base.scheme() != "http" {
            bail!("--url {}: only http is spoken yet", args.url);
        }
        let authorization = match &args.key {
            Some(key) => {
                let mut value = header::HeaderValue::try_from(format!("Bearer {key}"))
                    .context("the API key holds characters that no header takes")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self {
            http,
            url: format!("{}/records/batch", args.url.trim_end_matches('/')),
            authorization,
            idempotency_key: args.idempotency_key.clone(),
            give_up_after: Duration::from_secs(args.give_up_after),
        })
    }

    /// Delivers a batch.
    ///
    /// # Errors
    /// What makes going on pointless: no access, or an answer that is none of this service.
    pub(super) async fn deliver(&self, batch: Batch) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome { rows: batch.rows.len() as u64, ..Outcome::default() };
        // Indexes of rows whose outcome is open.
        let mut open: Vec<usize> = (0..batch.rows.len()).collect();
        let (mut pause, mut failing_since) = (FIRST_PAUSE, None);
        loop {
            // Derived ids hang on the index in the request: under a key it is repeated whole.
            let sent: Vec<usize> =
                if self.idempotency_key.is_some() { (0..batch.rows.len()).collect() } else { open.clone() };
            let began = Instant::now();
            outcome.requests += 1;
            let (reason, retry_after) = match self.post(&batch, &sent).await {
                Ok((status, retry_after, answer)) => {
                    outcome.times.push(began.elapsed());
                    let before = open.len();
                    settle(&batch, &sent, &mut open, status, answer.as_ref(), &mut outcome)?;
                    if open.len() < before {
                        (pause, failing_since) = (FIRST_PAUSE, None);
                    }
                    let said = answer.filter(|answer| !answer.code.is_empty());
                    let said = said.map_or_else(String::new, |answer| format!(" {}: {}", answer.code, answer.detail));
                    (format!("{status}{said}"), retry_after)
                }
                Err(error) => (format!("{:#}", anyhow::Error::from(error.without_url())), None),
            };
            if open.is_empty() {
                return Ok(outcome);
            }
            let wait = retry_after.unwrap_or_default().max(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0));
            let since = *failing_since.get_or_insert(began);
            if since.elapsed() + wait > self.give_up_after {
                outcome.given_up = Some((open.len() as u64, reason));
                return Ok(outcome);
            }
            tracing::debug!(first_row = batch.first_row, reason, "send.request.repeated");
            outcome.repetitions += 1;
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn post(
        &self,
        batch: &Batch,
        sent: &[usize],
    ) -> Result<(StatusCode, Option<Duration>, Option<Answer>), reqwest::Error> {
        let mut body = Vec::with_capacity(sent.iter().map(|index| batch.rows[*index].line.len() + 1).sum());
        for index in sent {
            body.extend_from_slice(&batch.rows[*index].line);
            body.push(b'\n');
        }
        let mut request = self.http.post(&self.url).header(header::CONTENT_TYPE, "application/x-ndjson").body(body);
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        if let Some(key) = &self.idempotency_key {
            request = request.header("Idempotency-Key", format!("{key}-{}", batch.first_row));
        }
        let response = request.send().await?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = response.bytes().await?;
        Ok((status, retry_after, serde_json::from_slice(&body).ok()))
    }
}

/// Takes out of `open` what an answer settles.
fn settle(
    batch: &Batch,
    sent: &[usize],
    open: &mut Vec<usize>,
    status: StatusCode,
    answer: Option<&Answer>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let is_retryable =
        matches!(status.as_u16(), 408 | 429 | 502 | 503 | 504) || (status.is_success() && answer.is_none());
    if matches!(status.as_u16(), 401 | 403 | 404 | 405 | 500) {
        let detail = answer.map_or("", |answer| &answer.detail);
        bail!("the service answered {status}{}{detail}", if detail.is_empty() { "" } else { ": " });
    }
    let errors = answer.map_or(&[][..], |answer| &answer.errors);
    let unread_from = answer.and_then(|answer| answer.next_index).unwrap_or(sent.len());
    for (position, index) in sent.iter().enumerate() {
        let Some(place) = open.iter().position(|candidate| candidate == index) else { continue };
        let row = batch.rows[*index].number;
        let error = errors.iter().find(|error| error.index == position);
        match (error, answer) {
            (Some(error), _) if error.retryable => continue,
            (Some(error), _) => outcome.rejected.push(Rejected {
                row,
                record_id: error.record_id.clone(),
                code: error.code.clone(),
                pointer: error.pointer.clone(),
                detail: error.detail.clone(),
            }),
            (None, _) if is_retryable || position >= unread_from => continue,
            (None, _) if status.is_success() => outcome.accepted += 1,
            (None, answer) => outcome.rejected.push(Rejected {
                row,
                record_id: None,
                code: answer.map_or_else(|| status.to_string(), |answer| answer.code.clone()),
                pointer: None,
                detail: answer.map_or_else(String::new, |answer| answer.detail.clone()),
            }),
        }
        open.remove(place);
    }
    Ok(())
}
