//! A client of the HTTP API for commands: where it is, whom to trust, and the API key.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use hyper::{Request, Uri, header, http::request::Builder};

use super::send::http::Http;

/// Where the API is.
#[derive(Debug, clap::Args)]
pub(super) struct ApiArgs {
    /// Where the pipeline listens.
    #[arg(long, env = "MILLRACE_URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    /// A PEM file of the authorities that sign the certificate of an https:// URL, in place of the system's.
    #[arg(long, value_name = "FILE", env = "MILLRACE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// API key, where the pipeline asks for one.
    #[arg(long, env = "MILLRACE_API_KEY", hide_env_values = true)]
    key: Option<String>,
}

/// The API of one pipeline.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) http: Http,
    base: String,
    authorization: Option<header::HeaderValue>,
}

impl ApiArgs {
    /// A client for the pipeline that the flags name.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    pub(super) fn open(&self) -> anyhow::Result<Api> {
        let base = reqwest::Url::parse(&self.url).with_context(|| format!("--url {} is no URL", self.url))?;
        if !["http", "https"].contains(&base.scheme()) {
            bail!("--url {}: must begin with http:// or https://", self.url);
        }
        if base.scheme() == "http" && self.ca_file.is_some() {
            bail!("--url {}: --ca-file is for https:// only", self.url);
        }
        let authorization = match &self.key {
            Some(key) => {
                let mut value = header::HeaderValue::try_from(format!("Bearer {key}"))
                    .context("the API key holds characters that no header takes")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let http = Http::new(self.ca_file.as_deref())?;
        Ok(Api { http, base: self.url.trim_end_matches('/').to_owned(), authorization })
    }
}

impl Api {
    /// The URL of a path, which may have parameters.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn url(&self, path: &str) -> anyhow::Result<Uri> {
        format!("{}{path}", self.base).parse().with_context(|| format!("--url {} is no URL", self.base))
    }

    /// A request with the API key.
    pub(super) fn request(&self, method: hyper::Method, url: &Uri) -> Builder {
        let request = Request::builder().method(method).uri(url.clone());
        match &self.authorization {
            Some(value) => request.header(header::AUTHORIZATION, value.clone()),
            None => request,
        }
    }
}
