//! Requests to a server with the API of S3, by the HTTP client and the TLS of the rest of the process.

use std::{fmt, path::Path, pin::Pin, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector as Tcp},
    rt::TokioExecutor,
};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
};

use crate::tls;

/// From the beginning of a request to the end of its answer; a part has 8 MiB.
const TIMEOUT: Duration = Duration::from_secs(120);

type Service = Client<HttpsConnector<Tcp>, HttpRequestBody>;

/// Gives `object_store` its client.
#[derive(Debug)]
pub(super) struct Connector(Service);

struct Http(Service);

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Connector {
    /// A client that trusts the authorities of a file; `None`: the system's.
    pub(super) fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self(Client::builder(TokioExecutor::new()).build(tls::https_connector(ca_file)?)))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Http(self.0.clone())))
    }
}

/// The future of a call, as the trait of `object_store` has it.
type Call<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Http {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Call<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answering = async {
                let (head, body) = self.0.request(request).await.map_err(|error| failure(&error))?.into_parts();
                let interrupted = |error| HttpError::new(HttpErrorKind::Interrupted, error);
                let body = body.collect().await.map_err(interrupted)?.to_bytes();
                let body = HttpResponseBody::new(Full::new(body).map_err(|never| match never {}));
                Ok(HttpResponse::from_parts(head, body))
            };
            let too_late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 120 s");
            let answered = tokio::time::timeout(TIMEOUT, answering).await;
            answered.unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Timeout, too_late())))
        })
    }
}

/// An error with its innermost cause, which the message of the client leaves out.
fn failure(error: &legacy::Error) -> HttpError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
    HttpError::new(kind, std::io::Error::other(cause.to_string()))
}
