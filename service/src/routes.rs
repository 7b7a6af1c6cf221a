//! The HTTP API: all its paths, and its document. The only place that has the paths of `accept` and `query` together.

use poem::{
    Endpoint, EndpointExt as _, IntoEndpoint as _, Request, Response, Result, Route, endpoint::make_sync, http::Method,
    middleware::CatchPanic, web::Html,
};
use poem_openapi::{LicenseObject, OpenApi as _, OpenApiService, ServerObject, registry::Registry};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{Acceptor, RecordsApi},
    console::{self, Console},
    http::{App, errors, front::Front, merged::Merged, operations::Operations, probes::ProbesApi, standby::ReadFrom},
    lifecycle::Heartbeats,
    query,
};

/// The OpenAPI document.
const OPENAPI: &str = "/openapi.json";
/// The document as a page.
const DOCS: &str = "/docs";

type Apis = Merged<(RecordsApi, query::Apis, ProbesApi)>;

fn service() -> OpenApiService<Apis, ()> {
    OpenApiService::new(Merged((RecordsApi, query::apis(), ProbesApi)), "Millrace", env!("CARGO_PKG_VERSION"))
        .description(
            "Streams of business records into exact totals, notifications and alerts. One record counts once, whatever is \
             killed.\n\nErrors are `application/problem+json` with a stable `code`. Paths without `/v1` mean v1 for good; \
             within it, fields, codes and enum values are only added. \
             HEAD is taken wherever GET is. A client that sends `Expect: 100-continue` gets it once its body is wanted, or a refusal.",
        )
        .license(LicenseObject::new("Apache-2.0").url("https://www.apache.org/licenses/LICENSE-2.0"))
        .server(ServerObject::new("/"))
        .server(ServerObject::new("/v1"))
}

/// The OpenAPI document as pretty JSON.
#[must_use]
pub fn document() -> String {
    let mut document = service().spec();
    document.push('\n');
    document
}

/// The operations, and beside them the documents and the console. `Route::nest` would build the URI of each request again.
struct Routes<E> {
    documents: Route,
    console: Console,
    operations: E,
}

impl<E: Endpoint<Output = Response>> Endpoint for Routes<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        match request.uri().path() {
            OPENAPI | DOCS => self.documents.call(request).await,
            path if console::has(path) => self.console.call(request).await,
            _ => self.operations.call(request).await,
        }
    }
}

/// All paths of the main port, each also under `/v1`.
/// `stop` ends answers that have no end, such as the console's events.
pub fn routes(
    app: App,
    acceptor: Acceptor,
    heartbeats: Heartbeats,
    stop: CancellationToken,
) -> impl Endpoint<Output = Response> {
    let service = service();
    let (json, html) = (document(), service.swagger_ui_html());
    let mut registry = Registry::new();
    Apis::register(&mut registry);
    let plain = [(OPENAPI, &[Method::GET][..]), (DOCS, &[Method::GET])].into_iter().chain(console::PATHS);
    let operations = Operations::new(Apis::meta(), &registry, plain);
    let documents = Route::new()
        .at(
            OPENAPI,
            poem::get(make_sync(move |_| Response::builder().content_type("application/json").body(json.clone()))),
        )
        .at(DOCS, poem::get(make_sync(move |_| Html(html.clone()))));
    let manifest = app.manifest.clone();
    let routes = Routes { documents, console: Console::new(stop), operations: ReadFrom(service.into_endpoint()) }
        .data(app)
        .data(acceptor)
        .data(heartbeats)
        .with(CatchPanic::new().with_handler(errors::panicked))
        .map_to_response();
    Front::new(routes, operations, manifest)
}
