//! The public API as a client sees it: answers with their status, headers and body.

use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Pipeline, Process};

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// A header, empty where it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, self.text))
    }

    /// The body of an answer of this status.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// The problem that this answer must be, by its status and code.
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert!(self.header("content-type").starts_with("application/problem+json"), "{:?}", self.headers);
        let problem = self.json();
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()), "{problem}");
        assert_eq!(problem["retryable"], [408, 429, 503].contains(&status), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        problem
    }
}

/// Sends a request, which must be answered.
pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Answer { status, headers, text: answer.text().await.unwrap() }
}

impl Pipeline {
    /// A pipeline with a serve process and a worker that are ready.
    pub(crate) async fn running(spec: Value) -> (Self, Process, Process) {
        let pipeline = Self::new(spec).await;
        let work = pipeline.work();
        let serve = pipeline.serve().await;
        work.ready().await;
        serve.ready().await;
        (pipeline, serve, work)
    }

    /// Where the newest serve process listens.
    pub(crate) fn url(&self) -> String {
        let request = self.request(Method::GET, "/").build().unwrap();
        request.url().as_str().trim_end_matches('/').to_owned()
    }

    /// A connection of its own to the newest serve process.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.url().strip_prefix("http://").unwrap()).await.unwrap()
    }

    /// What bytes are answered that are written to the service as they are, up to the end of the connection.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// The answer to a GET.
    pub(crate) async fn ask(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    /// A POST of JSON in its very bytes; more can be said before it is sent.
    pub(crate) fn posting(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(Method::POST, path).header("content-type", "application/json").body(body)
    }

    /// The answer to a POST of JSON in its very bytes.
    pub(crate) async fn put_in(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        answer(self.posting(path, body)).await
    }

    /// The answer to one record, after its outcome.
    pub(crate) async fn apply(&self, record: &Value) -> Answer {
        answer(self.posting("/records", record.to_string()).header("prefer", "wait=30")).await
    }

    /// The answer to a POST without a body.
    pub(crate) async fn act(&self, path: &str) -> Answer {
        answer(self.request(Method::POST, path)).await
    }

    /// The items of a list, all of its pages; `path` has its filters, if any, behind a `?`.
    pub(crate) async fn list(&self, path: &str) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{join}limit=1000{cursor}")).await;
            items.extend(page["items"].as_array().unwrap().clone());
            let Some(next) = page["nextCursor"].as_str() else { return items };
            cursor = format!("&cursor={next}");
        }
    }
}
