//! Reads the keys of an issuer.
//!
//! Must never follow a redirect, and never read more than a bound.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Uri, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use millrace_crds::Oidc;
use serde::{Deserialize, de::DeserializeOwned};

use super::keys::JwkSet;
use crate::tls;

/// Longest time of one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const MOST_BYTES: usize = 256 << 10;

/// What is read of an issuer's configuration.
#[derive(Debug, Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// Reads the JWK set: from the URL in the manifest, else from the one that the issuer names. `ca_file` has the authorities to
/// trust; `None`: the system's.
///
/// # Errors
/// The URL and the cause.
pub(super) async fn keys(rules: &Oidc, ca_file: Option<&Path>) -> anyhow::Result<JwkSet> {
    let http = Http::new(ca_file.map(ToOwned::to_owned)).await?;
    let url = match &rules.jwks_url {
        Some(url) => url.clone(),
        None => http.discover(&rules.issuer).await?,
    };
    http.get(&url).await
}

struct Http(Client<hyper_rustls::HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Http {
    async fn new(ca_file: Option<PathBuf>) -> anyhow::Result<Self> {
        // Reading the system's authorities takes milliseconds, which requests would wait for.
        let config = tokio::task::spawn_blocking(move || tls::client_config(ca_file.as_deref())).await??;
        let connector = tls::https_over(HttpConnector::new(), config);
        Ok(Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector)))
    }

    /// The URL of the keys, by OpenID Connect Discovery.
    async fn discover(&self, issuer: &str) -> anyhow::Result<String> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let Configuration { issuer: named, jwks_uri } = self.get(&url).await?;
        ensure!(named == issuer, "{url} is of another issuer: write spec.oidc.issuer as it is there");
        ensure!(Oidc::is_url(&jwks_uri), "{url} names keys at a URL without https");
        ensure!(
            jwks_uri.starts_with("https:") || issuer.starts_with("http:"),
            "{url} names keys at a URL without https"
        );
        Ok(jwks_uri)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        tokio::time::timeout(TIMEOUT, self.answer(url))
            .await
            .with_context(|| format!("{url}: no answer within {} s", TIMEOUT.as_secs()))?
            .with_context(|| url.to_owned())
    }

    async fn answer<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        let request = hyper::Request::get(url.parse::<Uri>().context("is no URL")?)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("millrace/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())?;
        let answer = self.0.request(request).await.context("no connection")?;
        if answer.status() != hyper::StatusCode::OK {
            bail!("the answer is {}", answer.status());
        }
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?.to_bytes();
        // The error of the parser may show a part of the text.
        serde_json::from_slice(&body).map_err(|_| anyhow::anyhow!("the answer is not the JSON that it should be"))
    }
}
