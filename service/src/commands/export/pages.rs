//! Pages of `GET /records`, one after the other, each asked for until it is answered.

use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, StatusCode, header};
use tokio::time::Instant;

use super::Format;
use crate::commands::{
    api::Api,
    backoff::Backoff,
    send::answer::{Answer, Response},
};

/// Reads the pages of one export.
#[derive(Debug)]
pub(super) struct Pages {
    api: Api,
    path: String,
    format: Format,
    size: u32,
    give_up_after: Duration,
    said_incomplete: bool,
}

/// A page.
#[derive(Debug)]
pub(super) struct Page {
    body: Bytes,
    /// Where the line of the names of columns ends; 0 in NDJSON.
    header: usize,
    /// Number of its records.
    pub(super) records: u64,
    /// The cursor behind its last record.
    pub(super) next_cursor: Option<String>,
    /// Whether no page follows now.
    pub(super) is_last: bool,
}

impl Page {
    /// Its lines; those of the first page of a file have the names of columns before them.
    pub(super) fn lines(&self, is_first: bool) -> &[u8] {
        &self.body[if is_first { 0 } else { self.header }..]
    }
}

impl Pages {
    pub(super) fn new(api: Api, query: &str, format: Format, size: u32, give_up_after: Duration) -> Self {
        Self {
            api,
            path: format!("/records?{query}&limit={size}"),
            format,
            size,
            give_up_after,
            said_incomplete: false,
        }
    }

    /// Whether a cursor follows the last record, too.
    pub(super) fn can_be_continued(&self) -> bool {
        self.path.contains("order=processed")
    }

    /// The page behind a cursor; `None`: the first.
    ///
    /// # Errors
    /// When the API refuses it, or does not answer for too long.
    pub(super) async fn read(&mut self, cursor: Option<&str>) -> anyhow::Result<Page> {
        let path = cursor.map_or_else(|| self.path.clone(), |cursor| format!("{}&cursor={cursor}", self.path));
        let (mut backoff, began) = (Backoff::default(), Instant::now());
        let mut said = false;
        loop {
            let (reason, retry_after) = match self.get(&path).await {
                Ok(response) if response.status == StatusCode::OK => return self.page(response),
                Ok(response) => (refused(&response)?, response.retry_after()),
                Err(error) => (format!("{error:#}"), None),
            };
            let wait = backoff.next(retry_after);
            if began.elapsed() + wait > self.give_up_after {
                bail!("no page within {} s: {reason}", self.give_up_after.as_secs());
            }
            if !std::mem::replace(&mut said, true) {
                eprintln!("waiting, for at most {} s: {reason}", self.give_up_after.as_secs());
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response> {
        let url = self.api.url(path)?;
        let request = self.api.request(Method::GET, &url).header(header::ACCEPT, self.format.media_type());
        self.api.http.send(request.body(Full::new(Bytes::new()))?).await
    }

    fn page(&mut self, response: Response) -> anyhow::Result<Page> {
        let Response { headers, body, .. } = &response;
        if response.media_type() != self.format.media_type() {
            bail!("the answer is no page of GET /records as {}: look whether --url is right", self.format.media_type());
        }
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let Some(since) = value("millrace-complete-since")
            && !std::mem::replace(&mut self.said_incomplete, true)
        {
            eprintln!("records with a time before {since} can be missing: they are no longer kept");
        }
        let next_cursor = value("millrace-next-cursor");
        let header = match self.format {
            Format::Ndjson => 0,
            Format::Csv => body.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1),
        };
        let records = rows(&body[header..], self.format);
        // With `order=processed` each page has a cursor, the last one, too.
        let is_last = next_cursor.is_none() || records < u64::from(self.size);
        Ok(Page { header, records, next_cursor, is_last, body: response.body.into() })
    }
}

impl Format {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }
}

/// Why to ask again.
///
/// # Errors
/// When asking again does not help.
fn refused(response: &Response) -> anyhow::Result<String> {
    let status = response.status;
    match response.failure() {
        Answer::Problem(problem) if problem.retryable => Ok(format!("{status} {problem}")),
        Answer::Problem(problem) => bail!("GET /records answered {status}, {problem}"),
        Answer::External(external) if external.may_pass() => Ok(external.to_string()),
        Answer::External(external) => {
            bail!("{external}; look whether --url is right and whether a proxy is in between")
        }
        Answer::Report(_) => bail!("GET /records answered {status}"),
    }
}

/// Number of rows. In CSV a line feed in quotes ends none.
fn rows(lines: &[u8], format: Format) -> u64 {
    let mut is_quoted = false;
    let ends = lines.iter().filter(|byte| {
        is_quoted ^= format == Format::Csv && **byte == b'"';
        **byte == b'\n' && !is_quoted
    });
    ends.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_formats_are_counted() {
        assert_eq!(rows(b"{\"a\":\"\\\"\"}\n{}\n", Format::Ndjson), 2);
        assert_eq!(rows(b"a,\"b\nc \"\"d\"\"\ne\",\r\nf,g\r\n", Format::Csv), 2);
        assert_eq!(rows(b"", Format::Csv), 0);
    }
}
