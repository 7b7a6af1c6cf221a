//! The endpoint of hack/webhook-bench, and the bare client that it compares webhooks with.
//!
//! `receive PORT` answers each POST with 204, and a GET with the number of POSTs, the milliseconds from the first to the last,
//! and the last body. `post URL COUNT BODY` posts a body, 64 at once, and prints the rate.

use std::{
    convert::Infallible,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, task::JoinSet};

/// Requests at once.
const AT_ONCE: u64 = 64;

#[derive(Debug, Default)]
struct Seen {
    count: AtomicU64,
    times: Mutex<Option<(Instant, Instant)>>,
    last: Mutex<Bytes>,
}

impl Seen {
    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        if request.method() == Method::GET {
            let times = *self.times.lock().expect("no holder panics");
            let ms = times.map_or(0, |(first, last)| last.duration_since(first).as_millis());
            let body = String::from_utf8_lossy(&self.last.lock().expect("no holder panics")).into_owned();
            let text = format!("{} {ms} {body}", self.count.load(Ordering::Relaxed));
            *response.body_mut() = Full::from(text);
            return response;
        }
        if let Ok(body) = request.into_body().collect().await {
            let now = Instant::now();
            let mut times = self.times.lock().expect("no holder panics");
            *times = Some((times.map_or(now, |(first, _)| first), now));
            drop(times);
            *self.last.lock().expect("no holder panics") = body.to_bytes();
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    }
}

async fn receive(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let seen = Arc::new(Seen::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let seen = Arc::clone(&seen);
                async move { Ok::<_, Infallible>(seen.take(request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn post(url: &str, count: u64, body: String) -> anyhow::Result<()> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let (url, body): (hyper::Uri, Bytes) = (url.parse()?, body.into());
    let left = Arc::new(AtomicU64::new(count));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (client, url, body, left) = (client.clone(), url.clone(), body.clone(), Arc::clone(&left));
        tasks.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let request = Request::post(url.clone()).header("content-type", "application/json");
                let response = client.request(request.body(Full::new(body.clone()))?).await?;
                anyhow::ensure!(response.status().is_success(), "{}", response.status());
                response.into_body().collect().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    println!("{:.0}", count as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: millrace-hooks receive PORT | post URL COUNT BODY";
    let args: Vec<String> = env::args().skip(1).collect();
    match args.as_slice() {
        [act, port] if act == "receive" => receive(port.parse()?).await,
        [act, url, count, body] if act == "post" => post(url, count.parse()?, body.clone()).await,
        _ => Err(anyhow::anyhow!("{} arguments", args.len())).context(usage),
    }
}
