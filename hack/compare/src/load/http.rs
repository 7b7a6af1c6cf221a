//! A connection of the load to `serve`: HTTP/1.1, one request at a time.
//!
//! Must never open more connections than its caller asks for: their number is part of a mode.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::build::KEY;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A kind of request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// One record.
    Single,
    /// One record, whose answer is its outcome (`Prefer: wait`).
    Awaited,
    /// Records as NDJSON.
    Batch,
}

/// The headers of each request of the load.
fn with_key(request: Builder) -> Builder {
    request.header(HOST, "127.0.0.1").header(AUTHORIZATION, format!("Bearer {KEY}"))
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    /// Connects to a port of loopback.
    pub(crate) async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Whether `serve` is ready for requests.
    pub(crate) async fn is_ready(port: u16) -> bool {
        let ready = async {
            let request = Request::get("/ready").header(HOST, "127.0.0.1").body(Full::default())?;
            let answer = Self::open(port).await?.0.send_request(request).await?;
            anyhow::Ok(answer.status().is_success())
        };
        timeout(TIMEOUT, ready).await.is_ok_and(|ready| ready.unwrap_or(false))
    }

    /// Sends records, and reads the whole answer.
    ///
    /// # Errors
    /// When no answer comes, and for each status that is not 2xx; for an awaited outcome, that is not 200.
    pub(crate) async fn post(&mut self, kind: Kind, body: Bytes) -> anyhow::Result<()> {
        let (path, content_type) = match kind {
            Kind::Single | Kind::Awaited => ("/records", "application/json"),
            Kind::Batch => ("/records/batch", "application/x-ndjson"),
        };
        let mut request = with_key(Request::post(path)).header(CONTENT_TYPE, content_type);
        if matches!(kind, Kind::Awaited) {
            request = request.header("prefer", "wait=30");
        }
        let request = request.body(Full::new(body))?;
        let status = timeout(TIMEOUT, self.exchange(request)).await.context("serve does not answer")??;
        ensure!(!matches!(kind, Kind::Awaited) || status == StatusCode::OK, "no outcome came in time: {status}");
        Ok(())
    }

    /// Sends records as NDJSON, and reads the whole answer. Returns whether all were accepted.
    ///
    /// # Errors
    /// When no answer comes, and for each status that is neither 202 nor 429.
    pub(crate) async fn offer(&mut self, body: Bytes) -> anyhow::Result<bool> {
        let request = with_key(Request::post("/records/batch"))
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(Full::new(body))?;
        self.0.ready().await?;
        let answer = timeout(TIMEOUT, self.0.send_request(request)).await.context("serve does not answer")??;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!([StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS].contains(&status), "serve answers {status}");
        Ok(status == StatusCode::ACCEPTED && body.windows(12).any(|part| part == b"\"rejected\":0"))
    }

    /// Reads an answer until it ends, and keeps nothing of it.
    ///
    /// # Errors
    /// When the answer is not 2xx, or ends early.
    pub(crate) async fn read(&mut self, path: &str) -> anyhow::Result<()> {
        let request = with_key(Request::get(path)).body(Full::default())?;
        self.0.ready().await?;
        let mut answer = self.0.send_request(request).await?;
        ensure!(answer.status().is_success(), "serve answers {} to GET {path}", answer.status());
        while let Some(frame) = answer.frame().await {
            frame?;
        }
        Ok(())
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<StatusCode> {
        self.0.ready().await?;
        let answer: Response<Incoming> = self.0.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(
            status.is_success(),
            "serve answers {status}: {}",
            String::from_utf8_lossy(&body[..body.len().min(500)])
        );
        Ok(status)
    }
}
