//! The header `Millrace-Read-From`: a request asks for the standby by it, and an answer names by it the server that it was
//! read from.

use poem::{
    Body, Endpoint, Request, RequestParts, Response, Result,
    http::{self, HeaderValue, Method, StatusCode},
};
use poem_openapi::registry::{MetaHeader, MetaOperationParam, MetaParamIn, MetaPath, MetaSchema, MetaSchemaRef};
use serde_json::json;

use super::super::{App, problem::Failure};
use crate::{store::Store, telemetry::metrics::STANDBY_QUERIES};

const HEADER: &str = "Millrace-Read-From";
const PRIMARY: &str = "primary";
const STANDBY: &str = "standby";

/// The paths whose GET may read from the standby: lists and sums, whose answers come from one state of Postgres alone.
/// `/records/{recordId}` and `/stats` compare Postgres with Redis, which is not behind.
const PATHS: [&str; 8] = [
    "/audit",
    "/audit/summary",
    "/conflicts",
    "/dead-letters",
    "/deliveries",
    "/records",
    "/records/aggregations",
    "/records/rollups",
];

/// Lets requests that ask for it read from the standby.
pub(crate) struct ReadFrom<E>(pub(crate) E);

impl<E: Endpoint<Output = Response>> Endpoint for ReadFrom<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        if request.method() != Method::GET || !PATHS.contains(&request.uri().path()) {
            return self.0.call(request).await;
        }
        let standby = match asks_for_standby(&request)? {
            true => standby_of(&request),
            false => None,
        };
        if let Some(store) = standby {
            let answer = self.0.call(on(&request, store)).await;
            let status = answer.as_ref().map_or_else(poem::Error::status, Response::status);
            if !status.is_server_error() {
                count("answered");
                return answer.map(|response| named(response, STANDBY));
            }
            count("failed");
            fell_back(&request, status);
        }
        self.0.call(request).await.map(|response| named(response, PRIMARY))
    }
}

/// Whether the request asks for the standby.
fn asks_for_standby(request: &Request) -> Result<bool, Failure> {
    let mut given = request.headers().get_all(HEADER).iter();
    match (given.next().map(HeaderValue::as_bytes), given.next()) {
        (None, _) => Ok(false),
        (Some(value), None) if value == PRIMARY.as_bytes() => Ok(false),
        (Some(value), None) if value == STANDBY.as_bytes() => Ok(true),
        _ => {
            let detail =
                format!("the header {HEADER} must be given once, as {PRIMARY} or {STANDBY}; without it: {PRIMARY}");
            Err(Failure::new(400, "invalid_parameter", detail))
        }
    }
}

/// The standby for a request that asks for it, while it is recent enough.
fn standby_of(request: &Request) -> Option<Store> {
    let app = request.data::<App>()?;
    let store = app.standby.fresh(&app.store);
    if store.is_none() {
        count("stale");
    }
    store
}

/// The same request without its body, which no GET has, on another store.
fn on(request: &Request, store: Store) -> Request {
    let mut parts = http::Request::new(()).into_parts().0;
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    parts.extensions = request.extensions().clone();
    if let Some(app) = request.data::<App>() {
        parts.extensions.insert(App { store, ..app.clone() });
    }
    let (local, remote) = (request.local_addr().clone(), request.remote_addr().clone());
    Request::from_parts(RequestParts::from((parts, local, remote, request.scheme().clone())), Body::empty())
}

fn named(mut response: Response, server: &'static str) -> Response {
    response.headers_mut().insert(HEADER, HeaderValue::from_static(server));
    response
}

fn count(outcome: &'static str) {
    metrics::counter!(STANDBY_QUERIES, "outcome" => outcome).increment(1);
}

fn fell_back(request: &Request, status: StatusCode) {
    tracing::info!(
        event = "http.standby.failed",
        route = request.uri().path(),
        status = status.as_u16(),
        "a query failed on the standby and reads from the primary"
    );
}

/// Describes the header of the paths that take it.
pub(crate) fn document(paths: &mut [MetaPath]) {
    let servers = || {
        let servers = vec![json!(PRIMARY), json!(STANDBY)];
        MetaSchemaRef::Inline(Box::new(MetaSchema { enum_items: servers, ..MetaSchema::new("string") }))
    };
    let paths = paths.iter_mut().filter(|path| PATHS.contains(&path.path.as_str()));
    for operation in paths.flat_map(|path| &mut path.operations).filter(|operation| operation.method == Method::GET) {
        operation.params.push(MetaOperationParam {
            name: HEADER.to_owned(),
            schema: servers(),
            in_type: MetaParamIn::Header,
            description: Some(
                "`standby`: the answer may come from a standby, and lack what was committed in the last seconds \
                 (`spec.postgres.maxStaleness`); the primary answers where there is none, or it is further behind. Without \
                 the header, or with `primary`, the answer has all that was answered before."
                    .to_owned(),
            ),
            required: false,
            deprecated: false,
            explode: true,
            style: None,
        });
        let answers = operation.responses.responses.iter_mut().filter(|response| response.status == Some(200));
        answers.for_each(|response| {
            response.headers.push(MetaHeader {
                name: HEADER.to_owned(),
                description: Some("The server that the answer was read from.".to_owned()),
                required: true,
                deprecated: false,
                schema: servers(),
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_has_the_header_on_each_of_these_paths_and_on_no_other() {
        let document: Value = serde_json::from_str(&crate::routes::document()).expect("JSON");
        let takes = |get: &Value| {
            let parameters = get["parameters"].as_array().into_iter().flatten();
            parameters.filter(|parameter| parameter["name"] == HEADER).count() == 1
        };
        let paths = document["paths"].as_object().expect("paths").iter();
        let of_document: Vec<&String> = paths.filter(|(_, path)| takes(&path["get"])).map(|(path, _)| path).collect();
        assert_eq!(of_document, PATHS);
        for path in PATHS {
            assert!(!document["paths"][path]["get"]["responses"]["200"]["headers"][HEADER].is_null(), "{path}");
        }
    }
}
