//! Connections of a port: taken up to a bound, served, and ended in order when the process stops.
//!
//! Must never take more connections than there are files for: Redis, Postgres and the manifest need theirs. A handshake of
//! TLS is within the same bounds as requests. Serves HTTP/1.1 only, for which [`Paced`] holds the state of a connection.

#[cfg(test)]
mod https_tests;

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::TokioIo,
    server::graceful::{GracefulConnection, GracefulShutdown, Watcher},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use poem::{
    Addr, Endpoint, Response,
    http::{Request, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    pace::{Pace, Paced, Turn},
    problem,
};
use crate::telemetry::metrics::REFUSED_CONNECTIONS;

/// Files that are left for everything but connections of clients.
const OTHER_FILES: usize = 256;
/// Most bytes of a request's head, and of what is read at once of a body. More than the longest path that is taken.
const HEAD_BYTES: usize = 96 * 1024;
/// Connections that are told at the same time that there are too many; any more are closed without a word.
const TOLD_AT_ONCE: usize = 64;

/// Most bytes of an answer that TLS holds until the client takes them; a client that stalls is cut off with these.
const TLS_BUFFER_BYTES: usize = 16 * 1024;

/// Limits of connections in number and time.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most connections at the same time.
    pub most: usize,
    /// Time for open requests to end when the process stops.
    pub last: Duration,
    /// How long each part of a request may take.
    pub(super) pace: Pace,
}

impl Default for Bounds {
    fn default() -> Self {
        // Idle, so many fit into the memory that a pod has unless it is given more.
        Self { most: 8_000, last: Duration::from_secs(20), pace: Pace::default() }
    }
}

/// Settings of TLS for new connections; a change does not concern open ones.
pub(crate) type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Serves until `stop`, then lets open requests end, for a bounded time. Without `tls`: HTTP.
pub(crate) async fn run(
    listener: TcpListener,
    tls: Option<Tls>,
    endpoint: impl Endpoint<Output = Response> + 'static,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let endpoint = Arc::new(endpoint);
    let most = bounds.most.min(files().saturating_sub(OTHER_FILES)).max(1);
    let (places, told) = (Arc::new(Semaphore::new(most)), Arc::new(Semaphore::new(TOLD_AT_ONCE)));
    let (graceful, hard) = (GracefulShutdown::new(), CancellationToken::new());
    let _drop_the_rest = hard.clone().drop_guard();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // Of the connection alone, which is gone already.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
                continue;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(event = "http.connection.refused", %error, most, "a connection cannot be accepted");
                }
                // Out of files or memory: at once it would only fail again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        failing = false;
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.borrow())));
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics::counter!(REFUSED_CONNECTIONS).increment(1);
            if let Ok(telling) = Arc::clone(&told).try_acquire_owned() {
                tokio::spawn(refuse(stream, acceptor, telling));
            }
            continue;
        };
        let serving = serve(stream, acceptor, Arc::clone(&endpoint), bounds.pace, graceful.watcher(), stop.clone());
        let hard = hard.clone();
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = serving => {}
                () = hard.cancelled() => {}
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(bounds.last, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            event = "http.connections.dropped",
            after_s = bounds.last.as_secs(),
            "connections that did not end in time were dropped"
        );
    }
}

/// Serves one connection to its end: the client ended it, was late, did not send HTTP, or the process stops.
async fn serve<E: Endpoint<Output = Response> + 'static>(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    endpoint: Arc<E>,
    pace: Pace,
    watcher: Watcher,
    stop: CancellationToken,
) {
    // Answers are small, and written whole.
    let (Ok(()), Ok(local), Ok(remote)) = (stream.set_nodelay(true), stream.local_addr(), stream.peer_addr()) else {
        return;
    };
    let ends = (LocalAddr(Addr::SocketAddr(local)), RemoteAddr(Addr::SocketAddr(remote)));
    let Some(acceptor) = acceptor else {
        let _ = watcher.watch(connection(stream, ends, Scheme::HTTP, endpoint, pace)).await;
        return;
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(pace.head, handshake(&acceptor, stream)) => shaken,
        // No request has begun.
        () = stop.cancelled() => return,
    };
    match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => {
            let _ = watcher.watch(connection(stream, ends, Scheme::HTTPS, endpoint, pace)).await;
        }
        Err(error) => {
            tracing::debug!(event = "http.handshake.failed", %error, client = %remote, "a client's TLS handshake failed");
        }
    }
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    acceptor.accept_with(stream, |connection| connection.set_buffer_limit(Some(TLS_BUFFER_BYTES))).await
}

/// A connection that serves itself.
fn connection<E: Endpoint<Output = Response> + 'static>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    (local, remote): (LocalAddr, RemoteAddr),
    scheme: Scheme,
    endpoint: Arc<E>,
    pace: Pace,
) -> impl GracefulConnection + Send {
    let (stream, turns) = Paced::new(stream, pace);
    let service = service_fn(move |request: Request<Incoming>| {
        let turn = turns.begin();
        let request = (request, local.clone(), remote.clone(), scheme.clone()).into();
        let endpoint = Arc::clone(&endpoint);
        async move {
            let response = hyper::Response::from(endpoint.get_response(request).await);
            Ok::<_, Infallible>(response.map(|body| InTurn { body, _turn: turn }))
        }
    });
    http1::Builder::new().max_buf_size(HEAD_BYTES).serve_connection(TokioIo::new(stream), service)
}

/// A body that keeps its request's turn until it is sent.
struct InTurn<B> {
    body: B,
    _turn: Turn,
}

impl<B: Body + Unpin> Body for InTurn<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Tells a connection that there are too many.
async fn refuse(stream: TcpStream, acceptor: Option<TlsAcceptor>, _telling: OwnedSemaphorePermit) {
    let telling = async {
        match acceptor {
            Some(acceptor) => write_refusal(handshake(&acceptor, stream).await?).await,
            None => write_refusal(stream).await,
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
}

async fn write_refusal(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let detail = "as many connections as this process takes are open; send it again";
    stream.write_all(&problem::bare(503, "too_many_connections", detail)).await?;
    stream.shutdown().await?;
    // Closed while there is something to read, it would be a reset, and the answer lost.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// How many files this process may have open, once it asked for as many as it may ask for.
fn files() -> usize {
    let Ok((soft, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok();
    usize::try_from(if raised { most } else { soft }).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use poem::{Request as PoemRequest, endpoint::make};

    use super::*;

    pub(super) const SHORT: Duration = Duration::from_millis(150);
    pub(super) const LONG: Duration = Duration::from_secs(60);

    /// Says that `/slow` was asked for.
    static ASKED: tokio::sync::Notify = tokio::sync::Notify::const_new();

    /// Serves `/slow` and `/late`, whose answers come late, `/endless`, whose answer has no end, and everything else at once.
    async fn serve(bounds: Bounds) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        serve_with(None, bounds).await
    }

    pub(super) async fn serve_with(
        tls: Option<Tls>,
        bounds: Bounds,
    ) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = make(async |request: PoemRequest| {
            match request.uri().path() {
                "/slow" => {
                    ASKED.notify_one();
                    tokio::time::sleep(SHORT * 4).await;
                }
                "/late" => tokio::time::sleep(SHORT * 4).await,
                "/endless" => {
                    let parts = futures::stream::repeat_with(|| io::Result::Ok(bytes::Bytes::from(vec![b'x'; 65_536])));
                    return Ok::<_, poem::Error>(Response::builder().body(poem::Body::from_bytes_stream(parts)));
                }
                _ => {}
            }
            Ok(Response::builder().body("well"))
        });
        let stop = CancellationToken::new();
        let serving =
            tokio::spawn(run(listener, tls, poem::EndpointExt::map_to_response(endpoint), bounds, stop.clone()));
        (address, stop, serving)
    }

    pub(super) fn bounds(pace: Pace) -> Bounds {
        Bounds { pace, ..Bounds::default() }
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_answered_408_and_others_are_served_meanwhile() {
        let (address, ..) = serve(bounds(Pace { head: SHORT, idle: LONG, stall: LONG })).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        let (mut from, mut to) = slow.split();
        let drip = async {
            to.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
            // Until it is closed.
            while to.write_all(b"x").await.is_ok() {
                tokio::time::sleep(SHORT / 10).await;
            }
        };
        let listen = async {
            let mut text = vec![0; 4096];
            let n = from.read(&mut text).await.unwrap();
            String::from_utf8(text[..n].to_vec()).unwrap()
        };
        let said = tokio::select! { said = listen => said, () = drip => panic!("closed without a word") };
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("\"code\":\"request_timeout\""), "{said}");
        // A client that still sends is not reset: the answer could be lost on its way.
        for _ in 0..10 {
            slow.write_all(b"x").await.unwrap();
            tokio::time::sleep(SHORT / 10).await;
        }
        assert_eq!(slow.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(reqwest::get(format!("http://{address}/")).await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_without_a_word_and_a_request_under_way_is_not() {
        let (address, ..) = serve(bounds(Pace { head: LONG, idle: SHORT, stall: LONG })).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert_eq!(rest(&mut idle).await, "");
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let said = rest(&mut busy).await;
        assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("well"), "{said}");
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_cut_off() {
        let one = Bounds { most: 1, ..bounds(Pace { head: LONG, idle: LONG, stall: SHORT }) };
        let (address, ..) = serve(one).await;
        let mut stalled = TcpStream::connect(address).await.unwrap();
        stalled.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stalled.readable().await.unwrap();
        // There is one place only, and it comes back.
        loop {
            match reqwest::get(format!("http://{address}/")).await {
                Ok(answer) if answer.status() == 200 => break,
                _ => tokio::time::sleep(SHORT / 10).await,
            }
        }
    }

    #[tokio::test]
    async fn above_the_bound_a_connection_is_told_so_and_its_place_comes_back() {
        let (address, ..) = serve(Bounds { most: 2, ..Bounds::default() }).await;
        let held = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let mut refused = TcpStream::connect(address).await.unwrap();
        refused.write_all(b"POST /records HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        refused.shutdown().await.unwrap();
        let said = rest(&mut refused).await;
        assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("\r\nretry-after: 1\r\n"), "{said}");
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{said}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["code"], &problem["retryable"]), (&"too_many_connections".into(), &true.into()));
        drop(held);
        while reqwest::get(format!("http://{address}/")).await.unwrap().status() != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn at_a_stop_open_requests_end_and_nothing_is_waited_for_that_does_not() {
        let (address, stop, serving) = serve(Bounds { last: LONG, ..Bounds::default() }).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        ASKED.notified().await;
        stop.cancel();
        assert!(rest(&mut busy).await.ends_with("well"));
        serving.await.unwrap();

        let (address, stop, serving) = serve(Bounds { last: SHORT, ..Bounds::default() }).await;
        let mut endless = TcpStream::connect(address).await.unwrap();
        endless.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        endless.readable().await.unwrap();
        stop.cancel();
        serving.await.unwrap();
    }
}
