//! Middleware of every path: `/v1`, HEAD, unknown parameters, bounds of bodies, errors as problems, other origins, metrics.

use std::{pin::pin, time::Instant};

use poem::{
    Endpoint, Request, Response, Result,
    http::{
        HeaderValue, Method, StatusCode, Uri,
        header::{ALLOW, CACHE_CONTROL, COOKIE},
        uri::PathAndQuery,
    },
};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    cross_origin::CrossOrigin,
    durations::Durations,
    errors, guard, head,
    operations::{Operations, Path},
    rate_limits,
};
use crate::{config::ActiveManifest, telemetry::trace};

/// Most bytes of a body, but where records are taken.
const SMALL_BODY: usize = 64 * 1024;

/// The endpoint before all others.
pub(crate) struct Front<E> {
    inner: E,
    operations: Operations,
    cross_origin: CrossOrigin,
    /// Durations of requests for a path that is not documented: there are endlessly many, so their path is no label.
    other: Durations,
}

impl<E> Front<E> {
    /// `manifest` names the origins that are allowed.
    pub(crate) fn new(inner: E, operations: Operations, manifest: watch::Receiver<ActiveManifest>) -> Self {
        Self { inner, operations, cross_origin: CrossOrigin::new(manifest), other: Durations::new("other") }
    }
}

impl<E: Endpoint<Output = Response>> Front<E> {
    async fn answer(&self, mut request: Request, path: Option<&Path>) -> Response {
        let method = request.method();
        match path.map(|path| path.check_query(method, request.uri().query().unwrap_or_default())) {
            Some(Err(failure)) => return errors::render(failure.into()),
            Some(Ok(())) if method == Method::OPTIONS => {
                return Response::builder().status(StatusCode::NO_CONTENT).finish();
            }
            _ => {}
        }
        let takes_records = path.is_some_and(|path| matches!(path.template.as_str(), "/records" | "/records/batch"));
        let slot = takes_records.then(rate_limits::Slot::default);
        if let Some(slot) = &slot {
            request.set_data(slot.clone());
        }
        let limit = (!takes_records).then_some(SMALL_BODY);
        let body = guard::guard(request.take_body(), limit, guard::TIMEOUT);
        request.set_body(body);
        let mut response = self.inner.call(head::as_get(request)).await.unwrap_or_else(errors::render);
        if let Some(slot) = &slot {
            rate_limits::mark(slot, &mut response);
        }
        response
    }
}

impl<E: Endpoint<Output = Response>> Endpoint for Front<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> Result<Response> {
        let began = Instant::now();
        strip_version(request.uri_mut());
        let method = request.method().clone();
        let path = self.operations.find(request.uri().path());
        let span = tracing::info_span!("http.request.handle", route = path.map(|path| path.template.as_str()));
        let parent = request.headers().get("traceparent").and_then(|header| header.to_str().ok()).map(str::to_owned);
        trace::continue_from(&span, parent.as_deref());
        let judgement = self.cross_origin.judge(&method, request.headers());
        let has_cookie = request.headers().contains_key(COOKIE);
        // Pinned here, because each wrapper would copy all of it.
        let answer = pin!(self.answer(request, path));
        let mut response = trace::of_request(&span, parent.as_deref(), answer.instrument(span.clone())).await;
        if has_cookie && !response.headers().contains_key(CACHE_CONTROL) {
            // What is for one session: a cache must not keep it, which it would not do of an answer to an API key.
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        let names_methods = method == Method::OPTIONS || response.status() == StatusCode::METHOD_NOT_ALLOWED;
        let methods = path.filter(|_| names_methods).and_then(|path| HeaderValue::from_str(&path.allow()).ok());
        if let Some(methods) = &methods {
            response.headers_mut().insert(ALLOW, methods.clone());
        }
        judgement.mark(&mut response, methods.as_ref());
        let route = path.map_or("other", |path| path.template.as_str());
        let (status, took) = (response.status().as_u16(), began.elapsed());
        tracing::debug!(
            event = "http.request.answered",
            method = method.as_str(),
            route,
            status,
            took_us = took.as_micros(),
            "answered a request"
        );
        match path {
            Some(path) => path.record(&method, response.status(), took),
            None => self.other.record(&method, response.status(), took),
        }
        Ok(response)
    }
}

/// Takes `/v1` from the path: paths without it mean v1 for good.
fn strip_version(uri: &mut Uri) {
    let Some(rest) = uri.path().strip_prefix("/v1").filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return;
    };
    let path = if rest.is_empty() { "/" } else { rest };
    let path = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    if let Ok(stripped) = Uri::from_parts(parts) {
        *uri = stripped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_taken_from_the_path_only_where_it_is_one() {
        for (given, expected) in [
            ("/v1/records?a=%2F", "/records?a=%2F"),
            ("/v1", "/"),
            ("/v1?x", "/?x"),
            ("/v1/", "/"),
            ("/v12/records", "/v12/records"),
            ("/records/v1", "/records/v1"),
            ("/v1/v1/records", "/v1/records"),
        ] {
            let mut uri: Uri = given.parse().expect("a URI");
            strip_version(&mut uri);
            assert_eq!(uri.to_string(), expected);
        }
    }
}
