//! The console: pages for a person, served at `/console`, that use the API as any client does.
//!
//! Must never answer with a record itself: the pages ask the API, which decides by scope and limit. Must never let a browser
//! keep an API key: it gets a session's cookie, which scripts cannot read.

mod events;
mod files;
mod session;

use poem::{Endpoint, Request, Response, Result, http::Method};
use tokio_util::sync::CancellationToken;

use self::{events::Events, files::Files};
use crate::http::{App, problem::Failure};

/// The path of the pages.
const ROOT: &str = "/console";
/// The session of the caller.
const SESSION: &str = "/console/session";
/// Counts and lags, once a second.
const EVENTS: &str = "/console/events";

/// The paths of the console with their methods, for metrics and the header `Allow`.
pub(crate) const PATHS: [(&str, &[Method]); 5] = [
    (ROOT, &[Method::GET]),
    ("/console/", &[Method::GET]),
    (SESSION, &[Method::GET, Method::POST, Method::DELETE]),
    (EVENTS, &[Method::GET]),
    ("/console/{file}", &[Method::GET]),
];

/// Whether a path is one of the console.
pub(crate) fn has(path: &str) -> bool {
    path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The endpoint of all paths of the console.
pub(crate) struct Console {
    files: Files,
    events: Events,
}

impl Console {
    /// `stop` ends the streams of events.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { files: Files::new(), events: Events::new(stop) }
    }
}

impl Endpoint for Console {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let app: App = request
            .data::<App>()
            .cloned()
            .ok_or_else(|| Failure::new(500, "internal", "the service failed; the log says why"))?;
        let (path, method) = (request.uri().path(), request.method());
        if path == SESSION {
            return Ok(session::answer(request, &app).await?);
        }
        if *method != Method::GET {
            return Err(poem::error::MethodNotAllowedError.into());
        }
        match path {
            EVENTS => Ok(self.events.answer(request, app).await?),
            // The pages name their files relative to the folder: a proxy may serve it below another path.
            ROOT => Ok(Response::builder()
                .status(poem::http::StatusCode::PERMANENT_REDIRECT)
                .header("location", "console/")
                .finish()),
            path => self.files.answer(path.strip_prefix("/console/").unwrap_or_default(), request.headers()),
        }
    }
}
