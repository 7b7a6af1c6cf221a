//! The endpoint of the webhook: takes deliveries as a receiver does, and misbehaves where a fault asks for it.
//!
//! It must never drop a delivery that it answered 2xx: a repetition of it counts.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use crate::{check::digest, world::free_port};

/// The key that signs.
pub(crate) const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// How long the sink waits for an answer.
pub(crate) const TIMEOUT_SECONDS: u64 = 4;
/// How long a slow answer takes: longer than the sink waits.
const SLOW: Duration = Duration::from_secs(TIMEOUT_SECONDS + 1);

/// How the endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Behaviour {
    /// 200, at once.
    #[default]
    Answers,
    /// 200, when nobody waits for it any more.
    Slow,
    /// It takes the delivery and cuts the connection.
    Cuts,
    /// It takes the delivery and answers 500, or a redirect.
    Lies,
}

/// A delivery that was answered 2xx.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) shard: usize,
    pub(crate) seq: i64,
    pub(crate) previous: Option<i64>,
    pub(crate) destination: String,
    /// Of the data, as the entry of a Redis stream has it.
    pub(crate) digest: u32,
    /// Whether the signature is right and the id is that of the body.
    pub(crate) is_signed: bool,
}

#[derive(Debug, Default)]
struct State {
    behaviour: Mutex<Behaviour>,
    taken: Mutex<Vec<Delivery>>,
    /// Requests that were not answered 2xx.
    spoilt: AtomicU64,
}

/// A running endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) port: u16,
    state: Arc<State>,
    /// The listener with its connections; empty while it is down.
    listening: Mutex<JoinSet<()>>,
}

impl Endpoint {
    /// Listens.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let this = Self { port: free_port(), state: Arc::default(), listening: Mutex::default() };
        this.up().await?;
        Ok(this)
    }

    /// Closes the listener and all connections.
    pub(crate) fn down(&self) {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Listens again.
    pub(crate) async fn up(&self) -> anyhow::Result<()> {
        let mut listener = TcpListener::bind(("127.0.0.1", self.port)).await;
        for _ in 0..50 {
            if listener.is_ok() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
            listener = TcpListener::bind(("127.0.0.1", self.port)).await;
        }
        let listener = listener.context("the endpoint of the webhook")?;
        let state = Arc::clone(&self.state);
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        listening.spawn_local(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                let service = service_fn(move |request| take(request, Arc::clone(&state)));
                connections.spawn_local(async move {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(())
    }

    /// Answers in this way from now on. Returns how many requests were not answered 2xx so far.
    pub(crate) fn behave(&self, behaviour: Behaviour) -> u64 {
        *self.state.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
        self.state.spoilt.load(Ordering::Relaxed)
    }

    /// The deliveries that were answered 2xx since the last call, in order.
    pub(crate) fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut *self.state.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends a connection without an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

async fn take(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<Bytes>>, Cut> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let behaviour = *state.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
    if behaviour == Behaviour::Answers {
        let delivery = read(&head.headers, &body);
        state.taken.lock().unwrap_or_else(PoisonError::into_inner).push(delivery);
        return Ok(Response::new(Full::default()));
    }
    let spoilt = state.spoilt.fetch_add(1, Ordering::Relaxed);
    let status = match behaviour {
        Behaviour::Cuts => return Err(Cut),
        Behaviour::Slow => {
            sleep(SLOW).await;
            200
        }
        _ if spoilt.is_multiple_of(2) => 500,
        _ => 302,
    };
    let answer = Response::builder().status(status).header("location", "http://127.0.0.1:1/");
    answer.body(Full::default()).map_err(|_| Cut)
}

fn read(headers: &hyper::HeaderMap, bytes: &[u8]) -> Delivery {
    let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let data = text.split_once(r#","data":"#).and_then(|(_, data)| data.strip_suffix('}')).unwrap_or_default();
    let pipeline = body["source"].as_str().and_then(|source| source.split_once('/')).map_or("", |(_, id)| id);
    let id = format!("{pipeline}-{}", body["id"].as_str().unwrap_or_default());
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Not whether it is of now: faults set the clocks of workers.
    let signed = header("webhook-timestamp").parse().ok().zip(Webhook::new(KEY).ok());
    let signature = signed.and_then(|(time, webhook)| webhook.sign(&id, time, bytes).ok());
    let is_signed = header("webhook-id") == id && signature.is_some_and(|one| header("webhook-signature") == one);
    Delivery {
        shard: body["shard"].as_u64().and_then(|shard| usize::try_from(shard).ok()).unwrap_or(usize::MAX),
        seq: body["seq"].as_i64().unwrap_or_default(),
        previous: body["previousSeq"].as_i64(),
        destination: body["data"]["record"]["destinationId"].as_str().unwrap_or_default().to_owned(),
        digest: digest(data),
        is_signed,
    }
}
