//! An endpoint of webhooks: verifies each delivery with the published library, keeps it, and answers as a test wants.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, RwLock},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// A signing key of tests.
pub(crate) const SIGNING_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One request that the endpoint got.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    /// The status that it was answered.
    pub(crate) status: u16,
}

impl Delivery {
    /// The record of a notification.
    pub(crate) fn record_id(&self) -> &str {
        self.body["data"]["record"]["recordId"].as_str().unwrap()
    }

    pub(crate) fn destination(&self) -> &str {
        self.body["data"]["record"]["destinationId"].as_str().unwrap()
    }

    pub(crate) fn seq(&self) -> i64 {
        self.body["seq"].as_i64().unwrap()
    }
}

/// The status and headers that a delivery is answered.
type Answers = Box<dyn Fn(&Value) -> (u16, Vec<(&'static str, String)>) + Send + Sync>;

struct State {
    deliveries: Mutex<Vec<Delivery>>,
    answers: RwLock<Answers>,
    /// Each signature has to verify by one of these.
    keys: RwLock<Vec<String>>,
}

/// A running endpoint on loopback.
pub(crate) struct Receiver {
    port: u16,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

impl Receiver {
    /// An endpoint that answers 200.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            deliveries: Mutex::default(),
            answers: RwLock::new(Box::new(|_| (200, Vec::new()))),
            keys: RwLock::new(vec![SIGNING_KEY.to_owned()]),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { port, state, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hooks?team=a", self.port)
    }

    /// A sink of the manifest that posts here.
    pub(crate) fn sink(&self, name: &str, event: &str) -> Value {
        json!({"name": name, "event": event, "webhook": {
            "url": self.url(), "secretRef": {"name": "hooks", "key": "signing"}, "allowedCidrs": ["127.0.0.0/8"],
        }})
    }

    /// Answers from now on by what the body holds.
    pub(crate) fn answer(
        &self,
        answers: impl Fn(&Value) -> (u16, Vec<(&'static str, String)>) + Send + Sync + 'static,
    ) {
        *self.state.answers.write().unwrap() = Box::new(answers);
    }

    /// Answers from now on with a status by the destination.
    pub(crate) fn answer_by_destination(&self, status: impl Fn(&str) -> u16 + Send + Sync + 'static) {
        self.answer(move |body| {
            (status(body["data"]["record"]["destinationId"].as_str().unwrap_or_default()), Vec::new())
        });
    }

    /// Signatures have to verify by one of these keys from now on.
    pub(crate) fn expect_keys(&self, keys: &[&str]) {
        *self.state.keys.write().unwrap() = keys.iter().map(|key| (*key).to_owned()).collect();
    }

    /// All requests so far.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.state.deliveries.lock().unwrap().clone()
    }

    /// The first 2xx of each id, in order.
    pub(crate) fn received(&self) -> Vec<Delivery> {
        let mut seen = std::collections::HashSet::new();
        let all = self.deliveries().into_iter().filter(|delivery| (200..300).contains(&delivery.status));
        all.filter(|delivery| seen.insert(delivery.id.clone())).collect()
    }

    /// Checks, per destination, that each delivery that succeeded names the one before, and that its number is above that of
    /// `deliveredThrough`.
    pub(crate) fn check_order(&self) {
        let mut last: HashMap<String, i64> = HashMap::new();
        for delivery in self.received() {
            let before = last.insert(delivery.destination().to_owned(), delivery.seq());
            assert_eq!(delivery.body["previousSeq"], json!(before), "{}", delivery.body);
            assert!(delivery.body["deliveredThrough"].as_i64().unwrap() < delivery.seq(), "{}", delivery.body);
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(take(request, &state).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn take(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    assert_eq!(request.uri(), "/hooks?team=a");
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Response::new(Full::default()) };
    let body = body.to_bytes();
    let verifies = |key: &String| Webhook::new(key).unwrap().verify(&body, &head.headers).is_ok();
    let is_signed = state.keys.read().unwrap().iter().any(verifies);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let (status, headers) = if is_signed { state.answers.read().unwrap()(&body) } else { (401, Vec::new()) };
    let id = head.headers["webhook-id"].to_str().unwrap().to_owned();
    state.deliveries.lock().unwrap().push(Delivery { id, headers: head.headers, body, status });
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Full::from("taken")).unwrap()
}
