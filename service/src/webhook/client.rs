//! Posts deliveries to one endpoint, over connections that it keeps.

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Uri, header, header::HeaderValue};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};

use super::{
    Allowed, Answer, ExtraHeaders, Failure, SigningKeys,
    connector::{Connector, Resolve, System},
};
use crate::tls;

/// Most bytes that are read of an answer, so that its connection can be used again. Nothing in it matters.
const ANSWER_BYTES: usize = 16 << 10;
/// How long the rest of an answer is read.
const DRAIN: Duration = Duration::from_millis(500);
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(30);

/// A client of one endpoint.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<Connector>, Full<Bytes>>,
    url: Uri,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The path and the query of a URL may hold a secret.
        f.debug_struct("Client").field("host", &self.url.host()).finish_non_exhaustive()
    }
}

/// One delivery.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its id, which stays the same when it is repeated.
    pub id: &'a str,
    /// W3C trace context of the record's request.
    pub traceparent: Option<&'a str>,
    /// The body.
    pub body: String,
    /// The keys that sign it.
    pub keys: &'a SigningKeys,
    /// Further headers.
    pub headers: Option<&'a ExtraHeaders>,
}

impl Client {
    /// A client for a URL, through a proxy.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, timeout: Duration, allowed: Allowed, proxy: Option<&str>) -> anyhow::Result<Self> {
        Self::with(url, timeout, allowed, proxy, tls::client_config(None)?, Arc::new(System))
    }

    pub(super) fn with(
        url: &str,
        timeout: Duration,
        allowed: Allowed,
        proxy: Option<&str>,
        config: rustls::ClientConfig,
        resolver: Arc<dyn Resolve>,
    ) -> anyhow::Result<Self> {
        let url: Uri = url.split('#').next().unwrap_or_default().parse().context("webhook.url is no URL")?;
        let proxy = proxy.map(str::parse::<Uri>).transpose().context("webhook.proxy is no URL")?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector { allowed, resolver, proxy });
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(ANSWER_BYTES)
            .build(connector);
        Ok(Self { http, url, timeout })
    }

    /// Posts a delivery, and reads the head of the answer. `now` is the time that is signed.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn post(&self, request: Request<'_>, now: SystemTime) -> Result<Answer, Failure> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = request.keys.sign(request.id, now, request.body.as_bytes());
        let mut post = hyper::Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("millrace/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", request.id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::from(request.body)))
            .map_err(|error| Failure::Http(error.to_string()))?;
        if let Some(traceparent) = request.traceparent.and_then(|text| HeaderValue::from_str(text).ok()) {
            post.headers_mut().insert("traceparent", traceparent);
        }
        if let Some(headers) = request.headers {
            headers.add_to(post.headers_mut());
        }
        let answering = async {
            let response = self.http.request(post).await.map_err(|error| failure(&error))?;
            Ok((Answer::new(response.status(), response.headers(), now), response.into_body()))
        };
        let answered = tokio::time::timeout(self.timeout, answering).await;
        let (answer, body) = answered.unwrap_or(Err(Failure::TimedOut(self.timeout.as_secs())))?;
        // The head is the answer, whatever follows.
        let _ = tokio::time::timeout(DRAIN, drain(body)).await;
        Ok(answer)
    }
}

/// Reads a short rest, so that the connection can be used again. A longer one is dropped with its connection.
async fn drain(mut body: hyper::body::Incoming) {
    let mut left = ANSWER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if bytes > left {
            return;
        }
        left -= bytes;
    }
}

fn failure(error: &legacy::Error) -> Failure {
    let mut cause = error.source();
    let mut last = error.to_string();
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.clone();
        }
        last = error.to_string();
        cause = error.source();
    }
    if error.is_connect() { Failure::Connect(last) } else { Failure::Http(last) }
}
