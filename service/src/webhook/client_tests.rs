//! The client against real sockets: where it connects, and what it takes as an answer.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Allowed, Answer, Client, Failure, Request, SigningKeys, connector::Resolve};
use crate::tls::{self, testing::Authority};

/// Returns the next addresses at each look; the last ones stay.
#[derive(Debug)]
struct Changing(Mutex<VecDeque<Vec<IpAddr>>>);

impl Changing {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parsed =
            |addresses: &&[&str]| addresses.iter().map(|address| address.parse().expect("an address")).collect();
        Arc::new(Self(Mutex::new(answers.iter().map(parsed).collect())))
    }
}

impl Resolve for Changing {
    fn resolve(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let mut answers = self.0.lock().expect("one thread");
        let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        Box::pin(async move { Ok(next.unwrap_or_default()) })
    }
}

/// A server that answers each connection in the same way. Returns its port, and the number of connections so far.
async fn server<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> (u16, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let connections = Arc::new(Mutex::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            *count.lock().expect("one thread") += 1;
            tokio::spawn(answer(stream));
        }
    });
    (port, connections)
}

/// Reads the head of a request, writes a text, and leaves the connection open.
async fn says(mut stream: TcpStream, text: &'static str) {
    let mut head = [0; 4096];
    let _ = stream.read(&mut head).await;
    let _ = stream.write_all(text.as_bytes()).await;
    std::future::pending::<()>().await;
}

fn client(url: &str, allowed: &[&str], resolver: Option<Arc<dyn Resolve>>) -> Client {
    let allowed = Allowed::new(allowed.iter().map(|range| range.parse().expect("a range")).collect());
    let timeout = Duration::from_secs(2);
    match resolver {
        Some(resolver) => {
            let config = tls::client_config(None).expect("settings");
            Client::with(url, timeout, allowed, None, config, resolver).expect("a client")
        }
        None => Client::new(url, timeout, allowed, None).expect("a client"),
    }
}

async fn post(client: &Client) -> Result<Answer, Failure> {
    let keys = SigningKeys::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
    let request = Request { id: "a", traceparent: None, body: "{}".to_owned(), keys: &keys, headers: None };
    client.post(request, SystemTime::now()).await
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const LOOPBACK: &[&str] = &["127.0.0.0/8"];

#[tokio::test]
async fn an_address_that_is_not_allowed_is_never_connected_to() {
    let (port, connections) = server(|stream| says(stream, OK)).await;
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "2130706433"] {
        let refused = post(&client(&format!("http://{host}:{port}/"), &[], None)).await;
        assert!(matches!(refused, Err(Failure::Denied(_) | Failure::Unresolved)), "{host}: {refused:?}");
    }
    assert_eq!(*connections.lock().expect("one thread"), 0);
    let allowed = post(&client(&format!("http://127.0.0.1:{port}/"), LOOPBACK, None)).await;
    assert_eq!(allowed.map(|answer| answer.status), Ok(200));
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_at_the_next_look_is_checked_at_each_connection() {
    let (port, connections) =
        server(|stream| says(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")).await;
    let url = format!("http://rebinding.example:{port}/");
    // Allowed at first, then loopback under another address, which is not.
    let resolver = Changing::new(&[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.2", "127.0.0.1"]]);
    let client = client(&url, &["127.0.0.1/32"], Some(resolver));
    assert_eq!(post(&client).await.map(|answer| answer.status), Ok(200));
    assert_eq!(post(&client).await, Err(Failure::Denied("127.0.0.2".to_owned())));
    assert_eq!(*connections.lock().expect("one thread"), 1);
    assert_eq!(post(&client).await.map(|answer| answer.status), Ok(200), "another of its addresses is allowed");
}

#[tokio::test]
async fn a_name_without_an_address_and_a_closed_port_are_failures() {
    let none = client("http://nothing.invalid/", &[], None);
    assert_eq!(post(&none).await, Err(Failure::Unresolved));
    let empty = client("http://empty.example/", &[], Some(Changing::new(&[&[]])));
    assert_eq!(post(&empty).await, Err(Failure::Unresolved));
    let (port, _) = server(|stream| says(stream, OK)).await;
    let closed = client(&format!("http://127.0.0.3:{port}/"), LOOPBACK, None);
    assert!(matches!(post(&closed).await, Err(Failure::Connect(_))));
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (target, connections) = server(|stream| says(stream, OK)).await;
    let text =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{target}/\r\ncontent-length: 0\r\n\r\n");
    let text: &'static str = text.leak();
    let (port, _) = server(move |stream| says(stream, text)).await;
    let answer = post(&client(&format!("http://127.0.0.1:{port}/"), LOOPBACK, None)).await.expect("an answer");
    assert!(answer.status == 307 && !answer.is_success());
    assert_eq!(*connections.lock().expect("one thread"), 0);
}

#[tokio::test]
async fn answers_that_are_slow_endless_or_none_end_in_time() {
    let began = Instant::now();
    let silent = server(|stream| says(stream, "")).await.0;
    let head = server(|stream| says(stream, "HTTP/1.1 200 OK\r\nx: ")).await.0;
    let garbage = server(|stream| says(stream, "hello\r\n\r\n")).await.0;
    let cut = server(|mut stream| async move {
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await
    .0;
    let slow = server(|stream| says(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")).await.0;
    let endless = server(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while stream.write_all(b"1000\r\n").await.is_ok() && stream.write_all(&[b'x'; 4098]).await.is_ok() {}
    })
    .await
    .0;
    let endless_head = server(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"x-more: and more and more\r\n").await.is_ok() {}
    })
    .await
    .0;
    let ask = async |port: u16| post(&client(&format!("http://127.0.0.1:{port}/"), LOOPBACK, None)).await;
    let (silent, head, garbage, cut, slow, endless, endless_head) =
        tokio::join!(ask(silent), ask(head), ask(garbage), ask(cut), ask(slow), ask(endless), ask(endless_head));
    assert_eq!((silent, head), (Err(Failure::TimedOut(2)), Err(Failure::TimedOut(2))));
    for none in [&garbage, &cut, &endless_head] {
        assert!(matches!(none, Err(Failure::Http(_) | Failure::Connect(_))), "{none:?}");
    }
    // The head is the answer; what follows is not waited for.
    assert_eq!((slow.map(|answer| answer.status), endless.map(|answer| answer.status)), (Ok(200), Ok(200)));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_of_another_name_is_a_failure() {
    let authority = Authority::new("ours");
    let (name, other) = (authority.issue(&["hooks.example"]), authority.issue(&["other.example"]));
    let mut ports = Vec::new();
    for issued in [&name, &other] {
        let identity =
            tls::Identity::parse("test", issued.certificate.clone().into(), issued.key.clone().into()).expect("files");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(identity.server_config().expect("settings")));
        let port = server(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(OK.as_bytes()).await;
                let _ = stream.flush().await;
                std::future::pending::<()>().await;
            }
        })
        .await
        .0;
        ports.push(port);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("ca.crt");
    std::fs::write(&file, &authority.pem).expect("written");
    let ask = async |port: u16, ca: Option<&std::path::Path>| {
        let config = tls::client_config(ca).expect("settings");
        let allowed = Allowed::new(vec!["127.0.0.0/8".parse().expect("a range")]);
        let url = format!("https://hooks.example:{port}/");
        let resolver = Changing::new(&[&["127.0.0.1"]]);
        post(&Client::with(&url, Duration::from_secs(2), allowed, None, config, resolver).expect("a client")).await
    };
    assert_eq!(ask(ports[0], Some(&file)).await.map(|answer| answer.status), Ok(200));
    for refused in [ask(ports[0], None).await, ask(ports[1], Some(&file)).await] {
        assert!(matches!(refused, Err(Failure::Connect(_))), "{refused:?}");
    }
}

/// A proxy that tunnels every connection to a port of this machine, as if it had resolved the name. Returns its URL, and the
/// first line of each request.
async fn proxy(to: u16) -> (String, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&lines);
    let (port, _) = server(move |mut client| {
        let noted = Arc::clone(&noted);
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = client.read_u8().await else { return };
                head.push(byte);
            }
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            let is_refused = line.contains("refused.example");
            noted.lock().expect("one thread").push(line);
            if is_refused {
                let _ = client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
                return;
            }
            let mut endpoint = TcpStream::connect(("127.0.0.1", to)).await.expect("the endpoint");
            let _ = client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await;
            let _ = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await;
        }
    })
    .await;
    (format!("http://127.0.0.1:{port}"), lines)
}

#[tokio::test]
async fn a_proxy_gets_names_and_no_address_that_is_denied() {
    let (port, connections) = server(|stream| says(stream, OK)).await;
    let (proxy, lines) = proxy(port).await;
    let through = |url: &str, allowed: &[&str]| {
        let allowed = Allowed::new(allowed.iter().map(|range| range.parse().expect("a range")).collect());
        Client::new(url, Duration::from_secs(2), allowed, Some(&proxy)).expect("a client")
    };
    // Only the proxy can resolve the name, and its own address needs no permission.
    let answer = post(&through("http://hooks.example:8080/a", &[])).await;
    assert_eq!(answer.map(|answer| answer.status), Ok(200));
    let answer = post(&through("http://127.0.0.1/a", LOOPBACK)).await;
    assert_eq!(answer.map(|answer| answer.status), Ok(200));
    for denied in ["127.0.0.1", "[::1]", "169.254.169.254"] {
        let refused = post(&through(&format!("http://{denied}/"), &[])).await;
        assert!(matches!(refused, Err(Failure::Denied(_))), "{denied}: {refused:?}");
    }
    for number in ["2130706433", "127.1", "0x7f.1", "0x7f000001", "1."] {
        let refused = post(&through(&format!("http://{number}/"), &[])).await;
        assert_eq!(refused, Err(Failure::Unresolved), "{number}");
    }
    let refused = post(&through("https://refused.example/", &[])).await;
    assert!(matches!(&refused, Err(Failure::Connect(why)) if why.contains("webhook.proxy")), "{refused:?}");
    assert_eq!(
        *lines.lock().expect("one thread"),
        [
            "CONNECT hooks.example:8080 HTTP/1.1",
            "CONNECT 127.0.0.1:80 HTTP/1.1",
            "CONNECT refused.example:443 HTTP/1.1"
        ]
    );
    assert_eq!(*connections.lock().expect("one thread"), 2);
}

#[tokio::test]
async fn the_certificate_is_verified_through_a_proxy_too() {
    let (port, _) = server(|stream| says(stream, "HTTP/1.1 200 OK\r\n\r\n")).await;
    let (proxy, lines) = proxy(port).await;
    let allowed = Allowed::new(Vec::new());
    let client =
        Client::new("https://hooks.example/", Duration::from_secs(2), allowed, Some(&proxy)).expect("a client");
    let refused = post(&client).await;
    assert!(refused.is_err(), "an endpoint without TLS: {refused:?}");
    assert_eq!(*lines.lock().expect("one thread"), ["CONNECT hooks.example:443 HTTP/1.1"]);
}
