//! A client of the public API: answers with their status, headers and body.

use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Pipeline, Process};

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// A header; empty when it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, self.text))
    }

    /// The JSON body; the status must be this.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// The problem document; status and code must be these.
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert!(self.header("content-type").starts_with("application/problem+json"), "{:?}", self.headers);
        let problem = self.json();
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()), "{problem}");
        let is_retryable = [408, 429, 503].contains(&status) || code == "not_found_or_queued";
        assert_eq!(problem["retryable"], is_retryable, "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        problem
    }
}

/// Sends a request and reads its answer.
pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Answer { status, headers, text: answer.text().await.unwrap() }
}

impl Pipeline {
    /// Starts a pipeline with a serve process and a worker, and waits until both are ready.
    pub(crate) async fn running(spec: Value) -> (Self, Process, Process) {
        let pipeline = Self::new(spec).await;
        let work = pipeline.work();
        let serve = pipeline.serve().await;
        work.ready().await;
        serve.ready().await;
        (pipeline, serve, work)
    }

    /// The URL of the newest serve process.
    pub(crate) fn url(&self) -> String {
        let request = self.request(Method::GET, "/").build().unwrap();
        request.url().as_str().trim_end_matches('/').to_owned()
    }

    /// Opens a connection to the newest serve process.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.url().strip_prefix("http://").unwrap()).await.unwrap()
    }

    /// Writes bytes to a new connection, and returns all that comes until its end.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Sends a GET.
    pub(crate) async fn ask(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    /// A POST with a body of type JSON, sent byte for byte; headers can be added before it is sent.
    pub(crate) fn posting(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(Method::POST, path).header("content-type", "application/json").body(body)
    }

    /// Sends a POST with a body of type JSON, byte for byte.
    pub(crate) async fn post_json(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        answer(self.posting(path, body)).await
    }

    /// Sends one record and waits for its outcome, 30 s at most.
    pub(crate) async fn apply(&self, record: &Value) -> Answer {
        answer(self.posting("/records", record.to_string()).header("prefer", "wait=30")).await
    }

    /// Sends a POST without a body.
    pub(crate) async fn act(&self, path: &str) -> Answer {
        answer(self.request(Method::POST, path)).await
    }

    /// The items of all pages of a list; `path` may have a query.
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
