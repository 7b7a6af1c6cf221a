//! Requests of commands, by HTTP or HTTPS.
//!
//! Must never follow a redirect: a redirected POST becomes a GET, whose answer says nothing about the rows.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::answer::Response;
use crate::tls;

/// From the beginning of a request to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A client that keeps its connections.
#[derive(Debug)]
pub(in crate::commands) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// A client that trusts the authorities of a file; `None`: the system's.
    ///
    /// # Errors
    /// When the file cannot be read or used.
    pub(in crate::commands) fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self(Client::builder(TokioExecutor::new()).build(tls::https_connector(ca_file)?)))
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When there is none within 60 seconds.
    pub(in crate::commands) async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response> {
        let answering = async {
            let response = self.0.request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes().to_vec();
            anyhow::Ok(Response { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(TIMEOUT, answering).await.context("no answer within 60 s")?
    }
}
