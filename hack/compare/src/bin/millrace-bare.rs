//! The least that a program does which accepts records into Redis Streams: it parses JSON, chooses the stream by the
//! destination, adds an entry a record, and answers. The benchmark compares `serve` with it, under the same load.
//!
//! It has none of Millrace's duties: no checks of fields, no keys, no limits, no counts, no metrics.

use std::{
    env,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    process::ExitCode,
};

use anyhow::Context as _;
use poem::{
    EndpointExt as _, IntoResponse as _, Response, Route, Server, handler, http::StatusCode, listener::TcpListener,
    post, web::Data,
};
use redis::aio::MultiplexedConnection;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::signal::unix::{SignalKind, signal};

const SHARDS: u64 = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    record_id: String,
    destination_id: String,
}

#[derive(Clone)]
struct App {
    redis: MultiplexedConnection,
    /// The prefix of the streams.
    prefix: String,
}

impl App {
    fn stream(&self, record: &Record) -> String {
        let mut hasher = DefaultHasher::new();
        record.destination_id.hash(&mut hasher);
        format!("{{{}.{}}}:records", self.prefix, hasher.finish() % SHARDS)
    }
}

#[handler]
async fn ready() -> StatusCode {
    StatusCode::OK
}

#[handler]
async fn single(app: Data<&App>, body: Vec<u8>) -> Response {
    let Ok(record) = serde_json::from_slice::<Record>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let mut redis = app.redis.clone();
    let mut add = redis::cmd("XADD");
    add.arg(app.stream(&record)).arg("*").arg("record").arg(&body);
    match add.query_async::<String>(&mut redis).await {
        Ok(_) => accepted(serde_json::json!({"recordId": record.record_id, "status": "queued"})),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

#[handler]
async fn batch(app: Data<&App>, body: Vec<u8>) -> Response {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut add = redis::pipe();
    let mut records = 0;
    for line in lines {
        let Ok(raw) = serde_json::from_slice::<&RawValue>(line) else { return StatusCode::BAD_REQUEST.into_response() };
        let Ok(record) = serde_json::from_str::<Record>(raw.get()) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        add.cmd("XADD").arg(app.stream(&record)).arg("*").arg("record").arg(raw.get()).ignore();
        records += 1;
    }
    match add.query_async::<()>(&mut app.redis.clone()).await {
        Ok(()) => accepted(serde_json::json!({"accepted": records, "rejected": 0, "errors": []})),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn accepted(body: serde_json::Value) -> Response {
    Response::builder().status(StatusCode::ACCEPTED).content_type("application/json").body(body.to_string())
}

#[tokio::main]
async fn main() -> ExitCode {
    let ran = match env::args().nth(1).as_deref() {
        // As of a build of Millrace; there is nothing to do.
        Some("migrate") => Ok(()),
        Some("serve") => serve().await,
        _ => Err(anyhow::anyhow!("millrace-bare migrate | serve, for the benchmark")),
    };
    ran.map_or_else(
        |error| {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

async fn serve() -> anyhow::Result<()> {
    let variable = |name: &str| env::var(name).with_context(|| name.to_owned());
    let client = redis::Client::open(variable("MILLRACE_REDIS_URL")?)?;
    let app = App {
        redis: client.get_multiplexed_async_connection().await?,
        prefix: variable("MILLRACE_PIPELINE")?.replace(['{', '}'], ""),
    };
    let routes = Route::new()
        .at("/ready", poem::get(ready))
        .at("/records", post(single))
        .at("/records/batch", post(batch))
        .data(app);
    let mut terminated = signal(SignalKind::terminate())?;
    let stopped = async move {
        terminated.recv().await;
    };
    let listener = TcpListener::bind(variable("MILLRACE_LISTEN")?);
    Ok(Server::new(listener).run_with_graceful_shutdown(routes, stopped, None).await?)
}
